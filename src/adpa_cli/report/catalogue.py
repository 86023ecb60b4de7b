"""What is known about each method, read off its file and the families: for `adpa methods` and docs/methods.md."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adpa_cli import methods
from adpa_cli.families import CHAINS, FAMILIES, chain_of
from adpa_cli.methods import Method, Need
from adpa_cli.spec import make
from adpa_cli.stages.cache_teacher import CACHE_TEACHER
from adpa_cli.stages.rollout import ROLLOUT
from adpa_cli.stages.start_logps import START_LOGPS
from adpa_cli.stages.training import DISTILL, DPO_TEACHER, SFT

SYMBOLS = {"chosen": "y_w", "rejected": "y_l", "rollout": "ŷ"}
ANSWERS = {"chosen": "chosen answers y_w", "rejected": "rejected answers y_l"}
ROLLOUTS = {"student": "the student's own answers ŷ", "teacher": "the teacher's answers ŷ"}
ASKED = {
    "start": "log-probs of the start model",
    "stats": "the student's Σ_v π(v)²",
    "online": "both teachers, the start model and a critic at hand",
    "reward": "the reward of a reward model",
}
BRIEFLY = {
    "start": "start model", "stats": "student's Σ π²", "online": "teachers, start model, critic in training",
    "reward": "reward model",
}  # fmt: skip
"""What a field of `Need` asks for beside answers and signal, in full and for a cell."""


@dataclass(frozen=True)
class Parameter:
    """One `--set KEY=VALUE`: where its default comes from, what it may be, and what it means."""

    name: str
    default: str
    origin: str
    limits: str
    doc: str


@dataclass(frozen=True)
class Entry:
    """One word for `--method`, all as text. `needs` pairs a kind of answer with what is asked of it.

    `columns` says the same in brief: the answers, whose signal on which of them, and what else.
    """

    name: str
    summary: str
    source: str
    formula: str
    columns: tuple[str, str, str]
    needs: tuple[tuple[str, str], ...]
    variants: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    presets: Mapping[str, Mapping[str, Any]]
    family: Mapping[str, Any]
    stages: tuple[tuple[str, str], ...]
    readings: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def example(self) -> str:
        """A command that runs it offline."""
        return f"adpa distill --method {self.name} --student tiny"


def every() -> tuple[Entry, ...]:
    """All methods and chains of methods by name."""
    return tuple(entry(name) for name in sorted((*methods.names(), *CHAINS)))


def entry(name: str) -> Entry:
    """What is known about one; UsageError with a suggestion when there is none."""
    for chained, chain in CHAINS.items():
        if chain == chain_of(name):
            return _chain(chained)
    read = methods.load(name)
    return Entry(
        name, read.summary, read.source, read.formula, brief(read.needs, read.states),
        tuple(told(read.needs, read.states)), tuple(variants(read)), tuple(parameters(read)), read.presets,
        family_defaults(name), tuple(stages((name,))), read.readings, read.notes,
    )  # fmt: skip


def _chain(name: str) -> Entry:
    chain = CHAINS[name]
    reads = [methods.load(one) for one in chain]
    words = ", then ".join([f"first {chain[0]}", *(f"{one} from the student it makes" for one in chain[1:])])
    needs = [need for read in reads for need in read.needs]
    needs = [need for need in needs if need.signal or need.part not in {n.part for n in needs if n.signal}]
    note = f"A bare `--set KEY=VALUE` is taken by each of {' and '.join(chain)} that has such a parameter."
    return Entry(
        name, words, "Gao et al. 2025, Algorithm 2", "; then ".join(f"{read.name}: {read.formula}" for read in reads),
        brief(needs, "student"), tuple(told(needs, "student")), (), tuple(_united(reads)), {}, family_defaults(*chain),
        tuple(stages(chain)), {}, (note,),
    )  # fmt: skip


def _united(reads: Sequence[Method]) -> Iterator[Parameter]:
    """The parameters of several methods, each once, with the methods that take it."""
    found = [(read.name, p) for read in reads for p in parameters(read)]
    for name in dict.fromkeys(p.name for _, p in found):
        having = [(method, p) for method, p in found if p.name == name]
        first = having[0][1]
        yield dataclasses.replace(first, doc=f"{first.doc} ({', '.join(method for method, _ in having)})")


def told(needs: Sequence[Need], states: str) -> Iterator[tuple[str, str]]:
    """Each kind of answer with what is asked of it, in words; fields of `Need` without words of ours by name."""
    for need in needs:
        extra = [ASKED.get(f.name, f"{f.name} {value_text(getattr(need, f.name))}") for f in _extra(need)]
        signal = [f"signal of the {' and the '.join(need.signal)} teacher"] if need.signal else []
        yield whose(need, states), ", ".join([*signal, *extra])


def brief(needs: Sequence[Need], states: str) -> tuple[str, str, str]:
    """The needs as three cells of a table, in symbols: answers, whose signal on which, and what else by its field."""
    symbols = {need.part: _symbol(need, states) for need in needs}
    signal: dict[str, list[str]] = {}
    for need in needs:
        if need.signal:
            signal.setdefault("+".join(need.signal), []).append(symbols[need.part])
    extra = {f.name: None for need in needs for f in _extra(need)}
    return (
        ", ".join(symbols.values()),
        "; ".join(f"{who} on {', '.join(on)}" for who, on in signal.items()),
        ", ".join(BRIEFLY.get(name, name) for name in extra),
    )


def _symbol(need: Need, states: str) -> str:
    if need.online:
        return "ŷ drawn in training"
    return f"ŷ of the {states}" if need.part == "rollout" and states != "student" else SYMBOLS[need.part]


def _extra(need: Need) -> list[Any]:
    """The fields of a need beside answers and signal that ask for something."""
    known = ("part", "signal")
    asked = [f for f in dataclasses.fields(need) if f.compare and f.name not in known]
    return [f for f in asked if getattr(need, f.name) != f.default]


def whose(need: Need, states: str) -> str:
    """Which answers a need means, in words."""
    if need.part == "rollout":
        return (
            "answers ŷ drawn from the student while it trains"
            if need.online
            else ROLLOUTS.get(states, f"{states} answers as ŷ")
        )
    return ANSWERS[need.part]


def variants(read: Method) -> Iterator[str]:
    """Choices of single parameters that change what the method needs."""
    for field in dataclasses.fields(read.params):
        options = field.metadata["choices"] or ((True, False) if isinstance(field.default, bool) else ())
        for option in options:
            needs = read.needs_for(make(read.params, {field.name: option}))
            if needs != read.needs:
                words = "; ".join(" with ".join(filter(None, pair)) for pair in told(needs, read.states))
                yield f"{field.name}={value_text(option)} reads {words}"


def parameters(read: Method) -> Iterator[Parameter]:
    """The parameters of a method, then the settings that choose where its inputs come from."""
    for field in dataclasses.fields(read.params):
        yield _parameter(field, field.default)
    for field in dataclasses.fields(methods.Sources):
        if field.name in read.sources:
            yield _parameter(field, read.sources[field.name])


def _parameter(field: Any, default: Any) -> Parameter:
    meta = field.metadata
    limits = " | ".join(value_text(option) for option in meta["choices"])
    low, high = meta["low"], meta["high"]
    if isinstance(default, bool):
        limits = "true | false"
    elif low is not None or high is not None:
        limits = f"{'' if low is None else value_text(low)} … {'' if high is None else value_text(high)}".strip()
    return Parameter(field.name, value_text(default), meta["origin"], limits, meta["doc"])


def value_text(one: Any) -> str:
    """A value as it is typed after `--set`: true, 0.5, 5e-7, 1000; None is the word none."""
    if one is None or isinstance(one, bool):
        return str(one).lower()
    return f"{one:g}".replace("e-0", "e-").replace("e+0", "e") if isinstance(one, int | float) else str(one)


def settings(values: Mapping[str, Any]) -> list[str]:
    """Values as they are typed after `--set`."""
    return [f"{key}={value_text(one)}" for key, one in values.items()]


def family_defaults(*names: str) -> dict[str, Any]:
    """What the built-in family sets otherwise than the methods; of several, what is no parameter with its method."""
    found: dict[str, Any] = {}
    for name in names:
        own = {f.name for f in dataclasses.fields(methods.load(name).params)}
        for key, one in FAMILIES[0].settings.get(f"distill.{name}", {}).items():
            found[key if len(names) == 1 or key in own else f"{name} {key}"] = one
    return found


def stages(chain: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What `adpa distill` builds in order for an alias as the student, evaluation apart: stage and what it makes."""
    reads = [methods.load(name) for name in chain]
    yield SFT.name, "the student, from its base model on dialogues"
    if any(_taught(need, read.states) for read in reads for need in read.needs):
        yield SFT.name, "the reference teacher, likewise"
        yield START_LOGPS.name, "log-probs of the reference teacher on chosen and rejected answers"
        yield DPO_TEACHER.name, "the aligned teacher, from the reference teacher on preference pairs"
    start = "the student"
    for read in reads:
        fixed = next((need for need in read.needs if need.part != "rollout" and need.signal), None)
        if fixed:
            yield CACHE_TEACHER.name, f"{'+'.join(fixed.signal)} signal on chosen and rejected answers"
        drawn = next((need for need in read.needs if need.part == "rollout" and not need.online), None)
        if drawn:
            yield ROLLOUT.name, f"answers of {start if read.states == 'student' else 'the aligned teacher'}"
            if drawn.signal:
                yield CACHE_TEACHER.name, f"{'+'.join(drawn.signal)} signal on these answers"
        if any(need.start for need in read.needs):
            yield START_LOGPS.name, f"log-probs of {start} on chosen and rejected answers"
        yield DISTILL.name, f"{read.name} from {start}"
        start = f"the {read.name} student"


def _taught(need: Need, states: str) -> bool:
    """Whether a teacher must be there."""
    return bool(need.signal) or need.online or (need.part == "rollout" and states == "teacher")


INDENT = 10
"""Columns before the text of a labelled paragraph."""


def listed(entries: Sequence[Entry], width: int) -> str:
    """Every method in a few lines: what it is, loss, what it reads, parameters and source."""
    column = max(len(one.name) for one in entries) + 2
    lines: list[str] = []
    for one in entries:
        lines += _flow(one.name, one.summary, width, column)
        lines += _flow("", f"loss {one.formula}", width, column)
        lines += _flow("", f"reads {needs(one)}", width, column)
        if one.parameters:
            lines += _flow("", f"set {', '.join(f'{p.name}={p.default}' for p in one.parameters)}", width, column)
        lines += _flow("", f"from {one.source}", width, column)
    return "\n".join([*lines, "adpa methods NAME tells more."])


def page(one: Entry, width: int) -> str:
    """One method in full."""
    lines = _flow(one.name, one.summary, width, max(INDENT, len(one.name) + 2))
    lines += _flow("source", one.source, width)
    lines += _flow("loss", one.formula, width)
    for label, words in zip(_labels("needs"), [*map(_need, one.needs), *one.variants], strict=False):
        lines += _flow(label, words, width)
    for number, (stage, what) in enumerate(one.stages, 1):
        lines += _flow("builds" if number == 1 else "", f"{number} {stage}: {what}", width)
    lines += _flow("", "then its evaluation, unless --no-eval; what exists is used", width)
    if one.parameters:
        lines += ["", "--set KEY=VALUE", *_parameters(one, width), ""]
    for name, values in one.presets.items():
        lines += _flow("preset", f"{name}: {', '.join(settings(values))}", width)
    if one.family:
        lines += _flow("tiny", f"sets {', '.join(settings(one.family))}", width)
    for label, (option, words) in zip(_labels("readings"), one.readings.items(), strict=False):
        lines += _flow(label, f"{option}: {_plain(words)}", width)
    for label, words in zip(_labels("notes"), one.notes, strict=False):
        lines += _flow(label, _plain(words), width)
    return "\n".join([*lines, *_flow("try", one.example, width)])


def needs(one: Entry) -> str:
    """All needs in brief: answers, whose signal on them, and what else."""
    answers, signal, other = one.columns
    return " · ".join(filter(None, (answers, signal and f"signal {signal}", other)))


def record(one: Entry) -> dict[str, Any]:
    """One method as a JSON object."""
    found = dataclasses.asdict(one)
    return {
        **found, "example": one.example,
        "columns": dict(zip(("answers", "signal", "other"), one.columns, strict=True)),
        "needs": [{"answers": answers, "asked": asked} for answers, asked in one.needs],
        "stages": [{"stage": stage, "makes": what} for stage, what in one.stages],
    }  # fmt: skip


def list_rows(entries: Sequence[Entry]) -> list[tuple[str, ...]]:
    """Name, what it is, source, loss, needs and parameters with what they may be."""
    return [
        (
            one.name, one.summary, one.source, one.formula, needs(one),
            ", ".join(f"{p.name}={p.default}" + (f" ({p.limits})" if p.limits else "") for p in one.parameters),
        )
        for one in entries
    ]  # fmt: skip


def page_rows(one: Entry) -> Iterator[tuple[str, ...]]:
    """One method, a fact a line, its kind first."""
    yield from (("method", one.name), ("what", one.summary), ("source", one.source), ("loss", one.formula))
    yield from (("needs", *pair) for pair in one.needs)
    yield from (("variant", words) for words in one.variants)
    yield from (("builds", *pair) for pair in one.stages)
    yield from (("parameter", p.name, p.default, p.origin, p.limits, p.doc) for p in one.parameters)
    yield from (("preset", name, *settings(values)) for name, values in one.presets.items())
    if one.family:
        yield "tiny", *settings(one.family)
    yield from (("reading", *pair) for pair in one.readings.items())
    yield from (("note", words) for words in one.notes)
    yield "example", one.example


def _parameters(one: Entry, width: int) -> Iterator[str]:
    """Name, default, origin and limits in columns, the meaning below."""
    columns = [max(len(row[i]) for row in map(_cells, one.parameters)) for i in range(3)]
    for p in one.parameters:
        cells = "  ".join(f"{cell:<{size}}" for cell, size in zip(_cells(p), columns, strict=True))
        yield from _flow("", f"{cells}  {p.limits}".rstrip(), width, 2)
        yield from _flow("", p.doc, width, 6)


def _cells(p: Any) -> tuple[str, str, str]:
    return p.name, p.default, f"[{p.origin}]"


def _need(pair: tuple[str, str]) -> str:
    return " with ".join(filter(None, pair))


def _plain(words: str) -> str:
    """Without the marks of Markdown."""
    return words.replace("`", "")


def _labels(label: str) -> Iterator[str]:
    """The label once, then nothing for ever."""
    yield label
    while True:
        yield ""


def _flow(label: str, words: str, width: int, indent: int = INDENT) -> list[str]:
    """Words behind a label, wrapped under themselves; their inner spaces stay."""
    return textwrap.wrap(
        f"{label:<{indent}}{words}", max(width, 40), subsequent_indent=" " * indent, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


COMMAND = "python -m adpa_cli.report.catalogue > docs/methods.md"

HEAD = f"""\
# Training methods

Made from the files in `src/adpa_cli/methods` by `{COMMAND}`.
`adpa methods NAME` shows a section of this page at the terminal.

Symbols: y_w is the chosen answer of a pair, y_l the rejected one, ŷ an answer that a model wrote; π is the student,
π_start the model that training starts from, π_aligned and π_reference the teachers; s_t is the prompt with the answer
before token t; mean_t runs over the tokens of an answer, the end token included; L_SFT(y) is mean_t of -log π(y_t).
Every loss is then averaged over the examples of a batch.

A parameter is set by `--set KEY=VALUE`. Its default comes from the paper ([paper]: Gao et al. 2025 for its own methods,
the cited source for the others), from released code ([release]), or was chosen here ([ours]). `--set preset=NAME` sets
several. The column `tiny` has what the built-in family sets otherwise.
"""


def document() -> str:
    """The whole page."""
    entries = every()
    links = [[f"[{one.name}](#{_anchor(one.name)})", *one.columns] for one in entries]
    differing = [[f"`{one.name}`", f"`{key}`", words] for one in entries for key, words in one.readings.items()]
    parts = [
        HEAD,
        "## What each method needs\n",
        *_table(("method", "answers", "cached signal", "besides"), links),
        "\n## Where paper and code, or two sources, differ\n",
        "The default follows the paper unless the section of the method says otherwise.\n",
        *_table(("method", "option", "what differs"), differing),
        *(line for one in entries for line in section(one)),
    ]
    return "\n".join(parts) + "\n"


def section(one: Entry) -> Iterator[str]:
    """One method."""
    yield f"\n## {one.name}\n"
    yield f"{one.summary[0].upper()}{one.summary[1:]}. Source: {one.source}.\n"
    yield f"```text\n{one.formula}\n```\n"
    yield from _table(("answers", "with"), one.needs)
    yield from (f"\n`{words.replace(' ', '` ', 1)}." for words in one.variants)
    if one.parameters:
        yield ""
        heads = ("parameter", "default", "tiny", "range", "from", "meaning")
        tiny = {key: value_text(value) for key, value in one.family.items()}
        yield from _table(heads, [
            (f"`{p.name}`", p.default, tiny.get(p.name, ""), p.limits, f"[{p.origin}]", p.doc) for p in one.parameters
        ])  # fmt: skip
    others = [words for words in settings(one.family) if words.split("=")[0] not in {p.name for p in one.parameters}]
    if others:
        yield f"\nThe family `tiny` sets {', '.join(f'`{words}`' for words in others)}."
    for name, values in one.presets.items():
        yield f"\n`preset={name}` sets {', '.join(f'`{words}`' for words in settings(values))}."
    yield from _points(one)
    builds = ", ".join(f"{stage} ({what})" for stage, what in one.stages)
    yield f"\nBuilds {builds}, and then evaluates.\n"
    yield f"```console\n$ {one.example}\n```"


def _anchor(name: str) -> str:
    """What a heading is linked by: signs are dropped, and the second of two that are then equal gets a number."""
    return name.replace("+", "-1")


def _points(one: Entry) -> Iterator[str]:
    if one.readings or one.notes:
        yield ""
    yield from (f"- `{key}`: {words}" for key, words in one.readings.items())
    yield from (f"- {words}" for words in one.notes)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A Markdown table."""
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


def main() -> None:
    """Write the page to stdout."""
    import sys

    sys.stdout.write(document())


if __name__ == "__main__":
    main()
