"""`adpa export`: a model or a signal as files for other tools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console import complete
from adpa_cli.cli.console import options as opt
from adpa_cli.cli.console.streams import GLOBALS, ids_only, needed, one_value, out, quiet_libraries
from adpa_cli.errors import AdpaError, UsageError
from adpa_cli.machine import expanded

if TYPE_CHECKING:
    from adpa_cli.store.manifest import Manifest
    from adpa_cli.store.store import Store


def export(
    ref: Annotated[
        str, opt.argument("REF", "The model or signal; - reads stdin.", completion=complete.artifacts("model"))
    ],
    folder: Annotated[Path, opt.argument("DIR", "A folder to be made.")],
    to: Annotated[
        Literal["hf", "ollama", "gguf", "parquet", "safetensors"] | None,
        opt.option(
            "--to",
            help="hf, ollama (with a Modelfile), gguf (by llama.cpp); of a signal parquet or safetensors [hf, parquet]",
            metavar="FORMAT",
            completion=complete.words("hf", "ollama", "gguf"),
        ),
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16"] | None,
        opt.option("--dtype", help="Of the weights [as they are].", metavar="float32|bfloat16"),
    ] = None,
    force: Annotated[bool, opt.option("--force", help="Replace an earlier export.")] = False,
    converter: Annotated[
        str | None,
        opt.option("--converter", help="llama.cpp, or its convert_hf_to_gguf.py [$LLAMA_CPP, PATH].", metavar="PATH"),
    ] = None,
) -> None:
    """Copy a model or a signal out of the store for other tools; nothing of it stays linked to the store.

    adpa export best ./my-model · adpa export best ./my-ollama --to ollama · adpa export best ./my-gguf --to gguf
    """
    from adpa_cli.interchange import export as exports
    from adpa_cli.planning.lineage import trained
    from adpa_cli.planning.resolve_inputs import Names
    from adpa_cli.report.card import card
    from adpa_cli.store.store import Store

    needed("DIR", str(folder) if folder.parts else "")
    if converter is not None and to != "gguf":
        raise UsageError(f"--converter has no meaning with --to {to}", "leave it out, or give --to gguf")
    target = expanded(folder)
    exports.check_target(target, force)
    word = one_value("REF", ref)
    quiet_libraries()
    with ids_only():
        store = Store.find_or_empty(GLOBALS.store)
        if target.absolute().is_relative_to(store.root):
            raise UsageError(f"{folder} is inside the store", "name a folder outside of it")
        if signal := signal_of(store, word, to, dtype):
            form: exports.SignalFormat = "safetensors" if to == "safetensors" else "parquet"
            exports.export_signal(store.folder(signal.ref), signal, target, form, force)
        else:
            model = trained(Names(store), word)
            text = card(exports.name_of(model), model.template.end, model.manifest, store)
            exports.export(model, target, to or "hf", dtype, force, converter, text)
    files = sorted(path.name for path in target.iterdir())
    out(lambda: f"{target}  {', '.join(files)}", lambda: str(target), lambda: {"path": str(target), "files": files})


def signal_of(store: Store, word: str, to: str | None, dtype: str | None) -> Manifest | None:
    """The signal that a word names; None for a model. Raises UsageError for a format of the other kind."""
    from adpa_cli.interchange.export import FORMATS
    from adpa_cli.stages import product_of

    try:
        manifest = store.resolve(word)
    except AdpaError:
        manifest = None
    if manifest is None or product_of(manifest.stage) != "signal":
        if to in FORMATS:
            raise UsageError(f"--to {to} is for signals, and {word} is none", "a model goes --to hf, ollama or gguf")
        return None
    if to not in (None, *FORMATS) or dtype is not None:
        refused = f"--to {to}" if dtype is None else f"--dtype {dtype}"
        raise UsageError(f"{refused} is for models, and {manifest.ref} is a signal", "give --to parquet or safetensors")
    return manifest


COMMAND = Command("export", "Use", 3, export)
