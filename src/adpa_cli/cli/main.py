"""The `adpa` command: its subcommands, and the one place that turns exceptions into exit codes.

No module imported here loads torch, transformers, datasets or accelerate: `--help` must answer at once.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import pairwise
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from adpa_cli import __version__
from adpa_cli.cli.app import Command, Group, declared
from adpa_cli.cli.cache_teacher import cache_teacher
from adpa_cli.cli.chat import chat
from adpa_cli.cli.data import data
from adpa_cli.cli.descriptors import nobody_reads, open_closed
from adpa_cli.cli.distill import distill
from adpa_cli.cli.dpo_teacher import dpo_teacher
from adpa_cli.cli.env import env
from adpa_cli.cli.eval import evaluate
from adpa_cli.cli.export import export
from adpa_cli.cli.gc import gc
from adpa_cli.cli.help import first_sentence
from adpa_cli.cli.import_ import import_
from adpa_cli.cli.methods import methods
from adpa_cli.cli.models import models
from adpa_cli.cli.options import Request
from adpa_cli.cli.path import path
from adpa_cli.cli.plan import PASSED_ON, plan
from adpa_cli.cli.reward_model import reward_model
from adpa_cli.cli.rollout import rollout
from adpa_cli.cli.run import run as run_recipe
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
        ("sft", sft), ("dpo-teacher", dpo_teacher), ("reward-model", reward_model), ("cache-teacher", cache_teacher),
        ("rollout", rollout), ("distill", distill), ("eval", evaluate), ("run", run_recipe), ("import", import_),
    ),
    "Look": (("show", show), ("plan", plan), ("data", data), ("methods", methods), ("models", models), ("env", env)),
    "Use": (("chat", chat), ("path", path), ("export", export)),
    "Keep": (("tag", tag), ("verify", verify), ("gc", gc)),
}  # fmt: skip
for _panel, _commands in PANELS.items():
    for _name, _function in _commands:
        _short = first_sentence(_function.__doc__)
        _settings = PASSED_ON if _name == "plan" else None
        app.command(_name, cls=Command, rich_help_panel=_panel, short_help=_short, context_settings=_settings)(
            declared(_name, _function)
        )


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
    open_closed()
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
        return fail(usage_error(error, words))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return nobody_reads()
    except SystemExit as leaving:  # how the parser passes a closed pipe on
        if isinstance(leaving.__context__, BrokenPipeError):
            return nobody_reads()
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            name = f": {error.filename}" if error.filename else ""
            return fail(AdpaError(f"the disk is full{name}", "free some space and repeat the command; it goes on"))
        raise
    return result if isinstance(result, int) else 0


def usage_error(error: TyperException, words: Sequence[str]) -> UsageError:
    """An error of the command line's parser in our form; `--gamma 3` is answered with how parameters are set."""
    ctx = getattr(error, "ctx", None)
    path = ctx.command_path if ctx is not None else "adpa"
    option, close = getattr(error, "option_name", None), getattr(error, "possibilities", None)
    if option and close is not None and ctx is not None:
        taken = {str(param.name) for param in ctx.command.params}
        setting = _as_setting(str(ctx.command.name), option, words, taken)
        meant = setting or "".join(get_close_matches(option, close, n=1))
        hint = f"did you mean {meant}? all options: {path} --help" if meant else f"{path} --help"
        return UsageError(f"{path} has no option {option}", hint)
    if option and not isinstance(error, typer.BadParameter):
        return UsageError(f"{option} has no value", f"give it: {option} VALUE")
    said, _, _ = str(getattr(error, "format_message", error.__str__)()).partition(", unable to parse")
    return UsageError(said, f"{path} --help")


def _as_setting(stage: str, option: str, words: Sequence[str], taken: set[str]) -> str:
    """`--gamma 3` or `--gamma=3` as `--set gamma=3` or `--runtime gamma=3`, where the command has `taken` this option;
    "" when nothing has such a key."""
    from adpa_cli.spec import STAGE_VERSIONS
    from adpa_cli.stages.settings import knobs, settable

    key = option.lstrip("-").replace("-", "_")
    at = next((n for n, word in enumerate(words) if word.partition("=")[0] == option), len(words))
    typed, _, value = words[at].partition("=") if at < len(words) else (option, "", "")
    if typed == option and not value and at + 1 < len(words) and not words[at + 1].startswith("--"):
        value = words[at + 1]
    for found in dict.fromkeys((stage, *STAGE_VERSIONS)) if "sets" in taken else ():
        of_methods = _methods_of(words) if found == "distill" else ("",)
        if found in STAGE_VERSIONS and any(key in settable(found, method) for method in of_methods):
            return f"--set {'' if found == stage else found + '.'}{key}={value or '…'}"
    known = {field.name for field in knobs()} if "knobs" in taken else set()
    return f"--runtime {key}={value or '…'}" if key in known else ""


def _methods_of(words: Sequence[str]) -> Sequence[str]:
    """The methods that a command line runs; all when it names none that exists."""
    from adpa_cli import methods as every
    from adpa_cli.families import chain_of

    spelled = " ".join(words).replace("--method=", "--method ").split()
    typed = [after for word, after in pairwise(spelled) if word == "--method"]
    chosen = [name for word in typed for name in chain_of(word) if name in every.names()]
    return chosen or every.names()


def run() -> None:
    """The console script."""
    sys.exit(main())
