"""The diagrams of the documentation as SVG: `python docs/images/diagrams.py` writes them beside this file.

A diagram is boxes on a grid and arrows between points of it; a grid point is the centre of a box.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from itertools import pairwise
from pathlib import Path

Point = tuple[float, float]
HEIGHT, LINE = 58, 19
COLOURS = {"teacher": "#dbe7f7", "student": "#dcefdc", "signal": "#fbe6cc", "plain": "#eeeeee"}


@dataclass(frozen=True)
class Box:
    """Lines of text at a grid point; the first one is bold."""

    at: Point
    lines: tuple[str, ...]
    colour: str = "plain"


@dataclass(frozen=True)
class Arrow:
    """A line through points, each (column, row, dx, dy) with an offset in pixels, and a label beside its middle."""

    path: tuple[tuple[float, float, float, float], ...]
    label: str = ""
    shift: Point = (0, -8)
    dashed: bool = False


@dataclass(frozen=True)
class Diagram:
    """What a picture shows, said in words for those who cannot see it, on a grid of this many columns and rows."""

    title: str
    boxes: tuple[Box, ...]
    arrows: tuple[Arrow, ...]
    size: tuple[int, int]
    cell: Point
    width: float

    def svg(self) -> str:
        """The picture, on a light ground so that dark pages show it too."""
        right, bottom = self.size[0] * self.cell[0], self.size[1] * self.cell[1]
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right:g} {bottom:g}" role="img" '
            f'font-family="sans-serif" font-size="15" fill="#222222"><title>{escape(self.title)}</title>'
            '<defs><marker id="tip" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" '
            'orient="auto"><path d="M0 0L10 5L0 10z" fill="#444444"/></marker></defs>'
            f'<rect width="{right:g}" height="{bottom:g}" rx="10" fill="#ffffff"/>'
        )
        parts = [head, *map(self.arrow, self.arrows), *map(self.box, self.boxes), "</svg>"]
        return "\n".join(parts) + "\n"

    def pixel(self, column: float, row: float, dx: float = 0, dy: float = 0) -> Point:
        """The place of a grid point."""
        return (column + 0.5) * self.cell[0] + dx, (row + 0.5) * self.cell[1] + dy

    def box(self, one: Box) -> str:
        """A rounded box with its lines in the middle."""
        x, y = self.pixel(*one.at)
        top = y + 5 - LINE * (len(one.lines) - 1) / 2
        looks = ['font-weight="bold"', *['font-size="13"'] * (len(one.lines) - 1)]
        texts = "".join(
            f'<text x="{x:g}" y="{top + n * LINE:g}" text-anchor="middle" {look}>{escape(line)}</text>'
            for n, (line, look) in enumerate(zip(one.lines, looks, strict=True))
        )
        return (
            f'<rect x="{x - self.width / 2:g}" y="{y - HEIGHT / 2:g}" width="{self.width:g}" height="{HEIGHT}" rx="8" '
            f'fill="{COLOURS[one.colour]}" stroke="#444444"/>{texts}'
        )

    def arrow(self, one: Arrow) -> str:
        """A line with a tip, and its label beside the middle of its longest part."""
        points = [self.pixel(*point) for point in one.path]
        parts = list(pairwise(points))
        (x, y), (u, v) = max(parts, key=lambda part: abs(part[0][0] - part[1][0]) + abs(part[0][1] - part[1][1]))
        line = " ".join(f"{a:g},{b:g}" for a, b in points)
        dashes = ' stroke-dasharray="5 4"' if one.dashed else ""
        label = (
            f'<text x="{(x + u) / 2 + one.shift[0]:g}" y="{(y + v) / 2 + one.shift[1]:g}" text-anchor="middle" '
            f'font-family="monospace" font-size="13">{escape(one.label)}</text>'
            if one.label
            else ""
        )
        return f'<polyline points="{line}" fill="none" stroke="#444444"{dashes} marker-end="url(#tip)"/>{label}'


def across(column: float, row: float, width: float, cell: float, label: str = "", steps: int = 1) -> Arrow:
    """An arrow from a box to the one that stands some columns to its right."""
    return Arrow(((column, row, width / 2, 0), (column + steps, row, -width / 2 - 2, 0)), label)


def down(column: float, row: float, label: str = "", shift: float = 0) -> Arrow:
    """An arrow from a box to the one below."""
    path = ((column, row, 0, HEIGHT / 2), (column, row + 1, 0, -HEIGHT / 2 - 2))
    return Arrow(path, label, (shift, 4))


def how_it_works() -> Diagram:
    """From two base models to an aligned student."""
    wide, cell = 152, (250, 136)
    edge = wide / 2
    return Diagram(
        "How adpa+ makes an aligned student: the teacher is fine-tuned and aligned, its signal on the pairs and on the "
        "student's own answers is stored, and the student is trained on both in turn",
        (
            Box((0, 0), ("Base teacher",), "teacher"),
            Box((1, 0), ("Reference teacher",), "teacher"),
            Box((2, 0), ("Aligned teacher",), "teacher"),
            Box((2, 1), ("Signal", "on the data's answers"), "signal"),
            Box((3, 1), ("Signal", "on its own answers"), "signal"),
            Box((0, 2), ("Base student",), "student"),
            Box((1, 2), ("Student", "after fine-tuning"), "student"),
            Box((2, 2), ("Student", "after DCKD"), "student"),
            Box((3, 2), ("Its own answers",), "student"),
            Box((4, 2), ("Student", "after ADPA"), "student"),
        ),
        (
            across(0, 0, wide, cell[0], "sft"),
            across(1, 0, wide, cell[0], "dpo-teacher"),
            down(2, 0, "cache-teacher", -62),
            Arrow(((2, 0, edge, 0), (3, 0, 0, 0), (3, 1, 0, -HEIGHT / 2 - 2)), "", (0, 0)),
            Arrow(
                ((1, 0, 0, -HEIGHT / 2), (1, 0, 0, -HEIGHT / 2 - 22), (3, 0, 30, -HEIGHT / 2 - 22),
                 (3, 1, 30, -HEIGHT / 2 - 2)), "cache-teacher", (328, 118),
            ),
            across(0, 2, wide, cell[0], "sft"),
            across(1, 2, wide, cell[0], "distill"),
            down(2, 1, "distill", -40),
            across(2, 2, wide, cell[0], "rollout"),
            Arrow(((3, 2, 0, -HEIGHT / 2), (3, 1, 0, HEIGHT / 2 + 2)), "cache-teacher", (-60, 4)),
            Arrow(((3, 1, edge, 0), (4, 1, 0, 0), (4, 2, 0, -HEIGHT / 2 - 2)), "distill", (0, -8)),
            Arrow(
                ((2, 2, 0, HEIGHT / 2), (2, 2, 0, HEIGHT / 2 + 24), (4, 2, 0, HEIGHT / 2 + 24),
                 (4, 2, 0, HEIGHT / 2 + 2)), "distill", (0, -6),
            ),
        ),
        (5, 3), cell, wide,
    )  # fmt: skip


def architecture() -> Diagram:
    """From a command line to an artifact, with the folder of each part."""
    wide, cell = 158, (196, 118)
    edge = wide / 2
    return Diagram(
        "From a command line to an artifact: Request, Plan, Survey, execution and Job, with the folder of each part",
        (
            Box((1, 0), ("Models, data", "hub/"), "signal"),
            Box((2.5, 0), ("Stages", "stages/"), "signal"),
            Box((5, 0), ("Computation", "engine/ methods/ …"), "signal"),
            Box((0, 1), ("Command line", "cli/commands/")),
            Box((1, 1), ("Request", "cli/console/options.py")),
            Box((2, 1), ("Plan of nodes", "planning/")),
            Box((3, 1), ("Survey", "estimate/survey.py")),
            Box((4, 1), ("Execution", "running/execute.py")),
            Box((5, 1), ("Job of a stage", "compute, finish")),
            Box((1, 2), ("adpa show", "report/"), "student"),
            Box((2, 2), ("Store", "store/"), "teacher"),
            Box((3, 2), ("Screen, question", "plan_screen.py"), "student"),
            Box((4, 2), ("Last checks", "estimate/preflight.py")),
            Box((5, 2), ("Artifact", "store/build.py"), "teacher"),
        ),
        (
            *(across(column, 1, wide, cell[0]) for column in range(5)),
            Arrow(((1, 0, edge, 10), (2, 1, -edge + 20, -HEIGHT / 2 - 2))),
            Arrow(((2.5, 0, -30, HEIGHT / 2), (2, 1, 20, -HEIGHT / 2 - 2)), dashed=True),
            Arrow(((2.5, 0, 30, HEIGHT / 2), (3, 1, -20, -HEIGHT / 2 - 2)), dashed=True),
            Arrow(((5, 1, 0, -HEIGHT / 2), (5, 0, 0, HEIGHT / 2 + 2))),
            Arrow(((2, 2, 0, -HEIGHT / 2), (2, 1, 0, HEIGHT / 2 + 2))),
            down(3, 1),
            down(4, 1),
            down(5, 1),
            Arrow(((2, 2, -edge, 0), (1, 2, edge + 2, 0))),
            Arrow(
                ((5, 2, 0, HEIGHT / 2), (5, 2, 0, HEIGHT / 2 + 18), (2, 2, 0, HEIGHT / 2 + 18),
                 (2, 2, 0, HEIGHT / 2 + 2)),
            ),
        ),
        (6, 3), cell, wide,
    )  # fmt: skip


DIAGRAMS = {"how-it-works.svg": how_it_works, "architecture.svg": architecture}
"""Each file with what it shows."""


if __name__ == "__main__":
    for name, diagram in DIAGRAMS.items():
        Path(__file__).with_name(name).write_text(diagram().svg(), encoding="utf-8")
