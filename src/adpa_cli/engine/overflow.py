"""Which layer of a model leaves the range of float16, where its log-probs are not numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from adpa_cli.engine.arithmetic import computing
from adpa_cli.engine.models import body_of
from adpa_cli.errors import AdpaError, NotFinite
from adpa_cli.spec import Dtype


@contextlib.contextmanager
def overflow_named(model: PreTrainedModel, dtype: Dtype, stage: str) -> Iterator[None]:
    """Around work of a stage with a model in `dtype`: where it raises NotFinite, AdpaError with the layer that goes
    beyond float16 and the dtype to take instead; else the error as it is."""
    try:
        yield
    except NotFinite as error:
        layer = overflowing_layer(model, error.ids, dtype) if dtype == "float16" else ""
        if not layer:
            raise
        raise AdpaError(
            f"{error.message}: {layer} exceeds 65,504, the largest float16",
            f"use tf32, which has the precision of float16 and the range of float32: --set {stage}.dtype=tf32",
        ) from error


@torch.no_grad()
def overflowing_layer(model: PreTrainedModel, ids: Sequence[int], dtype: Dtype) -> str:
    """The name of the first module, in the order of a forward pass over `ids`, that gives values which are not finite;
    "" where none does."""
    found: list[str] = []

    def look(name: str, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if not found and isinstance(first, Tensor) and not bool(torch.isfinite(first).all()):
            found.append(name)

    body: Any = body_of(model)
    hooks = [_watched(module, name, look) for name, module in body.named_modules() if not list(module.children())]
    try:
        with computing(dtype, model.device):
            body(input_ids=torch.tensor([list(ids)], device=model.device))
    finally:
        for hook in hooks:
            hook.remove()
    return found[0] if found else ""


def _watched(module: nn.Module, name: str, look: Any) -> Any:
    return module.register_forward_hook(lambda _module, _args, output: look(name, output))
