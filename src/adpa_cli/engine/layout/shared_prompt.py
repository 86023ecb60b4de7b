"""How answers lie in one forward of a teacher: each behind a prompt of its own, or several behind one prompt.

A shared prompt is computed once. Its answers lie one after the other in its row, count their positions from its end,
and attend to it and to themselves: a token's context, and so its state, is what it is behind a prompt of its own.

On a CPU rows go through the model a few at a time, as few as keep it busy: many rows together are padded to the longest
of them, and what a layer makes of them is larger than any cache.

S rows of L tokens, N answer tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
from torch import Tensor
from transformers import PreTrainedModel

from adpa_cli.engine.layout.examples import Answer
from adpa_cli.engine.layout.micro_batches import consecutive_batches, padded
from adpa_cli.engine.models import body_and_head, hidden_states
from adpa_cli.signal.rows import AnswerKey
from adpa_cli.spec import Dtype

WINDOWS = ("sliding_window", "attention_chunk_size")
"""As configurations call the stretch of tokens beyond which some layers see nothing."""
TOLERANCE = 1e-3
RUN_WORK = 2**35
"""Tokens times weights of the body that go through a model together on a CPU, if there are as many: about half a second
of one core, and a hundred times what the calls of all layers take."""


@dataclass(frozen=True)
class Layout:
    """`ids` [S,L], right padded; `where` [N], the number among the S*L tokens of the one that predicts an answer token.

    `owners` [S,L]: 0 for the prompt, the number of the answer from 1, -1 for padding. `positions` [S,L] are given where
    rows may hold several answers.
    """

    ids: Tensor
    owners: Tensor
    where: Tensor
    positions: Tensor | None = None


def answer_rows(answers: Sequence[Answer], share: bool) -> Layout:
    """A row for each answer, or with `share` for each run of answers with one prompt."""
    rows, owners, positions, places = [], [], [], []
    for group in _groups(answers, share):
        prompt = group[0].prompt
        row, owner, position, place = list(prompt), [0] * len(prompt), list(range(len(prompt))), list[int]()
        for number, answer in enumerate(group, 1):
            read = answer.answer[:-1]  # the last token is predicted, never read
            place += [len(prompt) - 1, *range(len(row), len(row) + len(read))]
            row += read
            owner += [number] * len(read)
            position += range(len(prompt), len(prompt) + len(read))
        rows.append(row)
        owners.append(owner)
        positions.append(position)
        places.append(place)
    ids = padded(rows)
    where = torch.tensor([number * ids.shape[1] + at for number, place in enumerate(places) for at in place])
    return Layout(ids, padded(owners, -1), where, padded(positions) if share else None)


def answer_states(model: PreTrainedModel, answers: Sequence[Answer], share: bool, dtype: Dtype = "float32") -> Tensor:
    """Last hidden states [N, H] that predict the answers' tokens, in their order; prompts are shared with `share`."""
    made = []
    for run in consecutive_batches(_groups(answers, share), _length, lambda _: False, _least_tokens(model)):
        layout = answer_rows([answer for group in run for answer in group], share)
        found = states(model, layout, dtype)
        made.append(found[layout.where.to(found.device)])
    return torch.cat(made)


def _groups(answers: Sequence[Answer], share: bool) -> list[list[Answer]]:
    """The answers of each row."""
    if not share:
        return [[answer] for answer in answers]
    return [list(group) for _, group in groupby(answers, key=lambda answer: answer.prompt)]


def _length(group: Sequence[Answer]) -> int:
    """Tokens of a row."""
    return len(group[0].prompt) + sum(len(answer.answer) - 1 for answer in group)


def _least_tokens(model: PreTrainedModel) -> float:
    """Of the rows that go through a model together: all of them on a GPU, which is the busier for it."""
    body, head, _ = body_and_head(model)
    if head.device.type != "cpu":
        return math.inf
    weights = sum(weight.numel() for weight in body.parameters() if weight.shape[:1] != head.shape[:1])
    return RUN_WORK / max(1, weights)


@torch.no_grad()
def states(model: PreTrainedModel, layout: Layout, dtype: Dtype = "float32") -> Tensor:
    """Last hidden states [S*L, H]."""
    device = body_and_head(model)[1].device
    owners = layout.owners.to(device)
    mask, more = (owners >= 0).long(), {}
    if layout.positions is not None:
        mask, more = _who_sees_whom(owners), {"position_ids": layout.positions.to(device)}
    return hidden_states(model, layout.ids.to(device), mask, dtype=dtype, **more).flatten(0, 1)


def can_share(model: PreTrainedModel, longest: int) -> bool:
    """Whether the model gives a token the same state behind a shared prompt, in sequences of up to `longest` tokens.

    It must take positions and a mask of its own, as attention does and recurrence does not: a few tokens are tried.
    Windows are read from its configuration, since no short trial meets them.
    """
    if not sees_all(model, longest):
        return False
    size = body_and_head(model)[1].shape[0]
    prompt = [token % size for token in (2, 3, 5, 7)]
    answers = [[token % size for token in tokens] for tokens in ((11, 13, 17, 4), (19, 23, 4), (29, 4))]
    trial = [Answer(AnswerKey("", "", ""), tuple(prompt), tuple(answer)) for answer in answers]
    try:
        layouts = [answer_rows(trial, share) for share in (False, True)]
        one, other = (states(model, layout)[layout.where] for layout in layouts)
    except (TypeError, ValueError, RuntimeError):
        return False
    return float((one - other).abs().max()) <= TOLERANCE * float(one.abs().max())


def sees_all(model: PreTrainedModel, longest: int) -> bool:
    """Whether a model attends in the usual way, in each of its layers to all of `longest` tokens; models that also see
    pictures have their windows in the configuration of their text part."""
    text = model.config.get_text_config()
    windows = [getattr(text, name, None) for name in WINDOWS if getattr(text, f"use_{name}", True)]
    narrow = any(isinstance(window, int) and window < longest for window in windows)
    return model.config._attn_implementation == "sdpa" and not narrow


def _who_sees_whom(owners: Tensor) -> Tensor:
    """[S,1,L,L] bool: a token sees what is before it, of the prompt (owner 0) and of its own answer."""
    seen = (owners[:, None, :] == 0) | (owners[:, None, :] == owners[:, :, None])
    return (seen & torch.ones(seen.shape[1:], dtype=torch.bool, device=seen.device).tril())[:, None]
