"""TRL's trainers on the same rows, the same weights, the same steps, with the settings they are fastest with.

Rows are grouped by length. Of several batch sizes with accumulation to the same global batch the fastest is taken, and
gradient checkpointing, which TRL turns on by default, and liger-kernel, where it is installed and there is a GPU, only
where they are faster. Rows are token ids from the start, and DPO's reference log-probs are computed before. Packing and
padding-free batches need flash attention there, and are left out. GKD trains on the given answers alone (`lmbda=0`)
with the forward KL, the cheapest of its divergences.
"""

from __future__ import annotations

import functools
import gc
import os
import tempfile
from dataclasses import asdict, dataclass, replace
from typing import Any

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from training.pace import Clock, Pace
from training.workload import BETA, CLIP, END, LR, Workload
from transformers import PreTrainedTokenizerFast, PrinterCallback, Trainer, TrainerCallback
from transformers.utils.import_utils import is_liger_kernel_available
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer
from trl.experimental.gkd import GKDConfig, GKDTrainer
from trl.trainer import dpo_trainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

PAD = 0


class Paced(TrainerCallback):
    """Holds a trainer to a pace, and keeps its losses. The rows of a step have been fetched when it begins."""

    def __init__(self, pace: Pace | Clock) -> None:
        self.pace = pace
        self.losses: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.pace.begin()

    def on_step_end(self, *_: Any, model: Any, **__: Any) -> None:
        self.pace.end(model)

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        if "loss" in logs:
            self.losses.append(logs["loss"])


class Tokenised(DPOTrainer):
    """Takes pairs of token ids; the trainer's own preparation starts from text."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset


@dataclass(frozen=True)
class Setting:
    """The sequences at a time, whether activations are recomputed, and whether liger-kernel is used."""

    batch: int
    gradient_checkpointing: bool = False
    liger: bool = False


@dataclass
class Theirs:
    """`sft`, `dpo` or `gkd` over all rows."""

    method: str
    work: Workload

    @functools.cached_property
    def data(self) -> Dataset:
        """One for all trainers: reference log-probs are kept beside it."""
        return Dataset.from_list(pairs(self.work) if self.method == "dpo" else rows(self.work))

    def __call__(self, pace: Pace, steps: int) -> tuple[list[float], dict[str, Any]]:
        # The start is the same in every trainer, and to hash it takes longer than to score all pairs with it.
        dpo_trainer.hash_module = lambda module: "start"
        setting = self.fastest()
        return self.train(pace, setting, steps), asdict(setting)

    def fastest(self) -> Setting:
        """What a step is shortest with."""
        # GKD holds the logits of two models, at every position.
        batches = [batch // 2 for batch in self.work.batches] if self.method == "gkd" else self.work.batches
        seconds = {setting: self.try_out(setting) for setting in map(Setting, batches)}
        best = min(seconds, key=seconds.__getitem__)
        if self.work.tries_checkpointing:
            other = replace(best, gradient_checkpointing=True)
            seconds[other] = self.try_out(other)
        if self.work.device == "cuda" and self.method == "sft" and is_liger_kernel_available():
            # Its head needs no logits, so that twice the rows may fit.
            for batch in (best.batch, 2 * best.batch):
                other = Setting(batch, liger=True)
                seconds[other] = self.try_out(other)
        return min(seconds, key=seconds.__getitem__)

    def try_out(self, setting: Setting) -> float:
        """Seconds of a step; infinitely many if it does not fit."""
        clock = Clock()
        try:
            self.train(clock, setting, self.work.steps_to_try)
        except torch.OutOfMemoryError:
            return float("inf")
        finally:
            gc.collect()
            torch.cuda.empty_cache()
        return min(clock.seconds)

    def train(self, pace: Pace | Clock, setting: Setting, steps: int) -> list[float]:
        """Train from the start, at the given pace; the losses."""
        paced = Paced(pace)
        with tempfile.TemporaryDirectory() as folder:
            trainer = self.trainer(self.arguments(folder, setting, steps))
            trainer.remove_callback(PrinterCallback)
            trainer.add_callback(paced)
            trainer.train()
        return paced.losses

    def trainer(self, arguments: dict[str, Any]) -> Trainer:
        given = {
            "model": self.work.model(self.work.student),
            "processing_class": tokenizer(),
            "train_dataset": self.data,
        }
        if self.method == "dpo":
            arguments |= {"beta": BETA, "precompute_ref_log_probs": True}
            return Tokenised(**given, args=DPOConfig(**arguments))
        if self.method == "sft":
            return SFTTrainer(**given, args=SFTConfig(**arguments))
        teacher = self.work.model(self.work.teacher, getattr(torch, self.work.dtype)).requires_grad_(False)
        return GKDTrainer(
            **given, teacher_model=teacher, args=GKDConfig(**arguments, lmbda=0.0, beta=0.0),
            data_collator=DataCollatorForLanguageModeling(PAD),
        )  # fmt: skip

    def arguments(self, folder: str, setting: Setting, steps: int) -> dict[str, Any]:
        gpu = self.work.device == "cuda"
        return {
            "output_dir": folder, "max_steps": steps, "learning_rate": LR, "lr_scheduler_type": "cosine",
            "max_grad_norm": CLIP, "optim": "adamw_torch_fused", "bf16": gpu, "max_length": None,
            "per_device_train_batch_size": setting.batch // 2 if self.method == "dpo" else setting.batch,
            "gradient_accumulation_steps": 2 * self.work.pairs // setting.batch,
            "gradient_checkpointing": setting.gradient_checkpointing, "use_liger_kernel": setting.liger,
            "train_sampling_strategy": "group_by_length", "dataloader_num_workers": 0, "dataloader_pin_memory": gpu,
            "remove_unused_columns": False,  # else DPO loses the lengths to group by
            # written to no file or screen, after the clock has stopped
            "logging_steps": 1, "report_to": "none", "disable_tqdm": True, "save_strategy": "no",
        }  # fmt: skip


def rows(work: Workload) -> list[dict[str, Any]]:
    """Every answer a row of its own, the loss on the answer."""
    return [
        {
            "input_ids": row.ids.tolist(),
            "labels": [int(i) if own else -100 for i, own in zip(row.ids, row.answer, strict=True)],
            "length": len(row),
        }
        for row in work.sequences()
    ]


def pairs(work: Workload) -> list[dict[str, Any]]:
    """Both answers to a prompt."""
    sequences = work.sequences()
    return [
        {
            "prompt_ids": chosen.ids[~chosen.answer].tolist(),
            "chosen_ids": chosen.ids[chosen.answer].tolist(),
            "rejected_ids": rejected.ids[rejected.answer].tolist(),
            "length": max(len(chosen), len(rejected)),
        }
        for chosen, rejected in zip(sequences[::2], sequences[1::2], strict=True)
    ]


def tokenizer() -> PreTrainedTokenizerFast:
    """The ids of padding and of the end are all that trainers ask of it."""
    named = Tokenizer(models.WordLevel({"<pad>": PAD, "<unk>": 1, "</s>": END}, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=named, pad_token="<pad>", unk_token="<unk>", eos_token="</s>")
