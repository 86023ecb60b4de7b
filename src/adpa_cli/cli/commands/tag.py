"""`adpa tag`."""

from __future__ import annotations

from typing import Annotated

import typer

from adpa_cli.cli.commands import Command


def tag(
    name: Annotated[str | None, typer.Argument(help="The name; none lists all tags.", show_default=False)] = None,
    ref: Annotated[str | None, typer.Argument(help="What it names; - reads stdin.", show_default=False)] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Remove the name; what it named stays.")] = False,
) -> None:
    """Give an artifact a name, list names, or remove one.

    adpa tag best distill/9a1b2c3d4e5f
    """
    from adpa_cli.cli.console.streams import GLOBALS, dashes, one, out
    from adpa_cli.errors import UsageError
    from adpa_cli.families import reserved_words
    from adpa_cli.store.store import Store

    store = Store.find(GLOBALS.store)
    if name is None:
        tags = {known: found.ref for known, full in store.tags().items() if (found := store.get(full))}
        lines = "".join(f"{known}\t{target}\n" for known, target in tags.items())
        out(lambda: lines.expandtabs(24), lambda: lines, lambda: tags)
    elif delete:
        store.untag(name)
    elif ref is None:
        raise UsageError(f"what should {name} name?", f"adpa tag {name} REF")
    else:
        found = store.resolve(one("REF", dashes({"REF": [ref]})["REF"]))
        store.tag(name, found.id, reserved_words())


COMMAND = Command("tag", "Keep", 1, tag)
