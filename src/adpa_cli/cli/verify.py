"""`adpa verify`."""

from __future__ import annotations

from typing import Annotated

import typer


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
    from adpa_cli.cli.look import out
    from adpa_cli.cli.repair import advice, damaged_rows, mend
    from adpa_cli.cli.streams import GLOBALS, dashes
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
