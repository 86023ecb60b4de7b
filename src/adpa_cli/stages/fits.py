"""What of a plan cannot fit on this machine, each with what would."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from adpa_cli.errors import AdpaError
from adpa_cli.spec import Runtime
from adpa_cli.stages.estimate import Estimate
from adpa_cli.stages.estimate_memory import Where
from adpa_cli.stages.estimate_time import KINDS
from adpa_cli.stages.graph import Node
from adpa_cli.stages.job import ALONE
from adpa_cli.stages.log import size_words
from adpa_cli.stages.stage_cost import Cost, memory_of, models_of, planned_rows
from adpa_cli.store.store import Store

SMALLEST = 256  # tokens: nobody is told to go below


def problems(found: Estimate, store: Store, runtime: Runtime) -> list[AdpaError]:
    """One error for the disk, one for the downloads, one for each stage that does not fit in memory."""
    memories = (error for cost in found.building for error in _memory(cost, found, store, runtime))
    return [*_disks(found, store), *memories]


def _disks(found: Estimate, store: Store) -> Iterator[AdpaError]:
    most, at = found.fullest
    machine = found.machine
    together = most + (found.download if machine.cache is None else 0)
    if together > machine.disk:
        stage = f", while {at.node.role} is made" if at else ""
        yield AdpaError(
            f"the disk of {store.root} has {size_words(machine.disk)} free; "
            f"the plan needs {size_words(together)} there{stage}",
            "free some space (adpa gc), or keep the store on another disk: --store DIR",
        )
    if machine.cache is not None and found.download > machine.cache:
        yield AdpaError(
            f"the disk of the Hugging Face cache has {size_words(machine.cache)} free; "
            f"{size_words(found.download)} are to be downloaded",
            "free some space, or keep the cache on another disk: export HF_HOME=DIR",
        )


def _memory(cost: Cost, found: Estimate, store: Store, runtime: Runtime) -> Iterator[AdpaError]:
    machine = found.machine
    if cost.memory is None:
        return
    need = cost.memory.device
    node = cost.node
    where = Where(machine.kind, 1 if node.stage in ALONE else runtime.processes)
    if need > machine.memory:
        hint, halves = _smaller(node, store, runtime, where, machine.memory)
        if not (halves and machine.kind == "cuda"):  # training halves its micro-batches on a card by itself
            yield AdpaError(
                f"{node.role} ({node.label}) needs about {size_words(need)} of memory; "
                f"{_has(found)} {size_words(machine.memory)}",
                hint,
            )
    elif cost.memory.host > machine.host_memory:
        yield AdpaError(
            f"{node.role} ({node.label}) needs about {size_words(cost.memory.host)} of memory beside the GPU's; "
            f"{size_words(machine.host_memory)} are available",
            "fewer processes (--gpus 1), or a smaller model",
        )


def _has(found: Estimate) -> str:
    return f"{found.machine.name} has" if found.machine.kind == "cuda" else "this machine has available"


def _smaller(node: Node, store: Store, runtime: Runtime, where: Where, room: int) -> tuple[str, bool]:
    """What would make a stage fit, and whether a smaller micro-batch of training alone does."""
    rows, models = planned_rows(node, store, runtime)[0], models_of(node, store)

    def fits(stage: Node, run: Runtime, at: Where) -> bool:
        return memory_of(stage, rows, models, run, at).device <= room

    if KINDS[node.stage] == "training":
        if found := _leaner(node, runtime, lambda stage, run: fits(stage, run, where)):
            return found
    else:
        tokens = _halved(
            node.spec.block_tokens,
            lambda n: fits(replace(node, spec=replace(node.spec, block_tokens=n)), runtime, where),
        )
        if tokens:
            return f"--set {node.stage}.block_tokens={tokens}", False
    one = Where(where.kind)
    if where.kind == "cpu" and where.processes > 1 and fits(node, replace(runtime, processes=1), one):
        return "--gpus 1: on a CPU every process holds the whole model", False
    if node.stage == "dpo-teacher" or node.role == "reference teacher":
        return "a ready pair, which is not trained: --teacher tulu-3-8b or zephyr-7b; or a smaller teacher", False
    if KINDS[node.stage] == "training":
        return "a smaller student (adpa models), or a machine with more memory", False
    return "a smaller model (adpa models), or a machine with more memory", False


def _leaner(node: Node, runtime: Runtime, fits: Callable[[Node, Runtime], bool]) -> tuple[str, bool] | None:
    """What makes a training fit, what costs least first, and whether smaller micro-batches are all."""
    again = replace(runtime, recompute=True)
    small = replace(node, spec=replace(node.spec, weights="bfloat16"))
    recompute, weights = "--runtime recompute=true", f"--set {node.stage}.weights=bfloat16"
    ways = (
        (node, runtime, ""), (node, again, recompute), (small, runtime, weights),
        (small, again, f"{recompute} {weights}"),
    )  # fmt: skip
    for stage, run, words in ways:
        if words and fits(stage, run):
            return words, False

        def with_tokens(tokens: int, stage: Node = stage, run: Runtime = run) -> bool:
            return fits(stage, replace(run, tokens_per_device=tokens))

        if tokens := _halved(run.tokens_per_device, with_tokens):
            return f"{words} --tokens-per-device {tokens}".lstrip(), not words
    return None


def _halved(start: int, fits: Callable[[int], bool]) -> int | None:
    """`start` halved until it fits; None when not even the smallest does."""
    tokens = start // 2
    while tokens >= SMALLEST:
        if fits(tokens):
            return tokens
        tokens //= 2
    return None
