"""Packed fine-tuning against TRL's packing of the ids of transformers, and against the loss of its own model."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from adpa_cli.data.chat import Encoder
from adpa_cli.data.examples import Message
from adpa_cli.data.templates import TEMPLATES, Template
from adpa_cli.data.tokenizer import Tokenizer
from adpa_cli.engine.layout import tokenised
from adpa_cli.engine.layout.packed_dialogues import packed_examples
from adpa_cli.hub import Located
from adpa_cli.lab import BASES, END, TEMPLATE
from adpa_cli.sizes import RowTable
from adpa_cli.store.store import Store
from support.cli_samples import Cli, write_rows

DIALOGUES = [
    [("user", "sort the letters b a"), ("assistant", "a b .")],
    [("system", "be brief ."), ("user", "count to three"), ("assistant", "one two three ."), ("user", "and back"),
     ("assistant", "three two one .")],
    [("user", "say yes"), ("assistant", "yes .")],
]  # fmt: skip
TEMPLATED = {"own": Template(TEMPLATE, END), "zephyr-release": TEMPLATES["zephyr-release"]}
each = pytest.mark.parametrize("template", TEMPLATED.values(), ids=TEMPLATED)


def by_transformers(template: Template) -> list[list[int]]:
    """The ids of each dialogue under a template, by the tokenizer of transformers."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(BASES / "student")
    text = template.text.replace("eos_token", repr(END))
    turns = [[{"role": role, "content": said} for role, said in dialogue] for dialogue in DIALOGUES]
    return [tokenizer.apply_chat_template(one, chat_template=text, tokenize=True, return_dict=False) for one in turns]


def write_dialogues(folder: Path) -> None:
    turns = [{"messages": [{"role": role, "content": said} for role, said in dialogue]} for dialogue in DIALOGUES]
    folder.mkdir()
    for split, held in (("train", turns), ("test", turns[:1])):
        write_rows(folder / f"{split}.jsonl", held)


def rows(folder: Path, template: Template, length: int, every_token: bool = True) -> list[Any]:
    write_dialogues(folder / "rows")
    source = Located("data", "data:0", "rows", (str(folder / "rows"),))
    spec = SimpleNamespace(template=template.text, end=END, max_length=length, limit=None, skip_bad_rows=False)
    return [row.parts["chosen"] for row in packed_examples(spec, source, BASES / "student", every_token)]


@each
@pytest.mark.parametrize("length", [7, 16, 1000])
@pytest.mark.parametrize("together", [1, 1024])
def test_rows_are_those_of_trl(
    template: Template, length: int, together: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datasets import Dataset
    from trl import pack_dataset

    packed = pack_dataset(Dataset.from_dict({"input_ids": by_transformers(template)}), length, "wrapped")["input_ids"]
    monkeypatch.setattr(tokenised, "BATCH", together)
    monkeypatch.setenv("ADPA_CACHE", str(tmp_path / "cache"))
    ours = rows(tmp_path, template, length)
    assert [row.ids.tolist() for row in ours] == [list(row) for row in packed if len(row) > 1]
    for row in ours:
        assert row.answer.tolist() == [False] + [True] * (len(row) - 1), "all but what nothing comes before"


@each
def test_of_answers_alone_the_same_tokens_are_trained_as_unpacked(template: Template, tmp_path: Path) -> None:
    encoder = Encoder(Tokenizer.of(BASES / "student"), Template(template.text, END))
    apart = [encoder.dialogue([Message(*turn) for turn in dialogue]) for dialogue in DIALOGUES]
    trained = [token for ids, mask in apart for token, is_trained in zip(ids, mask, strict=True) if is_trained]
    packed = rows(tmp_path, template, 1000, every_token=False)
    assert np.concatenate([row.ids[row.answer] for row in packed]).tolist() == trained


def test_rows_are_estimated_by_their_tokens() -> None:
    estimated = RowTable(np.array([10, 3, 0]), np.array([20, 4, 5])).packed(16)
    assert [(row.prompt, row.answer) for row in estimated] == [(0, 16), (0, 16), (0, 10)]


def test_the_preset_of_the_release_trains_through_the_command(cli: Cli, tmp_path: Path) -> None:
    """The first loss is the mean over all tokens of all rows, by transformers' own loss of each row."""
    write_dialogues(tmp_path / "rows")
    words = ("--set", "preset=release", "--set", "max_length=16", "--max-steps", 1, "--batch-size", 64)
    ran = cli("sft", "--model", "tiny", "--data", "./rows", *words)
    assert "longer than max_length" not in ran.out + ran.err, "nothing is cut away"
    ref = ran.ref
    store = Store.find(tmp_path / "adpa-store")
    made = store.get(ref)
    assert made is not None
    assert (made.spec["packed"], made.spec["train_on"], made.spec["params"]) == (True, "all", {"reduction": "tokmean"})
    assert (made.spec["lr"], made.spec["epochs"]) == (2e-5, 3)
    ids = [token for dialogue in by_transformers(TEMPLATED["own"]) for token in dialogue]
    pieces = [piece for start in range(0, len(ids), 16) if len(piece := ids[start : start + 16]) > 1]
    assert made.metrics["examples"] == len(pieces)
    assert made.metrics["tokens"] == sum(len(piece) - 1 for piece in pieces)
    log = [json.loads(line) for line in (store.folder(ref) / "metrics.jsonl").read_text().splitlines()]
    assert log[0]["loss"] == pytest.approx(mean_loss(pieces), rel=1e-5)


def test_rows_of_one_token_are_refused(cli: Cli, tmp_path: Path) -> None:
    """Nothing comes before their token, so nothing is trained on."""
    write_dialogues(tmp_path / "rows")
    words = ("--set", "preset=release", "--set", "max_length=1", "--max-steps", 1)
    said = cli.refused(1, "sft", "--model", "tiny", "--data", "./rows", *words)
    assert "none of 3 dialogues fits into 1 token" in said
    assert "--set sft.max_length=4" in said


def mean_loss(pieces: list[list[int]]) -> float:
    """Cross-entropy per token of some rows under the base model, nats."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(BASES / "student", dtype=torch.float32).eval()
    total = 0.0
    for piece in pieces:
        row = torch.tensor([piece])
        total += model(input_ids=row, labels=row).loss.item() * (len(piece) - 1)
    return total / sum(len(piece) - 1 for piece in pieces)


def test_a_preset_is_for_the_stage_that_has_its_settings(cli: Cli) -> None:
    said = cli.refused(2, "distill", "--method", "sft", "--student", "tiny", "--set", "preset=release", "-n")
    assert "sft has no preset called 'release'" in said
    named = cli("sft", "--model", "tiny", "--template", "zephyr-release", "--set", "preset=release", "--set",
                "max_length=128", "-n")  # fmt: skip
    assert named.code == 0, named.err
    plain, packed = (
        cli("distill", "--method", "sft", "--student", "tiny", *more, "-n").rows
        for more in ((), ("--set", "sft.preset=release", "--set", "sft.max_length=128"))
    )
    assert plain[0][4] != packed[0][4]
