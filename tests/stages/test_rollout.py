"""The rollout stage: the same bytes whoever computes a block and whenever, whichever rows share its slots."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adpa_cli.data.examples import Message
from adpa_cli.engine.generation.generate import POOL
from adpa_cli.engine.layout.examples import ROWS, Rollout, read_rollouts, rollout_answers, write_rollouts
from adpa_cli.errors import Stopped
from adpa_cli.hub import Located
from adpa_cli.lab import BASES, END, TEMPLATE
from adpa_cli.signal.rows import token_hash
from adpa_cli.stages import Job, Monitor, rollout

NEW, LONGEST = 12, 64


def job(work: Path, block_tokens: int) -> Job:
    work.mkdir()
    model = Located("model", "model:student", "student", (str(BASES / "student"),))
    data = Located("data", "data:pairs", "pairs", ("builtin:tiny-pairs",))
    spec = {
        "template": TEMPLATE, "end": END, "temperature": 0.7, "max_new_tokens": NEW, "max_length": LONGEST,
        "dtype": "float32", "limit": 40, "block_tokens": block_tokens,
    }  # fmt: skip
    return Job("rollout", "rollout/test", spec, {"model": (model,), "data": (data,)}, str(work))


def bytes_of(made: Job) -> dict[str, bytes]:
    rollout.finish(made)
    return {path.name: path.read_bytes() for path in made.folder.iterdir()}


def test_the_bytes_depend_on_neither_processes_nor_interruptions(tmp_path: Path) -> None:
    one = job(tmp_path / "one", 3 * LONGEST)
    rollout.compute(one, Monitor())
    expected = bytes_of(one)
    blocks = [name for name in expected if name.startswith("_block")]
    assert 40 / (3 * POOL) - 2 < len(blocks) < 40 / 3, "some rows of a block wait for a slot"

    two = job(tmp_path / "two", 3 * LONGEST)
    for rank in (1, 0):
        rollout.compute(two, Monitor(), rank, 2)
    assert bytes_of(two) == expected

    stopped = job(tmp_path / "stopped", 3 * LONGEST)
    with pytest.raises(Stopped):
        rollout.compute(stopped, Monitor(stop=lambda: "SIGTERM"))
    rollout.compute(stopped, Monitor())
    assert bytes_of(stopped) == expected


def test_the_answers_do_not_depend_on_how_many_are_computed_at_once(tmp_path: Path) -> None:
    read = []
    for tokens in (1, 3 * LONGEST, 10**6):
        made = job(tmp_path / str(tokens), tokens)
        rollout.compute(made, Monitor())
        rollout.finish(made)
        read.append(list(read_rollouts(made.folder)))
    assert read[0] == read[1] == read[2]
    assert len({len(row.answer_ids) for row in read[0]}) > 3


def test_rollouts_are_written_in_groups_as_they_are_in_one_table(tmp_path: Path) -> None:
    rows = [
        Rollout(f"{n:016x}", (Message("user", f"{n} ?"), Message("assistant", "so", '{"name":"b"}')),
                tuple(range(n % 7 + 1)), tuple(range(n % 5)), f"Ça {n}", n % 3 == 0)
        for n in range(2500)
    ]  # fmt: skip
    write_rollouts(tmp_path / ROWS, iter(rows))
    ids = pa.list_(pa.int32())
    columns = {"id": pa.string(), "prompt": pa.string(), "prompt_ids": ids, "answer_ids": ids, "text": pa.string()}
    turns = [[{name: value for name, value in vars(turn).items() if value} for turn in row.prompt] for row in rows]
    records = [
        {**vars(row), "prompt": json.dumps(said, ensure_ascii=False)} for row, said in zip(rows, turns, strict=True)
    ]
    whole = pa.Table.from_pylist(records, schema=pa.schema({**columns, "cut": pa.bool_()}))
    pq.write_table(whole, tmp_path / "whole.parquet", compression="zstd")
    assert (tmp_path / ROWS).read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    read = read_rollouts(tmp_path)
    assert list(read) == rows
    assert list(read[:7]) == rows[:7]
    answers = rollout_answers(read[:50])
    assert [answer.answer for answer in answers] == [row.answer_ids for row in rows[:50] if row.answer_ids]
    assert answers[0].key.tokens == token_hash(answers[0].prompt, answers[0].answer)
