"""The built-in miniature: a world of 232 words, two small base models that have read it, and their chat template.

The folders `bases/teacher` and `bases/student` are plain Hugging Face models without a chat template, as real base
models are; `sft` gives them `TEMPLATE` and its end token `END`.
"""

from __future__ import annotations

from pathlib import Path

END = "<|end|>"
SPECIAL = ("<|pad|>", "<|unk|>", "<|bos|>", END, "<|user|>", "<|assistant|>")
TEMPLATE = (
    "<|bos|>"
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
BASES = Path(__file__).parent / "bases"
