"""`adpa plan`: what a making command would do, without doing it."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from adpa_cli.cli.commands import Command, makers
from adpa_cli.cli.console import options as opt
from adpa_cli.cli.console.options import FETCH

PASSED_ON = {"ignore_unknown_options": True, "allow_interspersed_args": False}
"""For the parser: everything after COMMAND belongs to it."""


def plan(
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="COMMAND…", help="A making command with its options [required].", show_default=False),
    ] = None,
    fetch: Annotated[bool, opt.option(FETCH, help="Download every model and data set of the plan.", panel="")] = False,
) -> opt.Request | None:
    """Show the plan of a making command: the same as that command with --dry-run.

    adpa plan distill --method adpa+ --student tiny
    adpa plan distill --method adpa+ --student llama-3.2-1b --fetch     for a machine without network
    """
    from adpa_cli.errors import UsageError

    typed = [word for word in words or () if word != FETCH]
    if not typed:
        raise UsageError("no command to plan", "adpa plan distill --method adpa+ --student tiny")
    fetching = fetch or FETCH in (words or ())
    if fetching and typed[0] == "run":
        raise UsageError("adpa run plans its cells one by one", "adpa plan COMMAND … --fetch for the command of a cell")
    request = _request(typed)
    if not isinstance(request, opt.Request):
        return None
    if fetching:
        fetch_all(request)
    return replace(request, options=replace(request.options, dry_run=True))


def _request(words: list[str]) -> object:
    """What the command was asked for; a command that carries out its own plan (`run`) has shown it already."""
    from adpa_cli.cli.console.app import run_words
    from adpa_cli.errors import UsageError

    if words[0] not in makers() and not words[0].startswith("-"):
        raise UsageError(f"{words[0]} makes nothing that could be planned", f"commands: {', '.join(makers())}")
    return run_words([*words, "--dry-run"])


def fetch_all(request: opt.Request) -> None:
    """Download what the hub has of the plan's inputs into the Hugging Face cache; the store keeps what they are."""
    from adpa_cli.cli.console.streams import GLOBALS, say
    from adpa_cli.hub import repository as hub
    from adpa_cli.planning.lineage import hub_files
    from adpa_cli.store.store import Store

    def note(text: str) -> None:
        if not GLOBALS.quiet:
            say(f"{text}\n")

    store = Store.find(GLOBALS.store, create=True)
    if store.created:
        note(f"created the store {store.root}")
    building = [node for node in request.plan(store).nodes(store) if store.get(node.label) is None]
    files = [*hub_files(building, "model"), *hub_files(building, "dataset")]
    hub.fetch(files, store.hash_cache, note)
    names = dict.fromkeys(file.repo for file in files)
    note(f"fetched: {', '.join(names)}" if names else "nothing to fetch: all of it is here")


COMMAND = Command("plan", "Look", 2, plan, PASSED_ON)
