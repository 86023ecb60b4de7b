"""The screen of `--help`, of a command and of the program, as text of a given width.

Two conventions make it. A docstring is one sentence and a paragraph of examples, one a line, each with what it costs
after three spaces; more paragraphs are prose. A `[…]` at the end of an option's help is its default, and `[required]`
puts the option into the usage.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from adpa_cli.cli.console.options import MUCH, WHAT, WHERE

WIDEST = 100
"""Wider terminals get no wider lines."""
LINES = 40
"""What a screen shows; a command with more options names some without a word on them."""
FOLDABLE = {MUCH, WHERE}
EVERYWHERE = "Everywhere"
"""The panel of the options that every command takes: one line at the end."""
EXIT = (
    "Exit:", "0 done", "1 failed", "2 usage", "3 not found", "4 busy", "5 corrupt", "75 run again",
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
    def meaning(self) -> str:
        """Meaning and default as one text."""
        return " ".join(part for part in (self.text, self.default) if part)

    @property
    def usage(self) -> str:
        """The first of an option's names with its metavar, as a usage line says it; an argument as it is."""
        first, *rest = self.names.split()
        return " ".join([first, *(word for word in rest if not word.startswith("-"))])


def command_help(command: TyperCommand, path: str, width: int) -> str:
    """The screen of one command that is called as `path`, at most `width` columns where words allow it."""
    width = min(width, WIDEST)
    entries = entries_of(command)
    needed = [e.usage for e in entries if e.default == "[required]" or not e.names.startswith("-")]
    lines = [*wrapped(f"Usage: {' '.join([path, *needed, '[OPTIONS]'])}", width, "       "), *about(command, width)]
    tail = everywhere(entries, width)
    panels: dict[str, list[Entry]] = {}
    for e in entries:
        if e.panel != EVERYWHERE:
            panels.setdefault(e.panel, []).append(e)
    column = max((len(e.names) for panel in panels.values() for e in panel if len(e.names) < width // 3), default=0)
    shown = {name: [*wrapped(name, width, "  "), *rows(panel, width, column)] for name, panel in panels.items()}
    for name in sorted(FOLDABLE & shown.keys(), key=lambda name: (-len(shown[name]), name)):
        if len(lines) + len(tail) + sum(map(len, shown.values())) > LINES:
            shown[name] = [
                *wrapped(name, width, "  "),
                *(f"  {line}" for line in flowed([e.brief for e in panels[name]], width - 2)),
            ]
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
    entries = entries_of(group)
    own = [e.names for e in entries if e.panel != EVERYWHERE]
    lines += [f"{path} COMMAND --help explains a command.", *flowed(own, width), *everywhere(entries, width)]
    return "\n".join(lines)


def entries_of(command: TyperCommand | TyperGroup) -> list[Entry]:
    """What the screen says of the parameters of a command, hidden ones left out."""
    params = [param for param in command.params if isinstance(param, TyperOption | TyperArgument)]
    return [entry(param) for param in params if not param.hidden]


def entry(param: TyperOption | TyperArgument) -> Entry:
    """What the screen says of one parameter."""
    text, default = split_default(param.help or "")
    if not default and param.show_default and param.default not in (None, [], ()) and param.default is not False:
        default = f"[{param.default}]"
    if isinstance(param, TyperArgument):
        metavar = param.metavar or param.name.upper()
        return Entry(WHAT, metavar if param.required or default == "[required]" else f"[{metavar}]", text, default)
    names = " ".join(sorted(param.opts, key=lambda name: name.startswith("--")))
    if not param.is_flag:
        names += f" {param.metavar or param.name.upper().replace('_', '-')}"
    return Entry(param.rich_help_panel or WHAT, names, text, default)


def split_default(text: str) -> tuple[str, str]:
    """A help text without its full stop, and the default in brackets at its end."""
    before, _, default = text.rstrip(".").rpartition(" [") if text.rstrip(".").endswith("]") else (text, "", "")
    return before.rstrip("."), f"[{default}" if default else ""


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
    narrow = max((len(e.names) for e in entries if len(e.names) <= half // 2), default=0)
    short = [e for e in entries if width >= 80 and len(f"  {e.names:<{narrow}}  {e.meaning}  ") <= half]
    if len(short) == 1:
        short = []
    for e in entries:
        if e not in short:
            yield from row(e.names, column, e.meaning, width)
    cells = [f"{e.names:<{narrow}}  {e.meaning}" for e in short]
    for left, right in zip_longest(cells[::2], cells[1::2], fillvalue=""):
        yield f"  {left:<{half - 2}}{right}".rstrip()


def row(names: str, column: int, text: str, width: int) -> list[str]:
    """One option with its meaning beside it, or below it where the screen is narrow."""
    if width < 60:
        return [*wrapped(f"  {names}", width, "      "), *wrapped(text, width, "      ", "      ")]
    return wrapped(f"  {names:<{column}}  {text}", width, " " * (column + 4), "")


def everywhere(entries: Iterable[Entry], width: int) -> list[str]:
    """The last lines: what every command takes, and what its exit code means."""
    names = [e.names for e in entries if e.panel == EVERYWHERE]
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
