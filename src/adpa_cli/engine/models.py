"""Model folders: load them, check them, run the body without the head, and save them for any other tool.

Weights come from safetensors only, remote code never runs, dropout is off. The head is separate from the body because
log-probs are computed through it tile by tile (`tensors`): `output_head` reads what scales and caps its logits, and
`check_head` proves that the model does that and no more.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
)
from transformers.utils import logging as transformers_logging

from adpa_cli.data.chat import pad_id
from adpa_cli.errors import AdpaError, NotFound
from adpa_cli.tensors.output import Head

Dtype = Literal["float32", "bfloat16"]
SCALAR_HEAD = "score.weight"
"""As classifiers of decoders call it in transformers."""

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
LOAD_ERRORS = (
    OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError, StrictDataclassError
)  # fmt: skip
"""What transformers, huggingface_hub and safetensors raise on a folder that is not a usable model."""


def load(folder: Path, *, train: bool = False, device: str = "cpu", scalar: bool = False) -> PreTrainedModel:
    """The causal language model in `folder`, with dropout off; with `scalar` its body under a head of one output,
    a sequence classifier, which is 0 where the folder has none.

    Weights are float32; another compute dtype is autocast (see `hidden_states`). Rounded weights would lose most of a
    small preference step, and with it the advantage. `train=False` freezes them, in eval mode.
    Raises NotFound where the folder has no model, AdpaError where it does not load, where a tensor is missing, or
    where a weight is not finite.
    """
    if not (folder / "config.json").is_file():
        raise NotFound(f"{folder} is not a model folder: it has no config.json", "adpa models")
    loader: Any = AutoModelForSequenceClassification if scalar else AutoModelForCausalLM
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        _turn_dropout_off(config)
        if scalar:
            config.num_labels = 1
        with _no_progress_bar():
            model, info = loader.from_pretrained(
                folder, config=config, dtype=torch.float32, use_safetensors=True, trust_remote_code=False,
                local_files_only=True, output_loading_info=True,
                ignore_mismatched_sizes=True,  # refused below, by name
            )  # fmt: skip
    except LOAD_ERRORS as error:
        raise AdpaError(
            f"the model in {folder} does not load: {first_line(error)}",
            "use a folder with config.json and *.safetensors of a causal language model that transformers knows",
        ) from error
    if scalar and SCALAR_HEAD in info["missing_keys"]:
        torch.nn.init.zeros_(model.get_parameter(SCALAR_HEAD))
        info["missing_keys"] = set(info["missing_keys"]) - {SCALAR_HEAD}
    _check_weights(model, folder, info)
    model.to(device)
    model.train(train)
    model.requires_grad_(train)
    checked: PreTrainedModel = model
    return checked


def load_checked(folder: Path, *, train: bool = False, device: str = "cpu") -> PreTrainedModel:
    """The causal language model in `folder`, whose log-probs its head gives. Raises as `load` and `check_head` do."""
    model = load(folder, train=train, device=device)
    check_head(model)
    return model


def _turn_dropout_off(config: Any) -> None:
    """Set every dropout probability of `config`, and of the configs nested in it, to 0."""
    for name, value in list(vars(config).items()):
        if hasattr(value, "to_diff_dict"):
            _turn_dropout_off(value)
        elif "drop" in name and isinstance(value, (int, float)) and not isinstance(value, bool):
            setattr(config, name, type(value)(0))


def _check_weights(model: PreTrainedModel, folder: Path, info: dict[str, Any]) -> None:
    missing, mismatched = sorted(info["missing_keys"]), sorted(info["mismatched_keys"])
    hint = "fetch or write the folder again: its weights are damaged or belong to another model"
    if missing:
        raise AdpaError(f"{folder} lacks {len(missing)} of its model's tensors, {missing[0]} among them", hint)
    if mismatched:
        name, stored, expected = mismatched[0]
        raise AdpaError(f"the tensor {name} in {folder} is {list(stored)}; config.json says {list(expected)}", hint)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise AdpaError(f"the tensor {name} in {folder} holds values that are not finite", hint)


@torch.no_grad()
def check_head(model: PreTrainedModel) -> None:
    """Raise AdpaError unless the model's logits are what `output_head` makes of its last hidden states.

    Small logits hide a soft cap, so what the head puts out is also replaced by large known values.
    """
    head = output_head(model)
    ids = torch.arange(5, device=head.weight.device).remainder(head.weight.shape[0])[None]
    mask = torch.ones_like(ids)
    untyped: Any = model
    training = model.training
    model.train(False)
    logits = untyped(input_ids=ids, attention_mask=mask, use_cache=False).logits
    products = nn.functional.linear(hidden_states(model, ids, mask), head.weight)
    known = torch.linspace(-300, 300, logits.numel(), device=logits.device).view_as(logits).to(products.dtype)
    hook = untyped.get_output_embeddings().register_forward_hook(lambda *_: known)
    try:
        through = untyped(input_ids=ids, attention_mask=mask, use_cache=False).logits
    finally:
        hook.remove()
        model.train(training)
    pairs = (logits, head.logits(products, products)), (through, replace(head, bias=None).logits(known, known.clone()))
    if not all(_same(got.float(), expected.float(), head.weight.dtype) for got, expected in pairs):
        raise AdpaError(
            f"{type(model).__name__} changes its logits after the head in a way that its configuration does not tell, "
            "so log-probs through the head would be wrong",
            "use a model whose logits are its head applied to its hidden states, scaled (logit_scale, logits_scaling) "
            "or soft-capped (final_logit_softcapping) at most, such as Llama, Qwen, Mistral or Gemma",
        )


def _same(got: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Whether logits agree up to the rounding of `dtype`, measured by the greatest."""
    tolerance = 1e-4 if dtype == torch.float32 else 1e-2
    return float((got - expected).abs().max()) <= tolerance * max(1e-6, float(expected.abs().max()))


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer in `folder`. Raises NotFound where there is none, AdpaError where it does not load."""
    hint = "put the tokenizer's files (tokenizer.json, tokenizer_config.json) beside the model"
    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise NotFound(f"{folder} has no tokenizer: none of {', '.join(_TOKENIZER_FILES)} is there", hint)
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except LOAD_ERRORS as error:
        raise AdpaError(f"the tokenizer in {folder} does not load: {first_line(error)}", hint) from error


def save(model: PreTrainedModel, tokenizer: Any, folder: Path, template_text: str, end_token: str) -> None:
    """Write a plain Hugging Face folder with float32 weights, whose generation stops at `end_token`.

    Tied weights are written once; equal weights give equal bytes (one metadata key). The tokenizer is saved with
    `template_text` as its chat template and `end_token` as its end token. Neither `model` nor `tokenizer` changes.
    Raises AdpaError where `end_token` is not one token.
    """
    end_id = tokenizer.convert_tokens_to_ids(end_token)
    if end_id is None or tokenizer.convert_ids_to_tokens(end_id) != end_token:
        raise AdpaError(f"the end token {end_token!r} is not in the tokenizer's vocabulary", "choose one that is")
    own = copy.deepcopy(tokenizer)
    own.chat_template = template_text
    own.eos_token = end_token
    tied = model.all_tied_weights_keys
    weights = {
        name: tensor.detach().to("cpu", torch.float32) if tensor.is_floating_point() else tensor.detach().cpu()
        for name, tensor in model.state_dict().items()
        if name not in tied
    }
    before = {name: value for name, value in vars(model).items() if name in ("generation_config", "config")}
    if model.can_generate():
        make: Any = GenerationConfig
        padding = pad_id(own, end_id)
        model.generation_config = make(bos_token_id=own.bos_token_id, eos_token_id=end_id, pad_token_id=padding)
    model.config = copy.deepcopy(model.config)
    model.config.eos_token_id = end_id
    try:
        with _no_progress_bar():
            model.save_pretrained(folder, state_dict=weights, max_shard_size="50GB")
        model.config.dtype = "float32"  # of the bytes written, whatever the dtype in memory
        model.config.save_pretrained(folder)
    finally:
        vars(model).update(before)
    own.save_pretrained(folder)


@contextmanager
def _no_progress_bar() -> Iterator[None]:
    logs: Any = transformers_logging
    shown = logs.is_progress_bar_enabled()
    logs.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logs.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its name."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]


def cast_weights(folder: Path, dtype: Dtype) -> None:
    """Write the float tensors of every safetensors file of a model folder in `dtype`, and say so in its config."""
    wanted = getattr(torch, dtype)
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as opened:
            metadata = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  it is no mapping
        cast = {name: tensor.to(wanted) if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
        total += sum(tensor.nbytes for tensor in cast.values())
        mode = path.stat().st_mode
        save_file(cast, path, {"format": metadata.get("format", "pt")})
        path.chmod(mode)  # safetensors writes for the owner alone
    _edit(folder / "config.json", {"dtype": dtype})
    _edit(folder / "model.safetensors.index.json", {"metadata": {"total_size": total}})


def _edit(path: Path, changes: Mapping[str, Any]) -> None:
    if path.exists():
        raw = {**json.loads(path.read_text(encoding="utf-8")), **changes}
        path.write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")


def body_and_head(model: PreTrainedModel) -> tuple[nn.Module, Tensor, Tensor | None]:
    """The decoder without its head, the head's weight [V, H], and its bias [V] if it has one."""
    untyped: Any = model  # transformers does not annotate its getters
    head = untyped.get_output_embeddings()
    body = untyped.get_decoder()
    if body is model:
        body = model.base_model
    if body is model or head is None or not isinstance(getattr(head, "weight", None), Tensor):
        raise AdpaError(
            f"{type(model).__name__} does not show its decoder and its output embeddings",
            "use a decoder-only model such as Llama, Qwen, Mistral, Phi or Pythia",
        )
    return body, head.weight, getattr(head, "bias", None)


def computing(dtype: Dtype, device: torch.device) -> AbstractContextManager[Any]:
    """The context in which float32 weights compute in `dtype`."""
    return torch.autocast(device.type, torch.bfloat16) if dtype == "bfloat16" else nullcontext()


def hidden_states(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor | None, *, dtype: Dtype = "float32", **more: Any
) -> Tensor:
    """Last hidden states [B, T, H] of `input_ids` [B, T] (right padded, `attention_mask` [B, T] of 0 and 1).

    Without a mask the states of real tokens are the same: under right padding a causal model never looks at padding.
    With `dtype="bfloat16"` the body runs under autocast; it is given what `more` there is.
    """
    with computing(dtype, input_ids.device):
        out = body_and_head(model)[0](input_ids=input_ids, attention_mask=attention_mask, use_cache=False, **more)
    states: Tensor = out.last_hidden_state
    return states


def output_head(model: PreTrainedModel) -> Head:
    """The head with what its configuration says of scaling (Granite, Cohere) and soft-capping (Gemma) after it."""
    _, weight, bias = body_and_head(model)
    config = model.config.get_text_config()
    values = (getattr(config, name, None) for name in ("logit_scale", "logits_scaling", "final_logit_softcapping"))
    scale, divisor, softcap = (float(value) if isinstance(value, int | float) and value else None for value in values)
    return Head(weight, bias, (scale or 1.0) / (divisor or 1.0), softcap)
