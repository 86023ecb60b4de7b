"""`adpa export`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from adpa_cli.cli.commands import Command

if TYPE_CHECKING:
    from adpa_cli.store.manifest import Manifest
    from adpa_cli.store.store import Store


def export(
    ref: Annotated[str, typer.Argument(metavar="REF", help="The model or signal; - reads stdin.", show_default=False)],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder to be made.", show_default=False)],
    to: Annotated[
        Literal["hf", "ollama", "gguf", "parquet", "safetensors"] | None,
        typer.Option(
            "--to",
            help="hf, ollama (with a Modelfile), gguf (by llama.cpp); of a signal parquet or safetensors.",
            metavar="FORMAT",
            show_default="hf, parquet",
        ),
    ] = None,
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
    """Copy a model or a signal out of the store for other tools; nothing of it stays linked to the store.

    adpa export best ./my-model · adpa export best ./my-ollama --to ollama · adpa export best ./my-gguf --to gguf
    """
    from adpa_cli.cli.console.stdout_guard import ids_only
    from adpa_cli.cli.console.streams import GLOBALS, dashes, needed, one, out, quiet_libraries
    from adpa_cli.errors import UsageError
    from adpa_cli.interchange import export as exports
    from adpa_cli.interchange.export import export_signal
    from adpa_cli.planning.lineage import trained
    from adpa_cli.planning.resolve_inputs import Names
    from adpa_cli.report.card import card
    from adpa_cli.store.store import Store

    needed("DIR", str(folder) if folder.parts else "")
    if converter is not None and to != "gguf":
        raise UsageError(f"--converter has no meaning with --to {to}", "leave it out, or give --to gguf")
    target = folder.expanduser()
    exports.check_target(target, force)
    word = one("REF", dashes({"REF": [ref]})["REF"])
    quiet_libraries()
    with ids_only():
        store = Store.find_or_empty(GLOBALS.store)
        if target.absolute().is_relative_to(store.root):
            raise UsageError(f"{folder} is inside the store", "name a folder outside of it")
        if signal := signal_of(store, word, to, dtype):
            export_signal(
                store.folder(signal.ref), signal, target, "safetensors" if to == "safetensors" else "parquet", force
            )
        else:
            found = trained(Names(store), word)
            text = card(exports.name_of(found), found.template.end, found.manifest, store)
            exports.export(found, target, to or "hf", dtype, force, converter, text)
    files = sorted(path.name for path in target.iterdir())
    out(lambda: f"{target}  {', '.join(files)}", lambda: str(target), lambda: {"path": str(target), "files": files})


def signal_of(store: Store, word: str, to: str | None, dtype: str | None) -> Manifest | None:
    """The signal that a word names; None for a model. Raises UsageError for a format of the other kind."""
    from adpa_cli.errors import AdpaError, UsageError
    from adpa_cli.interchange.export import FORMATS

    try:
        found = store.resolve(word)
    except AdpaError:
        found = None
    if found is None or found.stage != "cache-teacher":
        if to in FORMATS:
            raise UsageError(f"--to {to} is for signals, and {word} is none", "a model goes --to hf, ollama or gguf")
        return None
    if to not in (None, *FORMATS) or dtype is not None:
        asked = f"--to {to}" if dtype is None else f"--dtype {dtype}"
        raise UsageError(f"{asked} is for models, and {found.ref} is a signal", "give --to parquet or safetensors")
    return found


COMMAND = Command("export", "Use", 3, export)
