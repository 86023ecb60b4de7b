"""`adpa path`."""

from __future__ import annotations

from typing import Annotated

import typer

from adpa_cli.cli.commands import Command


def path(
    ref: Annotated[str, typer.Argument(metavar="REF", help="An artifact or tag; - reads stdin.", show_default=False)],
) -> None:
    """Print the folder of an artifact, for other tools.

    vllm serve $(adpa path best)
    """
    from adpa_cli.cli.console.streams import GLOBALS, dashes, out
    from adpa_cli.store.store import Store

    store = Store.find(GLOBALS.store)
    folders = [str(store.folder(store.resolve(text).ref)) for text in dashes({"REF": [ref]})["REF"]]
    lines = "\n".join(folders)
    out(lambda: lines, lambda: lines, lambda: folders)


COMMAND = Command("path", "Use", 2, path)
