"""What each alias of a model stands for and which card suffices for it: for `adpa models` and docs/models.md.

A card suffices when one row of full length fits beside what the stage keeps of the model: rows are put into smaller
micro-batches, and blocks into smaller ones, until they fit.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from adpa_cli.data.templates import Template
from adpa_cli.engine.costs import Held, scoring_memory, training_memory
from adpa_cli.families import (
    CHAINS,
    FAMILIES,
    GENERIC,
    INSTRUCT,
    READY_PAIRS,
    Family,
    Published,
    ReadyPair,
    Side,
    published,
    reward_models,
)
from adpa_cli.planning.settings import needs_of, plain_spec, train_spec
from adpa_cli.report import text
from adpa_cli.sizes import ModelSize, Row, Where
from adpa_cli.spec import Runtime, TrainSpec
from adpa_cli.stages.cache_teacher import CACHE_TEACHER, CaptureSpec
from adpa_cli.stages.rewards import REWARDS, RewardsSpec
from adpa_cli.stages.training import DISTILL, DPO_TEACHER, SFT

CARDS = (8, 12, 16, 24, 32, 40, 48, 80, 96, 141)
"""What cards have, in gigabytes (10⁹ bytes, so that a little is left of what is sold as so much)."""
CARD = Where("cuda")
NO_TEMPLATE = Template("")


@dataclass(frozen=True)
class Card:
    """What suffices for some stages: the memory they take, the smallest card that has it, and the options for that.

    `gigabytes` is None where no card has so much.
    """

    stages: tuple[str, ...]
    memory: int
    gigabytes: int | None
    options: str = ""

    def __str__(self) -> str:
        return "none" if self.gigabytes is None else f"{self.gigabytes} GB"


@dataclass(frozen=True)
class Entry:
    """One alias: what it is for, the model, the card that suffices for its role, and what it is trained with.

    `lean` is the card for a training that keeps less: bfloat16 weights, and activations computed again. `teacher` is
    the alias that a student learns from; `pair` is set of a ready pair, which is trained already.
    """

    alias: str
    role: str
    model: Published
    card: Card
    lean: Card | None = None
    teacher: str = ""
    data: str = ""
    pair: ReadyPair | None = None


def entries() -> Iterator[Entry]:
    """Every alias: the models of the families, each once, then the ready pairs."""
    known = published()
    told: set[str] = set()
    for family in FAMILIES:
        data = f"{family.sft_data}, {family.data}"
        sides: tuple[tuple[str, Side], ...] = ((family.alias, "student"), (family.teacher_alias, "teacher"))
        for alias, side in sides:
            if alias not in told:
                told.add(alias)
                model, teacher = known[alias], family.teacher_alias if side == "student" else ""
                usual, lean = (training_card(family, side, model.size, is_lean) for is_lean in (False, True))
                yield Entry(alias, side, model, usual, lean, teacher, data)
    for pair in READY_PAIRS:
        model = known[pair.alias]
        yield Entry(pair.alias, "ready pair", model, reading_card(model.size), pair=pair)


def reward_entries() -> Iterator[Entry]:
    """The reward models that have an alias, with the card on which they score answers."""
    spec = plain_spec(RewardsSpec, REWARDS.name, GENERIC, {}, template="", end="")
    rows = {"rollout": [_row(spec.max_length)] * (spec.block_tokens // spec.max_length)}
    for alias, model in reward_models().items():
        memory = scoring_memory(model.size, rows, Held(spec.dtype), spec.block_tokens, 1, CARD).device
        yield Entry(alias, "reward model", model, Card((REWARDS.name,), memory, _smallest(memory)))


def training_card(family: Family, side: Side, size: ModelSize, lean: bool = False) -> Card:
    """What trains a model of a family: a student with each stage and method of the paper's chain, a teacher with DPO.

    A `lean` training keeps weights in bfloat16 and computes activations again.
    """
    specs = list(training_specs(family, side))
    stages = tuple(dict.fromkeys(stage for stage, _ in specs))
    memory = max(_training(spec, size, lean) for _, spec in specs)
    options = [*(f"--set {stage}.weights=bfloat16" for stage in stages), "--runtime recompute=true"] if lean else []
    return Card(stages, memory, _smallest(memory), " ".join(options))


def reading_card(size: ModelSize) -> Card:
    """What a capture of a model's signal takes, which a ready pair is only read for."""
    spec = plain_spec(CaptureSpec, CACHE_TEACHER.name, GENERIC, {}, parts=("chosen",), template="", end="")
    rows = {"chosen": [_row(spec.max_length)]}
    memory = scoring_memory(size, rows, Held(spec.dtype), spec.max_length, 1 + spec.top_k, CARD).device
    return Card((CACHE_TEACHER.name,), memory, _smallest(memory))


def training_specs(family: Family, side: Side) -> Iterator[tuple[str, TrainSpec]]:
    """The trainings that a model of one side of a family goes through, with the names of their stages."""
    (method,) = SFT.methods()
    if not family.instruct:
        yield SFT.name, train_spec(SFT.name, method, family, (SFT.name, f"{SFT.name}.{side}"), {}, NO_TEMPLATE)
    if side == "teacher":
        (method,) = DPO_TEACHER.methods()
        yield DPO_TEACHER.name, train_spec(DPO_TEACHER.name, method, family, (DPO_TEACHER.name,), {}, NO_TEMPLATE)
        return
    for method in next(iter(CHAINS.values())):
        keys = (DISTILL.name, f"{DISTILL.name}.{method}")
        yield DISTILL.name, train_spec(DISTILL.name, method, family, keys, {}, NO_TEMPLATE)


def _training(spec: TrainSpec, size: ModelSize, lean: bool) -> int:
    """Bytes on a card of a training, with one example of full length in a micro-batch."""
    needs = needs_of(spec.method, {})
    rows = {str(need.part): [_row(spec.max_length)] for need in needs}
    ids = 1 + (CaptureSpec.top_k if any(need.signal for need in needs) else 0)
    run = replace(spec, weights="bfloat16") if lean else spec
    return training_memory(size, rows, run, Runtime(recompute=lean), ids, CARD).device


def _row(longest: int) -> Row:
    return Row(longest / 2, longest / 2)


def _smallest(memory: int) -> int | None:
    return next((gigabytes for gigabytes in CARDS if memory <= gigabytes * 1e9), None)


HEADS = ("ALIAS", "ROLE", "MODEL", "PARAMS", "LICENCE", "GATED", "CARD", "LEAN", "TEACHER", "DATA")


def listed(every: Sequence[Entry], width: int) -> str:
    """A table of aliases, how the ready pairs were aligned, and what the columns mean."""
    rows = [
        (
            one.alias, one.role, one.model.name, count_words(one.model.parameters), one.model.licence,
            "yes" if one.model.gated else "no", str(one.card), str(one.lean or ""), one.teacher, one.data,
        )
        for one in every
    ]  # fmt: skip
    lines = text.table(HEADS, rows, width, flexible=2, right=(3,), expendable=(9, 8, 1), floor=18)
    notes = [
        "CARD: the smallest GPU for sft and distill (students), sft and dpo-teacher (teachers), cache-teacher (a ready "
        "pair), or rewards (a reward model). LEAN: with bfloat16 weights and recomputation, by the options in --json. "
        "GATED: ask on the hub.",
        *(pair_words(one.pair) for one in every if one.pair),
    ]
    return "\n".join([*lines, *(line for note in notes for line in text.fold(note, width, ""))])


def pair_words(pair: ReadyPair) -> str:
    """How a ready pair was aligned, and for whom it is."""
    return (
        f"{pair.alias}: from {pair.reference} by {pair.objective}, β {pair.beta:g}, on {pair.data}; "
        f"for {', '.join(pair.students)}"
    )


def tsv_rows(every: Sequence[Entry]) -> Iterator[tuple[str | int, ...]]:
    """Alias, role, model, parameters, licence, gated, gigabytes of both cards, teacher or reference, data."""
    for one in every:
        model = one.model
        yield (
            one.alias, one.role, model.name, model.parameters, model.licence, "yes" if model.gated else "no",
            one.card.gigabytes or "", one.lean.gigabytes or "" if one.lean else "",
            one.pair.reference if one.pair else one.teacher, one.data,
        )  # fmt: skip


def page_tables() -> str:
    """The tables of docs/models.md: base models with their instruct siblings, ready pairs, and reward models."""
    every = list(entries())
    siblings = {one.alias.removesuffix(INSTRUCT): one.model.name for one in every if one.alias.endswith(INSTRUCT)}
    lines = [
        "| alias | base model | its sibling, with `-it` | parameters | licence | gated | card | lean | learns from |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for one in every:
        if one.pair is None and not one.alias.endswith(INSTRUCT):
            cells = (
                f"`{one.alias}`", f"`{one.model.name}`", f"`{siblings[one.alias]}`" if one.alias in siblings else "",
                count_words(one.model.parameters), one.model.licence, "yes" if one.model.gated else "no",
                str(one.card), str(one.lean), f"`{one.teacher}`" if one.teacher else "",
            )  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| ready pair | aligned teacher | reference | aligned by | licence | card | for |", "|---" * 7 + "|"]
    for one in every:
        if pair := one.pair:
            students = ", ".join(f"`{student}`" for student in pair.students)
            how = f"{pair.objective}, β {pair.beta:g}, on `{pair.data}`"
            lines.append(
                f"| `{pair.alias}` | `{pair.aligned}` | `{pair.reference}` | {how} | {one.model.licence} "
                f"| {one.card} | {students} |"
            )
    lines += ["", "| reward model | model | parameters | licence | card |", "|---" * 5 + "|"]
    for one in reward_entries():
        size = count_words(one.model.parameters)
        lines.append(f"| `{one.alias}` | `{one.model.name}` | {size} | {one.model.licence} | {one.card} |")
    return "\n".join(lines) + "\n"


def record(one: Entry) -> dict[str, Any]:
    """One alias as a JSON object; memory in bytes."""
    model = one.model
    return {
        "alias": one.alias, "role": one.role, "model": model.name, "parameters": model.parameters,
        "licence": model.licence, "gated": model.gated, "teacher": one.teacher, "data": one.data,
        "card": asdict(one.card), **({"lean": asdict(one.lean)} if one.lean else {}),
        **({"pair": {**asdict(one.pair), "objective": one.pair.objective}} if one.pair else {}),
    }  # fmt: skip


def count_words(parameters: int) -> str:
    """A number of parameters for people: 135 M, 1.24 B."""
    if parameters < 999.5e3:
        return f"{parameters / 1e3:.0f} k"
    return f"{parameters / 1e6:.0f} M" if parameters < 999.5e6 else f"{parameters / 1e9:.3g} B"


if __name__ == "__main__":
    sys.stdout.write(page_tables())
