"""`adpa run`: a recipe, that is one command or a grid of them."""

from __future__ import annotations

import re
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adpa_cli.cli import options as opt

if TYPE_CHECKING:
    from adpa_cli.cli.grid import Cell, Key
    from adpa_cli.cli.recipe import Recipe


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
    from adpa_cli.cli.streams import needed
    from adpa_cli.cli.sweep import sweep

    part = _shard(shard)
    read = read_recipe(needed("RECIPE.toml", recipe))
    neutral = opt.Options()
    own = {f.name: getattr(options, f.name) for f in fields(options)}
    own = {name: value for name, value in own.items() if value != getattr(neutral, name)}
    sweep([(cell, replace(request, options=replace(request.options, **own))) for cell, request in requests(read)], part,
          options.dry_run, read.pins)  # fmt: skip


def read_recipe(name: str) -> Recipe:
    """A recipe file (`-`: stdin)."""
    from adpa_cli.cli.recipe import read

    return read(_text(name), "stdin" if name == "-" else name)


def _text(name: str) -> str:
    from adpa_cli.errors import NotFound, UsageError

    if name == "-":
        if sys.stdin is None or sys.stdin.isatty():
            raise UsageError(
                "- reads a recipe from a pipe, and stdin is a terminal", "adpa show REF --recipe | adpa run -"
            )
        text = sys.stdin.read()
        if not text.strip():
            raise NotFound("-: nothing came through the pipe", "the command before it failed, or printed nothing")
        return text
    try:
        return Path(name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise NotFound(f"{name} cannot be read: {why}", "name a recipe: adpa run RECIPE.toml") from None


def keys_for(recipe: Recipe) -> dict[str, Key]:
    """What the command of a recipe takes. Raises UsageError for a command that makes nothing."""
    from adpa_cli.cli.grid import keys_of
    from adpa_cli.cli.main import PANELS

    makers = {name: function for name, function in PANELS["Build"] if name != "run"}
    if recipe.command not in makers:
        raise recipe.refused("command", f"{recipe.command} makes nothing", f"commands: {', '.join(makers)}")
    return keys_of(makers[recipe.command])


def requests(recipe: Recipe) -> list[tuple[Cell, opt.Request]]:
    """The cells of a recipe, each as what its command was asked for. Raises UsageError naming the file."""
    from typer.exceptions import TyperException

    from adpa_cli.cli.grid import expand
    from adpa_cli.cli.main import app, usage_error
    from adpa_cli.errors import UsageError

    program = typer.main.get_command(app)
    found = []
    for cell in expand(recipe, keys_for(recipe)):
        try:
            found.append((cell, program(list(cell.words), standalone_mode=False, prog_name="adpa")))
        except TyperException as error:
            said = usage_error(error, cell.words)
            raise UsageError(f"{recipe.source}: {said.message}", said.hint) from None
        except UsageError as error:
            raise UsageError(f"{recipe.source}: {error.message}", error.hint) from None
    return found


def _shard(text: str | None) -> tuple[int, int]:
    """(I, N) of `I/N`, 1 ≤ I ≤ N; everything without one."""
    from adpa_cli.errors import UsageError

    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text or "1/1")
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--shard {text}", "write I/N with I from 1 to N, e.g. --shard $SLURM_ARRAY_TASK_ID/8")
    return int(match[1]), int(match[2])
