"""What is saved here is the same model, with the same ids, in transformers 4.57."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, MixtralConfig, Phi3Config, Qwen2Config, Qwen3MoeConfig

from adpa_cli.data.tokenizer import Tokenizer
from adpa_cli.engine.models import load, save
from adpa_cli.lab import world
from support.cli_samples import Cli, write_rows
from support.model_folders import CHATML, SMALL, VARIED, byte_level, change, write_model, write_vision_language

pytestmark = pytest.mark.slow
OLDER = (
    "transformers==4.57.*", "huggingface_hub<1", "tokenizers<0.23", "requests", "charset-normalizer", "urllib3", "idna",
    "certifi",
)  # fmt: skip
IDS = list(range(5, 60))
READ = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, __version__
ids, text, found = json.loads(sys.argv[1]), sys.argv[2], {"version": __version__}
for folder in sys.argv[3:]:
    model, said = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor([ids])).logits[0].tolist()
    found[folder] = {
        "logits": logits, "ids": tokenizer(text, add_special_tokens=False)["input_ids"],
        "lost": [*said["missing_keys"], *said["unexpected_keys"], *said["mismatched_keys"]],
        "stops": model.generation_config.eos_token_id, "end": tokenizer.eos_token_id,
        "class": type(tokenizer).__name__,
    }
print("\\n" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Reads folders with transformers 4.57, which is put before the installed one for a process of its own."""
    target = tmp_path_factory.mktemp("older")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--retries",
        "1",
        "--no-deps",
        "--target",
        str(target),
        *OLDER,
    ]
    installed = subprocess.run(pip, capture_output=True, text=True)
    if installed.returncode != 0:
        pytest.skip(f"transformers 4.57 cannot be installed here: {installed.stderr[-200:]}")
    environment = {**os.environ, "PYTHONPATH": str(target), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

    def read(*folders: Path) -> Any:
        words = [sys.executable, "-c", READ, json.dumps(IDS), VARIED, *map(str, folders)]
        ran = subprocess.run(words, capture_output=True, text=True, env=environment)
        assert ran.returncode == 0, ran.stderr[-3000:]
        return json.loads(ran.stdout.splitlines()[-1])

    return read


def sized(kind: Any, **settings: Any) -> Any:
    return kind(**{**SMALL, "vocab_size": byte_level().get_vocab_size(), **settings})


def an_old_rotary_base(folder: Path) -> None:
    write_model(folder)
    change(folder / "config.json", rope_parameters=None, rope_theta=1000000.0)


def scaled_positions(folder: Path) -> None:
    rotary = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }  # fmt: skip
    write_model(folder, sized(LlamaConfig, rope_parameters=rotary))


def tied_and_different(folder: Path) -> None:
    write_model(folder)
    change(folder / "config.json", tie_word_embeddings=True)


def tied(folder: Path) -> None:
    write_model(folder, sized(LlamaConfig, tie_word_embeddings=True))


def digits(folder: Path) -> None:
    core = byte_level(single_digits=True)
    config = Qwen2Config(**{**SMALL, "vocab_size": core.get_vocab_size()})
    write_model(folder, config, core, tokenizer_class="GPT2Tokenizer", extra_special_tokens=["<|im_start|>"])


def mixtral(folder: Path) -> None:
    write_model(folder, sized(MixtralConfig, num_local_experts=4, num_experts_per_tok=2))


def qwen3_moe(folder: Path) -> None:
    write_model(folder, sized(Qwen3MoeConfig, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16))


def phi3(folder: Path) -> None:
    rotary = {
        "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.5, 2.0, 2.5],
        "long_factor": [2.0, 3.0, 4.0, 5.0],
    }  # fmt: skip
    write_model(folder, sized(Phi3Config, original_max_position_embeddings=32, rope_parameters=rotary))


def sees_images(folder: Path) -> None:
    write_vision_language(folder, byte_level())


def in_bfloat16(folder: Path) -> None:
    write_model(folder)
    weights = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    change(folder / "config.json", dtype="bfloat16")


MODELS: tuple[Callable[[Path], None], ...] = (
    an_old_rotary_base, scaled_positions, tied_and_different, tied, digits, mixtral, qwen3_moe, phi3, sees_images,
    in_bfloat16,
)  # fmt: skip


def test_saved_models_are_the_same_in_an_older_transformers(older: Callable[..., Any], tmp_path: Path) -> None:
    ours: dict[Path, tuple[torch.Tensor, list[int]]] = {}
    for make in MODELS:
        source, folder = tmp_path / "source" / make.__name__, tmp_path / make.__name__
        make(source)
        (source / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 2], "temperature": 0.7}))
        model, tokenizer = load(source), Tokenizer.of(source)
        save(model, tokenizer, folder, CHATML, "<|im_end|>", source)
        untyped: Any = model
        with torch.no_grad():
            ours[folder] = untyped(input_ids=torch.tensor([IDS])).logits[0], tokenizer.ids(VARIED)
    found = older(*ours)
    assert found["version"].startswith("4.57")
    for folder, (logits, ids) in ours.items():
        theirs = found[str(folder)]
        torch.testing.assert_close(torch.tensor(theirs["logits"]), logits, rtol=1e-4, atol=1e-4, msg=folder.name)
        assert theirs["ids"] == ids, folder.name
        assert (theirs["lost"], theirs["class"]) == ([], "PreTrainedTokenizerFast"), folder.name
        assert (theirs["stops"], theirs["end"]) == ([2, 3], 2), folder.name


def test_an_export_is_the_same_in_an_older_transformers(older: Callable[..., Any], cli: Cli, tmp_path: Path) -> None:
    digits(tmp_path / "m")
    write_rows(tmp_path / "few.jsonl", world.demonstrations("train")[:4])
    words = ("--data", "few.jsonl", "--max-steps", "1", "--set", "max_length=64", "-y")
    ref = cli("sft", "--model", "./m", *words).ref
    for out, more in (("out", ()), ("half", ("--dtype", "bfloat16"))):
        assert cli("export", ref, out, *more).code == 0
    model: Any = load(Path("adpa-store", ref))
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([IDS])).logits[0]
    found = older(tmp_path / "out", tmp_path / "half")
    theirs = found[str(tmp_path / "out")]
    torch.testing.assert_close(torch.tensor(theirs["logits"]), logits, rtol=1e-4, atol=1e-4)
    for folder in ("out", "half"):
        assert found[str(tmp_path / folder)]["ids"] == Tokenizer.of(tmp_path / "m").ids(VARIED)
