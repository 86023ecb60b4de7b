"""Builds: whole or invisible, alone or waiting, resumed or started clean."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from adpa_cli.errors import AdpaError, Busy, Corrupt, DataError
from adpa_cli.store.build import Work
from adpa_cli.store.store import Store, verify
from support.store_samples import make, new_store, recipe

CRASH_AT_EVERY_STEP = """
import os, signal, shutil, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from support.store_samples import recipe
from adpa_cli.store.store import Store
from adpa_cli.store.store import verify

def build(store):
    with store.build(recipe(), command="adpa sft") as work:
        if work.hit is not None:
            return work.hit
        (work.dir / "checkpoints").mkdir(exist_ok=True)
        (work.dir / "model.safetensors").write_bytes(b"weights")
        (work.dir / "checkpoints" / "log").write_bytes(b"log")
        (work.dir / "_resume").write_bytes(b"optimizer")
        work.save_state({"step": 4, "of": 4})
        return work.commit(metrics={"loss": 1.0})

def die_before(step):
    seen = 0
    def count(event, arguments):
        nonlocal seen
        if event.split(".")[0] in ("open", "os", "shutil", "fcntl") and event != "os.listdir":
            seen += 1
            if seen == step:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)

root, visible, step, finished = Path(sys.argv[1]), 0, 0, False
while not finished:
    step += 1
    shutil.rmtree(root, ignore_errors=True)
    store = Store.find(root, create=True)
    child = os.fork()
    if child == 0:
        die_before(step)
        build(store)
        os._exit(0)
    finished = os.waitpid(child, 0)[1] == 0
    for manifest in store.artifacts():
        visible += 1
        assert verify(store, manifest) == [], f"step {step} shows a damaged artifact"
        names = sorted(path.name for path in store.folder(manifest.id).iterdir())
        assert names == ["checkpoints", "manifest.json", "model.safetensors"], f"step {step} shows {names}"
    manifest = build(store)
    assert verify(store, manifest) == [], f"after step {step} the repeated build is damaged"
    assert sorted(manifest.files) == ["checkpoints/log", "model.safetensors"], f"after step {step}"
    assert store.unfinished() == [] and list(root.glob(".partial/*/")) == [], f"after step {step} work is left"
print(step, visible)
"""

HOLD_THE_LOCK = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from support.store_samples import recipe
from adpa_cli.store.store import Store

root = Path(sys.argv[1])
with Store.find(root).build(recipe(), command="adpa sft --from-elsewhere") as work:
    (work.dir / "model.safetensors").write_bytes(b"theirs")
    work.save_state({"step": 1, "of": 2})
    (root / "started").touch()
    while not (root / "finish").exists():
        time.sleep(0.01)
    work.commit()
"""

TESTS = str(Path(__file__).parents[1])


def test_a_crash_at_any_step_leaves_nothing_that_is_not_whole(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CRASH_AT_EVERY_STEP, str(tmp_path / "store"), TESTS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    steps, visible = map(int, done.stdout.split())
    assert steps > 20, "the hook did not see the commit"
    assert 1 < visible < steps, "killed only before, or only after, the rename"


def test_a_second_process_is_named_waited_for_and_hit(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    child = subprocess.Popen([sys.executable, "-c", HOLD_THE_LOCK, str(store.root), TESTS])
    try:
        while not (store.root / "started").exists():
            assert child.poll() is None
        (work,) = store.unfinished()
        assert f"process {child.pid}" in work.holder
        with pytest.raises(Busy, match=f"process {child.pid} .*--from-elsewhere") as busy:
            store.build(recipe(), command="adpa sft", wait=False).__enter__()
        assert busy.value.exit_code == 4
        said: list[str] = []

        def announce(text: str) -> None:
            said.append(text)
            (store.root / "finish").touch()

        with store.build(recipe(), command="adpa sft", announce=announce) as mine:
            assert mine.hit is not None
            assert (store.folder(mine.hit.id) / "model.safetensors").read_bytes() == b"theirs"
        assert said == [f"waiting for {work.ref}, which {work.holder} is making"]
    finally:
        (store.root / "finish").touch()
        assert child.wait(timeout=30) == 0


def test_the_second_build_is_a_hit_and_touches_nothing(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    first = make(store, made={"seed_note": "x"}, metrics={"loss": float("nan"), "k": (1, 2)})
    lock = store.root / ".partial" / f"{first.id}.lock"
    lock.unlink()
    with store.build(recipe(), command="again") as work:
        assert work.hit == first
        assert not work.dir.exists()
    assert not lock.exists(), "a hit takes no lock, so a read-only store serves hits"
    assert first.metrics == {"loss": None, "k": [1, 2]}
    assert store.get(first.id) == first


def save_half(work: Work) -> None:
    (work.dir / "_optimizer").write_bytes(b"state")
    work.save_state({"step": 94, "of": 151}, stopped="SIGTERM")


def overfill(store: Store) -> None:
    with store.build(recipe(), command="c") as work:
        work.save_state({"step": 1})
        (work.dir / "model.safetensors").write_bytes(b"x" * 10**6)


def test_resume_state_is_kept_until_the_commit(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    with store.build(recipe(), command="adpa sft", environment={"torch": "2"}) as work:
        save_half(work)
    (unfinished,) = store.unfinished()
    named = f"adpa sft --store {store.root}"
    assert (unfinished.ref, unfinished.command, unfinished.stopped) == (recipe().ref, named, "SIGTERM")
    assert (unfinished.progress, unfinished.holder, unfinished.recipe) == ({"step": 94, "of": 151}, "", recipe())
    assert store.artifacts() == []
    with store.build(recipe(), command="adpa sft", environment={"torch": "2"}) as work:
        assert work.progress == {"step": 94, "of": 151}
        assert (work.dir / "_optimizer").read_bytes() == b"state"
        (work.dir / "model.safetensors").write_bytes(b"w")
        manifest = work.commit(sources={"data:" + "d" * 64: {"name": "pairs.jsonl"}})
    assert list(manifest.files) == ["model.safetensors"]
    assert sorted(path.name for path in store.folder(manifest.id).iterdir()) == ["manifest.json", "model.safetensors"]
    assert manifest.made["torch"] == "2"


def test_work_of_another_environment_starts_again(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    said: list[str] = []
    with store.build(recipe(), command="c", environment={"torch": "2.9"}) as work:
        save_half(work)
    with store.build(recipe(), command="c", environment={"torch": "2.13"}, announce=said.append) as work:
        assert work.progress == {}
        assert [path.name for path in work.dir.iterdir()] == ["state.json"]
    assert said == [f"{recipe().ref} starts again, because torch was 2.9 and is now 2.13"]


def test_torn_state_starts_again(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    folder = store.root / ".partial" / recipe().id
    folder.mkdir(parents=True)
    (folder / "state.json").write_bytes(b'{"format": 1, "reci')
    (folder / "_optimizer").write_bytes(b"state")
    assert store.unfinished() == []
    with store.build(recipe(), command="c") as work:
        assert [path.name for path in work.dir.iterdir()] == ["state.json"]


def test_a_build_that_fails_before_any_work_leaves_no_trace(tmp_path: Path) -> None:
    store, bad = new_store(tmp_path), DataError("row 3")
    with pytest.raises(DataError), store.build(recipe(), command="c"):
        raise bad
    assert store.unfinished() == []
    assert list(store.root.glob(".partial/*/")) == []


def test_if_another_was_first_theirs_stays(tmp_path: Path) -> None:
    """Where locks do not work (some network file systems) both build; the first rename wins."""
    store = new_store(tmp_path)
    with store.build(recipe(), command="slow") as work:
        (work.dir / "model.safetensors").write_bytes(b"slow")
        other = new_store(tmp_path / "elsewhere")
        quick = make(other, files={"model.safetensors": b"quick"})
        shutil.copytree(other.folder(quick.id), store.root / quick.ref)
        assert work.commit() == quick
    assert (store.folder(quick.id) / "model.safetensors").read_bytes() == b"quick"
    assert list(store.root.glob(".partial/*/")) == []


def test_what_another_commits_between_two_looks_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = new_store(tmp_path)
    quick = make(store)
    folder = store.folder(quick.id)
    elsewhere = folder.rename(tmp_path / "elsewhere")
    is_dir = Path.is_dir

    def after_the_commit(path: Path) -> bool:
        if path == folder and elsewhere.exists():
            elsewhere.rename(folder)
        return is_dir(path)

    monkeypatch.setattr(Path, "is_dir", after_the_commit)
    with store.build(recipe(), command="slow") as work:
        assert work.hit == quick


def test_a_place_taken_by_something_else_is_not_overwritten(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    stranger = store.root / recipe().ref / "notes.txt"
    stranger.parent.mkdir(parents=True)
    stranger.touch()
    with pytest.raises(Corrupt, match="no manifest"), store.build(recipe(), command="c"):
        pass
    assert stranger.exists()


@pytest.mark.parametrize("path", ["/data/x", "~/x", "C:\\x", "\\\\host\\x"])
def test_provenance_keeps_no_absolute_path(tmp_path: Path, path: str) -> None:
    with pytest.raises(ValueError, match="absolute path"):
        make(new_store(tmp_path), sources={"data:" + "d" * 64: {"name": path}})


def test_a_full_disk_says_so_and_shows_nothing(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "adpa", str(small)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        store = Store.find(small / "adpa-store", create=True)
        with pytest.raises(AdpaError, match=r"the disk of .* is full") as full:
            overfill(store)
        assert "adpa gc" in full.value.hint
        assert store.artifacts() == []
        assert [work.progress for work in store.unfinished()] == [{"step": 1}]
        (store.root / ".partial" / recipe().id / "model.safetensors").unlink()
        fill = small / "fill"
        with pytest.raises(OSError, match="No space"):
            fill.write_bytes(b"x" * 10**6)
        with pytest.raises(AdpaError, match="is full"):
            make(store, files={})  # the manifest itself does not fit
        assert store.artifacts() == []
        fill.unlink()
        assert verify(store, make(store)) == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_words_of_a_rust_library_are_understood_as_a_full_disk(tmp_path: Path) -> None:
    error = RuntimeError("I/O error: No space left on device (os error 28)")
    with pytest.raises(AdpaError, match="a disk or quota is full"), new_store(tmp_path).build(recipe(), command="c"):
        raise error


def test_a_store_of_somebody_else_is_an_error_not_a_traceback(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    denied = PermissionError(13, "Permission denied", str(store.root / "sft"))
    with pytest.raises(AdpaError, match="Permission denied"), store.build(recipe(), command="c"):
        raise denied
    elsewhere = PermissionError(13, "Permission denied", "/etc/shadow")
    with pytest.raises(PermissionError), store.build(recipe(), command="c"):
        raise elsewhere


def test_state_is_plain_json(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    with store.build(recipe(), command="adpa sft", environment={"threads": 1}) as work:
        state = json.loads((work.dir / "state.json").read_bytes())
    assert state["recipe"] == recipe().to_json()
    assert (state["command"], state["environment"], state["progress"]) == ("adpa sft", {"threads": 1}, {})
