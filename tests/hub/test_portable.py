"""config.json and generation_config.json under the names of transformers 4 and 5."""

from __future__ import annotations

from typing import Any

import pytest

from adpa_cli.hub.portable import portable_config, portable_generation

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
LONG = {"short_factor": [1.0, 1.5], "long_factor": [2.0, 3.0]}


@pytest.mark.parametrize(
    ("saved", "older"),
    [
        ({"rope_theta": 5e5, "rope_type": "default"}, {"rope_theta": 5e5}),
        ({"rope_theta": 5e5, **LLAMA3}, {"rope_theta": 5e5, "rope_scaling": LLAMA3}),
        (
            {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 0.5},
            {"rope_theta": 1e4, "partial_rotary_factor": 0.5},
        ),
        (
            {"rope_theta": 1e4, "rope_type": "longrope", "factor": 4.0, **LONG},
            {"rope_theta": 1e4, "rope_scaling": {"rope_type": "longrope", "factor": 4.0, **LONG}},
        ),
        (
            {
                "full_attention": {"rope_theta": 1e6, "rope_type": "linear", "factor": 8.0},
                "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
            },
            {
                "rope_theta": 1e6, "rope_local_base_freq": 1e4,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
        ),
    ],
)  # fmt: skip
def test_rotary_embeddings_have_both_names(saved: dict[str, Any], older: dict[str, Any]) -> None:
    config = {"model_type": "llama", "rope_parameters": saved}
    written = portable_config(config, {})
    assert written == {**config, **older}
    assert portable_config(written, {}) == written, "written twice it stays the same"


def test_phi_3_takes_three_keys_and_no_other() -> None:
    rotary = {"rope_theta": 1e4, "rope_type": "longrope", **LONG, "original_max_position_embeddings": 4096}
    written = portable_config({"model_type": "phi3", "rope_parameters": rotary}, {})
    assert written["rope_scaling"] == {"type": "longrope", **LONG}


def test_gpt_neox_has_names_of_its_own() -> None:
    rotary = {"rope_theta": 2e4, "rope_type": "default", "partial_rotary_factor": 0.25}
    written = portable_config({"model_type": "gpt_neox", "rope_parameters": rotary}, {})
    assert (written["rotary_emb_base"], written["rotary_pct"]) == (2e4, 0.25)


def test_dtypes_and_experts_have_both_names() -> None:
    source = {"num_experts": 4, "torch_dtype": "float16"}
    written = portable_config({"dtype": "float32", "num_local_experts": 4}, source)
    assert (written["torch_dtype"], written["num_experts"], written["num_local_experts"]) == ("float32", 4, 4)
    assert portable_config({"num_local_experts": 8}, {})["num_experts"] == 8


def test_what_the_source_says_and_transformers_drops_is_kept() -> None:
    source = {
        "rope_theta": 1e6, "rope_scaling": {"type": "linear", "factor": 2.0}, "max_window_layers": 28, "hidden_size": 1,
        "quantization_config": {"bits": 4}, "auto_map": {"AutoModel": "x.Y"}, "transformers_version": "4.40.0",
        "_name_or_path": "org/name", "torch_dtype": "bfloat16", "eos_token_id": [1, 2], "tie_word_embeddings": True,
    }  # fmt: skip
    rotary = {"rope_theta": 1e6, "rope_type": "linear", "factor": 2.0}
    saved = {"hidden_size": 8, "eos_token_id": 3, "tie_word_embeddings": False, "rope_parameters": rotary}
    assert portable_config(saved, source) == {
        **saved, "rope_theta": 1e6, "rope_scaling": source["rope_scaling"], "max_window_layers": 28,
    }  # fmt: skip


def test_of_a_source_of_several_parts_the_one_that_reads_text_counts() -> None:
    source = {"image_token_index": 9, "text_config": {"query_pre_attn_scalar": 256}, "vision_config": {"x": 1}}
    assert portable_config({"a": 1}, source) == {"a": 1, "query_pre_attn_scalar": 256}


def test_sampling_values_are_those_of_the_source() -> None:
    source = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "eos_token_id": [5, 6], "transformers_version": "4"}
    assert portable_generation(source, 1, [7, 5, 6], 0, "5.0") == {
        "do_sample": True, "temperature": 0.7, "top_p": 0.8, "bos_token_id": 1, "eos_token_id": [7, 5, 6],
        "pad_token_id": 0, "transformers_version": "5.0",
    }  # fmt: skip


def test_what_was_made_of_a_configuration_says_nothing_of_sampling() -> None:
    source = {"_from_model_config": True, "temperature": 9.0, "eos_token_id": 2}
    assert portable_generation(source, None, [2], 2, "5.0") == {
        "eos_token_id": 2, "pad_token_id": 2, "transformers_version": "5.0"
    }  # fmt: skip
