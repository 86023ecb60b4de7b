"""Who started this process, and with how many others: torchrun, `accelerate launch`, srun, or `--gpus N` itself.

`--gpus N` runs the same command line again in N processes under torch's elastic agent, which forwards signals and ends
all of them when one dies. This process keeps stdin and the exit code: a launcher turns every failure into 1, so rank 0
leaves its own code in a file.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from adpa_cli.errors import AdpaError, Stopped, UsageError

RESULT = "ADPA_RESULT"
"""The file in which rank 0 leaves its exit code for the process that launched it, whose number the name ends with."""
SAVE_SECONDS = 3600
"""What a step and its resume point may take after a signal, before a process is killed."""
LOOK_SECONDS = 0.5
PORTS = range(15000, 31000)
WRAPPERS = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed", "ACCELERATE_USE_FSDP": "accelerate's FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}  # fmt: skip


class Several(Exception):
    """The command goes on in `count` processes, of `threads` each."""

    def __init__(self, count: int, threads: int) -> None:
        super().__init__(f"{count} processes")
        self.count, self.threads = count, threads


def place(environ: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """(this process's rank, how many there are), as the launcher says; (0, 1) without one."""
    if environ.get("RANK", "").isdigit() and environ.get("WORLD_SIZE", "").isdigit():
        return int(environ["RANK"]), int(environ["WORLD_SIZE"])
    # Only srun sets the first: a batch script has the number of tasks too, and is one process.
    if environ.get("SLURM_STEP_NUM_TASKS", "").isdigit() and environ.get("SLURM_PROCID", "").isdigit():
        return int(environ["SLURM_PROCID"]), int(environ["SLURM_STEP_NUM_TASKS"])
    return 0, 1


def slurm_as_torch(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables that torch reads, from those of srun; empty under another launcher."""
    rank, count = place(environ)
    if "RANK" in environ or count == 1:
        return {}
    address = _first_node(environ.get("SLURM_STEP_NODELIST", "")) or environ.get("SLURM_LAUNCH_NODE_IPADDR", "")
    if not address:
        raise AdpaError(
            "srun does not say on which node its first process runs (SLURM_STEP_NODELIST is empty)",
            "start the processes by torchrun, or name the node: export SLURM_LAUNCH_NODE_IPADDR=ADDRESS",
        )
    # The steps of a job may run beside each other.
    number = 31 * int(environ.get("SLURM_JOB_ID", "0")) + int(environ.get("SLURM_STEP_ID", "0"))
    return {
        "RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": environ.get("SLURM_LOCALID", "0"),
        "LOCAL_WORLD_SIZE": environ.get("SLURM_STEP_TASKS_PER_NODE", "1").partition("(")[0].partition(",")[0],
        "MASTER_ADDR": environ.get("MASTER_ADDR", address),
        "MASTER_PORT": environ.get("MASTER_PORT", str(PORTS[number % len(PORTS)])),
    }  # fmt: skip


def _first_node(nodes: str) -> str:
    """The first name in a list as Slurm writes it: `gpu[007-009,012],big1` begins with `gpu007`."""
    match = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\]([^,]*))?", nodes)
    return "" if match is None else "".join(part or "" for part in match.groups())


def refuse_wrappers(environ: Mapping[str, str] = os.environ) -> None:
    """Raise UsageError where a launcher asks for another engine of training, or for other numbers in it."""
    for name, engine in WRAPPERS.items():
        if environ.get(name, "").lower() in ("1", "true", "yes"):
            raise UsageError(
                f"the launcher asks for {engine} ({name}={environ[name]}), which is not offered: several processes "
                "train with torch's own fully_shard",
                "start plain processes, as accelerate launch --multi_gpu does, or torchrun; "
                "--runtime shard=all shares the weights among them",
            )
    precision = environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision not in ("", "no"):
        raise UsageError(
            f"the launcher asks for mixed precision (ACCELERATE_MIXED_PRECISION={precision}), which is a setting of "
            "each stage here, and part of its id",
            "accelerate launch --mixed_precision no, and --set dtype=bfloat16 or another",
        )


def is_launched() -> bool:
    """Whether `--gpus N` started this process: then the one before it has shown the plan and asked."""
    return RESULT in os.environ


def leave_with_the_launcher() -> None:
    """End this process when the one that launched it is gone: killed, it has told nobody to stop."""

    def look(launcher: int) -> None:
        while os.getppid() == launcher:
            time.sleep(LOOK_SECONDS)
        os._exit(1)

    if is_launched():  # it may be gone already, and this process another one's child
        launcher = int(Path(os.environ[RESULT]).suffix[1:])
        threading.Thread(target=look, args=(launcher,), daemon=True).start()


def leave_code(code: int) -> str:
    """Tell whoever launched this process its exit code; what to say of it where a launcher would make it 1."""
    if is_launched():
        Path(os.environ[RESULT]).write_text(str(code), encoding="ascii")
        return ""
    return f"adpa: the exit status is {code}\n" if code > 1 and "TORCHELASTIC_RUN_ID" in os.environ else ""


def launch(words: Sequence[str], several: Several) -> int:
    """Run `adpa WORDS` in several processes of this machine; the exit code of rank 0.

    Raises AdpaError, which says how it ended, where it left none.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    for name in logging.root.manager.loggerDict:  # each has a level of its own
        if name.startswith("torch.distributed.elastic"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    failure: AdpaError | None = None
    with tempfile.TemporaryDirectory(prefix="adpa-") as folder:
        result = Path(folder) / f"result.{os.getpid()}"
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=several.count, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
            rdzv_endpoint="localhost:0", local_addr="localhost", max_restarts=0, shutdown_timeout=SAVE_SECONDS,
            signals_to_handle=",".join(name for name in Stopped.heeded() if name != "SIGALRM"),
            logs_specs=DefaultLogsSpecs(log_dir=folder),
        )  # fmt: skip
        with _environment(RESULT, str(result)), _environment("OMP_NUM_THREADS", str(several.threads)), _handlers():
            try:
                elastic_launch(config, sys.executable)("-m", "adpa_cli", *words)
            except SignalException as error:
                name = signal.Signals(error.sigval).name
                failure = Stopped(name, f"{Stopped.opening(name)}; everything that was finished is saved")
            except ChildFailedError as error:
                rank, died = error.get_first_failure()
                failure = death(rank, several.count, died.exitcode)
        if result.exists():
            return int(result.read_text(encoding="ascii"))
    raise failure or AdpaError("the first process ended without a word", "repeat the command to continue")


def death(rank: int, count: int, status: int) -> AdpaError:
    """How a process ended that said nothing of it; a negative `status` is that of a signal."""
    who = f"process {rank} of {count}"
    if status >= 0:
        return AdpaError(f"{who} failed with exit status {status}", "its own error is printed above")
    name = signal.Signals(-status).name
    return AdpaError(f"{who} was killed by {name}", KILLED if name == "SIGKILL" else "repeat the command to continue")


KILLED = (
    "the system does this when memory runs out (see dmesg): use fewer processes, or a smaller --tokens-per-device; "
    "the same command continues"
)


@contextlib.contextmanager
def _handlers() -> Iterator[None]:
    """Put back the handlers of signals afterwards, which torch's agent replaces."""
    before = {name: signal.getsignal(getattr(signal, name)) for name in Stopped.heeded()}
    try:
        yield
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), signal.SIG_DFL if handler is None else handler)


@contextlib.contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
