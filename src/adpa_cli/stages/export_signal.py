"""A signal as files that other tools read: Parquet with a row per answer, or safetensors with a row per token."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Literal

from adpa_cli.signal import AnswerKey, Shard, SignalReader, SignalRows
from adpa_cli.stages.export import CARD, fresh_folder
from adpa_cli.store.disk import explained
from adpa_cli.store.manifest import Manifest

SignalFormat = Literal["parquet", "safetensors"]
FORMATS: tuple[SignalFormat, ...] = ("parquet", "safetensors")
GROUP_TOKENS = 1 << 14


def export_signal(folder: Path, manifest: Manifest, target: Path, to: SignalFormat, force: bool) -> None:
    """Write each shard of a signal as one file of the folder `target`, which appears whole or not at all.

    The values are those that training reads (renormalised). Raises UsageError for a folder that holds other things,
    Corrupt for a damaged row. The columns are those of docs/signal.md.
    """
    reader = SignalReader(folder)
    place = target.absolute().parent
    with explained(place, f"{target} is not written"), fresh_folder(target, force) as private:
        for shard in reader.shards:
            path = private / f"{shard.path.stem}.{to}"
            (_parquet if to == "parquet" else _safetensors)(shard, path)
        (private / CARD).write_text(_card(reader, manifest, to), encoding="utf-8")


def _about(shard: Shard) -> dict[str, Any]:
    """What the header says of every row."""
    return {**asdict(shard.spec), "teachers": dict(shard.spec.teachers)}


def _columns(rows: SignalRows) -> dict[str, Any]:
    """The fields that the rows have, by name."""
    values = {field.name: getattr(rows, field.name) for field in fields(SignalRows)}
    return {name: value for name, value in values.items() if value is not None}


def _parquet(shard: Shard, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer = None
    for group in _groups(shard):
        columns: dict[str, Any] = {
            "example_id": pa.array([key.example_id for key, _ in group]),
            "part": pa.array([key.part for key, _ in group]),
            "tokens_hash": pa.array([key.tokens for key, _ in group]),
        }
        for name in _columns(group[0][1]):
            columns[name] = _lists([getattr(rows, name) for _, rows in group])
        table = pa.table(columns).replace_schema_metadata({"adpa": json.dumps(_about(shard))})
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    if writer is not None:
        writer.close()


def _lists(arrays: list[Any]) -> Any:
    """A list per answer, of numbers [T] or of lists of K numbers [T, K]."""
    import numpy as np
    import pyarrow as pa

    ends = np.cumsum([0, *(len(array) for array in arrays)], dtype=np.int32)
    flat = np.concatenate(arrays)
    inner = pa.array(flat.reshape(-1))
    if flat.ndim == 2:
        starts = np.arange(0, flat.size + 1, flat.shape[1], dtype=np.int32)
        inner = pa.ListArray.from_arrays(pa.array(starts), inner)
    return pa.ListArray.from_arrays(pa.array(ends), inner)


def _groups(shard: Shard) -> Iterator[list[tuple[AnswerKey, SignalRows]]]:
    """The answers in runs of about GROUP_TOKENS tokens; one empty run would have no columns, so there is none."""
    group: list[tuple[AnswerKey, SignalRows]] = []
    for item in shard:
        group.append(item)
        if sum(len(rows) for _, rows in group) >= GROUP_TOKENS:
            yield group
            group = []
    if group:
        yield group


def _safetensors(shard: Shard, path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    answers = list(shard)
    names = list(_columns(answers[0][1])) if answers else []
    tensors = {name: np.concatenate([getattr(rows, name) for _, rows in answers]) for name in names}
    tensors["starts"] = np.cumsum([0, *(len(rows) for _, rows in answers)], dtype=np.int64)
    keys = [[key.example_id, key.part, key.tokens] for key, _ in answers]
    save_file(tensors, path, {"adpa": json.dumps({**_about(shard), "keys": keys})})


def _card(reader: SignalReader, manifest: Manifest, to: str) -> str:
    lines = [
        f"# Teacher signal {manifest.ref}", "",
        f"Top {reader.spec.k} of {reader.spec.vocab_size:,} ids, {len(reader):,} answers, {reader.tokens:,} tokens.",
        f"Exported by adpa to {to}; its columns are described in docs/signal.md of adpa-cli.", "",
        *(f"- {role} teacher: `{content}`" for role, content in reader.spec.teachers.items()),
        f"- id: `{manifest.id}`",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"
