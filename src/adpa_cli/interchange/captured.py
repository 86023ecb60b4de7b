"""What other tools captured of a teacher: DistillKit's Parquet, and chat completions with top_logprobs.

DistillKit stores ids and log-probs of the likeliest tokens packed into bytes, under settings that are read here.
Completions spell their tokens as texts or bytes, which stand for ids of one tokenizer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from adpa_cli.data.examples import Problem, Prompt
from adpa_cli.data.turns import tools_of, turns_of
from adpa_cli.errors import DataError, fault_in

MOST_MASS = 1.01  # of the listed tokens: more is no softmax
HINT = "ask the server for ids: vLLM has return_tokens_as_token_ids"
UNLIKELY = -9999.0
"""What servers write instead of -inf: a token that is not in the top, or whose log-prob they do not know."""
HALF = "\ufffd"
"""What a server writes for a token that is a part of a character, unless it gives the bytes of the token itself."""
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
Float = Literal["float16", "bfloat16", "float32", "float64"]
COLUMNS = ("input_ids", "compressed_logprobs", "bytepacked_indices")
_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
_TERMS = ("sqrt", "exp")


@dataclass(frozen=True)
class Captured:
    """T tokens that a teacher was asked about, in nats under its full softmax.

    `where` names the file and row. `before` are the ids that precede the tokens, None where the file does not tell;
    `prompt` are the turns, if it has them.
    """

    where: str
    tokens: tuple[int, ...]
    ids: NDArray[np.int32]
    """[T, K] distinct in a row."""
    logps: NDArray[np.float64]
    """[T, K] may be -inf."""
    label_logps: NDArray[np.float64]
    """[T] of the tokens themselves; -inf where the file does not tell."""
    before: tuple[int, ...] | None = None
    prompt: Prompt | None = None

    def with_end(self, end_id: int) -> Captured:
        """The same with an end token behind it, of which nothing is known: no id is listed there."""
        k = self.ids.shape[1]
        return replace(
            self, tokens=(*self.tokens, end_id), label_logps=np.append(self.label_logps, -np.inf),
            ids=np.concatenate([self.ids, np.full((1, k), -1, dtype=np.int32)]),
            logps=np.concatenate([self.logps, np.full((1, k), -np.inf)]),
        )  # fmt: skip


@dataclass(frozen=True)
class Spelling:
    """Which ids of a vocabulary are written as some bytes."""

    size: int
    ids: Mapping[bytes, Sequence[int]] = field(repr=False)

    def id_of(self, entry: Mapping[str, Any]) -> int:
        """The id that a token of a completion stands for. Raises ValueError when it is unknown or ambiguous."""
        token, raw = entry.get("token"), entry.get("bytes")
        if isinstance(token, str) and token.startswith("token_id:") and token[9:].isdigit():
            if int(token[9:]) >= self.size:
                raise ValueError(f"it names the token id {token[9:]}, and the vocabulary has {self.size} ids")
            return int(token[9:])
        if not raw and not token:
            raise ValueError("the token has no text")
        if HALF in (bytes(raw).decode(errors="ignore") if raw else str(token)):
            raise ValueError("the token is half a character, and the server gave neither its bytes nor its id")
        ids = self.ids.get(bytes(raw) if raw else str(token).encode(), ())
        if len(ids) != 1:
            shown = f"could be any of the ids {', '.join(map(str, ids[:3]))}" if ids else "is not in the vocabulary"
            raise ValueError(f"the token {token!r} {shown}")
        return ids[0]


def spelling(pieces: Sequence[str | None], added: Mapping[str, int], byte_level: bool) -> Spelling:
    """The bytes of every id, from its piece; `byte_level` pieces spell bytes as GPT-2's do, others mark spaces by ▁."""
    table = {letter: number for number, letter in _byte_letters().items()}
    special = {number: text for text, number in added.items()}
    ids: dict[bytes, list[int]] = {}
    for number, piece in enumerate(pieces):
        if number in special or piece is None:
            written = special.get(number, "").encode()
        elif byte_level and all(letter in table for letter in piece):
            written = bytes(table[letter] for letter in piece)
        elif (one := _BYTE.fullmatch(piece)) and not byte_level:
            written = bytes([int(one[1], 16)])
        else:
            written = (piece if byte_level else piece.replace("▁", " ")).encode()
        if written:
            ids.setdefault(written, []).append(number)
    return Spelling(len(pieces), ids)


def read_top_logprobs(path: Path, words: Spelling) -> Iterator[Captured | DataError]:
    """The answers of one file; for one that cannot be read an error that names the line and the position."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path.name} line {number}"
            try:
                raw = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                choices = list(_completion(raw)["choices"])
                prompt = _prompt(raw)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                hint = "each line must be one JSON object with `choices`, as a chat server returns it"
                yield DataError(f"{where}: this is not a chat completion: {fault_in(error)}", hint)
                continue
            except Problem as problem:
                yield DataError(f"{where}, {problem.field}: {problem.content}", problem.fix)
                continue
            for n, choice in enumerate(choices, 1):
                place = f"{where}, choice {n}" if len(choices) > 1 else where
                try:
                    yield _captured_completion(place, choice, prompt, words)
                except DataError as error:
                    yield error


@dataclass(frozen=True)
class Bin:
    """Residuals of `num_elements` values after one scale."""

    scale_dtype: str
    element_bits: int
    num_elements: int


@dataclass(frozen=True)
class Settings:
    """DistillKit's `DistributionQuantizationConfig`, as far as it matters to reading."""

    d: int
    k: int
    exact_k: int
    exact_dtype: str = "float32"
    polynomial_terms: tuple[int | str, ...] = ()
    term_dtype: str = "float32"
    residual_bins: tuple[Bin, ...] = ()
    delta_encoding: bool = True
    normalize_t: bool = False

    @property
    def id_bits(self) -> int:
        """Bits of one id."""
        return int(np.ceil(np.log2(np.float32(self.d))))


def settings_of(raw: Mapping[str, Any], where: str) -> Settings:
    """The settings of a configuration file. Raises DataError naming the key that cannot be."""
    raw = raw.get("logprob_compressor", raw)
    if not isinstance(raw, Mapping) or "legacy_logit_compression" in raw or "polynomial_degree" in raw:
        raise DataError(
            f"{where}: this is a legacy capture, whose logits cannot be turned into log-probs",
            "capture again with a newer DistillKit, which stores compressed_logprobs",
        )
    try:
        bins = tuple(Bin(**{name: b[name] for name in Bin.__annotations__}) for b in raw.get("residual_bins") or ())
        known = {name: raw[name] for name in Settings.__annotations__ if raw.get(name) is not None}
        terms = tuple(raw.get("polynomial_terms") or ())
        settings = Settings(**{**known, "residual_bins": bins, "polynomial_terms": terms})
        _check(settings)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{where}: these are not settings of DistillKit's compressor: {fault_in(error)}",
            "give its compression_config.yaml",
        ) from None
    return settings


def decode(codes: NDArray[np.uint8], s: Settings) -> NDArray[np.float64]:
    """[T, B] codes to [T, k] log-probs. Raises ValueError when B is not what the settings say."""
    at = 0

    def take(size: int) -> NDArray[np.uint8]:
        nonlocal at
        at += size
        return codes[:, at - size : at]

    rest = s.k - s.exact_k
    size = s.exact_k * _BYTES[s.exact_dtype] + len(s.polynomial_terms) * _BYTES[s.term_dtype]
    size += sum(_BYTES[b.scale_dtype] + (b.element_bits * b.num_elements + 7) // 8 for b in s.residual_bins)
    if codes.shape[1] != size:
        raise ValueError(f"a token has {codes.shape[1]} bytes of log-probs, and by the settings it would have {size}")
    exact = floats(take(s.exact_k * _BYTES[s.exact_dtype]), s.exact_dtype)
    tail = np.zeros((len(codes), rest))
    if s.polynomial_terms:
        factors = floats(take(len(s.polynomial_terms) * _BYTES[s.term_dtype]), s.term_dtype)
        products = _as(s.term_dtype, _curve(s, rest)[None] * factors[:, None, :])
        tail += _as(s.term_dtype, products.sum(axis=2))
    start = 0
    for b in s.residual_bins:
        scale = floats(take(_BYTES[b.scale_dtype]), b.scale_dtype)
        numbers = unpack(take((b.element_bits * b.num_elements + 7) // 8), b.element_bits, b.num_elements)
        signed = 2 * numbers - 1 if b.element_bits == 1 else numbers - (1 << (b.element_bits - 1))
        tail[:, start : start + b.num_elements] += signed * scale
        start += b.num_elements
    values = np.concatenate([exact, tail], axis=1)
    return values.cumsum(axis=1) if s.delta_encoding else values


def floats(raw: NDArray[np.uint8], dtype: str) -> NDArray[np.float64]:
    """[T, n × bytes] little-endian floats of one of the four types."""
    raw = np.ascontiguousarray(raw)
    if dtype == "bfloat16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return raw.view({"float16": "<f2", "float32": "<f4", "float64": "<f8"}[dtype]).astype(np.float64)


def unpack(raw: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.int64]:
    """[T, count] integers of `bits` bits, highest first. Raises ValueError when there are too few bytes."""
    if raw.shape[1] != (bits * count + 7) // 8:
        raise ValueError(f"{raw.shape[1]} bytes for {count} integers of {bits} bits")
    ones = np.unpackbits(raw, axis=1)[:, : bits * count].reshape(len(raw), count, bits)
    return ones.astype(np.int64) @ (1 << np.arange(bits - 1, -1, -1, dtype=np.int64))


def read_distillkit(path: Path, s: Settings) -> Iterator[Captured]:
    """The rows of one file. Raises DataError naming the row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"{path.name} is not a Parquet file ({error})", "name the data_*.parquet of a capture"
        ) from None
    missing = [name for name in COLUMNS if name not in file.schema_arrow.names]
    if missing:
        raise DataError(
            f"{path.name} has no column {missing[0]}, only {', '.join(file.schema_arrow.names[:6])}",
            "give a capture with compressed_logprobs; the legacy form of DistillKit cannot be read",
        )
    number = 0
    for batch in file.iter_batches(
        64, columns=[n for n in (*COLUMNS, "attention_mask") if n in file.schema_arrow.names]
    ):
        for row in batch.to_pylist():
            number += 1
            where = f"{path.name} row {number}"
            try:
                yield _captured_text(where, row, s)
            except (ValueError, TypeError, OverflowError) as error:
                raise DataError(
                    f"{where}: {error}", "give the compression_config.yaml that it was captured with"
                ) from None


def _byte_letters() -> dict[int, str]:
    """GPT-2's letter for each byte: printable ones are themselves, the others follow from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [number for number in range(256) if number not in plain]
    return {number: chr(number) for number in plain} | {number: chr(256 + n) for n, number in enumerate(others)}


def _completion(raw: Any) -> Any:
    response = raw.get("response", raw)
    return response.get("body", response)


def _prompt(raw: Any) -> Prompt | None:
    request = raw.get("request", raw)
    asked = request.get("body", request)
    turns = asked.get("messages")
    return None if turns is None else (*tools_of(asked.get("tools"), "tools"), *turns_of(turns, "messages"))


def _captured_completion(where: str, choice: Any, prompt: Prompt | None, words: Spelling) -> Captured:
    content = ((choice.get("logprobs") or {}) if isinstance(choice, dict) else {}).get("content")
    if not content:
        raise DataError(f"{where}: the choice has no logprobs.content", "ask the server for logprobs and top_logprobs")
    tokens, labels, rows = [], [], []
    for position, entry in enumerate(content):
        if isinstance(entry, dict) and "logprob" in entry and not entry.get("top_logprobs"):
            said = f"{where}, position {position}: top_logprobs is {'empty' if 'top_logprobs' in entry else 'missing'}"
            raise DataError(said, "ask the server for them: logprobs=true and top_logprobs=20 (as many as it gives)")
        try:
            tokens.append(words.id_of(entry))
            labels.append(_logp(entry))
            listed = [top for top in entry["top_logprobs"] if _logp(top) > -np.inf]
            rows.append(_checked([(words.id_of(top), _logp(top)) for top in listed], tokens[-1], labels[-1]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{where}, position {position}: {fault_in(error)}", HINT) from None
    k = max(map(len, rows))
    ids = np.full((len(rows), k), -1, dtype=np.int32)
    logps = np.full((len(rows), k), -np.inf)
    for t, row in enumerate(rows):
        ids[t, : len(row)] = [token for token, _ in row]
        logps[t, : len(row)] = [logp for _, logp in row]
    return Captured(where, tuple(tokens), ids, logps, np.array(labels), prompt=prompt)


def _logp(entry: Mapping[str, Any]) -> float:
    value = float(entry["logprob"])
    if not value <= np.log(MOST_MASS):
        raise ValueError(f"its log-prob must be 0 or less; got {value:.3g}")
    return value if value > UNLIKELY else -np.inf


def _checked(row: list[tuple[int, float]], token: int, logp: float) -> list[tuple[int, float]]:
    if not row:
        raise ValueError("top_logprobs is empty")
    if len(dict(row)) < len(row):
        raise ValueError("top_logprobs lists one token twice")
    mass = sum(np.exp(value) for value in {**dict(row), token: dict(row).get(token, logp)}.values())
    if not mass <= MOST_MASS:
        raise ValueError(f"the probabilities of its tokens sum to {mass:.3g}, which is more than 1")
    return [(number, min(value, 0.0)) for number, value in row]


def _check(s: Settings) -> None:
    for name in (s.exact_dtype, s.term_dtype, *(b.scale_dtype for b in s.residual_bins)):
        if name not in get_args(Float):
            raise ValueError(f"{name!r} is not one of the types {', '.join(get_args(Float))}")
    counts = [s.d, s.k, *(n for b in s.residual_bins for n in (b.element_bits, b.num_elements))]
    if (
        not all(type(n) is int and n > 0 for n in counts)
        or type(s.exact_k) is not int
        or not 0 <= s.exact_k <= s.k <= s.d
    ):
        raise ValueError(
            "d, k and the counts of residual_bins must be whole numbers above 0, with 0 <= exact_k <= k <= d"
        )
    if (
        any(b.element_bits > 32 for b in s.residual_bins)
        or sum(b.num_elements for b in s.residual_bins) > s.k - s.exact_k
    ):
        raise ValueError("residual_bins must hold at most k - exact_k values, of at most 32 bits each")
    if any(not (type(t) is int or t in _TERMS) for t in s.polynomial_terms):
        raise ValueError(f"polynomial_terms must be whole numbers, sqrt or exp; got {s.polynomial_terms}")


def _curve(s: Settings, count: int) -> NDArray[np.float64]:
    """[count, terms] the curve's terms at the ranks behind the exact ones."""
    t = np.linspace(0, 1, count) if s.normalize_t else np.arange(count, dtype=np.float64)
    t = _as(s.term_dtype, t)
    with np.errstate(over="ignore"):
        terms = [{"sqrt": np.sqrt, "exp": np.exp}[i](t) if isinstance(i, str) else t**i for i in s.polynomial_terms]
        return _as(s.term_dtype, np.stack(terms, axis=1))


def _as(dtype: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The values rounded to a type: the curve was fitted, and its residuals taken, in it."""
    if dtype == "bfloat16":
        bits = values.astype(np.float32).view(np.uint32)
        bits = (bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
        return bits.view(np.float32).astype(np.float64)
    with np.errstate(over="ignore"):
        return values.astype(dtype).astype(np.float64)


def _captured_text(where: str, row: Mapping[str, Any], s: Settings) -> Captured:
    tokens = tuple(row["input_ids"])
    if max(row.get("attention_mask") or (1,)) > 1:
        raise ValueError("several texts are packed into this row, which is not supported")
    codes, packed = (np.array(row[name], dtype=np.uint8) for name in COLUMNS[1:])
    count = len(tokens) - 1
    if count < 1 or len(codes) != len(packed) or len(codes) not in (count, count + 1):
        raise ValueError(
            f"it has {len(tokens)} tokens, but log-probs at {len(codes)} positions and ids at {len(packed)}"
        )
    logps = np.minimum(decode(codes[:count], s), 0.0)
    ids = unpack(packed[:count], s.id_bits, s.k)
    if not np.isfinite(logps).all() or ids.max() >= s.d or max(tokens) >= s.d:
        raise ValueError(f"it has a log-prob that is not finite, or a token id above {s.d - 1}")
    if (np.diff(np.sort(ids, axis=1), axis=1) == 0).any():
        raise ValueError("one position lists a token id twice")
    label = np.array(tokens[1:])
    label_logps = np.where(ids == label[:, None], logps, -np.inf).max(axis=1)
    return Captured(where, tokens[1:], ids.astype(np.int32), logps, label_logps, before=tokens[:1])
