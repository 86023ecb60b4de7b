"""What the figures of an evaluation may be compared by, and the model behind them: what a plan knows of its inputs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adpa_cli import suites
from adpa_cli.data.answers import answers_of
from adpa_cli.hub import External
from adpa_cli.planning import lineage
from adpa_cli.planning.planner import Inputs
from adpa_cli.stages import Artifact, Input, Node
from adpa_cli.stages.eval import ELSEWHERE, SELECTED_ON
from adpa_cli.store.identity import canonical
from adpa_cli.store.store import Store
from adpa_cli.suites import AGAINST, JUDGEMENTS, ROLLOUTS, EvalSpec

DECODING = ("temperature", "top_p", "max_new_tokens", "max_length", "seed", "dtype", "quantise")
"""Settings of a rollout that say how answers are drawn."""
NO_SCORER = ("template", "end", "block_tokens", "noise_answers", "limit", "skip_bad_rows", "smoke", "max_length")
"""Settings of a scoring that do not say who scores: how much at a time, or of what."""


def selection_behind(measured: Input, is_answers: bool, data: External | None, store: Store) -> str:
    """The held-out prompts that selected a measured model, or the model whose answers are measured: one of
    `SELECTED_ON`, "" where nobody knows it."""
    if not is_answers:
        return selected_on(measured, data.content, store) if data is not None else ""
    if not isinstance(measured, Artifact):
        return ""
    content = str(measured.manifest.inputs.get("data", ""))
    return selected_on(lineage.single(measured, "model", store), content, store)


def selected_on(model: Input | None, data: str, store: Store) -> str:
    """The held-out prompts that selected a model, one that it was trained from, or the points of which it is one.

    One of `SELECTED_ON`. Other data than those at hand, which are named by their content, may hold the same prompts,
    which are of the same half there.
    """
    found, below = set[str](), lineage.training_of(model, store) if model is not None else None
    while below is not None:
        inputs = below.manifest.inputs if isinstance(below, Artifact) else below.recipe.inputs
        if below.values.get("select") == "best":
            found.add(below.values.get("select_on", "all") + ("" if inputs.get("data") == data else ELSEWHERE))
        start = lineage.single(below, "model", store)
        below = lineage.training_of(start, store) if start is not None else None
    return next((prompts for prompts in SELECTED_ON if prompts in found), "")


def about(spec: EvalSpec, inputs: Inputs, data: External | None, scorers: Mapping[str, Input]) -> dict[str, Any]:
    """What an evaluation keeps for people and for comparisons: the name of the data, who scores, and `measured`.

    Two figures of one metric may be compared when `measured` is the same: the content of the data, their side, how many
    rows, how answers were drawn, who scored them, and the opponent.
    """
    given = inputs.get(ROLLOUTS)
    values = given.values if isinstance(given, Node | Artifact) else {}
    read, label = _data_of(given, data)
    opponent = inputs.get(AGAINST)
    scorer = _scorer(spec, inputs, scorers)
    measured = {
        "data": read,
        "split": str(values.get("split", "")) if given is not None else spec.split,
        "limit": values.get("limit") if given is not None else spec.limit,
        "decoding": {key: values[key] for key in DECODING if key in values},
        "scorer": hashlib.sha256(canonical(scorer)).hexdigest()[:16] if scorer else "",
        "opponent": "" if opponent is None or isinstance(opponent, tuple) else opponent.content,
    }
    names = [item.label for item in scorers.values()] if ROLLOUTS in inputs else []
    judge = str(scorer.get("spec", {}).get("judge", ""))
    return {"data": label, "scorer": judge or " over ".join(names), "measured": measured}


def _data_of(answers: Input | tuple[Input, ...] | None, data: External | None) -> tuple[str, str]:
    """(content, name) of the data that were answered, or whose pairs are measured; of a file of answers the content is
    that of its prompts, whoever answered them."""
    if isinstance(answers, Artifact):
        content = str(answers.manifest.inputs.get("data", ""))
        return content, str(answers.manifest.sources.get(content, {}).get("name", ""))
    if isinstance(answers, External):
        asked = sorted(answer.id for answer in answers_of(Path(answers.where[0])))
        return f"prompts:{hashlib.sha256(canonical(asked)).hexdigest()[:16]}", answers.label
    return (data.content, data.label) if data is not None else ("", "")


def _scorer(spec: EvalSpec, inputs: Inputs, scorers: Mapping[str, Input]) -> dict[str, Any]:
    """What tells one scorer of answers from another; empty where the measured model itself says what it prefers."""
    if ROLLOUTS not in inputs and (JUDGEMENTS not in inputs or "data" in inputs):
        return {}
    scoring = inputs.get(JUDGEMENTS, inputs.get(suites.REWARDS))
    values = scoring.values if isinstance(scoring, Node | Artifact) else {}
    own = {key: value for key, value in values.items() if key not in NO_SCORER}
    return {"spec": own, "models": {role: item.content for role, item in scorers.items()}}
