"""`adpa show SIGNAL --fidelity`: what a signal keeps of its teachers, and what each part of it costs."""

from __future__ import annotations

from typing import Any

import numpy as np

from adpa_cli.errors import UsageError
from adpa_cli.report import text
from adpa_cli.signal import SignalReader, rms_advantage
from adpa_cli.signal.measure import COLUMNS, column_bytes
from adpa_cli.signal.rows import label_positions
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

EDGES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 1.0)
"""Bounds of the histogram of the mass inside the ids."""
BAR = 30
MEASURED = (
    ("kl_error", "mean KL(teacher ‖ signal) over the stored classes", "{:.2g} nat"),
    ("top1_agreement", "top-1 token is the teacher's", "{:.2%}"),
    ("dckd_gradient_cosine", "cosine of DCKD's gradient with the full vocabulary's", "{:.6f}"),
    ("adpa_gradient_cosine", "cosine of ADPA's gradient with the full vocabulary's", "{:.6f}"),
)


def collect(store: Store, manifest: Manifest) -> dict[str, Any]:
    """The figures of a whole signal, every answer read once. Raises UsageError for another artifact, Corrupt."""
    if manifest.stage != "cache-teacher":
        raise UsageError(f"{manifest.ref} is no signal", "--fidelity is of cache-teacher artifacts")
    reader = SignalReader(store.folder(manifest.ref))
    spec, counts = reader.spec, np.zeros(len(EDGES) - 1, dtype=np.int64)
    mass, outside, squares = 0.0, 0, 0.0
    for shard in reader.shards:
        for _, rows in shard:
            inside = np.exp(rows.logps.astype(np.float64)).sum(axis=1)
            counts += np.histogram(np.clip(inside, 0, 1), EDGES)[0]
            mass += float(inside.sum())
            outside += int(np.count_nonzero(~label_positions(rows)[1]))
            if spec.has_reference:
                squares += rms_advantage([rows]) ** 2 * len(rows)
    tokens = max(1, reader.tokens)
    found: dict[str, Any] = {
        "ref": manifest.ref, "k": spec.k, "vocabulary": spec.vocab_size, "answers": len(reader),
        "tokens": reader.tokens, "step": spec.step, "mean_mass": mass / tokens, "taken_outside": outside / tokens,
        "mass_histogram": [
            {"from": low, "to": high, "tokens": int(count)}
            for low, high, count in zip(EDGES, EDGES[1:], counts, strict=False)
        ],
        "bytes_per_token": _bytes(reader),
    }  # fmt: skip
    if spec.has_reference:
        rms = (squares / tokens) ** 0.5
        steps = rms / spec.difference_step if spec.difference_step else None
        found |= {"difference_step": spec.difference_step, "rms_advantage": rms, "rms_advantage_steps": steps}
    return found


def _bytes(reader: SignalReader) -> dict[str, float]:
    """Stored bytes per token by column, and of all of them."""
    found = dict.fromkeys(COLUMNS, 0.0)
    for shard in reader.shards:
        for name, size in column_bytes(shard.path).items():
            found[name] += size / max(1, reader.tokens)
    return {**found, "all": sum(found.values())}


def screen(found: dict[str, Any], width: int) -> str:
    """The figures for a terminal of `width` columns."""
    lines = text.wrap(
        f"{found['ref']}   ",
        [f"top {found['k']} of {found['vocabulary']:,}", f"{found['answers']:,} answers, {found['tokens']:,} tokens"],
        width, " · ",
    )  # fmt: skip
    lines.append(f"mass in top {found['k']}   mean {found['mean_mass']:.4f}")
    most = max(1, *(entry["tokens"] for entry in found["mass_histogram"]))
    for entry in found["mass_histogram"]:
        share = entry["tokens"] / max(1, found["tokens"])
        bar = "#" * round(BAR * entry["tokens"] / most)
        lines.append(f"  {entry['from']:5.3f} to {entry['to']:5.3f}  {100 * share:5.1f} %  {bar}")
    lines.append(f"taken token outside the ids: {100 * found['taken_outside']:.2f} %")
    if "rms_advantage" in found:
        steps = found["rms_advantage_steps"]
        told = "stored exactly" if steps is None else f"{steps:.3g} steps of the stored difference"
        lines.append(f"RMS of the advantage {found['rms_advantage']:.3g} nat, {told}")
    costs = [f"{name} {size:.1f}" for name, size in found["bytes_per_token"].items() if name != "all" and size]
    lines += text.wrap("bytes per token   ", [f"{found['bytes_per_token']['all']:.1f}:", *costs], width, "  ")
    if "measured" in found:
        lines += _measured(found["measured"])
    return "\n".join(text.cut(line.rstrip(), width) for line in lines) + "\n"


def _measured(found: dict[str, Any]) -> list[str]:
    lines = [
        f"against the teacher, {found['answers']} answers, {found['tokens']:,} tokens; student: {found['student']}"
    ]
    for name, words, form in MEASURED:
        if found.get(name) is not None:
            lines.append(f"  {form.format(found[name]):>12}  {words}")
    return lines


def tsv(found: dict[str, Any]) -> str:
    """The figures as uncut lines of name and value."""
    flat = {key: value for key, value in found.items() if key != "mass_histogram"}
    rows = [(key, "" if value is None else str(value)) for key, value in text.flat(flat).items()]
    rows += [(f"mass.{e['from']:g}-{e['to']:g}", str(e["tokens"])) for e in found["mass_histogram"]]
    return text.tsv(rows)
