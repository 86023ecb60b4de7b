"""No name of a stage, a suite or a method stands as a literal outside its own file, the families and the recipes.

Where it does, adding one of a kind would mean editing a list elsewhere.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from adpa_cli import methods, stages, suites

PACKAGE = Path(stages.__file__).parents[1]
OWN = ("families.py", "stages/", "suites/", "methods/", "cli/commands/")
"""Files of stages, suites and methods name themselves; commands are declared by the name of what they make."""
OTHER_MEANINGS = {
    "rollout": "the part of an example that is an answer drawn from a model: methods.Part",
    "rewards": "the input of a training that holds what a reward model gave",
    "start-logps": "the input of a training that holds what its start model gave",
    "accuracy": "a number that is measured, by its name in metrics",
    "agreement": "the same",
    "tiny": "the built-in family",
    "judgements": "the input of an evaluation that holds what a judge said, and the kind of artifact",
    "alpaca-eval": "the format of its files",
    "mt-bench": "the format of its files",
    "adpa": "the program",
}
IN_DATA = ("data/sources.py", "eval")
"""A word that other people's data sets have for the rows that are held out."""


def names() -> dict[str, set[str]]:
    """The files, below the package, in which each name may stand."""
    own: dict[str, set[str]] = {}
    for module in ("stages", "suites", "methods"):
        for path in (PACKAGE / module).glob("*.py"):
            for literal in literals(path):
                own.setdefault(literal, set()).add(f"{module}/{path.name}")
    every = {*stages.names(), *suites.every(), *methods.names(), *methods.UNLISTED}
    return {name: own.get(name, set()) for name in every}


def literals(path: Path) -> Iterator[str]:
    """The text constants of a file that are no docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    yield from (
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs
    )


def test_no_name_stands_outside_its_own_file() -> None:
    known = names()
    foreign = [
        f"{path.relative_to(PACKAGE)}: {literal!r}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if not path.relative_to(PACKAGE).as_posix().startswith(OWN)
        for literal in literals(path)
        if literal in known and literal not in OTHER_MEANINGS
        if (path.relative_to(PACKAGE).as_posix(), literal) != IN_DATA
    ]
    assert foreign == []
