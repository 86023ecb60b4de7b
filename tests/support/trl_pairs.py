"""The losses of TRL's own DPO trainer and of a method here, over the same pairs and two small random models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adpa_cli.methods import Method, View
from adpa_cli.tensors.head import selected_logps
from support.dense_batches import reduced

PAIRS = [
    {"prompt": "a b", "chosen": " c d e", "rejected": " f"},
    {"prompt": "b", "chosen": " g", "rejected": " h a b c"},
]
Loss = tuple[Tensor, dict[str, Tensor]]


def trl_trainer(folder: Path, seed: int = 0, **settings: Any) -> Any:
    """A real DPOTrainer over two pairs and two random one-layer models with tied embeddings."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    vocabulary = {w: i for i, w in enumerate(["<pad>", "<eos>", *"abcdefgh"])}
    words = Tokenizer(models.WordLevel(vocabulary, "<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=10, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=True, initializer_range=0.5, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    return DPOTrainer(
        LlamaForCausalLM(config),
        ref_model=LlamaForCausalLM(config),
        args=DPOConfig(
            output_dir=str(folder), use_cpu=True, bf16=False, report_to=[], per_device_train_batch_size=2, **settings
        ),
        train_dataset=Dataset.from_list(PAIRS),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>"),
    )


def both_losses(trainer: Any, method: Method, params: Any) -> tuple[Loss, Loss, dict[str, View]]:
    """TRL's loss of its first batch and ours, each with the gradient of every weight, and our views of the batch."""
    batch = next(iter(trainer.get_train_dataloader()))
    names, weights = zip(*trainer.model.named_parameters(), strict=True)
    theirs = trainer.compute_loss(trainer.model, batch)
    want = dict(zip(names, torch.autograd.grad(theirs, weights), strict=True))
    mask = batch["completion_mask"][:, 1:].bool()
    with torch.no_grad():
        start, _ = _label_logps(trainer.ref_model, batch)
    logps, squares = _label_logps(trainer.model, batch)
    known = (logps, mask, torch.zeros_like(mask), start, squares)
    halves = zip(*(tensor.chunk(2) for tensor in known), strict=True)
    views = {
        part: View(one, answer, end, start_logps=first, log_sum_squares=square)
        for part, (one, answer, end, first, square) in zip(("chosen", "rejected"), halves, strict=True)
    }
    terms = method.terms(views, params)
    ours = sum((term.weight * reduced(term.values, views[term.part].mask, term.reduction) for term in terms),
               torch.zeros(()))  # fmt: skip
    got = dict(zip(names, torch.autograd.grad(ours, weights), strict=True))
    return (theirs.detach(), want), (ours.detach(), got), views


def _label_logps(model: Any, batch: Any) -> tuple[Tensor, Tensor]:
    """Log-probs of the labels and log of the sum of squared probabilities, [B,T]."""
    hidden = model.base_model(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state[:, :-1]
    ids = batch["input_ids"][:, 1:].reshape(-1, 1)
    out = selected_logps(hidden.flatten(0, 1), model.lm_head.weight, ids, stats=True)
    assert out.stats is not None
    return out.logps.view(hidden.shape[:2]), out.stats.log_sum_squares.detach().view(hidden.shape[:2])
