"""`adpa export SIGNAL`: what other tools read is what our reader gives, bit for bit."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from safetensors import safe_open

from adpa_cli.interchange.export import export_signal
from adpa_cli.signal.rows import SignalRows
from adpa_cli.signal.shard import SignalReader, write_shard
from adpa_cli.store.store import Store
from support.cli_samples import Cli, Pipeline
from support.signal_samples import sample_answers, spec_of


def rows_of(reader: SignalReader) -> list[tuple[object, SignalRows]]:
    return [item for shard in reader.shards for item in shard]


def names_of(rows: SignalRows) -> list[str]:
    return [field.name for field in fields(SignalRows) if getattr(rows, field.name) is not None]


def test_parquet_holds_what_the_reader_gives(pipeline: Pipeline, cli: Cli) -> None:
    for number, pair in ((1, False), (2, True)):
        ref = pipeline.made(f"signal #{number}")
        assert cli("export", ref, f"out{number}").rows == [[f"out{number}"]]
        read = pq.read_table(f"out{number}/signal-00000.parquet")
        expected = rows_of(SignalReader(pipeline.store / ref))
        assert read.num_rows == len(expected)
        assert ("difference" in read.column_names) == pair
        assert json.loads(read.schema.metadata[b"adpa"])["k"] == expected[0][1].ids.shape[1]
        table = read.to_pydict()
        for n, (key, rows) in enumerate(expected):
            assert (table["example_id"][n], table["part"][n], table["tokens_hash"][n]) == tuple(vars(key).values())
            for name in names_of(rows):
                value = getattr(rows, name)
                np.testing.assert_array_equal(np.array(table[name][n], dtype=value.dtype), value)


def test_safetensors_hold_the_same_with_an_empty_answer(tmp_path: Path, pipeline: Pipeline) -> None:
    folder = tmp_path / "signal"
    folder.mkdir()
    write_shard(folder / "signal-00000.adpa", spec_of(8, 60), sample_answers((3, 0, 5), 8, 60))
    manifest = Store.find(pipeline.store).resolve(pipeline.made("signal #2"))
    for to in ("safetensors", "parquet"):
        export_signal(folder, manifest, tmp_path / to, to, False)
    expected = rows_of(SignalReader(folder))
    with safe_open(tmp_path / "safetensors" / "signal-00000.safetensors", "np") as file:
        about = json.loads(file.metadata()["adpa"])
        starts = file.get_tensor("starts")
        assert about["keys"] == [list(vars(key).values()) for key, _ in expected]
        for n, (_, rows) in enumerate(expected):
            for name in names_of(rows):
                part = file.get_tensor(name)[starts[n] : starts[n + 1]]
                assert part.dtype == getattr(rows, name).dtype
                np.testing.assert_array_equal(part, getattr(rows, name))
    lengths = [len(ids) for ids in pq.read_table(tmp_path / "parquet" / "signal-00000.parquet")["ids"].to_pylist()]
    assert lengths == [3, 0, 5]


def test_formats_of_the_other_kind_and_taken_folders_are_refused(pipeline: Pipeline, cli: Cli) -> None:
    ref, model = pipeline.made("signal #1"), pipeline.made("student")
    assert "try: export it with --to parquet or safetensors" in cli.refused(2, "export", ref, "out", "--to", "ollama")
    assert "--dtype bfloat16" in cli.refused(2, "export", ref, "out", "--dtype", "bfloat16")
    assert "is for signals" in cli.refused(2, "export", model, "out", "--to", "parquet")
    assert cli("export", ref, "out", "--to", "safetensors").code == 0
    assert "--force" in cli.refused(2, "export", ref, "out")
    assert cli("export", ref, "out", "--force").code == 0
    assert sorted(path.name for path in Path("out").iterdir()) == ["README.md", "signal-00000.parquet"]
