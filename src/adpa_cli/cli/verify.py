"""`adpa verify`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def verify(
    refs: Annotated[
        list[str] | None,
        typer.Argument(metavar="REF…", help="Artifacts; none checks all; - reads stdin.", show_default=False),
    ] = None,
) -> None:
    """Rehash every file and name what is damaged: the file, and for signals the row.

    adpa verify · adpa verify best
    """
    from adpa_cli.cli.look import out
    from adpa_cli.cli.streams import GLOBALS, dashes
    from adpa_cli.errors import Corrupt
    from adpa_cli.store import verify as checks
    from adpa_cli.store.store import Store

    store = Store.find(GLOBALS.store)
    found = [store.resolve(ref) for ref in dashes({"REF": list(refs)})["REF"]] if refs else store.artifacts()
    damages = {manifest.ref: checks.verify(store, manifest, damaged_rows) for manifest in found}
    lines = []
    for ref, damaged in damages.items():
        lines += [f"{ref}\t{d.file}\t{d.problem}\t{' '.join(d.rows)}".rstrip() for d in damaged] or [f"{ref}\twhole"]
    record = {ref: [vars(damage) for damage in damaged] for ref, damaged in damages.items()}
    if bad := [line for line in lines if not line.endswith("\twhole")]:
        count = sum(map(bool, damages.values()))
        raise Corrupt(
            "\n".join([f"{count} of {len(found)} artifacts are damaged", *(f"  {line}" for line in bad)]),
            "move a damaged folder away and repeat the command that made it (adpa show REF names it)",
            {"damage": {ref: damaged for ref, damaged in record.items() if damaged}},
        )
    text = "\n".join(lines)
    out(lambda: text.expandtabs(30), lambda: text, lambda: record)


def damaged_rows(path: Path) -> list[str]:
    """The rows of a damaged signal shard whose bytes are bad."""
    from adpa_cli.errors import Corrupt
    from adpa_cli.signal import Shard

    try:
        return [f"row {index + 1} ({key.example_id} {key.part})" for index, key, _ in Shard(path).verify()]
    except Corrupt as error:
        return [error.message]
