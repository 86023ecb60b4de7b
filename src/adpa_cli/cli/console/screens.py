"""What a making command shows: its plan before, and its progress meanwhile."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adpa_cli.cli.console import streams
from adpa_cli.errors import AdpaError
from adpa_cli.hub import External
from adpa_cli.planning.planner import Plan
from adpa_cli.report import text
from adpa_cli.running.execute import Pace
from adpa_cli.spec import Runtime
from adpa_cli.stages import Input, Node
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

if TYPE_CHECKING:
    from adpa_cli.estimate.survey import Cost, Estimate

COLUMNS = ("n", "state", "role", "what", "id", "size", "time")
ROLES = {
    "aligned": "aligned teacher", "reference": "reference teacher", "model": "model", "reward_model": "reward model",
}  # fmt: skip
GAP = "  "
CALM = "Every stage can be interrupted and repeated."
WIDE = 88  # columns below which the numbers of a stage stand on a line of their own


def plan_rows(found: Estimate) -> list[tuple[str, ...]]:
    """(number, found|build, role, what, id, bytes, seconds) of every stage, uncut; `?` for what nobody can tell."""
    rows: list[tuple[str, ...]] = []
    for n, cost in enumerate(found.costs, 1):
        known = _bytes(cost)
        size = "?" if known is None else str(known)
        seconds = "0" if cost.found else "?" if cost.seconds is None else f"{cost.seconds:.0f}"
        state = "found" if cost.found else "build"
        rows.append((str(n), state, cost.node.role, cost.node.what, cost.node.label, size, seconds))
    return rows


def plan_tsv(found: Estimate) -> str:
    """A plan for a pipe."""
    return text.tsv(plan_rows(found))


def plan_json(plan: Plan, found: Estimate, store: Store) -> dict[str, Any]:
    """A plan for a program: its rows, its totals, what is fetched, and what does not fit."""
    rows = [_record(n, cost) for n, cost in enumerate(found.costs, 1)]
    totals = {
        "download": found.download, "keeps": found.keeps, "peak": found.peak, "free": found.machine.disk,
        "memory": found.memory, "memory_available": found.machine.memory, "device": found.machine.name,
        "seconds": found.seconds, "basis": found.basis, "large": found.large,
    }  # fmt: skip
    models = [
        {"role": role, "name": item.label, "size": item.size, "download": item.download}
        for role, item in _models(found)
    ]
    return {
        "store": str(store.root), "end": plan.template[1], "models": models, "rows": rows, "totals": totals,
        "notes": list(plan.notes),
    }  # fmt: skip


def _record(n: int, cost: Cost) -> dict[str, Any]:
    needs = None if cost.memory is None else cost.memory.device
    return {
        "n": n, "state": "found" if cost.found else "build", "stage": cost.node.stage, "role": cost.node.role,
        "what": cost.node.what, "id": cost.node.label, "size": _bytes(cost),
        "extra": None if cost.disk is None else cost.disk.extra, "memory": needs, "seconds": cost.seconds,
        "rows": cost.rows,
    }  # fmt: skip


def plan_text(plan: Plan, found: Estimate, store: Store, width: int) -> str:
    """A plan for a terminal of `width` columns; no line is longer."""
    lines = [*_head(plan, found, store, width)]
    lines += [text.cut(line, width) for line in _table(found, width)]
    for note in plan.notes:
        lines += filled([note], width, " ")
    return "\n".join([*lines, *_foot(found, width), *filled([CALM], width, " ")])


def _head(plan: Plan, found: Estimate, store: Store, width: int) -> Iterator[str]:
    held = len(store.artifacts(on_error=lambda error: None))
    root = str(store.root)
    home = str(Path.home())
    shown = f"~{root[len(home) :]}" if root.startswith(f"{home}/") else root
    facts = [f"store {shown} ({held} artifact{'s' * (held != 1)})", *_who(found)]
    yield from filled([*facts, f"template {template_name(plan)}, ends {plan.template[1]}"], width)
    data = dict(_data(found))
    if data:
        sets = [f"{name} {count}".rstrip() for name, count in data.items()]
        yield from filled([f"data  {sets[0]}", *sets[1:]], width)


def _who(found: Estimate) -> Iterator[str]:
    """The student that is trained, and its teacher."""
    nodes = [cost.node for cost in found.costs]
    students = [node for node in nodes if node.role == "student" or node.stage == "distill"]
    if students:
        yield f"student {_called(students[0].inputs['model'])}"
    signals = [node for node in nodes if "aligned" in node.inputs]
    if signals:
        yield f"teacher {_called(signals[0].inputs['aligned'])}"


def _called(item: Input | tuple[Input, ...]) -> str:
    """The alias that a model is known by, else its own name."""
    from adpa_cli.families import FAMILIES, READY_PAIRS

    item = item[0] if isinstance(item, tuple) else item
    below: Input | tuple[Input, ...] = item
    while isinstance(below, Node) and "model" in below.inputs:
        below = below.inputs["model"]
    name = below.facts.get("name") if isinstance(below, External) else None
    known = {pair.aligned: pair.alias for pair in READY_PAIRS}
    for family in reversed(FAMILIES):
        known |= {family.student: family.alias, family.teacher: family.teacher_alias}
    return str(known.get(str(name)) or item.label)


def template_name(plan: Plan) -> str:
    """The name of a template that this package knows, else how long a foreign one is."""
    from adpa_cli.data.chat import DEFAULT_TEMPLATES
    from adpa_cli.lab import TEMPLATE

    known = {template.text: name for name, template in DEFAULT_TEMPLATES.items()} | {TEMPLATE: "tiny"}
    return known.get(plan.template[0], "of the model")


def _data(found: Estimate) -> Iterator[tuple[str, str]]:
    """Each data set by name, with the rows that training reads where they are known."""
    for cost in found.costs:
        data = cost.node.inputs.get("data")
        if isinstance(data, External) and cost.node.stage != "eval" and getattr(cost.node.spec, "split", "") != "test":
            kind = "dialogues" if cost.node.stage == "sft" else "prompts" if cost.node.stage == "rollout" else "pairs"
            if kind != "prompts":
                yield data.label, "" if cost.rows is None else f"{cost.rows:,} {kind}"


def _table(found: Estimate, width: int) -> Iterator[str]:
    """One line a stage where the terminal is wide enough, else two."""
    models = [
        ("", "found", role, item.label, f"download {_size(item.download)}" if item.download else "in HF cache", "", "")
        for role, item in _models(found)
    ]
    stages = [
        (str(n), "found" if c.found else "build", c.node.role, c.node.what, c.node.label, _size(_bytes(c)), _time(c))
        for n, c in enumerate(found.costs, 1)
    ]
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


def _foot(found: Estimate, width: int) -> Iterator[str]:
    machine = found.machine
    if not found.building:
        return
    device = f"{machine.name}'s memory" if machine.kind == "cuda" else "memory"
    seconds = found.seconds
    about = "about ?" if seconds is None else f"about {text.human_time(seconds)}, {found.basis}"
    yield from filled(
        [
            f"download {_size(found.download)}", f"keeps {_size(found.keeps)}",
            f"peak +{_size(found.peak)} (free {_size(machine.disk)})",
            f"{device} {_size(found.memory)} of {_size(machine.memory)}", about,
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


def _models(found: Estimate) -> list[tuple[str, External]]:
    """The models from the hub that the plan reads, each once, with what they are for."""
    seen: dict[str, tuple[str, External]] = {}
    for cost in found.building:
        for role, item in cost.node.flat_inputs():
            if isinstance(item, External) and role in ROLES and item.facts.get("commit"):
                seen.setdefault(item.content, (f"{cost.node.role} base" if role == "model" else ROLES[role], item))
    return list(seen.values())


def _bytes(cost: Cost) -> int | None:
    if cost.found is not None:
        return cost.found.size
    return None if cost.disk is None else cost.disk.keeps


def _size(count: int | None) -> str:
    return "?" if count is None else text.human_size(count)


def _time(cost: Cost) -> str:
    return "" if cost.found else "?" if cost.seconds is None else text.human_time(cost.seconds)


REDRAW_SECONDS = 0.1
WAIT_WORTH_SAYING = 0.05
_ASIDE = {"grad_norm", "critic_grad_norm", "tokens", "padding", "tokens_per_s", "mfu", "wait"}


class Screen:
    """Shows a plan being carried out: a line per finished stage, and where it is `live` one bar for the current one.

    The bar is drawn with carriage returns only, by a command in the foreground of a terminal whose ids go to no other
    program: that one may share the terminal, and two bars would be drawn over each other.
    """

    def __init__(self, quiet: bool, into_a_pipe: bool = False) -> None:
        self.quiet = quiet
        self.live = not quiet and not into_a_pipe and _can_draw()
        self.stage = ""
        """The stage that was begun last."""
        self._head = ""
        self._pace = Pace()
        self._began, self._share_before = 0.0, -1.0
        self._drawn_at, self._drawn = 0.0, False
        self._seconds: dict[str, float] = {}

    def expect(self, seconds: Mapping[str, float]) -> None:
        """How long the stages that are still to be made may take, by label: the bar then shows the whole time left."""
        self._seconds = dict(seconds)

    def say(self, line: str) -> None:
        """One line, above the bar."""
        if not self.quiet:
            self._clear()
            streams.say(line + "\n")

    def start(self, node: Node, n: int, of: int) -> None:
        """A stage begins."""
        self.stage, self._head = node.label, f"[{n}/{of}] {node.role}"
        self._pace, self._began, self._share_before = Pace(), time.monotonic(), -1.0
        self._seconds.pop(node.label, None)
        if self.live:
            self._draw(f"{self._head}: {node.what}")
        else:
            self.say(f"{self._head}: {node.what}  {node.label}")

    def progress(self, step: int, of: int, numbers: Mapping[str, float]) -> None:
        """A stage has done `step` of `of`."""
        share, now = step / max(of, 1), time.monotonic()
        if self._share_before < 0:  # loading, and the work of an earlier command, say nothing of the pace
            self._share_before, self._began = share, now
        is_due = now - self._drawn_at >= REDRAW_SECONDS or step == of if self.live else self._pace.is_due(share)
        if not is_due:
            return
        done = share - self._share_before
        left = (now - self._began) / done * (1 - share) if done > 0 else None
        words = [f"{step}/{of}", self._time(left), *_told(numbers)]
        if self.live:
            self._draw("  ".join([f"{self._head} {_bar(share, _columns())}", *words]))
        else:
            self.say("  ".join([f"  {self._head}", *words]))

    def _time(self, left: float | None) -> str:
        """The time that this stage still takes, and all of them together where their times are estimated."""
        here = f"{text.human_time(left)} left" if left is not None else "? left"
        if left is None or not self._seconds:
            return here
        return f"{here}, {text.human_time(left + sum(self._seconds.values()))} in all"

    def done(self, node: Node, manifest: Manifest, fresh: bool) -> None:
        """A stage is finished, or was there."""
        self._seconds.pop(node.label, None)
        if fresh:
            seconds = text.human_time(float(manifest.made["seconds"]))
            said = "; ".join(manifest.metrics.get("say", ()))
            line = f"done   {node.label:<27} {node.role:<17} {seconds:>6}  {text.human_size(manifest.size):>8}  {said}"
            self.say(line.rstrip())
            for warning in manifest.metrics.get("watch", ()):
                self.say(f"watch  {warning}")

    def _draw(self, line: str) -> None:
        width = _columns() - 1
        shown = text.for_encoding(line, sys.stderr.encoding)
        streams.say("\r" + text.pad(_fitted(shown, width), width))
        self._drawn_at, self._drawn = time.monotonic(), True

    def _clear(self) -> None:
        if self._drawn:
            streams.say("\r" + " " * (_columns() - 1) + "\r")
            self._drawn = False

    def close(self) -> None:
        """Leave a clean line."""
        self._clear()


def _can_draw() -> bool:
    """Whether stderr is a terminal that moves its cursor, and this command is in its foreground."""
    if not sys.stderr.isatty() or os.environ.get("TERM", "dumb") in ("dumb", "unknown", ""):
        return False
    try:
        return os.tcgetpgrp(sys.stderr.fileno()) == os.getpgrp()
    except OSError:
        return True


def _columns() -> int:
    return shutil.get_terminal_size().columns


def _bar(share: float, columns: int) -> str:
    room = 20 if columns >= 80 else 8
    filled = int(room * share)
    return "█" * filled + "░" * (room - filled)


def _fitted(line: str, width: int) -> str:
    """As many of the parts of a line as fit."""
    while "  " in line and text.width_of(line) > width:
        line = line.rpartition("  ")[0].rstrip()
    return line if text.width_of(line) <= width else line[: max(width, 0)]


def _told(numbers: Mapping[str, float]) -> Sequence[str]:
    """The loss and the first other numbers; how fast a training goes, and whether it waits."""
    plain = {name: value for name, value in numbers.items() if "/" not in name and name not in _ASIDE}
    said = [f"{name} {plain[name]:.4g}" for name in sorted(plain, key=lambda name: name != "loss")[:3]]
    if "tokens_per_s" in numbers:
        said.append(f"{text.number(round(numbers['tokens_per_s']))} tokens/s")
    if numbers.get("wait", 0.0) >= WAIT_WORTH_SAYING:
        said.append(f"waits {100 * numbers['wait']:.0f} %")
    return said


@dataclass(frozen=True)
class Look:
    """A plan with what it takes, and what is known to stand against it."""

    plan: Plan
    store: Store
    estimate: Estimate
    problems: tuple[AdpaError, ...]

    def text(self, width: int) -> str:
        """For a terminal."""
        return plan_text(self.plan, self.estimate, self.store, width)

    def tsv(self) -> str:
        """For a pipe."""
        return plan_tsv(self.estimate).rstrip("\n")

    def json(self) -> str:
        """For a program: one object."""
        record = plan_json(self.plan, self.estimate, self.store)
        return json.dumps(record, ensure_ascii=False, indent=1)

    @property
    def seconds(self) -> dict[str, float]:
        """How long each stage that is to be made may take, by label; those that nobody can tell are left out."""
        return {c.node.label: c.seconds for c in self.estimate.building if c.seconds is not None}


def look(plan: Plan, store: Store, runtime: Runtime) -> Look:
    """Estimate a plan, and see what cannot fit here."""
    # A command that finds all it makes needs none of this, nor the time to import it.
    from adpa_cli.estimate.preflight import fit_problems
    from adpa_cli.estimate.survey import estimate

    found = estimate(plan, store, runtime)
    return Look(plan, store, found, tuple(fit_problems(found, store, runtime)))


def look_closely(plan: Plan, store: Store, runtime: Runtime) -> Look:
    """The same with every problem that can be told without loading a library of models."""
    from adpa_cli.estimate.preflight import problems_without_torch

    seen = look(plan, store, runtime)
    more = problems_without_torch([cost.node for cost in seen.estimate.building], store)
    return replace(seen, problems=(*seen.problems, *more))
