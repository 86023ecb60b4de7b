"""Finished blocks of a capture, kept exact until the shard is written, so that a killed capture restarts at a block."""

from __future__ import annotations

import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from adpa_cli.errors import Corrupt, NotFound
from adpa_cli.signal.files import atomic
from adpa_cli.signal.rows import PAIR_FIELDS, AnswerKey, SignalRows

_FIELDS = ("ids", "logps", "label_ids", "label_logps", "rest_logps")


def save_block(path: Path, answers: Sequence[tuple[AnswerKey, SignalRows]]) -> None:
    """Writes the answers of one block in float32, whole or not at all; the same answers give the same bytes."""
    pair = bool(answers) and answers[0][1].difference is not None
    fields = (*_FIELDS, *PAIR_FIELDS) if pair else _FIELDS
    if answers and answers[0][1].weights is not None:
        fields = (*fields, "weights")
    tensors = {name: np.concatenate([getattr(rows, name) for _, rows in answers]) for name in fields if answers}
    head: dict[str, Any] = {
        "keys": [asdict(key) for key, _ in answers],
        "tokens": [len(rows) for _, rows in answers],
    }
    head["crc"] = _crc(head, tensors)
    with atomic(path) as out:
        out.write(save(tensors, {"block": json.dumps(head, sort_keys=True)}))


def load_block(path: Path) -> list[tuple[AnswerKey, SignalRows]]:
    """The answers of `save_block`, exactly. Raises NotFound, and Corrupt when a byte is damaged."""
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise NotFound(f"no block of a capture at {path}") from None
    try:
        head = _metadata(data)
        tensors: dict[str, Any] = load(data)
        if head.pop("crc") != _crc(head, tensors):
            raise ValueError("its checksum does not match")
        keys, ends = [AnswerKey(**key) for key in head["keys"]], np.cumsum(head["tokens"], dtype=np.int64)
        bounds = list(zip([0, *ends[:-1].tolist()], ends.tolist(), strict=False))
        return [
            (key, SignalRows(**{name: tensor[a:b] for name, tensor in tensors.items()}))
            for key, (a, b) in zip(keys, bounds, strict=True)
        ]
    except (SafetensorError, KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
        hint = "delete it: the capture redoes that block"
        raise Corrupt(f"{path}: a damaged block of a capture ({error})", hint) from None


def _metadata(data: bytes) -> dict[str, Any]:
    size = int.from_bytes(data[:8], "little")
    head: dict[str, Any] = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["block"])
    return head


def _crc(head: dict[str, Any], tensors: dict[str, Any]) -> int:
    crc = zlib.crc32(json.dumps(head, sort_keys=True).encode())
    for name in sorted(tensors):
        crc = zlib.crc32(np.ascontiguousarray(tensors[name]).tobytes(), zlib.crc32(name.encode(), crc))
    return crc
