"""What determines a result: one frozen spec per stage, coerced to its declared types before it is hashed.

Everything else (device, processes, micro-batch budget, waiting) is a `Runtime` and never enters an id.
A field that is added later declares `neutral`, the value that means the old behaviour: there it is not hashed.
One with `hashed` False only says where something is on this machine.
"""

from __future__ import annotations

import dataclasses
import shlex
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from adpa_cli.coerce import check, coerce
from adpa_cli.errors import UsageError

TrainingDtype = Literal["float32", "bfloat16"]
Dtype = Literal["float32", "tf32", "bfloat16", "float16"]
"""What a model computes in: the numbers that its products read and write. A training takes the first or the third."""
Quantise = Literal["nf4", "int8"]
"""How bitsandbytes stores the weights of a frozen model's products: in four bits, or in eight."""
ALL_LINEAR = "all-linear"
"""Every linear layer of a model but its head, as layers that get low-rank matrices."""
Split = Literal["train", "test"]
Truncation = Literal["answer", "pair"]
"""How a pair is cut that is longer than `max_length`: once, by its longer answer, or each answer with its prompt."""


def noise_answers() -> int:
    """A field of a spec for how many answers are computed in float32 too, to see what fewer bits do; 0 for none."""
    default: int = field(default=64, metadata={"neutral": 0, "low": 0})
    return default


def quantise() -> Quantise | None:
    """A field of a spec for how the weights of a frozen model are stored; None for two bytes each."""
    default: Quantise | None = field(default=None, metadata={"neutral": None})
    return default


def truncation() -> Truncation:
    """A field of a spec for how pairs are cut; the older rule is not hashed."""
    default: Truncation = field(default="answer", metadata={"neutral": "answer"})
    return default


class Dataclass(typing.Protocol):
    """Any dataclass."""

    __dataclass_fields__: typing.ClassVar[dict[str, dataclasses.Field[Any]]]


S = TypeVar("S", bound=Dataclass)


def one_spelling(targets: str) -> str:
    """The one way to write layers that get low-rank matrices, however they were listed."""
    ends = {end.strip() for end in targets.split(",")}
    return ",".join(sorted(ends - {""})) or targets


@dataclass(frozen=True)
class LowRank:
    """Low-rank matrices beside frozen weights, by the settings that make them: rank, what their product is scaled by,
    times the rank, the layers that have them, and how the frozen weights are stored."""

    lora: int
    lora_alpha: float
    lora_targets: str
    quantise: Quantise | None


@dataclass(frozen=True)
class TrainSpec:
    """One training stage: `sft`, `dpo-teacher`, `reward-model` or `distill`."""

    method: str
    method_version: int
    params: dict[str, Any]
    template: str
    end: str
    lr: float = 1e-5
    epochs: float = 3.0
    batch_size: int = 128
    max_length: int = 2048
    max_steps: int | None = None
    limit: int | None = None
    seed: int = 0
    dtype: TrainingDtype = "bfloat16"
    warmup_ratio: float = 0.1
    weight_decay: float = 0.0
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    clip: float = 1.0
    skip_bad_rows: bool = field(default=False, metadata={"neutral": False})
    smoke: bool = field(default=False, metadata={"neutral": False})
    """A rehearsal: a few rows and steps, under an id of its own."""
    select: str = field(default="last", metadata={"neutral": "last", "pattern": r"last|best|[1-9][0-9]*"})
    """Whose weights the artifact has: those of the last step, of the best point, or of a step by its number."""
    keep: Literal["selected", "all"] = field(default="selected", metadata={"neutral": "selected"})
    """Whether the weights of the other points stay beside them."""
    select_on: Literal["validation", "all"] = field(default="all", metadata={"neutral": "all"})
    """The held-out prompts that the best point is selected by: one half, so that the other is left to report on, or
    those of all pairs. Of the half a reward model judges also answers to prompts whose answers in the data tie."""
    judged_tokens: int | None = field(default=None, metadata={"neutral": None})
    """The most tokens of the answers by which a reward model selects; None where no reward model does."""
    weights: TrainingDtype = field(default="float32", metadata={"neutral": "float32"})
    """Of the weights in training. bfloat16 keeps gradients and both moments so too (8 bytes a parameter instead of 18),
    rounds every update at random, unbiased, and computes in bfloat16 whatever `dtype` says; the artifact is float32."""
    truncation: Truncation = truncation()
    teachers_dtype: Dtype | None = field(default=None, metadata={"neutral": None})
    """What teachers compute in that score the answers which a training draws; None where it is as the training."""
    states: Literal["student", "chosen", "rejected", "teacher"] = "student"
    """Whose answers a method trains on where it reads rollouts."""
    lora: int | None = field(default=None, metadata={"neutral": None, "low": 1})
    """The rank of the low-rank matrices that are trained beside frozen weights; None where the weights are trained."""
    lora_alpha: float | None = field(default=None, metadata={"neutral": None})
    """What their product is scaled by, times the rank; None for twice the rank."""
    lora_targets: str = field(default=ALL_LINEAR, metadata={"neutral": ALL_LINEAR})
    """The layers that get them, by the ends of their names, such as q_proj,v_proj; or every linear layer but the head.
    """
    quantise: Quantise | None = quantise()
    """How the frozen weights are stored that low-rank matrices are trained beside."""
    packed: bool = field(default=False, metadata={"neutral": False})
    """Whether dialogues are laid end to end and cut into rows of `max_length` tokens."""
    train_on: Literal["answers", "all"] = field(default="answers", metadata={"neutral": "answers"})
    """Which tokens of a dialogue are trained: those of the assistant's turns, or all."""

    def without_effect(self) -> set[str]:
        """The rollouts are an input, which tells whose they are; answers of the data themselves are none. Without a
        selection there are no prompts for it."""
        idle = {"states"} if self.source("rollout") == "rollout" else set()
        return idle if self.select == "best" else {*idle, "select_on"}

    @property
    def rank(self) -> int:
        """That of the low-rank matrices; 0 where the weights are trained."""
        return self.lora or 0

    @property
    def alpha(self) -> float:
        """What the product of the low-rank matrices is scaled by, times the rank."""
        return self.lora_alpha or 2.0 * self.rank

    @property
    def low_rank(self) -> LowRank | None:
        """The low-rank matrices that are trained; None where the weights are."""
        return LowRank(self.lora, self.alpha, self.lora_targets, self.quantise) if self.lora else None

    def source(self, part: str) -> str:
        """The part of the data, or "rollout", that a part of the method's batch is read from."""
        return self.states if part == "rollout" and self.states in ("chosen", "rejected") else part

    def __post_init__(self) -> None:
        if not self.lora:
            self._check_whole()
        if self.lora and self.weights == "bfloat16":
            raise UsageError(
                "weights=bfloat16 applies to training all weights, and the matrices of lora are always float32",
                "use one of the two: --set STAGE.weights=float32, or --set STAGE.lora=none",
            )
        if self.weights == "bfloat16":
            object.__setattr__(self, "dtype", "bfloat16")
        if self.lora_alpha == 2 * self.rank:  # what means the same is one recipe
            object.__setattr__(self, "lora_alpha", None)
        object.__setattr__(self, "lora_targets", one_spelling(self.lora_targets))
        if self.max_steps is not None:
            self.last_step(self.max_steps)

    def _check_whole(self) -> None:
        """Raise UsageError for what is said of low-rank matrices, or of the weights beside them, where all weights are
        trained."""
        if self.quantise:
            raise UsageError(
                f"quantise={self.quantise} works only for weights that stay fixed, and all weights are trained here",
                f"train a LoRA adapter instead: --set STAGE.lora=16 --set STAGE.quantise={self.quantise}",
            )
        alpha = "" if self.lora_alpha is None else f"lora_alpha={self.lora_alpha:g}"
        targets = "" if self.lora_targets == ALL_LINEAR else f"lora_targets={self.lora_targets}"
        if said := alpha or targets:
            raise UsageError(
                f"{said} applies to LoRA adapters only, and without lora all weights are trained",
                f"train an adapter: --set STAGE.lora=16 --set {shlex.quote(f'STAGE.{said}')}; or remove {said}",
            )

    def last_step(self, steps: int) -> int:
        """The step that a run of `steps` need not go beyond; UsageError when it does not get that far."""
        if not self.select.isdigit():
            return steps
        if int(self.select) > steps and not self.smoke:
            raise UsageError(
                f"--select {self.select} is not possible: the run has only {steps} steps",
                f"use a step up to {steps}, or best; for more steps, raise --epochs or --max-steps",
            )
        return min(int(self.select), steps)


def knob(default: Any, low: float | None = None) -> Any:
    """A field of `Runtime` that `--runtime KEY=VALUE` sets; its name, type and default, and its least value, are all
    that is said of it."""
    return field(default=default, metadata={"knob": True, "low": low})


@dataclass(frozen=True)
class Runtime:
    """How a stage runs; may change a result by floating-point noise, never by more."""

    processes: int = 1
    part: tuple[int, int] = (0, 1)
    """Which part of the blocks of a stage this command computes, from 0 on, of how many."""
    tokens_per_device: int = 8192
    wait: bool = True
    stop_after: float | None = None
    """Seconds after which the command stops as on a signal."""
    checkpoint_steps: int = 0
    """Steps between resume points; 0 means half an epoch."""
    recompute: bool = knob(False)
    """Whether a training keeps only what enters each layer, and computes the rest again for the backward pass."""
    compile: bool = knob(False)
    """Whether `torch.compile` fuses each layer of the model that is trained."""
    liger: Literal["auto", "on", "off"] = knob("auto")
    """Norms and feed-forward layers of liger-kernel in training: where it is installed and there is a GPU, or never."""
    attention: str = knob("auto")
    """An attention of transformers for the model that is trained, such as sdpa or flash_attention_2."""
    fused: bool = knob(True)
    """Whether AdamW updates all weights in one kernel; without effect where weights are bfloat16."""
    noise: Literal["refuse", "accept"] = knob("refuse")
    """Whether a stage refuses to compute a signal that is smaller than the error of its dtype."""
    offload: Literal["none", "cpu", "disk"] = knob("none")
    """Where the layers of a frozen model wait that a stage reads: on the device, in the machine's memory, on its disk.
    """
    shard: Literal["auto", "all", "none"] = knob("auto")
    """Whether each of several processes has only its part of a model: auto does so to a model that trains, and to one
    that a stage only reads where one card is too small for it; all does so to each, and none to no model."""
    judge_url: str = field(default="", repr=False)
    """Where a judge listens; it may hold a password."""
    base_urls: tuple[str, ...] = field(default=(), repr=False)
    """Servers of vLLM that run; the URLs may hold passwords."""
    judge_concurrency: int = knob(16, low=1)
    """Calls of a judge that are under way at once."""
    judge_timeout: float = knob(600.0, low=1)
    """Seconds after which a call is given up and asked again."""
    judge_price: tuple[float, float] | None = None
    """Of a judge's tokens in and out, $ per million: for plans alone."""
    trackers: str = knob("none")
    """The trackers that are sent the numbers too, such as tensorboard,wandb, by the names that accelerate has."""


def tracker_names(text: str) -> list[str]:
    """The names in `a,b`, each once; none of them in `none`."""
    return [] if text == "none" else list(dict.fromkeys(part.strip() for part in text.split(",")))


def make(cls: type[S], values: Mapping[str, Any]) -> S:
    """A spec of class `cls` with every value coerced to its declared type and checked against its range."""
    kinds = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise UsageError(f"there is no setting called {unknown[0]!r}", f"the settings are: {', '.join(sorted(known))}")
    spec = cls(**{name: coerce(kinds[name], value, name) for name, value in values.items()})
    for f in dataclasses.fields(cls):
        check(f, getattr(spec, f.name))
    return spec


def hashed(spec: Any) -> dict[str, Any]:
    """The JSON form of a spec that enters its id: no field without effect, no later field at its neutral value."""
    idle: set[str] = spec.without_effect() if hasattr(type(spec), "without_effect") else set()
    out: dict[str, Any] = {}
    for f in dataclasses.fields(spec):
        value, about = getattr(spec, f.name), f.metadata
        if f.name in idle or not about.get("hashed", True) or ("neutral" in about and value == about["neutral"]):
            continue
        out[f.name] = list(value) if isinstance(value, tuple) else value
    return out
