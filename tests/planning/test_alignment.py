"""What a plan takes over from its teachers: their β, and remarks on weights that were found under others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adpa_cli.errors import UsageError
from adpa_cli.families import FAMILIES, ready_pairs
from adpa_cli.lab import BASES, TEMPLATE
from adpa_cli.planning.distill_builder import Distill, plan_distill
from adpa_cli.planning.planner import Plan
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.planning.settings import UserSettings
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store
from support.fake_hub import Hub, serve, use
from support.store_samples import place, recipe

BETA = {"ddpo": "beta_teacher", "dppo": "beta", "q-softmax": "beta"}
each = pytest.mark.parametrize("method", BETA)
USER = UserSettings()


@pytest.fixture
def names(tmp_path: Path) -> Names:
    return Names(Store.find(tmp_path / "adpa-store", create=True))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Both models of two ready pairs, and a student that belongs to no family."""
    with serve() as served:
        use(served, tmp_path / "hf", monkeypatch)
        model = tmp_path / "teacher"
        shutil.copytree(BASES / "teacher", model)
        config = json.loads((model / "tokenizer_config.json").read_text())
        (model / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": TEMPLATE}))
        pairs = [ready_pairs()[alias] for alias in ("tulu-3-8b", "zephyr-7b")]
        for name in ("org/student", "org/aligned", "org/sft", *(n for p in pairs for n in (p.aligned, p.reference))):
            served.add(name, model)
        yield served


def planned(names: Names, method: str, user: UserSettings = USER, teacher: str | None = None, **more: Any) -> Plan:
    student = "org/student" if teacher else "tiny"
    request = Distill(method, student, teacher, data=("tiny-pairs",), evaluate=False)
    return plan_distill(names, user, replace(request, **more))


def taken(plan: Plan) -> Any:
    """The β of a plan's training that is its teacher's."""
    params = plan.targets[0].spec.params
    return params[BETA[plan.targets[0].spec.method]]


@each
def test_the_beta_is_that_of_the_teacher_of_the_plan(method: str, names: Names) -> None:
    assert FAMILIES[0].settings["dpo-teacher"]["beta"] == 0.1
    assert taken(planned(names, method)) == 0.1
    other = UserSettings(by_stage={"dpo-teacher": {"beta": "0.3"}})
    assert taken(planned(names, method, other)) == 0.3
    typed = UserSettings({BETA[method]: "0.7"})
    assert taken(planned(names, method, typed)) == 0.7


@each
def test_the_beta_is_that_in_the_manifest_of_a_teacher_that_is_built(method: str, names: Names) -> None:
    (node,) = [node for node in planned(names, method).nodes(names.store) if node.stage == "dpo-teacher"]
    spec = {**node.values, "params": {"beta": 0.25}}
    below = {**spec, "method": "sft", "params": {}}
    start = place(names.store, recipe("sft", {"model": "model:" + "1" * 64}, **below))
    made = place(names.store, recipe("dpo-teacher", {"model": f"artifact:{start.id}"}, **spec))
    shutil.copytree(BASES / "teacher", names.store.folder(made.ref), dirs_exist_ok=True)
    plan = planned(names, method, student="tiny", teacher=made.ref, reference=start.ref)
    assert taken(plan) == 0.25


@each
def test_a_ready_pair_carries_its_beta(method: str, hub: Hub, names: Names) -> None:
    assert taken(planned(names, method, teacher="zephyr-7b")) == 0.01


@each
def test_a_length_normalised_beta_is_none_per_token_and_one_is_asked_for(method: str, hub: Hub, names: Names) -> None:
    for teacher in ("tulu-3-8b", "org/aligned"):
        with pytest.raises(UsageError) as error:
            planned(names, method, teacher=teacher, reference=None if teacher == "tulu-3-8b" else "org/sft")
        hint = f"--set {BETA[method]}=X"
        assert hint in error.value.hint
        assert ("--set unit=rms" in error.value.hint) == (method != "dppo"), "which has no signal to measure"
        why = "length-normalised DPO, whose β of 5" if teacher == "tulu-3-8b" else "does not record it"
        assert why in error.value.message
    typed = UserSettings({BETA[method]: "0.2"})
    assert taken(planned(names, method, typed, "tulu-3-8b")) == 0.2


@pytest.mark.parametrize(("alias", "beta"), [("zephyr-7b", 0.01), ("tulu-3-8b", None)])
def test_a_signal_tells_whose_it_is(alias: str, beta: float | None, names: Names) -> None:
    """Where no teacher is named: by the name that its manifest has, or by the artifact that it names."""
    (usual,) = [node for node in planned(names, "q-softmax").nodes(names.store) if node.stage == "cache-teacher"]
    (rollouts,) = [item for role, item in usual.flat_inputs() if role == "rollouts"]
    answers = place(names.store, recipe("rollout", {"model": rollouts.inputs["model"].content}, **rollouts.values))
    aligned = "model:" + "2" * 64
    inputs = {"aligned": aligned, "reference": "model:" + "3" * 64, "rollouts": f"artifact:{answers.id}"}
    sources = {aligned: {"name": ready_pairs()[alias].aligned}}
    made = place(names.store, recipe("cache-teacher", inputs, **usual.values), sources=sources)
    words = {"student": "tiny", "cache": (made.ref,), "allow_foreign_rollouts": True}
    if beta is None:
        with pytest.raises(UsageError, match="length-normalised"):
            planned(names, "q-softmax", **words)
    else:
        assert taken(planned(names, "q-softmax", **words)) == beta


@pytest.mark.parametrize("method", ["ddpo", "q-softmax"])
def test_the_advantage_may_be_counted_in_its_rms(method: str, hub: Hub, names: Names) -> None:
    plan = planned(names, method, UserSettings({"unit": "rms"}), "tulu-3-8b")
    assert (taken(plan), plan.targets[0].spec.params["unit"]) == (0.05, "rms")
    nat = planned(names, method, UserSettings({"unit": "nat"})).targets[0]
    assert nat.label == planned(names, method).targets[0].label, "the unit is no part of the id where it is the nat"


def test_a_reward_model_has_a_scale_of_its_own(hub: Hub, names: Names) -> None:
    explicit = planned(names, "ddpo", UserSettings({"reward": "explicit"}), "tulu-3-8b")
    assert "beta_teacher" not in explicit.targets[0].spec.params


def signal(names: Names, plan: Plan, rms: float) -> Manifest:
    """A signal of the teachers of a plan, elsewhere."""
    (node,) = [node for node in plan.nodes(names.store) if node.stage == "cache-teacher"]
    contents = {role: node.inputs[role].content for role in ("aligned", "reference")}
    return place(names.store, recipe("cache-teacher", contents, n=rms), metrics={"rms_advantage": rms})


def test_weights_that_were_found_under_other_teachers_are_remarked_on(hub: Hub, names: Names) -> None:
    """With the size of the advantage of both, where it is known: the family's γ of 1 was tuned at 0.57 nat."""
    assert planned(names, "adpa+").notes == ()
    plan = planned(names, "adpa+", teacher="zephyr-7b")
    alpha, gamma = plan.notes
    assert alpha.startswith("the default alpha=0.2 of dckd was not tuned with")
    assert gamma.startswith("the default gamma=1.5 of adpa was not tuned with")
    assert "RMS" not in gamma
    for key in ("alpha", "gamma"):
        notes = planned(names, "adpa+", UserSettings({key: "0.4"}), "zephyr-7b").notes
        assert [note for note in notes if note.startswith(f"the default {key}")] == [], "who types one knows"
    signal(names, planned(names, "adpa", teacher="zephyr-7b"), 0.31)
    (own,) = planned(names, "adpa", student="tiny", teacher="zephyr-7b").notes
    assert own.startswith("the default gamma=1 of adpa was not tuned with")
    assert "RMS of the advantage: 0.31 nat under" in own
    assert "0.57 nat under the family's own" in own
    assert planned(names, "dpo", teacher="zephyr-7b").notes == (), "it has no such weight"


def test_what_is_first_in_a_signal_is_read_from_exact_numbers(names: Names) -> None:
    (made,) = [node for node in planned(names, "q-argmax").nodes(names.store) if node.stage == "cache-teacher"]
    assert (made.spec.precision, made.spec.pair_precision) == (0, 0)
    (usual,) = [node for node in planned(names, "adpa").nodes(names.store) if node.stage == "cache-teacher"]
    assert (usual.spec.precision, usual.spec.pair_precision) == (1 / 32, 1 / 128)
    for key, typed in (("precision", "1/4096"), ("pair_precision", "1/128"), ("precision", "auto=0.001")):
        with pytest.raises(UsageError, match="rounding can change") as error:
            planned(names, "q-argmax", UserSettings(by_stage={"cache-teacher": {key: typed}}))
        assert "leave out precision and pair_precision" in error.value.hint
    given = {"parts": ("rollout",), "precision": 1 / 32, "pair_precision": 1 / 128, "template": usual.spec.template,
             "end": usual.spec.end}  # fmt: skip
    contents = {role: item.content for role, item in usual.flat_inputs()}
    coarse = place(names.store, recipe("cache-teacher", contents, **given))
    with pytest.raises(UsageError, match="to steps of 1/32 and 1/128 nat"):
        planned(names, "q-argmax", cache=(coarse.ref,))


def test_the_release_is_selected_by_a_reward_model_and_reads_what_it_trains_on(names: Names) -> None:
    released = UserSettings({"preset": "release"})
    with pytest.raises(UsageError, match="by a reward model") as error:
        planned(names, "adpa", released)
    assert "--reward-model MODEL" in error.value.hint
    for plan in (
        planned(names, "adpa", UserSettings({"preset": "release", "select": "last"})),
        planned(names, "adpa", released, reward_model="tiny"),
    ):
        lengths = {node.stage: node.spec.max_length for node in plan.nodes(names.store) if node.role != "student"}
        assert [lengths[stage] for stage in ("distill", "rollout", "cache-teacher")] == [1024] * 3
        assert lengths["sft"] == lengths["dpo-teacher"] == 128
        spec = plan.targets[0].spec
        assert (spec.lr, spec.epochs, spec.keep) == (5e-7, 3, "all")
    assert (spec.select, "reward_model" in plan.targets[0].inputs) == ("best", True)
    shorter = UserSettings({"preset": "release", "max_length": "96", "select": "last"})
    assert {n.spec.max_length for n in planned(names, "adpa", shorter).nodes(names.store) if n.stage == "rollout"} == {
        96
    }
