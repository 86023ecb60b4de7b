"""Chat completions with `logprobs.content[].top_logprobs`, as OpenAI-compatible servers give them, one JSON a line.

A line is a completion, or has one under `response` (or `response.body`, as batch files do), with the turns that were
sent under `messages`, `request.messages` or `request.body.messages`. A token is told by `token_id:N` (what vLLM writes
with `return_tokens_as_token_ids`), else by its `bytes`, else by its text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from adpa_cli.data.captured import Captured
from adpa_cli.data.turns import Message, Prompt
from adpa_cli.errors import DataError

MOST_MASS = 1.01  # of the listed tokens: more is no softmax
HINT = "ask the server for ids: vLLM has return_tokens_as_token_ids"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


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
                raise ValueError(f"the id {token[9:]}; the vocabulary has {self.size}")
            return int(token[9:])
        if not raw and not token:
            raise ValueError("a token without text")
        found = self.ids.get(bytes(raw) if raw else str(token).encode(), ())
        if len(found) != 1:
            shown = f"the ids {', '.join(map(str, found[:3]))}" if found else "no id"
            raise ValueError(f"the token {token!r} is {shown} of the vocabulary")
        return found[0]


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


def _byte_letters() -> dict[int, str]:
    """GPT-2's letter for each byte: printable ones are themselves, the others follow from 256 on."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [number for number in range(256) if number not in plain]
    return {number: chr(number) for number in plain} | {number: chr(256 + n) for n, number in enumerate(others)}


def read(path: Path, words: Spelling) -> Iterator[Captured]:
    """The answers of one file. Raises DataError naming the line and the position."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{path.name} line {number}"
            try:
                raw = json.loads(line)
                choices = _completion(raw)["choices"]
                prompt = _prompt(raw)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(
                    f"{where}: no chat completion ({error!r})", "one JSON object with `choices` per line"
                ) from None
            for n, choice in enumerate(choices, 1):
                yield _captured(f"{where}, choice {n}" if len(choices) > 1 else where, choice, prompt, words)


def _completion(raw: Any) -> Any:
    found = raw.get("response", raw)
    return found.get("body", found)


def _prompt(raw: Any) -> Prompt | None:
    request = raw.get("request", raw)
    turns = request.get("body", request).get("messages")
    return None if turns is None else tuple(Message(str(turn["role"]), str(turn["content"])) for turn in turns)


def _captured(where: str, choice: Any, prompt: Prompt | None, words: Spelling) -> Captured:
    content = ((choice.get("logprobs") or {}) if isinstance(choice, dict) else {}).get("content")
    if not content:
        raise DataError(f"{where}: it has no logprobs.content", "ask the server for logprobs and top_logprobs")
    tokens, labels, rows = [], [], []
    for position, entry in enumerate(content):
        try:
            tokens.append(words.id_of(entry))
            labels.append(float(entry["logprob"]))
            row = [(words.id_of(top), float(top["logprob"])) for top in entry["top_logprobs"]]
            rows.append(_checked(row, tokens[-1], labels[-1]))
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{where}, position {position}: {error}", HINT) from None
    k = max(map(len, rows))
    ids = np.full((len(rows), k), -1, dtype=np.int32)
    logps = np.full((len(rows), k), -np.inf)
    for t, row in enumerate(rows):
        ids[t, : len(row)] = [token for token, _ in row]
        logps[t, : len(row)] = [logp for _, logp in row]
    return Captured(where, tuple(tokens), ids, logps, np.array(labels), prompt=prompt)


def _checked(row: list[tuple[int, float]], token: int, logp: float) -> list[tuple[int, float]]:
    if not row:
        raise ValueError("top_logprobs is empty")
    if len(dict(row)) < len(row):
        raise ValueError("an id is listed twice")
    mass = sum(np.exp(value) for value in {**dict(row), token: dict(row).get(token, logp)}.values())
    if not mass <= MOST_MASS:
        raise ValueError(f"its tokens have a mass of {mass:.3g}")
    return [(number, min(value, 0.0)) for number, value in row]
