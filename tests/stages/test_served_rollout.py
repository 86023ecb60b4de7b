"""Rollouts by servers of vLLM: the same tokens as ours, whichever servers draw them, and servers that are refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from adpa_cli.engine.generation import vllm
from adpa_cli.errors import AdpaError, Stopped
from adpa_cli.hub import Located
from adpa_cli.lab import BASES, END, TEMPLATE
from adpa_cli.spec import Runtime
from adpa_cli.stages import Job, Monitor, rollout
from support.vllm_server import RELEASE, Vllm, serving

STUDENT = BASES / "student"
LONGEST = 64


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "PAUSE", 0.001)


def job(work: Path, urls: Sequence[str] = (), **spec: Any) -> Job:
    """A rollout by servers, or by ours where there are none."""
    work.mkdir(exist_ok=True)
    model = Located("model", "model:student", "student", (str(STUDENT),))
    data = Located("data", "data:pairs", "pairs", ("builtin:tiny-pairs",))
    served = {"engine": "vllm", "engine_version": RELEASE} if urls else {}
    values = {
        "template": TEMPLATE, "end": END, "temperature": 0.0, "max_new_tokens": 8, "max_length": LONGEST,
        "dtype": "float32", "limit": 16, "block_tokens": LONGEST // 2, **served, **spec,
    }  # fmt: skip
    inputs = {"model": (model,), "data": (data,)}
    return Job("rollout", "rollout/test", values, inputs, str(work), Runtime(base_urls=tuple(urls)))


def blocks(made: Job) -> dict[str, Any]:
    return {path.name: json.loads(path.read_bytes()) for path in made.folder.glob("_block-*.json")}


def drawn(work: Path, urls: Sequence[str] = (), **spec: Any) -> dict[str, Any]:
    made = job(work, urls, **spec)
    rollout.compute(made, Monitor())
    return blocks(made)


def answers(made: dict[str, Any]) -> dict[str, list[int]]:
    return {row["id"]: row["answer_ids"] for rows in made.values() for row in rows}


def test_greedy_answers_of_two_servers_are_ours(tmp_path: Path) -> None:
    with serving(Vllm(STUDENT)) as one, serving(Vllm(STUDENT)) as two:
        made = drawn(tmp_path / "served", [one.url, two.url.removesuffix("/v1")])
        assert len(made) > 2
        assert abs(len(one.bodies) - len(two.bodies)) <= 1
        asked = [*one.bodies, *two.bodies]
    assert made == drawn(tmp_path / "ours")
    assert {len(ids) for ids in answers(made).values()} > {8}, "some are cut and some are not"
    assert not any("seed" in body for body in asked)
    assert 0 < sum("logprobs" in body for body in asked) < len(asked), "only until a server is known"


def test_a_sampled_row_depends_on_neither_servers_nor_its_block(tmp_path: Path) -> None:
    with serving(Vllm(STUDENT)) as one, serving(Vllm(STUDENT)) as two:
        made = [
            answers(drawn(tmp_path / str(n), urls, temperature=0.9, block_tokens=size, seed=seed))
            for n, (urls, size, seed) in enumerate(
                [([one.url], LONGEST, 0), ([two.url, one.url], 3 * LONGEST, 0), ([one.url], LONGEST, 1)]
            )
        ]
        seeds = [body["seed"] for body in one.bodies[: len(made[0])]]
    assert made[0] == made[1] != made[2]
    assert len(set(seeds)) == len(made[0])
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_server_that_is_gone_halfway_loses_no_finished_block(tmp_path: Path) -> None:
    """Not even where it dies for good; with another one nothing is lost at all."""
    with serving(Vllm(STUDENT, works_for=9)) as dying:
        made = job(tmp_path / "halved", [dying.url])
        with pytest.raises(AdpaError, match=r"does not answer: 500: EngineCore encountered") as lost:
            rollout.compute(made, Monitor())
        assert "run the same command to continue" in lost.value.hint
        kept = blocks(made)
        assert 0 < len(kept) < 4
        with serving(Vllm(STUDENT)) as other:
            rollout.compute(job(tmp_path / "halved", [other.url]), Monitor())
            assert len(other.bodies) == 16 - sum(map(len, kept.values())), "finished blocks are not asked for again"
            both = drawn(tmp_path / "both", [dying.url, other.url])
    assert blocks(made) == both == drawn(tmp_path / "ours")


def test_a_stop_ends_between_two_blocks(tmp_path: Path) -> None:
    with serving(Vllm(STUDENT)) as one:
        made = job(tmp_path / "stopped", [one.url])
        with pytest.raises(Stopped):
            rollout.compute(made, Monitor(stop=lambda: "SIGTERM"))
        assert len(blocks(made)) == 1
        rollout.compute(made, Monitor(), 1, 2)
        assert len(blocks(made)) == 1, "the second process asks no server"
        rollout.compute(made, Monitor(), 0, 2)
    assert blocks(made) == drawn(tmp_path / "ours")


def test_another_model_is_refused_with_both_numbers(tmp_path: Path) -> None:
    with serving(Vllm(STUDENT)) as right, serving(Vllm(BASES / "teacher")) as wrong:
        made = job(tmp_path / "wrong", [right.url, wrong.url])
        with pytest.raises(AdpaError, match=r"mean log-prob of -\d\.\d{3} nat .* gives them -\d\.\d{3}") as refused:
            rollout.compute(made, Monitor())
    assert wrong.url in refused.value.message
    assert "vllm serve" in refused.value.hint
    assert blocks(made) == {}


@pytest.mark.parametrize(
    ("fault", "said", "hint"),
    [
        ({"gives_ids": False}, "does not take and return token ids", "transformers serve"),
        ({"context": 32}, "context of 32 tokens, and prompts and answers take up to 64", "--max-model-len 64"),
        ({"release": "0.31.0"}, "runs vLLM 0.31.0", "engine_version=0.32.0"),
        ({"key": "sk-other"}, "refuses row .* 401: .*Unauthorized", r"\$VLLM_API_KEY"),
    ],
)
def test_what_is_wrong_with_a_server_is_said(tmp_path: Path, fault: dict[str, Any], said: str, hint: str) -> None:
    with serving(Vllm(STUDENT, **fault)) as server:
        made = job(tmp_path / "refused", [server.url])
        with pytest.raises(AdpaError, match=said) as refused:
            rollout.compute(made, Monitor())
    assert hint.replace("\\", "") in refused.value.hint
    assert blocks(made) == {}


def test_the_key_of_a_server_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "sk-ours")
    with serving(Vllm(STUDENT, key="sk-ours")) as server:
        assert drawn(tmp_path / "keyed", [server.url], limit=4)
