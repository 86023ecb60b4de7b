"""Rows of `judgements` and of answers of two turns: what a judge said of which answers, and what was read of it."""

from __future__ import annotations

import json
from typing import Any

from adpa_cli.errors import Corrupt
from adpa_cli.report import text
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

LONG = ("messages", "logps", "usage", "annotation", "model", "finish_reason", "chars")
"""Fields that are left out where a row is shown in short."""
TEXTS = ("reply", "questions", "text")


class JsonRows:
    """The rows of an artifact that keeps them as JSON Lines. Raises Corrupt when they cannot be read."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self.ref = manifest.ref
        (path,) = (store.folder(manifest.ref) / name for name in manifest.files if name.endswith(".jsonl"))
        try:
            self._rows: list[dict[str, Any]] = [json.loads(line) for line in path.read_bytes().splitlines()]
        except (OSError, ValueError) as error:
            raise Corrupt(f"{path}: the rows cannot be read: {error}", f"adpa verify {self.ref}") from error

    def __len__(self) -> int:
        return len(self._rows)

    def record(self, place: int) -> dict[str, Any]:
        """One row as it is stored."""
        return dict(self._rows[place])

    def brief(self, place: int) -> dict[str, Any]:
        """One row without its hashes, log-probs and counts, its texts as one."""
        row = {name: value for name, value in self._rows[place].items() if name not in LONG}
        return {name: " / ".join(map(str, value)) if isinstance(value, list) else value for name, value in row.items()}

    def lines(self, place: int, width: int) -> list[str]:
        """One row for a terminal."""
        row = self._rows[place]
        facts = [f"{name} {json.dumps(value, ensure_ascii=False)}" for name, value in row.items() if name not in TEXTS]
        lines = text.wrap(f"{self.ref}   ", [f"row {place + 1:,} of {len(self):,}", *facts], width, "   ")
        for name in TEXTS:
            value = row.get(name)
            for said in value if isinstance(value, list) else [value] if value else []:
                lines += [name, *text.fold(str(said), width)]
        return lines
