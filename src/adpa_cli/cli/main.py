"""The `adpa` command: its subcommands, and the one place that turns exceptions into exit codes.

No module imported here loads torch, transformers, datasets or accelerate: `--help` must answer at once.
"""

from __future__ import annotations

import errno
import sys
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from adpa_cli import __version__
from adpa_cli.cli.app import Command, Group, declared
from adpa_cli.cli.cache_teacher import cache_teacher
from adpa_cli.cli.data import data
from adpa_cli.cli.distill import distill
from adpa_cli.cli.dpo_teacher import dpo_teacher
from adpa_cli.cli.eval import evaluate
from adpa_cli.cli.gc import gc
from adpa_cli.cli.methods import methods
from adpa_cli.cli.models import models
from adpa_cli.cli.options import Request
from adpa_cli.cli.path import path
from adpa_cli.cli.rollout import rollout
from adpa_cli.cli.sft import sft
from adpa_cli.cli.show import show
from adpa_cli.cli.streams import fail, take_globals
from adpa_cli.cli.tag import tag
from adpa_cli.cli.verify import verify
from adpa_cli.errors import AdpaError, UsageError

app = typer.Typer(
    name="adpa",
    cls=Group,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
PANELS: dict[str, tuple[tuple[str, Any], ...]] = {
    "Build": (
        ("sft", sft), ("dpo-teacher", dpo_teacher), ("cache-teacher", cache_teacher), ("rollout", rollout),
        ("distill", distill), ("eval", evaluate),
    ),
    "Look": (("show", show), ("data", data), ("methods", methods), ("models", models)),
    "Use": (("path", path),),
    "Keep": (("tag", tag), ("verify", verify), ("gc", gc)),
}  # fmt: skip
for _panel, _commands in PANELS.items():
    for _name, _function in _commands:
        app.command(_name, cls=Command, rich_help_panel=_panel)(declared(_name, _function))


def _version(asked: bool) -> None:
    if asked:
        sys.stdout.write(f"adpa {__version__}\n")
        raise typer.Exit


def adpa(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Align small language models by distilling preferences from larger, aligned ones."""


app.callback()(declared("", adpa))


def main(argv: list[str] | None = None) -> int:
    """Run one command line; returns the exit code. Bugs show their traceback, everything else a message."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        result = app(take_globals(words) or ["--help"], standalone_mode=False, prog_name="adpa")
        if isinstance(result, Request):
            from adpa_cli.cli.make import make

            make(result.options, result.planned)
    except AdpaError as error:
        return fail(error)
    except typer.Exit as exit_:
        return int(exit_.exit_code)
    except typer.Abort:
        return 130
    except TyperException as error:
        return fail(_usage(error))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            name = f": {error.filename}" if error.filename else ""
            return fail(AdpaError(f"the disk is full{name}", "free some space and repeat the command; it goes on"))
        raise
    return result if isinstance(result, int) else 0


def _usage(error: TyperException) -> UsageError:
    """An error of the command line's parser in our form; `--gamma 3` is answered with how parameters are set."""
    ctx = getattr(error, "ctx", None)
    command = ctx.command_path if ctx is not None else "adpa"
    hint = f"{command} --help"
    name = getattr(error, "option_name", None)
    if name and not isinstance(error, typer.BadParameter):
        from adpa_cli import methods as every
        from adpa_cli.stages.settings import settable

        key = name.lstrip("-").replace("-", "_")
        known = {key for method in every.names() for key in settable("distill", method)}
        if key in known:
            hint = f"did you mean --set {key}=…?"
        elif close := getattr(error, "possibilities", None):
            hint = f"did you mean {' or '.join(close)}?"
    return UsageError(str(getattr(error, "format_message", error.__str__)()), hint)


def run() -> None:
    """The console script."""
    sys.exit(main())
