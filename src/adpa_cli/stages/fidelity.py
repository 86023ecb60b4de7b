"""A signal against its teachers: their full softmax at some answers, in float64, beside what was stored."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adpa_cli.errors import UsageError
from adpa_cli.spec import CaptureSpec, make
from adpa_cli.stages import cache_teacher as capture
from adpa_cli.stages.job import Job, Monitor, vocabulary
from adpa_cli.stages.names import Names
from adpa_cli.stages.recorded import recorded
from adpa_cli.store.manifest import Manifest

ANSWERS = 8


def measure(
    names: Names, manifest: Manifest, given: Mapping[str, str | None], count: int, work: Path, monitor: Monitor
) -> dict[str, Any]:
    """KL error, top-1 agreement and gradient cosines on `count` answers, the same ones each time; see `recorded`.

    The student of the gradients equals the reference teacher, or has half the logits of the only one.
    """
    if count < 1:
        raise UsageError(f"--rows {count} measures nothing", f"adpa show {manifest.ref} --fidelity --rows {ANSWERS}")
    job = recorded(names, manifest, given, work)
    spec = make(CaptureSpec, job.spec)
    chosen = sorted(capture.answers_of(job, spec), key=_place)[:count]
    known = min(vocabulary(job.one("aligned").path), spec.student_vocab or math.inf)
    roles = [role for role in ("aligned", "reference") if role in job.inputs]
    for n, role in enumerate(roles):
        _save(job, role, chosen, int(known), spec.dtype, monitor, (n, len(roles)))
    return _measured(names.store.folder(manifest.ref), work, chosen, roles, spec.support == "topk")


def _place(answer: Any) -> str:
    """A fixed choice that has nothing to do with the order of the rows."""
    key = answer.key
    return hashlib.sha256("\0".join((key.example_id, key.part, key.tokens)).encode()).hexdigest()


def _save(job: Job, role: str, answers: list[Any], known: int, dtype: Any, monitor: Monitor, at: Any) -> None:
    """Keep a teacher's log-probs of each run of tokens in the work folder: one teacher is in memory at a time."""
    import numpy as np

    from adpa_cli.engine.dense import dense_logps
    from adpa_cli.engine.heads import check_head
    from adpa_cli.engine.models import load
    from adpa_cli.stages.device import device

    model = load(job.one(role).path, device=device())
    check_head(model)
    for n, answer in enumerate(answers):
        for run, logps in enumerate(dense_logps(model, answer.prompt, answer.answer, known, dtype)):
            np.save(job.folder / f"{role}-{n}-{run}.npy", logps.numpy())
        monitor.progress(at[0] * len(answers) + n + 1, at[1] * len(answers), {})


@dataclass
class _Sums:
    """What is added up over runs of tokens."""

    tokens: int = 0
    kl: float = 0.0
    hits: int = 0
    products: dict[str, list[float]] = field(default_factory=dict)
    """By method: the two gradients' product, and the squares of both."""


def _measured(folder: Path, work: Path, answers: list[Any], roles: list[str], topk: bool) -> dict[str, Any]:
    import numpy as np

    from adpa_cli.signal import SignalReader, SignalRows
    from adpa_cli.stages.fidelity_views import gradients, kl_and_top

    reader, sums = SignalReader(folder), _Sums()
    for n, answer in enumerate(answers):
        stored, start = reader.read(answer.key), 0
        for parts in _runs(work, n, roles):
            span = slice(start, start + len(parts[0]))
            start = span.stop
            parted: dict[str, Any] = {k: None if v is None else np.array(v[span]) for k, v in vars(stored).items()}
            rows = SignalRows(**parted)
            if topk:
                kl, hits = kl_and_top(parts[0], rows)
                sums.kl, sums.hits = sums.kl + kl, sums.hits + hits
            sums.tokens += len(rows)
            for name, (kept, full) in gradients(parts, rows).items():
                old = sums.products.setdefault(name, [0.0, 0.0, 0.0])
                new = (float((a * b).sum()) for a, b in ((kept, full), (kept, kept), (full, full)))
                sums.products[name] = [a + b for a, b in zip(old, new, strict=True)]
    cosines = {f"{name}_gradient_cosine": _cosine(*values) for name, values in sums.products.items()}
    student = "the reference teacher" if "reference" in roles else "the teacher with half its logits"
    share = {"kl_error": sums.kl / sums.tokens, "top1_agreement": sums.hits / sums.tokens} if topk else {}
    return {"answers": len(answers), "tokens": sums.tokens, "student": student, **share, **cosines}


def _runs(work: Path, n: int, roles: list[str]) -> Iterator[list[Any]]:
    """The log-probs of each teacher, run of tokens by run."""
    import numpy as np
    import torch

    run = 0
    while (work / f"{roles[0]}-{n}-{run}.npy").exists():
        paths = [work / f"{role}-{n}-{run}.npy" for role in roles]
        yield [torch.from_numpy(np.load(path)) for path in paths]
        for path in paths:
            path.unlink()
        run += 1


def _cosine(product: float, one: float, other: float) -> float | None:
    return product / math.sqrt(one * other) if one and other else None
