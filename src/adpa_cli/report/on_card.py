"""Which stages of each model with an alias run on a card of some size, and with which options: `adpa models --card`.

A stage is planned as for data that nobody has read: every row has the full length. What would make it fit is what its
plan would advise.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adpa_cli.errors import AdpaError, UsageError
from adpa_cli.estimate.advice import Change, Room, halvings, owners_of
from adpa_cli.estimate.cost import planned_rows
from adpa_cli.families import GENERIC, INSTRUCT, Family, Side, aliases
from adpa_cli.machine import BOUNDLESS, Machine, first_card
from adpa_cli.planning.settings import needs_of, plain_spec
from adpa_cli.report import text
from adpa_cli.report.models import Entry, count_words, entries, training_specs
from adpa_cli.sizes import Where, size_words
from adpa_cli.spec import Runtime, TrainSpec
from adpa_cli.stages import Load, Node
from adpa_cli.stages.cache_teacher import CACHE_TEACHER, CaptureSpec
from adpa_cli.stages.eval import EVAL
from adpa_cli.stages.rollout import ROLLOUT, RolloutSpec
from adpa_cli.stages.start_logps import START_LOGPS, StartSpec
from adpa_cli.store.store import Store
from adpa_cli.suites import EvalSpec

HERE = "here"
PLAIN = {"template": "", "end": ""}
TYPED = re.compile(r"--set \S+?\.|--runtime |--(?=tokens)")


@dataclass(frozen=True)
class Fit:
    """A stage of a model on a card: the bytes that it takes there with some `options`, the least that there are where
    it does not run."""

    alias: str
    role: str
    parameters: int
    stage: str
    runs: bool
    memory: int
    options: str

    @property
    def with_words(self) -> str:
        """The options without what stands around them, none broken at a space."""
        return TYPED.sub("", self.options).replace("-device ", "-device=")


def card_bytes(words: str) -> int:
    """What `24`, `24GB` or `here` says of a card. Raises UsageError for other words, AdpaError where none is here."""
    if words == HERE:
        card = first_card()
        if card is None:
            raise AdpaError("no card is here: nvidia-smi lists none", "say its gigabytes: adpa models --card 24")
        return card[1]
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(?:GB|G)?", words.strip(), re.IGNORECASE)
    if found is None or not 0 < float(found[1]) < 10_000:
        raise UsageError(
            f"--card {words} is not the size of a card: gigabytes, such as 24 or 11.5, above 0 and below 10,000",
            "adpa models --card 24, or the one of this machine: adpa models --card here",
        )
    return int(float(found[1]) * 1e9)


def fits(memory: int) -> Iterator[Fit]:
    """Every stage of every alias on a card of so many bytes, in a machine that has enough of all else."""
    machine = Machine("cuda", "card", "", memory, BOUNDLESS, BOUNDLESS)
    for one in entries():
        by_stage: dict[str, Fit] = {}
        nodes = list(_nodes(one))
        room = Room(machine, Store(Path()), owners_of(nodes))
        for node in nodes:
            found = _fit(one, node, room)
            if node.stage not in by_stage or _hardest(found) > _hardest(by_stage[node.stage]):
                by_stage[node.stage] = found
        yield from by_stage.values()


def _hardest(fit: Fit) -> tuple[bool, int, int]:
    return not fit.runs, len(fit.options), fit.memory


def _fit(one: Entry, node: Node, room: Room) -> Fit:
    """One stage; its options are those that a plan would advise."""
    runtime = Runtime()
    load = Load(planned_rows(node, room.store, runtime)[0], (one.model.size,), runtime, Where(room.machine.kind))
    change, facts = Change(runtime), (one.alias, one.role, one.model.parameters, node.stage)
    if room.has_room(node, load, change):  # as it is, or with micro-batches that a training halves by itself
        needs = (room.needs(node, load, smaller) for smaller in (change, *halvings(change, node)))
        return Fit(*facts, True, next(need for need, is_enough in needs if is_enough), "")
    found = room.first(node, load, change)
    change = found.change or found.smallest
    options = change.without([node, room.owner_of(node)]).words(runtime)
    return Fit(*facts, found.change is not None, room.needs(node, load, change)[0], options)


def _nodes(one: Entry) -> Iterator[Node]:
    """The stages that a model of an alias goes through, and those that read it."""
    known = aliases().get(one.alias)
    family, side = (known.family, known.side) if known else (GENERIC, None)
    if side:
        yield from _trainings(family, side)
    if side == "student":
        yield Node(ROLLOUT.name, plain_spec(RolloutSpec, ROLLOUT.name, family, {}, **PLAIN), {}, one.role)
        yield Node(EVAL.name, plain_spec(EvalSpec, EVAL.name, family, {}, **PLAIN), {}, one.role)
    else:
        yield _capture(family, one.role)


def _trainings(family: Family, side: Side) -> Iterator[Node]:
    """The trainings of one side of a family, with what they derive."""
    for stage, spec in training_specs(family, side):
        needs = needs_of(spec.method, {})
        cache = {"cache": _capture(family, "signal")} if any(need.signal for need in needs) else {}
        derived = {"start": _start(stage, spec)} if any(need.start for need in needs) else {}
        yield Node(stage, spec, cache, side, derived=derived)
        yield from derived.values()


def _start(stage: str, spec: TrainSpec) -> Node:
    shared = {name: getattr(spec, name) for name in ("dtype", "max_length", "limit", "skip_bad_rows", "smoke")}
    return Node(START_LOGPS.name, StartSpec(("chosen", "rejected"), "", "", **shared), {}, stage)


def _capture(family: Family, role: str) -> Node:
    spec = plain_spec(CaptureSpec, CACHE_TEACHER.name, family, {}, parts=("chosen", "rejected"), **PLAIN)
    return Node(CACHE_TEACHER.name, spec, {}, role)


def screen(every: Sequence[Fit], memory: int, width: int) -> str:
    """A paragraph a model: stages that run as they are, those that run with options, those that do not."""
    own = [fit for fit in every if not fit.alias.endswith(INSTRUCT)]
    names, lines = list(dict.fromkeys(fit.alias for fit in own)), []
    first = max(map(len, names))
    for name in names:
        stages = [fit for fit in own if fit.alias == name]
        head = f"{name:{first}}  {count_words(stages[0].parameters):>7}  "
        pieces = [piece for group in _groups(stages) for piece in text.fold(group, width - len(head), "")]
        lines += [f"{' ' * len(head) if n else head}{piece}" for n, piece in enumerate(pieces)]
    notes = (
        f"On a card with {size_words(memory)} of memory, with rows of full length. Stages run as they are where no "
        "options stand. Options are settings of a stage (--set STAGE.lora=16) and ways of running (--runtime "
        "recompute=true, --tokens-per-device=4096): --json has them as they are typed.",
        f"Instruct siblings ({INSTRUCT}) need what their base models do, without the first fine-tuning.",
    )
    return "\n".join([*lines, *(line for note in notes for line in text.fold(note, width, ""))])


def _groups(stages: Sequence[Fit]) -> list[str]:
    """The stages of a model, those together that run alike."""
    alike: dict[tuple[bool, str], list[str]] = {}
    for fit in sorted(stages, key=lambda fit: (not fit.runs, len(fit.options))):
        alike.setdefault((fit.runs, fit.with_words if fit.runs else ""), []).append(fit.stage)
    said = []
    for (runs, words), names in alike.items():
        listed = ", ".join(names)
        said.append(f"not {listed}" if not runs else f"{listed} with {words}" if words else listed)
    return said


def tsv_rows(every: Sequence[Fit]) -> Iterator[tuple[str | int, ...]]:
    """Alias, role, stage, yes or no, bytes, options."""
    for fit in every:
        yield fit.alias, fit.role, fit.stage, "yes" if fit.runs else "no", fit.memory, fit.options


def record(fit: Fit) -> dict[str, Any]:
    """One stage as a JSON object; memory in bytes."""
    return asdict(fit)
