"""DPO by hand, by its identities, and against TRL's trainer."""

import dataclasses
import math

import pytest
import torch

from adpa_cli import methods
from adpa_cli.methods import View
from adpa_cli.tensors.head import selected_logps
from dense_batches import batch_for, loss_of, random_inputs, reduced, value_and_gradients, view_of

DPO = methods.load("dpo")


def one(logps, start, mask=None):
    """A view of one answer from its label log-probs."""
    values = torch.tensor([logps], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([mask or [True] * len(logps)])
    return View(values, mask, torch.zeros_like(mask), start_logps=torch.tensor([start], dtype=torch.float64))


def test_one_pair_by_hand():
    """S_w - S_w^start = (-1-2+0.5) - (-2-2-1) = 2.5, S_l - S_l^start = -3 - (-1) = -2, h = 4.5, beta h = 0.45."""
    chosen = one([-1.0, -2.0, 0.5, -99.0], [-2.0, -2.0, -1.0, -7.0], [True, True, True, False])
    rejected = one([-3.0], [-1.0])
    (term,) = DPO.terms({"chosen": chosen, "rejected": rejected}, DPO.params(beta=0.1))
    assert term.values.shape == (1,)
    assert term.values.item() == pytest.approx(math.log(1 + math.exp(-0.45)))
    term.values.sum().backward()
    # d/dS_w = -beta sigma(-beta h), the opposite for the rejected answer.
    pull = 0.1 / (1 + math.exp(0.45))
    assert chosen.logps.grad[0].tolist() == pytest.approx([-pull, -pull, -pull, 0.0])
    assert rejected.logps.grad[0].tolist() == pytest.approx([pull])


def test_at_the_start_model_the_loss_is_log_2():
    params = DPO.params(beta=0.3)
    inputs = batch_for(DPO, params)
    same = {k: dataclasses.replace(x, start=x.logits.detach()) for k, x in inputs.items()}
    loss, grads = value_and_gradients(DPO, params, same)
    assert loss.item() == pytest.approx(math.log(2))
    for part, sign in (("chosen", -1), ("rejected", 1)):
        x = same[part]
        sums = (x.logits.log_softmax(-1).gather(-1, x.labels[..., None])[..., 0] * x.mask).sum(1)
        torch.testing.assert_close(grads[part], sign * 0.3 / 2 * torch.autograd.grad(sums.mean(), x.logits)[0])


def test_swapping_the_pair_moves_the_loss_by_beta_h():
    params = DPO.params(beta=0.7)
    inputs = batch_for(DPO, params)
    views = {n.part: view_of(inputs[n.part], n, 4) for n in DPO.needs}
    sums = {k: ((v.logps - v.start_logps) * v.mask).sum(1) for k, v in views.items()}
    swapped = {"chosen": views["rejected"], "rejected": views["chosen"]}
    (there,), (back,) = DPO.terms(views, params), DPO.terms(swapped, params)
    torch.testing.assert_close(there.values - back.values, -0.7 * (sums["chosen"] - sums["rejected"]))


def test_a_constant_in_both_reference_sums_cancels():
    params = DPO.params()
    inputs = batch_for(DPO, params)
    views = {n.part: view_of(inputs[n.part], n, 4) for n in DPO.needs}

    def raised(v):
        """5 nats more on every answer, spread over its tokens."""
        return dataclasses.replace(v, start_logps=v.start_logps + 5 * v.mask / v.mask.sum(1, keepdim=True))

    (plain,) = DPO.terms(views, params)
    (moved,) = DPO.terms({k: raised(v) for k, v in views.items()}, params)
    torch.testing.assert_close(moved.values, plain.values)


def test_the_end_token_counts():
    inputs = {"chosen": random_inputs(0), "rejected": random_inputs(1)}
    x = inputs["chosen"]
    cut = inputs | {"chosen": dataclasses.replace(x, mask=x.mask & ~x.end)}
    assert loss_of(DPO, DPO.params(), inputs) != loss_of(DPO, DPO.params(), cut)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("beta", [0.05, 1.0])
def test_equals_trl_on_a_small_llama(tmp_path, beta):
    """Value and gradient of every weight, tied embedding included, against the loss that TRL's own trainer computes."""
    pytest.importorskip("trl")
    trainer = trl_trainer(tmp_path, beta)
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(trainer.model, batch)
    names, weights = zip(*trainer.model.named_parameters(), strict=True)
    want = torch.autograd.grad(theirs, weights)

    def label_logps(model):
        hidden = model.base_model(batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state[:, :-1]
        ids = batch["input_ids"][:, 1:].reshape(-1, 1)
        return selected_logps(hidden.flatten(0, 1), model.lm_head.weight, ids).logps.view(hidden.shape[:2])

    mask = batch["completion_mask"][:, 1:].bool()
    with torch.no_grad():
        start = label_logps(trainer.ref_model)
    halves = zip(*(t.chunk(2) for t in (label_logps(trainer.model), mask, torch.zeros_like(mask))), strict=True)
    views = {
        part: View(*half, start_logps=s)
        for part, half, s in zip(("chosen", "rejected"), halves, start.chunk(2), strict=True)
    }
    (term,) = DPO.terms(views, DPO.params(beta=beta))
    ours = reduced(term.values, mask, term.reduction)
    assert abs(theirs.item() - math.log(2)) > 0.01, "the models must differ"
    torch.testing.assert_close(ours, theirs)
    got = torch.autograd.grad(ours, weights)
    torch.testing.assert_close(dict(zip(names, got, strict=True)), dict(zip(names, want, strict=True)))


def trl_trainer(folder, beta):
    """A real DPOTrainer over two pairs and two random one-layer models with tied embeddings."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer

    vocabulary = {w: i for i, w in enumerate(["<pad>", "<eos>", *"abcdefgh"])}
    words = Tokenizer(models.WordLevel(vocabulary, "<pad>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=10, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        tie_word_embeddings=True, initializer_range=0.5, pad_token_id=0, eos_token_id=1, bos_token_id=None,
    )  # fmt: skip
    return DPOTrainer(
        LlamaForCausalLM(config),
        ref_model=LlamaForCausalLM(config),
        args=DPOConfig(
            output_dir=str(folder), beta=beta, use_cpu=True, bf16=False, report_to=[], per_device_train_batch_size=2
        ),
        train_dataset=Dataset.from_list(
            [
                {"prompt": "a b", "chosen": " c d e", "rejected": " f"},
                {"prompt": "b", "chosen": " g", "rejected": " h a b c"},
            ]
        ),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>"),
    )
