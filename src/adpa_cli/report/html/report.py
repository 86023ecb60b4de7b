"""The report of a model, a comparison or a sweep: one page, and beside it the figures and the numbers as files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from adpa_cli.errors import AdpaError
from adpa_cli.report import text
from adpa_cli.report.evaluation import LEVEL
from adpa_cli.report.html import graph, render, save
from adpa_cli.report.html.answers import AllAnswers, Matrix, Sample
from adpa_cli.report.html.disagreement import Disagreement, disagreement
from adpa_cli.report.html.figures import Figure, as_csv, library
from adpa_cli.report.html.measured import Compared, compared, numbers, over_seeds, table
from adpa_cli.report.html.sweeps import along_training, by_setting, training_curves
from adpa_cli.report.html.tokens import LEVELS
from adpa_cli.report.lineage import what
from adpa_cli.report.rows import with_rows
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

PAGE = "report.html"


@dataclass(frozen=True)
class Report:
    """All that a page shows, made once."""

    store: Store
    asked: Sequence[Manifest]

    @cached_property
    def found(self) -> Compared:
        """The models with their scores."""
        return compared(self.store, self.asked)

    @cached_property
    def answers(self) -> AllAnswers:
        return AllAnswers(self.found)

    @cached_property
    def samples(self) -> list[Sample]:
        return self.answers.samples()

    @cached_property
    def matrix(self) -> Matrix | None:
        return self.answers.matrix()

    @cached_property
    def differences(self) -> Disagreement | None:
        """Of the first of the models that learned from a signal, one of two teachers if there is any."""
        pairs = {m.ref: "reference" in with_rows(self.store, m.manifest).inputs for m in self.found.asked}
        for model in sorted(self.found.asked, key=lambda model: not pairs[model.ref]):
            if (found := disagreement(self.store, model.manifest)) is not None:
                return found
        return None

    @cached_property
    def lineage(self) -> graph.Graph:
        return graph.graph([model.manifest for model in self.found.models], self.found.artifacts)

    @cached_property
    def figures(self) -> Mapping[str, Sequence[Figure]]:
        """The figures by section."""
        return {
            "curves": training_curves(self.found), "points": along_training(self.found),
            "settings": by_setting(self.found), "lengths": self.answers.figures(),
            "places": self.differences.figures if self.differences else (),
        }  # fmt: skip

    @property
    def title(self) -> str:
        """What it is a report of."""
        asked = self.found.asked
        return f"{len(asked)} models" if len(asked) > 1 else f"{asked[0].tags[0] if asked[0].tags else asked[0].ref}"

    def page(self) -> str:
        """The page as HTML."""
        found = self.found
        return render(
            "report.html.j2", title=f"Report: {self.title}", found=found, table=table(found), figures=self.figures,
            over_seeds=over_seeds(found), matrix=self.matrix, samples=self.samples,
            differences=self.differences, lineage=self.lineage, words=graph.words, what=what, levels=LEVELS,
            level=LEVEL, number=text.number, human_time=text.human_time, csv=as_csv(numbers(found)),
            watch=list(_watch(found)),
            kinds=list(dict.fromkeys(what(model.manifest) for model in found.asked)), size=(graph.WIDTH, graph.HEIGHT),
        )  # fmt: skip

    def files(self) -> dict[str, str]:
        """Every figure as SVG and every table as CSV, by the name of its file."""
        found: dict[str, str] = {}
        for figure in (figure for section in self.figures.values() for figure in section):
            name = "".join(sign if sign.isalnum() or sign in "-_." else "-" for sign in figure.name)
            found |= {f"{name}.svg": figure.svg, f"{name}.csv": figure.csv}
        found["scores.csv"] = as_csv(numbers(self.found))
        found["lineage.csv"] = as_csv(graph.numbers(self.lineage))
        found["steps.csv"] = as_csv(list(self._steps()))
        if self.matrix:
            names, cells = self.matrix
            rows = [[name, *(cell and cell[0] for cell in row)] for name, row in zip(names, cells, strict=True)]
            found["win-matrix.csv"] = as_csv([["", *names], *rows])
        if self.differences:
            found["tokens.csv"] = as_csv(self.differences.numbers)
        if self.samples:
            head = ["id", "prompt", *(answered.model.name for answered in self.answers.sides)]
            rows = [[s.id, s.prompt[-1]["content"], *(side.text for side in s.sides)] for s in self.samples]
            found["answers.csv"] = as_csv([head, *rows])
        return found

    def _steps(self) -> Iterator[list[Any]]:
        """Every number of every step, uncut."""
        yield ["model", "number", "step", "value"]
        for ref, curves in self.found.curves.items():
            for name, curve in curves.items():
                yield from ([ref, name, step, value] for step, value in zip(curve.steps, curve.values, strict=True))


def _watch(found: Compared) -> Iterator[tuple[str, str]]:
    """(model, warning) of what was noted when models were made."""
    for model in found.asked:
        noted = model.manifest.metrics.get("watch", [])
        yield from ((model.name, str(one)) for one in ([noted] if isinstance(noted, str) else noted))


def write(store: Store, asked: Sequence[Manifest], to: Path) -> list[Path]:
    """Write the report to a page, or a folder with the page and all files. Gives what was written, the page first.

    Raises AdpaError where no figure can be drawn or nothing can be written, UsageError as `compared` does.
    """
    library()
    report = Report(store, asked)
    if to.suffix.lower() in (".html", ".htm"):
        save(to, report.page())
        return [to]
    try:
        to.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise AdpaError(
            f"{to} cannot be made: {error.strerror}", "name a folder of yours, or a file: FILE.html"
        ) from error
    files = {PAGE: report.page(), **report.files()}
    for name, content in files.items():
        save(to / name, content)
    return [to / name for name in files]
