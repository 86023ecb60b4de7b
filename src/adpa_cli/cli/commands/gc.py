"""`adpa gc`: removal of what nothing needs, and the screen that shows it first."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console import options as opt
from adpa_cli.cli.console.streams import GLOBALS, artifacts, can_ask, confirm, out, say, terminal_width
from adpa_cli.errors import UsageError
from adpa_cli.report import text

if TYPE_CHECKING:
    from adpa_cli.store.gc import Item, Sweep

MOST_KEPT = 12


def gc(
    refs: Annotated[
        list[str] | None,
        typer.Argument(metavar="REF…", help="Refused: use --keep or --remove to say which is meant.", hidden=True),
    ] = None,
    kept: Annotated[
        list[str] | None,
        opt.option(
            "--keep", help="Keep this artifact too, and all that it was made from; may be repeated.", metavar="REF"
        ),
    ] = None,
    remove: Annotated[
        list[str] | None,
        opt.option(
            "--remove", help="Remove only this artifact, its evaluations, and what only it needs.", metavar="REF"
        ),
    ] = None,
    days: Annotated[
        float, opt.option("--days", help="Keep what was made in the last N days.", metavar="N", min=0)
    ] = 14,
    dry_run: Annotated[bool, opt.option("--dry-run", "-n", help="Only show what would be removed.")] = False,
    yes: Annotated[bool, opt.option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Free disk space: remove artifacts that no tag, finished result or recent work needs, after showing them.

    Finished results are what adpa distill and adpa eval made. Rehearsals (--smoke) are removed after a day; unfinished
    work and cached tables of rows ($ADPA_CACHE) after --days. Nothing that a running command uses is removed.

    adpa gc -n                     show what would be removed
    adpa gc --keep 9a1b --days 3   keep one artifact, and what is younger than 3 days
    adpa gc --remove 51c0          remove one artifact, with all that only it needs
    """
    from adpa_cli import stages
    from adpa_cli.data.tables import remove_unused
    from adpa_cli.store import gc as collector

    if refs:
        raise UsageError(
            f"adpa gc {' '.join(refs)} does not say whether to keep or to remove it",
            f"adpa gc --keep {refs[0]}, or adpa gc --remove {refs[0]}",
        )
    asking = not (dry_run or yes)
    if asking and not can_ask():
        raise UsageError(
            "adpa gc asks before it deletes, and there is no terminal to ask at",
            "look first with adpa gc -n, then type adpa gc --yes",
        )
    store, named = artifacts(kept)
    _, unwanted = artifacts(remove)
    every = stages.every().values()
    rules = collector.Keep(
        [stage.name for stage in every if stage.is_result],
        [manifest.id for manifest in named],
        days,
        [manifest.id for manifest in unwanted],
        [stage.name for stage in every if stage.makes in ("model", "reward model", "signal")],
    )
    sweep = collector.survey(store, rules)
    if not dry_run and not asking:
        sweep = replace(sweep, removed=collector.collect(store, sweep, rules, GLOBALS.command))
    out(lambda: screen(sweep, terminal_width()), lambda: tsv(sweep), lambda: record(sweep))
    if asking and sweep.removed:
        if confirm(f"Delete {_total(sweep.removed)}?", default=False):
            sweep = replace(sweep, removed=collector.collect(store, sweep, rules, GLOBALS.command))
        else:
            say("Nothing was removed.\n")
            dry_run = True
    freed = 0 if dry_run or remove else remove_unused(days)
    if not (dry_run or GLOBALS.quiet):
        rows = f", and {text.human_size(freed)} of cached tables of rows" if freed else ""
        say(f"Removed {_total(sweep.removed)}{rows}.\n")


def screen(sweep: Sweep, width: int) -> str:
    """What is kept, the first of it, and all that is to be removed."""
    lines = [f"kept  {_total(sweep.kept)}", *_table(sweep.kept[:MOST_KEPT], width)]
    if len(sweep.kept) > MOST_KEPT:
        lines.append(f"… {len(sweep.kept) - MOST_KEPT} more (adpa gc -n | grep ^stays lists all)")
    lines += [f"to be removed  {_total(sweep.removed)}", *_table(sweep.removed, width)]
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


COMMAND = Command("gc", "Keep", 3, gc, also=("rm", "remove", "delete", "del", "prune", "clean", "cleanup"))
