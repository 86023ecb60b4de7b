"""Data that cannot be used: the message names file, row and field, and nothing is made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adpa_cli.lab import world
from adpa_cli.store.store import Store
from support.cli_samples import Cli, Pipeline, write_rows
from support.data_files import write

SFT = ("sft", "--model", "tiny", "--max-steps", "1")
DPO = ("distill", "--method", "dpo", "--max-steps", "1", "--no-eval")


def rows(count: int = 12) -> list[dict[str, Any]]:
    return [json.loads(json.dumps(row)) for row in world.preferences("train")[:count]]


def commands(pipeline: Pipeline, file: str) -> list[list[str]]:
    """Every command that reads preference data."""
    student, teacher = pipeline.made("student"), pipeline.made("aligned teacher")
    return [
        [*SFT, "--data", file], [*DPO, "--student", student, "--data", file],
        ["dpo-teacher", "--reference", student, "--data", file], ["rollout", "--student", student, "--data", file],
        ["cache-teacher", "--teacher", teacher, "--data", file], ["eval", student, "--data", file],
        ["distill", "--method", "adpa+", "--student", "tiny", "--data", file],
    ]  # fmt: skip


def test_an_empty_data_set_is_refused_by_every_command(pipeline: Pipeline, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    before = {manifest.ref for manifest in Store.find(pipeline.store).artifacts()}
    for words in [*commands(pipeline, "empty.jsonl"), ["data", "empty.jsonl"]]:
        said = cli.refused(1, *words)
        assert "empty.jsonl has no rows" in said
    assert {manifest.ref for manifest in Store.find(pipeline.store).artifacts()} == before
    assert Store.find(pipeline.store).unfinished() == []


def test_a_row_without_rejected_is_named_by_every_command(pipeline: Pipeline, cli: Cli, tmp_path: Path) -> None:
    spoilt = rows()
    del spoilt[6]["rejected"]
    write_rows(tmp_path / "pairs.jsonl", spoilt)
    for words in [*commands(pipeline, "pairs.jsonl"), ["data", "pairs.jsonl"]]:
        said = cli.refused(1, *words)
        assert "1 of 12 rows cannot be used" in said
        assert "pairs.jsonl row 7, rejected: the column is missing" in said
        assert "--skip-bad-rows" in said


def test_data_of_which_nothing_fits_are_refused_by_every_command(pipeline: Pipeline, cli: Cli, tmp_path: Path) -> None:
    write_rows(tmp_path / "pairs.jsonl", rows())
    for words in commands(pipeline, "pairs.jsonl")[:-1]:
        said = cli.refused(1, *words, "--set", "max_length=1")
        assert "pairs.jsonl" in said
        assert "max_length=" in said
        assert "Traceback" not in said


def test_bad_rows_are_left_out_when_asked_and_counted(pipeline: Pipeline, cli: Cli, tmp_path: Path) -> None:
    spoilt = rows()
    del spoilt[6]["rejected"]
    write_rows(tmp_path / "pairs.jsonl", spoilt)
    words = (*DPO, "--student", pipeline.made("student"), "--data", "pairs.jsonl")
    ran = cli(*words, "--skip-bad-rows")
    assert "missing rejected (1)" in " ".join(ran.err.split())
    notes = Store.find(pipeline.store).resolve(ran.ref).metrics["notes"]
    assert any("missing rejected (1)" in note for note in notes)


@pytest.mark.parametrize(("name", "broken"), [("pairs.jsonl", b'{"prompt": \n'), ("pairs.csv", b"a,b\n")])
def test_a_broken_line_is_left_out_when_asked_and_named(cli: Cli, tmp_path: Path, name: str, broken: bytes) -> None:
    rows = [{"prompt": f"why {number} ?", "chosen": "so .", "rejected": "no ."} for number in range(9)]
    lines = write(tmp_path / name, rows)
    whole = lines.read_bytes().splitlines(keepends=True)
    lines.write_bytes(b"".join([*whole[:4], broken, *whole[4:]]))
    words = (*SFT, "--data", name, "--dry-run")
    said = cli.refused(1, *words)
    assert "1 of 10 rows cannot be used" in said
    assert f"{name} row 5: " in said
    assert "--skip-bad-rows" in said
    said = " ".join(cli(*words, "--skip-bad-rows").err.split())
    assert f"rows that cannot be used: {name} row 5" in said


def test_a_file_without_a_sound_row_is_refused_as_such(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_bytes(b"\x80\x81\n" * 7)
    said = cli.refused(1, "data", "pairs.jsonl")
    assert "7 of 7 rows cannot be used" in said
    assert "none of the 7 rows can be used as pairs: not UTF-8 (7)" in cli.refused(
        1, "data", "pairs.jsonl", "--skip-bad-rows"
    )


def test_a_list_that_is_broken_cannot_be_skipped(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "pairs.json").write_text('[{"prompt": "a"},\n{"prompt"]')
    said = cli.refused(1, "data", "pairs.json", "--skip-bad-rows")
    assert "pairs.json row 2: the JSON is broken" in said
    assert "broken rows can be skipped only in" in said


def test_the_first_five_problems_are_listed_and_all_counted(cli: Cli, tmp_path: Path) -> None:
    spoilt = rows()
    for number in range(7):
        spoilt[number]["chosen"] = ""
    write_rows(tmp_path / "pairs.jsonl", spoilt)
    said = cli.refused(1, *DPO, "--student", "tiny", "--data", "pairs.jsonl")
    assert said.count("pairs.jsonl row ") == 5
    assert "… 2 more" in said
    assert "empty chosen (7)" in said


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("broken.jsonl", '{"prompt": "a"\n', ["broken.jsonl row 1", "the JSON is broken"]),
        ("latin.jsonl", b'{"prompt": "\xe9"}\n', ["latin.jsonl row 1", "not UTF-8"]),
        ("cut.jsonl.gz", b"\x1f\x8b\x08\x00\x00", ["cut.jsonl.gz", "damaged or incomplete"]),
        (
            "other.jsonl",
            '{"question": "a", "answer": "b"}\n',
            ["other.jsonl do not form preference pairs", "answer, question"],
        ),
        ("list.jsonl", "[1, 2]\n", ["list.jsonl row 1", "not a JSON object but of type list"]),
        ("notes.txt", "hello", ["notes.txt is not a kind of file that can be read", ".jsonl"]),
        ("null.jsonl", '{"prompt": "a", "chosen": null}\n', ["prompt; without any value: chosen"]),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    cli: Cli, tmp_path: Path, name: str, content: str | bytes, words: list[str]
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    said = cli.refused(1, *DPO, "--student", "tiny", "--data", f"./{name}")
    for word in words:
        assert word in said


def test_what_is_no_source_is_told_what_to_write(cli: Cli, tmp_path: Path) -> None:
    write_rows(tmp_path / "pairs.jsonl", rows())
    (tmp_path / "pairs.xlsx").touch()
    for code, words, said in (
        (1, ["pairs.xlsx"], "pairs.xlsx is not a kind of file that can be read"),
        (3, ["*.jsonl"], "patterns are not expanded: name the folder, or give each file"),
        (3, ["https://huggingface.co/datasets/org/name"], "a data set of the hub is written org/name"),
        (2, ["pairs.jsonl", "more.jsonl"], "an option takes one value, so repeat it for each"),
    ):
        assert said in cli.refused(code, *SFT, "--data", *words)


def test_a_prompt_longer_than_the_context_loses_its_beginning_and_is_counted(
    pipeline: Pipeline, cli: Cli, tmp_path: Path
) -> None:
    """Half of max_length at most goes to a prompt; the end of it and the whole answer are kept."""
    long = rows()
    long[2]["prompt"][-1]["content"] = "please " * 300 + long[2]["prompt"][-1]["content"]
    write_rows(tmp_path / "pairs.jsonl", long)
    student = pipeline.made("student")
    ran = cli(*DPO, "--student", student, "--data", "pairs.jsonl")
    said = "1 of 11 pairs are longer than max_length 128: "
    assert said in " ".join(ran.err.split())
    metrics = Store.find(pipeline.store).resolve(ran.ref).metrics
    assert any(note.startswith(said) for note in metrics["notes"])
    cut = metrics["truncation"]
    assert (cut["rows"], cut["cut"], cut["answers"], cut["left_out"]) == (11, 1, 0, 0)
    assert cut["tokens"] > 170
    assert "1 of 11 dialogues are longer than max_length 128: " in cli(*SFT, "--data", "pairs.jsonl").err
    answered = cli("rollout", "--student", student, "--data", "pairs.jsonl", "--max-new-tokens", "4")
    assert len(cli("show", answered.ref, "--row", "3", "--json").out) > 2


def test_an_answer_cut_to_nothing_is_named(pipeline: Pipeline, cli: Cli, tmp_path: Path) -> None:
    write_rows(tmp_path / "pairs.jsonl", rows())
    student, teacher = pipeline.made("student"), pipeline.made("aligned teacher")
    for words in ([*DPO, "--student", student], ["cache-teacher", "--teacher", teacher]):
        said = cli.refused(1, *words, "--data", "pairs.jsonl", "--set", "max_length=1")
        assert "pairs.jsonl row " in said
        assert "do not fit into 1" in said
        assert "--set max_length=" in said
    said = cli.refused(1, *SFT, "--data", "pairs.jsonl", "--set", "max_length=1")
    assert "pairs.jsonl: none of 11 dialogues fits into 1 token" in said
    assert "--set sft.max_length=" in said
    said = cli.refused(1, "rollout", "--student", student, "--data", "pairs.jsonl", "--set", "max_length=1")
    assert "pairs.jsonl row 1, prompt leaves no room for an answer in 1" in said
    assert "try: --set rollout.max_length=2" in said


def test_a_limit_beyond_the_context_names_the_setting(pipeline: Pipeline, cli: Cli) -> None:
    said = cli.refused(1, *SFT, "--set", "max_length=999")
    assert "sft: max_length=999 is more than the 256 tokens that student can read" in said
    assert "--set sft.max_length=256" in said


def test_several_problems_come_in_one_list(cli: Cli, tmp_path: Path) -> None:
    spoilt = rows()
    del spoilt[6]["rejected"]
    write_rows(tmp_path / "pairs.jsonl", spoilt)
    words = ("distill", "--method", "dckd", "--student", "tiny", "--data", "pairs.jsonl", "--no-eval")
    said = cli.refused(1, *words, "--set", "max_length=999", "--set", "sft.max_length=300")
    assert "5 problems were found, and nothing was started:" in said
    assert "row 7, rejected" in said
    for stage in ("cache-teacher", "distill"):
        assert f"{stage}: max_length=999 is more than the 256 tokens that " in said
    assert said.count("sft: max_length=300 is more than the 256 tokens that ") == 2
    for hint in ("--skip-bad-rows", "--set distill.max_length=256", "--set sft.max_length=256"):
        assert hint in said
