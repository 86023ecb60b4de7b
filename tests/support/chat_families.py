"""The families of chat models: their published templates and small tokenizers of the same kind."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

TEMPLATES = Path(__file__).resolve().parents[1] / "data" / "chat_templates"
CORPUS = [
    "user assistant system model You are a helpful assistant. What is two and two? It is four, and three is seven.",
    "Reply in French, please. Bonjour ! Ça va très bien, merci. Grüße aus Zürich. 你好，世界。 Привет, мир. शुक्रिया",
    "def add(left, right):\n    total = left + right\n    return total\n\n\nif __name__ == 'x':\n\tprint(add(1, 2))",
    "In 1969, 3.14159 times 1234567 was 3,878,503; and 2024-07-26 is a date.   Three   spaces.\n\n\nThree lines.",
    "Cutting Knowledge Cutoff Date: April 2024. Today's Date: July 26, 2024.",
] * 8
SPACES = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT4 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + SPACES
QWEN = GPT4.replace(r"\p{N}{1,3}", r"\p{N}")
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}"
    r"\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = TEKKEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


@dataclass(frozen=True)
class Kind:
    """A kind of tokenizer: how a text is cut before byte-level BPE ("" by single digits), or a SentencePiece's form."""

    cut: str = ""
    form: str = ""
    normal: bool = False
    digits: bool = False
    trims: bool = True
    ignores_merges: bool = False


LLAMA3_KIND = Kind(GPT4, ignores_merges=True)
QWEN_KIND = Kind(QWEN, normal=True, trims=False)
DIGITS_KIND = Kind(digits=True)
LEGACY, METASPACE, GEMMA_KIND = Kind(form="legacy"), Kind(form="metaspace"), Kind(form="gemma")


@functools.cache
def _trained(kind: Kind) -> tuple[dict[str, int], tuple[tuple[str, str], ...]]:
    """Pieces and merges of a kind of tokenizer, learned from the corpus."""
    core = Tokenizer(models.BPE())
    if kind.form:
        core.normalizer = normalizers.Replace(" ", "▁")
        core.pre_tokenizer = pre_tokenizers.Split(Regex(r"▁*[^▁]+|▁+"), "isolated")
        alphabet: list[str] = []
    else:
        core.pre_tokenizer = _pre_tokenizer(kind)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=520, initial_alphabet=alphabet, show_progress=False)
    core.train_from_iterator(CORPUS, trainer)
    model = json.loads(core.to_str())["model"]
    return model["vocab"], tuple(tuple(merge) for merge in model["merges"])


def _pre_tokenizer(kind: Kind) -> Any:
    if kind.cut:
        split = pre_tokenizers.Split(Regex(kind.cut), "isolated")
        return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), byte_level])


def _byte_level(kind: Kind, tokens: Sequence[AddedToken]) -> Tokenizer:
    """Byte-level BPE, as that of GPT-2 and its followers; the added tokens stand behind the others."""
    vocabulary, merges = _trained(kind)
    core = Tokenizer(models.BPE(dict(vocabulary), list(merges), ignore_merges=kind.ignores_merges))
    core.normalizer = normalizers.NFC() if kind.normal else None
    core.pre_tokenizer = _pre_tokenizer(kind)
    core.post_processor = processors.ByteLevel(trim_offsets=kind.trims)
    core.decoder = decoders.ByteLevel()
    core.add_tokens(list(tokens))
    return core


def _sentencepiece(kind: Kind, tokens: Sequence[AddedToken]) -> Tokenizer:
    """A converted SentencePiece model: added tokens in front, single bytes for what the vocabulary lacks."""
    learned, merges = _trained(kind)
    pieces = [token.content for token in tokens] + [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += [piece for piece in learned if piece not in pieces]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    core = Tokenizer(models.BPE(vocabulary, list(merges), unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    undone: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if kind.form == "legacy":
        core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    elif kind.form == "metaspace":
        core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        core.normalizer = normalizers.Replace(" ", "▁")
        core.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    core.decoder = decoders.Sequence(undone if kind.form == "gemma" else [*undone, decoders.Strip(" ", 1, 0)])
    core.add_tokens(list(tokens))
    return core


def special(*names: str, rstrip: bool = False) -> list[AddedToken]:
    """Special tokens, parsed as they are written."""
    return [AddedToken(name, special=True, normalized=False, rstrip=rstrip) for name in names]


def plain(*names: str) -> list[AddedToken]:
    """Tokens that are parsed and decoded as text."""
    return [AddedToken(name, special=False, normalized=False) for name in names]


@dataclass(frozen=True)
class Family:
    """A family's template and tokenizer, and what is worked out by hand of both.

    `named` are the tokens of tokenizer_config.json; `adds_bos`: the tokenizer begins a text with BOS; `writes_bos`: so
    does the template. `trained` is what an answer A is trained as, and `earlier` whether answers before the last are.
    `refuses` maps kinds of rows to a part of the reason; `tools` says whether the template writes tools.
    """

    template: str
    kind: Kind
    tokens: Sequence[AddedToken]
    named: Mapping[str, str]
    end: str
    trained: str
    adds_bos: bool = False
    writes_bos: bool = True
    earlier: bool = True
    refuses: Mapping[str, str] = field(default_factory=dict)
    tools: bool = False

    @property
    def text(self) -> str:
        """The published template."""
        return (TEMPLATES / f"{self.template}.jinja").read_text(encoding="utf-8")

    def save(self, folder: Path) -> Path:
        """Write a model folder with this template and tokenizer, without weights."""
        core = (_sentencepiece if self.kind.form else _byte_level)(self.kind, self.tokens)
        if self.adds_bos:
            bos = self.named["bos_token"]
            added = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, core.token_to_id(bos))])
            own = core.post_processor
            core.post_processor = processors.Sequence([own, added]) if own else added
        folder.mkdir(parents=True, exist_ok=True)
        core.save(str(folder / "tokenizer.json"))
        config = {"tokenizer_class": "PreTrainedTokenizerFast", **self.named}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        (folder / "chat_template.jinja").write_text(self.text, encoding="utf-8")
        shape = {"model_type": "llama", "vocab_size": core.get_vocab_size(), "hidden_size": 16, "num_hidden_layers": 2}
        (folder / "config.json").write_text(json.dumps(shape))
        return folder


IM = special("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CALLS = plain("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
THINK = plain("<think>", "</think>")
LLAMA3 = special(
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>",
    "<|python_tag|>", *(f"<|reserved_special_token_{number}|>" for number in range(8)),
)  # fmt: skip
LLAMA2 = special("<unk>", "<s>", "</s>")
PHI3 = [*LLAMA2, *special("<|endoftext|>"), *special(
    "<|assistant|>", "<|placeholder1|>", "<|system|>", "<|end|>", "<|user|>", rstrip=True,
)]  # fmt: skip
GEMMA = [
    *special("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"),
    *plain("\n", "\n\n", "\n\n\n", "▁▁", "▁▁▁"),
]
GRANITE = special("<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>")
S = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
LLAMA3_NAMED = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
CHATML_NAMED = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
GEMMA_NAMED = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
GRANITE_NAMED = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), "<|end_of_text|>")
PHI3_NAMED = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<unk>"}
NO_SYSTEM = dict.fromkeys(("system", "system, several turns", "empty system"), "")
LATE_SYSTEM = dict.fromkeys(NO_SYSTEM, "writes the prompt differently once the answer follows")
GEMMA2_SYSTEM = dict.fromkeys(NO_SYSTEM, "System role not supported")
ALTERNATE = {"user twice": "must alternate"}
R1_TOKENS = special("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")
R1_NAMED = {
    "bos_token": "<｜begin▁of▁sentence｜>",
    "eos_token": "<｜end▁of▁sentence｜>",
    "pad_token": "<｜end▁of▁sentence｜>",
}
COHERE = special(
    "<PAD>", "<UNK>", "<BOS_TOKEN>", "<EOS_TOKEN>", "<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>",
    "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>",
)  # fmt: skip
HARMONY = special(
    "<|startoftext|>", "<|endoftext|>", "<|return|>", "<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|call|>"
)

FAMILIES = {
    "qwen2.5": Family("qwen2.5", QWEN_KIND, [*IM, *CALLS], CHATML_NAMED, "<|im_end|>", "{}<|im_end|>", tools=True),
    "qwen2.5, base": Family(
        "qwen2.5", QWEN_KIND, [*IM, *CALLS], {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"},
        "<|im_end|>", "{}<|im_end|>", tools=True,
    ),
    "qwen3": Family(
        "qwen3", QWEN_KIND, [*IM, *CALLS, *THINK], CHATML_NAMED, "<|im_end|>",
        "<think>\n\n</think>\n\n{}<|im_end|>", earlier=False, tools=True,
    ),
    "qwq-32b": Family(
        "qwq-32b", QWEN_KIND, [*IM, *CALLS, *THINK], CHATML_NAMED, "<|im_end|>", "{}<|im_end|>", tools=True
    ),
    "r1-distill": Family(
        "r1-distill", Kind(QWEN, trims=False), [*R1_TOKENS, *THINK], R1_NAMED, "<｜end▁of▁sentence｜>",
        "{}<｜end▁of▁sentence｜>", adds_bos=True,
    ),
    "gemma-2": Family(
        "gemma-2", GEMMA_KIND, GEMMA, GEMMA_NAMED, "<end_of_turn>", "{}<end_of_turn>", adds_bos=True,
        refuses={**GEMMA2_SYSTEM, **ALTERNATE},
    ),
    "gemma-3": Family(
        "gemma-3", GEMMA_KIND, GEMMA, GEMMA_NAMED, "<end_of_turn>", "{}<end_of_turn>", adds_bos=True, refuses=ALTERNATE
    ),
    "mistral-v0.1": Family(
        "mistral-v0.1", LEGACY, LLAMA2, S, "</s>", "{}</s>", adds_bos=True,
        refuses={**dict.fromkeys(NO_SYSTEM, "must alternate"), **ALTERNATE},
    ),
    "mistral-v0.2": Family("mistral-v0.2", LEGACY, LLAMA2, S, "</s>", " {}</s>", adds_bos=True, refuses=ALTERNATE),
    "mistral-v0.3": Family(
        "mistral-v0.3", METASPACE, [*LLAMA2, *special(
            "[INST]", "[/INST]", "[TOOL_CALLS]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
            "[/TOOL_RESULTS]",
        )], S, "</s>", " {}</s>", adds_bos=True, refuses={**LATE_SYSTEM, **ALTERNATE}, tools=True,
    ),
    "mistral-nemo": Family(
        "mistral-nemo", Kind(TEKKEN), special(
            "<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_RESULTS]",
            "[/TOOL_RESULTS]", "[TOOL_CALLS]", "<pad>",
        ), {**S, "pad_token": "<pad>"}, "</s>", "{}</s>", adds_bos=True, refuses={**LATE_SYSTEM, **ALTERNATE},
        tools=True,
    ),
    "llama-2": Family("llama-2", LEGACY, LLAMA2, S, "</s>", " {} </s>", adds_bos=True, refuses=ALTERNATE),
    "llama-3": Family("llama-3", LLAMA3_KIND, LLAMA3, LLAMA3_NAMED, "<|eot_id|>", "{}<|eot_id|>", adds_bos=True),
    "llama-3.1": Family(
        "llama-3.1", LLAMA3_KIND, LLAMA3, LLAMA3_NAMED, "<|eot_id|>", "{}<|eot_id|>", adds_bos=True, tools=True
    ),
    "llama-3.2": Family(
        "llama-3.2", LLAMA3_KIND, LLAMA3, LLAMA3_NAMED, "<|eot_id|>", "{}<|eot_id|>", adds_bos=True, tools=True
    ),
    "phi-3": Family("phi-3", LEGACY, PHI3, PHI3_NAMED, "<|end|>", " {}<|end|>"),
    "phi-3.5": Family("phi-3.5", LEGACY, PHI3, PHI3_NAMED, "<|end|>", " {}<|end|>"),
    "phi-4": Family(
        "phi-4", Kind(GPT4), [*IM, *special("<|im_sep|>", "<|dummy_85|>")],
        {"bos_token": "<|endoftext|>", "eos_token": "<|im_end|>", "pad_token": "<|dummy_85|>"},
        "<|im_end|>", "{}<|im_end|>",
    ),
    "olmo-2": Family(
        "olmo-2", Kind(GPT4), special("<|endoftext|>", "<|pad|>"),
        {**dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>"), "pad_token": "<|pad|>"},
        "<|endoftext|>", "{}<|endoftext|>",
    ),
    "tulu-3": Family(
        "tulu-3", LLAMA3_KIND, [*LLAMA3, *special("<pad>")],
        {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>", "pad_token": "<pad>"},
        "<|end_of_text|>", "{}<|end_of_text|>", adds_bos=True, writes_bos=False,
    ),
    "granite-3.0": Family("granite-3.0", DIGITS_KIND, GRANITE, GRANITE_NAMED, "<|end_of_text|>", "{}<|end_of_text|>"),
    "granite-3.1": Family("granite-3.1", DIGITS_KIND, GRANITE, GRANITE_NAMED, "<|end_of_text|>", "{}<|end_of_text|>"),
    "granite-3.3": Family("granite-3.3", DIGITS_KIND, GRANITE, GRANITE_NAMED, "<|end_of_text|>", "{}<|end_of_text|>"),
    "smollm2": Family(
        "smollm2", DIGITS_KIND, IM,
        {**CHATML_NAMED, "bos_token": "<|im_start|>", "unk_token": "<|endoftext|>", "pad_token": "<|im_end|>"},
        "<|im_end|>", "{}<|im_end|>",
    ),
    "smollm3": Family(
        "smollm3", LLAMA3_KIND, [*special("<|end_of_text|>", "<|im_start|>", "<|im_end|>"), *THINK, *CALLS],
        {"eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}, "<|im_end|>", "{}<|im_end|>",
    ),
    "zephyr": Family(
        "zephyr-beta", LEGACY, LLAMA2, {**S, "pad_token": "</s>"}, "</s>", "{}</s>", adds_bos=True, writes_bos=False
    ),
    "command-r7b": Family(
        "command-r7b", DIGITS_KIND, COHERE,
        {"bos_token": "<BOS_TOKEN>", "eos_token": "<|END_OF_TURN_TOKEN|>", "pad_token": "<PAD>", "unk_token": "<UNK>"},
        "<|END_OF_TURN_TOKEN|>", "{}<|END_RESPONSE|><|END_OF_TURN_TOKEN|>", adds_bos=True, refuses=ALTERNATE,
    ),
    "gpt-oss": Family(
        "gpt-oss", Kind(O200K), HARMONY,
        {"bos_token": "<|startoftext|>", "eos_token": "<|return|>", "pad_token": "<|endoftext|>"}, "<|return|>",
        "<|channel|>final<|message|>{}<|return|>", writes_bos=False, earlier=False, tools=True,
    ),
}  # fmt: skip
