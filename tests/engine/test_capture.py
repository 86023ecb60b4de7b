"""What is captured from a teacher equals dense float64 log-probs of its logits."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from adpa_cli.engine.capture import aligned_pass, reference_pass
from adpa_cli.engine.layout.examples import Answer
from adpa_cli.errors import AdpaError, DataError
from adpa_cli.signal.rows import SignalRows
from support.answers import named_answer
from support.tiny_models import VOCABULARY, tiny_llama

ANSWERS = [
    named_answer("first", [2, 7, 9], [11, 12, 4]),
    named_answer("second", [2, 30], [8, 8, 20, 21, 22, 4]),
    named_answer("third", [2, 5, 6, 7, 8, 9, 10], [33]),
]
TOLERANCE = 1e-5


def dense(model: Any, answer: Answer) -> NDArray[np.float64]:
    """[T, V] log-softmax in float64 from the model's own logits for one unpadded row."""
    ids = torch.tensor([[*answer.prompt, *answer.answer]])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0].double().numpy()
    logits = logits[len(answer.prompt) - 1 : -1]
    return logits - np.log(np.exp(logits).sum(1, keepdims=True))


def log_mass_outside(logps: NDArray[np.float64], inside: set[int]) -> float:
    outside = [value for token, value in enumerate(logps) if token not in inside]
    with np.errstate(divide="ignore"):
        return float(np.log(np.exp(outside).sum()))


def close(actual: Any, expected: Any) -> None:
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("k", [1, 5, VOCABULARY - 1, VOCABULARY, VOCABULARY + 10])
def test_the_aligned_pass_equals_dense_log_probs(k: int) -> None:
    model = tiny_llama()
    captured = aligned_pass(model, ANSWERS, k, teacher="T")
    assert len(captured) == len(ANSWERS)
    for answer, rows in zip(ANSWERS, captured, strict=True):
        full = dense(model, answer)
        best = np.sort(full, axis=1)[:, ::-1][:, :k]
        assert rows.ids.shape == (len(answer.answer), min(k, VOCABULARY))
        close(rows.logps, best)
        close(rows.logps, np.take_along_axis(full, rows.ids.astype(np.int64), 1))
        assert tuple(rows.label_ids.tolist()) == answer.answer
        close(rows.label_logps, [full[t, label] for t, label in enumerate(answer.answer)])
        close(
            rows.rest_logps,
            [log_mass_outside(full[t], {*rows.ids[t].tolist(), answer.answer[t]}) for t in range(len(rows))],
        )
        assert rows.difference is None


def test_the_mass_of_all_classes_is_one() -> None:
    for rows in aligned_pass(tiny_llama(), ANSWERS, 5, teacher="T"):
        total = np.exp(rows.logps).sum(1) + np.exp(rows.rest_logps)
        absent = ~(rows.ids == rows.label_ids[:, None]).any(1)
        close(total + np.where(absent, np.exp(rows.label_logps), 0), 1)


@pytest.mark.parametrize("k", [1, 5, VOCABULARY])
def test_the_reference_pass_equals_dense_log_probs_at_the_aligned_ids(k: int) -> None:
    aligned, reference = tiny_llama(0), tiny_llama(1)
    rows_of = reference_pass(reference, ANSWERS, aligned_pass(aligned, ANSWERS, k, teacher="T"), teacher="R")
    for answer, rows in zip(ANSWERS, rows_of, strict=True):
        full = dense(reference, answer)
        here = np.take_along_axis(full, rows.ids.astype(np.int64), 1)
        own = np.sort(full, axis=1)[:, ::-1][:, k - 1]
        close(rows.difference, np.take_along_axis(dense(aligned, answer), rows.ids.astype(np.int64), 1) - here)
        close(rows.reference_kth, own)
        assert rows.in_reference is not None
        assert rows.in_reference.tolist() == (here >= own[:, None]).tolist()
        close(rows.reference_label_logps, [full[t, label] for t, label in enumerate(answer.answer)])
        close(
            rows.reference_rest_logps,
            [log_mass_outside(full[t], {*rows.ids[t].tolist(), answer.answer[t]}) for t in range(len(rows))],
        )


def test_a_teacher_is_its_own_reference() -> None:
    model = tiny_llama()
    for rows in reference_pass(model, ANSWERS, aligned_pass(model, ANSWERS, 5, teacher="T"), teacher="R"):
        close(rows.difference, 0)
        assert rows.in_reference is not None
        assert rows.in_reference.all()
        close(rows.reference_kth, rows.logps[:, -1])
        close(rows.reference_rest_logps, rows.rest_logps)


def test_batch_mates_do_not_matter() -> None:
    aligned, reference = tiny_llama(0), tiny_llama(1)

    def both(answers: list[Answer]) -> list[SignalRows]:
        return reference_pass(reference, answers, aligned_pass(aligned, answers, 5, teacher="T"), teacher="R")

    together = both(ANSWERS)
    for answer, rows in zip(ANSWERS, together, strict=True):
        alone = both([answer])[0]
        for field in fields(SignalRows):
            if field.name != "weights":  # of drawn ids: tests/engine/test_sampled_support.py
                close(getattr(alone, field.name), getattr(rows, field.name))


def test_ids_that_the_student_lacks_stay_in_the_rest() -> None:
    model, k = tiny_llama(), 5
    loud = 35  # make an unknown id the likeliest everywhere it can be
    with torch.no_grad():
        model.lm_head.weight[loud] *= 10
    met = False
    for answer, rows in zip(ANSWERS, aligned_pass(model, ANSWERS, k, teacher="T", student_vocab=34), strict=True):
        full = dense(model, answer)
        met = met or bool((full.argmax(1) == loud).any())
        close(rows.logps, np.sort(full[:, :34], axis=1)[:, ::-1][:, :k])
        close(
            rows.rest_logps,
            [log_mass_outside(full[t], {*rows.ids[t].tolist(), answer.answer[t]}) for t in range(len(rows))],
        )
        again = reference_pass(model, [answer], [rows], teacher="R", student_vocab=34)[0]
        close(again.reference_kth, rows.logps[:, -1])
        close(again.reference_rest_logps, rows.rest_logps)
    assert met


def test_a_head_with_a_bias() -> None:
    from transformers import PhiConfig, PhiForCausalLM

    torch.manual_seed(0)
    settings = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = PhiForCausalLM(PhiConfig(vocab_size=VOCABULARY, **settings)).eval()
    with torch.no_grad():
        model.lm_head.bias.copy_(torch.linspace(-3, 3, VOCABULARY))
    for most in (None, 34):
        for answer, rows in zip(ANSWERS, aligned_pass(model, ANSWERS, 5, teacher="T", student_vocab=most), strict=True):
            close(rows.logps, np.sort(dense(model, answer)[:, :most], axis=1)[:, ::-1][:, :5])


def test_logits_that_are_not_finite_are_refused_by_name() -> None:
    for value in (float("nan"), float("inf")):
        model = tiny_llama()
        with torch.no_grad():
            model.model.embed_tokens.weight[20] = value  # only the second row reads this token
        with pytest.raises(AdpaError, match=r"Big .* not finite .*'second'"):
            aligned_pass(model, ANSWERS, 5, teacher="Big")
        with pytest.raises(AdpaError, match=r"Big .* not finite .*'second'"):
            reference_pass(model, ANSWERS, aligned_pass(tiny_llama(), ANSWERS, 5, teacher="T"), teacher="Big")


def test_a_teacher_without_mass_on_known_ids_is_refused() -> None:
    model = tiny_llama()
    answers = [named_answer("only", [2], [8])]
    with torch.no_grad():
        states = model.model(input_ids=torch.tensor([[2]])).last_hidden_state[0, 0]
        model.lm_head.weight[36] = 100 * states / states.norm() ** 2
    with pytest.raises(AdpaError, match=r"Big gives no probability .*'only'"):
        aligned_pass(model, answers, 5, teacher="Big", student_vocab=36)
    assert aligned_pass(model, answers, 5, teacher="Big")[0].ids[0, 0] == 36


@pytest.mark.parametrize(
    ("answer", "student_vocab", "message"),
    [
        (named_answer("r", [2], []), None, "'r': the answer has no tokens"),
        (named_answer("r", [], [8]), None, "'r': the prompt has no tokens"),
        (named_answer("r", [2], [VOCABULARY]), None, f"'r': the answer has the token id {VOCABULARY}"),
        (named_answer("r", [2], [34]), 34, "token id 34, which the student does not have"),
    ],
)
def test_rows_that_cannot_be_captured_are_named(answer: Answer, student_vocab: int | None, message: str) -> None:
    with pytest.raises(DataError, match=message):
        aligned_pass(tiny_llama(), [ANSWERS[0], answer], 5, teacher="T", student_vocab=student_vocab)


def test_a_reference_of_other_answers_or_of_a_smaller_vocabulary_is_refused() -> None:
    rows = aligned_pass(tiny_llama(), ANSWERS, VOCABULARY, teacher="T")
    with pytest.raises(DataError, match=r"other tokens for the answer of row 'first' than the aligned teacher"):
        reference_pass(tiny_llama(), [replace(ANSWERS[0], answer=(9, 9, 9)), *ANSWERS[1:]], rows, teacher="R")
    with pytest.raises(AdpaError, match=f"has the token id {VOCABULARY - 1}, while R has {VOCABULARY - 1}"):
        reference_pass(tiny_llama(vocabulary=VOCABULARY - 1), ANSWERS, rows, teacher="R")


def test_no_answers_give_no_rows() -> None:
    assert aligned_pass(tiny_llama(), [], 5, teacher="T") == []
    assert reference_pass(tiny_llama(), [], [], teacher="R") == []
