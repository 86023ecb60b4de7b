"""Model folders: load them, check them, run the body without the head, and save them for any other tool.

Weights come from safetensors only, remote code never runs, dropout is off. The head is separate from the body because
log-probs are computed through it tile by tile (`tensors`): `output_head` reads what scales and caps its logits, and
`check_head` proves that the model does that and no more.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PreTrainedModel,
    __version__,
)
from transformers.utils import logging as transformers_logging

from adpa_cli.data.tokenizer import Tokenizer
from adpa_cli.engine import offload
from adpa_cli.engine.adapters import Base, attach_adapter, merge_adapter, shape_in, write_adapter
from adpa_cli.engine.arithmetic import HELD_IN, computing, in_float32
from adpa_cli.engine.device import is_out_of_memory
from adpa_cli.engine.frozen import Skeleton, check_finite, hold
from adpa_cli.engine.lora import SCALAR_HEAD, stored_as
from adpa_cli.engine.quantised import quantise_layers
from adpa_cli.engine.tokenizer_files import LOAD_ERRORS, first_line, save_tokenizer
from adpa_cli.errors import AdpaError, NotFound
from adpa_cli.hub.adapter_folder import AdapterFolder
from adpa_cli.hub.model_folder import ModelFolder
from adpa_cli.hub.portable import portable_config, portable_generation, write_settings
from adpa_cli.spec import Dtype, Quantise
from adpa_cli.tensors.output import Head


def load(
    folder: Path,
    *,
    dtype: Dtype = "float32",
    train: bool = False,
    device: str = "cpu",
    scalar: bool = False,
    quantise: Quantise | None = None,
    new_head: bool = False,
) -> PreTrainedModel:
    """The causal language model in `folder`, with dropout off; with `scalar` its body under a head of one output,
    a sequence classifier, which is 0 where the folder has none and it may be a `new_head`, or with `train`. Of a model
    that sees images it is the part that reads text.

    With `train` all weights are float32, and whatever they compute in is autocast (see `hidden_states`). Otherwise the
    model is frozen, in eval mode, and holds the weights of its products as those in `dtype` read them (`frozen`), or
    stores them as `quantise` says (`quantised`); its layers wait where they are asked to (`offload`).
    The adapter of an adapter folder runs beside its base; with `train` it is merged into it.
    Raises NotFound where the folder has no model, AdpaError where it does not load, where a tensor is missing, or
    where a weight is not finite or out of range.
    """
    adapter = AdapterFolder.of(folder)
    if adapter is None:
        return _load(folder, dtype, train, device, scalar, quantise, new_head or train)
    stored = None if train else stored_as(adapter.low_rank, quantise, str(folder))
    has_head = new_head or train or bool(shape_in(adapter, SCALAR_HEAD))
    model = _load(adapter.base, dtype, train, device, scalar, stored, has_head)
    attach_adapter(model, body_of(model), adapter, "float32" if train else dtype, device)
    if train:
        merge_adapter(model)
    model.train(train)
    model.requires_grad_(train)
    return model


def _load(
    folder: Path,
    dtype: Dtype,
    train: bool,
    device: str,
    scalar: bool,
    quantise: Quantise | None,
    new_head: bool,
) -> PreTrainedModel:
    """What `load` gives for a folder with whole weights; with `new_head` a scalar head that it lacks is 0."""
    if not (folder / "config.json").is_file():
        raise NotFound(f"{folder} is not a model folder: it has no config.json", "adpa models lists what can be named")
    is_held = not train and dtype in HELD_IN
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        _turn_dropout_off(config)
        if scalar:
            config.num_labels = 1
        if dtype == "tf32":  # the products of all experts at once round what they read to the range of their weights
            config._experts_implementation = "eager"
        model: Any = (
            _pretrained(folder, config, scalar, new_head)
            if train
            else _frozen(folder, config, dtype, device, scalar, quantise, new_head)
        )
    except LOAD_ERRORS as error:
        raise AdpaError(
            f"the model in {folder} cannot be loaded: {first_line(error)}",
            "use a folder with config.json and *.safetensors of a causal language model that transformers supports",
        ) from error
    model.to(device)
    model.train(train)
    model.requires_grad_(train)
    if is_held:
        head = getattr(model, "score", None) if scalar else model.get_output_embeddings()
        if head is not None:
            head.forward = in_float32(head.forward)
    checked: PreTrainedModel = model
    return checked


def load_checked(
    folder: Path,
    *,
    dtype: Dtype = "float32",
    train: bool = False,
    device: str = "cpu",
    quantise: Quantise | None = None,
) -> PreTrainedModel:
    """The causal language model in `folder`, whose log-probs its head gives. Raises as `load` and `check_head` do."""
    model = load(folder, dtype=dtype, train=train, device=device, quantise=quantise)
    try:
        check_head(model, "float32" if train else dtype)
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        how, instead = f" with {quantise} weights" * bool(quantise), "quantise=none" if quantise else "dtype=float32"
        raise AdpaError(
            f"{type(model).__name__} cannot compute in {dtype}{how}: {first_line(error)}",
            f"--set STAGE.{instead}",
        ) from error
    return model


def load_to_generate(folder: Path, dtype: Dtype, device: str, quantise: Quantise | None) -> PreTrainedModel:
    """The frozen causal language model in `folder`, to draw answers with. Quantised ones are checked, for some layers
    read a weight otherwise than by their products. Raises as `load_checked` does."""
    loaded = load_checked if quantise else load
    return loaded(folder, dtype=dtype, device=device, quantise=quantise)


def _frozen(
    folder: Path, config: Any, dtype: Dtype, device: str, scalar: bool, quantise: Quantise | None, new_head: bool
) -> PreTrainedModel:
    """The model of a folder with its weights as inference holds them, on a device unless they were loaded whole."""
    one_by_one = dtype in HELD_IN or quantise or offload.is_asked(device)
    skeleton = skeleton_of(folder, config, dtype, scalar, quantise, new_head) if one_by_one else None
    if skeleton is not None:
        filled: PreTrainedModel = offload.filled(skeleton, body_of(skeleton.model), dtype, device)
        return filled
    with offload.turn():
        model: PreTrainedModel = _pretrained(folder, config, scalar, new_head)
        if quantise:
            quantise_layers(body_of(model), model.config.get_text_config(), quantise, dtype)
        if dtype in HELD_IN:
            hold(body_of(model), dtype)
        if offload.is_asked(device):
            offload.unload(body_of(model), dtype, device)
    return model


def skeleton_of(
    folder: Path,
    config: Any,
    dtype: Dtype,
    scalar: bool = False,
    quantise: Quantise | None = None,
    new_head: bool = False,
) -> Skeleton | None:
    """The model of a folder without its weights, where they can be read one by one and held for products in `dtype`, or
    stored as `quantise` says.

    With `new_head` a scalar head that the folder lacks is 0.
    """
    loader: Any = _loader(config, scalar)

    def made() -> Any:
        model = loader.from_config(config, dtype=torch.float32)
        return _text_model(model, scalar) if has_text_part(config) else model

    new = {SCALAR_HEAD} if scalar and new_head else frozenset[str]()
    return Skeleton.of(made, body_of, folder, dtype, quantise, new)


def _pretrained(folder: Path, config: Any, scalar: bool, new_head: bool) -> Any:
    """The model that transformers makes of a folder, in float32; a new scalar head of it is 0."""
    with _no_progress_bar():
        model, info = _loader(config, scalar).from_pretrained(
            folder, config=config, dtype=torch.float32, use_safetensors=True, trust_remote_code=False,
            local_files_only=True, output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
        )  # fmt: skip
    if scalar and new_head and SCALAR_HEAD in info["missing_keys"]:
        torch.nn.init.zeros_(model.get_parameter(SCALAR_HEAD))
        info["missing_keys"] = set(info["missing_keys"]) - {SCALAR_HEAD}
    _check_weights(model, folder, info)
    return _text_model(model, scalar) if has_text_part(model.config) else model


def body_of(model: Any) -> nn.Module:
    """The decoder of a language model, or of a classifier of texts."""
    found: nn.Module = body_and_head(model)[0] if model.can_generate() else model.base_model
    return found


def has_text_part(config: Any) -> bool:
    """Whether a configuration is that of a model of several parts, one of which reads text."""
    return getattr(config, "text_config", None) is not None


def _loader(config: Any, scalar: bool) -> Any:
    """The class of transformers that loads a whole folder."""
    if not has_text_part(config):
        return AutoModelForSequenceClassification if scalar else AutoModelForCausalLM
    mapping: Any = AutoModelForCausalLM._model_mapping
    return AutoModelForCausalLM if type(config) in mapping else AutoModelForImageTextToText


@torch.no_grad()
def _text_model(whole: Any, scalar: bool) -> Any:
    """The part of a model of several parts that reads text, as the model of its own that it also is.

    Its tensors are those of `whole`. Raises AdpaError where transformers has no such model.
    """
    config, decoder, head = whole.config.text_config, whole.get_decoder(), whole.get_output_embeddings()
    is_tied = bool(getattr(whole.config, "tie_word_embeddings", False))
    if not head.weight.is_meta:
        is_tied = head.weight is decoder.get_input_embeddings().weight
    config.tie_word_embeddings = is_tied
    loader: Any = AutoModelForCausalLM
    if scalar:
        config.num_labels, loader = 1, AutoModelForSequenceClassification
    try:
        with torch.device("meta"):  # nothing is drawn: every module is replaced
            text = loader.from_config(config)
    except LOAD_ERRORS as error:
        raise _no_text_model(whole) from error
    if type(text.base_model) is not type(decoder):
        raise _no_text_model(whole)
    setattr(text, text.base_model_prefix, decoder)
    if scalar:
        text.score = nn.Linear(config.hidden_size, 1, bias=False)
        nn.init.zeros_(text.score.weight)
    else:
        text.set_output_embeddings(head)
    return text


def _no_text_model(whole: Any) -> AdpaError:
    return AdpaError(
        f"transformers has no model for the text part of {type(whole).__name__} alone",
        "use a text model, or one whose text part can be used alone, such as Gemma 3 or Mistral Small 3",
    )


def _turn_dropout_off(config: Any) -> None:
    """Set every dropout probability of `config`, and of the configs nested in it, to 0."""
    for name, value in list(vars(config).items()):
        if hasattr(value, "to_diff_dict"):
            _turn_dropout_off(value)
        elif "drop" in name and isinstance(value, (int, float)) and not isinstance(value, bool):
            setattr(config, name, type(value)(0))


def _check_weights(model: PreTrainedModel, folder: Path, info: dict[str, Any]) -> None:
    missing, mismatched = sorted(info["missing_keys"]), sorted(info["mismatched_keys"])
    hint = "download or write the folder again: its weights are damaged or belong to another model"
    if missing:
        raise AdpaError(f"{folder} lacks {len(missing)} of its model's tensors, such as {missing[0]}", hint)
    if mismatched:
        name, stored, expected = mismatched[0]
        raise AdpaError(
            f"the tensor {name} in {folder} has the shape {list(stored)}, and config.json says {list(expected)}", hint
        )
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            check_finite(tensor, name, folder)


@torch.no_grad()
def check_head(model: PreTrainedModel, dtype: Dtype = "float32") -> None:
    """Raise AdpaError unless the model's logits in `dtype` are what `output_head` makes of its last hidden states.

    Small logits hide a soft cap, so what the head puts out is also replaced by large known values.
    """
    head = output_head(model)
    ids = torch.arange(5, device=head.weight.device).remainder(head.weight.shape[0])[None]
    mask = torch.ones_like(ids)
    untyped: Any = model
    training = model.training
    model.train(False)
    with computing(dtype, ids.device):
        logits = untyped(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()
    if dtype == "float16" and not bool(torch.isfinite(logits).all()):
        return check_head(model, "tf32")  # it is the work that says where float16 overflows
    states = hidden_states(model, ids, mask, dtype=dtype)
    products = nn.functional.linear(states.to(head.weight.dtype), head.weight)
    known = torch.linspace(-300, 300, logits.numel(), device=logits.device).view_as(logits).to(products.dtype)
    hook = untyped.get_output_embeddings().register_forward_hook(lambda *_: known)
    try:
        with computing(dtype, ids.device):
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


def save(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    folder: Path,
    template_text: str,
    end_token: str,
    source: Path | None = None,
    base: Base | None = None,
) -> None:
    """Write a Hugging Face folder with float32 weights that transformers 4 and 5 load alike and that stops at
    `end_token`, or where the folder `source` stops that the weights came from.

    Tied weights are written once; equal weights give equal bytes (one metadata key). The tokenizer is saved with
    `template_text` as its chat template and `end_token` as its end token; sampling values and settings that
    transformers does not write are those of `source`. Of a model with an adapter that is written instead of weights and
    configuration, as one of `base`. Neither `model` nor `tokenizer` changes.
    Raises AdpaError where `end_token` is not one token, or where transformers would cut texts into other ids.
    """
    end_id = tokenizer.id_of(end_token)
    if end_id is None:
        raise AdpaError(
            f"the end token {end_token!r} is not in the tokenizer's vocabulary",
            "choose a token that is in it: --end TOKEN",
        )
    origin = ModelFolder.of(source) if source is not None and _is_model(source) else None
    ends = [end_id, *(other for other in (origin.stop_ids if origin else ()) if other != end_id)]
    generates, padding = model.can_generate(), _padding(model, tokenizer, end_id)
    if base is None:
        _save_weights(model, folder, ends, origin)
    else:
        write_adapter(model, folder, base)
    if generates:
        bos, said = tokenizer.named_id("bos_token"), origin.raw_generation if origin else {}
        write_settings(folder / "generation_config.json", portable_generation(said, bos, ends, padding, __version__))
    padded = tokenizer if generates else tokenizer.padded_with(padding)
    save_tokenizer(padded, folder, template_text, end_token)


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file() or AdapterFolder.of(folder) is not None


def _save_weights(model: PreTrainedModel, folder: Path, ends: Sequence[int], origin: ModelFolder | None) -> None:
    """Write the weights of a model, and its configuration, which stops at the ids `ends`."""
    before = {name: value for name, value in vars(model).items() if name in ("generation_config", "config")}
    if model.can_generate():
        make: Any = GenerationConfig
        model.generation_config = make(eos_token_id=ends[0])
    model.config = copy.deepcopy(model.config)
    model.config.eos_token_id = list(ends) if len(ends) > 1 else ends[0]
    model.config.tie_word_embeddings = is_tied(model)
    try:
        with _no_progress_bar():
            model.save_pretrained(folder, state_dict=_weights(model), max_shard_size="50GB")
        model.config.dtype = "float32"  # of the bytes written, whatever the dtype in memory
        model.config.save_pretrained(folder)
    finally:
        vars(model).update(before)
    raw = json.loads((folder / "config.json").read_bytes())
    write_settings(folder / "config.json", portable_config(raw, origin.raw_config if origin else {}))


def is_tied(model: PreTrainedModel) -> bool:
    """Whether the head of a model is its embedding: one tensor, or equal ones that the configuration calls one."""
    untyped: Any = model
    head, embedding = untyped.get_output_embeddings(), untyped.get_input_embeddings()
    flag = bool(getattr(model.config, "tie_word_embeddings", False))
    if head is None or embedding is None:
        return flag
    return head.weight is embedding.weight or (flag and torch.equal(head.weight, embedding.weight))


def _weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The tensors of a model on the CPU, in float32 where they are numbers with a point, shared ones once."""
    state = model.state_dict()
    shared = {name for name, of in model.all_tied_weights_keys.items() if _same_tensor(state, name, of)}
    return {
        name: tensor.detach().to("cpu", torch.float32) if tensor.is_floating_point() else tensor.detach().cpu()
        for name, tensor in state.items()
        if name not in shared
    }


def _same_tensor(state: Mapping[str, Tensor], name: str, of: str) -> bool:
    return name not in state or of not in state or torch.equal(state[name], state[of])


def _padding(model: PreTrainedModel, tokenizer: Tokenizer, end_id: int) -> int:
    """What fills up shorter rows: of a classifier what its head was trained to skip."""
    own = None if model.can_generate() else model.config.pad_token_id
    named = tokenizer.named_id("pad_token")
    return next(int(pad) for pad in (own, named, end_id) if pad is not None)


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


def body_and_head(model: PreTrainedModel) -> tuple[nn.Module, Tensor, Tensor | None]:
    """The decoder without its head, the head's weight [V, H], and its bias [V] if it has one."""
    untyped: Any = model  # transformers does not annotate its getters
    head = untyped.get_output_embeddings()
    body = untyped.get_decoder()
    if body is model:
        body = model.base_model
    if body is model or head is None or not isinstance(getattr(head, "weight", None), Tensor):
        raise AdpaError(
            f"{type(model).__name__} does not expose its decoder and its output embeddings",
            "use a decoder-only model such as Llama, Qwen, Mistral, Phi or Pythia",
        )
    return body, head.weight, getattr(head, "bias", None)


def hidden_states(
    model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor | None, *, dtype: Dtype = "float32", **more: Any
) -> Tensor:
    """Last hidden states [B, T, H] of `input_ids` [B, T] (right padded, `attention_mask` [B, T] of 0 and 1).

    Without a mask the states of real tokens are the same: under right padding a causal model never looks at padding.
    The body computes in `dtype`; it is given what `more` there is.
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
