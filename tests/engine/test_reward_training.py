"""Reward models in training: Eq. 2 by hand, its gradient through transformers' own classifier, what judges answers."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import logsigmoid
from transformers import LlamaForSequenceClassification

from adpa_cli import methods
from adpa_cli.engine.generation.sampling import Decoding, Sampling
from adpa_cli.engine.layout.examples import Example
from adpa_cli.engine.models import load, save
from adpa_cli.engine.ranks import Ranks
from adpa_cli.engine.rewards.reward_model import RewardModel, load_reward_model, sequence_rewards
from adpa_cli.engine.scoring import label_logps
from adpa_cli.engine.training.checkpoint_selection import HeldOut, RewardSelection, best
from adpa_cli.engine.training.loop import train
from adpa_cli.engine.training.student import Student
from adpa_cli.errors import AdpaError, Stopped
from adpa_cli.methods import View
from support.tiny_models import END, PAD, TEMPLATE, tiny_llama, tiny_tokenizer
from support.train_samples import examples, make_run

RANKER = methods.load("reward-model")
ROWS = examples(9)


def none(example_id: str, part: str) -> Any:
    raise KeyError((example_id, part))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A language model without a head for rewards."""
    save(tiny_llama(0), tiny_tokenizer(), tmp_path / "base", TEMPLATE, "<end>")
    return tmp_path / "base"


def fresh(base: Path) -> RewardModel:
    return RewardModel(load_reward_model(base, tiny_tokenizer(), END, "cpu"), "float32")


def rewards(model: Any, rows: list[Example], part: str) -> torch.Tensor:
    """One unpadded row at a time, at its last token, in transformers' way."""
    ids = [torch.tensor(row.parts[part].ids.astype("int64"))[None] for row in rows]
    return torch.cat([model(input_ids=one).logits[:, 0] for one in ids])


def test_three_pairs_by_hand() -> None:
    """Margins log 3, 0 and -log 3: σ is 3/4, 1/2 and 1/4. Only the number at an answer's last token counts."""
    far = 99.0
    mask = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    better = torch.tensor([[far, math.log(3), far], [2.0, far, far], [far, far, -1.0]], requires_grad=True)
    worse = torch.tensor([[far, 0.0, far], [2.0, far, far], [far, far, math.log(3) - 1.0]], requires_grad=True)
    views = {
        part: View(torch.zeros(3, 3), mask, torch.zeros_like(mask), values=values)
        for part, values in (("chosen", better), ("rejected", worse))
    }
    (term,) = RANKER.terms(views, RANKER.params())
    assert term.values.tolist() == pytest.approx([math.log(4 / 3), math.log(2), math.log(4)], rel=1e-5)
    term.values.sum().backward()
    want = [[0, -1 / 4, 0], [-1 / 2, 0, 0], [0, 0, -3 / 4]]
    torch.testing.assert_close(better.grad, torch.tensor(want))
    torch.testing.assert_close(worse.grad, -torch.tensor(want))


@pytest.mark.parametrize("tokens", [1, 60])
def test_a_step_is_the_gradient_through_the_plain_classifier(tokens: int, base: Path, tmp_path: Path) -> None:
    run = make_run("reward-model", ROWS, none, tmp_path, batch_size=9, lr=0.1, clip=1e9, max_steps=1)
    ranker = fresh(base)
    torch.nn.init.normal_(ranker.model.get_parameter("score.weight"), generator=torch.Generator().manual_seed(1))
    plain = copy.deepcopy(ranker.model)
    loss = -logsigmoid(rewards(plain, ROWS, "chosen") - rewards(plain, ROWS, "rejected")).mean()
    loss.backward()
    numbers = train(ranker, run, Ranks.here())
    assert numbers["loss"] == pytest.approx(loss.item(), rel=1e-5)
    norm = torch.cat([p.grad.flatten() for p in plain.parameters() if p.grad is not None]).norm()
    assert numbers["grad_norm"] == pytest.approx(float(norm), rel=1e-4)


def test_what_is_saved_gives_the_rewards_of_the_training(base: Path, tmp_path: Path) -> None:
    run = make_run("reward-model", ROWS, none, tmp_path, max_steps=2)
    ranker, tokenizer = fresh(base), tiny_tokenizer()
    train(ranker, run, Ranks.here())
    save(ranker.model, tokenizer, tmp_path / "saved", TEMPLATE, "<end>")
    loader: Any = LlamaForSequenceClassification
    model, info = loader.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not info["missing_keys"]
    found = label_logps(ranker, ROWS, ("chosen",), 60, "cpu")
    with torch.no_grad():
        plain = rewards(model, ROWS, "chosen").tolist()
    assert [found[row.id, "chosen"][-1] for row in ROWS] == pytest.approx(plain, abs=1e-5)
    assert len(set(plain)) == len(ROWS)
    read = sequence_rewards(
        tmp_path / "saved", [row.parts["chosen"].ids.tolist() for row in ROWS], "float32", "cpu", 40
    )
    assert read == pytest.approx(plain, abs=1e-5)


def test_a_stopped_run_goes_on_to_the_same_weights(base: Path, tmp_path: Path) -> None:
    whole, parts = fresh(base), [fresh(base), fresh(base)]
    settings: dict[str, Any] = {"epochs": 2.0}
    train(whole, make_run("reward-model", ROWS, none, tmp_path / "whole", **settings), Ranks.here())
    asked = iter([None, "SIGTERM"])
    first = make_run("reward-model", ROWS, none, tmp_path / "cut", stop=lambda: next(asked), **settings)
    with pytest.raises(Stopped):
        train(parts[0], first, Ranks.here())
    train(parts[1], make_run("reward-model", ROWS, none, tmp_path / "cut", **settings), Ranks.here())
    for (name, p), q in zip(whole.model.named_parameters(), parts[1].model.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_padding_is_no_token_that_ends_an_answer(base: Path) -> None:
    tokenizer = tiny_tokenizer()
    assert load_reward_model(base, tokenizer, END, "cpu").config.pad_token_id == PAD == tokenizer.named_id("pad_token")
    model = load_reward_model(base, tokenizer.padded_with(END), END, "cpu")
    assert model.config.pad_token_id == tokenizer.named_id("bos_token") != END


def test_a_classifier_of_several_classes_is_refused(tmp_path: Path) -> None:
    config = tiny_llama().config
    config.num_labels = 3
    LlamaForSequenceClassification(config).save_pretrained(tmp_path)
    with pytest.raises(AdpaError, match=r"score\.weight"):
        load(tmp_path, scalar=True)


def test_held_out_pairs_are_preferred_by_their_rewards(base: Path) -> None:
    ranker = fresh(base)
    torch.nn.init.normal_(ranker.model.get_parameter("score.weight"), generator=torch.Generator().manual_seed(1))
    found = HeldOut(ROWS, ("chosen", "rejected")).score(ranker, Ranks.here())
    with torch.no_grad():
        margins = rewards(ranker.model, ROWS, "chosen") - rewards(ranker.model, ROWS, "rejected")
    assert found["accuracy"] == pytest.approx(float((margins > 0).float().mean()))
    assert found["margin"] == pytest.approx(float(margins.mean()), abs=1e-5)


def test_a_judge_hears_greedy_answers_to_every_prompt() -> None:
    model, heard = tiny_llama(0), {}

    def length(answers: Any) -> list[float]:
        heard.update(answers)
        return [float(len(ids)) for ids in answers.values()]

    prompts = {"a": [5, 6], "b": [7], "c": [8, 9, 10]}
    decoding = Decoding(Sampling(max_new_tokens=4), (END,), PAD, 64)
    found = RewardSelection(prompts, length, decoding).score(Student(model, "float32"), Ranks.here())
    for name, ids in prompts.items():
        taken = list(ids)
        while len(taken) < len(ids) + 4 and taken[-1] != END:
            taken.append(int(model(torch.tensor([taken])).logits[0, -1].argmax()))
        assert list(heard[name]) == taken[len(ids) :]
    assert found == {"reward": sum(map(len, heard.values())) / 3, "prompts": 3}


def test_the_highest_reward_is_best_and_of_equal_ones_the_later() -> None:
    points = [{"step": 1, "reward": -2.0}, {"step": 2, "reward": -1.0}, {"step": 3, "reward": -1.0}]
    assert best(points)["step"] == 3
    assert best([*points[:2], {"step": 3, "reward": -1.5}])["step"] == 2
