"""Recipes: what a cell is, how a grid spans, what is refused, and what a failed or stopped cell does to the others."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from adpa_cli.cli.recipes.grid import read, requests
from support.cli_samples import Cli, Pipeline

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples" / "recipes").glob("*.toml"))
SMALL = """
student = "tiny"
max-steps = 2
limit = 40
no-eval = true

[sft]
max_steps = 2
limit = 64

[dpo-teacher]
max_steps = 2
limit = 40

[rollout]
max_new_tokens = 12
"""


def write(text: str, name: str = "recipe.toml") -> str:
    """A recipe in the working directory."""
    Path(name).write_text(text, encoding="utf-8")
    return name


def small(pipeline: Pipeline, more: str) -> str:
    """A recipe of a few steps on the pairs of the small pipeline, of which the store has nearly everything."""
    return write(f"data = {json.dumps(str(pipeline.data))}\n{more}\n{SMALL}")


def cells(cli: Cli, text: str, *words: object) -> list[tuple[str, dict[str, str]]]:
    """(id, settings) of every cell, as planned."""
    rows = cli("run", write(text), "-n", *words).rows
    return [(row[2], dict(pair.split("=", 1) for pair in row[3].split(" "))) for row in rows]


def test_a_cell_is_the_command_line_of_its_keys(cli: Cli) -> None:
    found = cells(cli, 'method = "adpa"\nstudent = "tiny"\nseed = 3\nlr = 1e-4\ngamma = 2\n[rollout]\ntop_p = 0.9\n')
    words = ["--method", "adpa", "--student", "tiny", "--seed", 3, "--lr", "1e-4", "--set", "gamma=2", "--no-eval"]
    last = cli("distill", *words, "--set", "rollout.top_p=0.9", "-n").rows[-1]
    assert [ref for ref, _ in found] == [last[4]]


def test_every_making_command_has_recipes(pipeline: Pipeline, cli: Cli) -> None:
    student, rollouts = pipeline.made("student"), pipeline.made("rollouts")
    for text, words in (
        ('command = "sft"\nmodel = "tiny"\nlr = 0.1\n', ["sft", "--model", "tiny", "--lr", 0.1]),
        (
            'command = "dpo-teacher"\nreference = "tiny"\nbeta = 0.3\n',
            ["dpo-teacher", "--teacher", "tiny", "--set", "beta=0.3"],
        ),
        (
            'command = "rollout"\nstudent = "tiny"\ntemperature = 0\n',
            ["rollout", "--student", "tiny", "--temperature", 0],
        ),
        (f'command = "eval"\nmodels = "{student}"\nsuite = "accuracy"\n', ["eval", student, "--suite", "accuracy"]),
        (
            f'command = "cache-teacher"\nteacher = "tiny"\nrollouts = "{rollouts}"\ntop-k = 5\n',
            ["cache-teacher", "--teacher", "tiny", "--rollouts", rollouts, "--top-k", 5],
        ),
    ):  # fmt: skip
        assert [ref for ref, _ in cells(cli, text)] == [cli(*words, "-n").rows[-1][4]]


def test_lists_span_a_grid_whose_first_list_varies_slowest(cli: Cli) -> None:
    found = cells(cli, 'method = "adpa"\nstudent = "tiny"\nseed = [0, 1]\ngamma = [0.5, 1, 1.5]\n')
    assert [(s["seed"], s["gamma"]) for _, s in found] == [
        ("0", "0.5"), ("0", "1"), ("0", "1.5"), ("1", "0.5"), ("1", "1"), ("1", "1.5"),
    ]  # fmt: skip
    assert len({ref for ref, _ in found}) == 6


def test_a_list_of_lists_sweeps_an_option_that_takes_several_values(pipeline: Pipeline, cli: Cli) -> None:
    one, two = (str(pipeline.data / f"{split}.jsonl") for split in ("train", "test"))
    start = 'method = "dpo"\nstudent = "tiny"\n'
    both = cells(cli, start + f'data = ["{one}", "{two}"]\n')
    swept = cells(cli, start + f'data = [["{one}", "{two}"], ["{one}"]]\n')
    assert len(both) == 1
    assert swept[0][0] == both[0][0]
    assert swept[1][0] == cells(cli, start + f'data = "{one}"\n')[0][0]


def test_a_setting_acts_where_a_method_has_it(cli: Cli) -> None:
    found = cells(cli, 'method = ["dpo", "dckd", "adpa"]\nstudent = "tiny"\ngamma = [1, 2]\nalpha = [1, 2]\n')
    assert [(s["method"], s.get("alpha"), s.get("gamma")) for _, s in found] == [
        ("dpo", None, None), ("dckd", "1", None), ("dckd", "2", None), ("adpa", None, "1"), ("adpa", None, "2"),
    ]  # fmt: skip


def test_cells_that_come_to_the_same_are_one(cli: Cli) -> None:
    """Greedy answers have no nucleus."""
    text = 'command = "rollout"\nstudent = "tiny"\ntemperature = [0, 0.7]\ntop-p = [0.8, 1]\n'
    assert len(cells(cli, text)) == 3


def test_tables_and_spellings_are_the_same_settings(cli: Cli) -> None:
    start = 'method = "adpa"\nstudent = "tiny"\n'
    plain = cells(cli, start + "max-steps = 5\ngamma = 2\nmissing_reference = 'exact'\n")
    for text in (
        "max_steps = 5\n[set]\ngamma = 2\nmissing-reference = 'exact'\n",
        "[distill]\nmax_steps = 5\ngamma = 2\nmissing_reference = 'exact'\n",
        "distill.gamma = 2\nset.max_steps = 5\nset.missing_reference = 'exact'\n",
    ):
        assert [ref for ref, _ in cells(cli, start + text)] == [ref for ref, _ in plain]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('student = "tiny"\nmethod = ["dpo", "dckd"]\n\ngama = 2\n', "toml:4: gama: none of the methods dpo, dckd"),
        ('student = "tiny"\nmethod = "dpo"\nalpha = 2\n', "recipe.toml:3: alpha: adpa distill has no such key"),
        ('student = "tiny"\nmethod = "dpo"\n[sft]\nbeta = 2\n', "toml:4: sft.beta: the stage sft has no such key"),
        ('student = "tiny"\nmethod = "dpo"\n[stf]\nlr = 2\n', "recipe.toml:4: stf.lr: there is no table [stf]"),
        ('student = "tiny"\nmethod = "dpo"\nseed = []\n', "recipe.toml:3: seed: is an empty list"),
        ('student = "tiny"\nmethod = "dpo"\nseed = [[1], [2]]\n', "3: seed: takes one value, but is a list of lists"),
        ('student = "-"\nmethod = "dpo"\n', "recipe.toml:1: student: a recipe does not read ids from stdin"),
        ('student = "tiny"\nmethod = "dpo"\nlr = 1979-05-27\n', "recipe.toml:3: lr: must be text, a number"),
        ('student = "tiny"\nmethod = "dpo"\nlr = "fast"\n', "recipe.toml: --lr must be a number; got fast"),
        ('student = "tiny"\nmethod = "dop"\n', "there is no method 'dop'"),
        ('method = "dpo"\n', "recipe.toml: --student is missing"),
        ('command = "show"\n', "recipe.toml:1: command: a recipe cannot run adpa show"),
        ('method = "dpo\n', "recipe.toml is not valid TOML"),
        ('method = ["dpo", "dckd"]\nstudent = "tiny"\ntag = "best"\n', "several combinations would get the tag best"),
        ('method = "dpo"\nstudent = "tiny"\ntag = "{gamma}"\n', "toml:3: tag: the recipe has no key gamma for {gamma}"),
        ('method = "dpo"\nstudent = "tiny"\ntag = "{method}/1"\n', "'dpo/1' cannot be a tag"),
    ],
)  # fmt: skip
def test_a_recipe_that_is_wrong_is_refused_before_anything(cli: Cli, text: str, said: str) -> None:
    assert said in cli.refused(2, "run", write(text))
    assert not Path("adpa-store").exists()


def test_an_unknown_key_lists_what_there_is_with_defaults(cli: Cli) -> None:
    said = cli.refused(2, "run", write('student = "tiny"\nmethod = ["dpo", "adpa"]\ngama = 2\n'))
    for text in ("did you mean gamma?", "gamma=1.5", "beta=0.05", "max-steps", "sft-data"):
        assert text in said


def test_a_recipe_that_is_not_there(cli: Cli) -> None:
    assert "cannot be read" in cli.refused(3, "run", "nothing.toml")
    assert "nothing came through the pipe" in cli.refused(3, "run", "-")
    assert "--shard must be I/N" in cli.refused(2, "run", write('method = "dpo"\nstudent = "tiny"\n'), "--shard", "3/2")


def test_an_id_of_another_store_says_so(pipeline: Pipeline, cli: Cli, tmp_path: Path) -> None:
    student = pipeline.made("student")
    values = {"method": "dpo", "student": student, "data": str(pipeline.data)}
    recipe = write("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    assert cli("run", recipe, "-n").code == 0
    said, _, tried = cli.refused(3, "run", recipe, "-n", "--store", tmp_path / "other").partition("\ntry: ")
    assert f"there is no tag or id {student} in {tmp_path / 'other'}" in said
    assert f"--store DIR (adpa show {student} --recipe prints there how to make it)" in tried


def test_shards_are_the_whole_grid(cli: Cli) -> None:
    text = 'method = ["dpo", "adpa"]\nstudent = "tiny"\nseed = [0, 1, 2]\ngamma = [1, 2]\n'
    whole = [ref for ref, _ in cells(cli, text)]
    parts = [[ref for ref, _ in cells(cli, text, "--shard", f"{n}/4")] for n in (1, 2, 3, 4)]
    assert len(whole) == 9
    assert parts == [whole[n::4] for n in range(4)]


def test_one_tag_for_several_artifacts_is_refused(pipeline: Pipeline, cli: Cli) -> None:
    first = pipeline.made("rollouts")
    second = cli("rollout", "--student", pipeline.made("student"), "--limit", 4, "--max-new-tokens", 4).ref
    words = ("cache-teacher", "--teacher", pipeline.made("aligned teacher"), "--rollouts", first, "--rollouts", second)
    assert "--tag best can name one artifact, but this command makes 2" in cli.refused(2, *words, "--tag", "best")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_are_sound(cli: Cli, path: Path) -> None:
    """Those for `tiny` are planned; the others, whose models are not here, are read as far as their command lines."""
    found = requests(read(path.read_text(encoding="utf-8"), path.name))
    tags = [request.options.tag for _, request in found]
    assert len(set(tags)) in (1, len(found))
    if path.stem.endswith("-tiny"):
        rows = cli("run", path, "-n").rows
        assert len(rows) == len(found)
        assert len({row[2] for row in rows}) == len(rows)


def test_every_example_at_paper_scale_has_its_miniature() -> None:
    stems = {path.stem for path in EXAMPLES}
    assert {stem for stem in stems if not stem.endswith("-tiny") and f"{stem}-tiny" not in stems} == set()


def test_recipes_of_the_documentation_can_be_planned(cli: Cli) -> None:
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```toml[^\n]*\n(.*?)```", page, flags=re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        assert cli("run", write(block), "-n").rows


def test_a_failed_cell_does_not_keep_the_others(pipeline: Pipeline, cli: Cli) -> None:
    name = small(pipeline, 'method = ["dckd", "dpo", "sft"]\ntag = "{method}-1"')
    refs = [row[2] for row in cli("run", name, "-n").rows]
    assert refs[0] == pipeline.made("distill dckd")
    obstacle = pipeline.store / refs[1] / "notes.txt"
    obstacle.parent.mkdir()
    obstacle.write_text("not an artifact")
    ran = cli("run", name)
    assert ran.code == 1
    assert ran.out.split() == [refs[0], refs[2]]
    assert "1 of 3 combinations failed" in ran.err
    assert re.search(r"\n  combination 2 method=dpo.*files but no manifest", ran.err), ran.err
    shutil.rmtree(obstacle.parent)
    again = cli("run", name, "--json")
    assert again.code == 0, again.err
    records = [json.loads(line) for line in again.out.splitlines()]
    assert [record["ref"] for record in records[:3]] == refs
    assert [record["settings"]["method"] for record in records[:3]] == ["dckd", "dpo", "sft"]
    assert [record["model"] for record in records[3:6]] == refs
    assert cli("path", "sft-1").ref == str(pipeline.store / refs[2])
    assert "adpa distill --data" in cli("show", refs[1]).out


def test_what_rests_on_a_failed_stage_is_not_tried(pipeline: Pipeline, cli: Cli) -> None:
    name = small(pipeline, 'method = "dckd"\nalpha = [2, 3]\ncache-teacher.top_k = 7')
    plan = cli(
        "plan", "distill", "--method", "dckd", *pipeline.words[3:], "--set", "cache-teacher.top_k=7", "--no-eval"
    )
    (signal,) = [row[4] for row in plan.rows if row[2] == "signal"]
    obstacle = pipeline.store / signal / "notes.txt"
    obstacle.parent.mkdir(parents=True)
    obstacle.write_text("not an artifact")
    ran = cli("run", name)
    assert (ran.code, ran.out) == (1, "")
    assert f"needs {signal}, which failed in combination 1" in ran.err


def test_a_stopped_sweep_says_what_goes_on(pipeline: Pipeline, cli: Cli) -> None:
    name = small(pipeline, 'method = "sft"\nseed = [7, 8]')
    ran = cli("run", name, "--stop-after", "0.01s")
    assert ran.code == 75
    said = ran.err
    assert f"Continue with:\n  adpa run {Path(name).resolve()} --stop-after 0.01s --store {pipeline.store}" in said
    assert len(cli("run", name).out.split()) == 2


def test_two_jobs_share_a_sweep(pipeline: Pipeline, cli: Cli) -> None:
    name = small(pipeline, 'method = "sft"\nseed = [3, 4, 5]')
    refs = [row[2] for row in cli("run", name, "-n").rows]
    assert cli("run", name, "--shard", "2/2").out.split() == [refs[1]]
    assert cli("run", name, "--shard", "1/2").out.split() == [refs[0], refs[2]]
    assert [row[1] for row in cli("run", name, "-n").rows] == ["found"] * 3
    assert "This shard has no combination" in cli("run", name, "--shard", "4/4").err


def test_the_closing_table_has_means_over_seeds(pipeline: Pipeline, cli: Cli) -> None:
    text = Path(small(pipeline, 'method = "sft"\nseed = [0, 1]')).read_text(encoding="utf-8")
    ran = cli("run", write(text.replace("no-eval = true\n", "")))
    assert ran.code == 0, ran.err
    table = ran.err[ran.err.index("SEED") :]
    lines = [re.search(rf"\n{n} +{n - 1} .*? ([\d.]+) (?:±|\()", table) for n in (1, 2)]
    one, two = (float(line[1]) for line in lines if line is not None)
    mean = re.search(r"\n2 seeds +([\d.]+) ±([\d.]+)", table)
    assert mean is not None, table
    assert float(mean[1]) == pytest.approx((one + two) / 2, abs=0.11)
    assert float(mean[2]) == pytest.approx(abs(one - two) / 2**0.5, abs=0.11)
    assert "start" in table
