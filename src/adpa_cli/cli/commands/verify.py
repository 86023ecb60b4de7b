"""`adpa verify --repair`: which damage can be mended, and what is said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adpa_cli.cli.commands import Command
from adpa_cli.errors import Corrupt

if TYPE_CHECKING:
    from adpa_cli.store.manifest import Manifest
    from adpa_cli.store.store import Store
    from adpa_cli.store.verify import Damage


def damaged_rows(path: Path) -> list[str]:
    """The rows of a damaged signal shard whose bytes are bad, counted from 1."""
    from adpa_cli.signal import Shard
    from adpa_cli.signal.stored_frames import damage

    try:
        bad, keys = damage(path), Shard(path, partial=True).keys
    except Corrupt as error:
        return [f"all rows: {error.message.rpartition(': ')[2]}"]
    return [f"row {row + 1} ({keys[row].example_id} {keys[row].part})" for row in bad]


def advice(damages: Mapping[str, Sequence[Damage]], made: Sequence[Manifest]) -> str:
    """What to do about damaged artifacts: repair signals, make the others again."""
    from adpa_cli.running.repair import signal_files

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
    from adpa_cli.cli.console.make import computing
    from adpa_cli.cli.console.streams import GLOBALS
    from adpa_cli.planning.resolve_inputs import Names
    from adpa_cli.running.repair import repair, signal_files

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


def verify(
    refs: Annotated[
        list[str] | None,
        typer.Argument(metavar="REF…", help="Artifacts; none checks all; - reads stdin.", show_default=False),
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Compute damaged rows of signals again.", show_default=False)
    ] = False,
    teacher: Annotated[
        str | None,
        typer.Option("--teacher", help="Where the recorded teacher is.", metavar="MODEL", show_default="looked for"),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option("--reference", help="Where its reference is.", metavar="MODEL", show_default="looked for"),
    ] = None,
) -> None:
    """Rehash every file and name what is damaged: the file, and for signals the row.

    adpa verify · adpa verify best · adpa verify 0d9e --repair
    """
    from adpa_cli.cli.console.streams import GLOBALS, dashes, out
    from adpa_cli.errors import Corrupt, UsageError
    from adpa_cli.store import verify as checks
    from adpa_cli.store.store import Store

    if repair and not refs:
        raise UsageError("--repair needs to be told of what", "name it: adpa verify REF --repair")
    if not repair and (teacher or reference):
        raise UsageError("--teacher and --reference are for --repair", "add --repair, or leave them out")
    store = Store.find(GLOBALS.store)
    found = [store.resolve(ref) for ref in dashes({"REF": list(refs)})["REF"]] if refs else store.artifacts()
    damages = {manifest.ref: checks.verify(store, manifest, damaged_rows) for manifest in found}
    said = mend(store, damages, found, {"aligned": teacher, "reference": reference}) if repair else {}
    for ref in said:
        damages[ref] = checks.verify(store, store.resolve(ref), damaged_rows)
    record = {ref: [vars(damage) for damage in damaged] for ref, damaged in damages.items()}
    if bad := {ref: damaged for ref, damaged in damages.items() if damaged}:
        lines = [
            f"  {ref}\t{damage.file}\t{damage.problem}\t{' '.join(damage.rows)}".rstrip()
            for ref, damaged in bad.items() for damage in damaged
        ]  # fmt: skip
        raise Corrupt(
            "\n".join([f"{len(bad)} of {len(found)} artifacts are damaged", *lines]), advice(damages, found),
            {"damage": {ref: record[ref] for ref in bad}},
        )  # fmt: skip
    text = "\n".join(f"{ref}\trepaired\t{said[ref]}" if ref in said else f"{ref}\twhole" for ref in damages)
    out(lambda: text.expandtabs(30), lambda: text, lambda: record)


COMMAND = Command("verify", "Keep", 2, verify)
