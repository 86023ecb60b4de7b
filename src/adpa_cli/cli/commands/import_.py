"""`adpa import`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from adpa_cli.cli.commands import Command


def import_(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE…", help="Captures, or the folder of them.", show_default=False)
    ],
    format: Annotated[
        Literal["distillkit", "top-logprobs"],
        typer.Option(
            "--format",
            help="distillkit: its Parquet; top-logprobs: chat completions as JSONL.",
            metavar="FORMAT",
            show_default=False,
        ),
    ],
    settings: Annotated[
        str | None,
        typer.Option(
            "--settings", help="Of DistillKit's compressor.", metavar="FILE", show_default="compression_config.yaml"
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="Whose tokenizer and template the tokens are of.", metavar="MODEL", show_default=False
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data", help="Preference data that it belongs to.", metavar="SRC", show_default="its own tokens"
        ),
    ] = None,
    precision: Annotated[
        float | None,
        typer.Option(
            "--precision", help="Step of stored log-probs in nats; 0 is exact.", metavar="NATS", show_default="1/32"
        ),
    ] = None,
    max_length: Annotated[
        int | None,
        typer.Option(
            "--max-length", help="Tokens of the data's rows, as in training.", metavar="N", show_default="2048"
        ),
    ] = None,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave out what is no answer of the data.", show_default=False)
    ] = False,
    tag: Annotated[str | None, typer.Option("--tag", help="Name it.", metavar="NAME", show_default=False)] = None,
) -> None:
    """Keep another tool's capture of a teacher as signal.

    adpa import ./capture --format distillkit --model ./T --data pairs.jsonl
    """
    from adpa_cli.cli.console.make import console, created, hand_over
    from adpa_cli.cli.console.streams import GLOBALS, needed
    from adpa_cli.families import reserved_words
    from adpa_cli.interchange.import_signal import Asked, import_signal_of
    from adpa_cli.planning.resolve_inputs import Names
    from adpa_cli.spec import make
    from adpa_cli.stages import Monitor
    from adpa_cli.stages.cache_teacher import CaptureSpec
    from adpa_cli.store.store import Store, check_tag

    if tag is not None:
        check_tag(needed("--tag", tag), reserved_words())
    given = {"precision": precision, "max_length": max_length}
    known: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    make(CaptureSpec, {"parts": "text", "template": "", "end": "", **known})  # the ranges of a capture hold
    words = tuple(needed("FILE", word) for word in files)
    asked = Asked(
        words, format, settings, model and needed("--model", model), tuple(data or ()), skip_bad_rows=skip_bad_rows,
        **known,
    )  # fmt: skip
    seen = Store.find_or_empty(GLOBALS.store)
    with console(seen, None) as desk:
        store = created(seen, desk.screen)
        monitor = Monitor(desk.screen.progress, desk.screen.say, lambda: desk.stopping.asked)
        try:
            manifest = import_signal_of(Names(store), store, asked, GLOBALS.command, monitor)
            if (lost := manifest.metrics.get("unknown_labels")) and not GLOBALS.quiet:
                desk.screen.say(f"{100 * lost:.1f} % of the tokens have no log-prob of their own; DCKD needs none")
        finally:
            desk.screen.close()
        hand_over(manifest, store, tag, desk.output)


COMMAND = Command("import", "Build", 9, import_)
