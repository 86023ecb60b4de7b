"""The memory of a process whose model waits beside it. A spawned process finds this module where pytest's path is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from adpa_cli.engine.models import hidden_states, load
from adpa_cli.engine.offload import layers_wait
from support.tiny_models import tiny_llama

IDS = torch.tensor([[5, 9, 7, 30, 11, 8]])


def _private() -> int:
    """Bytes of memory that this process shares with no file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])


def memory_of(folder: Path, place: Path, report: Any) -> None:
    """What a model takes of it with its layers on the disk, and here, after loading and after it has computed."""
    torch.set_num_threads(1)
    tiny_llama().save_pretrained(place / "tiny")
    hidden_states(load(place / "tiny", dtype="float16"), IDS, None, dtype="float16")  # what libraries take is taken
    ways: tuple[Any, ...] = ("disk", "none")
    for where in ways:
        before = _private()
        with layers_wait(where, place):
            model: Any = load(folder, dtype="float16")
        loaded = _private()
        hidden_states(model, IDS, None, dtype="float16")
        report.put((loaded - before, _private() - before, sorted(path.name for path in place.iterdir())))
        del model
