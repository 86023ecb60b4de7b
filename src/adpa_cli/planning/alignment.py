"""What is known of how a teacher was aligned: its β, which some methods take over, and the size of the advantage.

DPO rewards an answer by β times the sum of log π_aligned - log π_reference over its tokens. Where it was given means of
log-probs, β is the scale of a mean, and says nothing of a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adpa_cli.errors import UsageError
from adpa_cli.families import READY_PAIRS, Family, stage_settings
from adpa_cli.hub import External
from adpa_cli.methods import Method
from adpa_cli.planning import lineage
from adpa_cli.stages import Artifact, Input, product_of
from adpa_cli.stages.training import DISTILL, DPO_TEACHER
from adpa_cli.store.store import Store

NAT = "nat"


@dataclass(frozen=True)
class Aligned:
    """An aligned teacher that a plan or the manifest of a signal names, with the content of its reference.

    `base` is the name of the model that it was first trained from, "" where nothing tells. `beta` is the β per token
    that aligned it; where it is None, `why` says what is known instead.
    """

    content: str
    reference: str
    label: str
    base: str = ""
    beta: float | None = None
    why: str = ""


def of_input(aligned: Input, reference: Input | None, store: Store) -> Aligned:
    """The teacher that a plan names."""
    below = reference.content if reference is not None else ""
    training = lineage.training_of(aligned, store)
    if training is not None:
        base = lineage.base_name(aligned, store)
        return Aligned(aligned.content, below, aligned.label, base, *_beta(training.values))
    name = str(aligned.facts.get("name", "")) if isinstance(aligned, External) else ""
    return _published(aligned.content, below, aligned.label, name)


def of_signal(signal: Artifact, store: Store) -> Aligned:
    """The teacher whose signal was captured."""
    content, below = (str(signal.manifest.inputs[role]) for role in ("aligned", "reference"))
    facts = signal.manifest.sources.get(content, {})
    name = str(facts.get("name", ""))
    made = lineage.single(signal, "aligned", store) or lineage.point_of(facts, store)
    if isinstance(made, Artifact):
        return Aligned(content, below, name or made.label, lineage.base_name(made, store), *_beta(made.values))
    return _published(content, below, name or f"the teacher of {signal.label}", name)


def _beta(spec: Mapping[str, Any]) -> tuple[float | None, str]:
    """The β of a model that was trained here, or what trained it instead of DPO."""
    if spec["method"] in DPO_TEACHER.methods():
        return float(spec["params"]["beta"]), ""
    return None, f"was trained by {spec['method']}, which has no such β"


def _published(content: str, reference: str, label: str, name: str) -> Aligned:
    """A teacher from outside, which is known if it is one of a ready pair."""
    pair = next((pair for pair in READY_PAIRS if pair.aligned == name), None)
    if pair is None:
        return Aligned(content, reference, label, name, None, "does not record it")
    if pair.length_normalised:
        why = f"was aligned by a length-normalised DPO, whose β of {pair.beta:g} scales means and is no β per token"
        return Aligned(content, reference, label, name, None, why)
    return Aligned(content, reference, label, name, pair.beta)


def rms_advantage(teacher: Aligned, store: Store) -> float | None:
    """The RMS of the advantage of a pair of teachers, in nats, by its newest signal in the store; None without one."""
    pair = (teacher.content, teacher.reference)
    signals = [
        manifest for manifest in store.artifacts(lambda error: None)
        if product_of(manifest.stage) == "signal" and "rms_advantage" in manifest.metrics
        if (manifest.inputs.get("aligned"), manifest.inputs.get("reference")) == pair
    ]  # fmt: skip
    newest = max(signals, key=lambda manifest: manifest.at, default=None)
    return None if newest is None else float(newest.metrics["rms_advantage"])


def teachers_beta(method: Method, params: Any, teacher: Aligned, store: Store) -> float:
    """The β that a method takes over from a teacher; UsageError, with what to type, where it has none per token.

    `params` are those of the method.
    """
    if teacher.beta is not None:
        return teacher.beta
    key, rms = method.teachers_beta, rms_advantage(teacher, store)
    size = "" if rms is None else f"; the RMS of the advantage is {rms:.3g} nat"
    usual = getattr(params, key)
    hint = f"give the value: --set {key}=X (the teachers of the paper have {usual:g})"
    if "unit" in vars(params):
        hint += (
            f"\n or: --set unit=rms, which divides the advantage by its RMS; {key} is then {usual:g} unless you set it"
        )
    raise UsageError(
        f"{method.name} needs the β that the teacher was aligned with, but {teacher.label} {teacher.why}{size}",
        hint,
    )


def carried_over(method: Method, family: Family, teacher: Aligned, store: Store) -> str:
    """A remark that a weight which nobody typed was found under other teachers than those of this plan."""
    key, settings = method.teachers_weight, stage_settings(family, DISTILL.name, f"{DISTILL.name}.{method.name}")
    value, rms = settings.get(key, getattr(method.params(), key)), rms_advantage(teacher, store)
    sizes = [] if rms is None else [f"{rms:.3g} nat under {teacher.label}"]
    if method.advantage_weight and family.gamma_rms is not None:
        sizes.append(f"{family.gamma_rms / value:.3g} nat under the family's own")
    known = f" (RMS of the advantage: {', '.join(sizes)})" if sizes else ""
    return (
        f"the default {key}={value:g} of {method.name} was not tuned with {teacher.label}, and the best value differs "
        f"between teachers{known}; try several: --set {key}=X"
    )
