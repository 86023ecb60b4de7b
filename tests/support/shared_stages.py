"""Stages that read frozen models: several processes share these out, and one process has each of them whole."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import LlamaConfig, LlamaForSequenceClassification, MixtralConfig, MixtralForCausalLM

from adpa_cli.engine.ranks import Ranks
from adpa_cli.engine.sharding import Company
from adpa_cli.errors import Stopped
from adpa_cli.hub import Located
from adpa_cli.spec import Runtime
from adpa_cli.stages import Job, Monitor, cache_teacher, compute, every, rewards, rollout, start_logps
from adpa_cli.stages import eval as evaluation
from adpa_cli.suites import every as suites
from support.cli_samples import write_rows
from support.light_update import write_pair
from support.peft_folders import write_adapter
from support.tiny_models import TEMPLATE, VOCABULARY, pretrained_tokenizer

ROWS = [{"prompt": f"w{n} w{n + 1}", "chosen": f"w{n} w2 w{n} w4", "rejected": f"w{n + 1} w3 w5"} for n in range(17)]
READ = {"template": TEMPLATE, "end": "<end>", "max_length": 32}
SIZES = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.4,
}  # fmt: skip
SCORED = {**READ, "block_tokens": 40, "noise_answers": 4}


def write_inputs(folder: Path) -> None:
    """Two teachers, an adapter of one, one whose experts are read all at once, a reward model, and pairs."""
    write_pair(folder, template=TEMPLATE)
    write_adapter(folder / "adapter", folder / "teacher")
    make: Any = LlamaConfig
    torch.manual_seed(0)
    LlamaForSequenceClassification(make(**SIZES, num_labels=1)).save_pretrained(folder / "judge")
    tokenizer = pretrained_tokenizer()
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder / "judge")
    experts: Any = MixtralConfig
    MixtralForCausalLM(experts(**SIZES, num_local_experts=4, num_experts_per_tok=2)).save_pretrained(folder / "experts")
    tokenizer.save_pretrained(folder / "experts")
    write_rows(folder / "pairs.jsonl", ROWS)


def jobs(folder: Path) -> dict[str, Job]:
    """One of each stage, by its name and what is said of it."""
    pair_suite = next(name for name, suite in suites().items() if suite.margins and "reference" in suite.scorers)

    def job(stage: str, dtype: str, spec: dict[str, Any], **models: str) -> Job:
        inputs = {
            role: (Located("model", f"model:{name}", name, (str(folder / name),)),) for role, name in models.items()
        }
        data = Located("data", "data:d", "d", (str(folder / "pairs.jsonl"),))
        runtime = Runtime(noise="accept", shard="all", processes=Ranks.here().count)
        hints = {"training": "distill"}
        settled = {"limit": None, "skip_bad_rows": False, "smoke": False, "dtype": dtype, **spec}
        return Job(stage, f"{stage}/test", settled, {**inputs, "data": (data,)}, "", runtime, hints)

    pair = {"aligned": "teacher", "reference": "reference"}
    captured = {**SCORED, "parts": ("chosen", "rejected"), "top_k": 8}
    drawn = {**READ, "temperature": 0.7, "max_new_tokens": 12, "block_tokens": 16}
    started = {**READ, "parts": ("chosen", "rejected"), "block_tokens": 40}
    return {
        "capture": job(cache_teacher.CACHE_TEACHER.name, "bfloat16", captured, **pair),
        "capture of shared prompts": job(
            cache_teacher.CACHE_TEACHER.name, "tf32", {**captured, "prompts": "auto"}, **pair
        ),
        "rollout": job(rollout.ROLLOUT.name, "bfloat16", drawn, model="teacher"),
        "rollout in tf32": job(rollout.ROLLOUT.name, "tf32", drawn, model="teacher"),
        "rollout of an adapter": job(rollout.ROLLOUT.name, "bfloat16", drawn, model="adapter"),
        "rollout of experts": job(rollout.ROLLOUT.name, "bfloat16", drawn, model="experts"),
        "start": job(start_logps.START_LOGPS.name, "float32", started, model="teacher"),
        "rewards": job(rewards.REWARDS.name, "bfloat16", SCORED, reward_model="judge"),
        "margins": job(
            evaluation.EVAL.name, "bfloat16", {**SCORED, "suite": pair_suite, "split": "train"}, model="teacher", **pair
        ),
    }


def watch(found: list[nn.Module]) -> None:
    """Note the layers that processes share out."""
    real: Callable[..., None] = Company.begin

    def begin(company: Company, body: nn.Module, *rest: Any) -> None:
        real(company, body, *rest)
        found.extend(module for module in body.modules() if isinstance(module, FSDPModule))

    Company.begin = begin  # type: ignore[method-assign]  # in this process only


def stopped(job: Job, ranks: Ranks) -> str:
    """What all processes were stopped by where one is told to stop as soon as something is finished."""
    told = Monitor(stop=lambda: "SIGTERM" if ranks.rank == 1 and any(job.folder.iterdir()) else None)
    try:
        compute(job, told, ranks.rank, ranks.count)
    except Stopped as error:
        return error.signal_name
    return ""


def main(folder: Path) -> None:
    """Leave what all stages make, each in a folder of its name below one for the number of processes. `folder` holds
    what `write_inputs` makes."""
    torch.set_num_threads(1)
    ranks, found = Ranks.here(), list[nn.Module]()
    if ranks.count > 1:
        watch(found)
    for name, job in jobs(folder).items():
        work = folder / str(ranks.count) / name
        work.mkdir(parents=True, exist_ok=True)
        ranks.wait()
        own = Job(**{**vars(job), "work": str(work)})
        if ranks.count > 1:
            assert stopped(own, ranks) == "SIGTERM", name
            ranks.wait()
        found.clear()
        compute(own, Monitor(), ranks.rank, ranks.count)
        assert bool(found) == (ranks.count > 1), name
        ranks.wait()
        if ranks.is_first:
            every()[job.stage].finish(own)
    ranks.wait()
