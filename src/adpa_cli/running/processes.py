"""`adpa` in several processes: rank 0 is the command line, the others compute the jobs that it hands to them.

They meet in the store of torch's rendezvous, whoever launched them, and make torch's process group. Each of the others
keeps a connection to rank 0 besides: jobs, stops and failures go over it, and one that closes tells of a death at once,
whatever the others compute. Only rank 0 plans, speaks, and writes to the store's public part.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import queue
import secrets
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener, answer_challenge, deliver_challenge, wait
from pathlib import Path
from typing import Any, NoReturn

from adpa_cli.data.tables import heeding, watching
from adpa_cli.errors import AdpaError, Stopped
from adpa_cli.machine import versions
from adpa_cli.running import launchers
from adpa_cli.stages import Job, Monitor, compute, every

MEET = timedelta(minutes=10)
"""How long processes wait for each other at the start."""
HANG = timedelta(hours=6)
"""How long one waits for a sum over all; a death is known long before."""
LINE, OVER = "adpa/line", "adpa/over"
"""Where the store says how to reach rank 0, and that a process needs it no more."""
GRACE_SECONDS = 5.0
"""What rank 0 takes at most to notice by itself that another process failed."""
LOOK_SECONDS = 0.1

Facts = dict[str, Any]


class Team:
    """What rank 0 has of the others: a connection to each, by rank."""

    def __init__(
        self, lines: Mapping[int, Connection], hosts: Mapping[int, str], leave: Callable[[AdpaError], int], store: Any
    ) -> None:
        self._lines, self._hosts, self._leave, self._store = lines, hosts, leave, store
        self._ended: set[int] = set()
        self._timer: threading.Timer | None = None
        self._groups, self._is_broken = 1, False
        self._told = False
        self.asked: str | None = None
        """The signal that another process was stopped by."""
        self.failure: AdpaError | None = None
        """What another process failed with."""
        threading.Thread(target=self._listen, daemon=True).start()

    @property
    def count(self) -> int:
        """How many processes there are, rank 0 among them."""
        return len(self._lines) + 1

    def compute(self, job: Job, monitor: Monitor, threads: int) -> None:
        """Compute a job together; raises what the first failing process raised, Stopped where one was stopped.

        Where all have ended it by then, as they do when what is wrong is wrong in each, they can compute another one.
        """
        self._ended.clear()
        try:
            self._compute(job, monitor, threads)
        except Stopped:
            raise
        except AdpaError as error:
            self._begin_again(error)
            raise

    def _compute(self, job: Job, monitor: Monitor, threads: int) -> None:
        self._say(job=job.to_json(), threads=threads)
        own = replace(monitor, stop=lambda: self._stop(monitor))
        try:
            compute(job, own, 0, self.count)
        except Stopped as stopped:
            self._say(stop=stopped.signal_name)
            if every()[job.stage].kind != "training":  # there they stop at the same step, which is saved
                self._wait(monitor)
            raise
        except AdpaError:
            raise
        except Exception as error:
            if (cause := self._cause()) is not None:
                raise cause from error
            raise
        self._wait(own)
        if self.asked is not None:
            raise Stopped(self.asked, f"{Stopped.opening(self.asked)}; finished blocks are saved")

    def _stop(self, monitor: Monitor) -> str | None:
        """The signal that one of the processes got, which the others are told; raises what one failed with."""
        if self.failure is not None:
            raise self.failure
        asked = monitor.stop() or self.asked
        if asked is not None and not self._told:
            self._told = True
            self._say(stop=asked)
        return asked

    def _wait(self, monitor: Monitor) -> None:
        """Until all others have done their share, or were stopped."""
        while self.failure is not None or len(self._ended) < len(self._lines):
            if self.failure is not None:
                raise self.failure
            monitor.stop()
            time.sleep(LOOK_SECONDS)

    def _begin_again(self, error: AdpaError) -> None:
        """Be ready for another job, in a new group, if none of the others hangs in this one; else let this process
        end."""
        until = time.monotonic() + GRACE_SECONDS / 2
        while len(self._ended) < len(self._lines):
            if self._is_broken or time.monotonic() > until:
                self._fail(error)
                return
            time.sleep(LOOK_SECONDS)
        if self._timer is not None:
            self._timer.cancel()
        self.failure = self._timer = None
        self._groups += 1
        self._say(group=self._groups)
        _make_group(self._store, self._groups)

    def _cause(self) -> AdpaError | None:
        """Why a sum over all processes broke off: one has left it."""
        for _ in range(int(GRACE_SECONDS / 2 / LOOK_SECONDS)):
            if self.failure is not None:
                return self.failure
            if self.asked is not None:
                return Stopped(self.asked, f"{Stopped.opening(self.asked)}; finished stages are saved")
            time.sleep(LOOK_SECONDS)
        return None

    def _say(self, **message: Any) -> None:
        for line in self._lines.values():
            with contextlib.suppress(OSError):  # the listener hears of one that has gone
                line.send(message)

    def _listen(self) -> None:
        """Take in what the others say, in a thread of its own."""
        ranks = {line: rank for rank, line in self._lines.items()}
        stopped: set[int] = set()
        while ranks:
            for line in wait(list(ranks)):
                if not isinstance(line, Connection):
                    continue
                rank = ranks[line]
                try:
                    message = line.recv()
                except (EOFError, OSError):
                    del ranks[line]
                    if rank not in stopped:
                        self._is_broken = True
                        who = f"process {rank} of {self.count} on {self._hosts[rank]}"
                        self._fail(AdpaError(f"{who} was killed, or left without a word", launchers.KILLED))
                    continue
                if "error" in message:
                    failure = AdpaError(message["error"], message["hint"])
                    failure.exit_code = message["code"]  # of the class it had over there
                    self._fail(failure)
                    if not message["again"]:
                        self._is_broken = True
                        continue
                if "stopped" in message:
                    stopped.add(rank)
                    self.asked = self.asked or message["stopped"]
                self._ended.add(rank)

    def _fail(self, failure: AdpaError) -> None:
        """Let the work here end by itself, which a sum on a card or a long block may not do."""
        if self.failure is None:
            self.failure = failure
            self._timer = threading.Timer(GRACE_SECONDS, lambda: os._exit(self._leave(failure)))
            self._timer.daemon = True
            self._timer.start()


team: Team | None = None
"""What this process leads, once it does."""


def failed() -> bool:
    """Whether another process has failed, so that this one is ending: what its launcher signals then is no wish."""
    return team is not None and team.failure is not None


def ignore_the_end_of_others() -> None:
    """Die of SIGTERM outside of a command's work as ever, but not before it is said that another process failed."""

    def handle(number: int, frame: object) -> None:
        if not failed():
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, handle)


def lead(leave: Callable[[AdpaError], int]) -> None:
    """Meet the other processes, where a launcher started several and they have not met; this one is rank 0.

    `leave` says an error, and returns the exit code; it is called where a failure of another process must end this one
    whatever it does. Raises AdpaError where another process could not compute the same bytes.
    """
    global team
    _, count = launchers.place()
    if count == 1 or team is not None:
        return
    key = secrets.token_bytes(32)
    listener = Listener(("", 0), backlog=count)
    callers = _callers(listener, key)
    store = _store()
    store.set(LINE, json.dumps({"port": listener.address[1], "key": key.hex()}))
    lines, facts = {}, {0: _facts()}
    for _ in range(count - 1):
        try:
            line, said = callers.get(timeout=MEET.total_seconds())
        except queue.Empty:
            absent = ", ".join(str(rank) for rank in range(count) if rank not in facts)
            raise AdpaError(
                f"of {count} processes these have not come: {absent}",
                "see in the launcher's output why they did not start; every node must reach the first one, "
                f"{platform.node()}, at any port",
            ) from None
        lines[said["rank"]], facts[said["rank"]] = line, said
    listener.close()
    check_alike(facts)
    _make_group(store)
    team = Team(lines, {rank: said["host"] for rank, said in facts.items()}, leave, store)


def _callers(listener: Listener, key: bytes) -> queue.SimpleQueue[tuple[Connection, Facts]]:
    """Those that know the key, and what they say first. Others hold nobody up: a scan of ports, or a connection that
    says nothing."""
    callers: queue.SimpleQueue[tuple[Connection, Facts]] = queue.SimpleQueue()

    def greet(line: Connection) -> None:
        with contextlib.suppress(AuthenticationError, EOFError, OSError):
            deliver_challenge(line, key)
            answer_challenge(line, key)
            callers.put((line, line.recv()))

    def answer() -> None:
        with contextlib.suppress(OSError):  # it is closed
            while True:
                threading.Thread(target=greet, args=(listener.accept(),), daemon=True).start()

    threading.Thread(target=answer, daemon=True).start()
    return callers


def end() -> None:
    """Let the others go that no job ever reached; those of a team leave when their connection closes."""
    if launchers.place()[1] == 1 or team is not None:
        return
    with contextlib.suppress(Exception):  # whoever is gone needs it no more
        store = _store()
        store.set(LINE, "")
        if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # it outlives this process
            return
        store.wait([f"{OVER}/{rank}" for rank in range(1, launchers.place()[1])], timedelta(seconds=30))


def check_alike(facts: Mapping[int, Facts]) -> None:
    """Raise AdpaError for processes that would not compute the same bytes, or share a card."""
    own = facts[0]
    for rank, other in sorted(facts.items()):
        where = f"process {rank} on {other['host']}"
        for name, version in own["versions"].items():
            if other["versions"].get(name) != version:
                raise AdpaError(
                    f"{where} has {name} {other['versions'].get(name)}, and process 0 on {own['host']} has {version}",
                    "use one environment on all nodes",
                )
        if other["threads"] != own["threads"]:
            raise AdpaError(
                f"{where} computes with {other['threads']} threads, and process 0 on {own['host']} with "
                f"{own['threads']}; results have the same bytes for one number of threads only",
                f"set it for all: export OMP_NUM_THREADS={min(other['threads'], own['threads'])}",
            )
    seen: dict[tuple[str, str], int] = {}
    for rank, other in sorted(facts.items()):
        first = seen.setdefault((other["host"], other["card"]), rank)
        if other["card"] and first != rank:
            raise AdpaError(
                f"processes {first} and {rank} on {other['host']} have one card, for there are more processes than "
                "cards",
                "start as many processes as there are cards, as --gpus all does",
            )


def serve() -> NoReturn:
    """The life of a process that is not rank 0: it computes what it is handed, until rank 0 leaves.

    Its exit status is 0 also where it fails: rank 0 says so, and launchers end rank 0 when another one fails.
    """
    speak = _silenced()
    try:
        os._exit(_served())
    except BaseException:
        speak(traceback.format_exc())
        os._exit(1)


def _served() -> int:
    rank, _ = launchers.place()
    store = _store()
    store.wait([LINE], HANG)  # a signal ends it meanwhile: nothing has begun
    address = store.get(LINE)
    if not address:
        store.set(f"{OVER}/{rank}", "")
        return 0
    at = json.loads(address)
    line = Client((os.environ["MASTER_ADDR"], at["port"]), authkey=bytes.fromhex(at["key"]))
    received: list[str] = []
    for name in Stopped.heeded():
        signal.signal(getattr(signal, name), lambda number, _: received.append(signal.Signals(number).name))
    line.send(_facts())
    jobs: queue.SimpleQueue[Facts] = queue.SimpleQueue()
    threading.Thread(target=_hear, args=(line, jobs, received), daemon=True).start()
    _make_group(store)
    while True:
        asked = jobs.get()
        if "group" in asked:
            _make_group(store, asked["group"])
            continue
        said = _computed(Job.from_json(asked["job"]), asked["threads"], received)
        line.send(said)
        if "finished" not in said and not said.get("again"):
            return 0


def _hear(line: Connection, jobs: queue.SimpleQueue[Facts], received: list[str]) -> None:
    """Take in what rank 0 says, and leave with it."""
    while True:
        try:
            message = line.recv()
        except (EOFError, OSError):
            os._exit(0)
        if "stop" in message:
            received.append(message["stop"])
        else:
            jobs.put(message)


def _computed(job: Job, threads: int, received: list[str]) -> Facts:
    """Compute this process's share of a job; what to tell rank 0."""
    from adpa_cli.engine.device import prepare

    rank, count = launchers.place()
    who = f"process {rank} on {platform.node()}"
    prepare(threads)
    monitor = Monitor(stop=lambda: received[0] if received else None)
    try:
        check_files(job, who)
        with watching(heeding(monitor.stop, lambda what, done, of: None)):
            compute(job, monitor, rank, count)
    except Stopped as stopped:
        return {"stopped": stopped.signal_name}
    except AdpaError as error:
        return {"error": error.message, "hint": error.hint, "code": error.exit_code, "again": True}
    except Exception as error:
        crash = traceback.format_exc()
        return {
            "error": f"{who} failed: {type(error).__name__}: {error}\n{crash}",
            "hint": "",
            "code": 1,
            "again": False,
        }
    return {"finished": True}


def check_files(job: Job, who: str) -> None:
    """Raise AdpaError where a process does not see the store that rank 0 works in, or a model that is read."""
    paths = [job.folder, *(item.path for items in job.inputs.values() for item in items if item.kind != "data")]
    for path in paths:
        if not Path(path).exists():
            raise AdpaError(
                f"{who} does not see {path}",
                "put the store (--store DIR) and the cache of the hub (HF_HOME) where all nodes see them",
            )


def _facts() -> Facts:
    """What must be alike in all processes, and what must not."""
    import torch

    from adpa_cli.engine.device import device

    card = str(torch.cuda.get_device_properties(device()).uuid) if torch.cuda.is_available() else ""
    known = {**versions(), "python": platform.python_version(), "machine": platform.machine()}
    threads = threads_of(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return {
        "rank": launchers.place()[0], "host": platform.node(), "versions": known, "threads": threads, "card": card,
    }  # fmt: skip


def threads_of(processes: int) -> int:
    """The threads of each of some processes of this machine: what OMP_NUM_THREADS says, else an equal share of the
    cores that this process may use."""
    if os.environ.get("OMP_NUM_THREADS", "").isdigit():
        return int(os.environ["OMP_NUM_THREADS"])
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // processes)


def _store() -> Any:
    """The store of torch's rendezvous, as the launcher's variables tell."""
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://", timeout=MEET))
    return store


def _make_group(store: Any, number: int = 1) -> None:
    """Make torch's process group, in place of the one before: nothing that was sent in that arrives in this."""
    import torch
    from torch.distributed import distributed_c10d

    from adpa_cli.engine.device import device

    rank, count = launchers.place()
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(torch.device(device()))
    if distributed_c10d.is_initialized():
        distributed_c10d.destroy_process_group()
    own = distributed_c10d.PrefixStore(f"adpa/group/{number}", store)
    distributed_c10d.init_process_group(backend, store=own, rank=rank, world_size=count, timeout=HANG)


def _silenced() -> Callable[[str], int]:
    """Point stdout and stderr at nothing; returns what still speaks, for a crash."""
    import faulthandler

    kept = os.dup(2)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    faulthandler.enable(kept)
    return lambda text: os.write(kept, text.encode())
