"""Reward models: the rewards that they give to answers, whether made here or elsewhere, and one that is trained.

A reward model is a decoder under the scalar head of transformers' sequence classifiers.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from adpa_cli.data.chat import Encoder, fit
from adpa_cli.data.examples import Message
from adpa_cli.data.rendering import render
from adpa_cli.data.templates import Template
from adpa_cli.data.tokenizer import Tokenizer
from adpa_cli.engine.adapters import shape_in
from adpa_cli.engine.arithmetic import computing
from adpa_cli.engine.device import ROOM, device, refused_when_full
from adpa_cli.engine.layerwise import load_layerwise
from adpa_cli.engine.layout.batch import Batch
from adpa_cli.engine.layout.micro_batches import by_length, consecutive_batches, longest_first, padded
from adpa_cli.engine.layout.row_layout import RowLayout
from adpa_cli.engine.lora import SCALAR_HEAD
from adpa_cli.engine.models import load
from adpa_cli.engine.overflow import overflow_named
from adpa_cli.engine.tokenizer_files import LOAD_ERRORS, first_line
from adpa_cli.engine.training.adapted import load_adapted
from adpa_cli.engine.training.student import Student, scalars
from adpa_cli.errors import AdpaError, NotFinite
from adpa_cli.hub import Located
from adpa_cli.hub.adapter_folder import AdapterFolder
from adpa_cli.hub.model_folder import ModelFolder
from adpa_cli.spec import Dtype, Quantise, TrainSpec
from adpa_cli.tensors.output import Stats

Dialogue = tuple[Sequence[Message], str]
"""(turns of the prompt, answer)."""


def reward_scores(
    model: Located, dialogues: Sequence[Dialogue], spec: Any, tokens: int, stage: str = "", is_exact: bool = False,
    quantise: Quantise | None = None,
) -> list[float]:  # fmt: skip
    """The reward of every dialogue, under the dtype of a stage's spec, `tokens` at a time; where `is_exact` in float32,
    with one layer of the model in memory at a time.

    A model that was made here reads the tokens it was trained on; another one its own chat template, else the stage's,
    and of dialogues that are longer than its own context the first token, where that is its BOS, and the end.
    Raises AdpaError as `sequence_rewards` does, and where a block does not fit in memory: a setting of the `stage`, if
    any, makes it smaller.
    """
    with fitting_blocks(tokens, stage):
        encoded = encoded_dialogues(model, dialogues, spec)
        dtype: Dtype = "float32" if is_exact else spec.dtype
        return sequence_rewards(model.path, encoded, dtype, device(), tokens, stage, is_exact, quantise)


def fitting_blocks(tokens: int, stage: str = "") -> contextlib.AbstractContextManager[None]:
    """Around the work on blocks of `tokens`: AdpaError where one does not fit in memory."""
    smaller = f"--set {stage}.block_tokens={max(1, tokens // 2)}, or {ROOM}" if stage else f"use {ROOM}"
    return refused_when_full(f"a block of {tokens:,} tokens of the reward model", smaller)


def encoded_dialogues(model: Located, dialogues: Sequence[Dialogue], spec: Any) -> list[list[int]]:
    """The ids of every dialogue as a reward model reads them: see `reward_scores`."""
    if model.kind == "artifact":
        return _as_trained(model, dialogues)
    tokenizer, context = ModelFolder.of(model.path).tokenizer, ModelFolder.of(model.path).context
    template = ModelFolder.of(model.path).template or spec.template
    return [_encode(tokenizer, dialogue, template, context) for dialogue in dialogues]


def sequence_rewards(
    folder: Path,
    encoded: Sequence[Sequence[int]],
    dtype: Dtype,
    device: str,
    block_tokens: int,
    stage: str = "",
    layerwise: bool = False,
    quantise: Quantise | None = None,
) -> list[float]:
    """The one logit of a reward model for every sequence of ids, read at its last one.

    At most `block_tokens` padded tokens go through at once, or one longer sequence. Raises AdpaError when the model
    does not load, has not exactly one output, lacks the weights of its head, or gives a reward that is no number.
    """
    scorer = Scorer(folder, {ids[-1] for ids in encoded}, dtype, device, stage, layerwise, quantise)
    rewards = [0.0] * len(encoded)
    for rows in longest_first(reward_blocks(encoded, block_tokens)):
        for i, value in zip(rows, scorer.rewards(encoded, rows), strict=True):
            rewards[i] = value
    return rewards


def reward_blocks(encoded: Sequence[Sequence[int]], tokens: int) -> list[list[int]]:
    """Positions of sequences by length, cut so that the padded size of a block is at most `tokens`, or it has one."""
    lengths = list(map(len, encoded))
    return consecutive_batches(by_length(lengths), lengths.__getitem__, lambda load: load.padded <= tokens)


class Scorer:
    """A reward model that is loaded to score sequences, which end with the ids `ends`; raises as `sequence_rewards`
    does."""

    def __init__(
        self, folder: Path, ends: Collection[int], dtype: Dtype, device: str, stage: str = "", layerwise: bool = False,
        quantise: Quantise | None = None,
    ) -> None:  # fmt: skip
        self._model = _load(folder, dtype, device, layerwise, quantise)
        self._name, self._dtype, self._device, self._stage = folder.name, dtype, device, stage
        if self._model.config.pad_token_id is None:
            # The head reads the last token that is no padding, so padding must be an id that no dialogue ends with.
            self._model.config.pad_token_id = next(i for i in range(len(ends) + 1) if i not in ends)

    @torch.no_grad()
    def rewards(self, encoded: Sequence[Sequence[int]], rows: Sequence[int]) -> list[float]:
        """The rewards of the sequences at the positions `rows`, which go through the model at once."""
        model, device, pad = self._model, self._device, self._model.config.pad_token_id
        ids, mask = padded([encoded[i] for i in rows], pad), padded([[1] * len(encoded[i]) for i in rows])
        with overflow_named(model, self._dtype, self._stage):
            with computing(self._dtype, torch.device(device)):
                out = model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits[:, 0].float()
            values: list[float] = out.tolist()
            for i, value in zip(rows, values, strict=True):
                if not math.isfinite(value):
                    raise NotFinite(f"{self._name} gives row {i + 1} the reward {value}", encoded[i])
        return values


class RewardModel(Student):
    """A sequence classifier `model` with one output, trained as a student is: it has values, and no log-probs."""

    def forward(
        self, layouts: Sequence[RowLayout], ids: Tensor, stats: bool = False, drawn: tuple[RowLayout, ...] = ()
    ) -> tuple[Tensor, Tensor, Stats | None, Tensor | None]:
        """The head's number [N], float32, after each answer token, last; zeros in place of log-probs."""
        untyped: Any = self.model
        after = tuple(replace(layout, columns=layout.columns + 1) for layout in layouts)
        values = scalars(self.model.base_model, untyped.score, after, self.dtype)
        nothing = torch.zeros_like(values)
        return nothing[:, None].expand(ids.shape), nothing, None, values

    def at_answers(self, batch: Batch) -> Tensor:
        """The head's number [N] after each answer token of a batch; behind the last one it is the answer's reward."""
        values: Tensor = self(batch.layouts, batch.ids)[3]
        return values


def load_reward_model(
    folder: Path, tokenizer: Tokenizer, end_id: int, device: str, spec: TrainSpec | None = None
) -> PreTrainedModel:
    """The model in `folder` under a scalar head, which is 0 where the folder has none, to be trained: all of it, or its
    head and an adapter where a `spec` asks for that.

    Its head reads the last token that is no padding, so its configuration gets a padding token that no answer ends
    with. Raises AdpaError for a model that transformers has no such classifier of.
    """
    if spec and spec.lora:
        model = load_adapted(folder, spec, device, scalar=True)
    else:
        model = load(folder, train=True, device=device, scalar=True)
    known = (tokenizer.named_id(name) for name in ("pad_token", "bos_token", "unk_token"))
    padding = next((token for token in known if token not in (None, end_id)), 0 if end_id else 1)
    model.config.pad_token_id = padding
    return model


def _as_trained(model: Located, dialogues: Sequence[Dialogue]) -> list[list[int]]:
    """Token ids as in the training of `model`: under its template, to its end token, within its length."""
    tokenizer = ModelFolder.of(model.path).tokenizer
    encoder = Encoder(tokenizer, Template(model.values["template"], model.values["end"]))
    longest = int(model.values["max_length"])
    sequences = []
    for n, (turns, answer) in enumerate(dialogues, 1):
        prompt, (said,) = encoder.answered(tuple(turns), answer)
        fitted = fit(prompt, said, longest, bos_id=encoder.bos_id, where=f"dialogue {n}")
        sequences.append([*fitted.prompt, *fitted.answer])
    return sequences


def _load(folder: Path, dtype: Dtype, device: str, layerwise: bool, quantise: Quantise | None) -> Any:
    hint = "give the folder of a reward model with a scalar head to --reward-model"
    adapter = AdapterFolder.of(folder)
    try:
        outputs = _outputs(folder, adapter)
    except LOAD_ERRORS as error:
        raise AdpaError(f"the reward model in {folder.name} cannot be loaded: {first_line(error)}", hint) from error
    if outputs != 1:
        raise AdpaError(f"the classifier in {folder.name} has {outputs} outputs, and a reward model has one", hint)
    if layerwise:
        model = load_layerwise(folder, device, scalar=True, quantise=quantise)
    else:
        model = load(folder, dtype=dtype, device=device, scalar=True, quantise=quantise)
    if adapter:
        model.config.pad_token_id = None  # that of the base may be what answers end with
    return model


def _outputs(folder: Path, adapter: AdapterFolder | None) -> int:
    """How many numbers the head of a classifier gives."""
    if adapter and (shape := shape_in(adapter, SCALAR_HEAD)):
        return shape[0]
    whole = adapter.base if adapter else folder
    return int(AutoConfig.from_pretrained(whole, local_files_only=True, trust_remote_code=False).num_labels)


def _encode(tokenizer: Tokenizer, dialogue: Dialogue, template: str, context: int | None) -> list[int]:
    """Ids of a dialogue for a model from outside, with one BOS where its tokenizer begins with one."""
    turns, answer = dialogue
    ids = tokenizer.ids(render(template, (*turns, Message("assistant", answer)), False, tokenizer.named))
    bos = tokenizer.named_id("bos_token")
    if bos is not None and tokenizer.begins_with_bos and ids[:1] != [bos]:
        ids = [bos, *ids]
    if context is None or len(ids) <= context:
        return ids
    lead = ids[:1] if ids[:1] == [bos] else []
    return [*lead, *ids[len(ids) - context + len(lead) :]]
