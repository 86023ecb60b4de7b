"""Rollouts that servers of vLLM draw: which release of it, and for which models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from adpa_cli.engine.generation.vllm_server import Server, release, release_of_program
from adpa_cli.errors import UsageError
from adpa_cli.planning.adapters import adapter_of
from adpa_cli.stages import Input
from adpa_cli.stages.rollout import NO_SERVER, SERVERS, RolloutSpec
from adpa_cli.store.store import Store


def by_vllm(spec: RolloutSpec, model: Input, urls: Sequence[str], store: Store) -> RolloutSpec:
    """The spec of a rollout with the release of vLLM that draws it, which the servers or the executable say.

    Raises UsageError for an adapter, for servers of several releases, and where there is neither server nor executable.
    """
    if adapter_of(model, store) is not None:
        raise UsageError(
            f"{model.label} is an adapter, and vLLM draws from whole weights: adapters are not merged on the way",
            f"merge it into a folder and name that: adpa export {model.label} ./merged; or --set rollout.engine=hf",
        )
    if spec.engine_version:
        return spec
    if urls:
        servers = [Server(url) for url in urls]
        releases = {release(server): server.place for server in servers}
        if len(releases) > 1:
            listed = ", ".join(f"vLLM {number} at {place}" for number, place in releases.items())
            raise UsageError(f"the servers run several releases: {listed}", "use servers of one release")
        return replace(spec, engine_version=next(iter(releases)))
    if not spec.vllm:
        raise UsageError(NO_SERVER, SERVERS)
    return replace(spec, engine_version=release_of_program(spec.vllm))
