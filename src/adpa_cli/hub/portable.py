"""config.json and generation_config.json of a saved model, written so that transformers 4 and 5 read the same model.

transformers 5 has other names for some settings (`rope_parameters` for `rope_theta` and `rope_scaling`, `dtype` for
`torch_dtype`) and writes its own only; transformers 4 and servers built on it then take their defaults without a word.
Both are written here. What the folder that the weights came from said, and transformers 5 drops, is kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Json = Mapping[str, Any]

ABOUT_THE_FILE = (
    "_name_or_path", "_from_model_config", "_attn_implementation", "attn_implementation", "transformers_version",
    "torch_dtype", "dtype", "quantization_config", "compression_config", "auto_map", "architectures", "model_type",
    "text_config", "rope_parameters", "eos_token_id", "bos_token_id", "pad_token_id", "tie_word_embeddings",
)  # fmt: skip
"""What a configuration says of the file it stood in, or what the saved one knows better."""
NO_SAMPLING = ("_from_model_config", "transformers_version", "output_attentions", "output_hidden_states", "use_cache")
GLOBAL, LOCAL = "full_attention", "sliding_attention"


def write_settings(path: Path, value: Json) -> None:
    """Write an object as transformers and peft do."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def edit_settings(path: Path, changes: Json) -> None:
    """Give an object in a file other fields; nothing where there is no such file."""
    if path.exists():
        write_settings(path, {**json.loads(path.read_bytes()), **changes})


def portable_config(saved: Json, source: Json) -> dict[str, Any]:
    """config.json for every version: what transformers 5 `saved`, what `source` had beside it, and the older names.

    `source` is the config.json that the weights came from, {} without one; of a model with a part that reads text the
    configuration of that part counts. Written twice it stays the same.
    """
    of_text = source.get("text_config") or {}
    known = {**({} if of_text else source), **of_text}
    kept = {key: value for key, value in known.items() if key not in ABOUT_THE_FILE}
    written = {**kept, **saved}
    written.pop("auto_map", None)  # the code that it leads to does not come along
    written |= _older_rotary(written)
    if "num_local_experts" in written:
        written.setdefault("num_experts", written["num_local_experts"])
    if dtype := written.get("dtype"):
        written["torch_dtype"] = dtype
    return written


def _older_rotary(config: Json) -> dict[str, Any]:
    """The rotary embedding under the names of transformers 4; nothing for a model without one."""
    parameters = config.get("rope_parameters")
    if not isinstance(parameters, Mapping) or not parameters:
        return {}
    both = parameters.get(GLOBAL), parameters.get(LOCAL)
    everywhere = both[0] if isinstance(both[0], Mapping) else parameters
    older: dict[str, Any] = {}
    if "rope_theta" in everywhere:
        older["rope_theta"] = everywhere["rope_theta"]
    if isinstance(both[1], Mapping) and "rope_theta" in both[1]:
        older["rope_local_base_freq"] = both[1]["rope_theta"]
    if (part := everywhere.get("partial_rotary_factor")) is not None:
        older["partial_rotary_factor"] = part
    if config.get("model_type") == "gpt_neox":
        names = {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"}
        older |= {name: older[of] for name, of in names.items() if of in older}
    scaling = {key: v for key, v in everywhere.items() if key not in ("rope_theta", "partial_rotary_factor")}
    if scaling.get("rope_type", "default") != "default" and not config.get("rope_scaling"):
        older["rope_scaling"] = _older_scaling(scaling, str(config.get("model_type")))
    return older


def _older_scaling(scaling: Json, kind: str) -> dict[str, Any]:
    """The scaling of positions as transformers 4 has it; Phi-3 takes three keys for its own and no other."""
    if kind == "phi3" and scaling["rope_type"] == "longrope" and {"short_factor", "long_factor"} <= set(scaling):
        return {"type": "longrope", **{key: scaling[key] for key in ("short_factor", "long_factor")}}
    return dict(scaling)


def portable_generation(source: Json, bos: int | None, ends: Sequence[int], pad: int, version: str) -> dict[str, Any]:
    """generation_config.json: the sampling values of `source`, which end tokens stop, and what fills up.

    `source` is the file of the folder that the weights came from, {} without one. One that transformers made of the
    model's configuration says nothing of sampling.
    """
    invented = source.get("_from_model_config")
    sampling = {} if invented else {key: value for key, value in source.items() if key not in NO_SAMPLING}
    written = {**sampling, "eos_token_id": ends[0] if len(ends) == 1 else list(ends), "pad_token_id": pad}
    if bos is not None:
        written["bos_token_id"] = bos
    return {**written, "transformers_version": version}
