"""The machine as far as a plan must know it: its device, memory and disks. Asks the system, not torch."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import resource
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adpa_cli.errors import UsageError

LIBRARIES = ("adpa-cli", "torch", "transformers", "accelerate", "numpy", "tokenizers", "zstandard", "pyarrow")


def versions(more: Sequence[str] = ()) -> dict[str, str]:
    """The libraries that equal bytes depend on, by name, and `more` of them."""
    from importlib.metadata import version  # not needed by most commands, and slow to import

    return {name: version(name) for name in (*LIBRARIES, *more)}


CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
BOUNDLESS = 1 << 60  # a cgroup without a limit says a number near 2**63


@dataclass(frozen=True)
class Machine:
    """`kind` "cpu" or "cuda"; bytes of `memory` that the device has for us, of `host` memory, free on the `disk` of the
    store and on that of the `cache` of downloads (None when they are one)."""

    kind: str
    name: str
    host: str
    memory: int
    host_memory: int
    disk: int
    cache: int | None = None

    def made(self, about: Mapping[str, Any]) -> bool:
        """Whether a manifest's `made` says that it was this machine and device."""
        return about.get("host") == self.host and about.get("device") == self.name

    @classmethod
    def here(cls, root: Path) -> Machine:
        """This machine, for a store at `root`, which need not exist yet."""
        available = available_memory()
        store, cache = _existing(root), _existing(hub_cache())
        free = free_bytes(store)
        other = free_bytes(cache) if store.stat().st_dev != cache.stat().st_dev else None
        card = first_card()
        if card is None:
            return cls("cpu", "cpu", platform.node(), available, available, free, other)
        return cls("cuda", card[0], platform.node(), card[1], available, free, other)


def available_memory() -> int:
    """Bytes that a new process can use: what the kernel calls available, within the limit of a container."""
    free = BOUNDLESS
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    except OSError:
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([free, *(limit_of(Path(most), Path(used)) for most, used in CGROUPS)])


def limit_of(most: Path, used: Path) -> int:
    """What a control group still allows; boundless where there is none."""
    try:
        limit = most.read_text(encoding="ascii").strip()
        if limit == "max" or int(limit) >= BOUNDLESS:
            return BOUNDLESS
        return max(0, int(limit) - int(used.read_text(encoding="ascii")))
    except (OSError, ValueError):
        return BOUNDLESS


def forget_peak() -> None:
    """Let `peak_resident` begin anew, where the kernel lets us: else the peak is that of the process so far."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_resident() -> int:
    """The most bytes of this process that were in memory at a time."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if platform.system() == "Darwin" else most * 1024


def first_card() -> tuple[str, int] | None:
    """Name and bytes of the first card that this process may use, or None.

    Of the bytes those are left out that the driver keeps for itself, 350 MB of a card of 24 GB; an older driver does
    not tell them.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible in ("", "-1") or shutil.which("nvidia-smi") is None:
        return None
    chosen = [f"--id={visible.split(',')[0]}"] if visible else []
    for fields in ("memory.reserved,memory.total,name", "memory.total,name"):
        asked = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits", *chosen]
        with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError, IndexError):
            said = subprocess.run(
                asked, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=10, check=True
            )
            *kept, total, name = said.stdout.splitlines()[0].split(", ", fields.count(","))
            return name, (int(total) - sum(map(int, kept))) * 2**20
    return None


def torch_without_gpu() -> str | None:
    """The version of the installed torch where it is built for CPUs only; None for another, or where that is not known.

    It is read from a file of torch: importing torch takes seconds, which a plan does not have.
    """
    from importlib import metadata  # slow to import, as above

    try:
        torch = metadata.distribution("torch")
        says = Path(str(torch.locate_file("torch/version.py"))).read_text(encoding="utf-8")
    except (metadata.PackageNotFoundError, OSError, UnicodeDecodeError):
        return None
    platforms = re.findall(r"^(?:cuda|hip|xpu)\b[^=\n]*=\s*(\S+)", says, re.MULTILINE)
    return torch.version if platforms and set(platforms) == {"None"} else None


def card_words(card: str, version: str) -> str:
    """That a card is there and the installed torch, of this version, cannot compute on it."""
    return f"{card} is here, and torch {version} is built for CPUs only"


OTHER_DRIVER = (
    "update the driver, or install a torch that is built for it (https://pytorch.org); "
    "or put CUDA_VISIBLE_DEVICES= before the command to compute on the CPU"
)
"""What to type where a card is there and the installed torch cannot open it."""
OTHER_TORCH = (
    "pip install --force-reinstall torch, for a build with CUDA; "
    "or put CUDA_VISIBLE_DEVICES= before the command to compute on the CPU"
)
"""What to type where a card is there and the installed torch cannot compute on it."""


def home() -> Path | None:
    """The user's home folder; None for a user without one, as in containers: no HOME and no line in passwd, or `/`."""
    try:
        place = Path.home()
    except RuntimeError:
        return None
    return place if place.is_absolute() and place != Path(place.anchor) else None


def shown(path: Path) -> str:
    """A path as people like to read it: `~/…` below their home folder."""
    place = home()
    return f"~/{path.relative_to(place)}" if place is not None and path.is_relative_to(place) else str(path)


def expanded(path: str | Path) -> Path:
    """A path that a user typed, with the folder that its `~` stands for. Raises UsageError where there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        name = Path(path).parts[0]
        why = "this user has no home folder" if name == "~" else f"there is no user {name[1:]}"
        raise UsageError(f"{path}: {why}", f"write the whole path, or ./{path} for a folder of that name") from error


def hub_home(environ: Mapping[str, str] = os.environ) -> Path:
    """Where the Hugging Face libraries keep what is theirs; the token too."""
    cache = Path(environ.get("XDG_CACHE_HOME") or "~/.cache")
    return _as_libraries_do(environ.get("HF_HOME") or cache / "huggingface")


def hub_cache(environ: Mapping[str, str] = os.environ) -> Path:
    """Where huggingface_hub keeps downloads."""
    named = environ.get("HF_HUB_CACHE") or environ.get("HUGGINGFACE_HUB_CACHE")
    return _as_libraries_do(named) if named else hub_home(environ) / "hub"


def _as_libraries_do(path: str | Path) -> Path:
    """A path of the Hugging Face libraries: for a user without a home folder they make one that is called `~`."""
    return Path(os.path.expanduser(path))


def free_bytes(folder: Path) -> int:
    """Free bytes where a folder is or would be."""
    return shutil.disk_usage(_existing(folder)).free


def _existing(path: Path) -> Path:
    """The nearest folder at or above `path` that exists, as far as this user may look."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if os.path.exists(folder))
