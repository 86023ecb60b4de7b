"""`adpa reward-model` as a plan, and what `--reward-model` means to other commands."""

from __future__ import annotations

from collections.abc import Sequence

from adpa_cli.families import Alias, ReadyPair
from adpa_cli.stages.graph import Input, Node
from adpa_cli.stages.names import Names
from adpa_cli.stages.plan import Plan, Planner
from adpa_cli.stages.requests import data_for, reference_model
from adpa_cli.stages.settings import Given, check_own

OPTION = "--reward-model"


def plan_reward_model(names: Names, given: Given, model: str, data: Sequence[str], sft_data: Sequence[str]) -> Plan:
    """`adpa reward-model --model M [--data D]`."""
    planner = Planner(names, given, ("reward-model",))
    check_own(given, [("reward-model", "reward-model")])
    node = trained_from(planner, model, data, sft_data, "--model")
    return Plan((node,), (node.spec.template, node.spec.end))


def trained_from(planner: Planner, text: str, data: Sequence[str], sft_data: Sequence[str], option: str) -> Node:
    """A reward model that starts from what `text` means: of a family or a ready pair its reference teacher."""
    start, family, template = reference_model(planner, text, sft_data, option)
    return planner.reward_model(start, data_for(planner, start, data, family), family, template)


def judge(planner: Planner, text: str, data: Sequence[str] = (), sft_data: Sequence[str] = ()) -> Input:
    """The reward model that `--reward-model` names: an artifact, a folder or hub model, or an alias, for its family's.

    Raises UsageError and NotFound as `Names.model` does.
    """
    found = planner.names.model(text, OPTION, ("reward-model",))
    if isinstance(found, Alias | ReadyPair):
        return trained_from(planner, text, data, sft_data, OPTION)
    return found
