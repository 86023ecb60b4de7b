"""docs/format.md is enough: a reader written from it, without our package, gives the very same values."""

from __future__ import annotations

import ast
import runpy
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adpa_cli.signal.rows import SignalRows
from adpa_cli.signal.shard import Shard, write_shard
from support.signal_samples import sample_answers, spec_of

READER = Path(__file__).parents[2] / "examples" / "read_signal.py"


@pytest.fixture(scope="module")
def example() -> dict[str, Any]:
    return runpy.run_path(str(READER))


@pytest.mark.parametrize(
    ("pair", "step", "pair_step"),
    [(True, 1 / 32, 1 / 128), (False, 1 / 8, 0), (True, 0, 1 / 64), (False, 0, 0), (True, 0, 0), (True, 0.1, 0.03)],
)
def test_a_reader_written_from_the_page_agrees(tmp_path, example, pair, step, pair_step):
    path, spec = tmp_path / "s.adpa", spec_of(6, 700, pair=pair, step=step, pair_step=pair_step)
    answers = sample_answers((5, 0, 30), 6, 700, pair=pair)
    answers[0][1].logps[1:3, -1] = -np.inf
    write_shard(path, spec, answers)
    shard = Shard(path)
    header, found = example["read"](path)
    assert header["answers"]["tokens"] == [len(rows["ids"]) for rows in found] == [5, 0, 30]
    for i, rows in enumerate(found):
        ours = shard.read(i, raw=True)
        for field in fields(SignalRows):
            expected = getattr(ours, field.name)
            if expected is None:
                assert rows.get(field.name) is None
            else:
                np.testing.assert_array_equal(rows[field.name], expected, err_msg=field.name)


def test_the_reader_reads_ids_that_were_drawn(tmp_path, example):
    path, (key, rows) = tmp_path / "s.adpa", sample_answers((9,), 6, 700, pair=False)[0]
    counts = np.random.default_rng(0).multinomial(300, np.full(6, 1 / 6), 9)
    spec = replace(spec_of(6, 700, pair=False), draws=300)
    write_shard(path, spec, [(key, replace(rows, weights=(counts / 300).astype(np.float32)))])
    (found,) = example["read"](path)[1]
    np.testing.assert_array_equal(found["ids"], Shard(path).read(0).ids)
    np.testing.assert_allclose(found["weights"], Shard(path).read(0).weights, rtol=1e-6)
    np.testing.assert_array_equal(np.sort(np.rint(found["weights"] * 300)), np.sort(counts))


def test_the_reader_refuses_a_damaged_header_and_swapped_frames(tmp_path, example):
    path, answers = tmp_path / "s.adpa", sample_answers((5, 5), 6, 700)
    write_shard(path, spec_of(6, 700), answers)
    data, size = path.read_bytes(), Shard(path).sizes
    path.write_bytes(data[:30] + bytes([data[30] ^ 1]) + data[31:])
    with pytest.raises(ValueError, match="damaged"):
        example["read"](path)
    path.write_bytes(data[: -sum(size)] + data[-size[1] :] + data[-sum(size) : -size[1]])
    with pytest.raises(Exception, match=r"another answer|decompress"):
        example["read"](path)


def test_the_reader_is_short_and_needs_no_package_of_ours(tmp_path, capsys, monkeypatch):
    text = READER.read_text()
    assert len(text.splitlines()) < 100
    imported = {name.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import) for name in node.names}
    assert imported <= {"numpy", "zstandard", *sys.stdlib_module_names}
    write_shard(tmp_path / "s.adpa", spec_of(6, 700), sample_answers((5, 0), 6, 700))
    monkeypatch.setattr(sys, "argv", ["read_signal.py", str(tmp_path / "s.adpa")])
    runpy.run_path(str(READER), run_name="__main__")
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("5 tokens of log-prob -")
    assert second == "0 tokens of log-prob 0.000"
