"""Which options are in the id and which never: every option of `distill`, and every key of every stage's spec."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adpa_cli import methods
from adpa_cli.cli.console.options import Options
from adpa_cli.planning.distill_builder import Distill, plan_distill
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.planning.settings import DERIVED, UserSettings, parse_sets, settable
from adpa_cli.spec import TrainSpec, hashed
from adpa_cli.stages import Node
from adpa_cli.stages.cache_teacher import CaptureSpec
from adpa_cli.stages.rollout import RolloutSpec
from adpa_cli.store.store import Store
from adpa_cli.suites import EvalSpec
from support.cli_samples import Cli

ADPA_PLUS = ("distill", "--method", "adpa+", "--student", "tiny")
TRAINED = ["distill dckd", "distill adpa"]
MODELS = ["student", "reference teacher", "aligned teacher", *TRAINED]
ANSWERS = ["rollouts", "signal 2"]
SIGNALS = ["signal", *ANSWERS]

RUNTIME: dict[str, list[str]] = {
    "gpus": ["--gpus", "2"], "tokens_per_device": ["--tokens-per-device", "77"], "no_wait": ["--no-wait"],
    "tag": ["--tag", "mine"], "refresh": ["--refresh"], "dry_run": ["--dry-run"], "stop_after": ["--stop-after", "1h"],
    "ignore_columns": ["--ignore-columns", "source"],
    "shard": ["--shard", "2/3"], "yes": ["--yes"],
    "knobs": ["--runtime", "recompute=true", "--runtime", "fused=no"],
}  # fmt: skip
"""Options that say where, when and how to run: they move no id."""
SPEC: dict[str, tuple[list[str], list[str]]] = {
    "lr": (["--lr", "0.5"], TRAINED), "epochs": (["--epochs", "7"], TRAINED),
    "batch_size": (["--batch-size", "7"], TRAINED), "max_steps": (["--max-steps", "7"], TRAINED),
    "select": (["--select", "best"], [*TRAINED, "eval"]), "keep": (["--keep", "all"], TRAINED),
    "sets": (["--set", "clip=0.5"], TRAINED),
    "limit": (["--limit", "7"], [*TRAINED, *SIGNALS]),
    "seed": (["--seed", "7"], [*TRAINED, "rollouts"]),
    "seed_all": (["--seed-all", "7"], [*MODELS, "rollouts", "eval"]),
    "skip_bad_rows": (["--skip-bad-rows"], ["all but the family's SFT"]), "smoke": (["--smoke"], ["everything"]),
    "template": (["--template", "zephyr"], ["everything"]), "end": (["--end", "<|user|>"], ["everything"]),
}  # fmt: skip
"""Options that say what to make, and the stages whose own recipe they are in."""


OTHER_MODELS = {"thinking"}
"""Options of the spec that mean nothing for `tiny`: for a model that reasons see tests/cli/test_wild_models.py."""
OF_DATA = {"columns"}
"""Options that mean nothing without `--data`, whose content they change: tests/data/test_named_columns.py."""
OF_SERVERS = {"judge_url", "judge_price", "base_url"}
"""Options of the runtime that name servers: tests/cli/test_judge.py and tests/cli/test_vllm.py."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.find(tmp_path / "adpa-store", create=True)


def nodes(store: Store, given: UserSettings, **asked: Any) -> dict[str, Node]:
    """The stages of `adpa+` on `tiny` by role; the second signal is that on the rollouts."""
    plan = plan_distill(Names(store), given, Distill("adpa+", "tiny", **asked))
    found: dict[str, Node] = {}
    for node in plan.nodes(store):
        own = node.role if node.role not in found else f"{node.role} {sum(r.startswith(node.role) for r in found) + 1}"
        found[own] = node
    return found


def own_recipe(before: dict[str, Node], after: dict[str, Node]) -> set[str]:
    """Roles whose own spec differs, whatever happened to their inputs."""
    assert list(before) == list(after)
    return {role for role in before if hashed(before[role].spec) != hashed(after[role].spec)}


def test_options_of_the_runtime_move_no_id(cli: Cli) -> None:
    present = {field.name for field in dataclasses.fields(Options)}
    every = [word for name in sorted(RUNTIME.keys() & present) for word in RUNTIME[name]]
    before, after = cli(*ADPA_PLUS, "-n").rows, cli(*ADPA_PLUS, *every).rows
    assert "--dry-run" in every
    assert [row[4] for row in after] == [row[4] for row in before]


def test_options_of_the_spec_move_the_stages_they_belong_to(store: Store) -> None:
    before = nodes(store, UserSettings())
    for name, (words, roles) in SPEC.items():
        options = Options(**typed(name, words))
        moved = own_recipe(before, nodes(store, options.given()))
        if roles == ["everything"]:
            assert moved == set(before), name
        elif roles == ["all but the family's SFT"]:
            after = nodes(store, options.given())
            moved = {role for role, node in before.items() if node.recipe.id != after[role].recipe.id}
            assert moved == {role for role, node in before.items() if node.stage != "sft"}, name
        else:
            judged = {role for role in before if role.startswith("eval")} if "eval" in roles else set()
            assert moved == {role for role in roles if role != "eval"} | judged, name


def typed(name: str, words: list[str]) -> dict[str, Any]:
    if name == "sets":
        return {name: words[1:]}
    if len(words) == 1:
        return {name: True}
    if name in ("select", "keep", "template", "end"):
        return {name: words[1]}
    return {name: float(words[1]) if name == "lr" else int(words[1])}


def test_leaving_bad_rows_out_reaches_dialogues_that_were_named(store: Store, tmp_path: Path) -> None:
    words = {"prompt": "say one", "completion": "one"}
    (tmp_path / "own.jsonl").write_text(json.dumps(words) + "\n")
    before, after = (
        nodes(store, UserSettings(skip_bad_rows=skip), sft_data=(str(tmp_path / "own.jsonl"),))
        for skip in (False, True)
    )
    assert all(before[role].recipe.id != after[role].recipe.id for role in before)
    given = UserSettings(by_stage={"sft": {"skip_bad_rows": "true"}})
    assert own_recipe(nodes(store, UserSettings()), nodes(store, given)) == {"student", "reference teacher"}


def test_every_shared_option_is_on_one_side() -> None:
    present = {field.name for field in dataclasses.fields(Options)}
    assert present - RUNTIME.keys() - SPEC.keys() - OTHER_MODELS - OF_DATA - OF_SERVERS == set()


@pytest.mark.parametrize("stage", ["sft", "dpo-teacher", "cache-teacher", "rollout", "distill", "eval"])
def test_every_key_of_a_stage_is_in_the_ids_of_that_stage_only(store: Store, stage: str) -> None:
    before = nodes(store, UserSettings())
    seen = set()
    for key, value in other_values(stage):
        if key == "student_vocab" or (stage, key) in DRAWN or value == "sampled":
            continue  # the student decides it; of drawn ids: tests/cli/test_sampled.py
        if key == "noise_answers":
            continue  # float32 has no noise: tests/cli/test_noise.py
        if key in OF_VLLM:
            continue  # which needs a server: tests/cli/test_vllm.py
        beside = [f"{stage}.lora=8"] if stage in METHODS and key in BESIDE_LORA else []
        there = nodes(store, UserSettings(*parse_sets(beside))) if beside else before
        own, by_stage = parse_sets([*beside, f"{stage}.{key}={value}"])
        after = nodes(store, UserSettings(own, by_stage))
        moved = own_recipe(there, after)
        assert moved, f"{stage}.{key}={value} is not in the id"
        is_read = (stage == "dpo-teacher" and key in START) or (stage, key) == ("sft", "lora")  # which is merged there
        follows = {"start-logps"} if is_read else set()
        follows |= {"eval"} if key == "select" else set()  # on what selected nothing
        assert {before[role].stage for role in moved} == {stage} | follows, f"{stage}.{key}"
        assert all(there[role].recipe.id != after[role].recipe.id for role in moved)
        seen.add(key)
    assert {"dtype", "max_length", "limit"} <= seen


DRAWN = {("cache-teacher", "samples"), ("cache-teacher", "seed"), ("cache-teacher", "support")}
OF_VLLM = ("engine", "engine_version", "vllm")
START = ("dtype", "weights", "max_length", "truncation", "limit", "skip_bad_rows", "quantise")
"""Settings of a training that the scoring of its start shares, if it has one; `weights` decide the dtype."""
BESIDE_LORA = ("lora_alpha", "lora_targets", "quantise")
"""Settings of low-rank matrices, which mean nothing without them."""
METHODS = {"sft": ("sft",), "dpo-teacher": ("dpo",), "distill": ("adpa", "dckd")}
CLASSES: dict[str, Any] = {"cache-teacher": CaptureSpec, "rollout": RolloutSpec, "eval": EvalSpec}


def other_values(stage: str) -> Iterator[tuple[str, object]]:
    """Every key of a stage that a user can set, with a value that is allowed and not what `tiny` uses."""
    kinds: dict[str, Any] = typing.get_type_hints(CLASSES.get(stage, TrainSpec))
    choices: dict[str, Any] = {}
    for method in METHODS.get(stage, ()):
        params = methods.load(method).params
        kinds.update(typing.get_type_hints(params))
        choices.update({f.name: f.metadata["choices"] for f in dataclasses.fields(params) if "choices" in f.metadata})
    for method in METHODS.get(stage, ("",)):
        for key, default in settable(stage, method).items():
            special = {"select": "best", "epochs": 3.5, "top_p": 0.25, "adam_beta2": 0.5, "seed": 7, "max_steps": 3}
            if key in ("preset", "support", "engine"):  # one value each, or a name for several
                continue
            if key == "select_on":  # it says how to select: tests/cli/test_select.py
                continue
            if key in ("states", "kd_teacher"):  # they change what is built: tests/cli/test_states.py
                continue
            if key in special:
                yield key, special[key]
            elif key in choices:
                yield from ((key, choice) for choice in choices[key] if choice != default)
            elif key in ("quantise", "lora_targets"):
                yield key, "int8" if key == "quantise" else "q_proj"
            elif typing.get_origin(kinds[key]) is typing.Literal:
                used = "float32" if key == "dtype" else default
                yield key, next(choice for choice in typing.get_args(kinds[key]) if choice != used)
            elif isinstance(default, bool):
                yield key, not default
            else:
                yield key, 0.125 if isinstance(default, float) else 7


def test_a_bare_key_belongs_to_the_stages_of_the_command(store: Store) -> None:
    before = nodes(store, UserSettings())
    for item in ("lr=0.5", "epochs=7", "seed=7", "weight_decay=0.5", "warmup_ratio=0.5", "dtype=bfloat16", "clip=2"):
        assert own_recipe(before, nodes(store, UserSettings(*parse_sets([item])))) == set(TRAINED), item
    both = UserSettings(*parse_sets(["lr=0.5", "sft.lr=0.25"]))
    assert own_recipe(before, nodes(store, both)) == {*TRAINED, "student", "reference teacher"}


def test_values_are_what_they_mean_not_how_they_are_written(store: Store) -> None:
    def ids(*items: str) -> list[str]:
        return [node.recipe.id for node in nodes(store, UserSettings(*parse_sets(items))).values()]

    assert ids("gamma=1") == ids("gamma=1.0") == ids("gamma=1e0") == ids()
    assert ids("batch-size=64") == ids("batch_size=64.0") == ids("distill.batch_size=6.4e1")
    assert ids("kd_on_eos=yes", "clip=0.5") == ids("clip=.5", "kd_on_eos=true")
    assert ids("lora=4") == ids("lora=4", "lora_alpha=8", "lora_targets=all-linear") != ids()
    assert ids("lora=4", "lora_targets=v_proj, q_proj") == ids("lora=4", "lora_targets=q_proj,v_proj") != ids("lora=4")
    assert ids("lora=4", "lora_targets=v_proj,q_proj,v_proj,") == ids("lora=4", "lora_targets=q_proj,v_proj")
    assert ids("lora=none", "lora_targets=all-linear") == ids()
    settings = {name for name in TrainSpec.__dataclass_fields__ if name not in DERIVED}
    assert settings - {"teachers_dtype", "packed", "train_on"} <= settable("distill", "adpa").keys()
    assert {"packed", "train_on"} <= settable("sft", "sft").keys(), "which reads dialogues"
    assert "teachers_dtype" in settable("distill", "dppo"), "whose teachers score what the student draws"
