"""What both sides of the training benchmark train: a model of random weights, and rows of random tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from adpa_cli.engine.layout.examples import TokenSequence
from adpa_cli.signal.rows import SignalRows
from adpa_cli.spec import Dtype

END, FIRST_WORD, K = 2, 5, 50
LR, CLIP, BETA = 1e-5, 1.0, 0.1


@dataclass(frozen=True)
class Workload:
    """Pairs of answers with log-normal lengths, and the shapes of a student and of a teacher 8 times as large."""

    device: str
    dtype: Dtype
    student: dict[str, int]
    teacher: dict[str, int]
    pairs: int
    medians: tuple[int, int]
    """Tokens of a prompt and of an answer."""
    tokens_per_device: int
    batches: tuple[int, ...]
    """Sequences at a time that TRL is tried with."""
    tries_checkpointing: bool
    """Whether it is also tried with gradient checkpointing."""
    steps_to_try: int
    """On a GPU the first one loads kernels."""

    @property
    def vocabulary(self) -> int:
        return self.student["vocab_size"]

    def sequences(self) -> list[TokenSequence]:
        """Two answers to each prompt, one after the other; each ends with the end token."""
        rng = np.random.default_rng(0)
        made = []
        for _ in range(self.pairs):
            prompt = self._words(rng, self.medians[0])
            for _ in range(2):
                answer = self._words(rng, self.medians[1])
                answer[-1] = END
                ids = np.concatenate([prompt, answer]).astype(np.int32)
                made.append(TokenSequence(ids, np.arange(len(ids)) >= len(prompt)))
        return made

    def _words(self, rng: np.random.Generator, median: int) -> Any:
        length = int(np.clip(rng.lognormal(np.log(median), 0.6), 8, 6 * median))
        return rng.integers(FIRST_WORD, self.vocabulary, length)

    def model(self, shape: dict[str, int], dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
        """The same random weights in every process; embeddings tied."""
        torch.manual_seed(0)
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            with torch.device(self.device):
                return LlamaForCausalLM(llama(shape))
        finally:
            torch.set_default_dtype(before)


def llama(shape: dict[str, int]) -> LlamaConfig:
    return LlamaConfig(**shape, max_position_embeddings=4096, tie_word_embeddings=True)


def parameters(shape: dict[str, int]) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in LlamaForCausalLM(llama(shape)).parameters())


def here() -> Workload:
    """What suits this machine: 12.6 M parameters in float32, on a GPU Llama-3.2-1B's shape under bfloat16."""
    if torch.cuda.is_available():
        return Workload(
            "cuda", "bfloat16",
            {"vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
             "num_attention_heads": 32, "num_key_value_heads": 8},
            {"vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_hidden_layers": 43,
             "num_attention_heads": 32, "num_key_value_heads": 8},
            64, (140, 210), 16_384, (16, 32), False, 2,
        )  # fmt: skip
    return Workload(
        "cpu", "float32",
        {"vocab_size": 32_000, "hidden_size": 256, "intermediate_size": 624, "num_hidden_layers": 6,
         "num_attention_heads": 8, "num_key_value_heads": 8},
        {"vocab_size": 32_000, "hidden_size": 768, "intermediate_size": 2000, "num_hidden_layers": 11,
         "num_attention_heads": 12, "num_key_value_heads": 12},
        24, (60, 90), 2048, (4, 8, 16), True, 1,
    )  # fmt: skip


def signal(labels: Any, work: Workload) -> SignalRows:
    """A pair of teachers on one answer [T], both with a random softmax over the whole vocabulary."""
    at = torch.from_numpy(labels.astype(np.int64)).to(work.device)[:, None]
    logits = 3 * torch.randn(2, len(labels), work.vocabulary, device=work.device)
    aligned, reference = logits.log_softmax(-1)
    ids = aligned.topk(K).indices
    kth = reference.topk(K).values[:, -1]
    named = torch.cat([ids, at], 1)
    tops = [given.gather(1, ids) for given in (aligned, reference)]
    rests = [given.scatter(1, named, -torch.inf).logsumexp(1) for given in (aligned, reference)]
    own = [given.gather(1, at)[:, 0] for given in (aligned, reference)]
    found = (
        ids.int(), tops[0], at[:, 0].int(), own[0], rests[0], tops[0] - tops[1], tops[1] >= kth[:, None], kth, own[1],
        rests[1],
    )  # fmt: skip
    return SignalRows(*(part.cpu().numpy() for part in found))
