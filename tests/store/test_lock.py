"""Two builders where the kernel's lock is missing, excludes nobody, or excludes the processes of one machine only."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adpa_cli.errors import AdpaError, Busy
from adpa_cli.store import claim as claims
from adpa_cli.store import gc
from adpa_cli.store.build import Work, owner_path
from adpa_cli.store.lock import claim_path, holder, locked, reservations, reserved
from adpa_cli.store.store import verify
from support.store_samples import make, new_store, recipe

TESTS = str(Path(__file__).parents[1])

BUILD_EVERYTHING = """
import errno, fcntl, os, random, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from support.store_samples import recipe
from adpa_cli.store import lock
from adpa_cli.store.store import Store

def raises(number):
    def flock(*_):
        raise OSError(number, os.strerror(number))
    return flock

root, me = Path(sys.argv[1]), str(os.getpid()).encode()
store, real, made = Store.find(root), fcntl.flock, 0
lock.POLL_SECONDS = lock._GRACE_SECONDS = 0.001
(root / f"ready-{os.getpid()}").touch()
while len(list(root.glob("ready-*"))) < 2:
    time.sleep(0.001)
kinds = {"works": real, "ENOLCK": raises(errno.ENOLCK), "ENOSYS": raises(errno.ENOSYS), "nothing": lambda *_: None}
for kind, flock in kinds.items():
    fcntl.flock = flock
    for n in random.sample(range(12), 12):
        with store.build(recipe(kind=kind, n=n), command="adpa sft") as work:
            if work.hit is None:
                inside = root / f"inside-{kind}-{n}"
                os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # fails while the other one is at it
                for name in ("a", "b", "c"):
                    (work.dir / name).write_bytes(me)
                    time.sleep(0.002)
                inside.unlink()
                work.commit()
                made += 1
print(made)
"""


def no_flock(number: int) -> Callable[..., None]:
    def flock(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    return flock


@pytest.fixture(params=["ENOLCK", "ENOSYS", "EOPNOTSUPP", "nothing"])
def unlocked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kernel's lock is missing, in three ways, or given to everybody."""
    kind = str(request.param)
    monkeypatch.setattr(fcntl, "flock", (lambda *_: None) if kind == "nothing" else no_flock(getattr(errno, kind)))
    return kind


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks exclude nobody, and claims are those of another machine: nobody can tell whether it runs."""
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    here = claims.Process.here
    kernels: Iterator[str] = iter(["one", "other"] * 99)
    made: dict[str, claims.Process] = {}

    def new(command: str, needs: Any = (), kernel_lock: bool = False) -> claims.Claim:
        made.setdefault(command, replace(here(), kernel=next(kernels), host=command))
        return claims.Claim(os.urandom(8).hex(), made[command], command, tuple(needs), kernel_lock)

    monkeypatch.setattr(claims, "new", new)
    monkeypatch.setattr(claims.Process, "here", staticmethod(lambda: replace(here(), kernel="mine", host="mine")))


def silence(root: Path) -> None:
    """As if nobody had touched any claim for two minutes."""
    for path in [*root.glob(".partial/*.claim"), *root.glob(".partial/*.owner")]:
        os.utime(path, (time.time() - 120,) * 2)


def test_two_processes_build_each_artifact_once_whatever_the_lock_does(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    command = [sys.executable, "-c", BUILD_EVERYTHING, str(store.root), TESTS]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [child.communicate(timeout=120) for child in both]
    assert [child.returncode for child in both] == [0, 0], said
    counts = [int(out) for out, _ in said]
    assert sum(counts) == 48
    assert min(counts) > 0, "one process did everything: they never met"
    artifacts = store.artifacts()
    assert len(artifacts) == 48
    for manifest in artifacts:
        assert verify(store, manifest) == []
        assert len({(store.folder(manifest.id) / name).read_bytes() for name in manifest.files}) == 1
    assert not [path for path in (store.root / ".partial").iterdir() if path.suffix != ".lock"]


def test_a_second_builder_without_the_kernel_s_lock_names_the_first(tmp_path: Path, unlocked: str) -> None:
    store = new_store(tmp_path)
    with store.build(recipe(), command="adpa sft --first"):
        with pytest.raises(Busy, match=f"process {os.getpid()} .*--first"):
            store.build(recipe(), command="adpa sft", wait=False).__enter__()
        (left,) = store.unfinished()
        assert f"process {os.getpid()}" in left.holder
    (store.root / ".partial").joinpath("x.lock").touch()
    assert holder(store.root / ".partial" / "x.lock") is None
    with reserved(store.root, ["a" * 64], "adpa distill"):
        assert f"process {os.getpid()}" in reservations(store.root)["a" * 64]
    assert reservations(store.root) == {}
    make(store)
    assert not [path for path in (store.root / ".partial").iterdir() if path.suffix != ".lock"]


def test_a_killed_builder_is_followed_at_once_without_the_kernel_s_lock(tmp_path: Path, unlocked: str) -> None:
    store = new_store(tmp_path)
    child = os.fork()
    if child == 0:
        with store.build(recipe(), command="adpa sft") as work:
            work.save_state({"step": 3, "of": 9})
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert [work.holder for work in store.unfinished()] == [""]
    with store.build(recipe(), command="adpa sft", wait=False) as work:
        assert work.progress == {"step": 3, "of": 9}
        assert work.dir.name == recipe().id


def test_locks_that_are_refused_otherwise_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", no_flock(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"), locked(tmp_path / "x.lock", "adpa"):
        pass


def test_another_machine_at_work_is_waited_for_and_followed_once_it_is_silent(
    tmp_path: Path, elsewhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The case of a file system whose locks end at the machine: both get the kernel's lock."""
    store = new_store(tmp_path)
    said: list[str] = []
    with ExitStack() as stack:
        frozen = stack.enter_context(store.build(recipe(), command="first"))
        frozen.save_state({"step": 3, "of": 9})
        (frozen.dir / "_resume").write_bytes(b"state of step 3")
        handle = stack.enter_context((frozen.dir / "_half").open("wb"))
        with pytest.raises(Busy, match="on first"):
            store.build(recipe(), command="second", wait=False).__enter__()

        def announce(text: str) -> None:
            said.append(text)
            silence(store.root)

        with store.build(recipe(), command="second", announce=announce) as work:
            assert said[0].startswith(f"waiting for {recipe().ref}, which process ")
            assert "on first (first) has stopped responding; continuing with a copy" in said[1]
            assert (work.progress, work.dir != frozen.dir) == ({"step": 3, "of": 9}, True)
            assert (work.dir / "_resume").read_bytes() == b"state of step 3"
            comes_back(frozen, handle)
            (work.dir / "model.safetensors").write_bytes(b"second")
            assert sorted(path.name for path in work.dir.iterdir())[:2] == ["_half", "_resume"]
            assert (work.dir / "_half").read_bytes() == b""
            manifest = work.commit()
        with pytest.raises(AdpaError, match="another process took over"):
            frozen.commit()
    assert verify(store, manifest) == []
    assert (store.folder(manifest.id) / "model.safetensors").read_bytes() == b"second"
    assert list(store.root.glob(".partial/*/")) == []
    assert not [path for path in (store.root / ".partial").iterdir() if path.suffix != ".lock"]


def comes_back(frozen: Work, handle: Any) -> None:
    """What a builder does that knows nothing of the other: it writes on, and finds out when it saves."""
    handle.write(b"half of a file that was open")
    handle.flush()
    with pytest.raises(FileNotFoundError):
        (frozen.dir / "model.safetensors").write_bytes(b"first")
    with pytest.raises(AdpaError, match="another process took over"):
        frozen.save_state({"step": 4, "of": 9})


def test_a_builder_whose_folder_is_gone_says_who_has_it(tmp_path: Path, elsewhere: None) -> None:
    store = new_store(tmp_path)

    def freezes() -> None:
        with store.build(recipe(), command="first") as frozen:
            frozen.save_state({"step": 3, "of": 9})
            silence(store.root)
            with store.build(recipe(), command="second"):
                (frozen.dir / "model.safetensors").write_bytes(b"first")

    with pytest.raises(AdpaError, match="took over") as taken:
        freezes()
    assert "nothing is lost" in taken.value.hint
    [left] = store.unfinished()
    assert left.progress == {"step": 3, "of": 9}
    with store.build(recipe(), command="third") as work:
        assert work.progress == {"step": 3, "of": 9}
        assert work.dir == next(iter(store.root.glob(".partial/*/")))


def test_two_who_both_hold_the_lock_do_not_share_a_folder(tmp_path: Path, elsewhere: None) -> None:
    store = new_store(tmp_path)
    with store.build(recipe(), command="first") as work:
        work.save_state({"step": 1, "of": 9})
        claim_path(store.root / ".partial" / f"{recipe().id}.lock").unlink()
        place = owner_path(work.dir)
        with pytest.raises(Busy, match="is already being made by") as busy:
            store.build(recipe(), command="second").__enter__()
        assert f"rm {place}" in busy.value.hint
        assert work.dir.exists()
        (work.dir / "model.safetensors").write_bytes(b"first")
        sweep = gc.survey(store, gc.Keep((), (), 0))
        assert "being built by process" in next(item.why for item in sweep.kept if item.kind == "unfinished")
        assert verify(store, work.commit()) == []


def test_a_claim_is_removed_by_who_made_it_only(tmp_path: Path) -> None:
    path, mine, other = tmp_path / "x.claim", claims.new("mine"), claims.new("other")
    assert claims.made(path, other)
    assert not claims.made(path, mine)
    assert not claims.removed(path, mine)
    assert claims.read(path) == other
    assert claims.removed(path, other)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP])
def test_a_claim_where_nothing_can_be_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(os, "link", no_flock(number))
    path, mine = tmp_path / "x.claim", claims.new("mine")
    assert claims.made(path, mine)
    assert not claims.made(path, claims.new("other"))
    assert claims.read(path) == mine
    assert list(tmp_path.iterdir()) == [path]


def test_a_torn_claim_counts_as_long_as_it_is_young(tmp_path: Path) -> None:
    path = tmp_path / "x.claim"
    path.write_bytes(b'{"token": "1')
    with pytest.raises(Busy, match="another process"), locked(tmp_path / "x.lock", "adpa", wait=False):
        pass
    os.utime(path, (time.time() - 120,) * 2)
    with locked(tmp_path / "x.lock", "adpa", wait=False):
        assert "process" in (holder(tmp_path / "x.lock") or "")
    assert not path.exists()


def test_a_claim_from_before_the_machine_was_started_again_is_over(tmp_path: Path) -> None:
    here = claims.Process.here()
    claim = replace(claims.new("adpa sft"), process=replace(here, kernel="an earlier start"))
    assert claims.made(tmp_path / "x.claim", claim)
    assert claim.state(tmp_path / "x.claim") == "alive"
    os.utime(tmp_path / "x.claim", (time.time() - 120,) * 2)
    assert claim.state(tmp_path / "x.claim") == "gone"
    other = replace(claim, process=replace(here, kernel="another", host="another"))
    assert other.state(tmp_path / "x.claim") == "silent"
    again = replace(claim, process=replace(here, started="12"))
    assert again.state(tmp_path / "x.claim") == "gone", "the number of a process is used again"


def test_what_a_kill_left_of_a_claim_goes_after_a_day(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    make(store)
    left, young = (store.root / ".partial" / name for name in (".x.claim.0123456789ab", ".y.owner.0123456789ab"))
    left.touch(), young.touch()
    os.utime(left, (time.time() - 2 * 86400,) * 2)
    keep = gc.Keep((), (), 14)
    gc.collect(store, gc.survey(store, keep), keep, "adpa gc")
    assert (left.exists(), young.exists()) == (False, True)


def test_a_lock_that_is_held_is_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "BEAT_SECONDS", 0.01)
    with locked(tmp_path / "x.lock", "adpa"):
        path = tmp_path / "x.claim"
        os.utime(path, (0, 0))
        deadline = time.monotonic() + 10
        while not path.stat().st_mtime:
            assert time.monotonic() < deadline
            time.sleep(0.01)
