"""A signal against its teachers: their full softmax at some answers, in float64, beside what was stored.

The term that a method's `PROBE` names is computed as the method reads it: once from the stored signal, once from the
full vocabulary. `dense` [T, V + 1] are a teacher's log-probs of V ids and of all others together.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adpa_cli import methods
from adpa_cli.errors import UsageError
from adpa_cli.hub.model_folder import ModelFolder
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.running.recorded_inputs import recorded_job
from adpa_cli.spec import make
from adpa_cli.stages import Job, Monitor
from adpa_cli.stages import cache_teacher as capture
from adpa_cli.stages.cache_teacher import CaptureSpec
from adpa_cli.store.manifest import Manifest

if TYPE_CHECKING:
    from torch import Tensor

    from adpa_cli.engine.layout.examples import Answer
    from adpa_cli.methods import Method, Probe
    from adpa_cli.signal.rows import SignalRows


def kl_and_top(dense: Tensor, rows: SignalRows) -> tuple[float, int]:
    """(KL(teacher || signal) over {ids, label if outside, rest}, summed over tokens; tokens with the same top-1)."""
    import torch

    ids, labels, outside = _ids(rows)
    inside = torch.zeros_like(dense, dtype=torch.bool).scatter(1, ids, True)
    inside[outside, labels[outside]] = True
    label = dense.gather(1, labels[:, None])[:, 0]
    teacher = [dense.gather(1, ids), label.masked_fill(~outside, -math.inf)[:, None], _mass(dense, ~inside)[:, None]]
    logps, label, rest = (torch.from_numpy(x).double() for x in (rows.logps, rows.label_logps, rows.rest_logps))
    p, q = torch.cat(teacher, 1), torch.cat([logps, label.masked_fill(~outside, -math.inf)[:, None], rest[:, None]], 1)
    gap = torch.where(p > -math.inf, p - q.clamp(min=-1e4), 0.0)
    top = dense[:, :-1].argmax(1)
    stored_top = torch.cat([ids, labels[:, None]], 1).gather(1, q[:, :-1].argmax(1, keepdim=True))[:, 0]
    return float((p.exp() * gap).sum()), int((top == stored_top).sum())


def gradients(dense: Sequence[Tensor], rows: SignalRows) -> dict[str, tuple[Tensor, Tensor]]:
    """Two gradients [T, V] of each probe's term for the student's logits: from the signal, and from full softmaxes.

    By the name of the method; those that one teacher suffices for come first. The student equals the reference
    teacher, or has half the logits of the only one: where it equals the aligned teacher, the gradients vanish.
    """
    import torch

    pair = len(dense) > 1
    start = dense[1][:, :-1] if pair else dense[0][:, :-1] / 2
    ids, labels, _ = _ids(rows)
    every = torch.arange(start.shape[1]).expand(len(rows), -1)
    signals = ((ids, _stored(rows)), (every, _full(dense, labels)))
    by_method: dict[str, tuple[Tensor, Tensor]] = {}
    for name, method, probe in _probes():
        if probe.pair and not pair:
            continue
        params, both = method.params(**probe.params), []
        for at, signal in signals:
            logits = start.clone().requires_grad_()
            views: dict[Any, Any] = {"chosen": _view(logits, labels, None, None)}
            views[probe.part] = _view(logits, labels, at, signal)
            (values,) = [term.values for term in method.terms(views, params) if term.name == probe.term]
            both.append(torch.autograd.grad(values.sum(), logits)[0])
        by_method[name] = both[0], both[1]
    return by_method


def _probes() -> list[tuple[str, Method, Probe]]:
    """(name, method, probe) of every method that has one; those that need the reference teacher come last."""
    read = {name: methods.load(name) for name in methods.names()}
    with_probe = [(name, method, method.probe) for name, method in read.items() if method.probe is not None]
    return sorted(with_probe, key=lambda entry: entry[2].pair)


def _view(logits: Tensor, labels: Tensor, ids: Tensor | None, signal: Any) -> Any:
    """A student as a method sees it, at one answer."""
    import torch

    from adpa_cli.methods import View

    logps = logits.log_softmax(-1)
    here = logps.gather(1, labels[:, None])[:, 0]
    mask = torch.ones((1, len(labels)), dtype=torch.bool)
    if ids is None:
        return View(here[None], mask, ~mask)
    outside = torch.ones_like(logps, dtype=torch.bool).scatter(1, torch.cat([ids, labels[:, None]], 1), False)
    rest = _mass(logps, outside)
    label_in_topk = (ids == labels[:, None]).any(1)
    return View(here[None], mask, ~mask, logps.gather(1, ids)[None], rest[None], label_in_topk[None], signal)


def _stored(rows: SignalRows) -> Any:
    import torch

    from adpa_cli.engine.layout.batch import SIGNAL_FIELDS
    from adpa_cli.methods import Signal

    def tensor(value: Any) -> Any:
        if value is None:
            return None
        column = torch.from_numpy(value)[None]
        return column.double() if column.is_floating_point() else column

    return Signal(**{name: tensor(getattr(rows, name)) for name in SIGNAL_FIELDS})


def _full(dense: Sequence[Tensor], labels: Tensor) -> Any:
    """The signal of a capture with every id: no floor, nothing outside but ids that the student lacks."""
    import torch

    from adpa_cli.methods import Signal

    aligned, at = dense[0], labels[:, None]
    columns = [aligned[:, :-1], aligned.gather(1, at)[:, 0], aligned[:, -1]]
    if len(dense) > 1:
        reference = dense[1]
        difference = aligned[:, :-1] - reference[:, :-1]
        every = torch.ones_like(difference, dtype=torch.bool)
        columns += [difference, every, reference[:, :-1].amin(1), reference.gather(1, at)[:, 0], reference[:, -1]]
    return Signal(*(column[None] for column in columns))


def _ids(rows: SignalRows) -> tuple[Tensor, Tensor, Tensor]:
    """[T, K] ids, [T] labels, [T] whether the label is not among the ids."""
    import torch

    ids, labels = torch.from_numpy(rows.ids).long(), torch.from_numpy(rows.label_ids).long()
    return ids, labels, (ids != labels[:, None]).all(1)


def _mass(logps: Tensor, counted: Tensor) -> Tensor:
    """[T] log of the mass of the classes that are counted, -inf without any; its gradient is 0 there."""
    some = counted.any(1)
    return logps.masked_fill(~counted & some[:, None], -math.inf).logsumexp(1).masked_fill(~some, -math.inf)


ANSWERS = 8
COSINE = "_gradient_cosine"
"""Behind the name of a method, of whose gradient the cosine is."""
LEAST_COSINE = 0.95
"""Of the gradient from a signal with that from whole teachers: what an error of a third of the gradient leaves."""


def measure(
    names: Names, manifest: Manifest, models: Mapping[str, str | None], count: int, work: Path, monitor: Monitor
) -> dict[str, Any]:
    """KL error, top-1 agreement and gradient cosines of a signal on `count` answers, the same ones each time.

    The teachers are the recorded ones, which `models` may name by role. Raises UsageError and NotFound as
    `recorded_job` does.
    """
    from adpa_cli.engine.noise import first_by_hash

    if count < 1:
        raise UsageError(
            f"--rows must be 1 or more; got {count}", f"adpa show {manifest.ref} --fidelity --rows {ANSWERS}"
        )
    job = recorded_job(names, manifest, models, work)
    spec = make(CaptureSpec, job.spec)
    answers = first_by_hash(capture.answers_of(job, spec), _name, count)
    roles = [role for role in ("aligned", "reference") if role in job.inputs]
    for n, role in enumerate(roles):
        _save(job, role, answers, spec, monitor, (n, len(roles)))
    measured = _measured(names.store.folder(manifest.ref), work, answers, roles, spec.support == "topk")
    stored = {"stored": spec.quantise} if spec.quantise else {}
    return {**measured, **stored, **_warning(measured, job.stage, spec.quantise)}


def _warning(measured: Mapping[str, Any], stage: str, quantise: str | None) -> dict[str, str]:
    """What to capture otherwise where the gradient of a method keeps little of the teachers'; nothing elsewhere."""
    cosines = [(value, name) for name, value in measured.items() if name.endswith(COSINE) and value is not None]
    worst, name = min(cosines, default=(1.0, ""))
    if worst >= LEAST_COSINE:
        return {}
    way = f"--set {stage}.dtype=float32, with more ids, or with smaller steps"
    rather = f"whole weights, without --set {stage}.quantise={quantise}" if quantise else way
    method = name.removesuffix(COSINE).upper()
    said = f"more than a third of the gradient of {method} is error (cosine below {LEAST_COSINE:g})"
    return {"watch": f"{said}; store the signal again with {rather}"}


def _name(answer: Answer) -> str:
    """What an answer is chosen by, so that the choice has nothing to do with the order of the rows."""
    key = answer.key
    return "\0".join((key.example_id, key.part, key.tokens))


def _save(
    job: Job, role: str, answers: list[Answer], spec: CaptureSpec, monitor: Monitor, turn: tuple[int, int]
) -> None:
    """Keep a teacher's log-probs of each run of tokens in the work folder: one layer of one teacher is in memory at a
    time. They are in float32 and of whole weights, whatever the signal was computed in and of, so that its errors show.

    `turn` counts the teachers before this one, and all of them.
    """
    import numpy as np

    from adpa_cli.engine.device import device
    from adpa_cli.engine.layerwise import load_layerwise
    from adpa_cli.engine.scoring import full_vocabulary_logps

    vocabulary = min(ModelFolder.of(job.one("aligned").path).vocabulary, spec.student_vocab or math.inf)
    model = load_layerwise(job.one(role).path, device())
    for n, run, logps in full_vocabulary_logps(model, answers, int(vocabulary)):
        np.save(job.folder / f"{role}-{n}-{run}.npy", logps.numpy())
        monitor.progress(turn[0] * len(answers) + n + 1, turn[1] * len(answers), {})


def _measured(folder: Path, work: Path, answers: list[Answer], roles: list[str], topk: bool) -> dict[str, Any]:
    """The figures over all answers, from the stored signal and the log-probs in the work folder."""
    import numpy as np
    import torch

    from adpa_cli.signal.rows import SignalRows
    from adpa_cli.signal.shard import SignalReader

    reader, tokens, kl, hits = SignalReader(folder), 0, 0.0, 0
    products: dict[str, Tensor] = {}  # by method: the two gradients' product, and the squares of both
    for n, answer in enumerate(answers):
        stored, start = vars(reader.read(answer.key)), 0
        for dense in _runs(work, n, roles):
            span = slice(start, start + len(dense[0]))
            start = span.stop
            columns: dict[str, Any] = {k: None if v is None else np.array(v[span]) for k, v in stored.items()}
            rows = SignalRows(**columns)
            tokens += len(rows)
            if topk:
                run_kl, run_hits = kl_and_top(dense[0], rows)
                kl, hits = kl + run_kl, hits + run_hits
            for name, (kept, full) in gradients(dense, rows).items():
                sums = torch.stack([(a * b).sum() for a, b in ((kept, full), (kept, kept), (full, full))])
                products[name] = products[name] + sums if name in products else sums
    cosines = {f"{name}{COSINE}": _cosine(*sums.tolist()) for name, sums in products.items()}
    student = "the reference teacher" if "reference" in roles else "the teacher with half its logits"
    share = {"kl_error": kl / tokens, "top1_agreement": hits / tokens} if topk else {}
    return {"answers": len(answers), "tokens": tokens, "student": student, **share, **cosines}


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
