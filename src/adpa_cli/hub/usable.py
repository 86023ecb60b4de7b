"""Model folders that cannot be used, each named for what it is before any work, and what to do instead.

What the names of the files tell is refused where they are hashed (`store.identity`); here is what config.json and the
tokenizer tell. Nothing loads a tensor.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from adpa_cli.errors import AdpaError, DataError
from adpa_cli.hub.adapter_folder import FETCH, AdapterFolder
from adpa_cli.hub.model_folder import IN_LAYERS, ModelFolder, header
from adpa_cli.store.identity import ADAPTER, ADAPTER_WEIGHTS

CHECKED = 4
"""Number of `check_model`, raised when it refuses more."""
QUANTISED = {
    "gptq": "GPTQ", "awq": "AWQ", "bitsandbytes": "bitsandbytes", "fp8": "FP8", "fbgemm_fp8": "FP8",
    "compressed-tensors": "compressed-tensors", "mxfp4": "MXFP4", "hqq": "HQQ", "aqlm": "AQLM", "eetq": "EETQ",
}  # fmt: skip
ENCODERS = (
    "albert", "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "ernie", "layoutlm", "longformer",
    "modernbert", "mpnet", "nomic_bert", "roberta", "roberta-prelayernorm", "squeezebert", "xlm-roberta",
    "xlm-roberta-xl",
)  # fmt: skip
SEQUENCE_TO_SEQUENCE = (
    "bart", "blenderbot", "bigbird_pegasus", "fsmt", "led", "longt5", "m2m_100", "marian", "mbart", "mt5", "mvp",
    "nllb-moe", "pegasus", "plbart", "prophetnet", "switch_transformers", "t5", "t5gemma", "umt5", "whisper",
)  # fmt: skip
_FIRST = re.compile(r"(?:^|\.)([a-z_]+\.\d+\..+)\.lora_A\.weight$")
UNQUANTISED = "take the model that it was quantised from; --set STAGE.quantise=nf4 stores that in four bits"
DECODERS_WANTED = "use a decoder-only language model, such as Llama, Qwen, Mistral, Gemma or Phi"


def check_model(folder: ModelFolder, name: str) -> None:
    """Raise DataError for a folder whose weights or tokenizer cannot be read here, whatever it is wanted for; of an
    adapter also for one that does not fit its base."""
    if folder.adapter:
        check_model(folder.whole, f"{folder.adapter.base_name}, the base of {name},")
        _check_ids(folder, name)
        check_adapter(folder, folder.adapter, name)
        return
    _check_weights(folder, name)
    _check_code(folder, name)
    _check_facts(folder)
    _check_ids(folder, name)


def check_adapter(folder: ModelFolder, adapter: AdapterFolder, name: str) -> None:
    """Raise DataError for an adapter that computes in a way which is not known here, or whose matrices do not fit the
    weights of its base, or its own rank.

    Layers go by their names within the base's layers, for what stands before those differs between folders. Nothing is
    compared while one of the two is not on this machine.
    """
    _ = adapter.settings
    file = adapter.path / ADAPTER_WEIGHTS
    if not file.exists() or not folder.shapes:
        return
    weights = {within[1]: shape for of, shape in folder.shapes.items() if (within := IN_LAYERS.search(of))}
    shapes = {of: tuple(entry["shape"]) for of, entry in header(file).items()}
    firsts = {within[1]: (of, shape) for of, shape in shapes.items() if (within := _FIRST.search(of))}
    for layer, (of, first) in firsts.items():
        second = shapes.get(of.replace("lora_A", "lora_B"), ())
        if not second or len(first) != 2 or second[1] != first[0]:
            raise DataError(f"{file} is damaged: {of} is {list(first)} and its lora_B {list(second)}", FETCH)
        if not adapter.config.get("rank_pattern") and first[0] != adapter.rank:
            said = f"adapter_config.json of {name} says rank {adapter.rank}, and {of} has {first[0]}"
            raise DataError(said, f"{FETCH}: the two files are not of one adapter")
        wanted = {(second[0], first[1]), (first[1], second[0])}
        if (own := weights.get(f"{layer}.weight")) is not None and own not in wanted:
            there = " × ".join(map(str, own))
            raise _other_base(name, adapter, f"{layer} is {there} there, and {second[0]} × {first[1]} in the adapter")
    if firsts and not any(f"{layer}.weight" in weights for layer in firsts):
        raise _other_base(name, adapter, f"there is no {next(iter(firsts))}")


def _other_base(name: str, adapter: AdapterFolder, why: str) -> DataError:
    return DataError(
        f"{name} is not an adapter of {adapter.base_name}: {why}",
        f"write the model that it was trained on into {adapter.path / ADAPTER}, as base_model_name_or_path",
    )


def check_decoder(folder: ModelFolder, name: str) -> None:
    """Raise DataError for a model that does not write texts from left to right, or whose text part stands on no own."""
    config = folder.raw_config
    said = config.get("architectures")
    kind, made_as = str(config.get("model_type", "")), said if isinstance(said, list) else []
    writes = any(str(architecture).endswith(("ForCausalLM", "LMHeadModel")) for architecture in made_as)
    if config.get("is_encoder_decoder") or kind in SEQUENCE_TO_SEQUENCE:
        raise DataError(f"{name} is an encoder-decoder model ({_called(kind, made_as)})", DECODERS_WANTED)
    if kind in ENCODERS and not writes:
        raise DataError(f"{name} is an encoder ({_called(kind, made_as)}), which writes no text", DECODERS_WANTED)
    if "vision_config" in config or folder.has_text_part:
        _check_text_part(folder, name)


def remarks(folder: ModelFolder, name: str) -> tuple[str, ...]:
    """What is worth saying of a folder that is used."""
    said = []
    if (base := folder.unused_adapter) is not None:
        said.append(f"{name}: the adapter beside the weights{f' (of {base})' if base else ''} is not used")
    if (weights := _layers_of_weights(folder)) > (layers := folder.size.layers):
        stated = f"{layers} layer{'s' * (layers != 1)}"
        said.append(f"{name}: config.json says {stated} and the weights have {weights}; only the first are used")
    if folder.has_text_part:
        said.append(f"{name} has several parts: the one that reads text is used and saved, as a model of its own")
    return tuple(said)


def _layers_of_weights(folder: ModelFolder) -> int:
    """How many decoder layers the weights have; 0 where their names do not tell."""
    numbers = (re.search(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.", name) for name in folder.shapes)
    return max((int(number[1]) + 1 for number in numbers if number), default=0)


def _called(kind: str, made_as: list[Any]) -> str:
    return ", ".join(map(str, made_as)) or kind


def _check_weights(folder: ModelFolder, name: str) -> None:
    quantised = folder.raw_config.get("quantization_config") or folder.raw_config.get("compression_config")
    if not quantised:
        if packed := folder.packed:
            raise DataError(f"{name} is quantised ({packed[0]} is stored as {packed[1]})", UNQUANTISED)
        return
    said = quantised if isinstance(quantised, dict) else {}
    method = str(said.get("quant_method") or ("bitsandbytes" if _bits(said) else "unknown"))
    bits = f", {bits} bits" if (bits := _bits(said)) else ""
    raise DataError(
        f"{name} is quantised ({QUANTISED.get(method, method)}{bits}: quantization_config in config.json)",
        f"{UNQUANTISED}; where the weights are in fact full, delete quantization_config",
    )


def _bits(said: Mapping[str, Any]) -> str:
    if said.get("load_in_4bit") or said.get("load_in_8bit"):
        return "4" if said.get("load_in_4bit") else "8"
    return str(said.get("bits") or said.get("w_bit") or "")


def _check_code(folder: ModelFolder, name: str) -> None:
    config = folder.raw_config
    kind = str(config.get("model_type", ""))
    if not kind:
        raise DataError(f"config.json of {name} has no model_type, so it is not known how to load it", DECODERS_WANTED)
    if not config.get("auto_map"):
        return
    from transformers import CONFIG_MAPPING

    if kind not in CONFIG_MAPPING:
        raise DataError(
            f"{name} needs its own code (model_type {kind}), and code that comes with a model is never run",
            "use a model whose type is part of transformers",
        )


def _check_facts(folder: ModelFolder) -> None:
    """Read once all that is read of a folder later on. Raises DataError where a file says it in another form."""
    _ = folder.context, folder.shapes
    try:
        _ = folder.size
    except DataError:
        raise
    except AdpaError:  # what is not said is what transformers takes for its kind
        pass


def _check_ids(folder: ModelFolder, name: str) -> None:
    said = folder.config.get("vocab_size")
    if isinstance(said, int) and folder.rows != said and not folder.has_text_part:
        raise DataError(
            f"config.json of {name} says vocab_size {said}, and the embedding has {folder.rows} rows",
            "download the folder again: its weights or its config.json belong to another model",
        )
    tokens = folder.tokens
    if tokens is None or "vocab_size" not in folder.config or tokens.last < folder.rows:
        return
    raise beyond_rows(name, tokens.last, tokens.last_token, folder.rows)


def beyond_rows(name: str, id_: int, token: str | None, rows: int) -> DataError:
    """The error of a tokenizer with an id that the embedding of its model has no row for."""
    return DataError(
        f"the tokenizer of {name} has ids up to {id_} ({token!r}), and the embedding of its model only {rows} rows: "
        "such ids are beyond the embedding",
        "put the tokenizer there that belongs to the model, or enlarge the model once: "
        "model.resize_token_embeddings(len(tokenizer)), then save_pretrained into another folder",
    )


def _check_text_part(folder: ModelFolder, name: str) -> None:
    """Raise DataError unless transformers has the part of a model that reads text as a model of its own."""
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    hint = "use a model of text, or one whose text part is one, such as Gemma 3 or Mistral Small 3"
    try:
        whole: Any = AutoConfig.from_pretrained(folder.whole.path, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, AttributeError) as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"{name} sees images, and its config.json cannot be read: {said}", hint) from error
    kind = whole.get_text_config().model_type
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or kind == whole.model_type:
        raise DataError(f"{name} sees images, and transformers has no model for its text part ({kind}) alone", hint)
