"""Rows of `eval` artifacts: the margin of every pair, then the reward of every prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adpa_cli.errors import Corrupt
from adpa_cli.report import text
from adpa_cli.report.row_answers import dialogue, lines_of, parent
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

FILE_NAME = "scores.json"


class Measured:
    """What an eval artifact measured, row by row. Raises Corrupt when its file cannot be read."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self.ref = manifest.ref
        self._store, self._manifest = store, manifest
        self._rows = _read(store.folder(manifest.ref))

    def __len__(self) -> int:
        return len(self._rows)

    def record(self, place: int) -> dict[str, Any]:
        """A "pair" with its `margin` in nats per token, or a "prompt" with `reward` and the opponent's (`against`)."""
        return dict(self._rows[place])

    brief = record

    def lines(self, place: int, width: int) -> list[str]:
        """One row for a terminal; a prompt with the answer that was judged, while its rollout is in the store."""
        row = self._rows[place]
        head = [f"row {place + 1:,} of {len(self):,}", f"{row['kind']} {row['id']}"]
        lines = text.wrap(f"{self.ref}   ", head, width, "   ")
        names = [name for name in row if name not in ("kind", "id")]
        lines += text.wrap("measured", [f"{name} {_signed(row[name])}" for name in names], width, "   ")
        answers = parent(self._store, self._manifest) if row["kind"] == "prompt" else None
        at = answers.find(row["id"]) if answers else None
        if answers is None or at is None:
            return lines
        return [*lines, *text.wrap("from", [f"{answers.ref}#{at + 1}"], width), *dialogue(answers.record(at), width)]

    def tsv(self, place: int) -> str:
        """One row as a line under its header."""
        return lines_of([self.record(place)])


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.4f}"


def _read(folder: Path) -> list[dict[str, Any]]:
    try:
        found = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
        against = found.get("against", {})
        rows = [{"kind": "pair", "id": key, "margin": float(value)} for key, value in found["margins"].items()]
        for key, value in found.get("rewards", {}).items():
            opponent = {"against": float(against[key])} if key in against else {}
            rows.append({"kind": "prompt", "id": key, "reward": float(value), **opponent})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        hint = f"adpa verify {folder.parent.name}/{folder.name}"
        raise Corrupt(f"{folder / FILE_NAME} cannot be read: {error}", hint) from error
    return rows
