"""Repair of a signal: the damaged rows are computed once more, in their own blocks, from the recorded teachers."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adpa_cli.disk import sha256_file, swap, sync_file, sync_folder
from adpa_cli.errors import AdpaError, Corrupt
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.running.recorded_inputs import recorded
from adpa_cli.signal import block_files as spool
from adpa_cli.spec import make
from adpa_cli.stages import Job, Monitor
from adpa_cli.stages import cache_teacher as capture
from adpa_cli.stages.cache_teacher import CaptureSpec
from adpa_cli.store import manifest as manifests
from adpa_cli.store.lock import locked
from adpa_cli.store.manifest import Manifest

TOKENIZER = "tokenizer.json.zst"
Key = tuple[str, str]


@dataclass(frozen=True)
class Broken:
    """One damaged shard: its number, its file, its damaged rows; None where its header and so all rows are gone."""

    number: int
    path: Path
    rows: tuple[int, ...] | None


def repair(
    names: Names, manifest: Manifest, files: Sequence[str], given: Mapping[str, str | None], command: str,
    monitor: Monitor,
) -> dict[str, Any]:  # fmt: skip
    """Replace the damaged `files` of a signal by ones computed again; returns the record that its manifest keeps.

    Whole blocks are computed, so that the bytes are those of the first time on a machine that computes alike. Raises
    AdpaError where an undamaged row of such a block comes out more than one quantisation step away, NotFound where a
    teacher or the data are not at hand. The old artifact stays until the new one is whole.
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
            job = recorded(names, manifest, given, work)
            for path in target.iterdir():
                if path.name not in files and path.is_file():
                    _linked(path, new / path.name)
            about = _rewrite(job, manifest, target, new, files, monitor)
            record = {"at": manifests.utc(time.time()), "command": command, **about}
            before = (manifest.repaired or {}).get("repairs", [])
            whole = {name: _described(new / name) for name in manifest.files}
            _replaced(new, replace(manifest, files=whole, repaired={"repairs": [*before, record]}))
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

        text = (job.one("aligned").path / "tokenizer.json").read_bytes()
        (new / TOKENIZER).write_bytes(zstandard.ZstdCompressor(level=19).compress(text))
    names = [name for name in files if name != TOKENIZER]
    found: dict[str, Any] = {"files": {}, "rows": 0, "compared": 0, "greatest_steps": 0.0}
    if not names:
        return {**found, "files": {TOKENIZER: "all"}}
    spec = make(CaptureSpec, job.spec)
    plan = capture.plan_of(job, spec)
    shards = plan.shards()
    broken = [_broken(old / name) for name in names]
    rows, kept = _computed(job, plan, shards, broken, _undamaged(old, broken), monitor)
    found |= _compared(kept, rows, manifest.ref)
    for shard in broken:
        path = new / shard.path.name
        if shard.rows is None:
            answers = [(i.key, rows[_key(i)]) for n in shards[shard.number] for i in plan.blocks[n].items]
            _write_whole(job, spec, manifest, path, answers)
        else:
            _write_patched(shard, path, rows)
        count = len(shard.rows) if shard.rows is not None else len(answers)
        found["rows"] += count
        found["files"][path.name] = "all" if shard.rows is None else [row + 1 for row in shard.rows]
    found["same_bytes"] = all(sha256_file(new / name) == manifest.files[name]["sha256"] for name in names)
    return found


def _broken(path: Path) -> Broken:
    from adpa_cli.signal.stored_frames import damage

    number = int(path.name.removeprefix("signal-").removesuffix(".adpa"))
    try:
        return Broken(number, path, tuple(damage(path)) if path.exists() else None)
    except Corrupt:
        return Broken(number, path, None)


def _undamaged(folder: Path, broken: Sequence[Broken]) -> dict[Key, tuple[Any, int]]:
    """The shard and row of every answer whose stored values can be relied on."""
    from adpa_cli.signal import Shard

    lost = {shard.path.name: shard.rows for shard in broken}
    found: dict[Key, tuple[Any, int]] = {}
    for path in sorted(folder.glob("signal-*.adpa")):
        bad = lost.get(path.name, ())
        if bad is not None:
            shard = Shard(path, partial=True)
            found |= {(k.example_id, k.part): (shard, i) for i, k in enumerate(shard.keys) if i not in bad}
    return found


def _computed(
    job: Job, plan: Any, shards: Sequence[range], broken: Sequence[Broken], whole: Mapping[Key, tuple[Any, int]],
    monitor: Monitor,
) -> tuple[dict[Key, Any], dict[Key, tuple[Any, int]]]:  # fmt: skip
    """What the teachers say now of the answers in the blocks of all damaged rows, and the undamaged rows among them.

    Where no undamaged row is in those blocks, one more block is computed for the comparison.
    """
    keys = {block.index: [_key(item) for item in block.items] for block in plan.blocks}
    lost = {n for shard in broken if shard.rows is None for n in shards[shard.number]}
    wanted = lost | {n for n, items in keys.items() if any(key not in whole for key in items)}
    if not any(key in whole for n in wanted for key in keys[n]):
        near = sorted(wanted)[0] if wanted else 0
        wanted |= set(sorted((n for n in keys if any(k in whole for k in keys[n])), key=lambda n: abs(n - near))[:1])
    monitor.note(f"computing {len(wanted)} of {len(keys)} blocks again")
    computed = capture.recompute(job, plan, sorted(wanted), monitor)
    inside = {key for n in wanted for key in keys[n]}
    return computed, {key: place for key, place in whole.items() if key in inside}


def _compared(kept: Mapping[Key, tuple[Any, int]], rows: Mapping[Key, Any], ref: str) -> dict[str, Any]:
    """Compare undamaged rows with what was computed now; AdpaError when one is more than a step away."""
    from adpa_cli.signal.stored_frames import signal_distance

    greatest = 0.0
    for key, (shard, i) in kept.items():
        far = signal_distance(shard.read(i, raw=True), spool.narrowed(rows[key], shard.spec.k), shard.spec)
        if far > 1:
            raise AdpaError(
                f"{ref} is not repaired: row {i + 1} of {shard.path.name} ({' '.join(key)}) is undamaged, "
                f"and comes out {far:.3g} quantisation steps away here",
                "repair it on the machine type and with the versions that made it: adpa show names them",
            )
        greatest = max(greatest, far)
    return {"compared": len(kept), "greatest_steps": greatest}


def _write_patched(shard: Broken, path: Path, rows: Mapping[Key, Any]) -> None:
    from adpa_cli.signal.stored_frames import patch_shard, stored_frames

    stored = stored_frames(shard.path)
    keys, k = stored.index.keys, stored.index.spec.k
    new = {i: spool.narrowed(rows[keys[i].example_id, keys[i].part], k) for i in shard.rows or ()}
    patch_shard(path, stored, new)


def _write_whole(
    job: Job, spec: CaptureSpec, manifest: Manifest, path: Path, answers: Sequence[tuple[Any, Any]]
) -> None:
    """A shard of which nothing could be used; its step is the recorded one."""
    from adpa_cli.signal import write_shard

    facts = manifest.metrics
    signal = replace(capture.signal_of(job, spec, answers[0][1]), k=int(facts["k"]), step=float(facts["step"]))
    write_shard(path, signal, [(key, spool.narrowed(rows, signal.k)) for key, rows in answers])


def _key(item: Any) -> Key:
    return item.key.example_id, item.key.part


def _linked(path: Path, new: Path) -> None:
    """The same file under another name, or a copy of it where there are no links."""
    try:
        os.link(path, new)
    except OSError:
        shutil.copy2(path, new)


def _described(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256_file(path)}


def _replaced(folder: Path, manifest: Manifest) -> None:
    """Write the manifest in the place of the one that is linked from the old folder; sync everything."""
    manifests.write(folder, manifest)
    for path in folder.iterdir():
        sync_file(path)
    sync_folder(folder)


def signal_files(names: Iterable[str]) -> list[str]:
    """Those of the files of a signal that can be computed again."""
    return [name for name in names if name == TOKENIZER or name.endswith(".adpa")]
