"""The recipes that are named after tables and figures have the rows and columns of these (Gao et al. 2025).

What stands here was written down from the paper, not from the recipes: the rows of each table in its words, what is
trained for each, the pairs of models and data sets that are its columns, and what each row is compared with.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from adpa_cli.cli.recipes.grid import Cell, Recipe, read, requests

RECIPES = Path(__file__).resolve().parents[2] / "examples" / "recipes"
ALPHAS, GAMMAS = (0.1, 0.2, 0.5, 1, 2, 5), (0.5, 1, 1.5, 2, 3, 5)
"""The grids of section 4.1."""
JUDGE = "sfairXC/FsfairX-LLaMA3-RM-v0.1"
MIX, BOTH = ("dpo-mix-7k",), ("dpo-mix-7k", "helpsteer2")
DANUBE = ("danube2-1.8b",)
OTHERS = ("danube3-500m", "danube2-1.8b", "llama-2-7b")


@dataclass(frozen=True)
class Line:
    """A row of a table: its method and the settings that make it what it is; `grid` are the candidates for it."""

    method: str
    against: str = ""
    settings: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, tuple[float, ...]] = field(default_factory=dict)
    model: str = ""
    """What a row without a training measures."""


@dataclass(frozen=True)
class Table:
    """A table of the paper: rows by name, columns, and whether setting and checkpoint are chosen."""

    rows: dict[str, Line]
    students: tuple[str, ...] = DANUBE
    data: tuple[str, ...] = MIX
    is_selected: bool = True
    points: bool = False


STUDENT = Line("", model="start")
SYSTEMS = {
    "Teacher": Line("", "Student", model="aligned teacher"),
    "Student": STUDENT,
    "SFT": Line("sft", "Student"),
    "DPO": Line("dpo", "Student"),
    "SimPO": Line("simpo", "Student"),
    "WPO": Line("wpo", "Student"),
    "VanillaKD": Line("vanilla-kd", "Student"),
    "SeqKD": Line("seqkd", "Student"),
    "ATKD": Line("atkd", "Student"),
    "PLaD": Line("plad", "Student"),
    "DDPO": Line("ddpo", "Student"),
    "DPKD": Line("dpkd", "Student"),
    "DCKD": Line("dckd", "Student", grid={"alpha": ALPHAS}),
    "ADPA": Line("adpa", "Student", grid={"gamma": GAMMAS}),
    "ADPA+": Line("adpa+", "Student", {"alpha": "{DCKD}"}, {"gamma": GAMMAS}),
}
DPPO = {
    "DPPO (token level)": Line("dppo", "Student", {"reward": "token"}),
    "DPPO (sequence level)": Line("dppo", "Student", {"reward": "sequence"}),
}
PAPER = {
    "table1": Table(SYSTEMS, ("llama-3.2-1b",), BOTH),
    "table2": Table(
        {
            "DCKD": Line("dckd", grid={"alpha": ALPHAS}),
            "DCKD w/o DPO teacher": Line("dckd", "DCKD", {"kd_teacher": "sft-chosen"}, {"alpha": ALPHAS}),
            "DCKD w/o dispreferred": Line("dckd", "DCKD", {"dispreferred": False}, {"alpha": ALPHAS}),
            "ADPA": Line("adpa", grid={"gamma": GAMMAS}),
            "ADPA w/o reference teacher": Line("adpa-noref", "ADPA", grid={"gamma": GAMMAS}),
        },
        OTHERS,
    ),
    "table3": Table({"Student": STUDENT, **DPPO, "ADPA": Line("adpa", "Student")}),
    "table4": Table(SYSTEMS, OTHERS, BOTH),
    "table6": Table({
        "Student": STUDENT,
        "ADPA": Line("adpa", "Student", grid={"gamma": GAMMAS}),
        "Q-argmax": Line("q-argmax", "Student", grid={"gamma": GAMMAS}),
        "Q-softmax": Line("q-softmax", "Student", grid={"gamma": GAMMAS}),
    }),
    "table7": Table({
        "Student": STUDENT,
        "Student's answers": Line("adpa", "Student", {"states": "student"}),
        "Preferred answers": Line("adpa", "Student", {"states": "chosen"}),
        "Dispreferred answers": Line("adpa", "Student", {"states": "rejected"}),
        "Teacher's answers": Line("adpa", "Student", {"states": "teacher"}),
    }),
    "figure4": Table(
        {
            "Student": STUDENT,
            "ADPA": Line("adpa", "Student", {"gamma": 3, "epochs": 3}),
            **{name: Line("dppo", "Student", {**line.settings, "epochs": 3}) for name, line in DPPO.items()},
        },
        is_selected=False,
        points=True,
    ),
    "figure5-alpha": Table({"": Line("dckd", grid={"alpha": ALPHAS})}),
    "figure5-gamma": Table({"": Line("adpa", grid={"gamma": GAMMAS})}),
}  # fmt: skip
COMMON = {"method", "student", "data", "select", "reward-model", "no-eval", "tag", "keep", "seed", "seed-all"}


def recipe(name: str) -> tuple[Recipe, list[Cell]]:
    """A recipe with its cells, each of which a command of this program takes."""
    found = read((RECIPES / f"{name}.toml").read_text(encoding="utf-8"), f"{name}.toml")
    return found, [cell for cell, _ in requests(found)]


def cells_of(table: Table) -> set[tuple[Any, ...]]:
    """Row, method, student, data and settings of every training of a table."""
    cells: set[tuple[Any, ...]] = set()
    for name, line in table.rows.items():
        points: list[dict[str, Any]] = [{}] if not line.model else []
        for key, values in line.grid.items():
            points = [{**point, key: value} for point in points for value in values]
        for point in points:
            own = tuple(sorted({**line.settings, **point}.items()))
            cells |= {(name, line.method, who, data, own) for who in table.students for data in table.data}
    return cells


def as_told(cell: Cell) -> tuple[Any, ...]:
    data = cell.settings.get("data", "tiny-pairs")
    own = tuple(sorted((key, value) for key, value in cell.settings.items() if key not in COMMON))
    data = data[0] if isinstance(data, list) else data
    return cell.row.name, cell.settings["method"], cell.settings["student"], data, own


@pytest.mark.parametrize("name", PAPER)
def test_a_recipe_is_the_table_of_the_paper(name: str) -> None:
    table, (found, cells) = PAPER[name], recipe(name)
    assert {as_told(cell) for cell in cells} == cells_of(table)
    assert len(cells) == len(cells_of(table))
    assert [row.name for row in found.rows or found.cell_rows] == list(table.rows)
    assert {row.name: row.measures for row in found.rows} == {n: line.model for n, line in table.rows.items() if n}
    report = found.report or {}
    against = {
        row.name: opponent for row in found.rows
        if (opponent := row.against or report.get("against", "")) not in ("", row.name)
    }  # fmt: skip
    assert against == {n: line.against for n, line in table.rows.items() if line.against}
    assert report["reward-model"] == JUDGE, "the judge gives rewards, and every evaluation reward accuracy besides"
    for cell in cells:
        selected = (cell.settings.get("select"), cell.settings.get("reward-model"))
        assert selected == (("best", JUDGE) if table.is_selected else (None, None))
        assert cell.settings["no-eval"], "the closing table measures, on prompts that selected nothing"
    assert (found.points, {cell.settings.get("keep") for cell in cells}) == (
        table.points,
        {"all" if table.points else None},
    )
    grids = {key for line in table.rows.values() for key in line.grid} if any(table.rows) else set()
    assert grids <= {*found.choose} <= {"alpha", "gamma"}


@pytest.mark.parametrize("name", PAPER)
def test_its_miniature_is_the_same_experiment(name: str) -> None:
    """Student, data and judge are those of the built-in world; γ of figure 4 is the best of its pair there too."""
    (found, cells), (small, tiny) = recipe(name), recipe(f"{name}-tiny")

    def trained(of: list[Cell]) -> set[tuple[Any, ...]]:
        told = (as_told(cell) for cell in of)
        return {
            (row, method, *(v for v in own if name != "figure4" or v[0] != "gamma")) for row, method, *_, own in told
        }

    assert trained(tiny) == trained(cells)
    assert [(row.name, row.measures, row.against) for row in small.rows] == [
        (row.name, row.measures, row.against) for row in found.rows
    ]
    assert (small.choose, small.points) == (found.choose, found.points)
    assert {cell.settings["student"] for cell in tiny} == {"tiny"}
    judges = {"reward-model": "tiny"}
    assert {**(small.report or {}), **judges} == small.report
    assert {**(found.report or {}), **judges} == small.report
    for key in ("select", "keep"):
        assert {cell.settings.get(key) for cell in tiny} == {cell.settings.get(key) for cell in cells}
    pairs = {cell.settings["student"] for cell in cells}
    assert len(pairs) in (1, len({cell.settings.get("seed-all") for cell in tiny})), "as many pairs, by their seeds"
