"""What is said below a table of the judge whose verdicts stand in it, and of numbers easily taken for others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adpa_cli.store.manifest import Manifest

AGREEMENT = "agreement"


def judge_words(evals: Sequence[Manifest], artifacts: Sequence[Manifest]) -> str:
    """Who judged, by which prompt, and how often that judge prefers the chosen answers of pairs, by the newest of the
    `artifacts` that measured it so; "" where no judge did."""
    record = next((made.metrics["judge"] for made in evals if "judge" in made.metrics), None)
    if record is None:
        return ""
    by = f" by {record['prompt']}" if record["prompt"] else ""
    lost = f", {record['unparsable']:,} without a verdict" if record["unparsable"] else ""
    who = f"judge: {record['name']}{by}, {record['stored'] + record['unparsable']:,} calls{lost}"
    if any(AGREEMENT in made.metrics["scores"] for made in evals):
        return who
    measured = next((made for made in artifacts if _is_of(made, record) and AGREEMENT in _scores(made)), None)
    if measured is None:
        asked = f"adpa eval --suite {AGREEMENT} --judge NAME --data PAIRS"
        return f"{who}; how often it agrees with people is not measured: {asked}"
    share, longer = (_scores(measured)[key]["value"] for key in (AGREEMENT, "longer_baseline"))
    data = measured.metrics.get("data") or "pairs"
    return f"{who}; it prefers the chosen answer of {100 * share:.1f} % of {data}, length alone {100 * longer:.1f} %"


def _is_of(made: Manifest, record: dict[str, Any]) -> bool:
    """Whether an evaluation is by the same judge and prompt."""
    other = made.metrics.get("judge")
    return isinstance(other, dict) and all(other.get(key) == record[key] for key in ("name", "prompt"))


def _scores(made: Manifest) -> Any:
    return made.metrics.get("scores") or {}
