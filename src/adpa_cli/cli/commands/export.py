"""`adpa export`: a model, a signal, answers or judgements as files for other tools."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console import complete
from adpa_cli.cli.console import options as opt
from adpa_cli.cli.console.streams import (
    GLOBALS,
    can_ask,
    confirm,
    ids_only,
    needed,
    one_value,
    out,
    quiet_libraries,
    say,
)
from adpa_cli.errors import AdpaError, UsageError
from adpa_cli.hub.upload import OPTION, check_name
from adpa_cli.machine import expanded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from adpa_cli.engine.casting import Rounding
    from adpa_cli.hub.upload import Target as Place
    from adpa_cli.interchange.narrowing import Effect, Narrowing
    from adpa_cli.planning.lineage import Trained
    from adpa_cli.planning.resolve_inputs import Names
    from adpa_cli.report.licences import Parent
    from adpa_cli.store.manifest import Manifest
    from adpa_cli.store.store import Store


def export(
    ref: Annotated[
        str,
        opt.argument(
            "REF",
            "The model, signal, answers or judgements; - reads stdin [required].",
            completion=complete.artifacts("model"),
        ),
    ],
    folder: Annotated[Path, opt.argument("DIR", "The folder to create [required].")],
    to: Annotated[
        Literal["hf", "ollama", "gguf", "parquet", "safetensors", "alpaca-eval", "mt-bench"] | None,
        opt.option(
            "--to",
            help="Format of a model: hf, ollama (with a Modelfile) or gguf (by llama.cpp); of a signal: parquet or "
            "safetensors; of answers and judgements: alpaca-eval or mt-bench [hf, parquet]",
            metavar="FORMAT",
            completion=complete.words("hf", "ollama", "gguf", "alpaca-eval", "mt-bench"),
        ),
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"] | None,
        opt.option(
            "--dtype", help="Convert the weights to this dtype [as they are].", metavar="float32|bfloat16|float16"
        ),
    ] = None,
    rounding: Annotated[
        Literal["nearest", "stochastic"] | None,
        opt.option(
            "--rounding",
            help="How weights are rounded to a shorter dtype [nearest, unless that loses most of the training].",
            metavar="nearest|stochastic",
        ),
    ] = None,
    rows: Annotated[
        int | None,
        opt.option("--rows", help="Held-out rows that a rounded model is measured on; 0 for none [64].", metavar="N"),
    ] = None,
    adapter: Annotated[
        bool, opt.option("--adapter", help="Write an adapter as it is, for peft and vLLM [merged into its base].")
    ] = False,
    force: Annotated[bool, opt.option("--force", help="Replace an earlier export.")] = False,
    converter: Annotated[
        str | None,
        opt.option(
            "--converter", help="Folder of llama.cpp, or its convert_hf_to_gguf.py [$LLAMA_CPP, PATH].", metavar="PATH"
        ),
    ] = None,
    push_to_hub: Annotated[
        str | None,
        opt.option("--push-to-hub", help="Upload the folder to the Hugging Face hub too.", metavar="ORG/NAME"),
    ] = None,
    public: Annotated[
        bool, opt.option("--public", help="With --push-to-hub: let everybody see it [only you and ORG].")
    ] = False,
    yes: Annotated[bool, opt.option("--yes", "-y", help="Do not ask before something is made public.")] = False,
) -> None:
    """Copy a model, a signal, answers or judgements out of the store, in the format of another tool.

    An adapter is merged into the weights of its base, in float32, unless --adapter is given.
    With --dtype bfloat16 or float16, it reports how much of the training survives the rounding. To compare answers too,
    run adpa eval DIR --against REF --reward-model MODEL.

    adpa export best ./my-model · adpa export best ./my-ollama --to ollama · adpa export best ./half --dtype bfloat16
    adpa export best ./my-model --push-to-hub me/my-model
    """
    from adpa_cli.interchange.export import check_target
    from adpa_cli.store.store import Store

    needed("DIR", str(folder) if folder.parts else "")
    asked = Asked(to, dtype, rounding, rows, adapter, converter, push_to_hub, public, yes)
    asked.check()
    target = expanded(folder)
    check_target(target, force)
    word = one_value("REF", ref)
    quiet_libraries()
    with ids_only():
        store = Store.find_or_empty(GLOBALS.store)
        if target.absolute().is_relative_to(store.root):
            raise UsageError(f"{folder} is inside the store", "name a folder outside of the store")
        effect, address = written(store, word, target, asked, force)
    if effect is not None:
        show(effect)
    files = sorted(path.name for path in target.iterdir())
    record = {"path": str(target), "files": files, **({"weights": effect.record()} if effect else {})}
    record |= {"url": address} if address else {}
    out(lambda: f"{target}  {', '.join(files)}", lambda: str(target), lambda: record)


@dataclass(frozen=True)
class Asked:
    """What was asked of an export, by its options."""

    to: str | None
    dtype: str | None
    rounding: Rounding | None
    rows: int | None
    adapter: bool
    converter: str | None
    hub: str | None
    public: bool
    yes: bool

    def check(self) -> None:
        """Raise UsageError for options that exclude each other."""
        if self.hub is not None:
            check_name(self.hub)
        elif self.public:
            raise UsageError("--public needs --push-to-hub", "add --push-to-hub ORG/NAME")
        if self.converter is not None and self.to != "gguf":
            raise UsageError(
                f"--converter has no effect {f'with --to {self.to}' if self.to else 'without --to gguf'}",
                "add --to gguf, or leave it out",
            )
        other = None if self.to == "hf" else self.to
        changes = {"--to": other, "--dtype": self.dtype, "--rounding": self.rounding, "--rows": self.rows}
        for option, value in changes.items():
            if self.adapter and value is not None:
                raise UsageError(f"{option} {value} and --adapter cannot be combined", "leave one of them out")

    def narrowing(self, is_quantised: bool = False) -> Narrowing | None:
        """What is to become of the weights; None where they stay. Raises UsageError for options that have no meaning.

        What merging does to an adapter that was trained beside quantised weights is measured in every dtype.
        """
        from adpa_cli.interchange.narrowing import ROWS, Narrowing

        for option, value in (("--rounding", self.rounding), ("--rows", None if is_quantised else self.rows)):
            if value is not None and self.dtype not in ("bfloat16", "float16"):
                kept = f"--dtype {self.dtype}" if self.dtype else "weights as they are"
                raise UsageError(
                    f"{option} has no effect with {kept}, since nothing is rounded", "add --dtype bfloat16"
                )
        if self.rows is not None and self.rows < 0:
            raise UsageError(f"--rows must be 0 or more; got {self.rows}", "--rows 0 measures nothing")
        return Narrowing(self.dtype, self.rounding, ROWS if self.rows is None else self.rows) if self.dtype else None


def written(store: Store, word: str, target: Path, asked: Asked, force: bool) -> tuple[Effect | None, str]:
    """Export the signal or the model that a word names into the folder `target`; what fewer bits do to a model, and its
    address on the hub, "" where it was not uploaded."""
    from adpa_cli.interchange import export as exports
    from adpa_cli.interchange import judged
    from adpa_cli.planning.lineage import trained
    from adpa_cli.planning.resolve_inputs import Names

    if known := next((each for each in judged.FORMATS if each == asked.to), None):
        if refused := f"--dtype {asked.dtype}" if asked.dtype else OPTION if asked.hub else "":
            raise UsageError(f"{refused} is for models, and --to {known} is for answers", "leave it out")
        asked.narrowing()  # which has no meaning there
        judged.export_judged(Names(store), store.resolve(word), target, known, force)
        return None, ""
    if signal := signal_of(store, word, asked):
        asked.narrowing()  # which has no meaning there
        to: exports.SignalFormat = "safetensors" if asked.to == "safetensors" else "parquet"
        exports.export_signal(store.folder(signal.ref), signal, target, to, force)
        return None, ""
    names = Names(store)
    return model_written(names, trained(names, word, answers=False), target, asked, force)


def model_written(names: Names, model: Trained, target: Path, asked: Asked, force: bool) -> tuple[Effect | None, str]:
    """Export a model, and upload it where that is asked for; as `written`."""
    from adpa_cli.hub.model_folder import ModelFolder
    from adpa_cli.interchange import export as exports
    from adpa_cli.interchange.narrowing import ROWS
    from adpa_cli.report import licences
    from adpa_cli.report.adapter import facts_of
    from adpa_cli.report.card import card, usage_of

    if not (model.template.text or model.is_judge):
        say(f"Warning: {model.label} has no chat template, and programs that chat with the export need one.\n")
    narrowing = asked.narrowing(ModelFolder.of(model.folder).quantise is not None)
    rows = ROWS if asked.rows is None else asked.rows
    parents = licences.parents(model, names.store, ask=asked.hub is not None)
    place = place_on_hub(parents, asked, force)
    title = place.name.partition("/")[2] if place else exports.name_of(model)

    def papers(effect: Effect | None) -> dict[str, str]:
        said, table = (effect.said, effect.table()) if effect else ((), [])
        facts, merged = facts_of(model.folder), not asked.adapter
        use = usage_of(model.template, model.is_judge, merged)
        readme = card(title, use, model.manifest, names.store, said, table, facts, merged, parents)
        notice = licences.notice(parents, exports.name_of(model))
        return {exports.CARD: readme, **({exports.NOTICE: notice} if notice else {})}

    form = exports.Form(asked.to or "hf", asked.adapter, narrowing, asked.converter, rows)
    effect = exports.export(names, model, target, form, force, papers, note)
    if place is None:
        return effect, ""
    return effect, uploaded(target, place, model.label)


def place_on_hub(parents: Sequence[Parent], asked: Asked, force: bool) -> Place | None:
    """Where a model is uploaded to, None where it is not; asks before it becomes public.

    Raises UsageError for a name that is taken or that a licence does not allow, and without anybody to ask; AdpaError
    where nothing can be uploaded, and for a no.
    """
    from adpa_cli.hub import upload
    from adpa_cli.report import licences

    if asked.hub is None:
        return None
    licences.check_name(parents, asked.hub)
    place = upload.check(asked.hub, asked.public, force)
    note("\n".join([f"{place.name} will be {place.visibility}. Made from:", *licences.summary(parents)]))
    if place.is_public and not asked.yes:
        if not can_ask():
            raise UsageError(
                f"everybody could see {place.name}, and there is no terminal to ask at",
                "add --yes" + (", or leave out --public" if asked.public else ", or make it private on the hub"),
            )
        if not confirm(f"Let everybody see it as {place.name}?", default=False):
            raise AdpaError("nothing was exported", "leave out --public, and look at it on the hub first")
    return place


def uploaded(folder: Path, place: Place, label: str) -> str:
    """Upload an export; its address."""
    from adpa_cli.hub.upload import upload
    from adpa_cli.report.text import human_size

    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    note(f"uploading {human_size(size)} to {place.name}")
    address = upload(folder, place, label)
    note(f"uploaded ({place.visibility}): {address}")
    return address


def note(text: str) -> None:
    """Say a line while an export goes on."""
    if not GLOBALS.quiet:
        say(f"{text}\n")


def show(effect: Effect) -> None:
    """Say what rounding did, with a line for each figure; a warning is said with -q too."""
    head, *rows = effect.table() or [("", "", "")]
    lines = [f"  {what}: {before} {head[1]}, {after} {head[2]}" for what, before, after in rows]
    for line in (*effect.said, *lines):
        note(line)
    for warning in effect.watch:
        say(f"Warning: {warning}\n")


def signal_of(store: Store, word: str, asked: Asked) -> Manifest | None:
    """The signal that a word names; None for a model. Raises UsageError for what is asked of the other kind."""
    from adpa_cli.interchange.export import FORMATS
    from adpa_cli.stages import product_of

    try:
        manifest = store.resolve(word)
    except AdpaError:
        manifest = None
    if manifest is None or product_of(manifest.stage) != "signal":
        if asked.to in FORMATS:
            hint = "export a model with --to hf, ollama or gguf"
            raise UsageError(f"--to {asked.to} is for signals, but {word} is not a signal", hint)
        return None
    to = None if asked.to in FORMATS else asked.to
    given = {"--adapter": asked.adapter, f"--dtype {asked.dtype}": asked.dtype, f"--to {to}": to, OPTION: asked.hub}
    if refused := next((option for option, value in given.items() if value), ""):
        raise UsageError(
            f"{refused} is for models, but {manifest.ref} is a signal", "export it with --to parquet or safetensors"
        )
    return manifest


COMMAND = Command("export", "Use", 3, export, also=("convert", "save", "push", "publish", "upload"))
