"""A recipe: one making command as TOML, or a grid of them, and the command line of every cell."""

from __future__ import annotations

import difflib
import itertools
import re
import sys
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from typer.exceptions import TyperException

from adpa_cli import stages
from adpa_cli.cli.commands import makers
from adpa_cli.cli.console.options import Request
from adpa_cli.cli.console.streams import GLOBALS
from adpa_cli.cli.recipes.words import SET, Key, command_words, keys_of, option, word
from adpa_cli.errors import NotFound, UsageError
from adpa_cli.planning.distill_builder import needed_methods
from adpa_cli.planning.settings import methods_of, settable
from adpa_cli.stages.eval import EVAL
from adpa_cli.stages.training import DISTILL
from adpa_cli.suites import EvalSpec

PINS, TUNING = "pins", "tuning"
NAME, MEASURES, OF, AGAINST = "name", "measures", "of", "against"
"""Keys of a row that are about the closing table."""
START = "start"
TEACHERS = {"aligned teacher": "aligned", "reference teacher": "reference"}
"""The two teachers of a signal, by their roles there."""
MEASURED = (START, *TEACHERS)
"""Models that rows rest on, and that a row of their own may measure."""
_HEADER = re.compile(r"\s*\[\s*([^\[\]]+?)\s*\]\s*(#.*)?$")
_FOLLOWS = re.compile(r"\{([^{}]+)\}")
_PLACEHOLDER = re.compile(r"([._-]?)\{([^{}]*)\}")


@dataclass(frozen=True)
class Row:
    """A row of the closing table: the values that its cells have besides those of all rows, or a model to measure."""

    name: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)
    measures: str = ""
    """One of `MEASURED`; "" for a row of cells."""
    of: str = ""
    """The row for each of whose lines such a model is measured; "" for the models that all rows share."""
    against: str = ""
    """The row whose answers are to be beaten; "" for that of the recipe."""
    is_tried: bool = False
    """Whether its cells are trainings by which the values of the row below are chosen, and no line of the table."""


@dataclass(frozen=True)
class Recipe:
    """A recipe as it was read. `values` holds options and settings by name, those of a stage as `stage.key`."""

    source: str
    text: str
    command: str
    values: Mapping[str, Any]
    pins: Mapping[str, str] = field(default_factory=dict)
    """What names of the hub mean in it: commits by name."""
    rows: tuple[Row, ...] = ()
    choose: tuple[str, ...] = ()
    """Keys of which each row takes the values that are best by the prompts that select."""
    points: bool = False
    """Whether every kept point of a training is measured."""
    report: Mapping[str, Any] | None = None
    """Options of the closing evaluation, and settings of what it reads; a list measures every line at each value. None
    where each cell is evaluated by itself."""
    tuning: tuple[str, ...] = ()
    """Keys that are others while values are chosen; empty where each line chooses for itself."""

    @property
    def cell_rows(self) -> tuple[Row, ...]:
        """The rows that are made of cells; one without a name in a recipe without rows."""
        return tuple(row for row in self.rows if not row.measures) or (Row(),)

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
        raise UsageError(f"{source} is not valid TOML: {error}", hint) from None
    pins, rows = raw.pop(PINS, {}), raw.pop("rows", [])
    choose, points, report = raw.pop("choose", []), raw.pop("points", False), raw.pop("report", None)
    tuning = _flattened(raw.pop(TUNING, {}))
    values = _flattened(raw)
    command = str(values.pop("command", DISTILL.name))
    plain = Recipe(source, text, command, values)
    if not isinstance(pins, dict) or not all(isinstance(commit, str) for commit in pins.values()):
        raise plain.refused(PINS, "must be a table of names and commits", 'write "org/name" = "COMMIT" below [pins]')
    is_closing = bool(rows or choose or points)
    report = {} if is_closing and report is None else report
    recipe = replace(
        plain, pins=pins, rows=_rows(plain, rows), points=points is True, tuning=tuple(tuning),
        report=report if report is None else _flattened(report),
        choose=tuple(choose) if isinstance(choose, list) else (str(choose),),
    )  # fmt: skip
    recipe = replace(recipe, rows=tuple(_tried_before(recipe, tuning))) if tuning else recipe
    for each in (values, *(row.values for row in recipe.rows), recipe.report or {}):
        for key, value in each.items():
            _check_value(recipe, key, value)
    _check_closing(recipe)
    return recipe


def _flattened(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a table by name, those of a table in it as `stage.key`."""
    values: dict[str, Any] = {}
    for key, value in raw.items():
        if isinstance(value, dict):
            prefix = "" if key == SET else f"{key}."
            values.update({prefix + name.replace("-", "_"): item for name, item in value.items()})
        else:
            values[key] = value
    return values


def _rows(recipe: Recipe, raw: Any) -> tuple[Row, ...]:
    """The rows of a recipe. Raises UsageError for one without a name of its own, and for one that is nothing."""
    rows: list[Row] = []
    for table in raw if isinstance(raw, list) else [raw]:
        if not isinstance(table, dict) or not isinstance(table.get(NAME), str):
            raise recipe.refused(
                "rows", "each row must be a table with a name", 'write [[rows]], and below it name = "DCKD"'
            )
        values = _flattened(table)
        name, measures, of, against = (str(values.pop(key, "")) for key in (NAME, MEASURES, OF, AGAINST))
        row = Row(name, {}, measures, of, against)
        if row.name in (other.name for other in rows):
            raise recipe.refused("rows", f"two rows are called {row.name}", "give each a name of its own")
        if row.measures and (row.measures not in MEASURED or values):
            said = f"the row {row.name} measures {row.measures}" + (f" and has {', '.join(values)}" if values else "")
            ways = " or ".join(map(repr, MEASURED))
            raise recipe.refused("rows", said, f"write measures = {ways}, and besides the name at most of and against")
        if row.of and not row.measures:
            raise recipe.refused(OF, f"the row {row.name} measures nothing", 'add measures = "start", or leave out of')
        rows.append(replace(row, values=values))
    return tuple(rows)


def _tried_before(recipe: Recipe, tuning: Mapping[str, Any]) -> Iterator[Row]:
    """The rows of a recipe with `tuning`: before each one with values to choose a row of the trainings that are tried,
    measured on the validation half, and the row itself with the values that are chosen there.

    Raises UsageError where nothing is chosen.
    """
    tried: dict[str, str] = {}
    for row in recipe.rows:
        values = {**recipe.values, **row.values}
        grid = [key for key in recipe.choose if isinstance(values.get(key), list)]
        known = {key: match[1] for key, value in row.values.items() if (match := _FOLLOWS.fullmatch(str(value)))}
        row = replace(
            row, values={**row.values, **{key: f"{{{tried.get(name, name)}}}" for key, name in known.items()}}
        )
        if row.measures or not grid:
            yield row
            continue
        name = tried[row.name] = f"{row.name} (tried)"
        on_half = {f"{EVAL.name}.measure_on": "validation"}
        yield Row(name, {**row.values, **{key: values[key] for key in grid}, **tuning, **on_half}, is_tried=True)
        yield replace(row, values={**row.values, **dict.fromkeys(grid, f"{{{name}}}")})
    if not tried:
        raise recipe.refused(
            TUNING,
            "there is nothing to choose",
            'name the keys, choose = ["gamma"], and give rows lists of their values',
        )


def _check_closing(recipe: Recipe) -> None:
    """Raise UsageError for what the closing evaluation cannot be asked, before anything is made."""
    if recipe.report is None:
        return
    if recipe.command != DISTILL.name:
        raise recipe.refused(
            "report",
            f"only {DISTILL.name} has a closing table, and the command is {recipe.command}",
            "leave out command, or what asks for a closing table: [report], [[rows]], choose and points",
        )
    allowed = keys_of(makers()[EVAL.name].function)
    names = [row.name for row in recipe.rows]
    settings = [key for key in _settings(EVAL.name, {}) if "." in key]
    for key in recipe.report:
        if key not in (*allowed, *settings) or key == "models":
            options = ", ".join(name for name in allowed if name != "models")
            raise recipe.refused(f"report.{key}", "the closing evaluation has no such key", f"options: {options}")
    trained = [row.name for row in recipe.rows if not row.measures]
    for row in recipe.rows:
        if row.of and row.of not in trained:
            raise recipe.refused(OF, f"no row of trainings is called {row.of}", f"rows: {', '.join(trained)}")
    for against in (str(recipe.report.get(AGAINST, "")), *(row.against for row in recipe.rows)):
        if against and against not in names:
            raise recipe.refused(AGAINST, f"no row is called {against}", f"rows: {', '.join(names)}")
    if "suite" in recipe.report:
        EvalSpec("", "", str(recipe.report["suite"]))


def _check_value(recipe: Recipe, key: str, value: Any) -> None:
    """Raise UsageError for a value that no command line can have."""
    for item in flat(value):
        if not isinstance(item, str | int | float | bool):
            raise recipe.refused(key, "must be text, a number, true or false, or a list of these", "write KEY = VALUE")
        if item == "-":
            raise recipe.refused(key, "a recipe does not read ids from stdin", "name the artifact by its id or tag")
    if isinstance(value, list) and not value:
        raise recipe.refused(key, "is an empty list", "give it a value, or leave the key out")


def flat(value: Any) -> Iterator[Any]:
    """The single values of a value: of lists, and of lists in them."""
    for item in value if isinstance(value, list) else (value,):
        yield from flat(item) if isinstance(item, list) else (item,)


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
class Cell:
    """One point of a grid: every key of the recipe at its value here, and the command line that this is."""

    settings: Mapping[str, Any]
    words: tuple[str, ...]
    row: Row = Row()
    shared: Mapping[str, str] = field(default_factory=dict)
    """The settings, as text, that cells of other rows have too: what is compared is alike in these."""
    follows: Mapping[str, str] = field(default_factory=dict)
    """By key, the row whose choice its value is. The words have the first of its values as long as none is made."""


def expand(recipe: Recipe, keys: Mapping[str, Key]) -> list[Cell]:
    """The cells of a recipe, row by row, the list that comes first in the file varying slowest; equal ones once.

    A setting reaches the cells whose method has it. Raises UsageError for a key that none has.
    """
    grids = [(row, _grid(recipe, row, keys)) for row in recipe.cell_rows]
    settable_in = [[_settings(recipe.command, point) for point in grid] for _, grid in grids]
    every = {key: default for row in settable_in for settings in row for key, default in settings.items()}
    _check_keys(recipe, [option(key, keys) for key in recipe.values], keys, every)
    for (row, _), each in zip(grids, settable_in, strict=True):
        own = {key: default for settings in each for key, default in settings.items()}
        _check_keys(recipe, [option(key, keys) for key in row.values], keys, own)
    cells: dict[tuple[str, ...], Cell] = {}
    for (row, grid), each in zip(grids, settable_in, strict=True):
        for point, settings in zip(grid, each, strict=True):
            # an option may be a setting too, as --states is
            here = {key: value for key, value in point.items() if key in settings or (key in keys and key not in every)}
            cell = _cell(recipe, row, here, point, keys)
            cells.setdefault((row.name, *cell.words), cell)
    return list(cells.values())


def _grid(recipe: Recipe, row: Row, keys: Mapping[str, Key]) -> list[dict[str, Any]]:
    """Every point of a row: a value for each key."""
    named = {option(key, keys): value for key, value in {**recipe.values, **row.values}.items()}
    axes = [_values(recipe, key, value, keys) for key, value in named.items()]
    return [dict(zip(named, point, strict=True)) for point in itertools.product(*axes)]


def _cell(recipe: Recipe, row: Row, here: dict[str, Any], point: Mapping[str, Any], keys: Mapping[str, Key]) -> Cell:
    """The cell of a point, `here` being what acts in it."""
    if "tag" in here:
        here["tag"] = _tag(recipe, str(here["tag"]), here, point)
    if recipe.report is not None and not row.is_tried:
        here["no-eval"] = True
    follows = {
        key: match[1] for key, value in here.items()
        if key != "tag" and isinstance(value, str) and (match := _FOLLOWS.fullmatch(value))
    }  # fmt: skip
    first = {key: _first_value(recipe, row, key, name) for key, name in follows.items()}
    kept = [key for key in here if key in {option(key, keys) for key in recipe.values} - {"tag", *recipe.choose}]
    shared = {key: as_text(here[key]) for key in kept if key not in row.values}
    words = command_words(recipe.command, {**here, **first}, keys)
    return Cell(here, words, row, shared, follows)


def _first_value(recipe: Recipe, row: Row, key: str, name: str) -> Any:
    """The first value that a key has in the row of that name. Raises UsageError where no such row comes before."""
    before = itertools.takewhile(lambda other: other is not row, recipe.rows)
    values = next(({**recipe.values, **other.values} for other in before if other.name == name), None)
    if values is None or key not in values:
        raise recipe.refused(
            key,
            f"no row above {row.name} is called {name} and has that key",
            "write the name of a row above in braces: {ROW}",
        )
    value = values[key]
    return value[0] if isinstance(value, list) else value


def settled(recipe: Recipe, cell: Cell, values: Mapping[str, Any]) -> Cell:
    """A cell that follows the choice of another row, with the values that were chosen."""
    settings = {**cell.settings, **values}
    words = command_words(recipe.command, settings, keys_of(makers()[recipe.command].function))
    return replace(cell, settings=settings, words=words, follows={})


def report_points(recipe: Recipe) -> list[dict[str, Any]]:
    """The closing evaluations of a line: every point of the grid that the lists in its options make."""
    keys, report = keys_of(makers()[EVAL.name].function), recipe.report or {}
    axes = [_values(recipe, key, value, keys) for key, value in report.items()]
    return [dict(zip(report, point, strict=True)) for point in itertools.product(*axes)]


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
        raise recipe.refused(key, "takes one value, but is a list of lists", "give a list of its values to sweep")
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
            raise recipe.refused("tag", f"the recipe has no key {match[2]} for {{{match[2]}}}", f"keys: {allowed}")
        return match[1] + as_text(settings[key]) if key in settings else ""

    return _PLACEHOLDER.sub(value, tag)


def read_recipe(name: str) -> Recipe:
    """A recipe file (`-`: stdin)."""
    if name != "-":
        try:
            return read(Path(name).read_text(encoding="utf-8"), name)
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
            raise NotFound(f"{name} cannot be read: {why}", "name a recipe: adpa run RECIPE.toml") from None
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError(
            "adpa run - reads a recipe from a pipe, but stdin is a terminal", "adpa show REF --recipe | adpa run -"
        )
    text = GLOBALS.piped = sys.stdin.read()
    if not text.strip():
        raise NotFound(
            "adpa run -: nothing came through the pipe",
            "look at the command before the pipe: it failed, or printed nothing",
        )
    return read(text, "stdin")


def requests(recipe: Recipe) -> list[tuple[Cell, Request]]:
    """The cells of a recipe, each as what its command was asked for. Raises UsageError naming the file."""
    commands = {name: command.function for name, command in makers().items() if name != "run"}
    if recipe.command not in commands:
        raise recipe.refused(
            "command", f"a recipe cannot run adpa {recipe.command}", f"commands: {', '.join(commands)}"
        )
    cells = expand(recipe, keys_of(commands[recipe.command]))
    return [(cell, request_of(recipe, cell.words)) for cell in cells]


def request_of(recipe: Recipe, words: Sequence[str]) -> Request:
    """What a command line of a recipe asks for. Raises UsageError naming the file."""
    from adpa_cli.cli.console.app import program, run_words
    from adpa_cli.cli.console.mistyped import usage_error

    try:
        request: Request = run_words(words)
    except (TyperException, UsageError) as error:
        refused = error if isinstance(error, UsageError) else usage_error(error, words, program())
        raise UsageError(f"{recipe.source}: {refused.message}", refused.hint) from None
    return request
