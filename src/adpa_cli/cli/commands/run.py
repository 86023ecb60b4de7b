"""`adpa run`: a recipe, that is one command or a grid of them."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Annotated

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console import options as opt
from adpa_cli.cli.console.streams import needed


@opt.making("smoke", *opt.RUNNING)
def run(
    recipe: Annotated[str | None, opt.argument("RECIPE.toml", "The recipe file; - reads stdin [required].")] = None,
    shard: Annotated[
        str | None,
        opt.where("--shard", help="Run every N-th combination from the I-th on, for job arrays.", metavar="I/N"),
    ] = None,
    *,
    options: opt.Options,
) -> None:
    """Run every combination in a recipe file. What combinations share is built once.

    adpa run sweep.toml · adpa run sweep.toml --dry-run
    """
    from adpa_cli.cli.recipes.grid import read_recipe, request_of, requests
    from adpa_cli.cli.recipes.sweep import sweep

    part = opt.shard_of(shard)
    grid = read_recipe(needed("RECIPE.toml", recipe))
    values = {f.name: value for f in fields(options) if (value := getattr(options, f.name)) != f.default}

    def run_so(asked: opt.Request) -> opt.Request:
        return replace(asked, options=replace(asked.options, **values))

    cells = [(cell, run_so(asked)) for cell, asked in requests(grid)]
    if not any(asked.options.given().asks_vllm for _, asked in cells):
        options.check_servers()
    sweep(grid, cells, lambda words: run_so(request_of(grid, words)), part, options.dry_run)


COMMAND = Command("run", "Build", 8, run, also=("sweep", "grid", "apply", "launch"))
