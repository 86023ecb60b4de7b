"""A capture gives the same bytes however it was cut short and among however many processes its blocks were shared."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adpa_cli.engine.layout.examples import Answer, Answers
from adpa_cli.errors import Stopped
from adpa_cli.hub import Located
from adpa_cli.signal import block_files as spool
from adpa_cli.signal.rows import AnswerKey, token_hash
from adpa_cli.spec import hashed
from adpa_cli.stages import Job, Monitor, cache_teacher
from adpa_cli.stages.cache_teacher import CaptureSpec
from support.answers import mapped
from support.tiny_models import VOCABULARY, tiny_llama

SPEC = CaptureSpec(("chosen", "rejected"), "", "", top_k=5, dtype="float32", block_tokens=80, prompts="auto")


def pairs(answer: int) -> list[Answer]:
    """Twelve pairs whose prompts have 4 to 12 tokens, and their answers up to `answer`."""
    draw, found = random.Random(0), []
    for number in range(12):
        prompt = tuple(draw.randrange(5, VOCABULARY) for _ in range(draw.randint(4, 12)))
        for part in ("chosen", "rejected"):
            ids = tuple(draw.randrange(5, VOCABULARY) for _ in range(draw.randint(1, answer)))
            found.append(Answer(AnswerKey(f"{number:016x}", part, token_hash(prompt, ids)), prompt, ids))
    return found


def held(answer: int) -> Answers:
    """The same in a mapped table."""
    found = pairs(answer)
    return Answers(mapped(found[::2], found[1::2]).chosen.table, SPEC.parts)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A capture of a pair of teachers, its rows given here, its shards small."""
    for role, seed in (("aligned", 0), ("reference", 1)):
        tiny_llama(seed).save_pretrained(tmp_path / role)
    monkeypatch.setattr(cache_teacher, "answers_of", lambda *_: held(8))
    monkeypatch.setattr(spool, "SHARD_TOKENS", 30)
    inputs = {
        role: (Located("model", f"model:{role}", role, (str(tmp_path / role),)),) for role in ("aligned", "reference")
    }
    return Job("cache-teacher", "cache-teacher/test", hashed(SPEC), inputs, str(tmp_path))


def shards(job: Job, folder: Path) -> dict[str, bytes]:
    cache_teacher.finish(replace(job, work=str(folder)))
    return {path.name: path.read_bytes() for path in sorted(folder.glob("signal-*.adpa"))}


def fresh(job: Job, folder: Path) -> Job:
    folder.mkdir()
    return replace(job, work=str(folder))


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"prompts": "apart"},
        {"support": "sampled", "pair_precision": None},
        {"dtype": "float16", "noise_answers": 4},
    ],
)
def test_stops_and_processes_leave_the_bytes_alone(job: Job, tmp_path: Path, changed: dict[str, Any]) -> None:
    job = replace(job, spec=hashed(replace(SPEC, **changed)))
    if "support" in changed:
        job = replace(job, inputs={"aligned": job.inputs["aligned"]})
    whole = fresh(job, tmp_path / "whole")
    cache_teacher.compute(whole, Monitor())
    wanted = shards(job, tmp_path / "whole")
    assert len(wanted) > 2

    stopped = fresh(job, tmp_path / "stopped")
    ends = 0
    for _ in range(40):
        try:
            cache_teacher.compute(stopped, Monitor(stop=lambda: "SIGTERM"))
            break
        except Stopped:
            ends += 1
    assert ends > 1
    assert shards(job, tmp_path / "stopped") == wanted

    several = fresh(job, tmp_path / "several")
    for rank in (0, 2, 1) if "dtype" in changed else (2, 0, 1):  # the first measures the sample
        cache_teacher.compute(several, Monitor(), rank, 3)
    assert shards(job, tmp_path / "several") == wanted


def test_sizes_alone_decide_whether_prompts_are_shared(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = cache_teacher.plan_of(job, SPEC)
    assert plan.shared
    order = [(a.key.example_id, a.key.part) for block in plan.blocks for a in block.items]
    assert sorted(order) == sorted((a.key.example_id, a.key.part) for a in pairs(8))
    assert all(one[0] == other[0] for one, other in zip(order[::2], order[1::2], strict=True))
    for block in plan.blocks:
        rows = [block.items[n : n + 2] for n in range(0, len(block.items), 2)]
        longest = max(len(a.prompt) + len(a.answer) + len(b.answer) for a, b in rows)
        assert longest * len(rows) <= SPEC.block_tokens
    assert not cache_teacher.plan_of(job, replace(SPEC, prompts="apart")).shared
    monkeypatch.setattr(cache_teacher, "answers_of", lambda *_: held(60))  # the prompts are too small a part
    assert not cache_teacher.plan_of(job, SPEC).shared


def test_a_teacher_that_cannot_share_prompts_says_so_and_agrees(
    job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = replace(job, spec=hashed(replace(SPEC, precision=0.0, pair_precision=0.0)))
    found = []
    for name, able in (("able", True), ("unable", False)):
        if not able:
            monkeypatch.setattr("adpa_cli.engine.layout.shared_prompt.can_share", lambda *_: False)
        made = fresh(exact, tmp_path / name)
        cache_teacher.compute(made, Monitor())
        metrics = cache_teacher.finish(made)
        assert metrics["shared_prompts"] == {"aligned": able, "reference": able}
        found.append(metrics)
    for key in ("mean_mass", "rms_advantage"):
        assert found[0][key] == pytest.approx(found[1][key], abs=1e-5)


def test_shards_are_cut_after_blocks() -> None:
    assert spool.shards_of([]) == []
    half = spool.SHARD_TOKENS // 2
    assert spool.shards_of([half, half, 1, half, half]) == [range(2), range(2, 5)]
    assert spool.shards_of([3 * half, 1]) == [range(1), range(1, 2)]


def test_what_fails_behind_the_teacher_is_raised() -> None:
    def fail() -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), spool.background_writer() as write:
        write(fail)
    done: list[int] = []
    with spool.background_writer() as write:
        for number in range(9):
            write(done.append, number)
    assert done == list(range(9))
