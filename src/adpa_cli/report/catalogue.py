"""What each method is, read off its file and the families: for `adpa methods` and docs/methods.md."""

from __future__ import annotations

import dataclasses
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from adpa_cli import methods
from adpa_cli.families import CHAINS, FAMILIES, GENERIC, chain_of, sourced_settings
from adpa_cli.methods import Method, Need
from adpa_cli.spec import make
from adpa_cli.stages.cache_teacher import CACHE_TEACHER
from adpa_cli.stages.rollout import ROLLOUT
from adpa_cli.stages.start_logps import START_LOGPS
from adpa_cli.stages.training import DISTILL, DPO_TEACHER, SFT

ANSWERS = {"chosen": ("chosen answers", "y_w"), "rejected": ("rejected answers", "y_l")}
"""The parts of the data, in words and as symbols."""
EXTRA = {
    "start": ("log-probs of the start model", "start model"),
    "stats": ("the student's Σ_v π(v)²", "student's Σ π²"),
    "online": ("both teachers, the start model and a critic at hand", "teachers, start model, critic in training"),
    "reward": ("the reward of a reward model", "reward model"),
}
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
class Setting:
    """A setting of the training in the paper's families, with where its value comes from."""

    name: str
    default: str
    origin: str


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
    training: tuple[Setting, ...]
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
    """One method or chain of methods; UsageError with a suggestion when there is none."""
    for word, chain in CHAINS.items():
        if chain == chain_of(name):
            return _chain(word)
    method = methods.load(name)
    return Entry(
        name, method.summary, method.source, method.formula, columns(method.needs, method.states),
        tuple(need_words(method.needs, method.states)), tuple(variants(method)), tuple(parameters(method)),
        tuple(training(name)), method.presets, family_defaults(name), tuple(stages((name,))), method.readings,
        method.notes,
    )  # fmt: skip


def _chain(name: str) -> Entry:
    chain = CHAINS[name]
    each = [methods.load(one) for one in chain]
    summary = ", then ".join([f"first {chain[0]}", *(f"{one} from the student it makes" for one in chain[1:])])
    needs = [need for method in each for need in method.needs]
    needs = [need for need in needs if need.signal or need.part not in {n.part for n in needs if n.signal}]
    formula = "; then ".join(f"{method.name}: {method.formula}" for method in each)
    note = f"`--set KEY=VALUE` sets the parameter in each of {' and '.join(chain)} that has it."
    return Entry(
        name, summary, "Gao et al. 2025, Algorithm 2", formula, columns(needs, "student"),
        tuple(need_words(needs, "student")), (), tuple(_united(each)), tuple(training(*chain)), {},
        family_defaults(*chain), tuple(stages(chain)), {}, (note,),
    )  # fmt: skip


def _united(each: Sequence[Method]) -> Iterator[Parameter]:
    """The parameters of several methods, each once, with the methods that take it."""
    takers: dict[str, list[tuple[str, Parameter]]] = {}
    for method in each:
        for p in parameters(method):
            takers.setdefault(p.name, []).append((method.name, p))
    for pairs in takers.values():
        first = pairs[0][1]
        yield dataclasses.replace(first, doc=f"{first.doc} ({', '.join(name for name, _ in pairs)})")


def need_words(needs: Sequence[Need], states: str) -> Iterator[tuple[str, str]]:
    """Each kind of answer with what is asked of it, in words; fields of `Need` without words of ours by name."""
    for need in needs:
        signal = [f"signal of the {' and the '.join(need.signal)} teacher"] if need.signal else []
        extra = [
            EXTRA[f.name][0] if f.name in EXTRA else f"{f.name} {value_text(getattr(need, f.name))}"
            for f in _extra(need)
        ]
        yield _answers(need, states)[0], ", ".join([*signal, *extra])


def columns(needs: Sequence[Need], states: str) -> tuple[str, str, str]:
    """The needs as three cells of a table, in symbols: answers, whose signal on which, and what else by its field."""
    symbols = {need.part: _answers(need, states)[1] for need in needs}
    signal: dict[str, list[str]] = {}
    for need in needs:
        if need.signal:
            signal.setdefault("+".join(need.signal), []).append(symbols[need.part])
    extra = dict.fromkeys(f.name for need in needs for f in _extra(need))
    return (
        ", ".join(symbols.values()),
        "; ".join(f"{who} on {', '.join(on)}" for who, on in signal.items()),
        ", ".join(EXTRA[name][1] if name in EXTRA else name for name in extra),
    )


def _answers(need: Need, states: str) -> tuple[str, str]:
    """Which answers a need means, in words and as a symbol."""
    if need.part != "rollout":
        words, symbol = ANSWERS[need.part]
        return f"{words} {symbol}", symbol
    if need.online:
        return "answers ŷ drawn from the student while it trains", "ŷ drawn in training"
    if states == "student":
        return "the student's own answers ŷ", "ŷ"
    return "the teacher's answers ŷ" if states == "teacher" else f"{states} answers as ŷ", f"ŷ of the {states}"


def _extra(need: Need) -> list[dataclasses.Field[Any]]:
    """The fields of a need beside answers and signal that ask for something."""
    fields = [f for f in dataclasses.fields(need) if f.compare and f.name not in ("part", "signal")]
    return [f for f in fields if getattr(need, f.name) != f.default]


def variants(method: Method) -> Iterator[str]:
    """Choices of single parameters that change what the method needs."""
    for field in dataclasses.fields(method.params):
        options = field.metadata["choices"] or ((True, False) if isinstance(field.default, bool) else ())
        for option in options:
            needs = method.needs_for(make(method.params, {field.name: option}))
            if needs != method.needs:
                words = "; ".join(map(_with, need_words(needs, method.states)))
                yield f"{field.name}={value_text(option)} reads {words}"


def _with(need: tuple[str, str]) -> str:
    return " with ".join(filter(None, need))


def parameters(method: Method) -> Iterator[Parameter]:
    """The parameters of a method, then the settings that choose where its inputs come from."""
    for field in dataclasses.fields(method.params):
        one = _parameter(field, field.default)
        is_teachers = field.name == method.teachers_beta
        yield dataclasses.replace(one, default="the teacher's") if is_teachers else one
    for field in dataclasses.fields(methods.Sources):
        if field.name in method.sources:
            yield _parameter(field, method.sources[field.name])


def _parameter(field: dataclasses.Field[Any], default: Any) -> Parameter:
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


def training(*names: str) -> Iterator[Setting]:
    """How the paper's families train with a method, or with each of several; what is no parameter, each value once."""
    found: dict[Setting, list[str]] = {}
    for name in names:
        params = {f.name for f in dataclasses.fields(methods.load(name).params)}
        for key, (value, origin) in sourced_settings(GENERIC, DISTILL.name, f"{DISTILL.name}.{name}").items():
            if key not in params:
                found.setdefault(Setting(key, value_text(value), origin), []).append(name)
    for one, takers in found.items():
        yield one if len(takers) == len(names) else dataclasses.replace(one, name=f"{' '.join(takers)} {one.name}")


def training_words(one: Entry) -> Iterator[tuple[list[str], str]]:
    """Those settings as they are typed, and where they come from, one line for each source."""
    by_origin: dict[str, list[str]] = {}
    for setting in one.training:
        by_origin.setdefault(setting.origin, []).append(f"{setting.name}={setting.default}")
    yield from ((words, origin) for origin, words in by_origin.items())


def family_defaults(*names: str) -> dict[str, Any]:
    """What the built-in family sets otherwise than the methods; of several, what is no parameter with its method."""
    values: dict[str, Any] = {}
    for name in names:
        params = {f.name for f in dataclasses.fields(methods.load(name).params)}
        for key, value in FAMILIES[0].settings.get(f"{DISTILL.name}.{name}", {}).items():
            values[key if len(names) == 1 or key in params else f"{name} {key}"] = value
    return values


def stages(chain: Sequence[str]) -> Iterator[tuple[str, str]]:
    """What `adpa distill` builds in order for an alias as the student, evaluation apart: stage and what it makes."""
    each = [methods.load(name) for name in chain]
    yield SFT.name, "the student, from its base model on dialogues"
    if any(_needs_teacher(need, method.states) for method in each for need in method.needs):
        yield SFT.name, "the reference teacher, likewise"
        yield START_LOGPS.name, "log-probs of the reference teacher on chosen and rejected answers"
        yield DPO_TEACHER.name, "the aligned teacher, from the reference teacher on preference pairs"
    start = "the student"
    for method in each:
        fixed = next((need for need in method.needs if need.part != "rollout" and need.signal), None)
        if fixed:
            yield CACHE_TEACHER.name, f"{'+'.join(fixed.signal)} signal on chosen and rejected answers"
        drawn = next((need for need in method.needs if need.part == "rollout" and not need.online), None)
        if drawn:
            yield ROLLOUT.name, f"answers of {start if method.states == 'student' else 'the aligned teacher'}"
            if drawn.signal:
                yield CACHE_TEACHER.name, f"{'+'.join(drawn.signal)} signal on these answers"
        if any(need.start for need in method.needs):
            yield START_LOGPS.name, f"log-probs of {start} on chosen and rejected answers"
        yield DISTILL.name, f"{method.name} from {start}"
        start = f"the {method.name} student"


def _needs_teacher(need: Need, states: str) -> bool:
    return bool(need.signal) or need.online or (need.part == "rollout" and states == "teacher")


INDENT = 10
"""Columns before the text of a labelled paragraph."""


def listed(entries: Sequence[Entry], width: int) -> str:
    """Every method in a few lines: what it is, loss, what it reads, parameters and source."""
    column = max(len(one.name) for one in entries) + 2
    lines: list[str] = []
    for one in entries:
        values = [f"set {', '.join(f'{p.name}={p.default}' for p in one.parameters)}"] if one.parameters else []
        facts = [f"loss {one.formula}", f"reads {needs(one)}", *values, f"from {one.source}"]
        lines += _flow(one.name, [one.summary, *facts], width, column)
    return "\n".join([*lines, "adpa methods NAME tells more."])


def page(one: Entry, width: int) -> str:
    """One method in full."""
    lines = _flow(one.name, [one.summary], width, max(INDENT, len(one.name) + 2))
    lines += _flow("source", [one.source], width)
    lines += _flow("loss", [one.formula], width)
    lines += _flow("needs", [*map(_with, one.needs), *one.variants], width)
    builds = [f"{number} {stage}: {what}" for number, (stage, what) in enumerate(one.stages, 1)]
    lines += _flow("builds", [*builds, "then its evaluation, unless --no-eval; what exists is used"], width)
    if one.parameters:
        lines += ["", "--set KEY=VALUE", *_parameters(one, width), ""]
    lines += _flow("trains at", [f"{', '.join(words)}: {origin}" for words, origin in training_words(one)], width)
    for name, values in one.presets.items():
        lines += _flow("preset", [f"{name}: {', '.join(settings(values))}"], width)
    if one.family:
        lines += _flow("tiny", [f"sets {', '.join(settings(one.family))}"], width)
    lines += _flow("readings", [_plain(f"{option}: {words}") for option, words in one.readings.items()], width)
    lines += _flow("notes", map(_plain, one.notes), width)
    return "\n".join([*lines, *_flow("try", [one.example], width)])


def needs(one: Entry) -> str:
    """All needs in brief: answers, whose signal on them, and what else."""
    answers, signal, other = one.columns
    return " · ".join(filter(None, (answers, signal and f"signal {signal}", other)))


def record(one: Entry) -> dict[str, Any]:
    """One method as a JSON object."""
    return {
        **dataclasses.asdict(one), "example": one.example,
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
    yield from (("training", s.name, s.default, s.origin) for s in one.training)
    yield from (("preset", name, *settings(values)) for name, values in one.presets.items())
    if one.family:
        yield "tiny", *settings(one.family)
    yield from (("reading", *pair) for pair in one.readings.items())
    yield from (("note", words) for words in one.notes)
    yield "example", one.example


def _parameters(one: Entry, width: int) -> Iterator[str]:
    """Name, default, origin and limits in columns, the meaning below."""
    rows = [(p.name, p.default, f"[{p.origin}]") for p in one.parameters]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for p, row in zip(one.parameters, rows, strict=True):
        cells = "  ".join(f"{cell:<{size}}" for cell, size in zip(row, widths, strict=True))
        yield from _flow("", [f"{cells}  {p.limits}".rstrip()], width, 2)
        yield from _flow("", [p.doc], width, 6)


def _plain(words: str) -> str:
    """Without the marks of Markdown."""
    return words.replace("`", "")


def _flow(label: str, texts: Iterable[str], width: int, indent: int = INDENT) -> list[str]:
    """Texts behind a label, each wrapped under itself; their inner spaces stay."""
    wrapper = textwrap.TextWrapper(
        max(width, 40), subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False
    )
    return [line for n, words in enumerate(texts) for line in wrapper.wrap(f"{'' if n else label:<{indent}}{words}")]


COMMAND = "python -m adpa_cli.report.catalogue > docs/methods.md"

HEAD = f"""\
# Training methods

This page is generated from the files in `src/adpa_cli/methods`: `{COMMAND}`.
`adpa methods NAME` prints one section of it. [How it works](how-it-works.md) explains the main methods in words, and
the [glossary](glossary.md) explains the terms.

| symbol | meaning |
|---|---|
| y_w, y_l | the chosen (better) and the rejected (worse) answer of a pair |
| ŷ | an answer that a model wrote |
| π, π_start | the student, and the model that its training starts from |
| π_aligned, π_reference | the aligned teacher, and the reference teacher that it was made from |
| s_t | the prompt, followed by the answer before token t |
| mean_t | the mean over the tokens of an answer, the end token included |
| L_SFT(y) | mean_t of -log π(y_t) |

Every loss is then averaged over the examples of a batch.

`--set KEY=VALUE` sets a parameter. Its default comes from the paper ([paper]: Gao et al. 2025 for their own methods,
the cited source for the others), from released code ([release]), or was chosen by this project ([ours]).
`--set preset=NAME` sets several parameters at once. The learning rate, epochs and batch size of the paper's families
stand below the parameters, with their sources. The column `tiny` shows the values of the built-in family where they are
different.
"""


def document() -> str:
    """The whole page."""
    entries = every()
    links = [[f"[{one.name}](#{_anchor(one)})", *one.columns] for one in entries]
    differing = [[f"`{one.name}`", f"`{key}`", words] for one in entries for key, words in one.readings.items()]
    parts = [
        HEAD,
        "## What each method needs\n",
        *_table(("method", "answers", "teacher signal", "also needs"), links),
        "\n## Where paper and code, or two sources, differ\n",
        "The default follows the paper, unless the section of the method says otherwise.\n",
        *_table(("method", "option", "what differs"), differing),
        *(line for one in entries for line in section(one)),
    ]
    return "\n".join(parts) + "\n"


def section(one: Entry) -> Iterator[str]:
    """One method."""
    yield f'\n<a id="{_anchor(one)}"></a>\n' if _anchor(one) != one.name else ""
    yield f"## {one.name}\n"
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
    trained = [f"{', '.join(f'`{w}`' for w in words)} ({origin})" for words, origin in training_words(one)]
    yield f"\nDefaults of the training in the paper's families: {'; '.join(trained)}."
    others = [words for words in settings(one.family) if words.split("=")[0] not in {p.name for p in one.parameters}]
    if others:
        yield f"\nThe family `tiny` sets {', '.join(f'`{words}`' for words in others)}."
    for name, values in one.presets.items():
        yield f"\n`preset={name}` sets {', '.join(f'`{words}`' for words in settings(values))}."
    notes = [*(f"- `{key}`: {words}" for key, words in one.readings.items()), *(f"- {words}" for words in one.notes)]
    yield from ["", *notes] if notes else []
    builds = ", ".join(f"{stage} ({what})" for stage, what in one.stages)
    yield f"\nFor an alias as the student, the command below builds {builds}, and then evaluates.\n"
    yield f"```console\n$ {one.example}\n```"


def _anchor(one: Entry) -> str:
    """What links to the section of a method: its name, for which readers of Markdown drop a sign in different ways."""
    return one.name.replace("+", "-plus")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A Markdown table."""
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


if __name__ == "__main__":
    sys.stdout.write(document())
