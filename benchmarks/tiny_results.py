"""The tiny family end to end for several seeds: what each model scores on unseen prompts, sampled at temperature 0.7.

    python benchmarks/tiny_results.py --store DIR --seeds 0 1 2 [--json]

Every seed retrains everything (`--seed-all`). What the store holds already is reused, so an interrupted run goes on.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from adpa_cli.cli.console.streams import ids_only
from adpa_cli.cli.main import main as adpa
from adpa_cli.planning.distill_builder import Distill, plan_distill
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.planning.settings import UserSettings
from adpa_cli.store.store import Store

ROLES = ("start", "dckd", "adpa", "reference teacher", "aligned teacher")


def run(store: Path, seed: int) -> dict[str, dict[str, Any]]:
    """Scores by role of one seed, and the seconds it took."""
    command = ["distill", "--method", "adpa+", "--student", "tiny", "--seed-all", str(seed), "--store", str(store)]
    started = time.perf_counter()
    with ids_only():  # the ids go to stderr's side: stdout is for the table
        failed = adpa(command)
    if failed:
        raise SystemExit(f"failed: adpa {' '.join(command)}")
    seconds = time.perf_counter() - started
    opened = Store.find(store)
    plan = plan_distill(Names(opened), UserSettings(seed_all=seed), Distill("adpa+", "tiny"))
    found: dict[str, dict[str, Any]] = {"run": {"seconds": round(seconds, 1), "id": plan.targets[0].label}}
    for node in plan.evals:
        manifest = opened.get(node.label)
        role = next(role for role in ROLES if node.what.removeprefix("tiny of ").startswith(role))
        if manifest is not None:
            found[role] = manifest.metrics["scores"]
    return found


def table(runs: dict[int, dict[str, dict[str, Any]]]) -> str:
    """Mean ± standard deviation over the seeds, then each seed with its 95 % interval."""
    lines = ["| model | mean reward | win rate against start | reward accuracy | reward by seed (95 % interval) |"]
    lines.append("|---|---|---|---|---|")
    for role in ROLES:
        cells = [_spread(runs, role, key, scale) for key, scale in (("mean_reward", 1), ("win_rate", 100))]
        cells.append(_spread(runs, role, "reward_accuracy", 100))
        seeds = [scores[role]["mean_reward"] for scores in runs.values()]
        each = ", ".join(f"{s['value']:.3f} ({s['low']:.3f}–{s['high']:.3f})" for s in seeds)
        lines.append(f"| {role} | {' | '.join(cells)} | {each} |")
    return "\n".join(lines)


def _spread(runs: dict[int, dict[str, dict[str, Any]]], role: str, key: str, scale: float) -> str:
    values = [scores[role][key]["value"] * scale for scores in runs.values() if key in scores[role]]
    if not values:
        return ""
    digits = 3 if scale == 1 else 1
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def main() -> None:
    """Run the seeds and print the table, or everything as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--store", type=Path, default=Path("adpa-store"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    runs = {seed: run(options.store, seed) for seed in options.seeds}
    sys.stdout.write((json.dumps(runs, indent=1) if options.json else table(runs)) + "\n")


if __name__ == "__main__":
    main()
