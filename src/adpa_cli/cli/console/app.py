"""How the program is put together out of its commands."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from itertools import pairwise, zip_longest
from typing import Annotated, Any, cast

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from adpa_cli import __version__
from adpa_cli.cli import commands
from adpa_cli.cli.console import complete
from adpa_cli.cli.console.help_screens import EVERYWHERE, command_help, first_sentence, group_help, split_default
from adpa_cli.cli.console.mistyped import unknown_command
from adpa_cli.cli.console.options import option, with_parameters
from adpa_cli.cli.console.streams import terminal_width
from adpa_cli.errors import UsageError

everywhere = functools.partial(option, help="", panel=EVERYWHERE)
GLOBAL_OPTIONS: dict[str, tuple[Any, Any]] = {
    "json": (Annotated[bool, everywhere("--json")], False),
    "store": (Annotated[str | None, everywhere("--store", metavar="DIR")], None),
    "quiet": (Annotated[bool, everywhere("-q", "--quiet")], False),
    "verbose": (Annotated[bool, everywhere("-v", "--verbose")], False),
}
"""`streams.take_globals` has taken these before a command line is parsed; declared, they are completed and shown."""


class Command(TyperCommand):
    """A command with our help screen, that does not take an option for the value of another."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(command_help(self, ctx.command_path, terminal_width()))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:
            args = _with_empty_values(self, args)
            _refuse_swallowed(self, args)
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        for name in ("sets", "knobs"):
            typed = (ctx.params.get(name) or [""])[-1]
            if typed and "=" not in typed and not incomplete.startswith("-"):
                return _values(self, ctx, name, typed, incomplete)
        return _printable(super().shell_complete(ctx, incomplete))


class Group(TyperGroup):
    """The program with our help screen."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(group_help(self, ctx.command_path, terminal_width()))

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        return _printable(super().shell_complete(ctx, incomplete))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if ctx.resilient_parsing and args[0] == "plan" and args[1:2] and args[1] in self.commands:
            args = args[1:]  # a plan's line is completed as that of the command it plans
        if not ctx.resilient_parsing and args[0] not in self.commands and not args[0].startswith("-"):
            raise unknown_command(args[0], args[1:], self)
        return super().resolve_command(ctx, args)


def _printable(items: list[Any]) -> list[Any]:
    """Completions with help that shells can show."""
    for item in items:
        item.help = complete.printable(split_default(item.help or "")[0])
    return items


def _values(command: TyperCommand, ctx: Any, name: str, key: str, incomplete: str) -> list[Any]:
    """What completes `--set KEY=` or `--runtime KEY=`, which bash passes on as three words."""
    (parameter,) = [param for param in command.params if param.name == name]
    items = parameter.shell_complete(ctx, f"{key}={incomplete}")
    for item in items:
        item.value = item.value.partition("=")[2]
    return [item for item in items if item.value]


def _with_empty_values(command: TyperCommand, args: Sequence[str]) -> list[str]:
    """The words with an empty value behind options that stand alone: those may whose whole metavar is in brackets."""
    options = (param for param in command.params if isinstance(param, TyperOption))
    alone = {name for param in options if re.fullmatch(r"\[.*\]", str(param.metavar)) for name in param.opts}
    words: list[str] = []
    for word, following in zip_longest(args, args[1:], fillvalue="--"):
        words += [word, ""] if word in alone and following.startswith("-") else [word]
    return words


def _refuse_swallowed(command: TyperCommand, args: list[str]) -> None:
    """`--student --teacher T` is a `$student` that was empty. A value may begin with dashes after `=`."""
    options = {name: param for param in command.params if isinstance(param, TyperOption) for name in param.opts}
    for word, following in pairwise(args):
        if word == "--":
            return
        if word in options and not options[word].is_flag and following in options:
            raise UsageError(
                f"{word} has no value: {following} follows it",
                f"write {word} VALUE; a $variable in its place may have been empty",
            )


def declared(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of a command with the options that every command takes."""
    parameters = list(inspect.signature(function, eval_str=True).parameters.values())
    parameters += [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
        for key, (hint, default) in GLOBAL_OPTIONS.items()
    ]

    @functools.wraps(function)
    def command(**values: Any) -> Any:
        return function(**{key: value for key, value in values.items() if key not in GLOBAL_OPTIONS})

    return with_parameters(command, parameters)


@functools.cache
def program() -> Group:
    """The program with all its commands."""
    app = typer.Typer(
        name="adpa", cls=Group, rich_markup_mode=None, pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )  # fmt: skip
    for name, one in commands.every().items():
        short = first_sentence(one.function.__doc__ or "")
        app.command(
            name, cls=Command, rich_help_panel=one.panel, short_help=short, context_settings=dict(one.settings) or None
        )(declared(one.function))
    app.callback()(declared(adpa))
    return cast(Group, typer.main.get_command(app))


def run_words(words: Sequence[str]) -> Any:
    """What the command of a command line returns; its errors are raised."""
    complete.join_words()
    if any(word.endswith("-completion") for word in words):
        complete.mend_scripts()
    return program()(list(words), standalone_mode=False, prog_name="adpa")


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
