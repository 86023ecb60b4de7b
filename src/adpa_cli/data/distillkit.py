"""Captures of Arcee's DistillKit (`sample_logits_vllm`): Parquet with bit-packed ids and a log-prob code per position.

Of a position: `bytepacked_indices`, k ids of ceil(log2 d) bits each, highest bit first, by falling log-prob; and
`compressed_logprobs`: exact_k values, then the coefficients of a curve through the others, then bins of residuals
(scale, integers), all little-endian. Rows of `input_ids`; position t is about the token t + 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from adpa_cli.data.captured import Captured
from adpa_cli.errors import DataError

Float = Literal["float16", "bfloat16", "float32", "float64"]
COLUMNS = ("input_ids", "compressed_logprobs", "bytepacked_indices")
_BYTES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
_TERMS = ("sqrt", "exp")


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
            f"{where}: legacy captures hold logits without their normaliser", "capture with DistillKit's newer form"
        )
    try:
        bins = tuple(Bin(**{name: b[name] for name in Bin.__annotations__}) for b in raw.get("residual_bins") or ())
        known = {name: raw[name] for name in Settings.__annotations__ if raw.get(name) is not None}
        terms = tuple(raw.get("polynomial_terms") or ())
        found = Settings(**{**known, "residual_bins": bins, "polynomial_terms": terms})
        _check(found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"{where}: no settings of DistillKit's compressor ({error})", "give its compression_config.yaml"
        ) from None
    return found


def _check(s: Settings) -> None:
    for name in (s.exact_dtype, s.term_dtype, *(b.scale_dtype for b in s.residual_bins)):
        if name not in get_args(Float):
            raise ValueError(f"the type {name!r}")
    counts = [s.d, s.k, *(n for b in s.residual_bins for n in (b.element_bits, b.num_elements))]
    if (
        not all(type(n) is int and n > 0 for n in counts)
        or type(s.exact_k) is not int
        or not 0 <= s.exact_k <= s.k <= s.d
    ):
        raise ValueError("counts that do not fit: 0 <= exact_k <= k <= d")
    if (
        any(b.element_bits > 32 for b in s.residual_bins)
        or sum(b.num_elements for b in s.residual_bins) > s.k - s.exact_k
    ):
        raise ValueError("residual_bins that do not fit")
    if any(not (type(t) is int or t in _TERMS) for t in s.polynomial_terms):
        raise ValueError(f"polynomial_terms {s.polynomial_terms}")


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
        raise ValueError(f"{codes.shape[1]} bytes of log-probs; the settings make {size}")
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


def _curve(s: Settings, count: int) -> NDArray[np.float64]:
    """[count, terms] the curve's terms at the ranks behind the exact ones."""
    t = np.linspace(0, 1, count) if s.normalize_t else np.arange(count, dtype=np.float64)
    t = _as(s.term_dtype, t)
    with np.errstate(over="ignore"):
        terms = [{"sqrt": np.sqrt, "exp": np.exp}[i](t) if isinstance(i, str) else t**i for i in s.polynomial_terms]
        return _as(s.term_dtype, np.stack(terms, axis=1))


def floats(raw: NDArray[np.uint8], dtype: str) -> NDArray[np.float64]:
    """[T, n × bytes] little-endian floats of one of the four types."""
    raw = np.ascontiguousarray(raw)
    if dtype == "bfloat16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return raw.view({"float16": "<f2", "float32": "<f4", "float64": "<f8"}[dtype]).astype(np.float64)


def _as(dtype: str, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The values rounded to a type: the curve was fitted, and its residuals taken, in it."""
    if dtype == "bfloat16":
        bits = values.astype(np.float32).view(np.uint32)
        bits = (bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)
        return bits.view(np.float32).astype(np.float64)
    with np.errstate(over="ignore"):
        return values.astype(dtype).astype(np.float64)


def unpack(raw: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.int64]:
    """[T, count] integers of `bits` bits, highest first. Raises ValueError when there are too few bytes."""
    if raw.shape[1] != (bits * count + 7) // 8:
        raise ValueError(f"{raw.shape[1]} bytes for {count} integers of {bits} bits")
    ones = np.unpackbits(raw, axis=1)[:, : bits * count].reshape(len(raw), count, bits)
    return ones.astype(np.int64) @ (1 << np.arange(bits - 1, -1, -1, dtype=np.int64))


def read(path: Path, s: Settings) -> Iterator[Captured]:
    """The rows of one file. Raises DataError naming the row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path.name} is no Parquet file ({error})", "name the data_*.parquet of a capture") from None
    missing = [name for name in COLUMNS if name not in file.schema_arrow.names]
    if missing:
        raise DataError(
            f"{path.name} has no column {missing[0]}, only {', '.join(file.schema_arrow.names[:6])}",
            "only DistillKit's compressed_logprobs are read; its legacy form keeps logits without their normaliser",
        )
    number = 0
    for batch in file.iter_batches(
        64, columns=[n for n in (*COLUMNS, "attention_mask") if n in file.schema_arrow.names]
    ):
        for row in batch.to_pylist():
            number += 1
            where = f"{path.name} row {number}"
            try:
                yield _captured(where, row, s)
            except (ValueError, TypeError, OverflowError) as error:
                raise DataError(
                    f"{where}: {error}", "give the compression_config.yaml that it was captured with"
                ) from None


def _captured(where: str, row: Mapping[str, Any], s: Settings) -> Captured:
    tokens = tuple(row["input_ids"])
    if max(row.get("attention_mask") or (1,)) > 1:
        raise ValueError("several texts are packed into it")
    codes, packed = (np.array(row[name], dtype=np.uint8) for name in COLUMNS[1:])
    count = len(tokens) - 1
    if count < 1 or len(codes) != len(packed) or len(codes) not in (count, count + 1):
        raise ValueError(f"{len(codes)} and {len(packed)} positions for {len(tokens)} tokens")
    logps = np.minimum(decode(codes[:count], s), 0.0)
    ids = unpack(packed[:count], s.id_bits, s.k)
    if not np.isfinite(logps).all() or ids.max() >= s.d or max(tokens) >= s.d:
        raise ValueError(f"a log-prob that is not finite, or an id beyond {s.d - 1}")
    if (np.diff(np.sort(ids, axis=1), axis=1) == 0).any():
        raise ValueError("an id occurs twice at one position")
    label = np.array(tokens[1:])
    label_logps = np.where(ids == label[:, None], logps, -np.inf).max(axis=1)
    return Captured(where, tokens[1:], ids.astype(np.int32), logps, label_logps, before=tokens[:1])
