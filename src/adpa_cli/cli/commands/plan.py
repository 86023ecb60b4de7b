"""`adpa plan`: what a making command would do, without doing it, and the download of what it reads."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from adpa_cli.cli.commands import Command, makers
from adpa_cli.cli.console import options as opt
from adpa_cli.cli.console.options import FETCH
from adpa_cli.cli.console.streams import GLOBALS, say
from adpa_cli.errors import UsageError

PASSED_ON = {"ignore_unknown_options": True, "allow_interspersed_args": False}
"""For the parser: everything after COMMAND belongs to it."""


def plan(
    words: Annotated[
        list[str] | None, opt.argument("COMMAND…", "The command to plan, with its options [required].")
    ] = None,
    fetch: Annotated[bool, opt.option(FETCH, help="Download every model and data set that the plan reads.")] = False,
) -> opt.Request | None:
    """Show what a command would build, download and take, without doing it; the same as --dry-run.

    adpa plan distill --method adpa+ --student tiny
    adpa plan distill --method adpa+ --student llama-3.2-1b --fetch     for a machine without network
    """
    from adpa_cli.cli.console.app import run_words

    typed = [word for word in words or () if word != FETCH]
    if not typed:
        raise UsageError("adpa plan needs the command to plan", "adpa plan distill --method adpa+ --student tiny")
    fetching = fetch or FETCH in (words or ())
    if fetching and typed[0] == "run":
        raise UsageError(
            "--fetch cannot download for adpa run, which plans its combinations one by one",
            "give it the command of one combination: adpa plan distill … --fetch",
        )
    if typed[0] not in makers() and not typed[0].startswith("-"):
        raise UsageError(
            f"adpa plan cannot plan {typed[0]!r}", f"it plans one of these commands: {', '.join(makers())}"
        )
    request = run_words([*typed, "--dry-run"])
    if not isinstance(request, opt.Request):  # a command that carries out its own plan, as run does, has shown it
        return None
    if fetching:
        fetch_all(request)
    return replace(request, options=replace(request.options, dry_run=True))


def fetch_all(request: opt.Request) -> None:
    """Download what the hub has of the plan's inputs into the Hugging Face cache; the store keeps what they are."""
    from adpa_cli.hub import repository as hub
    from adpa_cli.planning.lineage import hub_files
    from adpa_cli.store.store import Store

    def note(text: str) -> None:
        if not GLOBALS.quiet:
            say(f"{text}\n")

    store = Store.find(GLOBALS.store, create=True)
    if store.created:
        note(f"Created the store {store.root}.")
    building = [node for node in request.plan(store).nodes(store) if store.get(node.label) is None]
    files = [*hub_files(building, "model"), *hub_files(building, "dataset")]
    hub.fetch(files, store.hash_cache, note)
    names = dict.fromkeys(file.repo for file in files)
    note(f"Downloaded {', '.join(names)}." if names else "Nothing to download: all of it is here.")


COMMAND = Command("plan", "Look", 2, plan, PASSED_ON, also=("dry-run", "preview", "fetch", "download", "pull"))
