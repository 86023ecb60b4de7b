"""The explicit stages on real data and local model folders: ids in, ids out, a student that plain transformers runs.

Models are far smaller than those that `examples/make_models.py` makes on its own, and few rows are read; everything
else is what a user types.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor, LogitsProcessorList

from adpa_cli.cli.main import main
from adpa_cli.engine.layout.examples import Rollout, read_rollouts

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
SIZES = ("--vocabulary", "1024", "--teacher", "64x2", "--student", "32x2")
EVERY = ("--limit", "24", "--set", "max_length=256", "--set", "rollout.max_new_tokens=16")
TRAINING = ("--max-steps", "2", "--batch-size", "8", "--lr", "1e-3")


@dataclass
class Shell:
    """Runs commands in this process against one store; `stderr` is what the last one said."""

    folder: Path
    capfd: pytest.CaptureFixture[str]
    stderr: str = ""

    def __call__(self, *words: str, exit_code: int = 0) -> str:
        """The stdout of `adpa WORDS…`, which must end with `exit_code`."""
        code = main([*words, "--store", str(self.folder / "store")])
        out, self.stderr = self.capfd.readouterr()
        assert code == exit_code, self.stderr
        return out.strip()

    def models(self, data: str, *words: str) -> Path:
        """The folder in which examples/make_models.py made a small teacher and student."""
        assert example("make_models").main([data, str(self.folder), *SIZES, *words]) == 0
        made = self.capfd.readouterr().out.split()
        assert made == [str(self.folder / "teacher"), str(self.folder / "student")]
        return self.folder


@pytest.fixture
def adpa(tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.chdir(tmp_path)
    return Shell(tmp_path, capfd)


def example(name: str) -> ModuleType:
    """A script of examples/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    if spec is None or spec.loader is None:
        pytest.fail(f"examples/{name}.py is not there")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@dataclass(frozen=True)
class Made:
    """What a run of all stages left behind, by id."""

    teacher_sft: str
    aligned: str
    dckd: str
    answers: str
    adpa: str
    folder: Path
    rollouts: list[Rollout]


def all_stages(adpa: Shell, data: str, models: Path, *more: str) -> Made:
    """What examples/pipeline.sh does, in this process."""
    every, training = (*EVERY, *more), (*TRAINING, *EVERY, *more)
    teacher_sft = adpa("sft", "--model", str(models / "teacher"), "--data", data, *training)
    student_sft = adpa("sft", "--model", str(models / "student"), "--data", data, *training)
    aligned = adpa("dpo-teacher", "--reference", teacher_sft, "--data", data, *training)
    pairs = adpa("cache-teacher", "--teacher", aligned, "--data", data, *every)
    first = ("distill", "--method", "dckd", "--student", student_sft, "--cache", pairs, "--no-eval")
    dckd = adpa(*first, *training)
    answers = adpa("rollout", "--student", dckd, "--data", data, *every)
    both = ("cache-teacher", "--teacher", aligned, "--reference", teacher_sft, "--rollouts", answers)
    scored = adpa(*both, *every)
    final = adpa("distill", "--method", "adpa", "--student", dckd, "--cache", scored, "--no-eval", *training)
    rollouts = read_rollouts(Path(adpa("path", answers)))
    return Made(teacher_sft, aligned, dckd, answers, final, Path(adpa("path", final)), rollouts)


class ForceAt(LogitsProcessor):
    """Lets one token be the only choice at one length, where an untrained model would never come to it."""

    def __init__(self, length: int, token: int) -> None:
        self.length, self.token = length, token

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if input_ids.shape[1] == self.length:
            scores = torch.full_like(scores, -torch.inf)
            scores[:, self.token] = 0
        return scores


def check_folder(folder: Path, vocabulary: int) -> None:
    """The folder loads in plain transformers, has a chat template, answers, and stops at the end token."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer) == vocabulary
    assert all(torch.isfinite(weight).all() for weight in model.parameters())
    turns = [{"role": "user", "content": "Name a colour."}]
    text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    assert text == "<|bos|><|user|>\nName a colour.<|end|>\n<|assistant|>\n"
    prompt = tokenizer(text, add_special_tokens=False, return_tensors="pt")
    asked = prompt["input_ids"].shape[1]
    free = model.generate(**prompt, max_new_tokens=8, do_sample=False)
    assert asked < free.shape[1] <= asked + 8
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    stop = LogitsProcessorList([ForceAt(asked + 2, end)])
    stopped = model.generate(**prompt, max_new_tokens=8, do_sample=False, logits_processor=stop)
    assert stopped.shape[1] == asked + 3, "generation goes on after the end token"
    assert stopped[0, -1] == end


def test_judgements_of_real_answers_go_through_every_stage(adpa: Shell, shared_data: Path) -> None:
    data = str(shared_data / "alpaca_eval_preferences.jsonl.zst")
    made = all_stages(adpa, data, adpa.models(data))
    check_folder(made.folder, 1024)
    record = json.loads(adpa("show", made.adpa, "--json"))
    assert record["id"].startswith(made.adpa.split("/")[1])
    prompts = [row.prompt for row in made.rollouts]
    assert len(set(prompts)) == len(prompts) < 24, "rows of one prompt share its answer"
    assert all(len(prompt) == 1 for prompt in prompts)


def test_multi_turn_transcripts_go_through_every_stage(adpa: Shell, shared_data: Path) -> None:
    data = str(shared_data / "hh_rlhf_harmless_test.jsonl.gz")
    models = adpa.models(data, "--skip-bad-rows")
    adpa("sft", "--model", str(models / "teacher"), "--data", data, *TRAINING, *EVERY, exit_code=1)
    assert "9 of 2312 rows cannot be used" in adpa.stderr
    assert "hh_rlhf_harmless_test.jsonl.gz row 87, chosen" in adpa.stderr
    assert "--skip-bad-rows" in adpa.stderr
    made = all_stages(adpa, data, models, "--skip-bad-rows")
    check_folder(made.folder, 1024)
    roles = {tuple(message.role for message in row.prompt) for row in made.rollouts}
    assert ("user", "assistant", "user") in roles
    assert all(said[-1] == "user" for said in roles)


def invented_pairs(path: Path, count: int) -> str:
    """A file of questions with a right and a wrong answer; its name."""
    numbers = random.Random(0)
    rows = []
    for _ in range(count):
        a, b = numbers.randint(1, 99), numbers.randint(1, 99)
        rows.append({
            "prompt": f"What is {a} plus {b}?",
            "chosen": f"{a} plus {b} is {a + b}.",
            "rejected": f"I think that {a} plus {b} is {a - b}, but I am not sure.",
        })  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path.name


def test_the_pipeline_script_chains_ids(adpa: Shell, tmp_path: Path) -> None:
    data = invented_pairs(tmp_path / "pairs.jsonl", 40)
    adpa.models(data, "--vocabulary", "300")
    words = ["bash", str(ROOT / "examples" / "pipeline.sh"), data, "./teacher", "./student", *EVERY, *TRAINING]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(words, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.strip())
    assert folder.parent == tmp_path / "adpa-store" / "distill"
    check_folder(folder, 300)


def test_a_setting_is_the_same_by_its_bare_and_by_its_full_name(adpa: Shell, tmp_path: Path) -> None:
    data = invented_pairs(tmp_path / "pairs.jsonl", 4)
    adpa.models(data, "--vocabulary", "300")
    command = ("sft", "--model", "./student", "--data", data, "--set", "max_length=1024", "--dry-run", "--set")
    bare, full, default, said = (
        adpa(*command, setting) for setting in ("dtype=float32", "sft.dtype=float32", "seed=0", "dtype=bfloat16")
    )
    assert bare == full != default == said
    adpa(*command, "sft.dtipe=float32", exit_code=2)
    assert "sft.dtipe" in adpa.stderr
    adpa(*command, "rollout.dtipe=float32", exit_code=2)
    assert "rollout.dtipe" in adpa.stderr, "a slip in another stage's setting shows in the first command"
