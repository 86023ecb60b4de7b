"""Frozen models that processes share out: each has its part of the weights, and all make each forward pass together."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from adpa_cli.errors import AdpaError, Stopped
from adpa_cli.spec import Runtime
from adpa_cli.stages import Job, Monitor


def is_shared_out(runtime: Runtime, processes: int) -> bool:
    """Whether frozen models are shared out among processes: where a plan finds that one card is too small for the
    whole, or where that is asked for, since it is slower."""
    return runtime.shard == "all" and processes > 1


def check(spec: Any, runtime: Runtime) -> None:
    """Raise AdpaError for what models cannot be when they are shared out."""
    others = {
        f"quantise={spec.quantise}": (bool(spec.quantise), "--runtime shard=none"),
        f"offload={runtime.offload}": (runtime.offload != "none", "--runtime offload=none"),
    }
    for what, (holds, hint) in others.items():
        if holds and is_shared_out(runtime, runtime.processes):
            raise AdpaError(f"--runtime shard=all cannot be combined with {what}", hint)


@contextlib.contextmanager
def together(job: Job, monitor: Monitor, processes: int) -> Iterator[Monitor]:
    """Around the work with one frozen model that is loaded in it. Where processes share it out, each of them comes here
    equally often, and stays until all have done their work; the monitor to use meanwhile tells of signals that reached
    any of them. Raises Stopped in all of them then."""
    if not is_shared_out(job.runtime, processes):
        yield monitor
        return
    from adpa_cli.engine.offload import placing
    from adpa_cli.engine.ranks import Ranks
    from adpa_cli.engine.sharding import Company

    company = Company(Ranks.here(), monitor.stop)
    company.agree()
    if company.asked is None:
        try:
            with placing(company):
                yield replace(monitor, stop=lambda: company.asked)
        except Stopped:
            company.accompany()
            raise
        company.accompany()
    if company.asked is not None:
        raise Stopped(company.asked, f"{Stopped.opening(company.asked)}; finished blocks are saved")


def alone(job: Job, processes: int) -> contextlib.AbstractContextManager[None]:
    """Around what the first process does by itself with models that are shared out later: their layers wait in the
    memory of the machine."""
    from adpa_cli.engine.offload import layers_wait

    return layers_wait("cpu" if is_shared_out(job.runtime, processes) else job.runtime.offload, job.folder)


def is_any_left(job: Job, todo: Sequence[Any], processes: int) -> bool:
    """Whether this process has work; where models are shared out, whether any process has."""
    if not is_shared_out(job.runtime, processes):
        return bool(todo)
    from adpa_cli.engine.ranks import Ranks

    return Ranks.here().summed([float(len(todo))]) != [0.0]
