"""`--runtime trackers=…`: real trackers hear of steps, evaluations, signals and sweeps; one that is not installed is
named before any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from adpa_cli.engine.trackers import numbers, tracking
from adpa_cli.errors import AdpaError
from adpa_cli.planning.settings import PACKAGES, installed_trackers
from adpa_cli.store.store import Store
from support.cli_samples import Cli, Pipeline

OFFLINE = {"WANDB_MODE": "offline", "TRACKIO_DIR": "{}/trackio", "MLFLOW_TRACKING_URI": "file://{}/mlruns",
           "MLFLOW_ALLOW_FILE_STORE": "true"}  # fmt: skip
SFT = ("sft", "--model", "tiny", "--limit", 32, "--max-steps", 3, "--batch-size", 8)


def heard_of(root: Path, run: str) -> EventAccumulator:
    """What tensorboard has of a run."""
    return EventAccumulator(str(root / ".trackers" / run)).Reload()


def last(found: EventAccumulator) -> dict[str, float]:
    """The last value of every number."""
    return {name: found.Scalars(name)[-1].value for name in found.Tags()["scalars"]}


def test_tensorboard_hears_of_every_step_and_the_store_does_not_mind(cli: Cli, tmp_path: Path) -> None:
    ref = cli(*SFT, "--runtime", "trackers=tensorboard").ref
    root = tmp_path / "adpa-store"
    found = heard_of(root, ref)
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
    assert "Nothing to do" in again.err


def test_tensorboard_hears_of_evaluations_signals_and_the_lines_of_a_sweep(pipeline: Pipeline, cli: Cli) -> None:
    recipe = ['method = "dckd"', 'student = "tiny"', f"data = {json.dumps(str(pipeline.data))}", "max-steps = 2",
              "limit = 40", "alpha = [0.5, 2.0]", "sft.max_steps = 2", "sft.limit = 64", "dpo-teacher.max_steps = 2",
              "dpo-teacher.limit = 40", "rollout.max_new_tokens = 12"]  # fmt: skip
    Path("alphas.toml").write_text("\n".join(recipe), encoding="utf-8")
    models = [row[0] for row in cli("run", "alphas.toml", "--runtime", "trackers=tensorboard").rows]
    store = Store(pipeline.store)
    measured: dict[str, dict[str, float]] = {model: {} for model in models}
    for made in store.artifacts():
        model = next((f"distill/{parent[:12]}" for role, parent in made.parents() if role == "model"), "")
        if made.stage != "eval" or model not in models:
            continue
        told = last(heard_of(store.root, made.ref))
        for name, score in made.metrics["scores"].items():
            measured[model][name] = told[name]
            assert (told[name], told[f"{name}/low"]) == pytest.approx((score["value"], score["low"]))
    for model, scores in measured.items():
        line = last(heard_of(store.root, f"sweep/alphas/{model}"))
        assert {name: line[name] for name in scores} == scores
        assert {"reward_accuracy", "win_rate"} <= set(scores)
    (hparams,) = (store.root / ".trackers" / "sweep" / "alphas" / models[1]).glob("*/hparams.yml")
    assert yaml.safe_load(hparams.read_text())["alpha"] == "2.0"

    words = ("--teacher", pipeline.made("aligned teacher"), "--data", pipeline.data, "--limit", 8)
    signal = store.get(cli("cache-teacher", *words, "--runtime", "trackers=tensorboard").ref)
    told = last(heard_of(store.root, signal.ref))
    assert {name: told[name] for name in ("mean_mass", "bytes_per_token", "tokens")} == pytest.approx(
        {name: signal.metrics[name] for name in ("mean_mass", "bytes_per_token", "tokens")}
    )


@pytest.mark.parametrize(
    ("name", "written"),
    [("wandb", "logs/wandb/offline-run-*/*.wandb"), ("trackio", "trackio/adpa.*"), ("mlflow", "mlruns/*/*/metrics/*")],
)
def test_offline_trackers_write_what_they_are_given(
    name: str, written: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in OFFLINE.items():  # some are read when the tracker is imported
        monkeypatch.setenv(key, value.format(tmp_path))
    pytest.importorskip(name)
    monkeypatch.chdir(tmp_path)
    with tracking([name], "sft/abc", tmp_path / "logs", {"lr": 0.1, "params": {"beta": 2.0}}, pytest.fail) as track:
        track(0, {"reward_accuracy": 0.5, "reward_accuracy/low": 0.25})
    assert list(tmp_path.glob(written))


def test_held_out_scores_are_among_the_numbers_of_a_training(pipeline: Pipeline, cli: Cli) -> None:
    words = ("--model", "tiny", "--max-steps", 2, "--limit", 32, "--select", "best")
    ref = cli("sft", *words, "--runtime", "trackers=tensorboard").ref
    points = Store(pipeline.store).get(ref).metrics["selection"]["points"]
    heard = [(event.step, event.value) for event in heard_of(pipeline.store, ref).Scalars("held_out/nll")]
    assert heard == [(point["step"], pytest.approx(point["nll"])) for point in points]


def test_nested_metrics_are_numbers_by_name() -> None:
    metrics = {"mean": {"value": 1.0, "low": 0.5}, "sizes": {"a": {"b": 2}}, "is": True, "say": ["3"], "none": None}
    assert numbers(metrics) == {"mean": 1.0, "mean/low": 0.5, "sizes/a/b": 2}


def test_a_tracker_that_is_not_there_is_refused_before_any_work(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = cli.refused(2, *SFT, "--runtime", "trackers=tensorbord")
    assert "there is no tracker called 'tensorbord'" in said
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
