"""The `eval` stage: the figures of one model, or of some answers, under one suite.

What is measured is computed before, as artifacts that evaluations share: answers, their rewards, a judge's replies.
Only the margins of pairs, by which a suite says how often the chosen answer is preferred, are computed here. Every
figure has a 95 % interval from a bootstrap over prompts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

from adpa_cli import suites
from adpa_cli.disk import write_json
from adpa_cli.engine.costs import scores_disk
from adpa_cli.sizes import Disk, Memory, Rows
from adpa_cli.spec import make
from adpa_cli.stages import (
    Job,
    Lengths,
    Load,
    Monitor,
    Node,
    Stage,
    _noise,
    _sharing,
    scoring_memory,
    stored_words,
    with_progress,
)
from adpa_cli.suites import AGAINST, JUDGEMENTS, MARGINS, REWARDS, EvalSpec

SCORES = "scores.json"
"""What each pair or prompt adds to the figures."""
SCORED = (REWARDS, JUDGEMENTS)
"""Inputs that say how pairs, or answers, were scored before."""


def compute(job: Job, monitor: Monitor, rank: int = 0, processes: int = 1) -> None:
    """Leave the margins of the pairs in the work folder, where the suite asks for them. One process computes them, or
    all that share the models out: then the first one writes them."""
    spec = make(EvalSpec, job.spec)
    path = job.folder / MARGINS
    todo = [_margins] * (is_scoring(spec, job.inputs) and not path.exists())
    if _sharing.is_any_left(job, todo, processes):
        for measured in with_progress([_margins], monitor):
            margins = measured(job, spec, monitor, rank, processes)
            if rank == 0:
                write_json(path, margins)
    else:
        monitor.progress(1, 1, {})


def finish(job: Job) -> dict[str, Any]:
    """Scores with their intervals, and what they may be compared by; the numbers of every row stay in scores.json."""
    spec = make(EvalSpec, job.spec)
    suite = suites.every()[spec.suite]
    found = suite.figures(job.firsts, spec, job.folder)
    write_json(job.folder / SCORES, {"rows": found.rows, "prompts": found.prompts})
    noise = _noise.metrics(job.folder, "margin", spec.dtype, job.stage)
    if noise:
        metric, score = next(iter(found.scores.items()))
        noise["say"].insert(0, f"{metric.replace('_', ' ')} {100 * score['value']:.1f} %")
    if watch := [*noise.get("watch", ()), *([suite.remark] if suite.remark else ()), *found.watch]:
        noise["watch"] = watch
    words = prompts_words(spec.measure_on, str(job.hints.get("selected_on", "")))
    measured_on = {"prompts": words} if words else {}
    about = dict(job.hints.get("about", {}))
    return {"suite": spec.suite, **about, **measured_on, "scores": found.scores, **found.more, **noise}


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


def _margins(job: Job, spec: EvalSpec, monitor: Monitor, rank: int, processes: int) -> dict[str, float]:
    """The margin of every pair as the suite measures it, once some of them were measured in float32 too."""
    from adpa_cli.engine.layout import examples as ex
    from adpa_cli.engine.noise import compared, first_by_hash

    margins: Any = suites.every()[spec.suite].margins
    inputs = job.firsts
    examples = ex.pair_examples(spec, inputs["data"], spec.split, inputs["model"].path, spec.measure_on)
    measured: Callable[..., dict[str, float]] = functools.partial(margins, inputs)

    def noise() -> dict[str, Any]:
        import numpy as np

        sample = first_by_hash(examples, lambda example: example.id, spec.noise_answers)
        both = [measured(sample, suites.logps_under(spec, is_exact)) for is_exact in (False, True)]
        pairs = sorted(both[0])
        return {"answers": 2 * len(sample), "margin": compared(*(np.array([m[pair] for pair in pairs]) for m in both))}

    if _noise.sample_size(spec) and rank == 0:
        with _sharing.alone(job, processes):
            _noise.judged(job, monitor, "margin", noise)
    with _sharing.together(job, monitor, processes):
        return measured(examples, suites.logps_under(spec))


def is_scoring(spec: EvalSpec, inputs: Mapping[str, Any]) -> bool:
    """Whether an evaluation with these inputs scores pairs itself."""
    return suites.every()[spec.suite].margins is not None and not any(role in inputs for role in SCORED)


def rows(node: Node, lengths: Lengths) -> Rows:
    """Both answers of every measured pair, or of about half of them; none where figures are made of what is there."""
    if not is_scoring(node.spec, node.inputs):
        return {}
    every_other = 1 if node.spec.measure_on == "all" else 2
    return {part: rows[::every_other] for part, rows in lengths.pairs(node.spec.split).items()}


def disk(node: Node, load: Load) -> Disk:
    """Of the figures of every row."""
    return scores_disk(load.count, 2)


def memory(node: Node, load: Load) -> Memory:
    """Of scoring pairs; nothing where figures are made of what is there."""
    return scoring_memory(node, load) if is_scoring(node.spec, node.inputs) else Memory(0, 0)


def flops(node: Node, load: Load) -> float:
    """Operations of scoring pairs."""
    return _noise.flops(node, load, load.count) if is_scoring(node.spec, node.inputs) else 0.0


def what(node: Node) -> str:
    """Which suite measured whom, and with what the measured model, or its answers, were compared."""
    is_compared = "reference" in node.inputs and "aligned" not in node.inputs
    compared = f", reference {node.label_of('reference')}" if is_compared else ""
    against = f", against {node.label_of(AGAINST)}" if AGAINST in node.inputs else ""
    return f"{node.spec.suite} of {node.about}{stored_words(node.spec)}{compared}{against}"


EVAL = Stage(
    "eval", 9, 2, EvalSpec, "scoring", "scores", compute, finish, rows, disk, memory, flops,
    what=what, split=lambda spec: str(spec.split), one_process=True, follows=("max_length",),
    is_result=True, check=_sharing.check, shares=lambda spec: suites.every()[spec.suite].margins is not None,
)  # fmt: skip
STAGES = (EVAL,)
