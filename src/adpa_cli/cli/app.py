"""How commands are put together: our help screens, the options that every command takes, and shell completion."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from copy import copy
from difflib import get_close_matches
from functools import wraps
from itertools import pairwise
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption
from typer.models import ParameterInfo

from adpa_cli.cli import complete, help
from adpa_cli.cli.look import terminal_width
from adpa_cli.errors import UsageError


def _everywhere(*names: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, metavar=metavar, rich_help_panel=help.EVERYWHERE, show_default=False)


GLOBAL_OPTIONS: dict[str, tuple[Any, Any]] = {
    "json": (Annotated[bool, _everywhere("--json")], False),
    "store": (Annotated[str | None, _everywhere("--store", metavar="DIR")], None),
    "quiet": (Annotated[bool, _everywhere("-q", "--quiet")], False),
    "verbose": (Annotated[bool, _everywhere("-v", "--verbose")], False),
}
"""`streams.take_globals` has taken these before a command line is parsed; declared, they are completed and shown."""


class Command(TyperCommand):
    """A command with our help screen, that does not take an option for the value of another."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(help.command_help(self, ctx.command_path, terminal_width()))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not ctx.resilient_parsing:
            _refuse_swallowed(self, args)
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        for name in ("sets", "knobs"):
            typed = (ctx.params.get(name) or [""])[-1]
            if typed and "=" not in typed and not incomplete.startswith("-"):
                return _values(self, ctx, name, typed, incomplete)
        found = super().shell_complete(ctx, incomplete)
        for item in found:
            item.help = help.split_default(item.help or "")[0]  # shells print it through rich, which eats brackets
        return found


class Group(TyperGroup):
    """The program with our help screen."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(help.group_help(self, ctx.command_path, terminal_width()))

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if ctx.resilient_parsing and args[0] == "plan" and args[1:2] and args[1] in self.commands:
            args = args[1:]  # a plan's line is completed as that of the command it plans
        if not ctx.resilient_parsing and args[0] not in self.commands and not args[0].startswith("-"):
            close = get_close_matches(args[0], self.commands)
            guess = f"did you mean {' or '.join(close)}? " if close else ""
            raise UsageError(f"no command is called {args[0]!r}", f"{guess}all commands: {ctx.command_path} --help")
        return super().resolve_command(ctx, args)


def _values(command: TyperCommand, ctx: Any, name: str, key: str, incomplete: str) -> list[Any]:
    """What completes `--set KEY=` or `--runtime KEY=`, which bash passes on as three words."""
    (option,) = [param for param in command.params if param.name == name]
    found = option.shell_complete(ctx, f"{key}={incomplete}")
    for item in found:
        item.value = item.value.partition("=")[2]
    return [item for item in found if item.value]


def _refuse_swallowed(command: TyperCommand, args: list[str]) -> None:
    """`--student --teacher T` is a `$student` that was empty. A value may begin with dashes after `=`."""
    options = {name: param for param in command.params if isinstance(param, TyperOption) for name in param.opts}
    for word, following in pairwise(args):
        if word == "--":
            return
        if word in options and not options[word].is_flag and following in options:
            raise UsageError(f"{word} has no value", f"the command before it may have failed; give it: {word} VALUE")


def declared(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of a command with the options that every command takes, and completion on its parameters."""
    own = inspect.signature(function, eval_str=True).parameters.values()
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=_completed(name, p)) for p in own]
    parameters += [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
        for key, (hint, default) in GLOBAL_OPTIONS.items()
    ]

    @wraps(function)
    def command(**values: Any) -> Any:
        return function(**{key: value for key, value in values.items() if key not in GLOBAL_OPTIONS})

    vars(command)["__signature__"] = inspect.Signature(parameters)
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    return command


def _completed(command: str, parameter: inspect.Parameter) -> Any:
    """The annotation of a parameter with what completes its values, by the name that it has in every command."""
    answer = complete.of(command, parameter.name)
    if answer is None:
        return parameter.annotation
    (found,) = [meta for meta in parameter.annotation.__metadata__ if isinstance(meta, ParameterInfo)]
    info = copy(found)  # shared options are one object for all commands
    info.autocompletion = answer
    return Annotated[parameter.annotation.__origin__, info]
