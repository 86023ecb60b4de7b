"""A recipe: one making command as TOML, read and checked for its form."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from adpa_cli.errors import UsageError

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
    recipe = Recipe(source, text, str(values.pop("command", "distill")), values, pins)
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
