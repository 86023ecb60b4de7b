"""The commands that look: what they print of a store that one command has filled."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from adpa_cli import methods
from adpa_cli.lab import world
from adpa_cli.stages import every
from adpa_cli.store.store import Store
from support.cli_samples import Cli, Pipeline, write_rows


def test_show_lists_every_artifact_newest_first(pipeline: Pipeline, cli: Cli) -> None:
    rows = cli("show").rows
    assert len(rows) == 29
    assert [row[5] for row in rows] == sorted((row[5] for row in rows), reverse=True) or rows[0][0].startswith("eval/")
    student = next(row for row in rows if row[0] == pipeline.made("distill adpa"))
    assert student[1] == "adpa+ γ 1 tiny"
    assert 0 <= float(student[5]) <= 1
    assert 0 <= float(student[6]) <= 1


def test_show_of_one_artifact_has_its_recipe_inputs_and_metrics(pipeline: Pipeline, cli: Cli) -> None:
    ref = pipeline.made("distill adpa")
    page = cli("show", ref).out
    assert page.startswith(f"{ref}  complete")
    assert "max_steps 2" in page
    record = json.loads(cli("show", ref, "--json").out)
    assert record["ref"] == ref
    assert record["spec"]["max_steps"] == 2


def test_show_of_several_prints_what_differs(pipeline: Pipeline, cli: Cli) -> None:
    both = pipeline.made("distill dckd"), pipeline.made("distill adpa")
    head, *rows = cli("show", *both).rows
    assert head[1:] == list(both)
    table = {row[0]: row[1:] for row in rows}
    assert table["method"] == ["dckd", "adpa"]
    assert "stage" not in table
    assert "batch_size" not in table
    assert all(row[1] != row[2] for row in rows if row[0] in ("lr", "epochs"))


@pytest.mark.parametrize("role", ["rollouts", "signal", "signal #2", "eval"])
def test_show_of_a_row(pipeline: Pipeline, cli: Cli, role: str) -> None:
    ref = pipeline.made(role)
    page = cli("show", ref, "--row", "1").out
    assert ref in page
    assert "\t" not in page, "a page to be read, also in a pipe"
    assert json.loads(cli("show", ref, "--row", "1", "--json").out)["ref"] == ref
    said = cli.refused(3, "show", ref, "--row", "9999")
    assert "rows are numbered 1 to" in said
    assert f"adpa show {ref} --row" in said


def test_the_first_rows_are_listed_a_line_each(pipeline: Pipeline, cli: Cli) -> None:
    ref = pipeline.made("rollouts")
    head, *lines = cli("show", ref, "--rows", "3").rows
    assert [line[head.index("row")] for line in lines] == ["1", "2", "3"]
    records = json.loads(cli("show", ref, "--rows", "3", "--json").out)
    assert [record["id"] for record in records] == [line[head.index("id")] for line in lines]
    assert "--rows must be 1 or more" in cli.refused(2, "show", ref, "--rows", "0")
    assert "cannot be shown together" in cli.refused(2, "show", ref, "--rows", "3", "--row", "1")


def test_a_row_is_asked_of_one_artifact_that_has_rows(pipeline: Pipeline, cli: Cli) -> None:
    assert "has no rows" in cli.refused(2, "show", pipeline.made("student"), "--row", "1")
    assert "--row N needs the name of one artifact" in cli.refused(2, "show", "--row", "1")


def test_unfinished_work_is_listed_with_the_command_that_goes_on(
    pipeline: Pipeline, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    words = ["sft", "--model", "tiny", "--max-steps", "1", "--limit", "8", "--seed", "3"]
    with monkeypatch.context() as patch:
        patch.setitem(every(), "sft", replace(every()["sft"], compute=broken))
        with pytest.raises(RuntimeError, match="a bug"):
            cli(*words)
    record = json.loads(cli("show", "--json").out)
    (work,) = record["unfinished"]
    assert "adpa " + " ".join(words) in json.dumps(work)
    hint = cli.refused(3, "show", work["ref"])
    assert f"{work['ref']} is unfinished" in hint
    assert "adpa " + " ".join(words) in hint


def test_tags_are_given_moved_listed_and_removed(pipeline: Pipeline, cli: Cli) -> None:
    first, second = pipeline.made("distill dckd"), pipeline.made("distill adpa")
    assert cli("tag", "best", first).code == 0
    assert cli("tag").rows == [["best", first]]
    assert f"already names {first}" in cli.refused(2, "tag", "best", second)
    assert f"moved here from {first}" in cli("tag", "best", second, "--force").err
    assert json.loads(cli("tag", "--json").out) == {"best": second}
    assert cli("path", "best").ref == str(pipeline.store / second)
    assert cli("tag", "other", first).code == 0
    assert "there is no tag nosuch" in cli.refused(3, "tag", "--delete", "other", "nosuch")
    assert cli("tag", "other", "best", "--delete").code == 0
    assert cli("tag").out == ""
    assert (pipeline.store / second).is_dir()
    assert "there is no tag best" in cli.refused(3, "tag", "best", "--delete")


@pytest.mark.parametrize(
    ("name", "found"), [("abcd", "looks like an id"), ("a/b", "cannot be a tag"), ("tulu-3-8b", "is a built-in name")]
)
def test_names_that_mean_something_else_are_no_tags(pipeline: Pipeline, cli: Cli, name: str, found: str) -> None:
    assert found in cli.refused(2, "tag", name, "sft@latest")
    before = len(Store.find(pipeline.store).artifacts())
    words = ("rollout", "--student", pipeline.made("student"), "--data", pipeline.data, "--limit", "3")
    assert found in cli.refused(2, *words, "--tag", name)
    assert len(Store.find(pipeline.store).artifacts()) == before


def test_a_tag_needs_something_to_name(pipeline: Pipeline, cli: Cli) -> None:
    assert "adpa tag best REF" in cli.refused(2, "tag", "best")
    assert "adpa tag --delete NAME" in cli.refused(2, "tag", "--delete")
    assert "did you mean" in cli.refused(3, "tag", "best", pipeline.made("student")[:-1] + "x")


def test_path_and_verify(pipeline: Pipeline, cli: Cli) -> None:
    ref = pipeline.made("distill adpa")
    for name in (ref, ref.split("/")[1], ref.split("/")[1][:6], "distill@latest"):
        folder = Path(cli("path", name).ref)
        assert folder == pipeline.store / ref
    assert (folder / "config.json").exists()
    assert {row[1] for row in cli("verify").rows} == {"whole"}
    assert json.loads(cli("verify", ref, "--json").out) == {ref: []}


def test_methods_and_models_list_what_there_is(cli: Cli) -> None:
    assert [row[0] for row in cli("methods").rows] == sorted(["adpa+", *methods.names()])
    assert {"adpa", "dckd", "dpo", "sft"} <= set(methods.names())
    parameters = {row[1]: row[2:5] for row in cli("methods", "adpa").rows if row[0] == "parameter"}
    assert parameters["gamma"][:2] == ["1.5", "ours"]
    assert {"tiny", "llama-3.2-1b", "tulu-3-8b", "zephyr-7b"} <= {row[0] for row in cli("models").rows}


def test_data_shows_rows_as_the_model_sees_them(cli: Cli, tmp_path: Path) -> None:
    ran = cli("data", "tiny-pairs", "--rows", "2", "--split", "test")
    assert ran.err.startswith("tiny-pairs: 600 rows (test)")
    head, *rows = ran.rows
    assert [row[2] for row in rows] == ["chosen", "rejected"] * 2
    for row in rows:
        text = row[head.index("text")]
        assert text.count("⟦") == 1
        assert text.endswith("<|end|>⟧")
        assert 0 < int(row[head.index("trained")]) < int(row[head.index("tokens")])
    assert "read as messages" in cli("data", "tiny-sft", "--rows", "1").err
    assert cli("data", "tiny-sft", "--rows", "1", "-q").err == ""
    assert list(tmp_path.iterdir()) == []  # no store is needed, and none is made


def test_data_of_a_file_needs_a_model_for_its_tokens(pipeline: Pipeline, cli: Cli, tmp_path: Path) -> None:
    write_rows(tmp_path / "pairs.jsonl", world.preferences("train")[:6])
    plain = cli("data", "pairs.jsonl", "--rows", "1")
    assert "Add --model MODEL" in plain.err
    assert len(plain.rows) == 2
    assert "<|assistant|>" not in plain.out
    ref = pipeline.made("student")
    for model in ("tiny", ref, f"./adpa-store/{ref}"):
        shown = cli("data", "pairs.jsonl", "--rows", "1", "--model", model).out
        assert "<|assistant|>⟦" in shown
    record = json.loads(cli("data", "pairs.jsonl", "--json").out)
    assert [line["row"] for line in record["shown"]] == [int(row[0]) for row in cli("data", "pairs.jsonl").rows[1:]]
    assert record["rows"] == 5  # one prompt is held out
    assert any("1 prompt held out" in note for note in record["notes"])
    assert "--split must be train or test" in cli.refused(2, "data", "pairs.jsonl", "--split", "dev")
    assert "is a ready pair" in cli.refused(2, "data", "pairs.jsonl", "--model", "tulu-3-8b")


def test_the_screen_at_the_end_compares_start_students_and_teachers(pipeline: Pipeline, cli: Cli) -> None:
    said = cli(*pipeline.words).err
    *table, after = said[said.index("MODEL") :].splitlines()
    assert after.startswith("next: adpa show eval/")
    assert [line.split("  ")[0].split(" γ")[0].split(" α")[0] for line in table[1:]] == [
        "start", "dckd", "adpa", "reference teacher", "aligned teacher",
    ]  # fmt: skip
    assert "held-out prompts: 12" in said
