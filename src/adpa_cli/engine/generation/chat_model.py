"""One answer, token by token, for a conversation at a terminal."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from adpa_cli.data.chat import Encoder
from adpa_cli.data.examples import Message
from adpa_cli.engine.generation.sampling import NOT_FINITE, Sampling, answer_limit, choose, row_key
from adpa_cli.engine.models import Dtype, computing
from adpa_cli.errors import AdpaError, DataError
from adpa_cli.planning.lineage import Trained

if TYPE_CHECKING:
    from adpa_cli.engine.generation.sampling import Sampling


def stream(
    model: PreTrainedModel,
    prompt: Sequence[int],
    row_id: str,
    end_id: int,
    sampling: Sampling,
    context: int,
    dtype: Dtype = "float32",
) -> Iterator[int]:
    """The ids that `generate_block` would give for this prompt alone, each as soon as it is known.

    The end token is the last of them, unless a limit stops the answer first. Errors as in `generate_block`.
    """
    limit = answer_limit(len(prompt), row_id, sampling, context)
    key = torch.tensor([row_key(sampling.seed, row_id)], device=model.device)
    new, cache = torch.tensor([list(prompt)], device=model.device), None
    for position in range(limit):
        logits, cache = _step(model, new, cache, dtype)
        token = int(choose(logits, key, torch.full_like(key, position), sampling))
        if token == NOT_FINITE:
            raise AdpaError("the logits are not finite", "check the model's weights, or use float32")
        yield token
        if token == end_id:
            return
        new = torch.tensor([[token]], device=model.device)


@torch.no_grad()
def _step(model: Any, new: Tensor, cache: Any, dtype: Dtype) -> tuple[Tensor, Any]:
    """Logits [1, V] after the tokens `new` [1, T], and the cache with them."""
    with computing(dtype, model.device):
        out = model(input_ids=new, past_key_values=cache, use_cache=True)
    return out.logits[:, -1, :], out.past_key_values


LEAST_ROOM = 64  # tokens kept for an answer before old turns are dropped
BLOCK = 16  # prompts that are answered together


@dataclass(frozen=True)
class Talker:
    """A loaded model under its own template; `context` is the most tokens that it can see."""

    label: str
    encoder: Encoder
    model: Any
    context: int


@dataclass(frozen=True)
class Answer:
    """An answer's text, its length in tokens with the end token, and whether a limit stopped it."""

    text: str
    tokens: int
    cut: bool


def open_talker(found: Trained) -> Talker:
    """Load a model to answer with: float32 on a CPU, bfloat16 on a GPU."""
    import torch

    from adpa_cli.engine.device import device
    from adpa_cli.engine.models import load, load_tokenizer

    encoder = Encoder(load_tokenizer(found.folder), found.template)
    model: Any = load(found.folder)
    if device() != "cpu":
        model = model.to(torch.bfloat16).to(device())
    longest = getattr(model.config, "max_position_embeddings", None) or 4096
    return Talker(found.label, encoder, model, int(longest))


def fitted(talker: Talker, turns: Sequence[Message], sampling: Sampling) -> tuple[list[int], int]:
    """Ids of a conversation that leave room for an answer, and how many of its oldest turns had to be left out."""
    room = min(sampling.max_new_tokens, LEAST_ROOM, talker.context // 2)
    lead = [turn for turn in turns[:1] if turn.role == "system"]
    rest = list(turns[len(lead) :])
    dropped = 0
    while True:
        ids = talker.encoder.prompt([*lead, *rest])
        if len(ids) + room <= talker.context or len(rest) <= 2:
            return ids, dropped
        rest, dropped = rest[2:], dropped + 2


def say(talker: Talker, ids: Sequence[int], sampling: Sampling) -> Iterator[str]:
    """The text of an answer, piece by piece."""

    return pieces(
        talker.encoder,
        stream(talker.model, ids, row_id(ids), talker.encoder.end_id, sampling, talker.context),
    )


def answers(talker: Talker, prompts: Sequence[Sequence[Message]], sampling: Sampling) -> Iterator[Answer]:
    """An answer to each prompt, in order, several computed together.

    Raises DataError at the first, before any answer, when a prompt does not fit into the model's context.
    """
    from adpa_cli.engine.generation.generate import generate_block

    every = [fitted(talker, prompt, sampling)[0] for prompt in prompts]
    for number, ids in enumerate(every, 1):
        if len(ids) >= talker.context:
            raise DataError(
                f"prompt {number} has {len(ids)} tokens, and {talker.label} sees {talker.context} with the answer",
                "shorten it",
            )
    pad = talker.encoder.tokenizer.pad_token_id
    for start in range(0, len(every), BLOCK):
        block = every[start : start + BLOCK]
        made = generate_block(
            talker.model, block, [row_id(ids) for ids in block], talker.encoder.end_id,
            talker.encoder.end_id if pad is None else pad, sampling, talker.context,
        )  # fmt: skip
        for answer in made:
            yield Answer(talker.encoder.decode(answer.ids), len(answer.ids), answer.cut)


def row_id(ids: Sequence[int]) -> str:
    """The noise of sampling depends on the conversation, so that the same words and seed get the same answer."""
    return hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()


def pieces(encoder: Encoder, ids: Iterable[int]) -> Iterator[str]:
    """The text of growing ids, as it grows; a character of several tokens comes when it is whole."""
    got: list[int] = []
    text = said = ""
    for token in ids:
        got.append(token)
        text = encoder.decode(got)
        if text.startswith(said) and not text.endswith("\N{REPLACEMENT CHARACTER}"):
            yield text[len(said) :]
            said = text
    if text != said:
        yield text[len(said) :]
