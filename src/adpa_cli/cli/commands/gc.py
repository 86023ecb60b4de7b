"""`adpa gc`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adpa_cli.cli.commands import Command

if TYPE_CHECKING:
    from adpa_cli.store.gc import Item, Sweep

MOST_KEPT = 12


def gc(
    refs: Annotated[
        list[str] | None,
        typer.Argument(metavar="REF…", help="Keep these too; - reads stdin.", show_default=False),
    ] = None,
    days: Annotated[float, typer.Option("--days", help="Keep what is younger.", metavar="N", min=0)] = 14,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Only show what would go.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove what no tag, finished result or recent work needs, after showing it.

    Finished results are what distill and eval made. Rehearsals go after a day, unfinished work after --days. Never what
    a command at work is building or using.

    adpa gc · adpa gc best --days 3 · adpa gc -n
    """
    from dataclasses import replace

    from adpa_cli import stages
    from adpa_cli.cli.console.streams import GLOBALS, can_ask, confirm, dashes, out, terminal_width
    from adpa_cli.errors import UsageError
    from adpa_cli.report.text import human_size
    from adpa_cli.store import gc as collector
    from adpa_cli.store.store import Store

    asking = not (dry_run or yes)
    if asking and not can_ask():
        raise UsageError("gc deletes, and there is no terminal to ask at", "look with adpa gc -n, then adpa gc --yes")
    store = Store.find(GLOBALS.store)
    named = [store.resolve(ref).id for ref in dashes({"REF": list(refs or ())})["REF"]]
    results = [stage.name for stage in stages.every().values() if stage.is_result]
    keep = collector.Keep(results, named, days)
    sweep = collector.survey(store, keep)
    if not dry_run and not asking:
        sweep = replace(sweep, removed=collector.collect(store, sweep, keep, GLOBALS.command))
    out(lambda: screen(sweep, terminal_width()), lambda: tsv(sweep), lambda: record(sweep))
    if asking and sweep.removed:
        size = human_size(sum(item.size for item in sweep.removed))
        if confirm(f"Delete what goes ({size})?", default=False):
            sweep = replace(sweep, removed=collector.collect(store, sweep, keep, GLOBALS.command))
        else:
            dry_run = True
    if not (dry_run or GLOBALS.quiet):
        size = human_size(sum(item.size for item in sweep.removed))
        sys.stderr.write(f"removed {len(sweep.removed)}, {size} free again\n")


def screen(sweep: Sweep, width: int) -> str:
    """What stays, cut short, and what goes, whole."""
    from adpa_cli.report import text

    lines = [f"stays  {_total(sweep.kept)}", *_table(sweep.kept[:MOST_KEPT], width)]
    if len(sweep.kept) > MOST_KEPT:
        lines.append(f"… {len(sweep.kept) - MOST_KEPT} more (adpa gc -n | grep ^stays)")
    lines += [f"goes   {_total(sweep.removed)}", *_table(sweep.removed, width)]
    return "\n".join(text.cut(line, width) for line in lines) + "\n"


def _total(items: Sequence[Item]) -> str:
    from adpa_cli.report import text

    size = text.human_size(sum(item.size for item in items))
    return f"{len(items)} artifact{'s' * (len(items) != 1)}, {size}" if items else "nothing"


def _table(items: Sequence[Item], width: int) -> list[str]:
    import time

    from adpa_cli.report import text

    now = time.time()
    rows = [
        (f"  {i.ref}", i.what, text.human_size(i.size), text.human_age(now - i.at), i.why) for i in items
    ]  # fmt: skip
    lines = text.table(("", "", "", "", ""), rows, width, flexible=1, expendable=(1, 3), right=(2,))
    return lines[1:] if items else []


def tsv(sweep: Sweep) -> str:
    """(stays|goes, kind, reference, bytes, ISO time, why) a line, uncut."""
    from adpa_cli.report import text
    from adpa_cli.store.manifest import utc

    return text.tsv((go, i.kind, i.ref, i.size, utc(i.at), i.why) for go, i in _both(sweep))


def record(sweep: Sweep) -> dict[str, list[dict[str, Any]]]:
    """The same as JSON."""
    from adpa_cli.store.manifest import utc

    found: dict[str, list[dict[str, Any]]] = {"goes": [], "stays": []}
    for go, i in _both(sweep):
        entry = {"id": i.ref, "kind": i.kind, "what": i.what, "bytes": i.size, "at": utc(i.at), "why": i.why}
        found[go].append(entry)
    return found


def _both(sweep: Sweep) -> list[tuple[str, Item]]:
    return [("goes", item) for item in sweep.removed] + [("stays", item) for item in sweep.kept]


COMMAND = Command("gc", "Keep", 3, gc)
