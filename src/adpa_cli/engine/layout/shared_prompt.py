"""How answers lie in one forward of a teacher: each behind a prompt of its own, or several behind one prompt.

A shared prompt is computed once. Its answers lie one after the other in its row, count their positions from its end,
and attend to it and to themselves: a token's context, and so its state, is what it is behind a prompt of its own.

S rows of L tokens, N answer tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from adpa_cli.engine.layout.examples import Answer
from adpa_cli.engine.models import Dtype, body_and_head, computing
from adpa_cli.signal import AnswerKey

WINDOWS = ("sliding_window", "attention_chunk_size")
"""As configurations call the stretch of tokens beyond which some layers see nothing."""
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Layout:
    """`ids` [S,L], right padded; `where` [N], the number among the S*L tokens of the one that predicts an answer token.

    `owners` [S,L]: in rows of one answer 1 for a token and 0 for padding. Where `positions` [S,L] are given the rows
    hold several: 0 for the prompt, the number of the answer from 1, -1 for padding.
    """

    ids: Tensor
    owners: Tensor
    where: Tensor
    positions: Tensor | None = None


def separate_rows(answers: Sequence[Answer]) -> Layout:
    """A row for each answer."""
    # The last token is predicted, never read.
    rows = [[*answer.prompt, *answer.answer][:-1] for answer in answers]
    length = max(map(len, rows))
    where = [
        number * length + at
        for number, (row, answer) in enumerate(zip(rows, answers, strict=True))
        for at in range(len(answer.prompt) - 1, len(row))
    ]
    return Layout(_padded(rows, length), _padded([[1] * len(row) for row in rows], length), torch.tensor(where))


def shared_rows(answers: Sequence[Answer]) -> Layout:
    """A row for each run of answers with one prompt."""
    rows, owners, positions, starts = [], [], [], []
    for prompt, group in groupby(answers, key=lambda answer: answer.prompt):
        row, owner, position, begins = list(prompt), [0] * len(prompt), list(range(len(prompt))), []
        for number, answer in enumerate(group, 1):
            begins.append((len(prompt) - 1, len(row), len(answer.answer) - 1))
            row += answer.answer[:-1]
            owner += [number] * (len(answer.answer) - 1)
            position += range(len(prompt), len(prompt) + len(answer.answer) - 1)
        rows.append(row)
        owners.append(owner)
        positions.append(position)
        starts.append(begins)
    length = max(map(len, rows))
    where = [
        number * length + at
        for number, begins in enumerate(starts)
        for last, start, count in begins
        for at in (last, *range(start, start + count))
    ]
    return Layout(
        _padded(rows, length), _padded(owners, length, -1), torch.tensor(where), _padded(positions, length)
    )  # fmt: skip


@torch.no_grad()
def states(model: PreTrainedModel, layout: Layout, dtype: Dtype = "float32") -> Tensor:
    """Last hidden states [S*L, H]."""
    body, weight, _ = body_and_head(model)
    device = weight.device
    mask, more = layout.owners.to(device), {}
    if layout.positions is not None:
        mask, more = _who_sees_whom(mask), {"position_ids": layout.positions.to(device)}
    with computing(dtype, device):
        out = body(input_ids=layout.ids.to(device), attention_mask=mask, use_cache=False, **more)
    flat: Tensor = out.last_hidden_state.flatten(0, 1)
    return flat


def can_share(model: PreTrainedModel, longest: int) -> bool:
    """Whether the model gives a token the same state behind a shared prompt, in sequences of up to `longest` tokens.

    It must take positions and a mask of its own, as attention does and recurrence does not: a few tokens are tried.
    Windows are read from its configuration, since no short trial meets them.
    """
    if any(window < longest for window in windows(model.config)) or model.config._attn_implementation != "sdpa":
        return False
    size = body_and_head(model)[1].shape[0]
    prompt = [token % size for token in (2, 3, 5, 7)]
    answers = [[token % size for token in tokens] for tokens in ((11, 13, 17, 4), (19, 23, 4), (29, 4))]
    trial = [Answer(AnswerKey("", "", ""), tuple(prompt), tuple(answer)) for answer in answers]
    try:
        one, other = (states(model, layout)[layout.where] for layout in (separate_rows(trial), shared_rows(trial)))
    except (TypeError, ValueError, RuntimeError):
        return False
    return float((one - other).abs().max()) <= TOLERANCE * float(one.abs().max())


def windows(config: Any) -> Iterator[int]:
    """The stretches of tokens beyond which some of a model's layers see nothing; models that also see pictures have
    them in the configuration of their text part."""
    text = config.get_text_config()
    for name in WINDOWS:
        value = getattr(text, name, None)
        if isinstance(value, int) and getattr(text, f"use_{name}", True):
            yield value


def _padded(rows: Sequence[Sequence[int]], length: int, filler: int = 0) -> Tensor:
    return torch.tensor([[*row, *[filler] * (length - len(row))] for row in rows])


def _who_sees_whom(owners: Tensor) -> Tensor:
    """[S,1,L,L] bool: a token sees what is before it, of the prompt (owner 0) and of its own answer."""
    seen = (owners[:, None, :] == 0) | (owners[:, None, :] == owners[:, :, None])
    return (seen & torch.ones(seen.shape[1:], dtype=torch.bool, device=seen.device).tril())[:, None]
