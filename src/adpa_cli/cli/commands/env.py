"""`adpa env`: what this machine offers: libraries, devices, cores, memory, disks and caches.

None of the libraries is imported for it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console.streams import GLOBALS, out
from adpa_cli.report import text

if TYPE_CHECKING:
    from adpa_cli.store.store import Store

LIBRARIES = (
    "torch", "transformers", "accelerate", "tokenizers", "safetensors", "huggingface-hub", "numpy", "pyarrow",
    "zstandard", "datasets", "peft", "bitsandbytes", "liger-kernel", "flash-attn", "vllm", "deepspeed",
)  # fmt: skip
VARIABLES = ("ADPA_STORE", "HF_HUB_OFFLINE", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "LLAMA_CPP", "TMPDIR")
SIZES = ("memory", "store.free", "hub.free")


def machine_facts(store: Store, environ: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """By name, in the order of showing; sizes in bytes. A library that is not installed is None."""
    import platform

    from adpa_cli.machine import free_bytes, hub_cache, hub_home
    from adpa_cli.store.store import FORMAT

    exists = store.root.is_dir()
    cache = hub_cache(environ)
    token = os.path.expanduser(environ.get("HF_TOKEN_PATH") or hub_home(environ) / "token")
    return {
        "adpa": installed("adpa-cli"),
        "python": platform.python_version(),
        "system": platform.platform(),
        **{name: installed(name) for name in LIBRARIES},
        "devices": devices(),
        "devices.unused": unused_card(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": memory(),
        "store": str(store.root) if exists else None,
        "store.format": FORMAT if exists else None,
        "store.artifacts": len(store.artifacts(lambda error: None)) if exists else None,
        "store.free": free_bytes(store.root),
        "hub.cache": str(cache),
        "hub.free": free_bytes(cache),
        "hub.token": bool(environ.get("HF_TOKEN") or environ.get("HUGGING_FACE_HUB_TOKEN") or os.path.isfile(token)),
        **{name: environ.get(name) for name in VARIABLES},
    }


def installed(name: str) -> str | None:
    """The version of a distribution, or None."""
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def devices() -> list[str]:
    """The GPUs that the NVIDIA driver lists, with their memory; empty without any."""
    import subprocess

    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    query = [program, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError) as error:
        return [f"nvidia-smi fails: {error}"]
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]


def unused_card() -> str | None:
    """Why the first card that may be used cannot be, and what to type; None without a card, and where it can be."""
    from adpa_cli.machine import OTHER_TORCH, card_words, first_card, torch_without_gpu

    card = first_card()
    version = torch_without_gpu() if card else None
    return f"{card_words(card[0], version)}: {OTHER_TORCH}" if card and version else None


def memory(limits: Path = Path("/sys/fs/cgroup/memory.max")) -> int | None:
    """Bytes of memory that this process may use: the machine's, or less where a container sets a limit."""
    try:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    try:
        return min(whole, int(limits.read_text(encoding="ascii")))
    except (OSError, ValueError):
        return whole


def fact_text(name: str, value: Any) -> str:
    """A fact for reading."""
    if name in SIZES and value is not None:
        return text.human_size(value)
    if name == "devices" and not value:
        return "no GPU; the CPU is used"
    if isinstance(value, list):
        return " · ".join(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else str(value)


def fact_plain(value: Any) -> str:
    """A fact for a pipe; what is not there is empty."""
    if isinstance(value, list):
        return ", ".join(value)
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def env() -> None:
    """Show this machine: versions, GPUs, cores, memory, the store and the Hugging Face cache.

    adpa env · adpa env --json > env.json
    """
    from adpa_cli.store.store import Store

    facts = machine_facts(Store.find_or_empty(GLOBALS.store))
    out(
        lambda: "".join(f"{text.pad(name, 21)} {fact_text(name, value)}\n" for name, value in facts.items()),
        lambda: text.tsv((name, fact_plain(value)) for name, value in facts.items()),
        lambda: facts,
    )


COMMAND = Command("env", "Look", 6, env, also=("doctor", "system", "gpu", "gpus"))
