"""How the program is put together out of its commands: help screens, the options that all take, and completion.

Two conventions make the screens. A docstring is one sentence and a paragraph of examples, one a line, each with what it
costs after three spaces; more paragraphs are prose. A `[…]` at the end of an option's help is its default, and
`[required]` puts the option into the usage.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from difflib import get_close_matches
from functools import wraps
from itertools import pairwise, zip_longest
from typing import Annotated, Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption
from typer.exceptions import TyperException
from typer.models import ParameterInfo

from adpa_cli import __version__
from adpa_cli.cli import commands
from adpa_cli.cli.console import complete
from adpa_cli.cli.console.streams import terminal_width
from adpa_cli.errors import UsageError

WIDEST = 100
"""Wider terminals get no wider lines."""
LINES = 40
"""What a screen shows; a command with more options names some without a word on them."""
FOLDABLE = {"How much", "Where and when (noise at most)"}
EVERYWHERE = "Everywhere"
"""The panel of the options that every command takes: one line at the end."""
EXIT = (
    "Exit:", "0 done", "1 failed", "2 usage", "3 not found", "4 busy", "5 corrupt", "75 come again",
    "129/130/143 stopped",
)  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One option or argument: its names with the metavar, what it means, and its default in brackets or ``""``."""

    panel: str
    names: str
    text: str
    default: str

    @property
    def brief(self) -> str:
        """Names and default, for names that speak for themselves."""
        return " ".join(part for part in (self.names, self.default) if part)

    @property
    def told(self) -> str:
        """Meaning and default as one text."""
        return " ".join(part for part in (self.text, self.default) if part)


def command_help(command: TyperCommand, path: str, width: int) -> str:
    """The screen of one command that is called as `path`, at most `width` columns where words allow it."""
    width = min(width, WIDEST)
    entries = _entries(command)
    needed = [one_name(told) for told in entries if told.default == "[required]" or not told.names.startswith("-")]
    lines = [*wrapped(f"Usage: {' '.join([path, *needed, '[OPTIONS]'])}", width, "       "), *about(command, width)]
    tail = everywhere(entries, width)
    panels = {told.panel: [e for e in entries if e.panel == told.panel] for told in entries if told.panel != EVERYWHERE}
    fitting = [len(told.names) for found in panels.values() for told in found if len(told.names) < width // 3]
    column = max(fitting, default=0)
    shown = {panel: [panel, *rows(found, width, column)] for panel, found in panels.items()}
    for panel in sorted(FOLDABLE & shown.keys(), key=lambda name: (-len(shown[name]), name)):
        if len(lines) + len(tail) + sum(map(len, shown.values())) > LINES:
            shown[panel] = [panel, *(f"  {line}" for line in flowed([e.brief for e in panels[panel]], width - 2))]
    return "\n".join([*lines, *(line for panel in shown.values() for line in panel), *tail])


def group_help(group: TyperGroup, path: str, width: int) -> str:
    """The screen of the program itself: its commands by panel, one line each."""
    width = min(width, WIDEST)
    lines = [f"Usage: {path} COMMAND [OPTIONS]", *about(group, width)]
    commands = [one for one in group.commands.values() if isinstance(one, TyperCommand) and not one.hidden]
    column = max(len(str(command.name)) for command in commands)
    for panel in dict.fromkeys(command.rich_help_panel for command in commands):
        lines.append(str(panel))
        for command in commands:
            if command.rich_help_panel == panel:
                lines += row(str(command.name), column, command.short_help or "", width)
    entries = _entries(group)
    own = [told.names for told in entries if told.panel != EVERYWHERE]
    lines += [f"{path} COMMAND --help tells more.", *flowed(own, width), *everywhere(entries, width)]
    return "\n".join(lines)


def _entries(command: TyperCommand | TyperGroup) -> list[Entry]:
    own = [param for param in command.params if isinstance(param, TyperOption | TyperArgument)]
    return [entry(param) for param in own if not param.hidden]


def entry(param: TyperOption | TyperArgument) -> Entry:
    """What the screen says of one parameter."""
    told, default = split_default(param.help or "")
    if isinstance(param.show_default, str):
        default = default or f"[{param.show_default}]"
    elif not default and param.show_default and param.default not in (None, [], ()) and param.default is not False:
        default = f"[{param.default}]"
    if isinstance(param, TyperArgument):
        metavar = param.metavar or param.name.upper()
        return Entry("What", metavar if param.required or default == "[required]" else f"[{metavar}]", told, default)
    names = " ".join(sorted(param.opts, key=lambda name: name.startswith("--")))
    if not param.is_flag:
        names += f" {param.metavar or param.name.upper().replace('_', '-')}"
    return Entry(param.rich_help_panel or "What", names, told, default)


def one_name(told: Entry) -> str:
    """The first of an option's names with its metavar, as a usage line says it; an argument as it is."""
    first, *rest = told.names.split()
    return " ".join([first, *(word for word in rest if not word.startswith("-"))]) if rest else first


def split_default(text: str) -> tuple[str, str]:
    """A help text without its full stop, and the default in brackets at its end."""
    told, _, default = text.rstrip(".").rpartition(" [") if text.rstrip(".").endswith("]") else (text, "", "")
    return told.rstrip("."), f"[{default}" if default else ""


def about(command: TyperCommand | TyperGroup, width: int) -> Iterator[str]:
    """The sentence of a command and its examples, whose costs stand in one column where there is room."""
    paragraphs = (command.help or "").split("\n\n")
    examples = [text for text in paragraphs[1:] if re.match(r"adpa |.*\$\(adpa ", text)]
    for prose in paragraphs:
        if prose not in examples:
            yield from wrapped(" ".join(prose.split()), width, "  ", "  ")
    pairs = [line.strip().partition("   ")[::2] for text in examples for line in text.splitlines()]
    column = max((len(line) for line, cost in pairs if cost), default=0)
    for line, cost in pairs:
        if cost and column + len(cost.strip()) + 5 <= width:
            yield f"  {line:<{column}}   {cost.strip()}"
        else:
            yield from _example(line, width)


def _example(line: str, width: int) -> list[str]:
    """Examples of one line, on several where it is too long: one each, then in parts that a shell joins again."""
    if len(line) + 2 <= width:
        return [f"  {line}"]
    return ["  " + " \\\n    ".join(wrapped(piece, width - 6, "")) for piece in line.split(" · ")]


def rows(entries: Sequence[Entry], width: int, column: int) -> Iterator[str]:
    """The options of a panel, those that are short last and two on a line."""
    half = width // 2
    narrow = max((len(told.names) for told in entries if len(told.names) <= half // 2), default=0)
    short = [told for told in entries if width >= 80 and len(f"  {told.names:<{narrow}}  {told.told}  ") <= half]
    if len(short) == 1:
        short = []
    for told in entries:
        if told not in short:
            yield from row(told.names, column, told.told, width)
    cells = [f"{told.names:<{narrow}}  {told.told}" for told in short]
    for left, right in zip_longest(cells[::2], cells[1::2], fillvalue=""):
        yield f"  {left:<{half - 2}}{right}".rstrip()


def row(names: str, column: int, text: str, width: int) -> list[str]:
    """One option with its meaning beside it, or below it where the screen is narrow."""
    if width < 60:
        return [*wrapped(f"  {names}", width, "      "), *wrapped(text, width, "      ", "      ")]
    return wrapped(f"  {names:<{column}}  {text}", width, " " * (column + 4), "")


def everywhere(entries: Iterable[Entry], width: int) -> list[str]:
    """The last lines: what every command takes, and what its exit code means."""
    names = [told.names for told in entries if told.panel == EVERYWHERE]
    return [*flowed([EVERYWHERE + ":", *names, "-h --help"], width), *flowed(EXIT, width)]


def flowed(items: Sequence[str], width: int) -> list[str]:
    """Items with two spaces between them, never broken within one."""
    held = [item.replace(" ", "\0") for item in items]
    return [line.replace("\0", " ") for line in wrapped("  ".join(held), width, "  ")]


def wrapped(text: str, width: int, following: str, first: str = "") -> list[str]:
    """A text as lines of at most `width`; its inner spaces stay."""
    return textwrap.wrap(
        first + text, max(width, 20), subsequent_indent=following, break_long_words=False, break_on_hyphens=False
    )


def first_sentence(text: str) -> str:
    """What a command does, for the list of commands."""
    sentence = " ".join(text.partition("\n\n")[0].split())
    return re.split(r"[:;] |\. (?=[A-Z])", sentence)[0].rstrip(".:;")


def document(group: TyperGroup, path: str) -> str:
    """All screens as a page of Markdown."""
    screens = {path: group_help(group, path, WIDEST)}
    for name, command in group.commands.items():
        if isinstance(command, TyperCommand):
            screens[f"{path} {name}"] = command_help(command, f"{path} {name}", WIDEST)
    parts = [f"## {called}\n\n```text\n{screen}\n```\n" for called, screen in screens.items()]
    return "\n".join(["# Every command and option\n\nMade by `python -m adpa_cli.cli.help`.\n", *parts])


def _everywhere(*names: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, metavar=metavar, rich_help_panel=EVERYWHERE, show_default=False)


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
        formatter.write(command_help(self, ctx.command_path, terminal_width()))

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
            item.help = split_default(item.help or "")[0]  # shells print it through rich, which eats brackets
        return found


class Group(TyperGroup):
    """The program with our help screen."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        formatter.write(group_help(self, ctx.command_path, terminal_width()))

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


@functools.cache
def program() -> Group:
    """The program with all its commands."""
    app = typer.Typer(
        name="adpa",
        cls=Group,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for name, one in commands.every().items():
        short = first_sentence(one.function.__doc__ or "")
        app.command(
            name, cls=Command, rich_help_panel=one.panel, short_help=short, context_settings=dict(one.settings) or None
        )(declared(name, one.function))
    app.callback()(declared("", adpa))
    group = typer.main.get_command(app)
    if not isinstance(group, Group):
        raise TypeError("the program is no group of commands")
    return group


def run_words(words: Sequence[str]) -> Any:
    """What the command of a command line returns; its errors are raised."""
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
    from adpa_cli import stages
    from adpa_cli.planning.settings import knobs, settable

    key = option.lstrip("-").replace("-", "_")
    at = next((n for n, word in enumerate(words) if word.partition("=")[0] == option), len(words))
    typed, _, value = words[at].partition("=") if at < len(words) else (option, "", "")
    if typed == option and not value and at + 1 < len(words) and not words[at + 1].startswith("--"):
        value = words[at + 1]
    for found in dict.fromkeys((stage, *stages.names())) if "sets" in taken else ():
        of_methods = _methods_of(words) if found in stages.names() and stages.every()[found].any_method else ("",)
        if found in stages.names() and any(key in settable(found, method) for method in of_methods):
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
