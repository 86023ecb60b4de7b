"""A recipe: one making command as TOML, or a grid of them, and the command line of every cell."""

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
from adpa_cli.cli.console.options import FIRST, TEMPLATE_METAVAR, WHERE, Request
from adpa_cli.errors import NotFound, UsageError
from adpa_cli.planning.distill_builder import needed_methods
from adpa_cli.planning.settings import methods_of, settable
from adpa_cli.stages.training import DISTILL

SET, PINS = "set", "pins"
_HEADER = re.compile(r"\s*\[\s*([^\[\]]+?)\s*\]\s*(#.*)?$")
_PLACEHOLDER = re.compile(r"([._-]?)\{([^{}]*)\}")


@dataclass(frozen=True)
class Recipe:
    """A recipe as it was read. `values` holds options and settings by name, those of a stage as `stage.key`."""

    source: str
    text: str
    command: str
    values: Mapping[str, Any]
    pins: Mapping[str, str] = field(default_factory=dict)
    """What names of the hub mean in it: commits by name."""

    def refused(self, key: str, problem: str, hint: str) -> UsageError:
        """An error that names the file, the line where there is one, and the key."""
        line = _line_of(self.text, key)
        at = f"{self.source}:{line}" if line else self.source
        return UsageError(f"{at}: {key}: {problem}", hint)


def read(text: str, source: str) -> Recipe:
    """A recipe from its text; `source` names it in errors. Raises UsageError."""
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        hint = "a recipe has lines KEY = VALUE; see docs/recipes.md"
        raise UsageError(f"{source} is no TOML: {error}", hint) from None
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
    """Raise UsageError for a value that no command line can have."""
    for item in flat(value):
        if not isinstance(item, str | int | float | bool):
            raise recipe.refused(key, "is neither text, a number nor a list of them", "write KEY = VALUE")
        if item == "-":
            raise recipe.refused(key, "a recipe does not read ids from stdin", "name the artifact by its id or tag")
    if isinstance(value, list) and not value:
        raise recipe.refused(key, "is an empty list", "give it a value, or leave the key out")


def flat(value: Any) -> Iterator[Any]:
    """The single values of a value: of lists, and of lists in them."""
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
    table = ""
    for number, line in enumerate(text.splitlines(), 1):
        if header := _HEADER.match(line):
            table = header[1].strip("\"' ")
            continue
        written = line.partition("=")[0].strip().replace('"', "").replace("'", "").replace("_", "-")
        full = f"{table}.{written}" if table and table != SET else written
        if "=" in line and full == key.replace("_", "-"):
            return number
    return None


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

    @property
    def is_template(self) -> bool:
        """Whether it names a chat template, or a file with one."""
        return self.metavar == TEMPLATE_METAVAR


@dataclass(frozen=True)
class Cell:
    """One point of a grid: every key of the recipe at its value here, and the command line that this is."""

    settings: Mapping[str, Any]
    words: tuple[str, ...]


def keys_of(function: Callable[..., Any]) -> dict[str, Key]:
    """What a command takes besides --set, by recipe key, read off its signature; nothing that only looks."""
    keys: dict[str, Key] = {}
    for parameter in inspect.signature(function).parameters.values():
        meta = next(m for m in parameter.annotation.__metadata__ if isinstance(m, typer.models.ParameterInfo))
        kind = typing.get_args(parameter.annotation)[0]
        several = any(typing.get_origin(part) is list for part in (kind, *typing.get_args(kind)))
        is_argument = isinstance(meta, typer.models.ArgumentInfo)
        key = Key(kind is bool, several, is_argument, parameter.name, str(meta.metavar), str(meta.rich_help_panel))
        if is_argument:
            keys[parameter.name] = key
        elif meta.rich_help_panel != FIRST:
            # Inside Annotated the parser keeps the first name of an option where its default would be.
            names = (str(meta.default), *(getattr(meta, "param_decls", None) or ()))
            keys.update({name[2:]: key for name in names if name.startswith("--") and name[2:] != SET})
    return keys


def values_of(words: Sequence[str]) -> dict[str, Any]:
    """The values of a command line by their names in a recipe, without those that only say how to run.

    Raises what the parser does.
    """
    from adpa_cli.cli.console.app import program
    from adpa_cli.planning.settings import parse_sets

    params = program().commands[words[0]].make_context(words[0], list(words[1:])).params
    values: dict[str, Any] = {}
    keys = keys_of(makers()[words[0]].function)
    names: dict[str, str] = {}
    for name, key in keys.items():
        names.setdefault(key.parameter, name)  # an option of two names goes by the first
    for parameter, name in names.items():
        key, value = keys[name], params[parameter]
        is_unset = value is False or value in (None, [], ())  # 0 is a value, and equals False
        if key.panel != WHERE and name != "tag" and not is_unset:
            values[name] = list(value) if key.several else value
    bare, by_stage = parse_sets(params.get("sets") or ())
    # An option that is named like a setting is another thing: it may be followed by other stages, or refuse the value.
    settings = {f"{words[0]}.{key}" if option(key, keys) in keys else key: value for key, value in bare.items()}
    settings |= {f"{stage}.{key}": value for stage, named in by_stage.items() for key, value in named.items()}
    return {**values, **{name: _toml_value(value) for name, value in settings.items()}}


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
    settable_in = [_settings(recipe.command, point) for point in grid]
    some = {key: default for settings in settable_in for key, default in settings.items()}
    _check_keys(recipe, named, keys, some)
    cells: dict[tuple[str, ...], Cell] = {}
    for point, settings in zip(grid, settable_in, strict=True):
        # an option may be a setting too, as --states is
        here = {key: value for key, value in point.items() if key in settings or (key in keys and key not in some)}
        if "tag" in here:
            here["tag"] = _tag(recipe, str(here["tag"]), here, point)
        words = _words(recipe.command, here, keys)
        cells.setdefault(words, Cell(here, words))
    return list(cells.values())


def option(key: str, keys: Collection[str]) -> str:
    """A key as the command spells it: hyphens in options, underscores in settings."""
    hyphened = key.replace("_", "-")
    return hyphened if hyphened in keys else key.replace("-", "_") if "." not in key else key


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


def _settings(command: str, point: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting with its default that a cell may have: bare ones of its own stage, `stage.key` of any."""
    chosen = stages.every()[command].any_method and "method" in point
    methods = needed_methods(str(point["method"])) if chosen else methods_of(command)
    settings = {name: value for method in methods for name, value in settable(command, method).items()}
    for stage in stages.names():
        for method in methods if stage == command else methods_of(stage):
            settings.update({f"{stage}.{name}": value for name, value in settable(stage, method).items()})
    return settings


def _check_keys(recipe: Recipe, named: Collection[str], keys: Mapping[str, Key], settings: Mapping[str, Any]) -> None:
    """Raise UsageError for a key that is neither an option nor a setting of any cell."""
    for key in named:
        if key in keys or key in settings:
            continue
        stage, dot, name = key.rpartition(".")
        if dot and stage not in stages.names():
            tables = ", ".join(f"[{name}]" for name in (SET, PINS, *stages.names()))
            raise recipe.refused(key, f"there is no table [{stage}]", f"tables: {tables}")
        own = {n.rpartition(".")[2]: v for n, v in settings.items() if n.rpartition(".")[0] == stage}
        listed = ", ".join(f"{n}={v}" for n, v in own.items())
        options = "" if dot else f"options: {', '.join(keys)}; "
        close = difflib.get_close_matches(name, [*own, *({} if dot else keys)], n=1)
        guess = f"did you mean {close[0]}? " if close else ""
        methods = [str(item) for item in flat(recipe.values.get("method", []))]
        who = f"none of the methods {', '.join(methods)}" if len(methods) > 1 else f"adpa {recipe.command}"
        who = f"the stage {stage}" if dot else who
        raise recipe.refused(key, f"{who} has no such key", f"{guess}{options}settings: {listed}")


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
    if name != "-":
        try:
            return read(Path(name).read_text(encoding="utf-8"), name)
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise NotFound(f"{name} cannot be read: {why}", "name a recipe: adpa run RECIPE.toml") from None
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("- reads a recipe from a pipe, and stdin is a terminal", "adpa show REF --recipe | adpa run -")
    text = sys.stdin.read()
    if not text.strip():
        raise NotFound("-: nothing came through the pipe", "the command before it failed, or printed nothing")
    return read(text, "stdin")


def requests(recipe: Recipe) -> list[tuple[Cell, Request]]:
    """The cells of a recipe, each as what its command was asked for. Raises UsageError naming the file."""
    from adpa_cli.cli.console.app import run_words, usage_error

    commands = {name: command.function for name, command in makers().items() if name != "run"}
    if recipe.command not in commands:
        raise recipe.refused("command", f"{recipe.command} makes nothing", f"commands: {', '.join(commands)}")
    cells = []
    for cell in expand(recipe, keys_of(commands[recipe.command])):
        try:
            cells.append((cell, run_words(cell.words)))
        except (TyperException, UsageError) as error:
            refused = error if isinstance(error, UsageError) else usage_error(error, cell.words)
            raise UsageError(f"{recipe.source}: {refused.message}", refused.hint) from None
    return cells
