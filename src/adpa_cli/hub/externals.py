"""The rows behind a data input, read once in a process."""

from __future__ import annotations

import functools
from collections.abc import Sequence

from adpa_cli.data.preferences import Dialogue, Loaded, Pair, load_dialogues, load_pairs
from adpa_cli.data.sources import Source, parse_source


@functools.lru_cache(maxsize=8)
def pairs_of(where: tuple[str, ...], split: str, limit: int | None, skip_bad_rows: bool) -> Loaded[Pair]:
    """Preference pairs, read once per process."""
    return load_pairs(open_sources(where), split, limit, skip_bad_rows)


@functools.lru_cache(maxsize=8)
def dialogues_of(where: tuple[str, ...], split: str, limit: int | None, skip_bad_rows: bool) -> Loaded[Dialogue]:
    """Dialogues, read once per process."""
    return load_dialogues(open_sources(where), split, limit, skip_bad_rows)


BUILTIN = "builtin:"

BUILTIN_DATA = ("tiny-sft", "tiny-pairs")


def open_sources(where: Sequence[str]) -> list[Source]:
    """The sources behind a data input, ready to be read."""
    opened: list[Source] = []
    for text in where:
        if text.startswith(BUILTIN):
            from adpa_cli.lab import world

            name = text.removeprefix(BUILTIN)
            rows_of = world.demonstrations if name == "tiny-sft" else world.preferences
            for split in ("train", "test"):
                opened.append(Source(name, "rows", split=split, rows=tuple(rows_of(split))))
        else:
            opened.append(parse_source(text))
    return opened
