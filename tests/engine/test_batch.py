"""A micro-batch gives every method what dense log-probs of each unpadded row would give it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from adpa_cli.engine.layout.batch import SIGNAL_FIELDS, collate, views
from adpa_cli.engine.layout.examples import Example, TokenSequence
from adpa_cli.engine.layout.row_layout import length_groups
from adpa_cli.engine.scoring import label_logps
from adpa_cli.engine.training.student import Student
from adpa_cli.methods import Need, View
from support.tiny_models import END, tiny_llama
from support.train_samples import K, answer_logps, examples, labels, outside, signal_rows, signal_source

NEEDS = (
    Need("chosen", start=True),
    Need("rejected", signal=("aligned",)),
    Need("rollout", signal=("aligned", "reference")),
)
ROWS = examples(7)
CLOSE = {"rtol": 0, "atol": 2e-5}


def start_of(rows: list[Example]) -> dict:
    return {(e.id, "chosen"): np.arange(e.parts["chosen"].tokens, dtype=np.float32) for e in rows}


def seen(rows: list[Example], needs=NEEDS) -> dict[str, View]:
    student, signal = Student(tiny_llama(0), "float32"), signal_source(rows, tiny_llama(1), tiny_llama(2))
    batch = collate(rows, needs, END, signal, start_of(rows))
    return views(batch, *student(batch.layouts, batch.ids))


@pytest.mark.parametrize("name", ["chosen", "rejected", "rollout"])
def test_views_equal_dense_rows(name: str) -> None:
    view, model = seen(ROWS)[name], tiny_llama(0)
    assert view.logps.shape == view.mask.shape == (len(ROWS), max(e.parts[name].tokens for e in ROWS))
    for i, example in enumerate(ROWS):
        part = example.parts[name]
        own, taken = view.mask[i], labels(part)
        assert own.tolist() == [t < part.tokens for t in range(own.numel())]
        full = answer_logps(model, part).detach()
        torch.testing.assert_close(view.logps[i][own], full.gather(1, taken[:, None])[:, 0], **CLOSE)
        assert view.end[i][own].tolist() == (taken == END).tolist()
        assert not view.end[i][~own].any()
        if name == "chosen":
            assert view.topk_logps is view.rest_logps is view.label_in_topk is view.signal is None
            continue
        rows = signal_rows(tiny_llama(1), tiny_llama(2), part)
        ids = torch.from_numpy(rows.ids.astype(np.int64))
        torch.testing.assert_close(view.topk_logps[i][own], full.gather(1, ids), **CLOSE)
        inside = torch.cat([ids, taken[:, None]], 1)
        torch.testing.assert_close(view.rest_logps[i][own], outside(full, inside), **CLOSE)
        assert view.label_in_topk[i][own].tolist() == (ids == taken[:, None]).any(1).tolist()
        for field in SIGNAL_FIELDS:
            if getattr(rows, field) is None:
                assert getattr(view.signal, field) is None, field
                continue
            given = getattr(view.signal, field)[i]
            torch.testing.assert_close(given[own], torch.from_numpy(getattr(rows, field)))
            assert not given[~own].any()


def test_labels_are_met_inside_and_outside_the_top_k() -> None:
    known = seen(ROWS)["rollout"]
    assert known.label_in_topk[known.mask].any()
    assert not known.label_in_topk[known.mask].all()


def test_rows_of_one_token_fill_a_batch() -> None:
    short = [e for e in ROWS if e.parts["rollout"].tokens == 1]
    assert len(short) == 2
    view = seen(short, NEEDS[2:])["rollout"]
    assert view.logps.shape == (2, 1)
    assert view.topk_logps.shape == (2, 1, K)
    for i, example in enumerate(short):
        part = example.parts["rollout"]
        ids = torch.from_numpy(signal_rows(tiny_llama(1), tiny_llama(2), part).ids.astype(np.int64))
        torch.testing.assert_close(view.topk_logps[i], answer_logps(tiny_llama(0), part).gather(1, ids), **CLOSE)


def test_start_log_probs_stay_with_their_tokens() -> None:
    view = seen(ROWS)["chosen"]
    for i, example in enumerate(ROWS):
        assert view.start_logps[i][view.mask[i]].tolist() == list(range(example.parts["chosen"].tokens))


def test_padding_and_batch_mates_are_inert() -> None:
    together = seen(ROWS)
    for i, example in enumerate(ROWS):
        alone = seen([example])
        for name, view in alone.items():
            both = together[name]
            torch.testing.assert_close(view.logps[0][view.mask[0]], both.logps[i][both.mask[i]], **CLOSE)
            if view.topk_logps is not None:
                torch.testing.assert_close(view.topk_logps[0][view.mask[0]], both.topk_logps[i][both.mask[i]], **CLOSE)
                torch.testing.assert_close(view.rest_logps[0][view.mask[0]], both.rest_logps[i][both.mask[i]], **CLOSE)


def test_masked_positions_are_finite_and_the_padding_token_does_not_matter() -> None:
    student, signal = Student(tiny_llama(0), "float32"), signal_source(ROWS, tiny_llama(1), tiny_llama(2))
    batch = collate(ROWS, NEEDS, END, signal, start_of(ROWS))
    for view in views(batch, *student(batch.layouts, batch.ids)).values():
        assert view.logps.isfinite().all()
        if view.topk_logps is not None:
            assert view.topk_logps.isfinite().all()
    padded = [piece.input_ids == 0 for piece in batch.layouts]
    assert any(where.any() for where in padded)
    for piece, where in zip(batch.layouts, padded, strict=True):
        piece.input_ids[where] = 9
    changed = views(batch, *student(batch.layouts, batch.ids))
    for name, view in seen(ROWS).items():
        torch.testing.assert_close(changed[name].logps[view.mask], view.logps[view.mask], **CLOSE)


def test_several_turns_are_all_trained() -> None:
    ids = np.array([2, 9, 10, END, 11, 12, 13, END], dtype=np.int32)
    answer = np.array([0, 0, 1, 1, 0, 0, 1, 1], dtype=np.bool_)
    example = Example("turns", {"chosen": TokenSequence(ids, answer)})
    view = seen([example], (Need("chosen"),))["chosen"]
    full = tiny_llama(0)(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0].log_softmax(-1)
    expected = torch.stack([full[1, 10], full[2, END], full[5, 13], full[6, END]])
    torch.testing.assert_close(view.logps[0], expected, **CLOSE)
    assert view.end[0].tolist() == [False, True, False, True]


def test_parts_may_have_signals_of_different_k() -> None:
    def narrow(example_id: str, part: str):
        rows = signal_rows(tiny_llama(1), tiny_llama(2), next(e for e in ROWS if e.id == example_id).parts[part])
        if part == "rollout":
            return rows
        fields = {**vars(rows), "ids": rows.ids[:, :2], "logps": rows.logps[:, :2]}
        return type(rows)(**{**fields, "difference": rows.difference[:, :2], "in_reference": rows.in_reference[:, :2]})

    student = Student(tiny_llama(0), "float32")
    batch = collate(ROWS, NEEDS, END, narrow, start_of(ROWS))
    found = views(batch, *student(batch.layouts, batch.ids))
    assert found["rejected"].topk_logps.shape[-1] == 2
    assert found["rollout"].topk_logps.shape[-1] == K
    part = ROWS[1].parts["rejected"]
    full, view = answer_logps(tiny_llama(0), part), found["rejected"]
    inside = torch.cat([torch.from_numpy(narrow("row1", "rejected").ids.astype(np.int64)), labels(part)[:, None]], 1)
    torch.testing.assert_close(view.rest_logps[1][view.mask[1]], outside(full, inside), **CLOSE)


@pytest.mark.parametrize("tokens", [1, 50, 10_000])
def test_scores_of_given_answers_equal_dense_ones(tokens: int) -> None:
    model = tiny_llama(3)
    found = label_logps(Student(model, "float32"), ROWS, ("chosen", "rejected"), tokens, "cpu")
    assert set(found) == {(e.id, name) for e in ROWS for name in ("chosen", "rejected")}
    for example in ROWS:
        for name in ("chosen", "rejected"):
            part = example.parts[name]
            dense = answer_logps(model, part).gather(1, labels(part)[:, None])[:, 0].detach().numpy()
            assert found[example.id, name].dtype == np.float32
            np.testing.assert_allclose(found[example.id, name], dense, rtol=0, atol=2e-5)


def test_sequences_of_similar_length_are_run_together() -> None:
    assert length_groups([1000, 100, 980, 110]) == [[0, 2], [3, 1]]
    assert length_groups([100, 10, 98, 11]) == [[0, 2, 3, 1]], "few tokens are run as one"
    assert length_groups([7] * 5) == [[0, 1, 2, 3, 4]]
    assert length_groups([1000, 40, 30, 20, 1000]) == [[0, 4], [1, 2, 3]], (
        "few tokens are not worth a forward of their own"
    )
    lengths = [int(n) for n in np.random.default_rng(0).lognormal(4.5, 0.6, 60)]
    groups = length_groups(lengths)
    assert sorted(i for group in groups for i in group) == list(range(60))
    assert all(lengths[group[0]] == max(lengths[i] for i in group) for group in groups)
    assert sum(lengths[group[0]] * len(group) for group in groups) < 1.15 * sum(lengths)


def test_padding_is_what_no_token_fills_and_never_less_than_nothing() -> None:
    needs = (Need("chosen"), Need("rejected"))
    batch = collate(ROWS, needs, END, signal_source(ROWS, tiny_llama(1), tiny_llama(2)), {})
    assert batch.tokens == sum(len(e.parts[need.part]) for e in ROWS for need in needs)
    assert batch.cells == sum(piece.input_ids.numel() for piece in batch.layouts) > batch.tokens
    assert batch.padding == batch.cells - batch.tokens
    assert replace(batch, tokens=batch.cells + 5).padding == 0  # a prompt that goes through once for two answers
