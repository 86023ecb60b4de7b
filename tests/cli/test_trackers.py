"""`--runtime trackers=…`: a real tracker hears of every step, and one that is not there is named before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from adpa_cli.engine.training.step_report import tracking
from adpa_cli.errors import AdpaError
from adpa_cli.planning.settings import PACKAGES, installed_trackers
from adpa_cli.store.store import Store
from support.cli_samples import Cli

SFT = ("sft", "--model", "tiny", "--limit", 32, "--max-steps", 3, "--batch-size", 8)


def test_tensorboard_hears_of_every_step_and_the_store_does_not_mind(cli: Cli, tmp_path: Path) -> None:
    ref = cli(*SFT, "--runtime", "trackers=tensorboard").ref
    root = tmp_path / "adpa-store"
    found = EventAccumulator(str(root / ".trackers" / ref)).Reload()
    lines = [json.loads(line) for line in (root / ref / "metrics.jsonl").read_text().splitlines()]
    for name in ("loss", "sft", "grad_norm", "tokens", "padding", "lr"):
        heard = [(event.step, event.value) for event in found.Scalars(name)]
        assert heard == [(line["step"], pytest.approx(line[name])) for line in lines], name
    assert [event.step for event in found.Scalars("grad_norm/sft")] == [1]
    assert all(event.value > 0 for event in found.Scalars("tokens_per_s"))
    assert len(found.Scalars("wait")) == 3
    assert set(found.Tags()["scalars"]) & {"seconds", "mfu"} == set()

    assert not [name for name in Store(root).get(ref).files if "tracker" in name]
    assert [row[0] for row in cli("show").rows] == [ref]
    assert not [row for row in cli("gc", "-n").rows if "tracker" in " ".join(row)]
    again = cli(*SFT, "--runtime", "trackers=none")  # how it is watched is no part of what it is
    assert again.ref == ref
    assert "nothing to do" in again.err


def test_a_tracker_that_is_not_there_is_refused_before_any_work(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = cli.refused(2, *SFT, "--runtime", "trackers=tensorbord")
    assert "no tracker is called tensorbord" in said
    assert "tensorboard, wandb" in said
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    said = cli.refused(2, *SFT, "--runtime", "trackers=tensorboard,comet_ml")
    assert "tensorboard, comet_ml is not installed" in said
    assert "try: pip install tensorboard comet-ml" in said
    assert list(tmp_path.iterdir()) == []


def test_the_names_are_those_that_accelerate_knows() -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    assert set(PACKAGES) == set(LOGGER_TYPE_TO_CLASS)
    assert installed_trackers("none") == []
    assert installed_trackers("tensorboard, tensorboard") == ["tensorboard"]


def test_a_tracker_that_does_not_start_is_an_error_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "logs" / "sft").mkdir(parents=True)
    (tmp_path / "logs" / "sft" / "abc").write_text("in the way")
    given = (["tensorboard"], "sft/abc", tmp_path / "logs", {"params": {}})
    with pytest.raises(AdpaError, match="the tracker tensorboard did not start"), tracking(*given, print):
        pass


def test_a_tracker_that_fails_later_ends_no_training(tmp_path: Path) -> None:
    said: list[str] = []
    given = (["tensorboard"], "sft/abc", tmp_path / "logs", {"params": {}})
    with tracking(*given, said.append) as track:
        track(1, {"loss": 1.0})
        for step in (2, 3):
            track(step, {"loss": {"what": object()}})
    assert len(said) == 1
    assert "tensorboard failed" in said[0]
    assert list((tmp_path / "logs").rglob("events*"))
