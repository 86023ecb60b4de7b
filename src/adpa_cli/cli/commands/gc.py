"""`adpa gc`: removal of what nothing needs, and the screen that shows it first."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console import options as opt
from adpa_cli.cli.console.streams import GLOBALS, artifacts, can_ask, confirm, out, terminal_width
from adpa_cli.errors import UsageError
from adpa_cli.report import text

if TYPE_CHECKING:
    from adpa_cli.store.gc import Item, Sweep

MOST_KEPT = 12


def gc(
    refs: Annotated[list[str] | None, opt.argument("REF…", "Keep these too; - reads stdin.")] = None,
    days: Annotated[float, opt.option("--days", help="Keep what is younger.", metavar="N", min=0)] = 14,
    dry_run: Annotated[bool, opt.option("--dry-run", "-n", help="Only show what would go.")] = False,
    yes: Annotated[bool, opt.option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove what no tag, finished result or recent work needs, after showing it.

    Finished results are what distill and eval made. Rehearsals go after a day, unfinished work after --days, and so do
    tables of rows in the cache ($ADPA_CACHE). Never what a command at work is building or using.

    adpa gc · adpa gc best --days 3 · adpa gc -n
    """
    from adpa_cli import stages
    from adpa_cli.data.tables import remove_unused
    from adpa_cli.store import gc as collector

    asking = not (dry_run or yes)
    if asking and not can_ask():
        raise UsageError("gc deletes, and there is no terminal to ask at", "look with adpa gc -n, then adpa gc --yes")
    store, manifests = artifacts(refs)
    results = [stage.name for stage in stages.every().values() if stage.is_result]
    keep = collector.Keep(results, [manifest.id for manifest in manifests], days)
    sweep = collector.survey(store, keep)
    if not dry_run and not asking:
        sweep = replace(sweep, removed=collector.collect(store, sweep, keep, GLOBALS.command))
    out(lambda: screen(sweep, terminal_width()), lambda: tsv(sweep), lambda: record(sweep))
    if asking and sweep.removed:
        if confirm(f"Delete what goes ({_size(sweep.removed)})?", default=False):
            sweep = replace(sweep, removed=collector.collect(store, sweep, keep, GLOBALS.command))
        else:
            dry_run = True
    freed = 0 if dry_run else remove_unused(days)
    if not (dry_run or GLOBALS.quiet):
        rows = f"; tables of rows: {text.human_size(freed)}" if freed else ""
        sys.stderr.write(f"removed {len(sweep.removed)}, {_size(sweep.removed)} free again{rows}\n")


def screen(sweep: Sweep, width: int) -> str:
    """What stays, cut short, and what goes, whole."""
    lines = [f"stays  {_total(sweep.kept)}", *_table(sweep.kept[:MOST_KEPT], width)]
    if len(sweep.kept) > MOST_KEPT:
        lines.append(f"… {len(sweep.kept) - MOST_KEPT} more (adpa gc -n | grep ^stays)")
    lines += [f"goes   {_total(sweep.removed)}", *_table(sweep.removed, width)]
    return "\n".join(text.cut(line, width) for line in lines) + "\n"


def _size(items: Sequence[Item]) -> str:
    return text.human_size(sum(item.size for item in items))


def _total(items: Sequence[Item]) -> str:
    return f"{len(items)} artifact{'s' * (len(items) != 1)}, {_size(items)}" if items else "nothing"


def _table(items: Sequence[Item], width: int) -> list[str]:
    now = time.time()
    rows = [(f"  {i.ref}", i.what, text.human_size(i.size), text.human_age(now - i.at), i.why) for i in items]
    lines = text.table(("", "", "", "", ""), rows, width, flexible=1, expendable=(1, 3), right=(2,))
    return lines[1:] if items else []


def tsv(sweep: Sweep) -> str:
    """(stays|goes, kind, reference, bytes, ISO time, why) a line, uncut."""
    from adpa_cli.store.manifest import utc

    return text.tsv((state, i.kind, i.ref, i.size, utc(i.at), i.why) for state, i in _items(sweep))


def record(sweep: Sweep) -> dict[str, list[dict[str, Any]]]:
    """The same as JSON."""
    from adpa_cli.store.manifest import utc

    items: dict[str, list[dict[str, Any]]] = {"goes": [], "stays": []}
    for state, i in _items(sweep):
        entry = {"id": i.ref, "kind": i.kind, "what": i.what, "bytes": i.size, "at": utc(i.at), "why": i.why}
        items[state].append(entry)
    return items


def _items(sweep: Sweep) -> list[tuple[str, Item]]:
    return [("goes", item) for item in sweep.removed] + [("stays", item) for item in sweep.kept]


COMMAND = Command("gc", "Keep", 3, gc)
