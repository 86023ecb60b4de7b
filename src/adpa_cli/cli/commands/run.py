"""`adpa run`: a recipe, that is one command or a grid of them."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from typing import Annotated

import typer

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console import options as opt


@opt.making("smoke", *opt.RUNNING)
def run(
    recipe: Annotated[
        str | None,
        typer.Argument(metavar="RECIPE.toml", help="What to make; - reads stdin [required].", show_default=False),
    ] = None,
    shard: Annotated[
        str | None,
        opt.option("--shard", help="Every N-th cell from the I-th: for job arrays.", panel=opt.WHERE, metavar="I/N"),
    ] = None,
    *,
    options: opt.Options,
) -> None:
    """Make every cell of a recipe; what cells share is built once.

    adpa run sweep.toml · adpa run sweep.toml --dry-run
    """
    from adpa_cli.cli.console.streams import needed
    from adpa_cli.cli.recipes.grid import read_recipe, requests
    from adpa_cli.cli.recipes.sweep import sweep

    part = _shard(shard)
    read = read_recipe(needed("RECIPE.toml", recipe))
    neutral = opt.Options()
    own = {f.name: getattr(options, f.name) for f in fields(options)}
    own = {name: value for name, value in own.items() if value != getattr(neutral, name)}
    sweep([(cell, replace(request, options=replace(request.options, **own))) for cell, request in requests(read)], part,
          options.dry_run, read.pins)  # fmt: skip


def _shard(text: str | None) -> tuple[int, int]:
    """(I, N) of `I/N`, 1 ≤ I ≤ N; everything without one."""
    from adpa_cli.errors import UsageError

    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text or "1/1")
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--shard {text}", "write I/N with I from 1 to N, e.g. --shard $SLURM_ARRAY_TASK_ID/8")
    return int(match[1]), int(match[2])


COMMAND = Command("run", "Build", 8, run)
