"""A recipe: one making command as TOML, read and checked for its form."""

from __future__ import annotations

import difflib
import inspect
import itertools
import json
import re
import sys
import tomllib
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer
from typer.exceptions import TyperException

from adpa_cli import stages
from adpa_cli.cli.commands import makers
from adpa_cli.cli.console.options import FIRST, WHERE, Request
from adpa_cli.errors import NotFound, UsageError
from adpa_cli.planning.distill_builder import needed_methods
from adpa_cli.planning.settings import methods_of, settable
from adpa_cli.stages.training import DISTILL

SET, PINS = "set", "pins"
_HEADER = re.compile(r"\s*\[\s*([^\[\]]+?)\s*\]\s*(#.*)?$")


@dataclass(frozen=True)
class Recipe:
    """A recipe as it was read. `values` holds options and settings by name, those of a stage as `stage.key`."""

    source: str
    text: str
    command: str
    values: Mapping[str, Any]
    pins: Mapping[str, str] = field(default_factory=dict)
    """What names of the hub mean in it: commits by name."""

    def refused(self, key: str, found: str, hint: str) -> UsageError:
        """An error that names the file, the line where there is one, and the key."""
        line = _line_of(self.text, key)
        at = f"{self.source}:{line}" if line else self.source
        return UsageError(f"{at}: {key}: {found}", hint)


def read(text: str, source: str) -> Recipe:
    """A recipe from its text; `source` names it in errors. Raises UsageError."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(
            f"{source} is no TOML: {error}", "a recipe has lines KEY = VALUE; see docs/recipes.md"
        ) from None
    values: dict[str, Any] = {}
    pins = raw.pop(PINS, {})
    for key, value in raw.items():
        if isinstance(value, dict):
            prefix = "" if key == SET else f"{key}."
            values.update({prefix + name.replace("-", "_"): item for name, item in value.items()})
        else:
            values[key] = value
    recipe = Recipe(source, text, str(values.pop("command", DISTILL.name)), values, pins)
    if not isinstance(pins, dict) or not all(isinstance(commit, str) for commit in pins.values()):
        raise recipe.refused(PINS, "is no table of commits", 'write "org/name" = "COMMIT" below [pins]')
    for key, value in values.items():
        _check_value(recipe, key, value)
    return recipe


def _check_value(recipe: Recipe, key: str, value: Any) -> None:
    for item in flat(value):
        if not isinstance(item, str | int | float | bool):
            raise recipe.refused(key, "is neither text, a number nor a list of them", "write KEY = VALUE")
        if item == "-":
            raise recipe.refused(key, "a recipe does not read ids from stdin", "name the artifact by its id or tag")
    if isinstance(value, list) and not value:
        raise recipe.refused(key, "is an empty list", "give it a value, or leave the key out")


def flat(value: Any) -> Iterator[Any]:
    for item in value if isinstance(value, list) else (value,):
        yield from flat(item) if isinstance(item, list) else (item,)


def word(value: Any) -> str:
    """A TOML value as it is typed on the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def as_text(value: Any) -> str:
    """A value of a recipe for people: lists with commas."""
    return ",".join(map(word, value)) if isinstance(value, list) else word(value)


def _line_of(text: str, key: str) -> int | None:
    """The line of the text that gives `key` a value, from 1."""
    stage, _, name = key.rpartition(".")
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        header = _HEADER.match(line)
        if header:
            table = header[1].strip("\"' ")
            continue
        written = line.partition("=")[0].strip().replace('"', "").replace("'", "").replace("_", "-")
        full = f"{table}.{written}" if table and table != SET else written
        if "=" in line and full == (f"{stage}.{name}" if stage else name).replace("_", "-"):
            return number
    return None


_PLACEHOLDER = re.compile(r"([._-]?)\{([^{}]*)\}")


@dataclass(frozen=True)
class Key:
    """An option of a command under its name in a recipe: its long name, or an argument's own."""

    flag: bool = False
    several: bool = False
    positional: bool = False
    parameter: str = ""
    """Its name in the signature."""
    metavar: str = ""
    panel: str = ""

    @property
    def is_model(self) -> bool:
        """Whether it names models or artifacts."""
        return self.metavar in ("MODEL", "ID", "REF…")

    @property
    def is_data(self) -> bool:
        """Whether it names data sets."""
        return self.metavar == "SRC"


@dataclass(frozen=True)
class Cell:
    """One point of a grid: every key of the recipe at its value here, and the command line that this is."""

    settings: Mapping[str, Any]
    words: tuple[str, ...]


def keys_of(function: Callable[..., Any]) -> dict[str, Key]:
    """What a command takes besides --set, by recipe key, read off its signature; nothing that only looks."""
    found: dict[str, Key] = {}
    for parameter in inspect.signature(function).parameters.values():
        meta = next(m for m in parameter.annotation.__metadata__ if isinstance(m, typer.models.ParameterInfo))
        kind = typing.get_args(parameter.annotation)[0]
        shown = (parameter.name, str(meta.metavar or ""), str(meta.rich_help_panel or ""))
        several = any(typing.get_origin(part) is list for part in (kind, *typing.get_args(kind)))
        if isinstance(meta, typer.models.ArgumentInfo):
            found[parameter.name] = Key(False, several, True, *shown)
        elif meta.rich_help_panel != FIRST:
            # Inside Annotated the parser keeps the first name of an option where its default would be.
            names = [name[2:] for name in (str(meta.default), *(meta.param_decls or ())) if name.startswith("--")]
            found.update({name: Key(kind is bool, several, False, *shown) for name in names if name != SET})
    return found


def values_of(words: Sequence[str]) -> dict[str, Any]:
    """The values of a command line by their names in a recipe, without those that only say how to run.

    Raises what the parser does.
    """
    from adpa_cli.cli.console.app import program
    from adpa_cli.planning.settings import parse_sets

    given = program().commands[words[0]].make_context(words[0], list(words[1:])).params
    found: dict[str, Any] = {}
    for name, key in keys_of(makers()[words[0]].function).items():
        value = given[key.parameter]
        if key.panel != WHERE and name != "tag" and value not in (None, False, [], ()):
            found[name] = list(value) if key.several else value
    own, by_stage = parse_sets(given.get("sets") or ())
    typed = {**own, **{f"{stage}.{key}": value for stage, named in by_stage.items() for key, value in named.items()}}
    return {**found, **{name: _toml_value(value) for name, value in typed.items()}}


def _toml_value(text: str) -> Any:
    """Text as the number or truth value that it spells, else as it is."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, bool | int | float) else text


def expand(recipe: Recipe, keys: Mapping[str, Key]) -> list[Cell]:
    """The cells of a recipe, the list that comes first in the file varying slowest; equal ones once.

    A setting reaches the cells whose method has it. Raises UsageError for a key that none has.
    """
    named = {option(key, keys): value for key, value in recipe.values.items()}
    grid = [dict(zip(named, point, strict=True)) for point in itertools.product(*(
        _values(recipe, key, value, keys) for key, value in named.items()
    ))]  # fmt: skip
    known = [_known(recipe.command, point) for point in grid]
    _check_keys(recipe, named, keys, known)
    some = {key for settings in known for key in settings}  # an option may be a setting too, as --states is
    cells: dict[tuple[str, ...], Cell] = {}
    for point, settings in zip(grid, known, strict=True):
        here = {key: value for key, value in point.items() if key in settings or (key in keys and key not in some)}
        if "tag" in here:
            here["tag"] = _tag(recipe, str(here["tag"]), here, point)
        words = _words(recipe.command, here, keys)
        cells.setdefault(words, Cell(here, words))
    return list(cells.values())


def option(key: str, keys: Collection[str]) -> str:
    """A key as the command spells it: hyphens in options, underscores in settings."""
    option = key.replace("_", "-")
    return option if option in keys else key.replace("-", "_") if "." not in key else key


def _values(recipe: Recipe, key: str, value: Any, keys: Mapping[str, Key]) -> Sequence[Any]:
    """The points of one axis. Where an option takes several values a list is one of them, a list of lists an axis."""
    if not isinstance(value, list):
        return [value]
    nested = any(isinstance(item, list) for item in value)
    if key in keys and keys[key].several:
        if not nested:
            return [value]
        return [item if isinstance(item, list) else [item] for item in value]
    if nested:
        raise recipe.refused(key, "is a list of lists, and takes one value", "give a list of its values to sweep")
    return value


def _known(command: str, point: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting with its default that a cell may have: bare ones of its own stage, `stage.key` of any."""
    chosen = stages.every()[command].any_method and "method" in point
    own = needed_methods(str(point["method"])) if chosen else methods_of(command)
    found: dict[str, Any] = {}
    for method in own:
        found.update(settable(command, method))
    for stage in stages.names():
        for method in own if stage == command else methods_of(stage):
            found.update({f"{stage}.{name}": value for name, value in settable(stage, method).items()})
    return found


def _check_keys(
    recipe: Recipe, named: Mapping[str, Any], keys: Mapping[str, Key], known: Sequence[Mapping[str, Any]]
) -> None:
    settings: dict[str, Any] = {name: default for found in known for name, default in found.items()}
    for key in named:
        if key in keys or key in settings:
            continue
        stage, dot, name = key.rpartition(".")
        if dot and stage not in stages.names():
            tables = ", ".join(f"[{name}]" for name in (SET, PINS, *stages.names()))
            raise recipe.refused(key, f"there is no table [{stage}]", f"tables: {tables}")
        prefix = f"{stage}." if dot else ""
        own = {
            n.removeprefix(prefix): v
            for n, v in settings.items()
            if n.startswith(prefix) and "." not in n[len(prefix) :]
        }
        listed = ", ".join(f"{n}={v}" for n, v in own.items())
        options = "" if dot else f"options: {', '.join(keys)}; "
        close = difflib.get_close_matches(name, [*own, *({} if dot else keys)], n=1)
        guess = f"did you mean {close[0]}? " if close else ""
        who = f"the stage {stage} has" if dot else _whose(recipe)
        raise recipe.refused(key, f"{who} no such key", f"{guess}{options}settings: {listed}")


def _whose(recipe: Recipe) -> str:
    methods = [str(item) for item in flat(recipe.values.get("method", []))]
    return f"none of the methods {', '.join(methods)} has" if len(methods) > 1 else f"adpa {recipe.command} has"


def _tag(recipe: Recipe, tag: str, settings: Mapping[str, Any], every: Collection[str]) -> str:
    """A tag with `{key}` replaced by what the key is in this cell; where it has none the mark before goes too."""

    def value(match: re.Match[str]) -> str:
        key = option(match[2], settings) if match[2] not in every else match[2]
        if key not in every or key == "tag":
            allowed = ", ".join(f"{{{name}}}" for name in every if name != "tag")
            raise recipe.refused("tag", f"{{{match[2]}}} is no key of this recipe", f"there are {allowed}")
        return match[1] + as_text(settings[key]) if key in settings else ""

    return _PLACEHOLDER.sub(value, tag)


def _words(command: str, settings: Mapping[str, Any], keys: Mapping[str, Key]) -> tuple[str, ...]:
    """The command line of a cell."""
    words, arguments = [command], list[str]()
    for name, value in settings.items():
        items = value if isinstance(value, list) else [value]
        key = keys.get(name)
        if key is None:
            words += ["--set", f"{name}={word(value)}"]
        elif key.positional:
            arguments += map(str, items)
        elif key.flag:
            words += [f"--{name}"] if value else []
        else:
            words += [part for item in items for part in (f"--{name}", word(item))]
    return (*words, *arguments)


def read_recipe(name: str) -> Recipe:
    """A recipe file (`-`: stdin)."""

    return read(_text(name), "stdin" if name == "-" else name)


def _text(name: str) -> str:

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

    known = {name: command.function for name, command in makers().items() if name != "run"}
    if recipe.command not in known:
        raise recipe.refused("command", f"{recipe.command} makes nothing", f"commands: {', '.join(known)}")
    return keys_of(known[recipe.command])


def requests(recipe: Recipe) -> list[tuple[Cell, Request]]:
    """The cells of a recipe, each as what its command was asked for. Raises UsageError naming the file."""
    from adpa_cli.cli.console.app import run_words, usage_error

    found = []
    for cell in expand(recipe, keys_for(recipe)):
        try:
            found.append((cell, run_words(cell.words)))
        except TyperException as error:
            said = usage_error(error, cell.words)
            raise UsageError(f"{recipe.source}: {said.message}", said.hint) from None
        except UsageError as error:
            raise UsageError(f"{recipe.source}: {error.message}", error.hint) from None
    return found
