"""What few bits do to the figures of a stage: a sample is computed in float32 too, before the work, and judged."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from adpa_cli.disk import write_json
from adpa_cli.errors import AdpaError
from adpa_cli.stages import Job, Load, Monitor, Node, read_once_flops, stop_if_asked

FILE = "_noise.json"
LOOK_SECONDS = 0.1
LEAST, ENOUGH = 1.01, 3.0
"""Times that a signal must exceed its error: below the first a stage refuses the work, below the second it warns. The
error of one that vanished whole is as large as it was."""
EQUAL = 1e-6
"""Nats below which a difference of log-probs is the rounding of float32."""
FEWEST = 8
"""Answers below which a sample refuses nothing."""
FINER = 8.0
"""Times that the error of bfloat16 exceeds that of float16."""
WORDS = {"advantage": "difference to the reference", "log_ratio": "log-ratio of an answer"}
"""Figures by what they are called in sentences; the advantage that a method reads has a floor besides."""
STORED = "stored"
"""How a stage stores the weights of its models, and of those that its sample is held to, where that is in few bits."""

Figures = Mapping[str, Any]
"""`rms` of the exact numbers, `error`, the RMS of what the others are off by, and their `correlation` or None; nats."""


def judged(job: Job, monitor: Monitor, signal: str, measure: Callable[[], dict[str, Any]]) -> None:
    """Keep what `measure` gives, unless an earlier start did. Raises AdpaError where the figures `signal` are drowned.

    A rehearsal never refuses, and neither does a user who accepts the noise.
    """
    path, dtype = job.folder / FILE, job.spec["dtype"]
    if not path.exists():
        stored = {STORED: way} if (way := job.spec.get("quantise")) else {}
        monitor.note(
            f"A sample{_weights(stored)} is also computed in float32, to measure the rounding error of {dtype}"
        )
        write_json(path, {**measure(), **stored})
    found = json.loads(path.read_text(encoding="utf-8"))
    figures = found.get(signal)
    if figures is None or ratio(figures) >= LEAST or found["answers"] < FEWEST or job.spec.get("smoke"):
        return
    if job.runtime.noise == "accept":
        monitor.note(
            f"The rounding error of {dtype} is larger than the {_words(signal)}; continuing, because noise=accept"
        )
        return
    if figures["rms"] < EQUAL:
        raise AdpaError(
            f"{job.stage}: the {_words(signal)} is {figures['rms']:.3g} nat, no more than float32's rounding error: "
            "the two models give the same probabilities",
            "name a reference that differs from the teacher: --reference MODEL; or continue: --runtime noise=accept",
        )
    raise AdpaError(
        f"{job.stage}: in {dtype} the {_words(signal)} of {figures['rms']:.3g} nat is smaller than the rounding error, "
        f"{figures['error']:.3g} nat, so it would be noise",
        f"compute more precisely: --set {job.stage}.dtype={more_exact(dtype, figures)}, for which every {job.stage} "
        "of the command is made again; or continue: --runtime noise=accept",
    )


def more_exact(dtype: str, figures: Figures) -> str:
    """The dtype to take instead, whose error leaves enough of a signal."""
    return "float16" if dtype == "bfloat16" and ratio(figures) * FINER >= ENOUGH else "float32"


def wait(job: Job, monitor: Monitor) -> None:
    """Return when another process of the stage has measured the sample; a refusal there ends this one."""
    while not (job.folder / FILE).exists():
        stop_if_asked(monitor, 0, 0)
        time.sleep(LOOK_SECONDS)


def sample_size(spec: Any) -> int:
    """How many answers, or pairs, a stage computes in float32 too: none where it computes in float32 anyway."""
    return 0 if "noise_answers" in spec.without_effect() else int(spec.noise_answers)


def ratio(figures: Figures) -> float:
    """How many times the signal exceeds its error."""
    return float(figures["rms"] / figures["error"]) if figures["error"] else float("inf")


def metrics(folder: Path, signal: str, dtype: str, stage: str) -> dict[str, Any]:
    """The figures of a work folder, if it has some, with what to say of them, and a warning where they are coarse."""
    path = folder / FILE
    if not path.exists():
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    told: dict[str, Any] = {"noise": found, "say": [sentence(found)]}
    figures = found.get(signal)
    if figures is not None and ratio(figures) < ENOUGH:
        told["watch"] = [
            f"the {_words(signal)} is only {ratio(figures):.2g} times the noise of {dtype}; "
            f"--set {stage}.dtype={more_exact(dtype, figures)} computes more exactly"
        ]
    return told


def flops(node: Node, load: Load, count: int) -> float:
    """Operations of a stage that passes `count` rows through each of its models, and a sample of them twice more."""
    return read_once_flops(node, load) * (1 + 2 * min(sample_size(node.spec), count) / max(1, count))


def sentence(noise: Mapping[str, Any]) -> str:
    """The figures of a sample in words. What few bits of weights lose it cannot tell, for its truth has the same."""
    parts = [
        f"{_words(name)} {figures['rms']:.3g} nat with an error of {figures['error']:.2g}{_correlation(figures)}"
        for name, figures in noise.items()
        if isinstance(figures, dict) and "rms" in figures
    ]
    if not parts:
        parts = [f"log-probs are off by {noise['logps']['error']:.2g} nat"]
    if STORED in noise and "logps" in noise:
        parts.append("adpa show SIGNAL --fidelity --teacher recorded compares with whole weights")
    count, weights = noise["answers"], _weights(noise)
    answers = f"1 answer{weights} was" if count == 1 else f"{count:,} answers{weights} were"
    return f"{answers} computed in float32 too: {', '.join(parts)}"


def _weights(noise: Mapping[str, Any]) -> str:
    """Of which weights a sample is, in words; "" where they are whole."""
    return f" of the same {noise[STORED]} weights" if STORED in noise else ""


def _correlation(figures: Figures) -> str:
    return "" if figures["correlation"] is None else f" (correlation {figures['correlation']:.3f})"


def _words(name: str) -> str:
    return WORDS.get(name, name)
