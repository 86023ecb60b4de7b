"""The `eval` stage: what one model scores on held-out data.

How often the chosen answer of a pair is above the rejected one (ties count half): by its mean log-prob, which is reward
accuracy (Gao et al. 2025, section 4.5), or as the suite measures pairs. Where the suite judges answers: their mean
reward, and how often they beat another model's answers to the same prompts (ties count half). Every figure has a 95 %
interval from a bootstrap over prompts, paired where two models are compared.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from adpa_cli import suites
from adpa_cli.disk import write_json
from adpa_cli.engine.costs import scores_disk
from adpa_cli.errors import AdpaError
from adpa_cli.sizes import Disk, Rows
from adpa_cli.spec import make
from adpa_cli.stages import Job, Lengths, Load, Monitor, Node, Stage, _noise, stored_words, with_progress
from adpa_cli.suites import EvalSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


def compute(job: Job, monitor: Monitor, rank: int = 0, processes: int = 1) -> None:
    """Leave one file per figure in the work folder; those that are there are kept. Run by one process only."""
    spec = make(EvalSpec, job.spec)
    parts: dict[str, Callable[[], dict[str, Any]]] = {"margins": lambda: _margins(job, spec, monitor)}
    if "rollouts" in job.inputs:
        parts["rewards"] = lambda: _rewards(job, spec, "rollouts")
    if "against" in job.inputs:
        parts["against"] = lambda: _rewards(job, spec, "against")
    for name, measure in with_progress(list(parts.items()), monitor):
        path = job.folder / f"_{name}.json"
        if not path.exists():
            write_json(path, measure())


def finish(job: Job) -> dict[str, Any]:
    """Scores with their intervals; the numbers of every row stay in scores.json."""
    from adpa_cli.data.examples import win

    spec = make(EvalSpec, job.spec)
    suite = suites.every()[spec.suite]
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
    scores = {suite.score: bootstrap([win(margin) for margin in margins], spec, asked)}
    if "rewards" in read:
        scores["mean_reward"] = bootstrap(_aligned(read["rewards"])[0], spec)
    if "against" in read:
        ours, theirs = _aligned(read["rewards"], read["against"])
        wins = bootstrap([win(a - b) for a, b in zip(ours, theirs, strict=True)], spec)
        scores["win_rate"] = {**wins, "against": job.one("against").values.get("by", "")}
    is_usual = suite.margins is suites.mean_logp_margins
    size = {} if is_usual else {"margin_rms": float((margins**2).mean() ** 0.5)}
    noise = _noise.metrics(job.folder, "margin", spec.dtype, job.stage)
    if noise:
        noise["say"].insert(0, f"{suite.score.replace('_', ' ')} {100 * scores[suite.score]['value']:.1f} %")
    if suite.remark:
        noise["watch"] = [*noise.get("watch", []), suite.remark]
    words = prompts_words(spec.measure_on, str(job.hints.get("selected_on", "")))
    measured_on = {"prompts": words} if words else {}
    return {"suite": spec.suite, "data": job.one("data").label, **measured_on, "scores": scores, **size, **noise}


ELSEWHERE = " of other data"
SELECTED_ON = ("all", "validation", f"all{ELSEWHERE}", f"validation{ELSEWHERE}")
"""The held-out prompts that may have selected a model: those at hand or of other data, all or a half."""


def prompts_words(measured: str, selected: str) -> str:
    """Which of the held-out prompts a model was measured on, and whether it was selected by some of them; "" for all of
    them where it was not. `selected` is one of `SELECTED_ON`, "" where nothing selected it."""
    by = selected.removesuffix(ELSEWHERE)
    if by != selected:
        words = "some of which may have selected it"
    else:
        words = f"{'some of which' if (measured, by) == ('all', 'validation') else 'which'} selected it"
    is_shared = by and ("all" in (measured, by) or measured == by)
    said = [] if measured == "all" else [f"{measured} half"]
    return ", ".join([*said, *([words] if is_shared else [])])


def bootstrap(values: Any, spec: EvalSpec, prompts: Sequence[str] = ()) -> dict[str, float]:
    """Mean of `values` [n] with its 95 % percentile interval over `spec.bootstrap` resamples of the prompts.

    `prompts` [n] names the prompt of each value, for data with several pairs of one prompt: such values are not
    independent and are drawn together. Without it every value is its own prompt.
    """
    import numpy as np

    numbers = np.asarray(values, dtype=np.float64)
    places = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    groups = np.array([places[prompt] for prompt in prompts]) if prompts else np.arange(len(numbers))
    sums, counts = np.bincount(groups, numbers), np.bincount(groups)
    picks = np.random.Generator(np.random.PCG64(spec.seed)).integers(0, len(sums), (spec.bootstrap, len(sums)))
    low, high = np.percentile(sums[picks].sum(1) / counts[picks].sum(1), [2.5, 97.5])
    return {"value": float(numbers.mean()), "low": float(low), "high": float(high), "n": len(numbers)}


def _prompt_of_pairs(job: Job, spec: EvalSpec) -> dict[str, str]:
    """The id of the prompt of every pair that is measured, by the id of the pair."""
    from adpa_cli.hub.externals import pairs_of

    data = job.one("data")
    items = pairs_of(data.where, "test", spec.limit, spec.skip_bad_rows, spec.template).items
    measured = items.of_half(spec.measure_on, data.label).records(("id", "key"))
    return {f"{pair:016x}": f"{prompt:016x}" for pair, prompt in measured}


def _aligned(*tables: dict[str, float]) -> list[Floats]:
    """The rows that all tables have, in one order."""
    import numpy as np

    common = sorted(set(tables[0]).intersection(*tables[1:]))
    return [np.array([table[key] for key in common], dtype=np.float64) for table in tables]


def _margins(job: Job, spec: EvalSpec, monitor: Monitor) -> dict[str, float]:
    """The margin of every pair as the suite measures it, once some of them were measured in float32 too."""
    from adpa_cli.engine.layout import examples as ex
    from adpa_cli.engine.noise import compared, first_by_hash

    suite = suites.every()[spec.suite]
    inputs = {role: job.one(role) for role in ("model", *suite.scorers)}
    examples = ex.pair_examples(spec, job.one("data"), "test", job.one("model").path, spec.measure_on)
    measured = functools.partial(suite.margins, inputs)

    def noise() -> dict[str, Any]:
        sample = first_by_hash(examples, lambda example: example.id, spec.noise_answers)
        both = [measured(sample, suites.logps_under(spec, is_exact)) for is_exact in (False, True)]
        return {"answers": 2 * len(sample), "margin": compared(*_aligned(*both))}

    if _noise.sample_size(spec):
        _noise.judged(job, monitor, "margin", noise)
    return measured(examples, suites.logps_under(spec))


def _rewards(job: Job, spec: EvalSpec, role: str) -> dict[str, float]:
    """The reward of every answer of a rollout artifact to the prompts that are measured, by the hash of its prompt."""
    from adpa_cli.engine.layout.examples import read_rollouts

    suite = suites.every()[spec.suite]
    if suite.rewards is None:
        raise AdpaError(f"the suite {suite.name} judges no answers")
    scorers = {scorer: job.one(scorer) for scorer in suite.scorers}
    return suite.rewards(scorers, spec, read_rollouts(job.one(role).path).of_half(spec.measure_on))


def rows(node: Node, lengths: Lengths) -> Rows:
    """Both answers of every held-out pair, or of about half of them."""
    every_other = 1 if node.spec.measure_on == "all" else 2
    return {part: rows[::every_other] for part, rows in lengths.pairs("test").items()}


def disk(node: Node, load: Load) -> Disk:
    """Of the figures of every row."""
    return scores_disk(load.count, 1 + ("rollouts" in node.inputs) + ("against" in node.inputs))


def what(node: Node) -> str:
    """Which suite measured whom, and with what the measured model was compared."""
    is_compared = "reference" in node.inputs and "aligned" not in node.inputs
    compared = f", reference {node.label_of('reference')}" if is_compared else ""
    return f"{node.spec.suite} of {node.about}{stored_words(node.spec)}{compared}"


EVAL = Stage(
    "eval", 9, 1, EvalSpec, "scoring", "scores", compute, finish, rows, disk,
    flops=lambda node, load: _noise.flops(node, load, load.count),
    what=what, split=lambda spec: "test", one_process=True, follows=("max_length",),
    is_result=True,
)  # fmt: skip
STAGES = (EVAL,)
