"""A signal too late for a stage to stop stops the plan before the next one; after the last it changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from adpa_cli.errors import Stopped
from adpa_cli.estimate.survey import survey
from adpa_cli.planning.distill_builder import Distill, plan_distill
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.planning.settings import UserSettings
from adpa_cli.running.execute import Show, execute
from adpa_cli.spec import Runtime
from adpa_cli.store.store import Store
from support.cli_samples import Pipeline

SETTINGS = UserSettings(bare={"max_steps": 2}, by_stage={"sft": {"max_steps": 1, "limit": 32}}, limit=20)


class Watching:
    """A signal that arrives when the last step of a stage is done; `finished` lists what was made."""

    def __init__(self) -> None:
        self.asked: str | None = None
        self.finished: list[str] = []

    def progress(self, step: int, of: int, numbers: Mapping[str, float]) -> None:
        self.asked = "SIGUSR1" if step == of else None

    def show(self) -> Show:
        return Show(
            start=lambda node, n, of: None, done=lambda node, made, fresh: self.finished.append(made.ref),
            progress=self.progress, note=lambda text: None, stop=lambda: self.asked,
        )  # fmt: skip


def test_a_signal_in_the_last_step_stops_before_the_next_stage(
    shared_pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "store").mkdir()
    store = Store.find(tmp_path / "store", create=True)
    asked = Distill(method="sft", student="tiny", data=(str(shared_pipeline.data),), evaluate=False)
    plan = plan_distill(Names(store), SETTINGS, asked)
    first, last = [node.label for node in plan.nodes(store)]

    watching = Watching()
    with pytest.raises(Stopped, match=f"Stopped by SIGUSR1 after {first}; 1 more to make") as caught:
        execute(survey(plan, store, Runtime()), "adpa distill …", {}, watching.show())
    assert (caught.value.exit_code, caught.value.hint) == (75, "adpa distill …")
    assert watching.finished == [first]

    again = Watching()
    made = execute(survey(plan, store, Runtime()), "adpa distill …", {}, again.show())
    assert again.finished == [first, last]
    assert again.asked == "SIGUSR1"
    assert {manifest.ref for manifest in made.values()} == {first, last}


def test_a_plan_says_where_begun_work_continues(shared_pipeline: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    store = Store.find(tmp_path / "store", create=True)
    asked = Distill(method="sft", student="tiny", data=(str(shared_pipeline.data),), evaluate=False)
    plan = plan_distill(Names(store), SETTINGS, asked)
    first = plan.nodes(store)[0]
    with store.build(first.recipe, command="adpa distill …") as work:
        (work.dir / "_resume.json").write_text("{}")
        work.save_state({"step": 90, "of": 250})
    assert f"{first.role} ({first.label}) continues at step 90 of 250" in survey(plan, store, Runtime()).remarks
