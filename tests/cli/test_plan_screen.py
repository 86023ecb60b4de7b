"""The plan for people, pipes and programs, and the question before a large one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from adpa_cli.cli.console import make
from adpa_cli.cli.console import streams as ask
from adpa_cli.cli.console.plan_screen import plan_text, plan_tsv
from adpa_cli.cli.console.progress import CALM
from adpa_cli.data.templates import Template
from adpa_cli.errors import AdpaError
from adpa_cli.estimate import survey as surveys
from adpa_cli.estimate.cost import Clock, Cost
from adpa_cli.estimate.survey import Survey, survey
from adpa_cli.hub import External
from adpa_cli.machine import Machine
from adpa_cli.planning.distill_builder import Distill, plan_distill
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.planning.settings import UserSettings
from adpa_cli.report.text import width_of
from adpa_cli.sizes import Disk, Memory
from adpa_cli.spec import Runtime
from adpa_cli.stages import every
from adpa_cli.store.store import Store
from support.cli_samples import Cli, Pipeline, write_rows

MACHINE = Machine("cpu", "cpu", "here", memory=24 * 10**9, host_memory=24 * 10**9, disk=812 * 10**9)


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Survey:
    store = Store(tmp_path_factory.mktemp("nothing") / "adpa-store")
    return survey(plan_distill(Names(store), UserSettings(), Distill("adpa+", "tiny")), store, Runtime())


@pytest.fixture
def with_hub(seen: Survey) -> Survey:
    """The same whose stages also read two hub models, and one whose cost nobody can tell."""
    first = seen.costs[0]
    facts = {"name": "allenai/Llama-3.1-Tulu-3-8B-SFT", "commit": "f2a0" * 10}
    label, size = "allenai/Llama-3.1-Tulu-3-8B-SFT@f2a0", 16_100_000_000
    hub = [External(f"model:{n:064x}", label, ("x",), facts, size, n * size) for n in (0, 1)]
    node = replace(first.node, inputs={**first.node.inputs, "aligned": hub[0], "reference": hub[1]})
    costs = (replace(first, node=node), *seen.costs[1:-1], Cost(seen.costs[-1].node))
    return replace(seen, costs=costs)


@pytest.mark.parametrize("width", range(40, 201, 8))
def test_no_line_of_a_plan_is_longer_than_the_terminal(seen: Survey, with_hub: Survey, width: int) -> None:
    for one in (seen, with_hub):
        lines = plan_text(one, width).splitlines()
        assert max(map(width_of, lines)) <= width
        whole = " ".join(" ".join(lines).split())
        assert CALM not in whole, "which is said when the work begins"
        assert all(cost.node.label in whole for cost in one.costs), "ids are whole at any width"


def test_what_the_screen_says(with_hub: Survey) -> None:
    lines = plan_text(with_hub, 200).splitlines()
    assert lines[0].startswith("store ")
    assert "(0 artifacts) · student tiny · teacher allenai/Llama-3.1-Tulu-3-8B-SFT@f2a0 · " in lines[0]
    assert lines[0].endswith("template tiny, answers end with <|end|>")
    assert lines[1] == "data  tiny-sft 4,000 dialogues · tiny-pairs 4,000 pairs"
    assert "found  aligned teacher" in lines[2]
    assert lines[2].rstrip().endswith("in HF cache")
    assert lines[3].rstrip().endswith("download 16.1 GB")
    assert lines[4].split()[:3] == ["1", "build", "student"]
    assert lines[-1].startswith("downloads 16.1 GB · stores ? · disk at most +? (")
    assert lines[-1].endswith("· time unknown")


def test_models_are_called_by_their_alias(seen: Survey) -> None:
    assert "student tiny · teacher tiny-teacher · " in plan_text(seen, 200)


def test_the_foot_of_a_plan_on_a_card() -> None:
    node: Any = SimpleNamespace(
        role="r", what="w", label="sft/0", inputs={}, declared=every()["sft"], spec=None, flat_inputs=tuple
    )
    cost = Cost(node, None, Disk(8_200_000_000, 6_800_000_000), Memory(21_400_000_000), 15_840.0)
    card = replace(MACHINE, kind="cuda", name="RTX 4090")
    plan: Any = SimpleNamespace(template=Template("x", "</s>"), notes=("mind the gap",))
    store = Store(Path("/x"))
    text = plan_text(Survey(plan, store, Runtime(), card, (cost,), "guessed from the model sizes"), 160)
    assert text.splitlines()[-2:] == [
        "mind the gap",
        "stores 8.2 GB · disk at most +15.0 GB (812 GB free) · RTX 4090's memory 21.4 GB of 24.0 GB · "
        "about 4.4 h, guessed from the model sizes",
    ]


def test_an_adapter_is_named_with_the_rate_that_suits_it(cli: Cli) -> None:
    words = ("distill", "--method", "dckd", "--student", "tiny", "--set", "sft.lora=4", "-n")
    ran = cli(*words)
    adapters = [row[3] for row in ran.rows if ", lora 4" in row[3]]
    assert {row[4].partition("/")[0] for row in ran.rows if row[3] in adapters} == {"sft"}
    rates = [line for line in ran.err.splitlines() if "adapters usually need about ten times as much" in line]
    assert rates
    assert all(line.startswith("sft trains an adapter at lr=") for line in rates)
    (row,) = {tuple(line.partition("at lr=")[2].replace(",", "").split()) for line in rates[:1]}
    assert rates[0].endswith(f"--set sft.lr={10 * float(row[0]):g}")
    assert "ten times" not in cli(*words, "--set", "sft.lr=0.01").err
    assert "ten times" not in cli("sft", "--model", "tiny", "--set", "lora=4", "--lr", "0.01", "-n").err
    plain = cli(*words[:5], "-n")
    assert "ten times" not in plain.err
    assert "lora" not in plain.out


def test_a_rank_that_no_layer_has_is_named_alone(cli: Cli) -> None:
    said = cli.refused(2, "sft", "--model", "tiny", "--set", "lora=1e9", "-n")
    assert said.startswith("lora=1000000000 exceeds the rank of model.layers.0")
    assert said.rpartition("try: ")[2].startswith("--set sft.lora=48")
    assert not [word for word in ("memory", "disk", "problems") if word in said]


def test_a_pipe_gets_bytes_and_seconds_uncut(with_hub: Survey) -> None:
    rows = [line.split("\t") for line in plan_tsv(with_hub).splitlines()]
    assert {len(row) for row in rows} == {7}
    assert rows[-1][5:] == ["?", "?"]
    disk, seconds = with_hub.costs[0].disk, with_hub.costs[0].seconds
    assert disk is not None
    assert rows[0][5:] == [str(disk.keeps), f"{seconds:.0f}"]


def test_a_program_gets_one_object(cli: Cli) -> None:
    ran = cli("sft", "--model", "tiny", "--max-steps", "2", "-n", "--json")
    found = json.loads(ran.out)
    (row,) = found["rows"]
    assert (row["state"], row["stage"], row["rows"]) == ("build", "sft", 4000)
    assert found["totals"]["keeps"] == row["bytes"]
    assert found["totals"]["peak"] == row["bytes"] + row["extra"]
    assert found["totals"]["seconds"] == row["seconds"] > 0
    assert found["totals"]["memory"] == row["memory"] < found["totals"]["memory_available"]
    assert (found["totals"]["large"], ran.err) == (False, "")


def test_a_dry_run_and_a_build_stop_with_all_problems(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bad = write_rows(tmp_path / "bad.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "a"}])
    words = ["sft", "--model", "tiny", "--data", bad, "--set", "max_length=99999"]
    looked = cli(*words, "-n")
    assert (looked.code, looked.out) == (1, "")
    for part in (
        "  build  ",
        "2 problems were found, and nothing was started",
        "sft: max_length=99999 is more than the ",
    ):
        assert part in looked.err
    assert CALM not in looked.err
    assert CALM not in cli(*words).err
    monkeypatch.setattr(Machine, "here", classmethod(lambda cls, root: replace(MACHINE, disk=1000, memory=10**6)))
    said = cli.refused(1, *words)
    assert "problems were found, and nothing was started" in said
    for part in ("free; the plan needs", "max_length=99999 is more than the "):
        assert part in said
    assert not list((tmp_path / "adpa-store").glob("sft/*"))


def test_nothing_is_looked_at_for_what_is_found(pipeline: Pipeline, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surveys, "cost_of", None)
    monkeypatch.setattr(surveys, "plain_checks", None)
    ran = cli(*pipeline.words)
    assert "Nothing to do" in ran.err


@pytest.mark.parametrize(
    ("large", "yes", "problem", "asked"),
    [(True, False, False, True), (False, False, False, False), (True, True, False, False), (True, False, True, False)],
)
def test_only_a_large_plan_that_can_begin_is_asked_about(
    seen: Survey, monkeypatch: pytest.MonkeyPatch, large: bool, yes: bool, problem: bool, asked: bool
) -> None:
    questions: list[tuple[str, bool]] = []

    def refuse(question: str, default: bool) -> bool:
        questions.append((question, default))
        return False

    monkeypatch.setattr(make, "confirm", refuse)
    slow = tuple(replace(cost, seconds=3600.0 if large else 1.0) for cost in seen.costs)
    one = replace(seen, costs=slow, problems=(AdpaError("x"),) if problem else ())
    if asked:
        with pytest.raises(typer.Exit) as left:
            make.ask_if_large(one, yes)
        assert left.value.exit_code == 0, "an answer is no error"
    else:
        make.ask_if_large(one, yes)
    assert questions == ([("Continue?", True)] if asked else [])


def test_without_a_terminal_a_large_plan_goes_ahead(seen: Survey, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = tuple(replace(cost, seconds=3600.0) for cost in seen.costs)
    assert not ask.can_ask()
    make.ask_if_large(replace(seen, costs=slow), False)


def test_the_time_of_the_miniature_is_near_what_it_took(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds of the nine stages up to the last training on two idle cores, whose products did 232 billion operations
    a second: the sum must be within a factor of 1.5, a stage that took seconds within 2. The 18.8 s of ADPA were those
    of 500 steps, of which it has half now."""
    took = {"student": 4.5, "reference teacher": 6.6, "start log-probs": 4.5, "aligned teacher": 17.4, "signal": 6.2,
            "distill dckd": 10.6, "distill adpa": 18.8 / 2}  # fmt: skip
    monkeypatch.setattr(Clock, "product", lambda *_: 232e9)
    ran = cli("distill", "--method", "adpa+", "--student", "tiny", "-n", "--json", "--no-eval")
    rows = json.loads(ran.out)["rows"]
    planned = {row["role"]: row["seconds"] for row in reversed(rows)}
    for role, seconds in took.items():
        assert seconds / 2 < planned[role] < 2 * seconds, role
    whole = 77 - 18.8 / 2
    assert whole / 1.5 < sum(row["seconds"] for row in rows) < whole * 1.5
