"""The plan of a making command, as its screen, for a pipe and for a program."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from adpa_cli.hub import External
from adpa_cli.machine import shown
from adpa_cli.planning.planner import Plan
from adpa_cli.report import text
from adpa_cli.stages import Input, Node
from adpa_cli.stages.judge import JudgeSpec, forecast

if TYPE_CHECKING:
    from adpa_cli.estimate.cost import Cost
    from adpa_cli.estimate.survey import Survey

COLUMNS = ("n", "state", "role", "what", "id", "size", "time")
ROLES = {
    "aligned": "aligned teacher", "reference": "reference teacher", "model": "model", "reward_model": "reward model",
}  # fmt: skip
GAP = "  "
WIDE = 88  # columns below which the numbers of a stage stand on a line of their own


def plan_tsv(survey: Survey) -> str:
    """A line a stage for a pipe: number, found|build, role, what, id, bytes, seconds; `?` for what nobody can tell."""
    rows = []
    for n, cost in enumerate(survey.costs, 1):
        size = _bytes(cost)
        seconds = "0" if cost.artifact else "?" if cost.seconds is None else f"{cost.seconds:.0f}"
        rows.append((n, _state(cost), *_words(cost), "?" if size is None else size, seconds))
    return text.tsv(rows)


def plan_json(survey: Survey) -> dict[str, Any]:
    """A plan for a program: its rows, its totals, what is fetched, and what does not fit."""
    totals = {
        "download": survey.download, "keeps": survey.keeps, "peak": survey.peak, "free": survey.machine.disk,
        "memory": survey.memory, "memory_available": survey.machine.memory, "device": survey.machine.name,
        "seconds": survey.seconds, "basis": survey.basis, "large": survey.is_large,
    }  # fmt: skip
    models = [
        {"role": role, "name": item.label, "bytes": item.size, "download": item.download}
        for role, item in _models(survey)
    ]
    rows = [
        {
            "n": n, "state": _state(cost), "stage": cost.node.stage, "role": cost.node.role, "what": cost.node.what,
            "id": cost.node.recipe.id, "ref": cost.node.label, "bytes": _bytes(cost),
            "extra": cost.disk and cost.disk.extra,
            "memory": cost.memory and cost.memory.device, "seconds": cost.seconds, "rows": cost.rows,
        }
        for n, cost in enumerate(survey.costs, 1)
    ]  # fmt: skip
    judge = {"judge": judged} if (judged := judge_forecast(survey)) else {}
    return {
        "store": str(survey.store.root), "end": survey.plan.template.end, "models": models, "rows": rows,
        "totals": totals, **judge, "notes": [*survey.plan.notes, *survey.remarks],
    }  # fmt: skip


def judge_forecast(survey: Survey) -> dict[str, Any]:
    """About what the judges of a plan take together, and the least difference that all comparisons find; empty where no
    judge is asked, or nobody can tell."""
    asked = [cost for cost in survey.building if isinstance(cost.node.spec, JudgeSpec) and cost.rows is not None]
    each = [forecast(cost.node.spec, cost.load) for cost in asked if cost.load is not None]
    if not each:
        return {}
    sums = {key: sum(one[key] for one in each) for key in ("calls", "prompt_tokens", "completion_tokens")}
    costs = [one["cost"] for one in each]
    found = [one["detectable"] for one in each if one["detectable"]]
    return {**sums, "cost": None if None in costs else sum(costs), "detectable": max(found, default=None)}


def judge_words(survey: Survey) -> list[str]:
    """The same in a line."""
    if not (judge := judge_forecast(survey)):
        return []
    cost = "" if judge["cost"] is None else f", about ${judge['cost']:,.2f}"
    least = judge["detectable"]
    found = f"; a difference of {100 * least:.1f} points of win rate is detected with 80 % power" if least else ""
    return [
        f"judge: at most {judge['calls']:,} calls, about {judge['prompt_tokens']:,} tokens in and "
        f"{judge['completion_tokens']:,} out{cost}{found}"
    ]


def _state(cost: Cost) -> str:
    return "found" if cost.artifact else "build"


def _words(cost: Cost) -> tuple[str, str, str]:
    return cost.node.role, cost.node.what, cost.node.label


def plan_text(survey: Survey, width: int) -> str:
    """A plan for a terminal of `width` columns; no line is longer."""
    lines = [*_head(survey, width)]
    lines += [text.cut(line, width) for line in _table(survey, width)]
    for note in (*survey.plan.notes, *survey.remarks, *judge_words(survey)):
        lines += filled([note], width, " ")
    return "\n".join([*lines, *_foot(survey, width)])


def _head(survey: Survey, width: int) -> Iterator[str]:
    plan, store = survey.plan, survey.store
    held = len(store.artifacts(on_error=lambda error: None))
    facts = [f"store {shown(store.root)} ({held} artifact{'s' * (held != 1)})", *_who(survey)]
    yield from filled([*facts, f"template {template_name(plan)}, answers end with {plan.template.end}"], width)
    data = dict(_data(survey))
    if data:
        sets = [f"{name} {count}".rstrip() for name, count in data.items()]
        yield from filled([f"data  {sets[0]}", *sets[1:]], width)


def _who(survey: Survey) -> Iterator[str]:
    """The student that is trained, and its teacher."""
    nodes = [cost.node for cost in survey.costs]
    students = [node for node in nodes if node.role == "student" or node.declared.any_method]
    if students:
        yield f"student {_called(students[0].inputs['model'])}"
    signals = [node for node in nodes if "aligned" in node.inputs]
    if signals:
        yield f"teacher {_called(signals[0].inputs['aligned'])}"


def _called(item: Input | tuple[Input, ...]) -> str:
    """The alias that a model is known by, else its own name."""
    from adpa_cli.families import READY_PAIRS, alias_of_base

    item = item[0] if isinstance(item, tuple) else item
    below: Input | tuple[Input, ...] = item
    while isinstance(below, Node) and "model" in below.inputs:
        below = below.inputs["model"]
    name = str(below.facts.get("name")) if isinstance(below, External) else ""
    pair = next((pair.alias for pair in READY_PAIRS if pair.aligned == name), "")
    return alias_of_base(name) or pair or item.label


def template_name(plan: Plan) -> str:
    """The name of a template that this package knows; any other is that of the model."""
    from adpa_cli.data.rendering import RULES, thinking_of
    from adpa_cli.data.templates import TEMPLATES
    from adpa_cli.lab import TEMPLATE

    names = {template.text: name for name, template in TEMPLATES.items()} | {TEMPLATE: "tiny"}
    rule = thinking_of(plan.template.text)
    text = plan.template.text.removeprefix(RULES[rule]) if rule else plan.template.text
    return names.get(text, "of the model") + (f", thinking {rule}" if rule else "")


def _data(survey: Survey) -> Iterator[tuple[str, str]]:
    """Each data set by name, with the rows that training reads where they are known."""
    for cost in survey.costs:
        data = cost.node.inputs.get("data")
        stage = cost.node.declared
        if isinstance(data, External) and stage.kind != "generating" and stage.split(cost.node.spec) == "train":
            yield data.label, "" if cost.rows is None else f"{cost.rows:,} {stage.reads}"


def _table(survey: Survey, width: int) -> Iterator[str]:
    """One line a model and a stage where the terminal is wide enough, else two."""
    models = [
        ("", "found", role, item.label, f"download {_size(item.download)}" if item.download else "in HF cache", "", "")
        for role, item in _models(survey)
    ]
    stages = [(str(n), _state(c), *_words(c), _size(_bytes(c)), _time(c)) for n, c in enumerate(survey.costs, 1)]
    rows = [*models, *stages]
    widths = [max((text.width_of(row[i]) for row in rows), default=0) for i in range(len(COLUMNS))]
    fixed = sum(widths) - widths[3] + len(GAP) * (len(COLUMNS) - 1)
    widths[3] = max(min(widths[3], width - fixed), 0)
    wide = width >= WIDE and widths[3] >= 14
    for row in rows:
        if wide:
            cells = (text.pad(text.cut(row[i], w), w, i in (0, 5, 6)) for i, w in enumerate(widths))
            yield GAP.join(cells).rstrip()
        else:
            yield GAP.join((text.pad(row[0], widths[0], True), row[1], row[2], row[3])).rstrip()
            yield " " * (widths[0] + 2) + GAP.join(filter(None, (row[4], row[5], row[6])))


def _foot(survey: Survey, width: int) -> Iterator[str]:
    machine = survey.machine
    if not survey.building:
        return
    device = f"{machine.name}'s memory" if machine.kind == "cuda" else "memory"
    seconds = survey.seconds
    about = "time unknown" if seconds is None else f"about {text.human_time(seconds)}, {survey.basis}"
    yield from filled(
        [
            *([f"downloads {_size(survey.download)}"] if survey.download else []), f"stores {_size(survey.keeps)}",
            f"disk at most +{_size(survey.peak)} ({_size(machine.disk)} free)",
            f"{device} {_size(survey.memory)} of {_size(machine.memory)}", about,
        ],
        width,
    )  # fmt: skip


def filled(facts: Sequence[str], width: int, mark: str = " · ") -> Iterator[str]:
    """Facts in as few lines as they need; one that is longer than a line is broken at its spaces, or cut."""
    line = ""
    for fact in facts:
        if line and text.width_of(line) + len(mark) + text.width_of(fact) <= width:
            line += mark + fact
            continue
        if line:
            yield line
        line = ""
        for word in fact.split(" "):
            if line and text.width_of(line) + 1 + text.width_of(word) > width:
                yield line
                line = text.cut(word, width)
            else:
                line = text.cut(f"{line} {word}" if line else word, width)
    if line:
        yield line


def _models(survey: Survey) -> list[tuple[str, External]]:
    """The models from the hub that the plan reads, each once, with what they are for."""
    models: dict[str, tuple[str, External]] = {}
    for cost in survey.building:
        for role, item in cost.node.flat_inputs():
            if isinstance(item, External) and role in ROLES and item.facts.get("commit"):
                purpose = f"{cost.node.role} base" if role == "model" else ROLES[role]
                models.setdefault(item.content, (purpose, item))
    return list(models.values())


def _bytes(cost: Cost) -> int | None:
    if cost.artifact is not None:
        return cost.artifact.size
    return None if cost.disk is None else cost.disk.keeps


def _size(count: int | None) -> str:
    return "?" if count is None else text.human_size(count)


def _time(cost: Cost) -> str:
    return "" if cost.artifact else "?" if cost.seconds is None else text.human_time(cost.seconds)
