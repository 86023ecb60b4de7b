"""Aliases of models, and the families that they form: teacher, data, template and settings, all from families.toml.

A student's alias selects everything else. Settings are grouped by stage; the more specific key wins:
`sft` < `sft.teacher`, `distill` < `distill.adpa`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from adpa_cli.sizes import ModelSize
from adpa_cli.spec import Dtype, TrainingDtype

Settings = Mapping[str, Mapping[str, Any]]
Side = Literal["student", "teacher"]

_FILE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
_SETTINGS: Mapping[str, Settings] = _FILE["settings"]
PAPER, TINY = _SETTINGS["paper"], _SETTINGS["tiny"]
DATA_ALIASES: Mapping[str, str] = _FILE["data"]
HUB_BYTES = 2
"""Of a weight of a model as it is published: bfloat16."""
ORIGIN = "origin"
"""The key beside some settings that says where their values come from."""
INSTRUCT = "-it"
"""What the alias of an instruct model has after that of its base model."""


@dataclass(frozen=True)
class Family:
    """A student, the teacher it learns from, their data, their chat template and their settings.

    `student` and `teacher` are hub ids, or names of the models that ship with the package (`builtin:`). They are base
    models, which are fine-tuned first, unless the family is of `instruct` models. `template` names the chat template of
    base models that bring none; it is "" where they bring one.
    """

    alias: str
    teacher_alias: str
    student: str
    teacher: str
    template: str = ""
    sft_data: str = "deita-10k"
    data: str = "dpo-mix-7k"
    suite: str = "accuracy"
    dtype: TrainingDtype = "bfloat16"
    inference: Dtype = "float16"
    """What its frozen models compute in: float16, unless their activations leave its range."""
    truncation: Literal["answer", "pair"] = "pair"
    settings: Settings = field(default_factory=lambda: PAPER)
    gamma_rms: float | None = None
    """γ times the RMS of the advantage where the family's γ was tuned, in nats; None where nobody measured it."""
    instruct: bool = False


@dataclass(frozen=True)
class Published:
    """What the hub says of a model: its id, its licence, whether one must ask for it, and its parameters.

    `size` is that of the part that reads text, which is all of most models.
    """

    name: str
    licence: str
    gated: bool
    parameters: int
    size: ModelSize


@dataclass(frozen=True)
class ReadyPair:
    """An aligned teacher that is published together with the model it was aligned from.

    `beta`, `data` and whether log-probs were `length_normalised` are what it was aligned by, by DPO; `students` are
    aliases of models with its vocabulary.
    """

    alias: str
    aligned: str
    reference: str
    students: tuple[str, ...]
    length_normalised: bool
    beta: float
    data: str

    @property
    def objective(self) -> str:
        """What it was aligned by."""
        return "DPO, length-normalised" if self.length_normalised else "DPO"


def _published(entry: Mapping[str, Any], name: str) -> Published:
    """The facts of an entry of the file that has them, under a name of the hub."""
    size = ModelSize(**{"parameters": entry["parameters"], "stored": HUB_BYTES, **entry["shape"]})
    return Published(name, entry["licence"], entry.get("gated", False), entry["parameters"], size)


def _families() -> tuple[Family, ...]:
    """The families of base models, then those of their instruct siblings."""
    models: Mapping[str, Mapping[str, Any]] = _FILE["models"]
    bases: list[Family] = []
    siblings: list[Family] = []
    for entry in _FILE["families"]:
        alias, teacher_alias = entry["student"], entry["teacher"]
        student, teacher = models[alias], models[teacher_alias]
        rest = {**entry, "settings": _SETTINGS[entry.get("settings", "paper")]}
        del rest["student"], rest["teacher"]
        family = Family(alias, teacher_alias, student["hub"], teacher["hub"], **rest)
        bases.append(family)
        if "instruct" in student and "instruct" in teacher:
            names = {"student": student["instruct"], "teacher": teacher["instruct"]}
            words = {"alias": alias + INSTRUCT, "teacher_alias": teacher_alias + INSTRUCT}
            siblings.append(replace(family, **words, **names, template="", instruct=True))
    return (*bases, *siblings)


FAMILIES = _families()
GENERIC = Family("", "", "", "", "zephyr")
"""The paper's settings, for models that belong to no family."""

INFERENCE: Mapping[str, Dtype] = _FILE["inference"]
"""What frozen models compute in whose activations leave the range of float16, by their `model_type`."""

CHAINS: Mapping[str, tuple[str, ...]] = {"adpa+": ("dckd", "adpa")}
"""Words for `--method` that run several, each from the student of the one before (paper, Algorithm 2)."""

_OF_PAIR = ("alias", "aligned", "reference", "length_normalised", "beta", "data")
READY_PAIRS = tuple(
    ReadyPair(**{key: entry[key] for key in _OF_PAIR}, students=tuple(entry["students"])) for entry in _FILE["pairs"]
)


@dataclass(frozen=True)
class Alias:
    """A bare word that stands for one side of a family."""

    family: Family
    side: Side

    @property
    def model(self) -> str:
        """The name of the model it starts from."""
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


def reward_models() -> dict[str, Published]:
    """Every reward model that has an alias, by that, the largest first."""
    known = {alias: _published(entry, entry["hub"]) for alias, entry in _FILE["reward-models"].items()}
    return dict(sorted(known.items(), key=lambda item: -item[1].parameters))


def published() -> dict[str, Published]:
    """What is known of the model of every alias; of a ready pair that of its aligned teacher."""
    known: dict[str, Published] = {}
    for alias, entry in _FILE["models"].items():
        known[alias] = _published(entry, entry["hub"])
        if "instruct" in entry:
            known[alias + INSTRUCT] = _published(entry, entry["instruct"])
    return known | {entry["alias"]: _published(entry, entry["aligned"]) for entry in _FILE["pairs"]}


def generic(model_type: str) -> Family:
    """The settings for a model of no family, by the type that its configuration says."""
    return replace(GENERIC, inference=INFERENCE.get(model_type, GENERIC.inference))


def family_of_base(name: str) -> Family | None:
    """The first family whose student or teacher starts from that model; None for a model of no family."""
    return next((family for family in FAMILIES if name in (family.student, family.teacher)), None)


def alias_of_base(name: str, side: Side | None = None) -> str:
    """The alias that starts from the model of that name, if it is of that side of a family; "" for another model."""
    of_base = (word for word, alias in aliases().items() if alias.model == name and side in (None, alias.side))
    return next(of_base, "")


def chain_of(method: str) -> tuple[str, ...]:
    """The methods that a word for `--method` runs one after the other; another word stands for itself."""
    return CHAINS.get("adpa+" if method == "adpa-plus" else method, (method,))


def reserved_words() -> set[str]:
    """Words that cannot be tags because they mean something else."""
    return {*aliases(), *ready_pairs(), *reward_models()}


def stage_settings(family: Family, *keys: str) -> dict[str, Any]:
    """The family's settings of a stage, later keys winning, with its rule of cutting pairs."""
    sourced = sourced_settings(family, *keys)
    return {"truncation": family.truncation, **{key: value for key, (value, _) in sourced.items()}}


def sourced_settings(family: Family, *keys: str) -> dict[str, tuple[Any, str]]:
    """The family's settings of a stage, later keys winning, each with what is said of where it comes from."""
    merged: dict[str, tuple[Any, str]] = {}
    for own in (family.settings.get(key, {}) for key in keys):
        merged |= {key: (value, str(own.get(ORIGIN, ""))) for key, value in own.items() if key != ORIGIN}
    return merged
