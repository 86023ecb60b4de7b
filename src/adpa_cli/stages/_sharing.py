"""Frozen models that processes share out: each has its part of the weights, and computes as often as the others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from adpa_cli.errors import AdpaError
from adpa_cli.spec import Runtime

if TYPE_CHECKING:
    from adpa_cli.engine.ranks import Ranks


def is_shared_out(runtime: Runtime, processes: int) -> bool:
    """Whether frozen models are shared out among processes: where that is asked for, since it is slower."""
    return runtime.shard == "all" and processes > 1


def check(spec: Any, runtime: Runtime) -> None:
    """Raise AdpaError for what the models of a capture cannot be when they are shared out."""
    others = {
        f"quantise={spec.quantise}": (bool(spec.quantise), "--runtime shard=none"),
        f"offload={runtime.offload}": (runtime.offload != "none", "--runtime offload=none"),
    }
    for what, (holds, hint) in others.items():
        if holds and is_shared_out(runtime, runtime.processes):
            raise AdpaError(f"--runtime shard=all cannot be combined with {what}", hint)


def check_prompts(in_halves: bool, label: str, stage: str) -> None:
    """Raise AdpaError where blocks are computed in halves, of which a small one has none: then processes would compute
    unequally often."""
    if in_halves:
        raise AdpaError(
            f"--runtime shard=all: {label} cannot compute a prompt once that several answers share",
            f"--set {stage}.prompts=apart",
        )


def dealt(blocks: Sequence[Any], missing: Sequence[int], ranks: Ranks) -> tuple[list[Any], int]:
    """This process's share of the blocks whose numbers the first process finds `missing`, as many as each other one's:
    the last ones are spare, and only keep others company; how many of those there are."""
    agreed = ranks.gathered({ranks.rank: missing})[0]
    by_index = {block.index: block for block in blocks}
    mine = [by_index[index] for index in ranks.share(agreed)]
    spare = -(-len(agreed) // ranks.count) - len(mine)
    return [*mine, *(by_index[agreed[0]] for _ in range(spare))], spare
