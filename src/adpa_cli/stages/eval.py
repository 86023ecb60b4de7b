"""The `eval` stage: what one model scores on held-out data.

Reward accuracy (Gao et al. 2025, section 4.5): how often the mean log-prob of the chosen answer exceeds that of the
rejected one. Where the suite judges answers: their mean reward, and how often they beat another model's answers to the
same prompts (ties count half). Every figure has a 95 % interval from a bootstrap over prompts, paired where two models
are compared.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adpa_cli.disk import write_json
from adpa_cli.hub.externals import pairs_of
from adpa_cli.spec import make
from adpa_cli.stages import Job, Monitor, stop_if_asked
from adpa_cli.suites import EvalSpec

Floats = NDArray[np.float64]


def compute(job: Job, monitor: Monitor, rank: int = 0, processes: int = 1) -> None:
    """Leave one file per figure in the work folder; those that are there are kept. Run by one process only."""
    spec = make(EvalSpec, job.spec)
    parts: dict[str, Callable[[], dict[str, Any]]] = {"margins": lambda: _margins(job, spec)}
    if "rollouts" in job.inputs:
        parts["rewards"] = lambda: _rewards(job, spec, "rollouts")
    if "against" in job.inputs:
        parts["against"] = lambda: _rewards(job, spec, "against")
    for n, (name, measure) in enumerate(parts.items()):
        path = job.folder / f"_{name}.json"
        if not path.exists():
            write_json(path, measure())
        monitor.progress(n + 1, len(parts), {})
        if n + 1 < len(parts):
            stop_if_asked(monitor, n + 1, len(parts))


def finish(job: Job) -> dict[str, Any]:
    """Scores with their intervals; the numbers of every row stay in scores.json."""
    spec = make(EvalSpec, job.spec)
    read = {
        name: json.loads((job.folder / f"_{name}.json").read_text())
        for name in ("margins", "rewards", "against")
        if (job.folder / f"_{name}.json").exists()
    }
    prompts = _prompt_of_pairs(job, spec)
    shared = len(set(prompts.values())) < len(prompts)  # such pairs are drawn together when models are compared
    write_json(job.folder / "scores.json", {**read, "prompts": prompts} if shared else read)
    (margins,) = _aligned(read["margins"])
    asked = [prompts[pair] for pair in sorted(read["margins"])]
    scores = {"reward_accuracy": bootstrap((margins > 0) + 0.5 * (margins == 0), spec, asked)}
    if "rewards" in read:
        scores["mean_reward"] = bootstrap(_aligned(read["rewards"])[0], spec)
    if "against" in read:
        ours, theirs = _aligned(read["rewards"], read["against"])
        wins = bootstrap((ours > theirs) + 0.5 * (ours == theirs), spec)
        scores["win_rate"] = {**wins, "against": job.one("against").values.get("by", "")}
    return {"suite": spec.suite, "data": job.one("data").label, "scores": scores}


def bootstrap(values: Any, spec: EvalSpec, prompts: Sequence[str] = ()) -> dict[str, float]:
    """Mean of `values` [n] with its 95 % percentile interval over `spec.bootstrap` resamples of the prompts.

    `prompts` [n] names the prompt of each value, for data with several pairs of one prompt: such values are not
    independent and are drawn together. Without it every value is its own prompt.
    """
    numbers = np.asarray(values, dtype=np.float64)
    places = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    groups = np.array([places[prompt] for prompt in prompts]) if prompts else np.arange(len(numbers))
    sums, counts = np.bincount(groups, numbers), np.bincount(groups)
    picks = np.random.Generator(np.random.PCG64(spec.seed)).integers(0, len(sums), (spec.bootstrap, len(sums)))
    low, high = np.percentile(sums[picks].sum(1) / counts[picks].sum(1), [2.5, 97.5])
    return {"value": float(numbers.mean()), "low": float(low), "high": float(high), "n": len(numbers)}


def _prompt_of_pairs(job: Job, spec: EvalSpec) -> dict[str, str]:
    from adpa_cli.engine.layout import examples as ex

    pairs = pairs_of(job.one("data").where, "test", spec.limit, spec.skip_bad_rows).items
    return {pair.id: ex.rollout_id(pair) for pair in pairs}


def _aligned(*tables: dict[str, float]) -> list[Floats]:
    """The rows that all tables have, in one order."""
    common = sorted(set(tables[0]).intersection(*tables[1:]))
    return [np.array([table[key] for key in common], dtype=np.float64) for table in tables]


def _margins(job: Job, spec: EvalSpec) -> dict[str, float]:
    """Mean log-prob per token of the chosen answer minus that of the rejected, per pair."""
    from adpa_cli.engine.layout import examples as ex
    from adpa_cli.engine.scoring import pair_margins

    folder = job.one("model").path
    examples = ex.pair_examples(spec, job.one("data"), "test", folder)
    return pair_margins(_scored(folder, spec, examples, ("chosen", "rejected")), examples)


def _scored(folder: Any, spec: EvalSpec, examples: Sequence[Any], parts: Any) -> Any:
    from adpa_cli.engine.device import device, refused_when_full
    from adpa_cli.engine.models import check_head, load
    from adpa_cli.engine.scoring import label_logps
    from adpa_cli.engine.training.student import Student

    model = load(folder, device=device())
    check_head(model)
    longest = max((example.length for example in examples), default=1)
    size = min(spec.block_tokens, longest * len(examples) * len(parts))
    with refused_when_full(f"eval: a block of {size:,} tokens", f"--set eval.block_tokens={max(1, size // 2)}"):
        return label_logps(Student(model, spec.dtype), examples, parts, spec.block_tokens, device())


def _rewards(job: Job, spec: EvalSpec, role: str) -> dict[str, float]:
    """The reward of every answer of a rollout artifact, by the hash of its prompt."""
    from adpa_cli.engine.layout.examples import read_rollouts

    rollouts = read_rollouts(job.one(role).path)
    if spec.suite == "tiny":
        from adpa_cli.lab import world

        return {row.id: world.reward(row.prompt[-1].content, row.text) for row in rollouts}
    if spec.suite == "reward-model":
        from adpa_cli.engine.rewards.reward_model import rewards_of

        dialogues = [(row.prompt, row.text) for row in rollouts]
        option = "--set eval.block_tokens="
        values = rewards_of(job.one("reward_model"), dialogues, spec, spec.block_tokens, option)
        return {row.id: value for row, value in zip(rollouts, values, strict=True)}
    return _implicit(job, spec, rollouts)


def _implicit(job: Job, spec: EvalSpec, rollouts: Sequence[Any]) -> dict[str, float]:
    """Sum over the answer's tokens of log π_aligned - log π_reference: the reward that DPO fits, without its β."""
    from adpa_cli.engine.layout.examples import Example, rollout_answers

    examples = [Example(a.key.example_id, {"rollout": a.sequence()}) for a in rollout_answers(rollouts)]
    aligned, reference = (_scored(job.one(who).path, spec, examples, ("rollout",)) for who in ("aligned", "reference"))
    found = {key[0]: float((values - reference[key]).astype(np.float64).sum()) for key, values in aligned.items()}
    return {row.id: found.get(row.id, 0.0) for row in rollouts}  # the sum over an empty answer is 0
