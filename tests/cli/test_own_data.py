"""`adpa data` and the makers on data as people have them: without a store, with columns that nothing reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from adpa_cli.lab import BASES
from support.cli_samples import Cli, write_rows

SFT = ("sft", "--model", "tiny", "--max-steps", "1", "--data")


def pairs(**more: Any) -> list[dict[str, Any]]:
    return [
        {"prompt": f"sort the letters {letter} a", "chosen": f"a {letter} .", "rejected": "no .", **more}
        for letter in "bcdefghi"
    ]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BASES / "student", tmp_path / "small"))


@pytest.mark.parametrize("model", [(), ("--model", "tiny"), ("--model", "./small")])
def test_data_are_shown_where_there_is_no_store(cli: Cli, small: Path, tmp_path: Path, model: tuple[str, ...]) -> None:
    write_rows(tmp_path / "pairs.jsonl", pairs())
    ran = cli("data", "pairs.jsonl", *model, "--rows", "1")
    assert ran.code == 0, ran.err
    assert "7 rows (train), read as prompt, chosen, rejected" in ran.err
    assert not (tmp_path / "adpa-store").exists()


def test_a_column_that_nothing_reads_is_refused_unless_it_is_ignored(cli: Cli, tmp_path: Path) -> None:
    write_rows(tmp_path / "pairs.jsonl", pairs(input="and say why", score=3))
    for words in (("data", "pairs.jsonl"), (*SFT, "pairs.jsonl", "--dry-run"), (*SFT, "pairs.jsonl")):
        said = cli.refused(1, *words)
        assert "pairs.jsonl row 1: the column input holds 'and say why', and it would not be used" in said
        assert "--ignore-columns input" in said
        ran = cli(*words, "--ignore-columns", "input")
        assert ran.code == 0, ran.err
        if words[0] == "data":
            assert "not used: columns input (metadata: score)" in ran.err
    assert json.loads(cli("data", "pairs.jsonl", "--ignore-columns", " input,", "--json").out)["notes"][-1] == (
        "not used: columns input (metadata: score)"
    )


def test_ignoring_a_column_is_a_permission_and_moves_no_id(cli: Cli, tmp_path: Path) -> None:
    write_rows(tmp_path / "pairs.jsonl", pairs(score=3))
    plain, ignoring = (cli(*SFT, "pairs.jsonl", "-n", *more).rows for more in ((), ("--ignore-columns", "input")))
    assert plain == ignoring


def test_the_plan_says_what_is_not_used_and_left_out(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    write_rows(tmp_path / "d" / "train.jsonl", pairs(score=3))
    write_rows(tmp_path / "d" / "more_pairs.jsonl", pairs())
    said = "not used: columns score", "left out: files more_pairs.jsonl"
    shown = cli("data", "./d").err
    planned = " ".join(cli(*SFT, "./d").err.split())
    for words in said:
        assert words in shown
        assert words in planned
    write_rows(tmp_path / "d" / "README.md", [])
    (tmp_path / "d" / "README.md").write_text(
        "---\nconfigs:\n- config_name: one\n  data_files: '*.jsonl'\n- config_name: two\n  data_files: more*\n---\n"
    )
    assert "several configurations" in cli.refused(1, *SFT, "./d", "-n")
    assert cli(*SFT, "./d:two", "-n").rows == cli(*SFT, "./d#two", "-n").rows
    one = json.loads(cli("data", "./d:one", "--ignore-columns", "x", "--json").out)
    assert one["rows"] == 7
    assert not any("left out: files" in note for note in one["notes"])


def test_turns_of_every_kind_are_trained_on(cli: Cli, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": [{"type": "text", "text": "say"}]}, {"role": "assistant", "content": "a ."}]
    rows = [{"messages": turns, "system": "", "history": [["sort b a", f"a b {n} ."]]} for n in range(4)] + [
        {"messages": json.dumps(turns), "history": json.dumps([["sort c a", f"a c {n} ."]])} for n in range(4)
    ]
    write_rows(tmp_path / "chats.jsonl", rows)
    assert cli(*SFT, "chats.jsonl").ref.startswith("sft/")


def test_columns_that_cannot_be_ignored_are_said(cli: Cli, tmp_path: Path) -> None:
    write_rows(tmp_path / "pairs.jsonl", pairs(system="Be brief.", input="and say why", context=""))
    words = "--ignore-columns", "input,system,context,imput"
    shown = json.loads(cli("data", "pairs.jsonl", *words, "--json").out)["notes"]
    planned = " ".join(cli(*SFT, "pairs.jsonl", *words).err.split())
    said = (
        "--ignore-columns context: it is empty",
        "--ignore-columns imput: it is no column of pairs.jsonl",
        "--ignore-columns system: it is read all the same",
    )
    assert tuple(shown[-3:]) == said
    for line in said:
        assert line in planned
    assert "--ignore-columns input:" not in planned


def test_a_test_split_alone_is_shown_with_the_other_side(cli: Cli, tmp_path: Path) -> None:
    for split in ("train", "test"):
        (tmp_path / "d").mkdir(exist_ok=True)
        write_rows(tmp_path / "d" / f"{split}.jsonl", pairs())
    assert "--split test" in cli.refused(1, "data", "./d#test")
    assert cli("data", "./d#test", "--split", "test").code == 0


def test_columns_have_other_names_and_the_recipe_says_so(cli: Cli, tmp_path: Path) -> None:
    named = [{"question": row["prompt"], "good": row["chosen"], "bad": row["rejected"]} for row in pairs()]
    write_rows(tmp_path / "named.jsonl", named)
    write_rows(tmp_path / "pairs.jsonl", pairs())
    columns = ("--columns", "prompt=question,chosen=good,rejected=bad")
    said = cli.refused(1, *SFT, "named.jsonl", "--dry-run")
    assert "to read question, good, bad as prompt, chosen, rejected, add --columns prompt=question" in said
    assert "7 rows (train), read as prompt, chosen, rejected" in cli("data", "named.jsonl", *columns).err
    made = cli(*SFT, "named.jsonl", *columns)
    assert made.code == 0, made.err
    assert made.ref != cli(*SFT, "pairs.jsonl").ref
    (tmp_path / "again.toml").write_text(cli("show", made.ref, "--recipe").out)
    assert cli("run", "again.toml").ref == made.ref
    assert "--columns prompt=question names" in cli.refused(2, *SFT[:3], *("--columns", "prompt=question"))
