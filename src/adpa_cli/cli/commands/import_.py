"""`adpa import`: another tool's capture of a teacher as signal, or a judge's annotations as judgements."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console import complete
from adpa_cli.cli.console import options as opt
from adpa_cli.cli.console.streams import GLOBALS, needed

if TYPE_CHECKING:
    from adpa_cli.store.manifest import Manifest


def import_(
    files: Annotated[list[str], opt.argument("FILE…", "The files, or the folder that holds them.")],
    format: Annotated[
        Literal["distillkit", "top-logprobs", "alpaca-eval", "mt-bench"],
        opt.option(
            "--format",
            help="What the files are: distillkit (Parquet), top-logprobs (chat completions as JSON Lines), alpaca-eval "
            "(annotations.json) or mt-bench (FastChat's judgments of single answers) [required].",
            metavar="FORMAT",
        ),
    ],
    settings: Annotated[
        str | None,
        opt.option("--settings", help="Settings of DistillKit's compressor [compression_config.yaml].", metavar="FILE"),
    ] = None,
    model: Annotated[
        str | None, opt.option("--model", help="The model whose tokenizer and template were used.", metavar="MODEL")
    ] = None,
    data: Annotated[
        list[str] | None,
        opt.option(
            "--data", help="The preference data, or the questions, that it belongs to [its own tokens].", metavar="SRC"
        ),
    ] = None,
    precision: Annotated[
        float | None,
        opt.option(
            "--precision", help="Resolution of the stored log-probs in nats; 0 is exact [1/32].", metavar="NATS"
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        opt.option("--max-length", help="Longest row of the data in tokens, as in training [2048].", metavar="N"),
    ] = None,
    skip_bad_rows: Annotated[
        bool, opt.option("--skip-bad-rows", help="Skip answers that the data do not have.")
    ] = False,
    tag: Annotated[
        str | None, opt.option("--tag", help="Give the result a name.", metavar="NAME", completion=complete.tags)
    ] = None,
) -> None:
    """Import log-probabilities of a teacher, or a judge's annotations, that another tool wrote.

    adpa import ./capture --format distillkit --model ./T --data pairs.jsonl
    adpa import annotations.json --format alpaca-eval
    """
    from adpa_cli.families import reserved_words
    from adpa_cli.interchange.import_signal import Asked, import_signal_of
    from adpa_cli.interchange.judged import FORMATS, import_judgements
    from adpa_cli.spec import make
    from adpa_cli.stages.cache_teacher import CaptureSpec
    from adpa_cli.store.store import check_tag

    if tag is not None:
        check_tag(needed("--tag", tag), reserved_words())
    words, sources = tuple(needed("FILE", word) for word in files), tuple(data or ())
    if form := next((form for form in FORMATS if form == format), None):
        keep(partial(import_judgements, words=words, form=form, data=sources), tag)
        return
    sizes: dict[str, Any] = {"precision": precision, "max_length": max_length}
    sizes = {key: value for key, value in sizes.items() if value is not None}
    make(CaptureSpec, {"parts": "text", "template": "", "end": "", **sizes})  # the ranges of a capture hold
    asked = Asked(
        words, format, settings, model and needed("--model", model), sources, skip_bad_rows=skip_bad_rows, **sizes
    )
    keep(partial(import_signal_of, asked=asked), tag)


def keep(imported: Callable[..., Manifest], tag: str | None) -> None:
    """Import what `imported` does, and print the id of what is made of it."""
    from adpa_cli.cli.console.make import console, created, hand_over
    from adpa_cli.planning.resolve_inputs import Names
    from adpa_cli.stages import Monitor
    from adpa_cli.store.store import Store

    planned_in = Store.find_or_empty(GLOBALS.store)
    with console(planned_in, None) as desk:
        store = created(planned_in, desk.screen)
        monitor = Monitor(desk.screen.progress, desk.screen.say, lambda: desk.stopping.asked)
        try:
            manifest = imported(Names(store), store, command=GLOBALS.command, monitor=monitor)
            if (lost := manifest.metrics.get("unknown_labels")) and not GLOBALS.quiet:
                desk.screen.say(
                    f"{100 * lost:.1f} % of the tokens have no log-prob of their own. DCKD can be trained without it."
                )
            if (ends := manifest.metrics.get("uncovered")) and not GLOBALS.quiet:
                desk.screen.say(
                    f"{ends:,} answers have no position for their end token, so the end is not distilled there."
                )
        finally:
            desk.screen.close()
        hand_over(manifest, store, tag, desk.output)


COMMAND = Command("import", "Build", 9, import_)
