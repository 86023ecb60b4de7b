"""`adpa export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer


def export(
    ref: Annotated[str, typer.Argument(metavar="REF", help="The model; - reads stdin.", show_default=False)],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder to be made.", show_default=False)],
    to: Annotated[
        Literal["hf", "ollama", "gguf"],
        typer.Option("--to", help="hf: plain folder, ollama: with a Modelfile, gguf: by llama.cpp.", metavar="FORMAT"),
    ] = "hf",
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None,
        typer.Option("--dtype", help="Of the weights.", metavar="float32|bfloat16", show_default="as they are"),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.", show_default=False)] = False,
    converter: Annotated[
        str | None,
        typer.Option(
            "--converter",
            help="llama.cpp, or its convert_hf_to_gguf.py.",
            metavar="PATH",
            show_default="$LLAMA_CPP, PATH",
        ),
    ] = None,
) -> None:
    """Copy a model out of the store for other tools, with a model card; nothing of it stays linked to the store.

    adpa export best ./my-model · adpa export best ./my-ollama --to ollama · adpa export best ./my-gguf --to gguf
    """
    import os

    from adpa_cli.cli.descriptors import ids_only
    from adpa_cli.cli.look import out
    from adpa_cli.cli.make import QUIET
    from adpa_cli.cli.streams import GLOBALS, dashes, needed, one
    from adpa_cli.errors import UsageError
    from adpa_cli.report.card import card
    from adpa_cli.stages import export as exports
    from adpa_cli.stages.names import Names
    from adpa_cli.stages.trained import trained
    from adpa_cli.store.store import Store

    needed("DIR", str(folder) if folder.parts else "")
    if converter is not None and to != "gguf":
        raise UsageError(f"--converter has no meaning with --to {to}", "leave it out, or give --to gguf")
    target = folder.expanduser()
    exports.check_target(target, force)
    word = one("REF", dashes({"REF": [ref]})["REF"])
    for name, value in QUIET.items():
        if not GLOBALS.verbose:
            os.environ.setdefault(name, value)
    with ids_only():
        store = Store.find_or_empty(GLOBALS.store)
        if target.absolute().is_relative_to(store.root):
            raise UsageError(f"{folder} is inside the store", "name a folder outside of it")
        found = trained(Names(store), word)
        text = card(exports.name_of(found), found.template.end, found.manifest, store)
        exports.export(found, target, to, dtype, force, converter, text)
    files = sorted(path.name for path in target.iterdir())
    out(lambda: f"{target}  {', '.join(files)}", lambda: str(target), lambda: {"path": str(target), "files": files})
