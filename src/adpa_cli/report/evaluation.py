"""The table that evaluations end with: a line for each model, and by how much it differs from the first one.

Differences are paired by rows, with an interval from resamples of the prompts and the p of swapping the two models,
prompt by prompt; Holm's correction is over all differences of the table.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adpa_cli.disk import write_atomic
from adpa_cli.errors import UsageError
from adpa_cli.report import text
from adpa_cli.report.differences import Difference, corrected, paired, rows_of
from adpa_cli.report.judges import judge_words
from adpa_cli.report.scores import (
    ACCURACY,
    DIGITS,
    INTERVAL,
    REWARD,
    WIN,
    Score,
    best_of,
    best_words,
    length_words,
    scores,
    title,
)
from adpa_cli.stages import Node, product_of
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

LEVEL = 0.05
"""Of the corrected p below which a difference has the mark."""
LEAST_P = 1e-4
"""Below which a p is shown as less than this."""
MOST_NAMED = 6
"""Models of a table up to which a command that follows names all of them."""
UNCUT = 10**6
"""Columns of what is no terminal."""
MARK, OTHER = "*", "†"
"""Behind a difference that is no chance, and behind a number that may not be compared with the first of its metric."""
FIRST = (REWARD, WIN, ACCURACY)
"""Metrics that stand before others."""


@dataclass(frozen=True)
class Entry:
    """One line: a model, or answers, with the evaluations that measured it.

    `differences` are by metric: how much more it has than the first line, and the corrected p.
    """

    name: str
    label: str
    evals: tuple[Manifest, ...]
    scores: tuple[Score, ...]
    judge: str = ""
    """What is said of the judge whose verdicts it has."""
    differences: Mapping[str, tuple[Difference, float]] = field(default_factory=dict)
    base: str = ""
    """The label of the first line."""

    @property
    def by_metric(self) -> dict[str, Score]:
        """Its numbers by metric."""
        return {score.metric: score for score in reversed(self.scores)}

    def record(self) -> dict[str, Any]:
        """The line as JSON: every number that was stored, also those that no table shows."""
        every = [score for made in self.evals for score in scores(made, with_unsupported=True)]
        apart = [one.record(metric, self.label, self.base, p) for metric, (one, p) in self.differences.items()]
        judges = [made.metrics["judge"] for made in self.evals if "judge" in made.metrics]
        judge = {"judge": judges[0]} if judges else {}
        return {"model": self.label, "scores": [score.record() for score in every], "differences": apart, **judge}


def entries(store: Store, evals: Sequence[Node], so_far: Mapping[str, Manifest] | None = None) -> list[Entry]:
    """The lines of some evaluations that are in the store, one a model, in their order; `so_far` are those, by id,
    whose inputs are not whole yet."""
    by_model: dict[str, list[tuple[Node, Manifest]]] = {}
    for node in evals:
        manifest = store.get(node.label) or (so_far or {}).get(node.recipe.id)
        if manifest is not None:
            by_model.setdefault(_measured(node)[0], []).append((node, manifest))
    tags = {store_id: tag for tag, store_id in reversed(store.tags().items())}
    is_judged = any("judge" in manifest.metrics for made in by_model.values() for _, manifest in made)
    artifacts = store.artifacts(lambda error: None) if is_judged else []
    found = []
    for made in by_model.values():
        node, manifests = made[0][0], tuple(manifest for _, manifest in made)
        numbers = tuple(score for manifest in manifests for score in scores(manifest))
        content, label = _measured(node)
        name = tags.get(content.removeprefix("artifact:"), node.about)
        found.append(Entry(name, label, manifests, numbers, judge_words(manifests, artifacts)))
    return _compared(store, found)


def _measured(node: Node) -> tuple[str, str]:
    """(content, label) of the model that was measured, or of the answers."""
    roles = ("model", "reward_model", "rollouts", "judgements")
    item = next((node.inputs[role] for role in roles if role in node.inputs), ())
    return (node.label, node.label) if isinstance(item, tuple) else (item.content, item.label)


def _compared(store: Store, found: Sequence[Entry]) -> list[Entry]:
    """The lines with what sets each apart from the first one, where both were measured alike."""
    if not found:
        return []
    first = found[0].by_metric
    apart: dict[tuple[int, str], Difference] = {}
    for place, entry in enumerate(found[1:], 1):
        for metric, score in entry.by_metric.items():
            base = first.get(metric)
            if base is None or score.question != base.question or score.is_of_data:
                continue
            both = (rows_of(store.folder(each.ref), metric) for each in (score, base))
            if difference := paired(*both):
                apart[place, metric] = difference
    lines: list[dict[str, tuple[Difference, float]]] = [{} for _ in found]
    for (place, metric), difference_and_p in corrected(apart).items():
        lines[place][metric] = difference_and_p
    label = found[0].label
    return [replace(entry, differences=own, base=label) for entry, own in zip(found, lines, strict=True)]


def metrics_of(lines: Sequence[Entry]) -> list[str]:
    """The metrics of some lines, the most telling first."""
    named = dict.fromkeys(score.metric for line in lines for score in line.scores)
    return [*(metric for metric in FIRST if metric in named), *(metric for metric in named if metric not in FIRST)]


def screen(lines: Sequence[Entry], with_differences: bool, width: int = UNCUT, is_coloured: bool = False) -> str:
    """One row a model, in the order of the plan; below it, if asked for, what sets each apart from the first one, and
    what to type next. Where `width` is too small the last numbers are left out, never an id."""
    if not lines:
        return "Nothing was measured."
    metrics = metrics_of(lines)
    every = [score for line in lines for score in line.scores]
    names = {line.label: line.name for line in lines}
    opponents = dict.fromkeys(names.get(score.against, score.against) for score in every if score.against)
    judged = f"win rate in % against {' or '.join(opponents)}, where 50 = as good; " if opponents else ""
    which = "; ".join(dict.fromkeys(score.prompts for score in every if score.prompts))
    size = max((score.n or 0 for score in every), default=0)
    what = _counted([made.metrics.get("measured", {}) for line in lines for made in line.evals])
    head = f"{what}: {size}{f' ({which})' if which else ''}; {judged}shares in %; {INTERVAL}"
    usual = _first_questions(lines)
    best = {
        metric: best_of(s for line in lines if (s := line.by_metric.get(metric)) and s.question == usual[metric])
        for metric in metrics
    }
    rows = [
        (line.name, *(_cell(line, metric, usual, best[metric], is_coloured) for metric in metrics), line.label)
        for line in lines
    ]
    numbers = range(1, len(metrics) + 1)
    shown = [
        *text.fold(head, width, ""),
        *text.table(("MODEL", *map(title, metrics), "ID"), rows, width, expendable=numbers[:0:-1]),
    ]
    apart = _apart(lines, is_coloured) if with_differences else []
    if apart:
        columns = ("MODEL", "METRIC", "DIFFERENCE", "LOW", "HIGH", "P", "P HOLM", "")
        shown += [
            "",
            f"difference from {lines[0].name}, paired by prompt; {MARK} marks p below {LEVEL} after Holm's correction",
        ]
        shown += text.table(columns, apart, width, expendable=(5, 3, 4))
    return "\n".join([*shown, *notes_of(lines), *next_words(lines)])


def next_words(lines: Sequence[Entry]) -> list[str]:
    """What to type after a table: a look at the rows of the last evaluation, and a report of the models."""
    rows = next((line.evals[0].ref for line in reversed(lines) if line.evals), "")
    models = [line.label for line in lines if product_of(line.label.partition("/")[0]) == "model"]
    commands = [f"adpa show {rows} --rows 10"] * bool(rows)
    commands += [f"adpa report {' '.join(models)}", f"adpa chat {models[-1]}"] if 0 < len(models) <= MOST_NAMED else []
    return [f"next: {'  ·  '.join(commands)}"] if commands else []


def _counted(measured: Sequence[Mapping[str, Any]]) -> str:
    """What it is that some evaluations, by what they were `measured` on, are means over."""
    if measured and all("tasks" in each for each in measured):
        return "documents"
    return "held-out prompts" if {each.get("split", "test") for each in measured} <= {"test"} else "rows"


def notes_of(lines: Sequence[Entry]) -> list[str]:
    """What is said below a table: who judged, and which number is not the one of that name elsewhere."""
    judges = dict.fromkeys(line.judge for line in lines if line.judge)
    every = [score for line in lines for score in line.scores]
    rewards = dict.fromkeys(f"rewards by {s.scorer}" for s in every if s.metric == REWARD and s.scorer)
    is_mixed = len({score.question for score in every}) > len({score.metric for score in every})
    others = (
        [f"{OTHER} measured on other rows or in another way than the number at the top of its column"]
        if is_mixed
        else []
    )
    return [*rewards, *judges, *length_words(every), *others]


def _first_questions(lines: Sequence[Entry]) -> dict[str, Any]:
    """By metric what its first number answers."""
    return {score.metric: score.question for line in reversed(lines) for score in reversed(line.scores)}


def _cell(
    line: Entry, metric: str, usual: Mapping[str, Any], best: Score | None = None, is_coloured: bool = False
) -> str:
    """A number, with a mark where it may not be compared with the first one of its metric."""
    score = line.by_metric.get(metric)
    mark = f" {OTHER}" if score is not None and score.question != usual[metric] else ""
    return "" if score is None else best_words(score, best, is_coloured, DIGITS) + mark


def _apart(lines: Sequence[Entry], is_coloured: bool) -> list[tuple[str, ...]]:
    """A row for each difference: shares in percent points."""
    rows: list[tuple[str, ...]] = []
    for line in lines[1:]:
        for metric in metrics_of([line]):
            if metric not in line.differences:
                continue
            found, p_holm = line.differences[metric]
            mean, *ends = found.words(line.by_metric[metric].is_share, DIGITS)
            numbers = (text.styled(mean, found.style(line.by_metric[metric].direction), is_coloured), *ends)
            mark = MARK if p_holm < LEVEL else ""
            rows.append((line.name, metric.replace("_", "-"), *numbers, _p_words(found.p), _p_words(p_holm), mark))
    return rows


def _p_words(p: float) -> str:
    """A p with four digits; one that is less than they show is never called 0."""
    return f"{p:.4f}" if p >= LEAST_P else f"<{LEAST_P:.4f}"


def checked_path(name: str) -> Path:
    """The file that a table is to be written to; UsageError for a kind that is none."""
    path = Path(name)
    if path.suffix.lower() not in WRITERS:
        raise UsageError(
            f"--to {name}: a table cannot be written as {path.suffix or 'a file without an ending'}",
            f"end the name with {', '.join(WRITERS)}",
        )
    if not path.parent.is_dir():
        raise UsageError(f"--to {name}: the folder {path.parent} does not exist", f"create it: mkdir -p {path.parent}")
    return path


def write(path: Path, lines: Sequence[Entry]) -> None:
    """Write the table to a file whose ending says how."""
    write_atomic(path, WRITERS[path.suffix.lower()](lines).encode())


def as_csv(lines: Sequence[Entry]) -> str:
    """Plain numbers with a column for each part: value, interval and count, then the difference and its p."""
    out = io.StringIO()
    metrics = metrics_of(lines)
    parts = ("value", "low", "high", "n")
    apart = ("difference", "low", "high", "p", "p_holm")
    head = [name for m in metrics for name in (*_columns(m, parts), *_columns(f"{m}_difference", apart))]
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["model", "id", *head, "judge"])
    for line in lines:
        cells: list[Any] = []
        for metric in metrics:
            score, found = line.by_metric.get(metric), line.differences.get(metric)
            cells += ["" if score is None else getattr(score, part) for part in parts]
            cells += [*(getattr(found[0], part) for part in parts[:3]), found[0].p, found[1]] if found else [""] * 5
        table.writerow([line.name, line.label, *cells, line.judge])
    return out.getvalue()


def _columns(metric: str, parts: Sequence[str]) -> list[str]:
    """The first part has the name alone."""
    return [metric, *(f"{metric}_{part}" for part in parts[1:])]


def _cells(lines: Sequence[Entry]) -> tuple[list[str], list[list[str]]]:
    """(head, rows) for people: each number with half of its interval, and the mark of its difference."""
    metrics, usual = metrics_of(lines), _first_questions(lines)
    rows = []
    for line in lines:
        marks = {metric for metric, (_, p_holm) in line.differences.items() if p_holm < LEVEL}
        rows.append([line.name, *(f"{_cell(line, m, usual)} {MARK if m in marks else ''}".strip() for m in metrics)])
    return ["model", *(metric.replace("_", " ") for metric in metrics)], rows


def as_markdown(lines: Sequence[Entry]) -> str:
    """A table of Markdown."""
    head, rows = _cells(lines)
    table = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    cells = ([cell.replace("|", "\\|") for cell in row] for row in table)
    notes = [f"\n{note}\n" for note in notes_of(lines)]
    return "".join([*(f"| {' | '.join(row)} |\n" for row in cells), *notes])


def as_tex(lines: Sequence[Entry]) -> str:
    """A tabular of LaTeX."""
    head, rows = _cells(lines)
    body = [" & ".join(map(_escaped, row)) + r" \\" for row in (head, *rows)]
    columns = "l" + "r" * (len(head) - 1)
    inside = [rf"\begin{{tabular}}{{{columns}}}", body[0], r"\hline", *body[1:], r"\end{tabular}", ""]
    return "\n".join([*(f"% {note}" for note in notes_of(lines)), *inside])


def _escaped(cell: str) -> str:
    """Text as LaTeX writes it."""
    for special in "\\&%$#_{}":
        cell = cell.replace(special, r"\textbackslash " if special == "\\" else rf"\{special}")
    return cell.replace("±", r"$\pm$").replace(OTHER, r"$\dagger$").replace("^", r"\^{}").replace("~", r"\~{}")


WRITERS: Mapping[str, Callable[[Sequence[Entry]], str]] = {".csv": as_csv, ".md": as_markdown, ".tex": as_tex}
