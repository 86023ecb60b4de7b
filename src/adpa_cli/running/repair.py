"""Repair of a signal: the damaged rows are computed once more, in their own blocks, from the recorded teachers.

The shape of a block moves the last bits of what a teacher says, so whole blocks are computed, in the shape that they
had. Their undamaged rows show whether this machine computes as the one of the first time did.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adpa_cli.disk import numbered, sha256_file, swap, sync_file, sync_folder
from adpa_cli.errors import AdpaError, Corrupt
from adpa_cli.hub.model_folder import ModelFolder
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.running.recorded_inputs import recorded_job
from adpa_cli.signal import stored_frames
from adpa_cli.signal.block_files import narrowed
from adpa_cli.signal.rows import AnswerKey, SignalRows
from adpa_cli.signal.shard import Shard, write_shard
from adpa_cli.spec import make
from adpa_cli.stages import Job, Monitor
from adpa_cli.stages import cache_teacher as capture
from adpa_cli.stages.cache_teacher import CaptureSpec
from adpa_cli.store import manifest as manifests
from adpa_cli.store.lock import locked
from adpa_cli.store.manifest import Manifest

if TYPE_CHECKING:
    from adpa_cli.engine.layout.examples import Answer

TOKENIZER = "tokenizer.json.zst"
Key = tuple[str, str]
"""An answer by its example and its part."""


@dataclass(frozen=True)
class Damage:
    """One damaged shard: its number, its file, its damaged rows; None where its header and so all rows are gone."""

    number: int
    path: Path
    rows: tuple[int, ...] | None


def repair(
    names: Names, manifest: Manifest, files: Sequence[str], models: Mapping[str, str | None], command: str,
    monitor: Monitor,
) -> dict[str, Any]:  # fmt: skip
    """Replace the damaged `files` of a signal by ones computed again; returns the record that its manifest keeps.

    The bytes are those of the first time on a machine that computes alike. Raises AdpaError where an undamaged row of
    a block comes out more than one quantisation step away, NotFound where a teacher or the data are not at hand;
    `models` names teachers by role. The old artifact stays until the new one is whole.
    """
    store = names.store
    target = store.folder(manifest.ref)
    partial = store.root / ".partial"
    with locked(partial / f"{manifest.id}.lock", command, announce=monitor.note, what=f"{manifest.ref} (repair)"):
        work = partial / f"{manifest.id}.repair"
        shutil.rmtree(work, ignore_errors=True)
        new = work / "new"
        new.mkdir(parents=True)
        try:
            job = recorded_job(names, manifest, models, work)
            for path in target.iterdir():
                if path.name not in files and path.is_file():
                    _link(path, new / path.name)
            rewritten = _rewrite(job, manifest, target, new, files, monitor)
            record = {"at": manifests.utc(time.time()), "command": command, **rewritten}
            whole = {
                name: {"bytes": (new / name).stat().st_size, "sha256": sha256_file(new / name)}
                for name in manifest.files
            }
            repairs = [*(manifest.repaired or {}).get("repairs", []), record]
            manifests.write(new, replace(manifest, files=whole, repaired={"repairs": repairs}))
            for path in new.iterdir():
                sync_file(path)
            sync_folder(new)
            swap(new, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return record


def _rewrite(
    job: Job, manifest: Manifest, old: Path, new: Path, files: Sequence[str], monitor: Monitor
) -> dict[str, Any]:
    """Write the damaged files of `old` into `new`; what was computed and how far undamaged rows were from it."""
    if TOKENIZER in files:
        import zstandard

        text = (ModelFolder.of(job.one("aligned").path).texts.path / "tokenizer.json").read_bytes()
        (new / TOKENIZER).write_bytes(zstandard.ZstdCompressor(level=19).compress(text))
    names = [name for name in files if name != TOKENIZER]
    record: dict[str, Any] = {"files": {}, "rows": 0, "compared": 0, "greatest_steps": 0.0}
    if not names:
        return {**record, "files": {TOKENIZER: "all"}}
    spec = make(CaptureSpec, job.spec)
    plan = capture.plan_of(job, spec)
    shards = plan.shards()
    damages = [_damage(old / name) for name in names]
    rows, undamaged = _computed(job, plan, shards, damages, _undamaged(old, damages), monitor)
    record |= _compared(undamaged, rows, manifest.ref)
    for damage in damages:
        name = damage.path.name
        if damage.rows is None:
            answers = [item for n in shards[damage.number] for item in plan.blocks[n].items]
            _write_whole(job, spec, manifest, new / name, [(item.key, rows[_key(item)]) for item in answers])
        else:
            _write_patched(damage, new / name, rows)
        record["rows"] += len(answers if damage.rows is None else damage.rows)
        record["files"][name] = "all" if damage.rows is None else [row + 1 for row in damage.rows]
    record["same_bytes"] = all(sha256_file(new / name) == manifest.files[name]["sha256"] for name in names)
    return record


def _damage(path: Path) -> Damage:
    number = int(path.name.removeprefix("signal-").removesuffix(".adpa"))
    try:
        return Damage(number, path, tuple(stored_frames.damage(path)) if path.exists() else None)
    except Corrupt:
        return Damage(number, path, None)


def _undamaged(folder: Path, damages: Sequence[Damage]) -> dict[Key, tuple[Shard, int]]:
    """The shard and row of every answer whose stored values can be relied on."""
    damaged = {damage.path.name: damage.rows for damage in damages}
    places: dict[Key, tuple[Shard, int]] = {}
    for path in numbered(folder, "signal-*.adpa"):
        rows = damaged.get(path.name, ())
        if rows is not None:
            shard = Shard(path, partial=True)
            places |= {(key.example_id, key.part): (shard, i) for i, key in enumerate(shard.keys) if i not in rows}
    return places


def _computed(
    job: Job, plan: capture.Blocks, shards: Sequence[range], damages: Sequence[Damage],
    undamaged: Mapping[Key, tuple[Shard, int]], monitor: Monitor,
) -> tuple[dict[Key, SignalRows], dict[Key, tuple[Shard, int]]]:  # fmt: skip
    """What the teachers say now of the answers in the blocks of all damaged rows, and the undamaged rows among them.

    Where no undamaged row is in those blocks, the nearest block with one is computed too, for the comparison: without
    any the repair would trust a machine that may compute otherwise.
    """
    keys = {block.index: [_key(item) for item in block.items] for block in plan.blocks}
    lost = {n for damage in damages if damage.rows is None for n in shards[damage.number]}
    wanted = lost | {n for n, items in keys.items() if any(key not in undamaged for key in items)}
    comparable = {n for n, items in keys.items() if any(key in undamaged for key in items)}
    if not wanted & comparable:
        near = min(wanted, default=0)
        wanted |= set(sorted(comparable, key=lambda n: abs(n - near))[:1])
    monitor.note(f"computing {len(wanted)} of {len(keys)} blocks again")
    rows = capture.recompute(job, plan, sorted(wanted), monitor)
    inside = {key for n in wanted for key in keys[n]}
    return rows, {key: place for key, place in undamaged.items() if key in inside}


def _compared(undamaged: Mapping[Key, tuple[Shard, int]], rows: Mapping[Key, SignalRows], ref: str) -> dict[str, Any]:
    """Compare undamaged rows with what was computed now; AdpaError when one is more than a step away."""
    greatest = 0.0
    for key, (shard, i) in undamaged.items():
        steps = stored_frames.signal_distance(shard.read(i, raw=True), narrowed(rows[key], shard.spec.k), shard.spec)
        if steps > 1:
            raise AdpaError(
                f"{ref} is not repaired: row {i + 1} of {shard.path.name} ({' '.join(key)}) is undamaged, "
                f"and comes out {steps:.3g} quantisation steps away here",
                "repair it on the kind of machine, and with the library versions, that made it (adpa show lists them)",
            )
        greatest = max(greatest, steps)
    return {"compared": len(undamaged), "greatest_steps": greatest}


def _write_patched(damage: Damage, path: Path, rows: Mapping[Key, SignalRows]) -> None:
    """A shard whose damaged frames are replaced; the others keep their bytes."""
    stored = Shard(damage.path, partial=True)
    keys, k = stored.keys, stored.spec.k
    stored_frames.patch_shard(
        path, stored, {i: narrowed(rows[keys[i].example_id, keys[i].part], k) for i in damage.rows or ()}
    )


def _write_whole(
    job: Job, spec: CaptureSpec, manifest: Manifest, path: Path, answers: Sequence[tuple[AnswerKey, SignalRows]]
) -> None:
    """A shard of which nothing could be used; its step is the recorded one."""
    facts = manifest.metrics
    signal = replace(capture.signal_of(job, spec, int(facts["k"])), step=float(facts["step"]))
    write_shard(path, signal, [(key, narrowed(rows, signal.k)) for key, rows in answers])


def _key(answer: Answer) -> Key:
    return answer.key.example_id, answer.key.part


def _link(path: Path, new: Path) -> None:
    """The same file under another name, or a copy of it where there are no links."""
    try:
        os.link(path, new)
    except OSError:
        shutil.copy2(path, new)


def signal_files(names: Iterable[str]) -> list[str]:
    """Those of the files of a signal that can be computed again."""
    return [name for name in names if name == TOKENIZER or name.endswith(".adpa")]
