"""Options of commands as keys of recipes: which there are, and the command line of some values."""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import typer

from adpa_cli.cli.commands import makers
from adpa_cli.cli.console.options import FIRST, TEMPLATE_METAVAR, WHERE
from adpa_cli.stages.eval import EVAL

SET = "set"


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


def evaluation_words(models: Sequence[str], values: Mapping[str, Any]) -> tuple[str, ...]:
    """The command line that measures some models with the values of a closing evaluation."""
    return command_words(EVAL.name, {**values, "models": list(models)}, keys_of(makers()[EVAL.name].function))


def option(key: str, keys: Collection[str]) -> str:
    """A key as the command spells it: hyphens in options, underscores in settings."""
    hyphened = key.replace("_", "-")
    return hyphened if hyphened in keys else key.replace("-", "_") if "." not in key else key


def command_words(command: str, settings: Mapping[str, Any], keys: Mapping[str, Key]) -> tuple[str, ...]:
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


def word(value: Any) -> str:
    """A TOML value as it is typed on the command line."""
    return str(value).lower() if isinstance(value, bool) else str(value)
