"""`adpa verify --repair`: which damage can be mended, and what is said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from adpa_cli.errors import Corrupt
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store
from adpa_cli.store.verify import Damage


def damaged_rows(path: Path) -> list[str]:
    """The rows of a damaged signal shard whose bytes are bad, counted from 1."""
    from adpa_cli.signal import Shard
    from adpa_cli.signal.patch import damage

    try:
        bad, keys = damage(path), Shard(path, partial=True).keys
    except Corrupt as error:
        return [f"all rows: {error.message.rpartition(': ')[2]}"]
    return [f"row {row + 1} ({keys[row].example_id} {keys[row].part})" for row in bad]


def advice(damages: Mapping[str, Sequence[Damage]], made: Sequence[Manifest]) -> str:
    """What to do about damaged artifacts: repair signals, make the others again."""
    from adpa_cli.stages.repair import signal_files

    lines = []
    for manifest in made:
        files = [damage.file for damage in damages.get(manifest.ref, ())]
        if files and manifest.stage == "cache-teacher" and len(signal_files(files)) == len(files):
            lines.append(f"adpa verify {manifest.ref} --repair")
        elif files:
            lines.append(f"move the folder {manifest.ref} away, then: {manifest.made.get('command', 'make it again')}")
    return "\n or: ".join(lines[:5])


def mend(
    store: Store, damages: Mapping[str, Sequence[Damage]], made: Sequence[Manifest], given: Mapping[str, str | None]
) -> dict[str, str]:
    """Repair the damaged signals; by reference, what is said of each. Raises Corrupt when another file is damaged."""
    from adpa_cli.cli.make import computing
    from adpa_cli.cli.streams import GLOBALS
    from adpa_cli.stages.names import Names
    from adpa_cli.stages.repair import repair, signal_files

    found = {}
    for manifest in made:
        files = [damage.file for damage in damages[manifest.ref]]
        if not files:
            continue
        others = sorted(set(files) - set(signal_files(files)))
        if others or manifest.stage != "cache-teacher":
            raise Corrupt(
                f"{manifest.ref}: {', '.join(others or files)} cannot be computed again by itself",
                advice(damages, [manifest]),
            )
        with computing(store, int(manifest.made.get("threads", 0))) as monitor:
            record = repair(Names(store), manifest, files, given, GLOBALS.command, monitor)
        found[manifest.ref] = told(record)
    return found


def told(record: Mapping[str, object]) -> str:
    """A repair in one line."""
    count, compared = record["rows"], record["compared"]
    same = "the very bytes of before" if record.get("same_bytes") else "other bytes than before, within a step"
    if not record["rows"]:
        return "written again"
    return f"{count} rows computed again: {same}; {compared} undamaged rows compared"
