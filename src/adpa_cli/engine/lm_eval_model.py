"""A frozen model as lm-evaluation-harness asks one, and one task of it measured.

The harness has a class for models of transformers. Here it is given a model that is loaded as any other is, adapters
and quantised bases among them, and computes in the dtype of the stage; in float32 it makes the very calls that
`lm_eval run` makes. The harness draws bars of its own: what they would show is told to whoever asked.
"""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, GenerationConfig

from adpa_cli.data.examples import Message
from adpa_cli.data.rendering import render
from adpa_cli.data.templates import Template
from adpa_cli.engine.arithmetic import computing
from adpa_cli.engine.device import ROOM, refused_when_full
from adpa_cli.engine.generation.generate import cast_once
from adpa_cli.engine.models import load_to_generate
from adpa_cli.errors import NotFinite
from adpa_cli.hub.lm_tasks import harness
from adpa_cli.hub.model_folder import ModelFolder
from adpa_cli.spec import Dtype, Quantise

Heard = Callable[[int, int], None]
"""(requests of a task that are done, of how many)."""


def harness_model(
    folder: Path,
    dtype: Dtype,
    device: str,
    quantise: Quantise | None = None,
    batch_size: int = 1,
    max_length: int | None = None,
    chat: Template | None = None,
) -> Any:
    """The language model in a folder as the harness asks one, `batch_size` rows at a time and of at most `max_length`
    tokens, or as many as the model sees. Prompts are rendered by the template `chat`, if there is one and a task is
    asked with it.

    Raises as `load_to_generate` does.
    """
    model: Any = load_to_generate(folder, dtype, device, quantise)
    if said := ModelFolder.of(folder).raw_generation:
        make: Any = GenerationConfig
        model.generation_config = make.from_dict(dict(said))
    tokenizer: Any = AutoTokenizer.from_pretrained(
        _with_tokenizer(folder), trust_remote_code=False, local_files_only=True
    )
    asked = _class()(model, backend="causal", tokenizer=tokenizer, batch_size=batch_size, max_length=max_length)
    asked.computes_in, asked.chat, asked._device = dtype, chat, torch.device(device)
    return asked


def _with_tokenizer(folder: Path) -> Path:
    """The folder with the tokenizer of a model: of an adapter that brings none it is the base's."""
    inside = ModelFolder.of(folder)
    return folder if (folder / "tokenizer_config.json").is_file() or inside.adapter is None else inside.whole.path


@functools.cache
def _class() -> Any:
    """The harness's class with our arithmetic and our templates."""
    parent: Any = harness("models.huggingface").HFLM

    class Loaded(parent):  # type: ignore[misc]  # the harness has no types
        """A model that is loaded already."""

        computes_in: Dtype = "float32"
        chat: Template | None = None

        def _model_call(self, inps: Any, attn_mask: Any = None, labels: Any = None) -> Any:
            with torch.no_grad(), computing(self.computes_in, inps.device):
                logits = self.model(inps).logits
            if not bool(torch.isfinite(logits).all()):
                raise NotFinite("the logits of a request are not finite", inps[0].tolist())
            return logits

        def _model_generate(self, context: Any, **asked: Any) -> Any:
            with cast_once(self.model, self.computes_in), computing(self.computes_in, context.device):
                return super()._model_generate(context=context, **asked)

        @property
        def eot_token_id(self) -> Any:
            end = self.chat.end if self.chat else ""
            return self.tokenizer.convert_tokens_to_ids(end) if end else super().eot_token_id

        def apply_chat_template(
            self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
        ) -> str:
            turns = [Message(turn["role"], turn["content"]) for turn in chat_history]
            text = self.chat.text if self.chat else ""
            begun = "" if add_generation_prompt else turns.pop().content
            names = {**self.tokenizer.special_tokens_map, "eos_token": self.chat.end if self.chat else ""}
            return render(text, turns, True, names) + begun

    return Loaded


def measured(
    asked: Any,
    task: Any,
    requests: Path,
    heard: Heard,
    limit: int | None = None,
    with_chat: bool = False,
    batch_words: str = "",
) -> tuple[dict[str, Any], dict[str, list[float]]]:
    """(what the harness says of one task, by metric what each of its documents adds to the mean).

    Replies to requests are kept in the file `requests`, so that work that was cut off goes on there. A metric that is
    no mean over documents has no rows. Raises AdpaError where a batch does not fit in memory, with `batch_words` to
    make it smaller.
    """
    cached = harness("api.model").CachingLM(asked, str(requests))
    fits = refused_when_full("a batch of requests", f"{batch_words}, or {ROOM}" if batch_words else ROOM)
    try:
        with _bars_told(heard), fits:
            found = harness("evaluator").evaluate(
                cached, {"tasks": {task.task_name: task}, "groups": {}}, limit=limit, bootstrap_iters=0,
                apply_chat_template=with_chat, fewshot_as_multiturn=with_chat, log_samples=True,
            )  # fmt: skip
    finally:
        cached.dbdict.close()
    return found, _rows(task, found["samples"][task.task_name])


def _rows(task: Any, samples: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """By `METRIC,FILTER` the numbers of the documents, in their order, of every metric that is their mean."""
    mean = harness("api.metrics").mean
    means = {metric for metric, aggregate in task.aggregation().items() if aggregate is mean}
    rows: dict[str, list[float]] = {}
    for sample in sorted(samples, key=lambda sample: int(sample["doc_id"])):
        for metric in sample["metrics"]:
            if metric in means and isinstance(sample[metric], bool | int | float | np.number):
                rows.setdefault(f"{metric},{sample['filter']}", []).append(float(sample[metric]))
    return rows


def seeded() -> int:
    """Set the seeds that `lm_eval run` sets before it loads a task; the one of its examples."""
    defaults = harness("defaults")
    random.seed(defaults.DEFAULT_RANDOM_SEED)
    np.random.seed(defaults.DEFAULT_OTHER_SEED)
    torch.manual_seed(defaults.DEFAULT_OTHER_SEED)
    return int(defaults.DEFAULT_OTHER_SEED)


@contextlib.contextmanager
def _bars_told(heard: Heard) -> Iterator[None]:
    """Tells what the bars of the harness would show, which are not drawn."""
    modules = [harness(name) for name in ("api.task", "api.model", "models.huggingface")]
    own = [module.tqdm for module in modules]

    class Told:
        """In place of a bar; one that counts updates counts requests."""

        def __init__(self, items: Iterable[Any] = (), total: int | None = None, **_: Any) -> None:
            self.items, self.total, self.done = items, total, 0

        def __iter__(self) -> Iterator[Any]:
            return iter(self.items)

        def update(self, count: int = 1) -> None:
            self.done += count
            heard(self.done, self.total or self.done)

        def close(self) -> None:
            """Nothing is drawn."""

    for module in modules:
        module.tqdm = Told
    try:
        yield
    finally:
        for module, bar in zip(modules, own, strict=True):
            module.tqdm = bar
