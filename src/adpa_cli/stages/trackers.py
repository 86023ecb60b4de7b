"""Experiment trackers: what `--runtime trackers=tensorboard,wandb` names, and where what they write goes.

A tracker hears of every step what metrics.jsonl keeps, and how fast it was. It is told, never asked: nothing that it
does changes a result.
"""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from adpa_cli.errors import AdpaError, UsageError
from adpa_cli.stages.job import Job

FOLDER = ".trackers"
"""In the store, beside the artifacts: what a tracker writes is no part of any."""
PACKAGES = {
    "tensorboard": "tensorboard", "wandb": "wandb", "trackio": "trackio", "mlflow": "mlflow", "aim": "aim",
    "comet_ml": "comet-ml", "clearml": "clearml", "dvclive": "dvclive", "swanlab": "swanlab",
}  # fmt: skip
"""What to install, by the name that accelerate has for a tracker, which is also that of the module."""
NONE = "none"
PROJECT = "adpa"
RUN_NAME = {"wandb": "name", "trackio": "name", "mlflow": "run_name", "swanlab": "experiment_name"}
"""The argument that takes the name of a run, in trackers that take it beside that of its project."""
PROJECTS = (*RUN_NAME, "comet_ml")


def named(text: str) -> list[str]:
    """The trackers of `a,b`, or of `none`. Raises UsageError for an unknown one, and for one that is not installed."""
    names = [] if text == NONE else list(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if name not in PACKAGES:
            raise UsageError(f"--runtime trackers={text}: no tracker is called {name}", f"known: {', '.join(PACKAGES)}")
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        packages = " ".join(PACKAGES[name] for name in missing)
        raise UsageError(f"--runtime trackers={text}: {', '.join(missing)} is not installed", f"pip install {packages}")
    return names


@contextlib.contextmanager
def tracking(job: Job, note: Callable[[str], None]) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """What tells a step and its numbers to the trackers of a job; only the main process writes, once there is one.

    One that fails later is noted and told nothing more: no training ends for it.

    Raises AdpaError where a tracker does not start, which most do not without an account.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    logs = Path(job.logs or job.folder / f"_{FOLDER}")
    trackers: list[Any] = []
    try:
        for name in named(job.runtime.trackers):
            project = PROJECT if name in PROJECTS else job.ref
            more = {RUN_NAME[name]: job.ref} if name in RUN_NAME else {}
            more |= {"dir": str(logs)} if name == "wandb" else {}  # else it writes into the working directory
            kind: Any = LOGGER_TYPE_TO_CLASS[name]
            try:
                logs.mkdir(parents=True, exist_ok=True)
                tracker = kind(project, logs, **more) if kind.requires_logging_directory else kind(project, **more)
                tracker.start()
                trackers.append(tracker)
                tracker.store_init_configuration(_settings(job.spec))
            except Exception as error:
                what = f"the tracker {name} did not start: {error}"
                raise AdpaError(what, f"set {name} up, or leave it out of --runtime trackers=") from error

        told = list(trackers)

        def track(step: int, numbers: Mapping[str, float]) -> None:
            for tracker in list(told):
                try:
                    tracker.log(dict(numbers), step=step)
                except Exception as error:
                    told.remove(tracker)
                    note(f"the tracker {tracker.name} failed and is told nothing more: {error}")

        yield track
    finally:
        for tracker in trackers:
            tracker.finish()


def _settings(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers, switches and short words of a spec."""
    flat = {**spec, **spec["params"]}
    return {key: value for key, value in flat.items() if isinstance(value, int | float | str) and key != "template"}
