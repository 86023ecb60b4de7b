"""Experiment trackers: the numbers of trainings, evaluations, signals and sweeps, in any tracker that accelerate knows.

A tracker has one run for each artifact that is made, and one for each line of a sweep's table.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from adpa_cli.errors import AdpaError

PROJECT = "adpa"
RUN_NAME = {"wandb": "name", "trackio": "name", "mlflow": "run_name", "swanlab": "experiment_name"}
"""The argument that takes the name of a run, in trackers that take it beside that of its project."""
PROJECTS = (*RUN_NAME, "comet_ml")
SEPARATOR = {"mlflow": "."}
"""What stands for the / in names where a number with a name may not be the folder of others too, in files of mlflow."""
MAIN = "value"
"""The entry of a number that stands for the whole; the others are its interval and its count."""
Track = Callable[[int, Mapping[str, float]], None]
"""Takes the number of a step and its values by name."""


@contextlib.contextmanager
def tracking(
    names: Sequence[str], run: str, logs: Path, settings: Mapping[str, Any], note: Callable[[str], None]
) -> Iterator[Track]:
    """A function that sends values to the trackers `names`, to a run that is called `run` and has these `settings`.

    Trackers that write files write into `logs`. Of several processes only the main one sends. If a tracker fails later,
    `note` is told and the tracker is not used any more: no work ends because of it.

    Raises AdpaError if a tracker does not start; most need an account.
    """
    with contextlib.ExitStack() as finishing:
        trackers: list[Any] = []
        for name in names:
            try:
                PartialState()  # trackers ask it whether theirs is the main process
                logs.mkdir(parents=True, exist_ok=True)
                tracker = _tracker(name, run, logs)
                tracker.start()
                finishing.callback(_finish, tracker, note)
                tracker.store_init_configuration(_plain(settings))
            except Exception as error:
                what = f"the tracker {name} did not start: {error}"
                raise AdpaError(what, f"set up {name}, or remove it from --runtime trackers=") from error
            trackers.append(tracker)

        def track(step: int, values: Mapping[str, float]) -> None:
            for tracker in list(trackers) if values else ():
                try:
                    between = SEPARATOR.get(tracker.name, "/")
                    tracker.log({name.replace("/", between): value for name, value in values.items()}, step=step)
                except Exception as error:
                    trackers.remove(tracker)
                    note(f"the tracker {tracker.name} failed and is not used any more: {error}")

        yield track


def numbers(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of nested metrics by name, such as `win_rate` with its interval, `win_rate/low` and `win_rate/high`."""
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            flat |= {name if key == MAIN else f"{name}/{key}": number for key, number in numbers(value).items()}
        elif isinstance(value, int | float) and not isinstance(value, bool):
            flat[name] = value
    return flat


def _tracker(name: str, run: str, logs: Path) -> Any:
    project = PROJECT if name in PROJECTS else run
    more = {RUN_NAME[name]: run} if name in RUN_NAME else {}
    more |= {"dir": str(logs)} if name == "wandb" else {}  # else it writes into the working directory
    kind: Any = LOGGER_TYPE_TO_CLASS[name]
    return kind(project, logs, **more) if kind.requires_logging_directory else kind(project, **more)


def _finish(tracker: Any, note: Callable[[str], None]) -> None:
    try:
        tracker.finish()
    except Exception as error:
        note(f"the tracker {tracker.name} may lack the last numbers: {error}")


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers, switches and short words of settings, with those of `params` among them."""
    flat = {**settings, **settings.get("params", {})}
    return {key: value for key, value in flat.items() if isinstance(value, int | float | str) and key != "template"}
