"""The paper's teacher/student pairs with their data and hyperparameters, and the built-in tiny family.

A student's alias selects everything else. Settings are grouped by stage; the more specific key wins:
`sft` < `sft.teacher`, `distill` < `distill.adpa`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Settings = Mapping[str, Mapping[str, Any]]
Side = Literal["student", "teacher"]

PAPER: Settings = {
    "sft": {"lr": 2e-5, "epochs": 3, "batch_size": 128},
    "dpo-teacher": {"lr": 5e-7, "epochs": 2, "batch_size": 128, "beta": 0.05},
    "reward-model": {"lr": 1e-5, "epochs": 1, "batch_size": 128},
    "cache-teacher": {"prompts": "auto"},
    "rollout": {"temperature": 0.0},
    "distill": {"lr": 1e-5, "epochs": 3, "batch_size": 128},
    "distill.dpo": {"lr": 5e-7, "epochs": 2},
    "distill.dppo": {"lr": 5e-7, "epochs": 1, "adam_beta2": 0.95},
    "eval.rollout": {"temperature": 0.0, "max_new_tokens": 512},
    "eval": {},
}


@dataclass(frozen=True)
class Family:
    """A student, the teacher it learns from, their data, their chat template and their settings.

    `student` and `teacher` are hub ids, or names of the models that ship with the package (`builtin:`).
    """

    alias: str
    teacher_alias: str
    student: str
    teacher: str
    template: str
    sft_data: str = "deita-10k"
    data: str = "dpo-mix-7k"
    suite: str = "accuracy"
    dtype: str = "bfloat16"
    settings: Settings = field(default_factory=lambda: PAPER)
    gamma_rms: float | None = None
    """γ times the RMS of the advantage where the family's γ was tuned, in nats; None where nobody measured it."""


@dataclass(frozen=True)
class ReadyPair:
    """An aligned teacher that is published together with the model it was aligned from."""

    alias: str
    aligned: str
    reference: str


DATA_ALIASES = {
    "deita-10k": "HuggingFaceH4/deita-10k-v0-sft",
    "dpo-mix-7k": "argilla/dpo-mix-7k",
    "helpsteer2": "nvidia/HelpSteer2",
    "ultrafeedback": "HuggingFaceH4/ultrafeedback_binarized",
    "hh-rlhf": "Anthropic/hh-rlhf",
    "tiny-sft": "builtin:tiny-sft",
    "tiny-pairs": "builtin:tiny-pairs",
}

TINY: Settings = {
    "sft": {"max_length": 128},
    "sft.student": {"lr": 2e-3, "epochs": 2, "batch_size": 32},
    "sft.teacher": {"lr": 1e-3, "epochs": 1.2, "batch_size": 32},
    "dpo-teacher": {"lr": 2e-5, "epochs": 2, "batch_size": 32, "beta": 0.1, "max_length": 128},
    "reward-model": {"lr": 3e-4, "epochs": 2, "batch_size": 32, "max_length": 128},
    "rewards": {"max_length": 128},
    "cache-teacher": {"max_length": 128},
    "rollout": {"temperature": 0.7, "max_new_tokens": 64, "max_length": 128},
    "distill": {"lr": 1e-3, "epochs": 2, "batch_size": 32, "max_length": 128},
    "distill.dckd": {"alpha": 1.0},
    "distill.adpa": {"gamma": 1.0, "lr": 2e-3, "epochs": 4},
    "distill.adpa-noref": {"gamma": 1.0, "lr": 2e-3, "epochs": 4},
    "distill.q-argmax": {"gamma": 0.1, "lr": 2e-3, "epochs": 4},
    "distill.q-softmax": {"gamma": 0.1, "lr": 2e-3, "epochs": 4},
    "distill.seqkd": {"lr": 2e-3, "epochs": 4},
    "distill.atkd": {"lr": 2e-3, "epochs": 4},
    "distill.dpo": {"lr": 3e-4, "beta": 0.5},
    "distill.vanilla-kd": {"alpha": 1.0},
    "distill.simpo": {"lr": 1e-4},
    "distill.wpo": {"lr": 3e-4, "beta": 0.5},
    "distill.plad": {"length_norm": True},
    "distill.dpkd": {"beta": 1.0},
    "distill.ddpo": {"lr": 3e-4, "beta": 0.1, "beta_teacher": 0.1},
    "distill.dppo": {"beta": 0.1, "critic_lr": 1e-3, "rollout_batch": 256, "ppo_epochs": 2, "max_new_tokens": 64},
    "eval": {"max_length": 128},
}

FAMILIES: tuple[Family, ...] = (
    Family(
        "tiny", "tiny-teacher", "builtin:student", "builtin:teacher", "tiny",
        sft_data="tiny-sft", data="tiny-pairs", suite="tiny", dtype="float32", settings=TINY, gamma_rms=0.57,
    ),
    Family("llama-3.2-1b", "llama-3.1-8b", "meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.1-8B", "llama-3"),
    Family("danube3-500m", "mistral-7b", "h2oai/h2o-danube3-500m-base", "mistralai/Mistral-7B-v0.1", "zephyr"),
    Family("danube2-1.8b", "mistral-7b", "h2oai/h2o-danube2-1.8b-base", "mistralai/Mistral-7B-v0.1", "zephyr"),
    Family("llama-2-7b", "llama-2-13b", "meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-13b-hf", "zephyr"),
)  # fmt: skip
GENERIC = Family("", "", "", "", "zephyr")
"""The paper's settings, for models that belong to no family."""

CHAINS: Mapping[str, tuple[str, ...]] = {"adpa+": ("dckd", "adpa")}
"""Words for `--method` that run several, each from the student of the one before (paper, Algorithm 2)."""

READY_PAIRS: tuple[ReadyPair, ...] = (
    ReadyPair("tulu-3-8b", "allenai/Llama-3.1-Tulu-3-8B-DPO", "allenai/Llama-3.1-Tulu-3-8B-SFT"),
    ReadyPair("zephyr-7b", "alignment-handbook/zephyr-7b-dpo-full", "alignment-handbook/zephyr-7b-sft-full"),
)


@dataclass(frozen=True)
class Alias:
    """A bare word that stands for one side of a family."""

    family: Family
    side: Side

    @property
    def model(self) -> str:
        """The name of its base model."""
        return self.family.student if self.side == "student" else self.family.teacher


def aliases() -> dict[str, Alias]:
    """Every family alias; where two families share a teacher the first one's settings are used."""
    words: dict[str, Alias] = {}
    for family in FAMILIES:
        words[family.alias] = Alias(family, "student")
        words.setdefault(family.teacher_alias, Alias(family, "teacher"))
    return words


def ready_pairs() -> dict[str, ReadyPair]:
    """Every ready pair by its alias."""
    return {pair.alias: pair for pair in READY_PAIRS}


def family_of_base(name: str) -> Family | None:
    """The first family whose student or teacher is the base model of that name; None for a model of no family."""
    return next((family for family in FAMILIES if name in (family.student, family.teacher)), None)


def alias_of_base(name: str, side: Side | None = None) -> str:
    """The alias of the base model of that name, if it is of that side of a family; "" for another model."""
    of_base = (word for word, alias in aliases().items() if alias.model == name and side in (None, alias.side))
    return next(of_base, "")


def chain_of(method: str) -> tuple[str, ...]:
    """The methods that a word for `--method` runs one after the other; another word stands for itself."""
    return CHAINS.get("adpa+" if method == "adpa-plus" else method, (method,))


def reserved_words() -> set[str]:
    """Words that cannot be tags because they mean something else."""
    return {*aliases(), *ready_pairs()}


def stage_settings(family: Family, *keys: str) -> dict[str, Any]:
    """The family's settings of a stage, later keys winning, with its dtype."""
    merged: dict[str, Any] = {"dtype": family.dtype}
    for key in keys:
        merged.update(family.settings.get(key, {}))
    return merged
