"""How many operations training asks of the device, and how many known devices offer: the parts of the MFU.

Chowdhery et al. 2022 (PaLM), appendix B: model FLOPs are those of the mathematics, without what is computed again, and
each multiply-add counts two; a token takes 6 for every parameter that it passes through, and attention 12 · layers ·
width · length. Here the head counts where it is used, at answer tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from adpa_cli.engine.schedule import TokenSequence

TERA = 1e12
PEAKS = {
    "B200": 2250, "H200 NVL": 835, "H200": 989, "H100 NVL": 835, "H100 PCIe": 756, "H100": 989, "GH200": 989,
    "A100": 312, "A40": 149.7, "A30": 165, "A10G": 70, "A10": 125, "RTX A6000": 154.8,
    "L40S": 362, "L40": 181, "L4": 121, "RTX 6000 Ada": 364.2,
    "RTX 5090": 209.5, "RTX 4090": 165.2, "RTX 4080": 97.5, "RTX 3090": 71, "RTX 3080": 59.5,
}  # fmt: skip
"""TFLOP/s of bfloat16 products without sparsity, summed in float32, by a part of the name that a device gives itself.

From NVIDIA's data sheets and architecture papers (B200, Hopper, GA100, GA102, AD102, GB202); where those tell the
number with sparsity only, half of it.
"""

SLOWER = ("MIG", "Laptop", "Ti", "SUPER")
"""What makes another device of a name, or a part of one."""


@dataclass(frozen=True)
class Shape:
    """A decoder: `body` counts its parameters without embeddings and head, `head` those of the head; `width` is the
    number of features that attention mixes, all heads together."""

    body: int
    head: int
    layers: int
    width: int

    def training(self, sequences: Sequence[TokenSequence]) -> float:
        """Operations of one training step over whole sequences: 6 body + 12 layers width length a token, 6 head an
        answer token."""
        dense = sum(6.0 * self.body * len(s) + 6.0 * self.head * s.tokens for s in sequences)
        return dense + sum(12.0 * self.layers * self.width * len(s) ** 2 for s in sequences)


EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")


def shape_of(model: Any) -> Shape | None:
    """That of a transformers model, under any head; None where a token does not pass through all of it, or where there
    is no attention."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    if not heads or any((getattr(config, name, None) or 1) > 1 for name in EXPERTS):
        return None
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    output = model.get_output_embeddings()
    embeddings = model.get_input_embeddings().weight.numel()
    body = sum(p.numel() for p in model.base_model.parameters()) - embeddings
    return Shape(body, 0 if output is None else output.weight.numel(), config.num_hidden_layers, width)


def peak_flops(device: str, dtype: str) -> float | None:
    """Operations a second that a device of this name offers in bfloat16; None for others, and for other dtypes."""
    words = f" {device.replace('-', ' ')} "
    if any(f" {word} " in words for word in SLOWER):
        return None
    names = [name for name in PEAKS if f" {name} " in words]
    return PEAKS[max(names, key=len)] * TERA if names and dtype == "bfloat16" else None
