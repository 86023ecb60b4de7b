"""`adpa verify`: which files and signal rows are damaged, and the repair of signals."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console import options as opt
from adpa_cli.cli.console.streams import GLOBALS, artifacts, command_line, out
from adpa_cli.errors import AdpaError, Corrupt, UsageError

if TYPE_CHECKING:
    from adpa_cli.store.manifest import Manifest
    from adpa_cli.store.store import Damage, Store


BASE = "base"
"""In the place of a file: the model that an adapter was trained on."""


def verify(
    refs: Annotated[
        list[str] | None, opt.argument("REF…", "Artifacts or tags; without any, all are checked; - reads stdin.")
    ] = None,
    repair: Annotated[bool, opt.option("--repair", help="Compute the damaged rows of signals again.")] = False,
    teacher: Annotated[
        str | None,
        opt.teacher("--teacher", help="With --repair: the recorded teacher, where it is not found [looked for]."),
    ] = None,
    reference: Annotated[
        str | None,
        opt.teacher("--reference", help="With --repair: the recorded reference, where it is not found [looked for]."),
    ] = None,
) -> None:
    """Check the stored files against their checksums, and name what is damaged.

    Of signals the damaged rows are named, of adapters a base model that is missing or has changed.

    adpa verify · adpa verify best · adpa verify 0d9e --repair
    """
    from adpa_cli.store import store as checks

    if repair and not refs:
        raise UsageError(
            "--repair needs the artifact to repair", "adpa verify REF --repair; adpa verify names what is damaged"
        )
    if not repair and (teacher or reference):
        raise UsageError("--teacher and --reference have no effect without --repair", "add --repair, or leave them out")
    store, manifests = artifacts(refs)
    manifests = manifests if refs else store.artifacts()
    damages = {manifest.ref: [*checks.verify(store, manifest, damaged_rows)] for manifest in manifests}
    for ref, damaged in damages.items():
        if not damaged and (error := missing_base(store, ref)):
            damaged.append(checks.Damage(BASE, error.message))
    repairs = mend(store, damages, manifests, {"aligned": teacher, "reference": reference}) if repair else {}
    for ref in repairs:
        damages[ref] = checks.verify(store, store.resolve(ref), damaged_rows)
    record = {ref: [vars(damage) for damage in damaged] for ref, damaged in damages.items()}
    if bad := {ref: damaged for ref, damaged in damages.items() if damaged}:
        lines = [
            f"  {ref}\t{damage.file}\t{damage.problem}\t{' '.join(damage.rows)}".rstrip()
            for ref, damaged in bad.items() for damage in damaged
        ]  # fmt: skip
        raise Corrupt(
            "\n".join([f"{len(bad)} of {len(manifests)} artifacts are damaged", *lines]),
            advice(store, damages, manifests),
            {"damage": {ref: record[ref] for ref in bad}},
        )  # fmt: skip
    text = "\n".join(f"{ref}\trepaired\t{repairs[ref]}" if ref in repairs else f"{ref}\twhole" for ref in damages)
    out(lambda: text.expandtabs(30), lambda: text, lambda: record)


def missing_base(store: Store, ref: str) -> AdpaError | None:
    """Why the base of an adapter cannot be used; None where it can, and for what is none."""
    from adpa_cli.hub.adapter_folder import AdapterFolder

    try:
        adapter = AdapterFolder.of(store.folder(ref))
        _ = adapter.base if adapter else None
    except AdpaError as error:
        return error
    return None


def damaged_rows(path: Path) -> list[str]:
    """The rows of a damaged signal shard whose bytes are bad, counted from 1."""
    from adpa_cli.signal.shard import Shard
    from adpa_cli.signal.stored_frames import damage

    try:
        bad, keys = damage(path), Shard(path, partial=True).keys
    except Corrupt as error:
        return [f"all rows: {error.message.rpartition(': ')[2]}"]
    return [f"row {row + 1} ({keys[row].example_id} {keys[row].part})" for row in bad]


def advice(store: Store, damages: Mapping[str, Sequence[Damage]], manifests: Sequence[Manifest]) -> str:
    """What to do about damaged artifacts: repair signals, bring back the bases of adapters, make the others again."""
    from adpa_cli.running.repair import signal_files

    lines = []
    for manifest in manifests:
        files = [damage.file for damage in damages.get(manifest.ref, ())]
        if files == [BASE] and (error := missing_base(store, manifest.ref)):
            lines.append(error.hint)
        elif files and _is_signal(manifest) and len(signal_files(files)) == len(files):
            lines.append(_in_this_store(f"adpa verify {manifest.ref} --repair"))
        elif files:
            again = _in_this_store(str(manifest.made.get("command", "adpa …")))
            lines.append(f"move the folder {store.folder(manifest.ref)} away, then: {again}")
    return "\n or: ".join(lines[:5])


def _in_this_store(command: str) -> str:
    """A command line for the store that is checked, which may have moved since it was typed."""
    words = shlex.split(command)[1:]
    pairs = zip(["", *words], words, strict=False)
    own = [word for before, word in pairs if "--store" not in (before, word.partition("=")[0])]
    return command_line([*own, "--store", str(GLOBALS.store)] if GLOBALS.store else own)


def mend(
    store: Store,
    damages: Mapping[str, Sequence[Damage]],
    manifests: Sequence[Manifest],
    teachers: Mapping[str, str | None],
) -> dict[str, str]:
    """Repair the damaged signals; by reference, each repair in a line. Raises Corrupt when another file is damaged."""
    from adpa_cli.cli.console.make import computing
    from adpa_cli.planning.resolve_inputs import Names
    from adpa_cli.running.repair import repair, signal_files

    repairs = {}
    for manifest in manifests:
        files = [damage.file for damage in damages[manifest.ref]]
        if not files:
            continue
        others = sorted(set(files) - set(signal_files(files)))
        if others or not _is_signal(manifest):
            raise Corrupt(
                f"{manifest.ref}: {', '.join(others or files)} cannot be repaired; only the rows of a signal can",
                advice(store, damages, [manifest]),
            )
        with computing(store, int(manifest.made.get("threads", 0))) as monitor:
            record = repair(Names(store), manifest, files, teachers, GLOBALS.command, monitor)
        repairs[manifest.ref] = _in_a_line(record)
    return repairs


def _is_signal(manifest: Manifest) -> bool:
    from adpa_cli.stages import product_of

    return product_of(manifest.stage) == "signal"


def _in_a_line(repair: Mapping[str, object]) -> str:
    if not repair["rows"]:
        return "written again"
    same = (
        "the same bytes as before"
        if repair.get("same_bytes")
        else "not the same bytes as before, but within the stored resolution"
    )
    return f"{repair['rows']} rows computed again: {same}; {repair['compared']} undamaged rows compared"


COMMAND = Command("verify", "Keep", 2, verify, also=("check", "fsck", "validate", "repair"))
