"""What people are told of an adapter: what it is, which model it belongs to, and what to type to use it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adpa_cli.errors import AdpaError
from adpa_cli.hub.adapter_folder import AdapterFolder
from adpa_cli.hub.model_folder import ModelFolder
from adpa_cli.hub.repository import title
from adpa_cli.report.text import number
from adpa_cli.store.manifest import FILE_NAME

VLLM_RANK = 16
"""The greatest rank that vLLM takes unless it is told of another."""


@dataclass(frozen=True)
class Facts:
    """An adapter as it is shown; `base` is its base by name, which may be `of_hub`; `problem` says why that is not at
    hand, "" where it is."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    quantise: str | None
    base: str
    of_hub: bool
    problem: str = ""

    def items(self) -> list[str]:
        """Name and value of each."""
        stored = [f"trained beside {self.quantise} weights"] if self.quantise else []
        return [f"rank {self.rank}", f"alpha {number(self.alpha)}", f"beside {', '.join(self.targets)}",
                f"of {self.base}", *stored]  # fmt: skip

    def record(self) -> Mapping[str, Any]:
        """The same as JSON."""
        return {
            "rank": self.rank, "alpha": self.alpha, "targets": list(self.targets), "base": self.base,
            "quantise": self.quantise, **({"problem": self.problem} if self.problem else {}),
        }  # fmt: skip


def facts_of(folder: Path) -> Facts | None:
    """What there is to say of the adapter in a folder; None for another folder, or one that cannot be read."""
    try:
        adapter = AdapterFolder.of(folder)
    except AdpaError:
        return None
    if adapter is None:
        return None
    targets = tuple(dict.fromkeys(name.rpartition(".")[2] for name in adapter.targets))
    shared = (adapter.rank, adapter.alpha, targets, adapter.quantise)
    try:
        return Facts(*shared, base_title(adapter), adapter.is_of_hub)
    except AdpaError as error:
        named = adapter.base_name or "a model that it does not name"
        return Facts(*shared, named, adapter.is_of_hub, f"{error.message}; {error.hint}")


def base_title(adapter: AdapterFolder) -> str:
    """How people call the base of an adapter. Raises AdpaError where it is not there."""
    base = adapter.base
    return f"{base.parent.name}/{base.name}" if (base / FILE_NAME).is_file() else title(base)


def usage(folder: Path, name: str) -> tuple[str, ...]:
    """Lines on what to do with a folder that other programs may take for a whole model; none for one that is.

    Raises AdpaError where the base is not there.
    """
    adapter = AdapterFolder.of(folder)
    if adapter is None:
        return ()
    whole = ModelFolder.of(folder)
    own = f" --tokenizer {folder}" if whole.template != whole.whole.template else ""
    rank = f" --max-lora-rank {adapter.rank}" if adapter.rank > VLLM_RANK else ""
    served = name.replace("/", "-")
    return (
        f"{name} is an adapter of {base_title(adapter)}: the folder has no whole weights; its base is {adapter.base}",
        f"serve the two: vllm serve {adapter.base} --enable-lora --lora-modules {served}={folder}{rank}{own}",
        f"or merge them into whole weights: adpa export {name} DIR",
    )
