"""What `adpa methods` and docs/methods.md say of each method, at any width and in every form."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from adpa_cli import methods
from adpa_cli.data.templates import Template
from adpa_cli.families import GENERIC
from adpa_cli.methods import Need
from adpa_cli.planning.distill_builder import Distill, plan_distill
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.planning.settings import UserSettings, train_spec
from adpa_cli.report import catalogue
from adpa_cli.report.text import for_encoding, width_of
from adpa_cli.store.store import Store
from support.cli_samples import Cli

ENTRIES = catalogue.every()
each = pytest.mark.parametrize("one", ENTRIES, ids=lambda one: one.name)


def test_the_page_is_what_the_method_files_say() -> None:
    page = Path(__file__).resolve().parents[2] / "docs" / "methods.md"
    assert page.read_text(encoding="utf-8") == catalogue.document(), f"run: {catalogue.COMMAND}"


@each
def test_the_page_has_a_section_for_it(one: catalogue.Entry) -> None:
    _, start, section = catalogue.document().partition(f"\n## {one.name}\n")
    section = section.partition("\n## ")[0]
    assert start
    assert one.formula in section
    assert one.source in section
    for parameter in one.parameters:
        assert f"\n| `{parameter.name}` | {parameter.default} |" in section
    for name in one.presets:
        assert f"`preset={name}` sets" in section


def test_adpa_by_hand() -> None:
    adpa = catalogue.entry("adpa")
    assert adpa.columns == ("y_w, ŷ", "aligned+reference on ŷ", "")
    assert adpa.needs == (
        ("chosen answers y_w", ""),
        ("the student's own answers ŷ", "signal of the aligned and the reference teacher"),
    )
    assert [stage for stage, _ in adpa.stages] == [
        "sft", "sft", "start-logps", "dpo-teacher", "rollout", "cache-teacher", "distill",
    ]  # fmt: skip
    gamma = adpa.parameters[0]
    assert (gamma.name, gamma.default, gamma.origin, gamma.limits) == ("gamma", "1.5", "ours", "0 … 1000")
    assert {p.name: p.limits for p in adpa.parameters}["missing_reference"] == "kth | aligned | exact"
    assert {p.name: p.origin for p in adpa.parameters}["student_tail"] == "ours"
    assert "lr=5e-7" in catalogue.settings(adpa.presets["release"])
    assert catalogue.entry("adpa-plus") == catalogue.entry("adpa+")


OWN = {
    "simpo": ("6e-7", "1", "Llama-3-8B"), "wpo": ("5e-7", "1", "WPO's"), "ddpo": ("5e-7", "2", "ours"),
    "dpo": ("5e-7", "2", "section 4.1"), "dppo": ("5e-7", "1", "RTO"), "adpa": ("1e-5", "3", "appendix F"),
    "plad": ("1e-5", "3", "no code of PLaD"), "atkd": ("1e-5", "3", "ATKD's"), "dpkd": ("1e-5", "3", "DPKD's"),
}  # fmt: skip


@pytest.mark.parametrize("name", OWN)
def test_each_method_trains_at_its_own_source_s_settings(name: str, cli: Cli) -> None:
    lr, epochs, source = OWN[name]
    by_name = {one["name"]: one for one in json.loads(cli("methods", name, "--json").out)["training"]}
    assert (by_name["lr"]["default"], by_name["epochs"]["default"]) == (lr, epochs)
    assert source in by_name["lr"]["origin"]
    assert ["training", "lr", lr, by_name["lr"]["origin"]] in cli("methods", name).rows
    spec = train_spec("distill", name, GENERIC, ("distill", f"distill.{name}"), {}, Template("t", "e"))
    assert (spec.lr, spec.epochs) == (float(lr), float(epochs)), "what is shown is what is trained"
    assert spec.batch_size == int(by_name["batch_size"]["default"])
    for words, origin in catalogue.training_words(catalogue.entry(name)):
        assert f"{', '.join(words)}: {origin}" in " ".join(catalogue.page(catalogue.entry(name), 80).split())


def test_what_a_switch_changes_is_named() -> None:
    dckd = catalogue.entry("dckd")
    assert dckd.variants == ("dispreferred=false reads chosen answers y_w with signal of the aligned teacher",)


def test_the_stages_are_those_of_the_plans(tmp_path: Path) -> None:
    names = Names(Store.find(tmp_path, create=True))
    for one in ENTRIES:
        plan = plan_distill(names, UserSettings(), Distill(one.name, "tiny", evaluate=False))
        assert sorted(node.stage for node in plan.nodes(names.store)) == sorted(s for s, _ in one.stages), one.name


@each
@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_screen_fits_and_names_everything(one: catalogue.Entry, width: int) -> None:
    screen = catalogue.page(one, width)
    assert max(map(width_of, screen.splitlines())) <= width
    words = " ".join(screen.split())
    for text in (one.summary, one.source, " ".join(one.formula.split()), one.example):
        assert text in words
    for parameter in one.parameters:
        assert f"{parameter.name} {parameter.default} [{parameter.origin}]" in words
        assert parameter.doc in words
    assert "?" not in for_encoding(screen, "ascii")


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_list_fits_and_has_every_loss(width: int) -> None:
    screen = catalogue.listed(ENTRIES, width)
    assert max(map(width_of, screen.splitlines())) <= width
    words = " ".join(screen.split())
    for one in ENTRIES:
        assert f"\n{one.name} " in f"\n{screen}"
        assert f"loss {one.formula}" in words


def test_a_pipe_gets_facts_a_line_and_json_objects(cli: Cli) -> None:
    rows = cli("methods", "dckd").rows
    assert ["parameter", "alpha", "0.2", "paper", "0 … 1000", "weight of each divergence"] in rows
    released = ["alpha=0.1", "kd_on_eos=false", "lr=5e-7", "epochs=3", "max_length=1024", "select=best", "keep=all"]
    assert ["preset", "release", *released] in rows
    assert rows[-1] == ["example", "adpa distill --method dckd --student tiny"]
    record = json.loads(cli("methods", "adpa+", "--json").out)
    assert record["stages"][-1] == {"stage": "distill", "makes": "adpa from the dckd student"}
    listed = json.loads(cli("methods", "--json").out)
    assert [one["name"] for one in listed] == [row[0] for row in cli("methods").rows]
    assert {p["name"]: p["default"] for p in listed[0]["parameters"]}["gamma"] == "1.5"


@dataclass(frozen=True)
class Asking(Need):
    """A need with a field that this version has no words for."""

    patience: float = 0.0


def test_a_field_without_words_goes_by_its_name() -> None:
    needs = (Asking("chosen", patience=0.5), Asking("rejected"))
    assert dict(catalogue.need_words(needs, "student")) == {
        "chosen answers y_w": "patience 0.5", "rejected answers y_l": "",
    }  # fmt: skip
    assert catalogue.columns(needs, "student") == ("y_w, y_l", "", "patience")


@pytest.mark.parametrize(
    ("value", "typed"), [(5e-7, "5e-7"), (1e6, "1e6"), (0.05, "0.05"), (False, "false"), (None, "none"), (1000, "1000")]
)
def test_values_are_written_as_they_are_typed(value: Any, typed: str) -> None:
    assert catalogue.value_text(value) == typed


@pytest.mark.parametrize("name", methods.names())
def test_readings_name_options_that_exist(name: str) -> None:
    read = methods.load(name)
    known = {f.name for f in dataclasses.fields(read.params)} | set(read.sources) | {"lr", "epochs"}
    assert set(read.readings) <= known
    for text in (*read.readings.values(), *read.notes):
        assert text.endswith((".", "`.", ": 1."))
        assert text.count("`") % 2 == 0
