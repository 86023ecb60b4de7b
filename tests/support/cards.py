"""Machines with a card, as a plan sees them: stand-ins for `nvidia-smi` and for the installed torch."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from adpa_cli import machine
from adpa_cli.estimate import cost
from adpa_cli.store.store import Store
from support.cli_samples import write_rows
from support.fake_hub import Hub
from support.store_samples import new_store

CARD, RESERVED = "NVIDIA GeForce RTX 4090", 347
"""What stands for every card, and the MiB that its driver keeps."""
MEBIBYTES = {8: 8_188, 24: 24_564, 80: 81_559}
"""Of cards that are sold with so many GB."""
DRIVER = """#!/bin/sh
case "$1" in
--query-gpu=memory.reserved,memory.total,name) echo '{reserved}, {total}, {card}' ;;
--query-gpu=memory.total,name) echo '{total}, {card}' ;;
*) echo '{card}, {total} MiB, 580.65' ;;
esac
"""


def room(gigabytes: int) -> int:
    """Bytes that a card has for programs."""
    return (MEBIBYTES[gigabytes] - RESERVED) * 2**20


def write_driver(folder: Path, patch: pytest.MonkeyPatch, gigabytes: int = 24) -> Path:
    """A stand-in for `nvidia-smi` that lists one card."""
    folder.mkdir(exist_ok=True)
    program = folder / "nvidia-smi"
    program.write_text(DRIVER.format(reserved=RESERVED, total=MEBIBYTES[gigabytes], card=CARD))
    program.chmod(0o755)
    patch.setenv("PATH", f"{folder}:/bin:/usr/bin")
    patch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return program


def write_torch(folder: Path, patch: pytest.MonkeyPatch, version: str, cuda: str | None) -> None:
    """A stand-in for an installed torch, as far as it is read without being imported."""
    (folder / "torch").mkdir(parents=True)
    (folder / f"torch-{version}.dist-info").mkdir()
    (folder / f"torch-{version}.dist-info" / "METADATA").write_text(f"Name: torch\nVersion: {version}\n")
    lines = ("from typing import Optional", f"__version__ = {version!r}", f"cuda: Optional[str] = {cuda!r}")
    (folder / "torch" / "version.py").write_text("\n".join((*lines, "hip: Optional[str] = None\n")))
    patch.syspath_prepend(str(folder))


def store_beside_card(folder: Path, patch: pytest.MonkeyPatch, host: int = 24 * 10**9, disk: int = 10**12) -> Store:
    """A store on a machine with a card of 24 GB and a CUDA build of torch; bytes of its memory and its disk."""
    write_driver(folder / "bin", patch)
    write_torch(folder / "site", patch, "2.13.0", "13.0")
    patch.setattr(machine, "available_memory", lambda: host)
    patch.setattr(machine, "free_bytes", lambda folder: disk)
    made = new_store(folder)
    here = machine.Machine.here(made.root)
    threads = machine.os.environ["OMP_NUM_THREADS"]
    forms = {cost.products_of(dtype, "cuda") for dtype in ("float32", "tf32", "bfloat16", "float16")}
    speed = {"speed": 1e14, "measured": 1, "at": time.time()}
    known = {f"{here.host} {here.name} {form} {threads}": speed for form in forms}
    (made.root / cost.REMEMBERED).write_text(json.dumps(known))
    return made


def add_data(hub: Hub, folder: Path, pairs: Sequence[Any], dialogues: Sequence[Any]) -> None:
    """Put rows onto a hub as the data of the families whose data are the paper's."""
    for name, rows in (("argilla/dpo-mix-7k", pairs), ("HuggingFaceH4/deita-10k-v0-sft", dialogues)):
        place = folder / name.rpartition("/")[2]
        place.mkdir()
        write_rows(place / "train.jsonl", rows)
        hub.add(f"datasets/{name}", place)
