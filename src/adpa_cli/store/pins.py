"""Hub names keep their meaning inside a store: the commit of the first time a name is seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from adpa_cli.errors import Corrupt
from adpa_cli.store.disk import explained, write_atomic
from adpa_cli.store.lock import locked

FILE_NAME = "pins.json"


def pin(root: Path, lock: Path, name: str, lookup: Callable[[str], str], refresh: bool) -> str:
    """The commit of `name` in the store at `root`, asked of `lookup` when it is not known or is to be refreshed."""
    path = root / FILE_NAME
    if not refresh and (known := read(path).get(name)):
        return known
    commit = lookup(name)
    with explained(root, f"{name} is not pinned"), locked(lock, f"pin {name}", what=FILE_NAME):
        pins = read(path)
        commit = commit if refresh else pins.get(name, commit)
        write_atomic(path, json.dumps({**pins, name: commit}, indent=1, sort_keys=True).encode() + b"\n")
    return commit


def read(path: Path) -> dict[str, str]:
    """Commit by name; empty when nothing is pinned yet. Raises Corrupt."""
    try:
        return {str(name): str(commit) for name, commit in json.loads(path.read_bytes()).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError) as error:
        raise Corrupt(
            f"{path} is damaged: {error}", "delete it; names are then pinned to what they mean today"
        ) from error
