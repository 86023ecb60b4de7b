"""Claims: files that say which process works on something. One can be made by one process only, on every file system.

A claim is written whole and then linked to its name, which fails where the name is taken. Its process touches it while
it lives and removes it in the end. A claim that stayed is `gone` when its process is known to have ended, and `silent`
when nobody can tell from here (another machine, another container) and it was not touched for a while: a silent process
may be frozen and come back, so what it works on is never written by another one.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

BEAT_SECONDS = 5.0
SILENT_SECONDS = 60.0
"""How long a claim may go untouched. Longer than a file server that is restarted keeps its clients waiting."""
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EINVAL}
_NAMELESS = ("", "localhost", "localhost.localdomain")

State = Literal["alive", "gone", "silent"]


@dataclass(frozen=True)
class Process:
    """A process as others can recognise it: `kernel` is one boot of one machine, `namespace` what `pid` counts in."""

    pid: int
    host: str
    kernel: str
    namespace: str
    started: str

    @classmethod
    def here(cls) -> Process:
        """This one."""
        pid = os.getpid()
        return cls(pid, os.uname().nodename, _kernel(), _namespace(), _started(pid))

    def has_ended(self) -> bool | None:
        """Whether it is known to have ended; None where that cannot be told from here."""
        here = Process.here()
        if (self.kernel, self.namespace) != (here.kernel, here.namespace):
            return None
        return _started(self.pid) != self.started


@functools.cache
def _kernel() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return os.uname().nodename


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _started(pid: int) -> str:
    """When a process started, in the kernel's ticks; "running" where the system does not say, "" once it has ended."""
    try:
        own = os.readlink("/proc/self") == str(os.getpid())  # else it is /proc of another namespace, or there is none
    except OSError:
        own = False
    if own:
        try:
            text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
            state, *facts = text.rpartition(")")[2].split()
            return "" if state in "ZX" else facts[18]
        except (OSError, ValueError, IndexError):
            return ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return ""
    except PermissionError:
        pass  # somebody else's
    return "running"


@dataclass(frozen=True)
class Claim:
    """What a claim says: who made it (None where it cannot be read), for which command, using which full ids.

    `token` tells it from every other claim; `kernel_lock` says that its process holds the kernel's lock besides.
    """

    token: str
    process: Process | None = None
    command: str = ""
    needs: tuple[str, ...] = ()
    kernel_lock: bool = False

    @property
    def who(self) -> str:
        """The process, for people."""
        if self.process is None:
            return "another process"
        return f"process {self.process.pid} on {self.process.host} ({self.command})"

    def state(self, path: Path, kernel_lock: bool = False) -> State:
        """Whether the process of this claim, which lies at `path`, is still at work.

        `kernel_lock` says that this process holds the kernel's lock that the other one took too, and that it excludes.
        """
        here = Process.here()
        if self.process is not None:
            if kernel_lock and self.kernel_lock and self.process.kernel == here.kernel:
                return "gone"
            ended = self.process.has_ended()
            if ended is not None:
                return "gone" if ended else "alive"
        if _seconds_untouched(path) < SILENT_SECONDS:
            return "alive"
        rebooted = self.process is not None and self.process.kernel != here.kernel
        same_host = self.process is not None and self.process.host == here.host and here.host not in _NAMELESS
        return "gone" if rebooted and same_host else "silent"


def new(command: str, needs: Sequence[str] = (), kernel_lock: bool = False) -> Claim:
    """A claim of this process."""
    return Claim(os.urandom(8).hex(), Process.here(), command, tuple(needs), kernel_lock)


def read(path: Path) -> Claim | None:
    """The claim at `path`, or None when nobody has made one."""
    try:
        status = os.stat(path)
        raw = json.loads(path.read_bytes())
        needs = tuple(str(item) for item in raw["needs"])
        process = Process(**raw["process"])
        return Claim(str(raw["token"]), process, str(raw["command"]), needs, bool(raw["kernel_lock"]))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        with contextlib.suppress(OSError, UnboundLocalError):
            return Claim(f"unreadable-{status.st_ino}-{status.st_ctime_ns}")
        return None


def made(path: Path, claim: Claim) -> bool:
    """Make a claim in one step; False where there is one already."""
    text = json.dumps(asdict(claim), ensure_ascii=False).encode()
    private = _private(path)
    private.write_bytes(text)
    try:
        os.link(private, path)
    except FileExistsError:
        # A file server that was asked twice answers so though it was us.
        return os.stat(private).st_nlink == 2
    except OSError as error:
        if error.errno in _NO_LINKS:
            return _made_alone(path, text)
        raise
    finally:
        with contextlib.suppress(OSError):
            private.unlink()
    return True


def _made_alone(path: Path, text: bytes) -> bool:
    """The same where the file system has no links: for an instant the claim is there and cannot be read."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    with os.fdopen(handle, "wb") as out:
        out.write(text)
    return True


def removed(path: Path, claim: Claim) -> bool:
    """Remove this claim and no other; False where it was not there any more.

    It is renamed, looked at and deleted: another process may have put its own in its place meanwhile.
    """
    found = read(path)
    if found is None or not _same(found, claim):
        return False
    aside = _private(path)
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return False
    found = read(aside)
    is_it = found is not None and _same(found, claim)
    if not is_it:
        with contextlib.suppress(OSError):
            os.link(aside, path)
    with contextlib.suppress(OSError):
        aside.unlink()
    return is_it


def _same(one: Claim, other: Claim) -> bool:
    # A rename changes when the file was changed, which is all that is known of one that cannot be read.
    return one.token == other.token or (one.process is None and other.process is None)


def _private(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.urandom(6).hex()}")


def _seconds_untouched(path: Path) -> float:
    """How long nobody has touched a file, by the clock of the disk or server where it lies."""
    probe = _private(path)
    try:
        touched = os.stat(path).st_mtime
    except OSError:  # it has just been given up
        return 0.0
    try:
        probe.touch()
        return os.stat(probe).st_mtime - touched
    except OSError:  # a store that this user may only look at
        return time.time() - touched
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()


@dataclass
class Beat:
    """Touches the files in `paths` now and then, as long as it is entered."""

    paths: list[Path]
    _ended: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Beat:
        threading.Thread(target=self._run, daemon=True, name="adpa-claims").start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            for path in list(self.paths):
                with contextlib.suppress(OSError):
                    os.utime(path)


@contextlib.contextmanager
def claimed(path: Path, claim: Claim, beat: Beat) -> Iterator[None]:
    """Keep a claim that was made for as long as this lasts, and give it up."""
    beat.paths.append(path)
    try:
        yield
    finally:
        beat.paths.remove(path)
        with contextlib.suppress(OSError):
            removed(path, claim)
