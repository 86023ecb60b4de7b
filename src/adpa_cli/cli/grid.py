"""The grid of a recipe: lists are swept, and each cell is one command line."""

from __future__ import annotations

import difflib
import inspect
import itertools
import re
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import typer

from adpa_cli.cli.options import FIRST
from adpa_cli.cli.recipe import PINS, SET, Recipe, as_text, flat, word
from adpa_cli.spec import STAGE_VERSIONS
from adpa_cli.stages.request_distill import needed_methods
from adpa_cli.stages.settings import methods_of, settable

_PLACEHOLDER = re.compile(r"([._-]?)\{([^{}]*)\}")


@dataclass(frozen=True)
class Key:
    """An option of a command under its name in a recipe: its long name, or an argument's own."""

    flag: bool = False
    several: bool = False
    positional: bool = False


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
        several = any(typing.get_origin(part) is list for part in (kind, *typing.get_args(kind)))
        if isinstance(meta, typer.models.ArgumentInfo):
            found[parameter.name] = Key(several=several, positional=True)
        elif meta.rich_help_panel != FIRST:
            # Inside Annotated the parser keeps the first name of an option where its default would be.
            names = [name[2:] for name in (str(meta.default), *(meta.param_decls or ())) if name.startswith("--")]
            found.update({name: Key(flag=kind is bool, several=several) for name in names if name != SET})
    return found


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
    own = needed_methods(str(point["method"])) if command == "distill" and "method" in point else methods_of(command)
    found: dict[str, Any] = {}
    for method in own:
        found.update(settable(command, method))
    for stage in STAGE_VERSIONS:
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
        if dot and stage not in STAGE_VERSIONS:
            stages = ", ".join(f"[{known_stage}]" for known_stage in STAGE_VERSIONS)
            raise recipe.refused(key, f"there is no table [{stage}]", f"tables: [{SET}], [{PINS}], {stages}")
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
