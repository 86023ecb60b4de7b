"""SeqKD by hand, and as SFT on relabelled data: through the batch, and through the files that a training reads."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from adpa_cli import methods
from adpa_cli.data.chat import Encoder
from adpa_cli.data.examples import Message
from adpa_cli.data.templates import Template
from adpa_cli.data.tokenizer import Tokenizer
from adpa_cli.engine.layout import examples as ex
from adpa_cli.errors import DataError
from adpa_cli.hub import Located
from adpa_cli.hub.externals import pairs_of
from adpa_cli.lab import BASES, END, TEMPLATE, world
from adpa_cli.spec import TrainSpec
from adpa_cli.stages import Job, Monitor
from adpa_cli.stages._training_inputs import gather
from support.cli_samples import write_rows
from support.dense_batches import Inputs, batch_for, value_and_gradients

SEQKD, SFT = methods.load("seqkd"), methods.load("sft")
LOG = math.log


def test_three_tokens_by_hand() -> None:
    """It gives 1/2, 1/4 and 1/8 to what the teacher wrote: (log 2 + log 4 + log 8) / 3; gradient (q - onehot) / 3."""
    q = torch.tensor([[[1 / 2, 1 / 4, 1 / 4], [1 / 4, 1 / 2, 1 / 4], [1 / 8, 1 / 8, 3 / 4]]], dtype=torch.float64)
    yes, end = torch.tensor([[True] * 3]), torch.tensor([[False, False, True]])
    labels = torch.tensor([[0, 2, 1]])
    x = Inputs(q.log().requires_grad_(), q.log(), q.log(), q.log(), labels, yes, end)
    loss, grads = value_and_gradients(SEQKD, SEQKD.params(), {"rollout": x})
    assert loss.item() == pytest.approx((LOG(2) + LOG(4) + LOG(8)) / 3)
    want = (q - torch.nn.functional.one_hot(labels, 3)) / 3
    torch.testing.assert_close(grads["rollout"], want)


@pytest.mark.parametrize("reduction", ["seqmean", "tokmean", "seqsum"])
def test_it_is_sft_with_the_teachers_answers_as_the_chosen_ones(reduction: str) -> None:
    inputs = batch_for(SEQKD, SEQKD.params())
    ours, own = value_and_gradients(SEQKD, SEQKD.params(reduction=reduction), inputs)
    sft, theirs = value_and_gradients(SFT, SFT.params(reduction=reduction), {"chosen": inputs["rollout"]})
    torch.testing.assert_close((ours, own["rollout"]), (sft, theirs["chosen"]))


def test_its_answers_are_the_teachers_unless_said() -> None:
    assert dict(SEQKD.sources) == {"states": "teacher", "kd_teacher": "aligned"}
    assert all(methods.load(name).states == "student" for name in methods.names() if name != "seqkd")


# What a training reads.


@pytest.fixture
def pairs() -> list[dict[str, Any]]:
    rows = world.preferences("train")[:12]
    assert len({row["prompt"][0]["content"] for row in rows}) == len(rows)
    return rows


def source(folder: Path, rows: list[dict[str, Any]]) -> Path:
    """A data set that is all for training."""
    folder.mkdir()
    write_rows(folder / "test.jsonl", world.preferences("test")[:3])
    write_rows(folder / "train.jsonl", rows)
    return folder


def encoder() -> Encoder:
    return Encoder(Tokenizer.of(BASES / "student"), Template(TEMPLATE, END))


def answered(folder: Path, data: Path, answers: list[list[int]]) -> Path:
    """A rollout artifact's rows: an answer to the prompt of each pair."""
    items = pairs_of((str(data),), "train", None, False).items
    folder.mkdir()
    ex.write_rollouts(folder / ex.ROWS, [
        ex.Rollout(ex.rollout_id(p), p.prompt, tuple(encoder().prompt(p.prompt)), tuple(ids), "", cut=False)
        for p, ids in zip(items, answers, strict=True)
    ])  # fmt: skip
    return folder


def sequences(method: str, data: Path, rollouts: Path | None = None) -> list[tuple[list[int], list[bool]]]:
    """Ids and mask of the one answer of every example that a training with `method` reads."""
    read = methods.load(method)
    spec = TrainSpec(method, read.version, {}, TEMPLATE, END, max_length=128)
    inputs = {
        "model": (Located("model", "", "student", (str(BASES / "student"),)),),
        "data": (Located("data", "", "pairs", (str(data),)),),
    }
    if rollouts:
        inputs["rollouts"] = (Located("artifact", "", "rollout/0", (str(rollouts),)),)
    job = Job("distill", "distill/0", {}, inputs, "")
    found = gather(job, spec, read, read.params(), encoder(), Monitor()).examples
    return [(p.ids.tolist(), p.answer.tolist()) for e in found for p in e.parts.values()]


def answer_of(row: dict[str, Any], part: str) -> list[int]:
    """The ids of one answer of a row."""
    turns = [Message(**turn) for turn in row["prompt"]]
    return encoder().answer(turns, row[part][0]["content"])


def test_it_reads_what_sft_reads_from_relabelled_pairs(tmp_path: Path, pairs: list[dict[str, Any]]) -> None:
    """The teacher wrote what stands as the rejected answer."""
    data = source(tmp_path / "pairs", pairs)
    said = [answer_of(row, "rejected") for row in pairs]
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in pairs]
    relabelled = source(tmp_path / "relabelled", swapped)
    ours = sequences("seqkd", data, answered(tmp_path / "rollouts", data, said))
    assert ours == sequences("sft", relabelled)
    assert ours != sequences("sft", data)


def test_empty_answers_are_left_out_and_a_cut_one_gets_no_end(tmp_path: Path, pairs: list[dict[str, Any]]) -> None:
    data, coder = source(tmp_path / "pairs", pairs), encoder()
    said = [answer_of(row, "chosen") for row in pairs]
    cut = said[2][:-1]
    ours = sequences("seqkd", data, answered(tmp_path / "rollouts", data, [[], [coder.end_id], cut, *said[3:]]))
    whole = sequences("sft", data)
    assert ours[1:] == whole[3:]
    assert ours[0] == (whole[2][0][:-1], whole[2][1][:-1])
    assert ours[0][0][-1] != coder.end_id


def test_answers_with_ids_that_the_student_lacks_are_refused(tmp_path: Path, pairs: list[dict[str, Any]]) -> None:
    data = source(tmp_path / "pairs", pairs)
    with pytest.raises(DataError, match="rollout/0 use the token id 9999, and the student's vocabulary has 238"):
        sequences("seqkd", data, answered(tmp_path / "rollouts", data, [[5, 9999]] * len(pairs)))
