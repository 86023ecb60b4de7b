"""What a training changed in weights that products read in fewer bits: what is kept of it, and what people are told."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping
from typing import Any

from adpa_cli.spec import TrainSpec
from adpa_cli.stages import Job, Monitor

ALL = 0.9995
"""A part of something that is all of it, to the digits that are shown."""
LEAST_SEEN = 0.5
"""The part of a training's change that products must see, or it is worth a warning."""
HARDLY, FIRST_STEPS = 0.05, 8
"""The part of it, and the steps after which it is looked at while there is time to begin again."""
COMPUTED = "computed"
"""What the products of the training itself see, beside those in other dtypes."""
OFF_GRID = 0.01
"""The share of a model's weights between numbers of bfloat16 from which on it is told."""


def rounds(spec: TrainSpec) -> bool:
    """Whether products read other weights than those that are trained and kept."""
    return spec.dtype == "bfloat16" != spec.weights and not spec.lora


def update_of(job: Job, spec: TrainSpec, model: Any) -> dict[str, Any]:
    """`update`: the change of the saved weights, or of an adapter of the model, from those that the training started
    from, as products see it."""
    from adpa_cli.engine.update import adapter_update, folder_pairs, measured_update

    start = job.one("model").path
    found = adapter_update(model, start, job.folder) if spec.lora else measured_update(folder_pairs(start, job.folder))
    if found:
        found["seen"][COMPUTED] = found["seen"]["bfloat16"] if rounds(spec) else 1.0
    return {"update": found} if found else {}


def unseen(update: Mapping[str, Any], dtype: str) -> float | None:
    """The part of a training's change that products in `dtype` see, by its metrics, where that is less than half."""
    seen = float(update.get("seen", {}).get(dtype, 1.0))
    return seen if seen < LEAST_SEEN else None


def finer(stage: str, spec: Any) -> str:
    """What to type for a stage that computes in bfloat16, so that it reads weights with more digits."""
    offered = typing.get_args(typing.get_type_hints(type(spec))["dtype"])
    held = f"--set {stage}.weights=float32 " if getattr(spec, "weights", "") == "bfloat16" else ""
    return f"{held}--set {stage}.dtype={'float16' if 'float16' in offered else 'float32'}"


def lost_update(update: Mapping[str, Any], stage: str, spec: TrainSpec) -> list[str]:
    """Warnings where less than half of what was learned is seen: by the training itself, by what reads its model."""
    said = []
    if (seen := unseen(update, COMPUTED)) is not None:
        said.append(
            f"computing in bfloat16 saw only {100 * seen:.1f} % of what training changed in the weights, so the loss "
            f"and the gradients were nearly those of the starting model; train it again with {finer(stage, spec)}"
        )
    if (seen := unseen(update, "bfloat16")) is not None:
        said.append(
            f"rounding the weights to bfloat16 keeps only {100 * seen:.1f} % of what training changed "
            f"({100 * update['differ']['bfloat16']:.1f} % of the weights differ from before); capture and evaluate "
            "this model in float16 or float32 (--set STAGE.dtype=float16); adpa export reports what a dtype keeps"
        )
    return said


def first_steps(
    job: Job, spec: TrainSpec, gathered: Callable[[], Any], monitor: Monitor, end: int
) -> Callable[[int], None]:
    """Notes what rounding does to weights: to those of the start at once, and to what the first steps have learned.

    The model as it is comes from `gathered` in the first of all processes, which ask for it together.
    """
    from adpa_cli.engine import update as updates
    from adpa_cli.hub.model_folder import ModelFolder

    start = job.one("model")
    whole = ModelFolder.of(start.path).whole.path
    is_merged = whole != start.path and not spec.lora
    is_read = not spec.quantise and (start.kind == "model" or is_merged)
    if spec.dtype == "bfloat16" and is_read:
        share = updates.share_off_grid(start.path if is_merged else whole, "bfloat16")
        if share > OFF_GRID:
            monitor.note(
                f"Computing in bfloat16 rounds {share_words(share)} of the weights of {start.label}; to use them "
                f"unrounded: {finer(job.stage, spec)}"
            )

    def look(step: int) -> None:
        if step != FIRST_STEPS or step == end or not rounds(spec) or (model := gathered()) is None:
            return
        before, after = updates.folder_weights(start.path), updates.model_weights(model)
        seen = updates.measured_update(updates.pairs(before, after, sample=True)).get("seen", {}).get("bfloat16", 1.0)
        if seen < HARDLY:
            monitor.note(
                f"At step {step}, computing in bfloat16 sees only {100 * seen:.1f} % of what training changed in the "
                "weights, so the loss and the gradients are nearly those of the starting model; stop and use "
                f"{finer(job.stage, spec)}, or a higher learning rate (--lr)"
            )

    return look


def share_words(part: float) -> str:
    """A part of something in words; noise may take it a little beyond all."""
    return "all" if part >= ALL else f"{100 * part:.1f} %"
