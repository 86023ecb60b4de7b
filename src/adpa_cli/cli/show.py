"""`adpa show`: the store, one artifact, several side by side, or one row."""

from __future__ import annotations

from typing import Annotated

import typer


def show(
    refs: Annotated[
        list[str] | None,
        typer.Argument(metavar="REF…", help="Artifacts; none lists the store; - reads stdin.", show_default=False),
    ] = None,
    row: Annotated[
        int | None,
        typer.Option("--row", help="One row of rollouts or signals, from 1.", metavar="N", show_default=False),
    ] = None,
    recipe: Annotated[
        bool, typer.Option("--recipe", help="The TOML that makes it again: adpa run.", show_default=False)
    ] = False,
    everything: Annotated[bool, typer.Option("--all", help="List everything.", show_default=False)] = False,
    fidelity: Annotated[
        bool, typer.Option("--fidelity", help="What a signal keeps, and its bytes.", show_default=False)
    ] = False,
    teacher: Annotated[
        str | None,
        typer.Option(
            "--teacher", help="With --fidelity: compare with it; or `recorded`.", metavar="MODEL", show_default=False
        ),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option("--rows", help="With --teacher: answers to compare on.", metavar="N", show_default="8"),
    ] = None,
) -> None:
    """Show what is in the store: the list, one artifact, what differs between several, or one row.

    adpa show · adpa show best · adpa show best other · adpa show cache-teacher/0d9e --row 17
    """
    import time

    from adpa_cli.cli.look import out, terminal_width
    from adpa_cli.cli.streams import GLOBALS, dashes
    from adpa_cli.errors import UsageError
    from adpa_cli.report import compare, listing, page
    from adpa_cli.store.store import Store

    store = Store.find(GLOBALS.store)
    width, now = terminal_width(), time.time()
    found = [store.resolve(ref) for ref in dashes({"REF": list(refs or ())})["REF"]]
    if (teacher is not None and not fidelity) or (count is not None and teacher is None):
        raise UsageError(
            "--teacher and --rows compare a signal with its teacher", "adpa show REF --fidelity --teacher recorded"
        )
    if fidelity:
        from adpa_cli.cli.look_fidelity import fidelity as look_at

        if len(found) != 1 or row is not None or recipe:
            raise UsageError("--fidelity is of one signal", "adpa show REF --fidelity")
        look_at(store, found[0], teacher, count)
    elif recipe:
        from adpa_cli.cli import remade

        if len(found) != 1 or row is not None:
            raise UsageError("--recipe is of one artifact", "adpa show REF --recipe")
        again = remade.recipe_of(store, found[0])
        text = remade.toml(again, found[0])
        out(lambda: text, lambda: text, lambda: remade.record(again, found[0]))
    elif row is not None:
        from adpa_cli.report import rows

        if len(found) != 1:
            raise UsageError("--row shows a row of one artifact", "adpa show REF --row N")
        out(
            lambda: rows.row_screen(store, found[0], row, width), lambda: rows.row_tsv(store, found[0], row),
            lambda: rows.row_record(store, found[0], row),
        )  # fmt: skip
    elif not found:
        seen = listing.collect(store)
        out(
            lambda: listing.screen(seen, width, now, everything),
            lambda: listing.tsv(seen, everything),
            lambda: listing.record(seen),
        )
    elif len(found) == 1:
        one = page.collect(store, found[0])
        out(
            lambda: page.screen(one, width, now),
            lambda: page.tsv(one),
            lambda: page.record(one),
        )
    else:
        refs_found = [manifest.ref for manifest in found]
        differing = compare.collect(store, found)
        out(
            lambda: compare.screen(differing, refs_found, width), lambda: compare.tsv(differing, refs_found),
            lambda: compare.record(differing, refs_found),
        )  # fmt: skip
