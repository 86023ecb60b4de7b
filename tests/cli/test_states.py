"""Whose answers and which teacher a method learns from: what is built, under which ids, and what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from adpa_cli import methods
from adpa_cli.planning.distill_builder import Distill, plan_distill
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.planning.settings import UserSettings
from adpa_cli.spec import hashed
from adpa_cli.stages import Node
from adpa_cli.stages import _training_inputs as training_data
from adpa_cli.store.store import Store
from support.cli_samples import Cli, Pipeline

TINY = ("distill", "--student", "tiny", "--no-eval")
STATES = ("student", "chosen", "rejected", "teacher")
ON_POLICY = ("adpa", "adpa-noref", "gkd", "q-argmax", "q-softmax", "seqkd")
KD = ("adpa-noref", "atkd", "dckd", "dpkd", "gkd", "seqkd", "vanilla-kd")

STUDENT, REFERENCE, ALIGNED = "student", "reference teacher", "aligned teacher"
TEACHERS = [REFERENCE, "start of the reference teacher", ALIGNED]
COMPARING = ["start of the student"]
ON_DATA = ("aligned", "chosen+rejected")
PAIR = ("aligned+reference", "rollouts of the student")
PLANS: dict[str, tuple[list[str], tuple[str, str] | None]] = {
    "sft": ([], None), "dpo": (COMPARING, None), "simpo": ([], None), "wpo": (COMPARING, None), "plad": ([], None),
    "vanilla-kd": (TEACHERS, ON_DATA), "atkd": (TEACHERS, ON_DATA), "dckd": (TEACHERS, ON_DATA),
    "dpkd": (TEACHERS, ON_DATA), "ddpo": ([*TEACHERS, *COMPARING], ("aligned+reference", "chosen+rejected")),
    "adpa": ([*TEACHERS, "rollouts"], PAIR), "q-argmax": ([*TEACHERS, "rollouts"], PAIR),
    "q-softmax": ([*TEACHERS, "rollouts"], PAIR), "adpa-noref": ([*TEACHERS, "rollouts"], PAIR),
    "gkd": ([*TEACHERS, "rollouts"], PAIR), "seqkd": ([*TEACHERS, "rollouts"], None), "dppo": (TEACHERS, None),
}  # fmt: skip
"""What each method builds besides the fine-tuned student and itself: stages, then whose signal on which answers."""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.find(tmp_path / "plans", create=True)


def plan(store: Store, method: str, **own: Any) -> list[Node]:
    """The stages of a distillation on `tiny`, from an empty store."""
    found = plan_distill(Names(store), UserSettings(own), Distill(method, "tiny", evaluate=False))
    return found.nodes(store)


def by_role(nodes: list[Node]) -> dict[str, Node]:
    """A stage that scores a start is told by whose it is."""
    found = {f"start of the {n.inputs['model'].role}" if n.stage == "start-logps" else n.role: n for n in nodes}
    assert len(found) == len(nodes)
    return found


def signal_of(nodes: dict[str, Node]) -> tuple[str, str] | None:
    """Whose signal on which answers."""
    node = nodes.get("signal")
    if node is None:
        return None
    who = "+".join(role for role in ("aligned", "reference") if role in node.inputs)
    if "data" in node.inputs:
        return who, "+".join(node.spec.parts)
    answers = node.inputs["rollouts"]
    assert isinstance(answers, Node)
    writer = answers.inputs["model"]
    assert isinstance(writer, Node)
    answering = {nodes[role].content: role for role in nodes}[writer.content]
    return who, f"rollouts of the {answering}"


# Every method.


def test_each_method_builds_what_it_needs_and_shares_it(store: Store) -> None:
    every = {method: by_role(plan(store, method)) for method in methods.names()}
    assert every.keys() == PLANS.keys()
    shared: dict[tuple[str, str], set[str]] = {}
    for method, nodes in every.items():
        stages, signal = PLANS[method]
        trained = f"distill {method}"
        assert set(nodes) == {STUDENT, trained, *stages, *(["signal"] if signal else [])}, method
        assert signal_of(nodes) == signal, method
        assert nodes[trained].inputs["model"] == nodes[STUDENT], method
        for role, node in nodes.items():
            what = f"{'exact ' if method == 'q-argmax' else ''}{role} {signal}" if role == "signal" else role
            if role == "rollouts" and method == "seqkd":
                what = "rollouts of the teacher"
            shared.setdefault((what, "" if role != trained else method), set()).add(node.recipe.id)
    assert {what: len(ids) for what, ids in shared.items() if len(ids) > 1} == {}


# Whose answers.


@pytest.mark.parametrize("method", ON_POLICY)
def test_states_change_the_inputs_and_nothing_else(store: Store, method: str) -> None:
    plans = {states: by_role(plan(store, method, states=states)) for states in STATES}
    trained = {states: nodes[f"distill {method}"] for states, nodes in plans.items()}
    roles = PLANS[method][1]
    for states, nodes in plans.items():
        assert ("rollouts" in nodes) == (states in ("student", "teacher"))
        own = hashed(trained[states].spec)
        assert own.pop("states", None) == (states if states in ("chosen", "rejected") else None)
        assert own == hashed(trained["student"].spec)
        assert trained[states].inputs["model"] == trained["student"].inputs["model"]
        assert trained[states].inputs["data"] == trained["student"].inputs["data"]
        if roles:
            whose = {"student": "rollouts of the student", "teacher": "rollouts of the aligned teacher"}
            alone = "aligned" if method in KD else roles[0]
            on = whose.get(states, "chosen+rejected")
            assert signal_of(nodes) == (roles[0] if states in whose else alone, on)
    assert len({node.recipe.id for node in trained.values()}) == 4
    if roles:
        assert plans["chosen"]["signal"] == plans["rejected"]["signal"]
    unsaid = by_role(plan(store, method))[f"distill {method}"]
    assert unsaid.recipe.id == trained["teacher" if method == "seqkd" else "student"].recipe.id


def test_teachers_answers_are_drawn_as_the_students_are(store: Store) -> None:
    ours, theirs = (by_role(plan(store, "adpa", states=states))["rollouts"] for states in ("student", "teacher"))
    assert hashed(ours.spec) == hashed(theirs.spec)
    assert theirs.inputs["model"] == by_role(plan(store, "seqkd"))["rollouts"].inputs["model"]


def test_adpa_plus_takes_states_for_its_last_method(cli: Cli) -> None:
    roles = [row[2] for row in cli(*TINY, "--method", "adpa+", "--states", "rejected", "-n").rows]
    teachers = [REFERENCE, "start log-probs", ALIGNED]
    assert roles == [STUDENT, *teachers, "signal", "distill dckd", "signal", "distill adpa"]


def cache_of(pipeline: Pipeline, ref: str) -> str:
    """The signal that a student was trained on."""
    made = Store.find(pipeline.store).get(ref)
    assert made is not None
    return f"cache-teacher/{made.inputs['cache'][0].removeprefix('artifact:')[:12]}"


def recipe_makes(cli: Cli, ref: str, said: str) -> None:
    """The recipe of an artifact says how, and makes it from nothing."""
    text = cli("show", ref, "--recipe").out
    assert said in text
    Path("again.toml").write_text(text, encoding="utf-8")
    assert [row[2] for row in cli("run", "again.toml", "-n", "--store", "empty").rows] == [ref]


def test_the_four_trainings_read_the_same_prompts_and_chosen_answers(
    pipeline: Pipeline, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[training_data.Data] = []

    gather = training_data.gather

    def watched(*args: Any) -> training_data.Data:
        read.append(gather(*args))
        return read[-1]

    monkeypatch.setattr(training_data, "gather", watched)
    words = [*pipeline.words, "--no-eval"]
    words[2] = "adpa"
    refs = [cli(*words, "--states", states).ref for states in STATES]
    assert len(set(refs)) == 4
    made = dict(zip(STATES, read, strict=True))
    chosen = {s: [(e.id, e.parts["chosen"].ids.tolist()) for e in data.examples] for s, data in made.items()}
    assert len(chosen["student"]) == 40
    assert len({str(rows) for rows in chosen.values()}) == 1
    drawn = {s: [e.parts["rollout"] for e in data.examples] for s, data in made.items()}
    for states, parts in drawn.items():
        prompts = [p.ids[~p.answer].tolist() for p in parts]
        assert prompts == [e.parts["chosen"].ids[~e.parts["chosen"].answer].tolist() for e in made[states].examples]
    ids = {states: [p.ids.tolist() for p in parts] for states, parts in drawn.items()}
    assert ids["chosen"] == [row for _, row in chosen["chosen"]]
    assert len({str(rows) for rows in ids.values()}) == 4
    for example in made["chosen"].examples:
        rows = made["chosen"].signal_of(*example.name("rollout"))
        part = example.parts["rollout"]
        assert rows.label_ids.tolist() == part.ids[part.answer].tolist()
        assert rows.difference is not None
    recipe_makes(cli, refs[1], 'states = "chosen"')
    recipe_makes(cli, refs[3], 'states = "teacher"')
    by_hand = ["distill", "--method", "adpa", "--student", pipeline.made("student"), *pipeline.words[5:], "--no-eval"]
    for states, ref in zip(STATES, refs, strict=True):
        assert cli(*by_hand, "--states", states, "--cache", cache_of(pipeline, ref)).ref == ref


def test_seqkd_on_chosen_answers_trains_what_sft_trains(pipeline: Pipeline, cli: Cli) -> None:
    words = [*pipeline.words, "--no-eval", "--lr", "1e-3", "--epochs", "2"]
    weights = []
    for method, more in (("seqkd", ["--states", "chosen"]), ("sft", []), ("seqkd", [])):
        words[2] = method
        weights.append((pipeline.store / cli(*words, *more).ref / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert weights[2] != weights[1]


# Which teacher.


@pytest.mark.parametrize("method", KD)
def test_the_teacher_that_is_learned_from(store: Store, method: str) -> None:
    plans = {word: by_role(plan(store, method, kd_teacher=word)) for word in methods.KD_TEACHERS}
    unsaid = by_role(plan(store, method))
    assert {role: n.recipe.id for role, n in unsaid.items()} == {r: n.recipe.id for r, n in plans["aligned"].items()}
    for word, nodes in plans.items():
        assert (ALIGNED in nodes) == (word == "aligned")
        teacher = nodes[f"{word} teacher"]
        if "signal" in nodes:
            assert nodes["signal"].inputs["aligned"] == teacher
        if method == "seqkd":
            assert nodes["rollouts"].inputs["model"] == teacher
        assert hashed(nodes[f"distill {method}"].spec) == hashed(unsaid[f"distill {method}"].spec)
    assert len({nodes[f"distill {method}"].recipe.id for nodes in plans.values()}) == 3
    tuned, below = plans["sft-chosen"]["sft-chosen teacher"], plans["sft-chosen"][REFERENCE]
    assert (tuned.stage, tuned.inputs["model"]) == ("sft", below)
    assert tuned.inputs["data"] == plans["sft-chosen"][f"distill {method}"].inputs["data"]
    assert hashed(tuned.spec) == hashed(below.spec)


def test_a_teacher_that_is_not_learned_from_is_not_measured(cli: Cli) -> None:
    rows = cli("distill", "--student", "tiny", "--method", "dckd", "--set", "kd_teacher=sft-chosen", "-n").rows
    assert [row[3].partition(",")[0] for row in rows if row[2] == "eval" and row[3].startswith("tiny")] == [
        "tiny of start", "tiny of dckd α 5", "tiny of reference teacher", "tiny of sft-chosen teacher",
    ]  # fmt: skip
    assert ALIGNED not in {row[2] for row in rows}


def test_a_signal_given_by_hand_makes_the_same_id(pipeline: Pipeline, cli: Cli) -> None:
    words = [*pipeline.words, "--no-eval", "--set", "kd_teacher=sft-chosen"]
    words[2] = "dckd"
    ref = cli(*words).ref
    student = pipeline.made("student")
    by_hand = ["distill", "--method", "dckd", "--student", student, "--cache", cache_of(pipeline, ref)]
    assert cli(*by_hand, *pipeline.words[5:], "--no-eval").ref == ref
    recipe_makes(cli, ref, 'kd_teacher = "sft-chosen"')


# Settings and options.


def test_only_methods_that_read_them_have_these_settings() -> None:
    found = {name: dict(methods.load(name).sources) for name in methods.names()}
    assert tuple(name for name, own in found.items() if "states" in own) == ON_POLICY
    assert tuple(name for name, own in found.items() if "kd_teacher" in own) == KD


def test_they_are_told_where_parameters_are(cli: Cli) -> None:
    told = cli("methods", "gkd").out
    for word in ("states", "kd_teacher", "student", "chosen", "rejected", "aligned", "sft-chosen"):
        assert word in told


def test_a_sweep_reaches_the_cells_that_have_them(cli: Cli) -> None:
    Path("sweep.toml").write_text(
        'student = "tiny"\nmethod = ["dckd", "adpa"]\nstates = ["student", "rejected"]\n'
        'kd-teacher = ["aligned", "sft-chosen"]\nno-eval = true\n', encoding="utf-8",
    )  # fmt: skip
    cells = [row[3] for row in cli("run", "sweep.toml", "-n").rows]
    assert [cell.removeprefix("student=tiny ").removesuffix(" no-eval=true") for cell in cells] == [
        "method=dckd kd_teacher=aligned", "method=dckd kd_teacher=sft-chosen",
        "method=adpa states=student", "method=adpa states=rejected",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "adpa", "--states", "other"], "states must be one of student, chosen, rejected, teacher"),
        (["--method", "dckd", "--set", "kd_teacher=dpo"], "kd_teacher must be one of aligned, reference, sft-chosen"),
        (["--method", "dckd", "--states", "chosen"], "--set states: distill has no such setting"),
        (["--method", "adpa", "--set", "kd_teacher=reference"], "--set kd_teacher: distill has no such setting"),
        (["--method", "adpa", "--set", "gamma=-1"], "adpa methods adpa describes every parameter"),
        (["--method", "adpa", "--set", "missing_reference=no"], "missing_reference must be one of kth"),
        (["--method", "seqkd", "--set", "gama=1"], "quantise=none, reduction=seqmean, preset=paper, kd_teacher=ali"),
    ],
)  # fmt: skip
def test_what_a_method_does_not_have_is_refused(cli: Cli, words: list[str], said: str) -> None:
    assert said in cli.refused(2, *TINY, *words, "-n")


# By hand.


def test_a_method_without_its_signal_says_which_stage_makes_it(pipeline: Pipeline, cli: Cli, tmp_path: Path) -> None:
    shutil.copytree(pipeline.store / pipeline.made("student"), tmp_path / "mine")
    words = ["distill", "--student", "./mine", "--data", pipeline.data, "-n", "--method"]
    for method, stage in (
        ("dckd", "--cache ID (adpa cache-teacher --teacher T --data SRC)"),
        ("adpa", "--cache ID (adpa cache-teacher --teacher T --rollouts R)"),
        ("seqkd", "--rollouts ID (adpa rollout --student T)"),
    ):
        said = cli.refused(2, *words, method)
        assert f"{method} needs a teacher, and none can be guessed for this student" in said
        assert stage in said
    covering = ["--cache", pipeline.made("signal")]
    said = cli.refused(2, *words, "adpa", *covering)
    assert "make it: adpa cache-teacher --teacher T --rollouts R" in said


def test_the_teachers_own_answers_are_not_foreign_to_those_who_read_them(pipeline: Pipeline, cli: Cli) -> None:
    teacher, student = pipeline.made(ALIGNED), pipeline.made("student")
    by_teacher = cli("rollout", "--student", teacher, "--limit", 8, "--max-new-tokens", 8).ref
    own = pipeline.made("rollouts")
    words = ("distill", "--student", student, "--data", pipeline.data, "--teacher", teacher, "--no-eval", "-n")
    for method in ("seqkd", "adpa"):
        said = cli(*words, "--method", method, "--states", "teacher", "--rollouts", by_teacher)
        assert said.rows[-1][2] == f"distill {method}"
    said_no = cli.refused(2, *words, "--method", "adpa", "--rollouts", by_teacher)
    assert f"the rollouts {by_teacher} are answers of {teacher}, but adpa trains {student} on its own" in said_no
    assert "or: --states teacher, which trains on the teacher's answers" in said_no
    foreign = cli.refused(2, *words, "--method", "seqkd", "--rollouts", own)
    assert f"--states teacher trains on answers of {teacher}" in foreign
    assert f"adpa rollout --student {teacher}, or --allow-foreign-rollouts" in foreign
    assert cli(*words, "--method", "seqkd", "--rollouts", own, "--allow-foreign-rollouts").code == 0
    unused = cli.refused(2, *words, "--method", "adpa", "--states", "chosen", "--rollouts", by_teacher)
    assert f"the method adpa does not read {by_teacher}" in unused


def test_answers_of_a_teacher_that_nobody_named_are_taken_as_the_teachers(
    pipeline: Pipeline, cli: Cli, tmp_path: Path
) -> None:
    """A folder belongs to no family, so only the rollouts themselves can tell."""
    shutil.copytree(pipeline.store / pipeline.made("student"), tmp_path / "mine")
    rollouts = cli("rollout", "--student", pipeline.made(REFERENCE), "--limit", 8, "--max-new-tokens", 8).ref
    words = ["distill", "--method", "seqkd", "--student", "./mine", "--data", pipeline.data, "--rollouts", rollouts]
    words += ["--set", "max_length=256"]
    assert [row[2] for row in cli(*words, "--no-eval", "-n").rows] == ["distill seqkd"]
