"""The manifest: what an artifact is, from what, by which command, and the hash of every file. Written last."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from adpa_cli.disk import unreadable, write_atomic
from adpa_cli.errors import AdpaError, Corrupt

FILE_NAME = "manifest.json"
FORMAT = 1
MIGRATIONS: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""Pure functions from the JSON of format n to that of format n + 1, by n."""

_ABSOLUTE = re.compile(r"/|~|[A-Za-z]:[\\/]|\\\\")


@dataclass(frozen=True)
class Manifest:
    """One artifact's record.

    `sources` tells where external contents came from, by their digest: {"data:<sha>": {"name": …, "rows": …}}; never an
    absolute path. `files` gives each file's `bytes` and `sha256` by its path in the folder. `metrics` is any nested
    JSON the stage found worth keeping. `made` has at least command, at (ISO 8601, UTC), seconds and host.
    """

    id: str
    stage: str
    version: int
    spec: Mapping[str, Any]
    inputs: Mapping[str, str | list[str]]
    sources: Mapping[str, Mapping[str, Any]]
    files: Mapping[str, Mapping[str, Any]]
    metrics: Mapping[str, Any]
    made: Mapping[str, Any]
    repaired: Mapping[str, Any] | None = None
    format: int = FORMAT

    @property
    def ref(self) -> str:
        """`stage/12hex`, the artifact's path inside the store."""
        return f"{self.stage}/{self.id[:12]}"

    @property
    def size(self) -> int:
        """Bytes of all files together."""
        return sum(int(entry["bytes"]) for entry in self.files.values())

    @property
    def at(self) -> float:
        """When it was made, in seconds since 1970."""
        return datetime.fromisoformat(str(self.made["at"])).timestamp()

    def parents(self) -> list[tuple[str, str]]:
        """(role, id) of every input that is an artifact, by role."""
        flat = [(role, item) for role, value in self.inputs.items() for item in _as_list(value)]
        return [(role, item.removeprefix("artifact:")) for role, item in flat if item.startswith("artifact:")]

    def derived(self) -> list[tuple[str, str]]:
        """(role, id) of every artifact that was read without being an input, for it follows from the recipe."""
        return list(self.made.get("derived", {}).items())


def _as_list(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def utc(seconds: float) -> str:
    """ISO 8601 in UTC with microseconds: readable, and its order as text is the order in time."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def plain(value: Any) -> Any:
    """The same JSON with null for numbers that are not finite: a diverged run is still worth a record."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def check_sources(sources: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ValueError if provenance holds an absolute path: manifests are shared, machines are not."""
    for content, facts in sources.items():
        for key, value in facts.items():
            if isinstance(value, str) and _ABSOLUTE.match(value):
                raise ValueError(f"source {content} keeps an absolute path in {key}: {value}")


def write(folder: Path, manifest: Manifest) -> None:
    """Write a manifest into its folder, whole or not at all."""
    record = {key: value for key, value in asdict(manifest).items() if value is not None}
    text = json.dumps(record, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    write_atomic(folder / FILE_NAME, text.encode("utf-8") + b"\n")


def read(folder: Path) -> Manifest:
    """The manifest of a complete artifact. Raises Corrupt for a damaged one, AdpaError for one of a newer adpa."""
    path = folder / FILE_NAME
    try:
        raw = json.loads(path.read_bytes())
        version = raw["format"]
    except PermissionError as error:
        raise unreadable(path, error.strerror) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Corrupt(f"{path} is no manifest: {error}", _remake(folder)) from error
    raw = migrate(raw, f"{folder.parent.name}/{folder.name}") if version != FORMAT else raw
    try:
        return _checked(Manifest(**{item.name: raw[item.name] for item in fields(Manifest) if item.name in raw}))
    except (KeyError, TypeError, ValueError) as error:
        raise Corrupt(f"{path} is no manifest: {error}", _remake(folder)) from error


def _checked(manifest: Manifest) -> Manifest:
    if not re.fullmatch(r"[0-9a-f]{64}", manifest.id):
        raise ValueError(f"{manifest.id!r} is no id")
    for name in ("spec", "inputs", "sources", "files", "metrics", "made"):
        if not isinstance(getattr(manifest, name), dict):
            raise TypeError(f"{name} is no object")
    manifest.at, manifest.size  # noqa: B018  both raise here, not in the middle of a screen
    return manifest


def migrate(
    raw: dict[str, Any],
    what: str,
    current: int = FORMAT,
    migrations: Mapping[int, Callable[[dict[str, Any]], dict[str, Any]]] = MIGRATIONS,
) -> dict[str, Any]:
    """Bring a manifest's JSON up to the current format, one step at a time; raises AdpaError when it is newer."""
    version = raw["format"]
    if not isinstance(version, int) or version < 1:
        raise Corrupt(f"the manifest of {what} has the format {version!r}")
    if version > current:
        raise AdpaError(
            f"{what} was made by a newer adpa (its manifest has format {version}; this adpa reads up to {current})",
            "upgrade adpa, in the folder of its source: git pull && pip install .",
        )
    for step in range(version, current):
        raw = {**migrations[step](raw), "format": step + 1}
    return raw


def _remake(folder: Path) -> str:
    return f"move {folder} away and repeat the command that made it"
