"""What goes where: ids on stdout, words on stderr, stdin only for `-`."""

from __future__ import annotations

import json
import os
import pty
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adpa_cli.cli.console import progress as screen
from adpa_cli.stages import every
from support.cli_samples import Cli, Pipeline


def test_a_maker_writes_one_line_whatever_libraries_print(
    pipeline: Pipeline, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    rollout = every()["rollout"]
    compute = rollout.compute

    def noisy(*arguments: Any) -> None:
        with open(1, "w", closefd=False) as stdout:
            print("a library's print", file=stdout)
        os.write(1, b"a library's write\n")
        os.system("echo the echo of a child")
        compute(*arguments)

    monkeypatch.setitem(every(), "rollout", replace(rollout, compute=noisy))
    ran = cli("rollout", "--student", pipeline.made("student"), "--data", pipeline.data, "--limit", "2")
    assert (pipeline.store / ran.ref / "manifest.json").exists()
    assert ran.ref.startswith("rollout/")
    for noise in ("print", "write", "echo of a child"):
        assert noise in ran.err


def test_quiet_leaves_only_the_id(pipeline: Pipeline, cli: Cli) -> None:
    for words in (["-q", *pipeline.words], [*pipeline.words, "--quiet"]):
        ran = cli(*words)
        assert ran.ref == pipeline.made("distill adpa")
        assert ran.err == ""


def test_json_of_a_maker_is_one_object_a_line(pipeline: Pipeline, cli: Cli) -> None:
    record = json.loads(cli(*pipeline.words, "--json").ref)
    assert record["ref"] == pipeline.made("distill adpa")
    assert record["id"].startswith(record["ref"].split("/")[1])
    assert Path(record["path"]) == pipeline.store / record["ref"]


@pytest.mark.parametrize(
    "words", [["show"], ["show", "sft@latest"], ["methods"], ["methods", "adpa"], ["models"], ["tag"], ["verify"],
              ["path", "sft@latest"], ["data", "tiny-pairs"]],
    ids=" ".join,
)  # fmt: skip
def test_readers_write_tabs_into_a_pipe_and_json_when_asked(pipeline: Pipeline, cli: Cli, words: list[str]) -> None:
    assert cli("tag", "mine", "sft@latest").code == 0
    piped = cli(*words)
    assert piped.code == 0
    assert "\x1b" not in piped.out
    if words[0] not in ("path", "data") and words != ["show", "sft@latest"]:
        assert all("\t" in line for line in piped.out.splitlines())
    before, after = (json.loads(cli(*form).out) for form in (("--json", *words), (*words, "--json")))
    if isinstance(before, dict):
        before.pop("free", None), after.pop("free", None)  # others use the same disk meanwhile
    assert before
    assert before == after


def test_a_dry_run_is_a_table_of_stages(pipeline: Pipeline, cli: Cli) -> None:
    rows = cli(*pipeline.words, "--seed", "9", "-n").rows
    assert [row[0] for row in rows] == [str(n + 1) for n in range(len(rows))]
    assert {row[1] for row in rows} == {"found", "build"}
    assert rows[0][2:5] == ["student", "tiny base student on tiny-sft", pipeline.made("student")]
    assert all(row[5].isdigit() and row[6].isdigit() for row in rows), "bytes and seconds of every stage"


def test_a_dry_run_makes_no_store(cli: Cli, tmp_path: Path) -> None:
    ran = cli("distill", "--method", "adpa+", "--student", "tiny", "--dry-run")
    assert ran.rows[0][1] == "build"
    assert (ran.err, list(tmp_path.iterdir())) == ("", [])


@pytest.mark.parametrize(
    "words", [["show"], ["show", "best"], ["verify"], ["path", "best"], ["tag"], ["tag", "a", "b"]]
)
def test_readers_without_a_store_say_so_and_make_nothing(cli: Cli, words: list[str], tmp_path: Path) -> None:
    assert "there is no store (adpa-store) in" in cli.refused(3, *words)
    assert "nowhere is not a store" in cli.refused(3, *words, "--store", "nowhere")
    assert list(tmp_path.iterdir()) == []


def test_the_store_is_found_from_a_folder_below(
    pipeline: Pipeline, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert cli("path", "sft@latest").ref.startswith(str(pipeline.store))
    assert list(below.iterdir()) == []


@pytest.mark.parametrize("stdin", ["{ref}\n", "\n {ref} \n", '{{"id": "{ref}", "more": 1}}\n'])
def test_a_dash_reads_an_id_or_a_manifest(pipeline: Pipeline, cli: Cli, stdin: str) -> None:
    ref = pipeline.made("student")
    assert cli("path", "-", stdin=stdin.format(ref=ref)).ref == str(pipeline.store / ref)
    assert cli("tag", "mine", "-", stdin=stdin.format(ref=ref)).code == 0
    assert cli("path", "mine").ref == str(pipeline.store / ref)


def test_a_dash_reads_several_ids(pipeline: Pipeline, cli: Cli) -> None:
    refs = [pipeline.made("distill dckd"), pipeline.made("distill adpa")]
    assert [row[0] for row in cli("verify", "-", stdin="\n".join(refs)).rows] == refs


def test_show_of_one_artifact_feeds_a_dash(pipeline: Pipeline, cli: Cli) -> None:
    ref = pipeline.made("student")
    shown = cli("show", ref, "--json").out
    assert cli("path", "-", stdin=json.dumps(json.loads(shown))).ref == str(pipeline.store / ref)


MAKERS = [
    ["distill", "--method", "dpo", "--student", "-"],
    ["distill", "--method", "adpa", "--student", "tiny", "--cache", "-"],
    ["rollout", "--student", "-"], ["cache-teacher", "--teacher", "tiny", "--rollouts", "-"],
    ["dpo-teacher", "--reference", "-"], ["eval", "-"],
]  # fmt: skip


@pytest.mark.parametrize("words", MAKERS, ids=lambda words: words[0])
def test_an_empty_pipe_is_not_found_and_a_terminal_is_misuse(cli: Cli, words: list[str], tmp_path: Path) -> None:
    assert "nothing came through the pipe" in cli.refused(3, *words)
    parent, child = pty.openpty()
    with os.fdopen(parent, "rb"), os.fdopen(child) as terminal:
        assert "terminal" in cli.refused(2, *words, stdin=terminal)
    assert list(tmp_path.iterdir()) == []


def test_stdin_is_read_after_the_other_options_are_checked(cli: Cli) -> None:
    words = ["distill", "--method", "adpa", "--student", "tiny", "--cache", "-"]
    assert "--tag is empty" in cli.refused(2, *words, "--tag", "", stdin="sft/0123456789ab")
    assert "--set gamma" in cli.refused(2, *words, "--set", "gamma", stdin="sft/0123456789ab")


def test_two_dashes_are_misuse(cli: Cli) -> None:
    said = cli.refused(2, "distill", "--method", "adpa", "--student", "-", "--cache", "-", stdin="sft/0123")
    assert "only one option can read the pipe" in said


def test_an_option_that_takes_one_model_refuses_two(pipeline: Pipeline, cli: Cli) -> None:
    refs = "\n".join([pipeline.made("distill dckd"), pipeline.made("distill adpa")])
    assert "takes one model, but 2 came through the pipe" in cli.refused(2, "rollout", "--student", "-", stdin=refs)
    assert "delivered JSON without an id" in cli.refused(2, "rollout", "--student", "-", stdin="{broken")


def test_work_that_is_no_stage_tells_the_time_since_its_own_start(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = screen.Screen(quiet=False)
    monkeypatch.setattr(shown._pace, "is_due", lambda share: True)
    shown.progress(1, 3, {})
    shown.progress(2, 3, {})
    said = capfd.readouterr().err.splitlines()
    assert "? left" in said[0]
    assert "  0 s left" in said[1]
