"""Answers drawn at one time, with everything that was known of them then; kept in one file until they are used up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save
from torch import Tensor

from adpa_cli.store.disk import write_atomic
from adpa_cli.tensors.ppo import advantages, rewards, whitened

Floats = Sequence[NDArray[np.float32]]
SCORES = ("drawn", "start", "aligned", "reference", "values")
"""Log-probs under who drew the answers, the frozen start model and the two teachers; the values of the critic."""


@dataclass(frozen=True)
class Buffer:
    """`ids` of each answer, whether a limit `cut` it, and its `scores` [T] by name."""

    ids: Sequence[NDArray[np.int32]]
    cut: Sequence[bool]
    scores: Mapping[str, Floats]

    def save(self, path: Path) -> None:
        """Write it whole or not at all."""
        flat = {name: np.concatenate(self.scores[name]) for name in SCORES}
        lengths = np.array([len(answer) for answer in self.ids], dtype=np.int64)
        cut = np.array(self.cut, dtype=np.uint8)
        write_atomic(path, save({**flat, "ids": np.concatenate(self.ids), "lengths": lengths, "cut": cut}))

    @classmethod
    def load(cls, path: Path) -> Buffer:
        """What `save` wrote."""
        flat = load_file(path)
        ends = np.cumsum(flat["lengths"])[:-1]
        scores = {name: np.split(flat[name], ends) for name in SCORES}
        return cls(np.split(flat["ids"], ends), [bool(cut) for cut in flat["cut"]], scores)


def experience(buffer: Buffer, params: Any) -> list[dict[str, NDArray[np.float32]]]:
    """The fields [T] of the `Experience` of each answer, under the reward and the constants of `params`."""
    mask, scores = _padded(buffer)
    earned = _rewards(scores, mask, params)
    found, returns = advantages(earned, scores["values"], mask, gamma=params.discount, lam=params.gae_lambda)
    if params.whiten:
        found = whitened(found, mask)
    fields = {"logps": scores["drawn"], "values": scores["values"], "advantages": found, "returns": returns}
    return [
        {name: values[row, : len(answer)].numpy() for name, values in fields.items()}
        for row, answer in enumerate(buffer.ids)
    ]


def numbers(buffer: Buffer, params: Any) -> dict[str, float]:
    """What one wants to know of the answers: their mean reward and distance to the start model, both per answer, the
    mean of -log π per token (an estimate of the entropy), their mean length, and how many a limit cut."""
    mask, scores = _padded(buffer)
    paid = _rewards({**scores, "start": scores["drawn"]}, mask, params)
    apart = (scores["drawn"] - scores["start"]).masked_fill(~mask, 0.0)
    return {
        "reward": float(paid.sum(1).mean()), "kl": float(apart.sum(1).mean()),
        "entropy": -float(scores["drawn"][mask].mean()), "answer_tokens": float(mask.sum(1).float().mean()),
        "cut": sum(buffer.cut) / len(buffer.cut),
    }  # fmt: skip


def _rewards(scores: Mapping[str, Tensor], mask: Tensor, params: Any) -> Tensor:
    policy, start, aligned, reference = (scores[name] for name in SCORES[:4])
    per_token = params.reward == "token"
    return rewards(
        policy, start, aligned, reference, mask, beta=params.beta, per_token=per_token, clip=params.token_reward_clip
    )


def _padded(buffer: Buffer) -> tuple[Tensor, dict[str, Tensor]]:
    """The mask [B,T], and the scores [B,T] padded with 0."""
    lengths = torch.tensor([len(answer) for answer in buffer.ids])
    mask = torch.arange(int(lengths.max()))[None] < lengths[:, None]
    rows = {name: [torch.from_numpy(score) for score in buffer.scores[name]] for name in SCORES}
    return mask, {name: torch.nn.utils.rnn.pad_sequence(own, batch_first=True) for name, own in rows.items()}
