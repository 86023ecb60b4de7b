"""What `adpa show` prints: the store, one artifact, what differs between several, single rows, or a recipe."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console.streams import needed, out, terminal_width

if TYPE_CHECKING:
    from adpa_cli.store.manifest import Manifest
    from adpa_cli.store.store import Store


def show_all(store: Store, whole: bool) -> None:
    """The list of the store; the `whole` of it has rehearsals, evaluations and old work too."""
    from adpa_cli.report import listing

    seen = listing.collect(store)
    out(
        lambda: listing.screen(seen, terminal_width(), time.time(), whole),
        lambda: listing.tsv(seen, whole),
        lambda: listing.record(seen),
    )


def show_one(store: Store, manifest: Manifest) -> None:
    """The page of an artifact."""
    from adpa_cli.report import page

    seen = page.collect(store, manifest)
    out(lambda: page.screen(seen, terminal_width(), time.time()), lambda: page.tsv(seen), lambda: page.record(seen))


def show_several(store: Store, manifests: Sequence[Manifest]) -> None:
    """What differs between artifacts."""
    from adpa_cli.report import compare

    refs = [manifest.ref for manifest in manifests]
    seen = compare.collect(store, manifests)
    out(
        lambda: compare.screen(seen, refs, terminal_width()),
        lambda: compare.tsv(seen, refs),
        lambda: compare.record(seen, refs),
    )


def show_row(store: Store, manifest: Manifest, index: int) -> None:
    """Row `index` of an artifact, from 1."""
    from adpa_cli.report import rows as found

    out(
        lambda: found.row_screen(store, manifest, index, terminal_width()),
        lambda: found.row_tsv(store, manifest, index),
        lambda: found.row_record(store, manifest, index),
    )


def show_rows(store: Store, manifest: Manifest, count: int) -> None:
    """The first `count` rows of an artifact, a line each."""
    from adpa_cli.report import rows as found

    out(
        lambda: found.first_screen(store, manifest, count, terminal_width()),
        lambda: found.first_tsv(store, manifest, count),
        lambda: found.first_records(store, manifest, count),
    )


def show_recipe(store: Store, manifest: Manifest) -> None:
    """The TOML that makes an artifact again."""
    from adpa_cli.cli.recipes import recorded as remade

    found = remade.recipe_of(store, manifest)
    text = remade.toml(found, manifest)
    out(lambda: text, lambda: text, lambda: remade.record(found, manifest))


def show_fidelity(store: Store, manifest: Manifest, teacher: str | None, count: int | None) -> None:
    """Print what a signal keeps; with a `teacher` also how far it is from it on `count` answers."""
    from adpa_cli.report import signal_rows as report
    from adpa_cli.store.build import plain

    found = report.collect(store, manifest)
    if teacher is not None:
        found["measured"] = _measured(store, manifest, needed("--teacher", teacher), count)
    width = terminal_width()
    out(lambda: report.screen(found, width), lambda: report.tsv(found), lambda: plain(found))


def _measured(store: Store, manifest: Manifest, teacher: str, count: int | None) -> dict[str, Any]:
    from adpa_cli.cli.console.make import computing
    from adpa_cli.planning.resolve_inputs import Names
    from adpa_cli.running.fidelity import ANSWERS, measure

    with computing(store) as monitor, tempfile.TemporaryDirectory(prefix="adpa-fidelity-") as work:
        number = ANSWERS if count is None else count
        return measure(Names(store), manifest, {"aligned": teacher}, number, Path(work), monitor)


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
    from adpa_cli.cli.console.streams import GLOBALS, dashes
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
        show_fidelity(store, found[0], teacher, count)
    elif recipe:
        show_recipe(store, found[0])
    elif row is not None:
        show_row(store, found[0], row)
    elif count is not None:
        show_rows(store, found[0], count)
    elif len(found) > 1:
        show_several(store, found)
    elif found:
        show_one(store, found[0])
    else:
        show_all(store, everything)


COMMAND = Command("show", "Look", 1, show)
