"""`adpa data`."""

from __future__ import annotations

from typing import Annotated

import typer

from adpa_cli.cli import options as opt


def data(
    sources: Annotated[
        list[str], typer.Argument(metavar="SRC…", help="Files, folders, hub data sets or aliases.", show_default=False)
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", help="Whose tokenizer and template to use.", metavar="MODEL", show_default=False),
    ] = None,
    dialogues: Annotated[bool, typer.Option("--sft", help="Read as dialogues of an SFT stage.")] = False,
    count: Annotated[int, typer.Option("--rows", help="Rows to show.", metavar="N")] = 3,
    split: Annotated[str, typer.Option("--split", help="Which side: train or test.", metavar="SIDE")] = "train",
    max_length: Annotated[int, typer.Option("--max-length", help="Tokens of a row at most.", metavar="N")] = 2048,
    skip_bad_rows: opt.SkipBadRows = False,
    refresh: opt.Refresh = False,
) -> None:
    """Show the first rows as the model sees them, with the trained tokens marked; check all rows.

    adpa data pairs.jsonl --model ./small · adpa data tiny-pairs
    """
    from adpa_cli.cli.look_data import show_data
    from adpa_cli.errors import UsageError

    if split not in ("train", "test"):
        raise UsageError(f"--split {split}", "it is train or test")
    show_data(sources, model, dialogues, count, split, max_length, skip_bad_rows, refresh)
