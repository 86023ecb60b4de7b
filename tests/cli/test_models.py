"""`adpa models`: every alias with its facts, in columns, as TSV and as JSON, and an honest card."""

from __future__ import annotations

import itertools
import json
import re
import shlex
from pathlib import Path

import pytest

from adpa_cli.data.templates import TEMPLATES
from adpa_cli.engine.costs import trained
from adpa_cli.families import FAMILIES, aliases, published, ready_pairs, reward_models
from adpa_cli.planning.settings import train_spec
from adpa_cli.report.models import (
    CARD,
    CARDS,
    NO_TEMPLATE,
    count_words,
    entries,
    listed,
    page_tables,
    reading_card,
    reward_entries,
    training_card,
)
from adpa_cli.report.on_card import card_bytes, fits, screen
from adpa_cli.stages.cache_teacher import CACHE_TEACHER
from adpa_cli.stages.training import DISTILL, DPO_TEACHER, SFT
from support.cards import room, write_driver
from support.cli_samples import Cli

BY_ALIAS = {family.alias: family for family in FAMILIES}


def test_tsv_and_json_have_every_alias_with_its_facts(cli: Cli) -> None:
    rows = {row[0]: row[1:] for row in cli("models").rows}
    assert set(rows) == {*aliases(), *ready_pairs(), *reward_models()}
    assert rows["fsfairx"][:2] == ["reward model", "sfairXC/FsfairX-LLaMA3-RM-v0.1"]
    assert rows["qwen3-0.6b"][:5] == ["student", "Qwen/Qwen3-0.6B-Base", "596049920", "apache-2.0", "no"]
    assert rows["gemma-3-4b-it"][:5] == ["teacher", "google/gemma-3-4b-it", "4300079472", "gemma", "yes"]
    assert rows["llama-3.2-1b"][7] == "llama-3.1-8b", "the paper's teacher, before any ready pair"
    records = {record["alias"]: record for record in json.loads(cli("models", "--json").out)}
    assert set(records) == set(rows)
    for alias, row in rows.items():
        record = records[alias]
        assert [record["role"], record["model"], str(record["parameters"]), record["licence"]] == row[:4]
        assert record["gated"] is (row[4] == "yes")
        assert str(record["card"]["gigabytes"] or "") == row[5]
        assert str(record.get("lean", {}).get("gigabytes") or "") == row[6]


def test_a_ready_pair_tells_how_it_was_aligned(cli: Cli) -> None:
    records = {record["alias"]: record for record in json.loads(cli("models", "--json").out)}
    pair = records["tulu-3-8b"]["pair"]
    assert (pair["reference"], pair["objective"]) == ("allenai/Llama-3.1-Tulu-3-8B-SFT", "DPO, length-normalised")
    assert (pair["beta"], pair["students"]) == (5.0, ["llama-3.2-1b", "llama-3.2-3b"])
    assert "pair" not in records["llama-3.2-1b"]
    assert "β 0.01" in listed(list(entries()), 120)


def test_no_line_of_the_table_is_longer_than_the_terminal_and_the_card_stays() -> None:
    for width in (80, 118, 200):
        lines = listed([*entries(), *reward_entries()], width).splitlines()
        assert max(map(len, lines)) <= width
        assert {"ALIAS", "MODEL", "LICENCE", "GATED", "CARD", "LEAN"} <= set(lines[0].split())


@pytest.mark.parametrize("alias", ["smollm2-135m", "qwen2.5-0.5b", "llama-3.2-1b", "llama-3.2-3b", "gemma-3-1b"])
def test_the_card_holds_what_training_keeps_of_a_model(alias: str) -> None:
    """Weights, gradients and two moments in float32 with copies in bfloat16: 18 bytes a parameter, by hand."""
    size, family = published()[alias].size, BY_ALIAS[alias]
    card = training_card(family, "student", size)
    assert card.gigabytes in CARDS
    assert 18 * size.parameters < card.memory <= card.gigabytes * 1e9
    smaller = [gigabytes for gigabytes in CARDS if gigabytes < card.gigabytes]
    assert not smaller or card.memory > smaller[-1] * 1e9
    (method,) = SFT.methods()
    spec = train_spec(SFT.name, method, family, (SFT.name,), {}, NO_TEMPLATE)
    assert trained(size, spec, CARD) == 18 * size.parameters


def test_a_lean_training_fits_where_the_usual_one_does_not_and_has_its_options() -> None:
    """Weights, gradients and moments in bfloat16: 8 bytes a parameter."""
    known = published()
    size = known["qwen2.5-7b"].size
    usual, lean = (training_card(BY_ALIAS["qwen2.5-0.5b"], "teacher", size, lean) for lean in (False, True))
    assert 18 * size.parameters < usual.memory
    assert (usual.gigabytes, str(usual), usual.options) == (None, "none", "")
    assert 8 * size.parameters < lean.memory < 9 * size.parameters
    assert str(lean) == "80 GB"
    assert lean.options == ("--set sft.weights=bfloat16 --set dpo-teacher.weights=bfloat16 --runtime recompute=true")
    instruct = training_card(BY_ALIAS["qwen2.5-0.5b-it"], "teacher", known["qwen2.5-7b-it"].size, lean=True)
    assert "sft" not in instruct.options, "an instruct model is not fine-tuned first"


def test_a_ready_pair_is_only_read() -> None:
    """Two bytes a weight of the body, four of the embedding and of the head."""
    for alias in ready_pairs():
        size = published()[alias].size
        card = reading_card(size)
        assert 2 * size.parameters + 4 * size.head < card.memory < 3 * size.parameters
        assert card.options == ""


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        (57_744, "58 k"),
        (134_515_008, "135 M"),
        (999_885_952, "1 B"),
        (1_235_814_400, "1.24 B"),
        (13_015_864_320, "13 B"),
    ],
)
def test_parameters_for_people(parameters: int, words: str) -> None:
    assert count_words(parameters) == words


def test_the_tables_of_the_page_are_those_of_the_families() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    assert page_tables() in page, "run: python -m adpa_cli.report.models, and put its tables into docs/models.md"


def test_the_page_tells_every_named_template_and_its_end() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "models.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w.-]+)` \| [^|]+ \| ([^|]+) \|$", page.replace("\\|", "!"), re.MULTILINE)
    ends = {name: f"`{template.end}`".replace("|", "!") if template.end else "the tokenizer's EOS"
            for name, template in TEMPLATES.items()}  # fmt: skip
    assert dict(rows) == ends


def test_what_runs_on_a_card_is_told_by_stage(cli: Cli) -> None:
    rows = {(row[0], row[2]): row[3:] for row in cli("models", "--card", "24").rows}
    assert rows.keys() >= {(alias, CACHE_TEACHER.name) for alias in ready_pairs()}
    for alias in ready_pairs():
        state, memory, options = rows[alias, CACHE_TEACHER.name]
        assert (state, options) == ("yes", ""), "a ready pair is read as it is"
        assert 2 * published()[alias].parameters < int(memory) <= 24e9
    state, memory, options = rows["llama-3.1-8b", DPO_TEACHER.name]
    assert state == "yes"
    assert int(memory) <= 24e9
    assert f"--set {DPO_TEACHER.name}.lora=16" in options, "18 or 8 bytes a weight would be too many"
    assert {role for _, role, stage, *_ in cli("models", "--card", "24").rows if stage == DISTILL.name} == {"student"}
    records = json.loads(cli("models", "--card", "8 gb", "--json").out)
    by_stage = {(r["alias"], r["stage"]): r for r in records}
    assert by_stage.keys() == rows.keys()
    assert by_stage["tiny", SFT.name]["runs"] is True
    teacher = by_stage["llama-2-13b", DPO_TEACHER.name]
    assert teacher["runs"] is False
    assert teacher["memory"] > 8e9


def test_options_that_a_card_needs_are_settings_of_the_stage(cli: Cli) -> None:
    for row in cli("models", "--card", "12").rows:
        alias, role, stage, state, memory, *options = row
        words = shlex.split(options[0]) if options else []
        sets = [word for option, word in itertools.pairwise(words) if option == "--set"]
        assert all(word.startswith(f"{stage}.") for word in sets), row
        assert (state == "yes") == (int(memory) <= 12e9), row
        assert role in ("student", "teacher", "ready pair")
        assert alias


def test_the_screen_of_a_card_fits_the_terminal() -> None:
    found = list(fits(int(8e9)))
    for width in (60, 80, 118):
        lines = screen(found, int(8e9), width).splitlines()
        assert max(map(len, lines)) <= width
        assert "llama-3.1-8b" in "\n".join(lines)
        assert "tokens-per-device=" in "\n".join(lines), "which nothing breaks from its number"
    assert "not sft, dpo-teacher" in "\n".join(lines)
    assert "-it " not in "\n".join(lines[:-3]), "siblings are told of at the end"


@pytest.mark.parametrize("words", ["0", "24TB", "many", "1e3", "1e9", "nan", "inf", "99999", "-1"])
def test_a_card_without_a_size_is_an_error_of_usage(words: str, cli: Cli) -> None:
    said = cli.refused(2, "models", "--card", words)
    assert said.startswith(f"--card {words} is not the size of a card: gigabytes, such as 24 or 11.5")
    assert "adpa models --card 24" in said


def test_the_card_of_this_machine(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "nvidia-smi lists none" in cli.refused(1, "models", "--card", "here")
    write_driver(tmp_path / "bin", monkeypatch)
    assert card_bytes("here") == room(24)
    assert cli("models", "--card", "here").rows
