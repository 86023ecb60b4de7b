"""The closing table of a recipe with rows: what stands in each line, and the evaluations that measure it.

Each line is measured by a command line of `adpa eval` of its own, against the line of the row that it is compared with.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from adpa_cli.cli.recipes.choice import ROW, TAG, Step, are_alike, best_of, lines
from adpa_cli.cli.recipes.grid import AGAINST, START, TEACHERS, Recipe, Row, report_points
from adpa_cli.cli.recipes.words import evaluation_words
from adpa_cli.errors import UsageError
from adpa_cli.hub import External
from adpa_cli.planning.judges import JUDGE as JUDGE_OPTION
from adpa_cli.planning.lineage import command_word
from adpa_cli.planning.planner import SHARED_BY_ROLLOUTS
from adpa_cli.planning.requests import REWARD_MODEL_OPTION
from adpa_cli.report import scores as report
from adpa_cli.report.evaluation import Entry as Measured
from adpa_cli.stages import Input, Node
from adpa_cli.stages.eval import EVAL
from adpa_cli.stages.rewards import REWARDS
from adpa_cli.stages.rollout import ROLLOUT
from adpa_cli.stages.training import DISTILL
from adpa_cli.store.store import Store

REWARD_MODEL = REWARD_MODEL_OPTION.removeprefix("--")
JUDGE = JUDGE_OPTION.removeprefix("--")
CARRIED = ("data", "skip-bad-rows", "ignore-columns", "smoke", "max_length")
"""Keys of a cell that hold for its evaluation too, besides those of other stages."""
MEASURE_ON = f"{EVAL.name}.measure_on"
Measure = Callable[[Sequence[str]], "list[Measured] | None"]
"""Carries out a command line of `adpa eval`: a line for each model that it measured; None where it failed."""


@dataclass(frozen=True)
class Entry:
    """A line of the closing table: a model, the cell that it is of or that rests on it, and what is said behind it."""

    row: Row
    step: Step
    model: Input | None
    """None where no cell of the line was chosen."""
    settings: Mapping[str, str]
    note: str = ""
    points: tuple[str, ...] = field(default=())
    """Its kept points, as they are named."""


def entries(recipe: Recipe, steps: Sequence[Step], store: Store) -> list[Entry]:
    """The lines of the closing table, row by row."""
    steps = [step for step in steps if not step.cell.row.is_tried]
    axes = _axes(steps)
    found: list[Entry] = []
    for row in recipe.rows or (Row(),):
        if row.is_tried:
            continue
        if row.measures and not row.of:
            groups = {tuple(step.cell.shared[key] for key in axes): step for step in reversed(steps)}
            for step in reversed(groups.values()):
                beside = [other for other in steps if are_alike(other.cell.shared, step.cell.shared)]
                settings = {ROW: row.name, **{key: step.cell.shared[key] for key in axes}}
                found.append(Entry(row, step, _beneath(beside, row.measures), settings))
            continue
        own = [step for step in steps if step.cell.row.name == (row.of or row.name)]
        for candidates in lines(own, recipe.choose).values():
            entry = _entry(recipe, candidates[0].cell.row, candidates, axes, store)
            if row.of:
                model, settings = _beneath([entry.step], row.measures), {**entry.settings, ROW: row.name}
                entry = Entry(row, entry.step, model, settings)
            found.append(entry)
    return found


def _axes(steps: Sequence[Step]) -> list[str]:
    """The keys that all cells share and that differ between them: data sets, pairs of models, seeds."""
    shared = [step.cell.shared for step in steps]
    return [key for key in report.differing(shared) if all(key in each for each in shared)]


def _entry(recipe: Recipe, row: Row, candidates: Sequence[Step], axes: Sequence[str], store: Store) -> Entry:
    """The line of some cells of a row, of which one is chosen."""
    best = best_of(candidates, store)
    step = best or candidates[0]
    is_made = best is not None and store.get(step.target.label) is not None
    lists = [key for key, value in row.values.items() if isinstance(value, list)]
    kept = (ROW, *axes, *recipe.choose, *lists) if recipe.rows else step.settings.keys() - {TAG}
    settings = {key: value for key, value in step.settings.items() if key in kept}
    if not is_made:
        return Entry(
            row, step, None, settings, "failed" if len(candidates) == 1 else "not chosen: a combination failed"
        )
    note = f"best of {len(candidates)}" if len(candidates) > 1 else ""
    folder = store.folder(step.target.label)
    kept_points = sorted(folder.glob("step-*")) if recipe.points else ()
    points = tuple(f"{step.target.label}@{int(path.name.partition('-')[2])}" for path in kept_points)
    return Entry(row, step, step.target, settings, note, points)


def _beneath(steps: Sequence[Step], what: str) -> Input | None:
    """The model that the students of some cells start from, or one of their teachers; None where there is none."""
    for step in steps:
        if what == START:
            model: Any = step.target
            while isinstance(model, Node) and model.stage == DISTILL.name:
                model = model.inputs["model"]
            return model if not isinstance(model, tuple) else None
        for node in _nodes(step.target):
            if "aligned" in node.inputs and TEACHERS[what] in node.inputs and node.about in ("", "aligned"):
                return next(item for role, item in node.flat_inputs() if role == TEACHERS[what])
    return None


def _nodes(node: Node) -> Iterator[Node]:
    """A node and all beneath it."""
    yield node
    for _, item in node.flat_inputs():
        if isinstance(item, Node):
            yield from _nodes(item)


def measured_lines(
    recipe: Recipe, steps: Sequence[Step], store: Store, measure: Measure, tags: Mapping[str, Sequence[str]]
) -> list[report.Line]:
    """The closing table, every line measured by `measure`. `tags` are those of artifacts by their ids."""
    every = entries(recipe, steps, store)
    is_selected = any(step.target.spec.select == "best" or step.cell.row.is_tried for step in steps)
    table: list[report.Line] = []
    for entry in every:
        if entry.model is None:
            table.append(report.Line(entry.settings, entry.step.target.label, (), note=entry.note))
            continue
        opponent, against = _opponent(recipe, entry, every), entry.row.against or (recipe.report or {}).get(AGAINST, "")
        names = (command_word(entry.model), *entry.points)
        made = [
            measure(_words(recipe, entry.step, names, opponent, is_selected, asked)) for asked in report_points(recipe)
        ]
        known = [one for one in made if one]
        for n, name in enumerate(names):
            every_score = (score for one in known for score in one[n].scores)
            numbers = [s.beside(against) if s.against else s for s in dict.fromkeys(every_score)]
            at = {"step": name.rpartition("@")[2]} if n else {}
            own = () if isinstance(entry.model, External) or n else tags.get(entry.model.content.partition(":")[2], ())
            note = entry.note if len(known) == len(made) else "not measured"
            judge, settings = known[0][n].judge if known else "", {**entry.settings, **at}
            line = report.Line(settings, name, tuple(numbers), tuple(own), note=note, judge=judge, chosen=recipe.choose)
            table.append(line)
    return table


def _opponent(recipe: Recipe, entry: Entry, every: Sequence[Entry]) -> Input | None:
    """The model that a line is compared with; None for the line of that row itself. UsageError where several could be.

    A row is compared with the line beside it: of the same data set, pair of models and seed.
    """
    name = entry.row.against or str((recipe.report or {}).get(AGAINST, ""))
    axes = _axes([other.step for other in every])
    beside = [
        other for other in every
        if name and other.row.name == name
        and all(other.step.cell.shared[key] == entry.step.cell.shared[key] for key in axes)
    ]  # fmt: skip
    if len(beside) > 1:
        raise UsageError(
            f"the row {entry.row.name} is to be compared with {name}, which has {len(beside)} lines in the table",
            'compare it with a row of one line, against = "ROW", or let the best line be chosen, choose = ["KEY"]',
        )
    model = beside[0].model if beside else None
    return None if model is None or entry.model is None or model.content == entry.model.content else model


def _is_own(key: str) -> bool:
    """Whether a setting of a stage is of the training, or of answers and rewards that it learns from."""
    stage, _, name = key.rpartition(".")
    if stage == ROLLOUT.name:
        return name not in SHARED_BY_ROLLOUTS
    return stage in (DISTILL.name, REWARDS.name)


def _words(
    recipe: Recipe, step: Step, models: Sequence[str], opponent: Input | None, is_selected: bool,
    options: Mapping[str, Any],
) -> tuple[str, ...]:  # fmt: skip
    """The command line that measures the models of a line by `options` of the closing evaluation, with what of the
    cell's settings holds for that too."""
    settings = step.cell.settings
    carried = {
        key: value for key, value in settings.items()
        if key in CARRIED or ("." in key and not _is_own(key))
    }  # fmt: skip
    if is_selected:
        carried.setdefault(MEASURE_ON, "report")
    asked = {key: value for key, value in options.items() if key != AGAINST}
    judge = step.target.inputs.get("reward_model")
    if judge is not None and not isinstance(judge, tuple) and asked.get(REWARD_MODEL) == settings.get(REWARD_MODEL):
        asked[REWARD_MODEL] = command_word(judge)  # the very one, whatever seeds it was made with
    if opponent is not None:
        asked[AGAINST] = command_word(opponent)
    elif JUDGE in asked:
        asked[AGAINST] = models[0]  # of which nobody is asked, but its answers are measured
    return evaluation_words(models, {**carried, **asked})
