"""Jobs that make one artifact together, each of them a part of it, in one private folder.

A part enters the folder under the lock of the build, which it gives back, and works under a lock of its own. It leaves
finished blocks there, each whole or not at all, and touches no file that another part may write. Whoever wants the
folder for itself, to finish it or to work on it alone, holds the lock of the build, which keeps new parts out, and
waits until those that are at work have left.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adpa_cli.disk import write_atomic
from adpa_cli.errors import AdpaError
from adpa_cli.store import claim as claims
from adpa_cli.store.lock import POLL_SECONDS, claim_path, holder


@dataclass(frozen=True)
class Part:
    """Part `number`, from 0 on, of `of`."""

    number: int
    of: int

    @property
    def words(self) -> str:
        """How people count it."""
        return f"part {self.number + 1} of {self.of}"

    @property
    def name(self) -> str:
        return f"part-{self.number + 1}-of-{self.of}"


class PartDone(AdpaError):
    """A part has done its own, and other parts have to do theirs before the artifact is whole. It is no failure."""

    exit_code = 0


def recipe_of(folder: Path) -> str:
    """The id of the recipe that a private folder belongs to; a copy of another one's work has more to its name."""
    return folder.name.partition(".")[0]


def lock_of(folder: Path, part: Part) -> Path:
    """The lock of who makes one part of what a private folder is for."""
    return folder.with_name(f"{recipe_of(folder)}.{part.name}.lock")


def at_work(folder: Path) -> list[str]:
    """Who works on a part of what a private folder is for."""
    locks = folder.parent.glob(f"{recipe_of(folder)}.part-*.lock")
    return [who for path in sorted(locks) if (who := holder(path))]


def wait_until_none(folder: Path, announce: Callable[[str], None] | None, what: str) -> None:
    """Return once no part is at work, and forget their locks. Only for who holds the lock of the build: nobody can
    enter meanwhile."""
    if (busy := at_work(folder)) and announce:
        announce(f"Waiting for the jobs that make parts of {what}: {', '.join(busy)}")
    while at_work(folder):
        time.sleep(POLL_SECONDS)
    for path in folder.parent.glob(f"{recipe_of(folder)}.part-*.lock"):
        claims_of = claim_path(path)
        if (claim := claims.read(claims_of)) is not None:
            claims.removed(claims_of, claim)
        path.unlink(missing_ok=True)


def write_state(folder: Path, part: Part, state: Mapping[str, Any]) -> None:
    """Keep how far one part is."""
    write_atomic(folder / f"_{part.name}.json", json.dumps(state, ensure_ascii=False).encode())


def with_parts(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The state of a private folder with the progress and the seconds of all parts in it, added up."""
    states = [state]
    for path in _states(folder):
        with contextlib.suppress(OSError, ValueError):
            states.append(json.loads(path.read_bytes()))
    if len(states) == 1:
        return state
    last = max(states, key=lambda one: float(one["at"]))
    names = {name for one in states for name in one["progress"]}
    progress = {name: sum(one["progress"].get(name, 0) for one in states) for name in sorted(names)}
    return {
        **state, "progress": progress, "seconds": sum(one["seconds"] for one in states), "at": last["at"],
        "stopped": last["stopped"],
    }  # fmt: skip


def forget_states(folder: Path) -> None:
    """Remove what `write_state` kept: its sum is part of another state now."""
    for path in _states(folder):
        path.unlink()


def _states(folder: Path) -> list[Path]:
    return sorted(folder.glob("_part-*-of-*.json"))
