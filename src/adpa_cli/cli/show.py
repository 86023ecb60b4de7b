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
        typer.Option(
            "--rows", help="The first N rows; with --teacher, answers to compare.", metavar="N", show_default=False
        ),
    ] = None,
) -> None:
    """Show what is in the store: the list, one artifact, what differs between several, or one row.

    adpa show · adpa show best · adpa show best other · adpa show cache-teacher/0d9e --row 17
    """
    from adpa_cli.cli import look_artifacts as look
    from adpa_cli.cli.streams import GLOBALS, dashes
    from adpa_cli.errors import UsageError
    from adpa_cli.store.store import Store

    store = Store.find(GLOBALS.store)
    found = [store.resolve(ref) for ref in dashes({"REF": list(refs or ())})["REF"]]
    if teacher is not None and not fidelity:
        raise UsageError("--teacher compares a signal with its teacher", "adpa show REF --fidelity --teacher recorded")
    listed = count is not None and teacher is None
    views = {"--fidelity": fidelity, "--recipe": recipe, "--row N": row is not None, "--rows N": listed}
    asked = [name for name, given in views.items() if given]
    if len(asked) > 1:
        raise UsageError(f"{' and '.join(asked)} are not shown together", f"adpa show REF {asked[0]}")
    if asked and len(found) != 1:
        raise UsageError(f"{asked[0]} is of one artifact", f"adpa show REF {asked[0]}")
    if fidelity:
        from adpa_cli.cli.look_fidelity import fidelity as look_at

        look_at(store, found[0], teacher, count)
    elif recipe:
        look.recipe(store, found[0])
    elif row is not None:
        look.row(store, found[0], row)
    elif count is not None:
        look.rows(store, found[0], count)
    elif len(found) > 1:
        look.several(store, found)
    elif found:
        look.one(store, found[0])
    else:
        look.everything(store, everything)
