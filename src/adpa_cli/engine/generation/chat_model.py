"""A model to talk to: it is loaded under its own template, and gives its answer token by token or to many prompts."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adpa_cli.data.chat import Encoder
from adpa_cli.data.examples import Message
from adpa_cli.data.templates import Template
from adpa_cli.engine.arithmetic import computing
from adpa_cli.engine.device import device
from adpa_cli.engine.generation.generate import cast_once, generate_block
from adpa_cli.engine.generation.sampling import NOT_FINITE, Decoding, Sampling, answer_limit, choose, row_key
from adpa_cli.engine.layout.examples import end_ids
from adpa_cli.engine.models import load
from adpa_cli.engine.overflow import overflow_named
from adpa_cli.errors import AdpaError, DataError, NotFinite
from adpa_cli.hub.model_folder import ModelFolder
from adpa_cli.spec import Dtype

LEAST_ROOM = 64  # tokens kept for an answer before old turns are dropped
BLOCK = 16  # prompts that are answered together


@dataclass(frozen=True)
class ChatModel:
    """A loaded model under its own template; `context` is the most tokens that it can see, `end_ids` end an answer."""

    label: str
    encoder: Encoder
    model: Any
    context: int
    end_ids: tuple[int, ...]
    dtype: Dtype = "float32"


@dataclass(frozen=True)
class ChatAnswer:
    """An answer's text, its length in tokens with the end token, and whether a limit stopped it."""

    text: str
    tokens: int
    cut: bool


def load_chat_model(label: str, folder: Path, template: Template, dtype: Dtype) -> ChatModel:
    """The model in `folder` to answer with, which computes in `dtype`."""
    encoder = Encoder(ModelFolder.of(folder).tokenizer, template)
    with _dtype_to_type():
        model: Any = load(folder, dtype=dtype, device=device())
    longest = getattr(model.config, "max_position_embeddings", None) or 4096
    return ChatModel(label, encoder, model, int(longest), end_ids(encoder, folder), dtype)


def fitted_conversation(chat: ChatModel, turns: Sequence[Message], sampling: Sampling) -> tuple[list[int], int]:
    """Ids of a conversation that leave room for an answer, and how many of its oldest turns had to be left out."""
    room = min(sampling.max_new_tokens, LEAST_ROOM, chat.context // 2)
    lead = [turn for turn in turns[:1] if turn.role == "system"]
    rest = list(turns[len(lead) :])
    dropped = 0
    while True:
        ids = chat.encoder.prompt([*lead, *rest])
        if len(ids) + room <= chat.context or len(rest) <= 2:
            return ids, dropped
        rest, dropped = rest[2:], dropped + 2


def answer_text(chat: ChatModel, ids: Sequence[int], sampling: Sampling) -> Iterator[str]:
    """The text of the answer to the conversation `ids`, as it grows."""
    return text_deltas(chat.encoder, answer_tokens(chat, ids, sampling))


def chat_answers(chat: ChatModel, prompts: Sequence[Sequence[Message]], sampling: Sampling) -> Iterator[ChatAnswer]:
    """An answer to each prompt, in order, several computed together.

    Raises DataError at the first, before any answer, when a prompt does not fit into the model's context.
    """
    every = [fitted_conversation(chat, prompt, sampling)[0] for prompt in prompts]
    for number, ids in enumerate(every, 1):
        if len(ids) >= chat.context:
            raise DataError(
                f"prompt {number} has {len(ids)} tokens, and {chat.label} takes {chat.context} with the answer",
                "shorten the prompt",
            )
    decoding = Decoding(sampling, chat.end_ids, chat.encoder.pad_id, chat.context, chat.dtype)
    for start in range(0, len(every), BLOCK):
        block = every[start : start + BLOCK]
        with _dtype_to_type(), overflow_named(chat.model, chat.dtype, "STAGE"):
            answers = generate_block(chat.model, block, [row_id(ids) for ids in block], decoding)
        for answer in answers:
            yield ChatAnswer(chat.encoder.decode(answer.ids), len(answer.ids), answer.cut)


@torch.no_grad()
def answer_tokens(chat: ChatModel, prompt: Sequence[int], sampling: Sampling) -> Iterator[int]:
    """The ids that `generate_block` would give for this prompt alone, each as soon as it is known.

    The end token is the last of them, unless a limit stops the answer first. Errors as in `generate_block`.
    """
    model, name, seen = chat.model, row_id(prompt), list(prompt)
    key = torch.tensor([row_key(sampling.seed, name)], device=model.device)
    new, cache = torch.tensor([list(prompt)], device=model.device), None
    with _dtype_to_type(), overflow_named(model, chat.dtype, "STAGE"), cast_once(model, chat.dtype):
        for position in range(answer_limit(len(prompt), name, sampling, chat.context)):
            with computing(chat.dtype, model.device):  # not around the yield: whoever reads computes otherwise
                out = model(input_ids=new, past_key_values=cache, use_cache=True)
            token = int(choose(out.logits[:, -1, :], key, torch.full_like(key, position), sampling))
            if token == NOT_FINITE:
                raise NotFinite(f"the logits of {chat.label} are not finite", seen)
            seen.append(token)
            yield token
            if token in chat.end_ids:
                return
            new, cache = torch.tensor([[token]], device=model.device), out.past_key_values


@contextmanager
def _dtype_to_type() -> Iterator[None]:
    """Lets errors that name a dtype to take say how a chat is given it."""
    try:
        yield
    except AdpaError as error:
        error.hint = error.hint.replace("--set STAGE.dtype=", "--dtype ")
        raise


def row_id(ids: Sequence[int]) -> str:
    """The noise of sampling depends on the conversation, so that the same words and seed get the same answer."""
    return hashlib.sha256(" ".join(map(str, ids)).encode()).hexdigest()


def text_deltas(encoder: Encoder, ids: Iterable[int]) -> Iterator[str]:
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
