"""Training methods: one file here is one method, found by listing this folder.

A method file defines

* ``VERSION``  int, raised when its numbers change (part of every id)
* ``SOURCE``   where the equation is printed
* ``SUMMARY``  one line, and ``FORMULA``, the loss as text, for ``adpa methods``
* ``NEEDS``    tuple of `Need`: the answers it reads, and the teacher signal on each
* ``needs(p)``  optional: the needs under these parameters, where they differ from ``NEEDS``
* ``Params``   frozen dataclass of its parameters, each made with `param`
* ``in_nats(p, rms)``  where it has `unit_param`: the same parameters for an advantage in nats
* ``terms(views, p)``  the loss, as unreduced `Term`s
* any other field of `Method` that it differs in, in capitals: ``READINGS``, ``NOTES``, ``PASSES``, ``PROBE`` …

`terms` is a pure function over small tensors; the loop masks, weighs and divides. This module and the module level of
the method files import no torch, so that planning and ``adpa methods`` stay quick.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, get_args

from adpa_cli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor as Tensor
else:
    Tensor = Any  # method files name it in annotations alone, and torch is not loaded for those

Part = Literal["chosen", "rejected", "rollout"]
Teacher = Literal["aligned", "reference"]
Reduction = Literal["seqmean", "tokmean", "seqsum"]
States = Literal["student", "chosen", "rejected", "teacher"]
Support = Literal["topk", "sampled"]
KD_TEACHERS = ("aligned", "reference", "sft-chosen")
T = TypeVar("T")


@dataclass(frozen=True)
class Need:
    """One kind of answer that a method reads.

    `signal` names the teachers whose cached signal must cover these answers; `start` asks for the log-probs of the
    answers under the frozen model that training starts from (the reference of DPO); `stats` asks for the student's own
    sum of squared probabilities. `online` answers are drawn from the student while it trains, and both teachers are
    models then: there is no cached signal, but a critic and what was known when the answers were drawn. `reward` asks
    for what a reward model gave to the whole answer. `support` says which ids of a teacher it reads: a top k, or ids
    drawn from the teacher; `labels` whether it reads the log-prob of the taken token besides that of the rest; `exact`
    whether what it learns would be another thing if the signal were rounded.
    """

    part: Part
    signal: tuple[Teacher, ...] = ()
    start: bool = False
    stats: bool = False
    online: bool = False
    reward: bool = False
    support: Support = dataclasses.field(default="topk", compare=False)
    labels: bool = dataclasses.field(default=True, compare=False)
    exact: bool = dataclasses.field(default=False, compare=False)


@dataclass(frozen=True)
class Signal:
    """Teacher signal of one part, constants without gradient. Float32, nats; K ids per position, best first or not.

    `logps` [B,T,K] at the aligned teacher's ids; `label_logps` [B,T]; `rest_logps` [B,T] is the log of the mass outside
    the ids *and* the label. The other fields are None when no reference teacher was captured: `difference` [B,T,K] is
    aligned - reference at the same ids, `in_reference` [B,T,K] whether the id is in the reference's own top k,
    `reference_kth` [B,T] its k-th log-prob, and its `reference_label_logps`, `reference_rest_logps` [B,T] likewise.
    `weights` [B,T,K], None for a top k, is the part of all draws that fell on each id, where the ids were drawn.
    """

    logps: Tensor
    label_logps: Tensor
    rest_logps: Tensor
    difference: Tensor | None = None
    in_reference: Tensor | None = None
    reference_kth: Tensor | None = None
    reference_label_logps: Tensor | None = None
    reference_rest_logps: Tensor | None = None
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        _constants(self, [f.name for f in dataclasses.fields(self)])

    def advantage(self, **reading: Any) -> Tensor:
        """Aligned minus reference log-prob at each id, [B,T,K], read as `tensors.divergence.advantage` says."""
        from adpa_cli.tensors.divergence import advantage

        reference = (required(self.difference), required(self.reference_kth), required(self.in_reference))
        return advantage(self.logps, *reference, **reading)


@dataclass(frozen=True)
class Experience:
    """Drawn answers as they were when they were drawn, [B,T] each, constants without gradient.

    `logps` under the policy that drew them and `values` of the critic then, before each token; `advantages`, and the
    `returns` that the critic is to predict.
    """

    logps: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor

    def __post_init__(self) -> None:
        _constants(self, [f.name for f in dataclasses.fields(self)])


@dataclass(frozen=True)
class View:
    """The student on one part of a batch, with the teachers' signal and other models' numbers at the same positions.

    All float32, nats. `logps` [B,T] student's log-prob of the label; `mask` [B,T] bool, answer positions (a position
    predicts the token it is labelled with, the end token included); `end` [B,T] bool, the position of the end token.
    `topk_logps` [B,T,K] student's full-softmax log-probs at the signal's ids, `rest_logps` [B,T] log of its mass
    outside the ids and the label, `label_in_topk` [B,T] bool; these three and `signal` are None without signal.
    `start_logps` [B,T] label log-probs under the frozen start model, and `log_sum_squares` [B,T] log of the student's
    Σ p² over the vocabulary, without gradient, when the method asked for them. Answers drawn online have `values` [B,T]
    of the critic before each token, and their `experience`; where a reward model is trained, `values` are its numbers
    after each token. `reward` [B] is what one gave to each answer, where the method asked for it.
    Values at masked positions are finite and arbitrary.
    """

    logps: Tensor
    mask: Tensor
    end: Tensor
    topk_logps: Tensor | None = None
    rest_logps: Tensor | None = None
    label_in_topk: Tensor | None = None
    signal: Signal | None = None
    start_logps: Tensor | None = None
    log_sum_squares: Tensor | None = None
    values: Tensor | None = None
    experience: Experience | None = None
    reward: Tensor | None = None

    def __post_init__(self) -> None:
        _constants(self, ["start_logps", "log_sum_squares", "reward"])

    def total(self, values: Tensor, *, mean: bool = False) -> Tensor:
        """Sum or mean of `values` [B,T] over each answer, end token included, [B]; 0 for an empty answer."""
        from adpa_cli.tensors.divergence import over_answer

        return over_answer(values, self.mask, mean=mean)

    def outside(self, label_logps: Tensor | None, rest_logps: Tensor | None) -> Tensor:
        """Log of a model's mass outside the signal's ids, [B,T], from its log-probs of the label and of the rest."""
        from adpa_cli.tensors.divergence import outside

        return outside(required(label_logps), required(rest_logps), required(self.label_in_topk))

    def teach_end(self, values: Tensor, kd_on_eos: bool) -> Tensor:
        """`values` [B,T], with 0 at the end token where the teacher is not learned from there."""
        return values if kd_on_eos else values.masked_fill(self.end, 0.0)


@dataclass(frozen=True)
class Term:
    """One summand of the loss, before any mean: `values` [B,T] per token of `part`, or [B] per example.

    The loop computes weight * reduction(values). [B] values are averaged over the examples, whatever the reduction.
    """

    name: str
    values: Tensor
    part: Part
    weight: float = 1.0
    reduction: Reduction = "seqmean"


@dataclass(frozen=True)
class Probe:
    """How `adpa show --fidelity` measures a signal: by the gradient of a `term` on `part`, at these parameters.

    `pair` where the term needs the reference teacher too.
    """

    term: str
    part: Part
    params: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    pair: bool = False


@dataclass(frozen=True)
class Method:
    """A method file, read. `needs` holds at the defaults, `needs_for(params)` at those parameters."""

    name: str
    version: int
    source: str
    summary: str
    formula: str
    needs: tuple[Need, ...]
    params: type[Any]
    terms: Callable[[Mapping[Part, View], Any], tuple[Term, ...]]
    needs_for: Callable[[Any], tuple[Need, ...]]
    in_nats: Callable[[Any, float], Any] | None = None
    """(parameters with `unit` rms, RMS of the advantage in nats) -> those with `unit` nat that mean the same."""
    presets: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    """Values that replace defaults (of parameters, and of settings of the training), by the preset's name."""
    states: States = "student"
    """Whose answers are the rollouts that it reads, unless the user says; see `Sources`."""
    readings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """By option: where paper and code, or two sources, differ, and what the option chooses."""
    notes: tuple[str, ...] = ()
    """Sentences on what one can fall into."""
    passes: str = ""
    """The parameter that says how often it passes over the same answers; once without."""
    sampled: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """The parameters at which it reads ids that were drawn from the teacher."""
    advantage_weight: str = ""
    """The parameter that weighs an advantage, whose scale differs between teacher pairs."""
    teachers_weight: str = ""
    """The parameter that weighs what teachers say: its best value under some says little of others."""
    teachers_beta: str = ""
    """The parameter that is the β which aligned the teacher, unless another is said."""
    without_reference: str = ""
    """The method to use instead where there is no reference teacher."""
    scalar_head: bool = False
    """Whether it trains a number for each answer, not a language model."""
    probe: Probe | None = None

    @property
    def sources(self) -> Mapping[str, str]:
        """The settings of `Sources` that mean something to it, with their defaults.

        `states` where it reads rollouts; `kd_teacher` where it learns from the aligned teacher alone.
        """
        reads_rollouts = any(need.part == "rollout" and not need.online for need in self.needs)
        roles = {role for need in self.needs for role in need.signal}
        one_teacher = roles == {"aligned"} or (reads_rollouts and self.states == "teacher")
        return {
            **({"states": self.states} if reads_rollouts else {}), **({"kd_teacher": "aligned"} if one_teacher else {})
        }  # fmt: skip


def param(
    default: Any,
    doc: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[Any, ...] = (),
    origin: Literal["paper", "release", "ours"] = "ours",
    later: bool = False,
) -> Any:
    """A documented field of a method's `Params`; `low`/`high` inclusive, `origin` where the default comes from.

    One that came `later` than the method is no part of an id at its default, which means what there was before.
    """
    meta = {"doc": doc, "low": low, "high": high, "choices": choices, "origin": origin, "later": later}
    return dataclasses.field(default=default, metadata=meta)


Unit = Literal["nat", "rms"]


def unit_param(then: str = "β differs from the teacher's") -> Any:
    """The unit of the advantage that a weight, or a teacher's β, scales; `then` says what follows where it is its RMS.

    The method file defines `in_nats`.
    """
    words = f"unit of the advantage: nats, or its RMS over the signal (then {then})"
    return param("nat", words, choices=get_args(Unit), later=True)


def scaled_beta(p: T, rms: float) -> T:
    """`in_nats` of a method whose `beta` scales the advantage."""
    changed: Any = p
    return cast(T, dataclasses.replace(changed, beta=changed.beta / rms, unit="nat"))


def averaging(of: str = "") -> Any:
    """The parameter `reduction` that most methods have; `of` names the terms where it is not about all."""
    words = f"{of}how token losses are combined: mean per answer, mean over all tokens of the batch, or sum per answer"
    return param("seqmean", words, choices=get_args(Reduction))


@dataclass(frozen=True)
class Sources:
    """Where the inputs of a method come from: settings of the plan, which enter an id through those inputs."""

    states: str = param(
        "student", "whose answers to train on instead of the student's own (appendix E)", choices=get_args(States)
    )
    kd_teacher: str = param(
        "aligned",
        "which teacher to use: the aligned one, its reference, or the reference fine-tuned on the chosen answers",
        choices=KD_TEACHERS,
    )


def _constants(owner: Signal | View | Experience, fields: list[str]) -> None:
    live = [name for name in fields if getattr(getattr(owner, name), "requires_grad", False)]
    if live:
        raise TypeError(f"{type(owner).__name__}.{live[0]} is a constant, but it requires a gradient")


def required(value: T | None) -> T:
    """A field of a `View` or `Signal` that the method's needs promise; TypeError if the caller left it out."""
    if value is None:
        raise TypeError("the batch lacks what the method declared in NEEDS")
    return value


FILES = {m.name.lstrip("_").replace("_", "-"): m.name for m in pkgutil.iter_modules(__path__)}
"""The module of every method by its command-line name: `q_argmax` is `q-argmax`."""
UNLISTED = tuple(name for name, file in FILES.items() if file[0] == "_")
"""Methods of stages of their own, in files that begin with `_`: they make no student."""


@functools.cache
def names() -> tuple[str, ...]:
    """The command-line names of all methods but the unlisted, sorted."""
    return tuple(sorted(name for name in FILES if name not in UNLISTED))


@functools.cache
def load(name: str) -> Method:
    """The method of that command-line name; UsageError with a suggestion when there is none."""
    if name not in FILES:
        raise unknown(name, names())
    m = importlib.import_module(f"{__name__}.{FILES[name]}")
    declared = {f.name: getattr(m, f.name.upper()) for f in dataclasses.fields(Method) if hasattr(m, f.name.upper())}
    needs_for = getattr(m, "needs", lambda p: m.NEEDS)
    in_nats = getattr(m, "in_nats", None)
    return Method(name=name, params=m.Params, terms=m.terms, needs_for=needs_for, in_nats=in_nats, **declared)


def unknown(name: str, known: Sequence[str]) -> UsageError:
    """The error for a word that is no method, with a suggestion from the words that are known."""
    import difflib

    plain = name.lower().replace("_", "-").replace("-plus", "+").replace("plus", "+")
    close = difflib.get_close_matches(plain, known, n=1, cutoff=0.7)
    guess = f"did you mean {close[0]}? " if close else ""
    return UsageError(f"there is no method {name!r}", f"{guess}All methods: {', '.join(known)}")


def passes_of(name: str, params: Mapping[str, Any]) -> int:
    """How often a method passes over the same answers, under the parameters of a spec."""
    return int(params[load(name).passes]) if load(name).passes else 1
