"""`adpa tag`: the names of artifacts."""

from __future__ import annotations

from typing import Annotated

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console import complete
from adpa_cli.cli.console import options as opt
from adpa_cli.cli.console.streams import GLOBALS, one_value, out
from adpa_cli.errors import UsageError


def tag(
    name: Annotated[str | None, opt.argument("NAME", "The name; none lists all tags.", complete.tags)] = None,
    ref: Annotated[str | None, opt.argument("REF", "What it names; - reads stdin.")] = None,
    delete: Annotated[bool, opt.option("--delete", help="Remove the name; what it named stays.")] = False,
) -> None:
    """Give an artifact a name, list names, or remove one.

    adpa tag best distill/9a1b2c3d4e5f
    """
    from adpa_cli.families import reserved_words
    from adpa_cli.store.store import Store

    store = Store.find(GLOBALS.store)
    if name is None:
        refs = {tag: manifest.ref for tag, artifact in store.tags().items() if (manifest := store.get(artifact))}
        lines = "".join(f"{tag}\t{ref}\n" for tag, ref in refs.items())
        out(lambda: lines.expandtabs(24), lambda: lines, lambda: refs)
    elif delete:
        store.untag(name)
    elif ref is None:
        raise UsageError(f"what should {name} name?", f"adpa tag {name} REF")
    else:
        store.tag(name, store.resolve(one_value("REF", ref)).id, reserved_words())


COMMAND = Command("tag", "Keep", 1, tag)
