"""What an evaluation is given from outside and cannot use: reward models, and files of answers."""

from __future__ import annotations

from pathlib import Path

from adpa_cli.data.answers import answers_of
from adpa_cli.engine.lora import SCALAR_HEAD
from adpa_cli.errors import DataError
from adpa_cli.hub import External
from adpa_cli.hub.model_folder import ModelFolder, header
from adpa_cli.stages import Node
from adpa_cli.store.identity import ADAPTER_WEIGHTS
from adpa_cli.suites import AGAINST, ROLLOUTS

USUAL_LABELS = 2
"""Outputs of a classifier that does not say how many it has."""
REWARDS_WANTED = "name a reward model whose head gives one number: --reward-model MODEL"


def check_given(node: Node) -> tuple[str, ...]:
    """Raise DataError for a reward model that gives no number or several, and for a file with rows that are no answers
    or that answer a prompt twice."""
    for role, item in node.flat_inputs():
        if not isinstance(item, External) or not item.is_open:
            continue
        if role == "reward_model":
            check_reward_model(ModelFolder.of(Path(item.where[0])), item.label)
        elif role in (ROLLOUTS, AGAINST):
            answers_of(Path(item.where[0]))
    return ()


def check_reward_model(folder: ModelFolder, name: str) -> None:
    """Raise DataError for a model that does not give one number for a text, by its configuration and its head."""
    config = folder.raw_config
    heads = [shape for of, shape in _brought(folder).items() if of.endswith(SCALAR_HEAD)]
    made_as = config.get("architectures") or []
    if not heads and not folder.is_classifier and (made_as or folder.adapter):
        called = ", ".join(map(str, made_as)) or config.get("model_type", "")
        raise DataError(f"{name} is not a reward model: {called} has no head that gives one number", REWARDS_WANTED)
    labels = config.get("id2label")
    count = len(labels) if isinstance(labels, dict) else config.get("num_labels", USUAL_LABELS)
    if heads and folder.adapter:
        count = heads[0][0]
    if count != 1:
        raise DataError(f"{name} is not a reward model: it has {count} outputs instead of one", REWARDS_WANTED)


def _brought(folder: ModelFolder) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors that a folder itself brings, by name."""
    if folder.adapter is None:
        return dict(folder.shapes)
    file = folder.adapter.path / ADAPTER_WEIGHTS
    return {of: tuple(entry["shape"]) for of, entry in header(file).items()} if file.is_file() else {}
