"""Rows of `rollout` and `eval` artifacts: a prompt with its answer, the margin of a pair, the reward of a prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from adpa_cli.data.examples import Pair
from adpa_cli.errors import AdpaError, Corrupt
from adpa_cli.hub.externals import pairs_of
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.report import text
from adpa_cli.stages.eval import SCORES
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

OLDER = {"margin": "margins", "reward": "rewards", "against": "against"}
"""The rows of an older version by their names here."""
_FIELDS = {"id", "prompt", "prompt_ids", "answer_ids", "text", "cut"}


class Answers:
    """The answers of a rollout artifact, in its order. Raises Corrupt when its table cannot be read."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self.ref = manifest.ref
        self._table = _read_answers(store.folder(manifest.ref))

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def record(self, place: int) -> dict[str, Any]:
        """One answer with its turns and token ids."""
        (row,) = self._table.slice(place, 1).to_pylist()
        return {
            "id": row["id"], "prompt": json.loads(row["prompt"]), "text": row["text"],
            "prompt_tokens": len(row["prompt_ids"]), "answer_tokens": len(row["answer_ids"]), "cut": row["cut"],
            "prompt_ids": row["prompt_ids"], "answer_ids": row["answer_ids"],
        }  # fmt: skip

    def brief(self, place: int) -> dict[str, Any]:
        """One answer without token ids."""
        return {key: value for key, value in self.record(place).items() if not key.endswith("_ids")}

    def lines(self, place: int, width: int) -> list[str]:
        """One answer for a terminal."""
        row = self.record(place)
        head = [f"row {place + 1:,} of {len(self):,}", f"id {row['id']}"]
        return [*text.wrap(f"{self.ref}   ", head, width, "   "), *dialogue(row, width)]

    @cached_property
    def ids(self) -> dict[str, int]:
        """The place of every answer by its id."""
        named = self._table.column("id").to_pylist()
        return {answer_id: place for place, answer_id in reversed(list(enumerate(named)))}

    def find(self, answer_id: str) -> int | None:
        """The place of an answer by its id."""
        return self.ids.get(answer_id)


def parent_answers(store: Store, manifest: Manifest, role: str = "rollouts") -> Answers | None:
    """The answers that an artifact was made from, or compared with, while their rollout is in the store."""
    digest = dict(manifest.parents()).get(role)
    rollout = store.get(digest) if digest else None
    return Answers(store, rollout) if rollout else None


def pair_of(store: Store, manifest: Manifest, name: str, split: str) -> Pair | None:
    """The preference pair with an id, of the data that an artifact read; None where they are not found any more.

    Nothing is downloaded.
    """
    import numpy as np

    content, spec = manifest.inputs.get("data"), manifest.spec
    facts: Any = manifest.sources.get(str(content))
    if not isinstance(content, str) or facts is None or "template" not in spec:
        return None
    try:
        data = Names(store).data_of(facts, content)
        if not data.is_here:
            return None
        pairs = pairs_of(data.where, split, spec.get("limit"), bool(spec.get("skip_bad_rows")), spec["template"]).items
    except (AdpaError, OSError):
        return None
    found = np.flatnonzero(pairs.values("id") == np.uint64(int(name, 16)))
    return pairs[int(found[0])] if found.size else None


def dialogue(row: Mapping[str, Any], width: int) -> list[str]:
    """Every turn of a prompt and the answer, folded to the width."""
    ended = "cut off at the limit" if row["cut"] else "ended by itself"
    counts = [f"prompt {row['prompt_tokens']:,} tokens", f"answer {row['answer_tokens']:,} tokens", ended]
    lines = text.wrap("", counts, width, ", ")
    lines[0] = lines[0].lstrip()
    for turn in row["prompt"]:
        lines += [turn["role"], *text.fold(turn["content"], width)]
    return [*lines, "answer", *text.fold(row["text"], width)]


def _read_answers(folder: Path) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        paths = sorted(folder.glob("rows-*.parquet"))
        table = pa.concat_tables([pq.ParquetFile(path).read(use_threads=False) for path in paths])
        if missing := sorted(_FIELDS.difference(table.column_names)):
            raise ValueError(f"there is no field {missing[0]}")
    except (OSError, ValueError, pa.ArrowException) as error:
        problem = str(error).partition("\n")[0]
        hint = f"adpa verify {folder.parent.name}/{folder.name}"
        raise Corrupt(f"{folder}: the rows cannot be read: {problem}", hint) from error
    return table


class Evaluated:
    """What an eval artifact measured, row by row. Raises Corrupt when its file cannot be read."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self.ref = manifest.ref
        self._store, self._manifest = store, manifest
        self._rows = _read_scores(store.folder(manifest.ref))

    def __len__(self) -> int:
        return len(self._rows)

    def record(self, place: int) -> dict[str, Any]:
        """A "pair" or a "prompt", with what it adds to each metric, and what else was measured of it by its name."""
        return dict(self._rows[place])

    brief = record

    def lines(self, place: int, width: int) -> list[str]:
        """One row for a terminal: what was measured, then a prompt with the answer and that of the opponent, or a pair,
        as far as they are still there."""
        row = self._rows[place]
        head = [f"row {place + 1:,} of {len(self):,}", f"{row['kind']} {row['id']}"]
        lines = text.wrap(f"{self.ref}   ", head, width, "   ")
        numbers = [f"{name} {value:+.4f}" for name, value in row.items() if name not in ("kind", "id")]
        lines += text.wrap("measured", numbers, width, "   ")
        lines += self._pair(row["id"], width) if row["kind"] == "pair" else []
        for role in ("rollouts", "against") if row["kind"] == "prompt" else ():
            answers = parent_answers(self._store, self._manifest, role)
            at = answers.find(row["id"]) if answers else None
            if answers is None or at is None:
                continue
            shown = answers.record(at)
            if role == "against":
                lines += [f"answer of {answers.ref}#{at + 1}, the opponent", *text.fold(shown["text"], width)]
            else:
                lines += [*text.wrap("from", [f"{answers.ref}#{at + 1}"], width), *dialogue(shown, width)]
        return lines

    def _pair(self, name: str, width: int) -> list[str]:
        """The prompt and both answers of a pair, while its data are where they were."""
        pair = pair_of(self._store, self._manifest, name, str(self._manifest.spec.get("split", "test")))
        if pair is None:
            return ["The pair is not shown: its data are not where they were."]
        turns = [(turn.role, turn.content) for turn in pair.prompt]
        turns += [("chosen", pair.chosen), ("rejected", pair.rejected)]
        return [line for role, content in turns for line in (role, *text.fold(content, width))]


def _read_scores(folder: Path) -> list[dict[str, Any]]:
    """The rows of an evaluation; those of an older version have no names of metrics."""
    try:
        kept = json.loads((folder / SCORES).read_text(encoding="utf-8"))
        numbers = kept["rows"] if "rows" in kept else {name: kept[old] for name, old in OLDER.items() if old in kept}
        pairs = kept.get("prompts", {}).keys() | numbers.get("margin", {}).keys()
        rows: dict[str, dict[str, Any]] = {}
        for name, values in numbers.items():
            for key, value in values.items():
                row = rows.setdefault(key, {"kind": "pair" if key in pairs else "prompt", "id": key})
                row[name] = float(value)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        hint = f"adpa verify {folder.parent.name}/{folder.name}"
        raise Corrupt(f"{folder / SCORES} cannot be read: {error}", hint) from error
    return list(rows.values())
