"""Recipes with rows: which cell of a row is chosen, what its line is measured on, and against whom."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store
from support.cli_samples import STUDENT_AND_DCKD, Cli, Pipeline

SMALL = """
student = "tiny"
data = "{data}"
max-steps = 4
batch-size = 10
limit = 40

sft.max_steps = 2
sft.limit = 64
dpo-teacher.max_steps = 2
dpo-teacher.limit = 40
rollout.max_new_tokens = 12
"""
TWO_ALPHAS = f"{STUDENT_AND_DCKD}alpha = [0.5, 20]\n"
TABLE = (
    """
select = "best"
choose = ["alpha", "gamma"]

[report]
against = "Student"

[[rows]]
name = "Teacher"
measures = "aligned teacher"

[[rows]]
name = "Reference"
measures = "reference teacher"
"""
    + TWO_ALPHAS
    + """
[[rows]]
name = "DCKD w/o dispreferred"
method = "dckd"
dispreferred = false
against = "DCKD"

[[rows]]
name = "ADPA+"
method = "adpa+"
alpha = "{DCKD}"
gamma = [1, 5]
"""
)


def write(pipeline: Pipeline, more: str) -> str:
    """A recipe of a few steps on the pairs of the small pipeline, in the working directory."""
    Path("table.toml").write_text(SMALL.replace("{data}", str(pipeline.data)) + more, encoding="utf-8")
    return "table.toml"


def lines(said: str) -> dict[str, list[str]]:
    """The cells of the lines of the closing table, by the name of the row and the step."""
    table = said[said.index("ROW") :].splitlines()
    cells = [re.split(r"  +", line.strip()) for line in table[1:] if re.match(r"\d+ ", line)]
    return {cell[1]: cell for cell in cells}


def evaluations(store: Store) -> dict[str, Manifest]:
    """What was measured with the world's own judge, by the id of the model."""
    made = [m for m in store.artifacts() if m.stage == "eval" and m.metrics.get("prompts") == "report half"]
    return {str(m.inputs["model"]).removeprefix("artifact:"): m for m in made}


def test_a_row_is_its_best_cell_on_prompts_that_selected_nothing(pipeline: Pipeline, cli: Cli) -> None:
    name = write(pipeline, TABLE)
    states = [row[1] for row in cli("run", name, "-n").rows]
    assert states == ["build", "build", "build", "follows", "follows"]
    ran = cli("run", name, "--json")
    assert ran.code == 0, ran.err
    records = [json.loads(line) for line in ran.out.splitlines()]
    cells, table = records[:5], records[5:]
    store = Store.find(pipeline.store)
    made = {(cell["settings"]["row"], *_varying(cell["settings"])): store.resolve(cell["ref"]) for cell in cells}
    assert len(made) == 5

    chosen = max((made["DCKD", 0.5], made["DCKD", 20]), key=_score)
    followed = [m for (row, *_), m in made.items() if row == "ADPA+"]
    assert {str(m.inputs["model"]) for m in followed} == {f"artifact:{chosen.id}"}, "trained from what was chosen"
    plus = max(followed, key=_score)
    again = cli("run", name)
    shown = lines(again.err)
    assert [record["settings"]["row"] for record in table] == list(shown)
    assert list(shown) == ["Teacher", "Reference", "Student", "DCKD", "DCKD w/o dispreferred", "ADPA+"]
    assert [shown[row][-2] for row in ("DCKD", "ADPA+")] == [chosen.ref, plus.ref]
    assert shown["DCKD"][-1] == shown["ADPA+"][-1] == "best of 2"
    assert shown["Student"][-1] == pipeline.made("student")

    measured = evaluations(store)
    models = [chosen, made["DCKD w/o dispreferred",], plus]
    given = [store.resolve(shown[row][-1]) for row in ("Teacher", "Reference", "Student")]
    assert {m.id for m in [*models, *given]} == {*measured}
    assert given[0].inputs["model"] == f"artifact:{given[1].id}", "the teacher was aligned from its reference"
    against = [measured[m.id].metrics["scores"]["win_rate"]["against"] for m in models]
    assert against == [pipeline.made("student"), chosen.ref, pipeline.made("student")]
    assert "win_rate" not in measured[store.resolve(pipeline.made("student")).id].metrics["scores"]
    assert "held-out prompts: report half" in again.err
    assert "WIN RATE against Student" in again.err
    assert "WIN RATE against DCKD" in again.err
    assert {score["prompts"] for record in table for score in record["scores"]} == {"report half"}
    assert [row[1] for row in cli("run", name, "-n").rows] == ["found"] * 5, "what was chosen is known by now"
    command = measured[plus.id].made["command"]
    assert command.startswith("adpa eval ")
    assert command.endswith(f" {plus.ref}")
    assert cli("show", measured[plus.id].ref, "--recipe").code == 0


def _varying(settings: dict[str, Any]) -> list[Any]:
    return [settings[key] for key in ("alpha", "gamma") if key in settings]


def _score(manifest: Manifest) -> tuple[float, float]:
    selection = manifest.metrics["selection"]
    (point,) = [point for point in selection["points"] if point["step"] == selection["step"]]
    return point["accuracy"], point["margin"]


def test_every_kept_point_is_measured(pipeline: Pipeline, cli: Cli) -> None:
    name = write(
        pipeline,
        'keep = "all"\npoints = true\n[report]\nagainst = "Student"\n'
        '[[rows]]\nname = "Student"\nmeasures = "start"\n[[rows]]\nname = "DCKD"\nmethod = "dckd"\n',
    )
    ran = cli("run", name)
    assert ran.code == 0, ran.err
    table = ran.err[ran.err.index("ROW") :]
    _, whole, *points = [re.split(r"  +", line.strip()) for line in table.splitlines()[1:] if line[:1].isdigit()]
    assert [point[-1] for point in points] == [f"{ran.ref}@2", f"{ran.ref}@4"]
    assert whole[2:-1] == points[1][3:-1], "the last point is what the training ends with"
    assert points[0][3:-1] != points[1][3:-1]
    assert "WIN RATE" in table

    alone = cli("eval", f"{ran.ref}@2", "--against", pipeline.made("student"), "--data", pipeline.data)
    assert "Nothing to do" in alone.err
    assert "only steps 2, 4 were kept" in cli.refused(3, "eval", f"{ran.ref}@3", "--data", pipeline.data)
    assert "no steps were kept" in cli.refused(3, "eval", f"{pipeline.made('student')}@3", "--data", pipeline.data)


def test_the_teacher_of_each_line_is_measured(pipeline: Pipeline, cli: Cli) -> None:
    name = write(
        pipeline,
        'epochs = 1\n[report]\n"rollout.temperature" = 0.7\n'
        '[[rows]]\nname = "Teacher"\nmeasures = "aligned teacher"\nof = "DCKD"\n'
        '[[rows]]\nname = "DCKD"\nmethod = "dckd"\n"dpo-teacher.lr" = [1e-5, 1e-3]\n',
    )
    ran = cli("run", name, "--json")
    assert ran.code == 0, ran.err
    table = [json.loads(line) for line in ran.out.splitlines()][2:]
    settings = [(each["settings"]["row"], each["settings"]["dpo-teacher.lr"]) for each in table]
    assert settings == [("Teacher", "1e-05"), ("Teacher", "0.001"), ("DCKD", "1e-05"), ("DCKD", "0.001")]
    store = Store.find(pipeline.store)
    teachers, students = ([store.resolve(each["model"]) for each in half] for half in (table[:2], table[2:]))
    assert [teacher.spec["lr"] for teacher in teachers] == [1e-5, 1e-3]
    for teacher, student in zip(teachers, students, strict=True):
        (signal,) = (store.resolve(content.partition(":")[2][:12]) for content in student.inputs["cache"])
        assert signal.inputs["aligned"] == f"artifact:{teacher.id}"


def test_what_failed_is_not_chosen(pipeline: Pipeline, cli: Cli) -> None:
    name = write(pipeline, TABLE)
    first = cli("run", name, "-n").rows[0][2]
    obstacle = pipeline.store / first / "notes.txt"
    obstacle.parent.mkdir()
    obstacle.write_text("not an artifact")
    ran = cli("run", name)
    assert ran.code == 1
    assert "it needs the values chosen for DCKD, and none could be chosen" in ran.err
    assert lines(ran.err)["DCKD"][-1].endswith("not chosen: a combination failed")
    assert "3 of 5 combinations failed" in ran.err


def test_a_shard_makes_cells_and_leaves_the_table(pipeline: Pipeline, cli: Cli) -> None:
    name = write(pipeline, TABLE)
    ran = cli("run", name, "--shard", "1/3")
    assert len(ran.out.split()) == 1
    assert "it needs the values chosen for DCKD" in ran.err
    assert "Repeat the command without --shard" in ran.err
    assert not evaluations(Store.find(pipeline.store))


ROWS = '[[rows]]\nname = "A"\nmethod = "dckd"\nalpha = [1, 2]\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f'choose = "alpha"\n{ROWS}', 'alpha cannot be chosen among trainings that select no checkpoint'),
        (f'choose = ["alpha", "gama"]\nselect = "best"\n{ROWS}', "no combination has a key gama"),
        (f"points = true\n{ROWS}", "points: the checkpoints to measure are not kept by every training"),
        ('[[rows]]\nmethod = "dckd"\n', "rows: each row must be a table with a name"),
        (ROWS + ROWS, "two rows are called A"),
        ('[[rows]]\nname = "A"\nmeasures = "teacher"\n', "the row A measures teacher"),
        ('[[rows]]\nname = "A"\nmeasures = "start"\ngamma = 2\n', "the row A measures start and has gamma"),
        (f'{ROWS}of = "A"\n', "of: the row A measures nothing"),
        (f'{ROWS}[[rows]]\nname = "T"\nmeasures = "start"\nof = "B"\n', "of: no row of trainings is called B"),
        (f'{ROWS}against = "B"\n', "against: no row is called B"),
        (f'[report]\nseed = 2\n{ROWS}', "report.seed: the closing evaluation has no such key"),
        (f'[report]\nsuite = "best"\n{ROWS}', "no suite called 'best'"),
        (f'{ROWS}[[rows]]\nname = "B"\nmethod = "adpa+"\nalpha = "{{C}}"\n', "no row above B is called C and has"),
        (f'{ROWS}gamma = 2\n', "gamma: adpa distill has no such key"),
        (f'gamma = 2\n{ROWS}', "recipe.toml:2: gamma: adpa distill has no such key"),
        ('command = "sft"\nmodel = "tiny"\n[report]\n', "only distill has a closing table, and the command is sft"),
    ],
)  # fmt: skip
def test_a_table_that_cannot_be_made_is_refused(cli: Cli, text: str, said: str) -> None:
    student = "" if "command" in text else 'student = "tiny"\n'
    Path("recipe.toml").write_text(student + text, encoding="utf-8")
    assert said in cli.refused(2, "run", "recipe.toml")
    assert not Path("adpa-store").exists()


TUNED = (
    """
choose = ["alpha", "gamma"]
seed = [3, 4]

[tuning]
seed = [0, 1]

[report]
against = "Student"
"rollout.temperature" = [0.7, 0.0]
"""
    + TWO_ALPHAS
    + """
[[rows]]
name = "ADPA+"
method = "adpa+"
alpha = "{DCKD}"
gamma = 1
"""
)


def test_values_are_chosen_on_one_half_by_seeds_of_their_own(pipeline: Pipeline, cli: Cli) -> None:
    name = write(pipeline, TUNED)
    states = [row[1] for row in cli("run", name, "-n").rows]
    assert states == ["build"] * 4 + ["follows"] * 4, "two values for two seeds are tried, and two rows have two seeds"
    ran = cli("run", name, "--json")
    assert ran.code == 0, ran.err
    records = [json.loads(line) for line in ran.out.splitlines()]
    cells, table = records[:8], records[8:]
    store = Store.find(pipeline.store)
    rewards: dict[float, list[float]] = {}
    halves = {m.inputs["model"]: m for m in store.artifacts() if m.metrics.get("prompts") == "validation half"}
    for cell in cells[:4]:
        assert (cell["settings"]["row"], cell["settings"]["seed"] in (0, 1)) == ("DCKD (tried)", True)
        made = halves[f"artifact:{store.resolve(cell['ref']).id}"]
        key = "mean_reward" if "mean_reward" in made.metrics["scores"] else "reward_accuracy"
        rewards.setdefault(cell["settings"]["alpha"], []).append(made.metrics["scores"][key]["value"])
    best = max(rewards, key=lambda alpha: sum(rewards[alpha]))
    assert [cell["settings"]["alpha"] for cell in cells[4:]] == [best] * 4
    assert [(line["settings"]["row"], line["settings"]["seed"]) for line in table] == [
        ("Student", "3"), ("Student", "4"), ("DCKD", "3"), ("DCKD", "4"), ("ADPA+", "3"), ("ADPA+", "4")
    ]  # fmt: skip
    for line in table:
        means = [score for score in line["scores"] if score["metric"] == "mean_reward"]
        assert [score["prompts"] for score in means] == ["report half"] * 2
        rollouts = [store.get(store.get(score["evaluation"]).inputs["rollouts"].partition(":")[2]) for score in means]
        assert [made.spec["temperature"] for made in rollouts if made] == [0.7, 0.0]
    assert [row[1] for row in cli("run", name, "-n").rows] == ["found"] * 8


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"choose = [\"alpha\"]\n[tuning]\nseeed = 1\n{ROWS}", "seeed: adpa distill has no such key"),
        (f"[tuning]\nseed = 1\n{ROWS}", "tuning: there is nothing to choose"),
        (f'[report]\n"rollout.temprature" = 1\n{ROWS}', "report.rollout.temprature: the closing"),
    ],
)  # fmt: skip
def test_tuning_that_means_nothing_is_refused(cli: Cli, text: str, said: str) -> None:
    Path("recipe.toml").write_text(f'student = "tiny"\n{text}', encoding="utf-8")
    assert said in cli.refused(2, "run", "recipe.toml")
