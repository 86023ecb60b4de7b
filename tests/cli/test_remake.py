"""`show --recipe`: run here it finds the artifact, run in an empty store it makes the very same id again."""

from __future__ import annotations

import json
import os
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from adpa_cli.lab import BASES, world
from adpa_cli.store.store import Store
from support.cli_samples import Cli, Pipeline, write_rows
from support.fake_hub import serve, use

STEPS = ("--max-steps", "2", "--limit", "12", "--no-eval")


def recipe(cli: Cli, ref: str, name: str = "again.toml") -> str:
    """The recipe of an artifact, in a file."""
    ran = cli("show", ref, "--recipe")
    assert ran.code == 0, ran.err
    Path(name).write_text(ran.out, encoding="utf-8")
    return name


def stages(cli: Cli, name: str, *words: object) -> set[str]:
    """Every stage that a recipe looks at, in an empty store all that it makes."""
    ran = cli("plan", "run", name, *words)
    assert ran.code == 0, ran.err
    return {row[2] for row in ran.rows}


def test_every_artifact_of_a_family_is_made_again_from_nothing(pipeline: Pipeline, cli: Cli) -> None:
    made = Store.find(pipeline.store).artifacts()
    assert {manifest.stage for manifest in made} == {
        "sft", "start-logps", "dpo-teacher", "cache-teacher", "rollout", "distill", "rewards", "eval",
    }  # fmt: skip
    for manifest in made:
        name = recipe(cli, manifest.ref)
        text = Path(name).read_text(encoding="utf-8")
        values = tomllib.loads(text)
        words = {word for value in values.values() if isinstance(value, str) for word in [value]}
        assert not any(
            word.startswith(f"{manifest.stage}/") or ("/" in word and word.split("/")[0] in STAGES) for word in words
        )
        target = manifest.ref if "on the way to" not in text else text.split("on the way to ")[1].split(":")[0]
        rows = cli("run", name, "-n", "--store", "empty").rows
        assert [row[1:3] for row in rows] == [["build", target]]


STAGES = ("sft", "start-logps", "dpo-teacher", "cache-teacher", "rollout", "distill", "eval")


def test_what_is_made_on_the_way_is_in_the_plan_of_its_recipe(pipeline: Pipeline, cli: Cli) -> None:
    """The signal on the answers of a student in between has no command that starts from an alias."""
    ref = pipeline.made("signal #2")
    name = recipe(cli, ref)
    assert f"# makes {ref}, on the way to {pipeline.made('distill adpa')}" in Path(name).read_text(encoding="utf-8")
    plan = cli("distill", "--store", "empty", "-n", *pipeline.words[1:])
    assert ref in {row[4] for row in plan.rows}


def test_the_best_model_comes_out_again_in_an_empty_store(pipeline: Pipeline, cli: Cli) -> None:
    best = pipeline.made("distill adpa")
    cli("tag", "best", best)
    name = recipe(cli, "best")
    assert cli("run", name).ref == best
    again = cli("run", name, "--store", "empty")
    assert again.out.split() == [best], again.err
    files = {s: Store.find(Path(s)).resolve(best).files for s in ("adpa-store", "empty")}
    assert files["adpa-store"]["model.safetensors"] == files["empty"]["model.safetensors"]


def test_a_recipe_can_be_piped(pipeline: Pipeline, cli: Cli) -> None:
    ref = pipeline.made("distill adpa")
    assert cli("run", "-", stdin=cli("show", ref, "--recipe").out).ref == ref


def test_seeds_sizes_and_parameters_are_told(cli: Cli) -> None:
    small = ("--set", "sft.max_steps=1", "--set", "dpo-teacher.max_steps=1", "--set", "dpo-teacher.limit=8")
    words = (
        "--seed-all",
        4,
        "--max-steps",
        1,
        "--limit",
        8,
        "--set",
        "sft.limit=8",
        "--set",
        "eval.seed=3",
        "--no-eval",
    )
    more = ("--set", "alpha=0.3", "--set", "cache-teacher.precision=0", "--set", "tail=renormalised")
    ref = cli("distill", "--method", "dckd", "--student", "tiny", *words, *more, *small).ref
    values = tomllib.loads(cli("show", ref, "--recipe").out)
    assert (values["seed-all"], values["alpha"], values["tail"], values["limit"]) == (4, 0.3, "renormalised", 8)
    assert values["cache-teacher"]["precision"] == 0
    assert values["no-eval"] is True
    assert cli("run", recipe(cli, ref), "-n", "--store", "empty").rows[0][2] == ref


def test_a_rehearsal_is_made_again_as_one(cli: Cli) -> None:
    ref = cli("sft", "--model", "tiny", "--smoke").ref
    assert cli("run", recipe(cli, ref), "-n", "--store", "empty").rows[0][2] == ref


def test_a_lineage_by_hand_is_named_by_its_ids(pipeline: Pipeline, cli: Cli) -> None:
    """Answers of one student, signal of a teacher that is none of the family's, another student to start from."""
    start, teacher = pipeline.made("distill dckd"), pipeline.made("reference teacher")
    answers = cli("rollout", "--student", start, "--limit", 8, "--seed", 5, "--max-new-tokens", 8).ref
    signal = cli(
        "cache-teacher", "--teacher", teacher, "--reference", pipeline.made("aligned teacher"), "--rollouts", answers
    )
    words = ("--method", "adpa", "--student", start, "--cache", signal.ref, *STEPS)
    ref = cli("distill", *words).ref
    for made in (answers, signal.ref, ref):
        name = recipe(cli, made)
        assert [row[1:3] for row in cli("run", name, "-n").rows] == [["found", made]]
    assert start in Path(name).read_text(encoding="utf-8")


def test_files_are_named_from_here_with_their_digest(pipeline: Pipeline, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    source = tmp_path / "mine" / "pairs.jsonl"
    source.write_bytes(b"".join((pipeline.data / "train.jsonl").read_bytes().splitlines(keepends=True)[:30]))
    ref = cli("distill", "--method", "dpo", "--student", pipeline.made("student"), "--data", source, *STEPS).ref
    text = cli("show", ref, "--recipe").out
    assert 'data = "./mine/pairs.jsonl"' in text
    assert "# pairs.jsonl: sha256 " in text
    os.remove(source)
    said = cli.refused(3, "show", ref, "--recipe")
    assert f"this version of adpa has no command that makes {ref} again: pairs.jsonl" in said


def test_files_of_one_name_and_a_folder_with_one_file_are_told_apart(
    pipeline: Pipeline, cli: Cli, tmp_path: Path
) -> None:
    lines = (pipeline.data / "train.jsonl").read_bytes().splitlines(keepends=True)
    words: list[object] = []
    for number, name in enumerate(("one/pairs.jsonl", "two/pairs.jsonl", "three/train.jsonl")):
        path = tmp_path / name
        path.parent.mkdir()
        path.write_bytes(b"".join(lines[12 * number : 12 * number + 12]))
        words += ["--data", path if number < 2 else path.parent]
    ref = cli("distill", "--method", "dpo", "--student", pipeline.made("student"), *words, *STEPS).ref
    request = Store.find(pipeline.store).resolve(ref).made["request"]
    assert request["values"]["data"] == ["pairs.jsonl", "pairs.jsonl'", "three"]
    values = tomllib.loads(cli("show", ref, "--recipe").out)
    assert values["data"] == ["./one/pairs.jsonl", "./two/pairs.jsonl", "./three"]
    assert [row[1:3] for row in cli("run", recipe(cli, ref), "-n").rows] == [["found", ref]]


def test_names_of_the_hub_keep_their_commits_on_another_machine(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An alias and a family's data, whose names have moved on by the time the recipe is run."""
    (tmp_path / "data").mkdir()
    write_rows(tmp_path / "data" / "train.jsonl", world.demonstrations("train")[:8])
    words = ("sft", "--model", "danube3-500m", "--max-steps", 1, "--set", "max_length=128")
    with serve() as hub:
        use(hub, tmp_path / "hf", monkeypatch)
        base = hub.add("h2oai/h2o-danube3-500m-base", BASES / "student")
        data = hub.add("datasets/HuggingFaceH4/deita-10k-v0-sft", tmp_path / "data")
        ref = cli(*words).ref
        name = recipe(cli, ref)
        assert tomllib.loads(Path(name).read_text(encoding="utf-8"))["pins"] == {
            "h2oai/h2o-danube3-500m-base": base.commit, "datasets/HuggingFaceH4/deita-10k-v0-sft": data.commit,
        }  # fmt: skip
        meant = base.commit
        hub.repos[f"h2oai/h2o-danube3-500m-base@{meant}"] = replace(base)
        base.commit, base.folder = "f" * 40, BASES / "teacher"
        assert [row[4] for row in cli(*words, "-n", "--store", "other").rows] != [ref]
        assert [row[2] for row in cli("run", name, "-n", "--store", "other").rows] == [ref]
        assert cli("run", name).ref == ref
        cli(*words, "--refresh")
        said = cli.refused(2, "run", name)
    assert f"h2oai/h2o-danube3-500m-base is at commit {meant[:8]} in the recipe but at ffffffff in" in said


def test_recipe_is_of_one_artifact(pipeline: Pipeline, cli: Cli) -> None:
    assert "--recipe needs the name of one artifact" in cli.refused(2, "show", "--recipe")
    both = (pipeline.made("student"), pipeline.made("rollouts"))
    assert "--recipe needs the name of one artifact" in cli.refused(2, "show", *both, "--recipe")


@pytest.mark.parametrize("role", ["student", "distill adpa"])
def test_json_holds_the_same(pipeline: Pipeline, cli: Cli, role: str) -> None:
    """What is made on the way to a student was asked for by the command of that student."""
    ref, student = pipeline.made(role), pipeline.made("distill adpa")
    recipe = json.loads(cli("show", ref, "--recipe", "--json").out)
    assert (recipe["makes"], recipe["command"]) == (ref, "distill")
    assert recipe["way"] == ("" if ref == student else student)
    assert (recipe["values"]["sft.limit"], recipe["values"]["limit"]) == (64, 40)


def test_an_artifact_without_a_recorded_request_answers_with_its_command(pipeline: Pipeline, cli: Cli) -> None:
    """As one of an earlier version; a command that is none any more is told as it was."""
    ref = pipeline.made("distill adpa")
    path = pipeline.store / ref / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["made"]["request"]
    path.write_text(json.dumps(manifest))
    assert cli("run", recipe(cli, ref)).ref == ref
    manifest["made"]["command"] = "adpa distill --method adpa+ --student tiny --loudly"
    path.write_text(json.dumps(manifest))
    said = cli.refused(3, "show", ref, "--recipe")
    assert f"this version of adpa has no command that makes {ref} again" in said
    assert "it was made by: adpa distill --method adpa+ --student tiny --loudly" in said


def test_an_id_becomes_the_alias_that_gives_the_same(cli: Cli) -> None:
    """And what came through a pipe, or was named by a tag that has moved, is what it was then."""
    start = cli("sft", "--model", "tiny", "--smoke").ref
    other = cli("sft", "--model", "tiny", "--smoke", "--seed", 1).ref
    cli("tag", "mine", other)
    words = ("distill", "--method", "sft", "--smoke", "--no-eval", "--student")
    refs = [cli(*words, "-", stdin=start).ref, cli(*words, "mine").ref]
    cli("tag", "mine", start)
    students = [tomllib.loads(cli("show", ref, "--recipe").out)["student"] for ref in refs]
    assert students == ["tiny", other]


@pytest.mark.parametrize(
    "words",
    [
        ("rollout", "--student", "tiny", "--smoke", "--temperature", 0),
        ("sft", "--model", "tiny", "--smoke", "--set", "max_steps=none"),
        ("sft", "--model", "tiny", "--smoke", "--set", "limit=none", "--set", "lr=0.01"),
    ],
    ids=["zero", "none", "none that is an option too"],
)
def test_zero_and_none_are_values(cli: Cli, words: tuple[object, ...]) -> None:
    ref = cli(*words).ref
    assert [row[1:3] for row in cli("run", recipe(cli, ref), "-n").rows] == [["found", ref]]


def test_a_folder_whose_readme_has_configurations_is_found_again(pipeline: Pipeline, cli: Cli, tmp_path: Path) -> None:
    lines = (pipeline.data / "train.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "mine" / "data").mkdir(parents=True)
    for name, rows in (("one", lines[:12]), ("two", lines[12:24])):
        (tmp_path / "mine" / "data" / f"{name}.jsonl").write_bytes(b"".join(rows))
    front = "configs:\n- config_name: x\n  data_files:\n  - split: train\n    path: data/one.jsonl\n"
    front += "  - split: test\n    path: data/two.jsonl\n"
    (tmp_path / "mine" / "README.md").write_text(f"---\n{front}---\n")
    words = ("--method", "sft", "--student", pipeline.made("student"), "--data", "./mine#x", "--max-steps", 1)
    ref = cli("distill", *words, "--no-eval").ref
    assert tomllib.loads(cli("show", ref, "--recipe").out)["data"] == "./mine#x"
    assert cli("rollout", "--student", ref, "-n").code == 0


def test_what_no_stage_reads_is_left_out_and_a_name_breaks_no_line(
    pipeline: Pipeline, cli: Cli, tmp_path: Path
) -> None:
    name = "new\nline\x7f.jsonl"
    lines = (pipeline.data / "train.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / name).write_bytes(b"".join(lines[3:20]))
    (tmp_path / "other.jsonl").write_bytes(b"".join(lines[:3]))
    words = ("--method", "sft", "--student", pipeline.made("student"), "--data", name, "--sft-data", "./other.jsonl")
    ref = cli("distill", *words, "--max-steps", 1, "--no-eval").ref
    values = tomllib.loads(cli("show", ref, "--recipe").out)
    assert values["data"] == f"./{name}"
    assert "sft-data" not in values


def test_the_recipe_of_what_is_on_the_way_ends_with_the_student_that_was_asked_for(
    pipeline: Pipeline, cli: Cli
) -> None:
    words = ("distill", "--method", "dckd", "--student", pipeline.made("distill dckd"), "--data", pipeline.data, *STEPS)
    ref = cli(*words, "--set", "cache-teacher.top_k=9", "--set", "rollout.max_new_tokens=8").ref
    signal = next(m for m in Store.find(pipeline.store).artifacts() if m.spec.get("top_k") == 9)
    assert f"on the way to {ref}" in cli("show", signal.ref, "--recipe").out
