"""One file here is one command with its screen, found by listing the folder.

A command file ends with its `COMMAND`: the panel of `adpa --help` that lists it, its place there, and its function,
whose signature and docstring are its options and its help.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

PANELS = ("Build", "Look", "Use", "Keep")


@dataclass(frozen=True)
class Command:
    """A command of `adpa`; `settings` are for its parser, `also` is what other tools call it.

    What `Build` lists makes artifacts and can be planned.
    """

    name: str
    panel: Literal["Build", "Look", "Use", "Keep"]
    place: int
    function: Callable[..., Any]
    settings: Mapping[str, Any] = field(default_factory=dict)
    also: Sequence[str] = ()


@functools.cache
def every() -> dict[str, Command]:
    """All commands by name, in the order of `adpa --help`."""
    files = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    commands: list[Command] = [file.COMMAND for file in files]
    return {c.name: c for c in sorted(commands, key=lambda c: (PANELS.index(c.panel), c.place))}


def makers() -> dict[str, Command]:
    """The commands that make artifacts, by name."""
    return {name: command for name, command in every().items() if command.panel == "Build"}
