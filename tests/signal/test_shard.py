"""What is written to a shard comes back: within half a step, whatever the shape, any answer alone, whole or not."""

from __future__ import annotations

import json
import zlib
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adpa_cli.errors import DataError
from adpa_cli.signal.rows import AnswerKey, SignalRows, SignalSpec, reference_logps
from adpa_cli.signal.shard import Shard, write_shard
from support.signal_samples import by_id, classes_of, key_of, sample_answers, sample_rows, spec_of

QUICK = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


def written(path: Path, spec: SignalSpec, answers: list[tuple[AnswerKey, SignalRows]]) -> Shard:
    write_shard(path, spec, answers)
    return Shard(path)


def assert_close(stored: np.ndarray, given: np.ndarray, bound: float) -> None:
    finite = np.isfinite(given)
    np.testing.assert_array_equal(stored[~finite], given[~finite])
    slack = 4e-7 * np.abs(given[finite]) + 1e-9
    assert (np.abs(stored[finite] - given[finite]) <= bound + slack).all()


def assert_stored(stored: SignalRows, given: SignalRows, step: float, pair_step: float) -> None:
    """`stored` holds the same sets as `given`, each value within half a step of it."""
    np.testing.assert_array_equal(np.sort(stored.ids, axis=1), np.sort(given.ids, axis=1))
    np.testing.assert_array_equal(stored.label_ids, given.label_ids)
    assert_close(by_id(stored.ids, stored.logps), by_id(given.ids, given.logps), step / 2)
    assert_close(stored.label_logps, given.label_logps, step / 2)
    assert_close(stored.rest_logps, given.rest_logps, step / 2)
    if given.difference is None:
        assert stored.difference is None
        return
    assert_close(by_id(stored.ids, stored.difference), by_id(given.ids, given.difference), pair_step / 2)
    np.testing.assert_array_equal(by_id(stored.ids, stored.in_reference), by_id(given.ids, given.in_reference))
    assert_close(stored.reference_kth, given.reference_kth, pair_step / 2)
    for name in ("reference_label_logps", "reference_rest_logps"):
        assert_close(getattr(stored, name), getattr(given, name), step / 2 + pair_step / 2)


@QUICK
@given(
    seed=st.integers(0, 2**32 - 1),
    lengths=st.lists(st.integers(0, 7), max_size=4),
    vocab_size=st.integers(1, 700),
    data=st.data(),
    pair=st.booleans(),
    step=st.sampled_from([0, 1 / 32, 0.1, 1 / 1024, 1.0]),
    pair_step=st.sampled_from([0, 1 / 128, 0.03]),
    scale=st.sampled_from([0.0, 0.5, 3.0, 40.0]),
)
def test_every_value_returns_within_half_a_step(
    tmp_path, seed, lengths, vocab_size, data, pair, step, pair_step, scale
):
    k = data.draw(st.integers(1, vocab_size))
    spec = spec_of(k, vocab_size, pair=pair, step=step, pair_step=pair_step)
    made = [sample_rows(seed + i, n, k, vocab_size, pair=pair, scale=scale) for i, n in enumerate(lengths)]
    shard = written(tmp_path / "s.adpa", spec, [(key_of(rows, str(i)), rows) for i, rows in enumerate(made)])
    assert shard.spec == spec
    assert shard.tokens.tolist() == list(lengths)
    assert shard.verify() == []
    for i, rows in enumerate(made):
        assert_stored(shard.read(i, raw=True), rows, step, pair_step)
        assert_normalised(shard.read(i))


def assert_normalised(rows: SignalRows) -> None:
    inside = rows.ids == rows.label_ids[:, None]
    np.testing.assert_array_equal(np.where(inside, rows.label_logps[:, None], 0), np.where(inside, rows.logps, 0))
    sides = [(rows.logps, rows.label_logps, rows.rest_logps)]
    if rows.difference is not None:
        sides.append((reference_logps(rows), rows.reference_label_logps, rows.reference_rest_logps))
    for side in sides:
        total = np.exp(classes_of(rows, *side).astype(np.float64)).sum(axis=1)
        np.testing.assert_allclose(total, 1, atol=2e-5)


@pytest.mark.parametrize(("step", "pair_step"), [(1 / 32, 1 / 128), (0.25, 0.03), (1 / 32, 0), (0, 0)])
def test_the_greatest_errors_bound_what_is_stored_and_what_is_read(tmp_path, step, pair_step):
    rows = sample_rows(11, 400, 20, 500)
    spec = spec_of(20, 500, step=step, pair_step=pair_step)
    shard = written(tmp_path / "s.adpa", spec, [(key_of(rows, "a"), rows)])

    def found(read: SignalRows, name: str) -> float:
        return float(np.abs(by_id(read.ids, getattr(read, name)) - by_id(rows.ids, getattr(rows, name))).max())

    raw, read, slack = shard.read(0, raw=True), shard.read(0), 4e-6
    bounds = spec.greatest_errors
    assert found(raw, "logps") <= bounds["max_abs_error_nats"] + slack
    assert found(raw, "difference") <= bounds["max_abs_error_nats_pair"] + slack
    assert found(read, "logps") <= bounds["max_abs_error_nats_read"] + slack
    assert found(read, "difference") <= bounds["max_abs_error_nats_pair_read"] + slack
    if step:
        assert found(raw, "logps") > 0.9 * bounds["max_abs_error_nats"]
        assert found(read, "logps") > bounds["max_abs_error_nats"], "what is stored says too little of what is read"
    single = replace(spec, teachers={"aligned": "a"}).greatest_errors
    assert single == {"max_abs_error_nats": step / 2, "max_abs_error_nats_read": step}


@pytest.mark.parametrize(("k", "vocab_size"), [(50, 128_256), (1, 262_144), (262_144, 262_144), (300, 151_936)])
def test_large_vocabularies(tmp_path, k, vocab_size):
    rows = sample_rows(7, 3, k, vocab_size)
    shard = written(tmp_path / "s.adpa", spec_of(k, vocab_size), [(key_of(rows, "a"), rows)])
    assert_stored(shard.read(0, raw=True), rows, 1 / 32, 1 / 128)
    assert_normalised(shard.read(0))


def test_exact_signal_is_exact(tmp_path):
    rows = sample_rows(3, 9, 5, 60)
    stored = written(tmp_path / "s.adpa", spec_of(5, 60, step=0, pair_step=0), [(key_of(rows, "a"), rows)]).read(
        0, raw=True
    )
    for name in ("logps", "difference", "in_reference"):
        np.testing.assert_array_equal(by_id(stored.ids, getattr(stored, name)), by_id(rows.ids, getattr(rows, name)))
    for name in ("label_ids", "label_logps", "rest_logps"):
        np.testing.assert_array_equal(getattr(stored, name), getattr(rows, name))


def test_a_row_by_hand(tmp_path):
    """V = 4, k = 2, step 1/2: p = (.5, .3, .15, .05), label 2, so the rest is id 3."""
    rows = SignalRows(np.array([[0, 1]]), np.log([[0.5, 0.3]]), np.array([2]), np.log([0.15]), np.log([0.05]))
    shard = written(tmp_path / "s.adpa", spec_of(2, 4, pair=False, step=0.5), [(key_of(rows, "a"), rows)])
    raw = shard.read(0, raw=True)
    np.testing.assert_array_equal(by_id(raw.ids, raw.logps), [[-0.5, -1.0]])  # -.693, -1.204
    np.testing.assert_array_equal(raw.label_logps, [-2.0])  # -1.897
    np.testing.assert_array_equal(raw.rest_logps, [-3.0])  # -2.996
    total = np.log(np.exp(-0.5) + np.exp(-1) + np.exp(-2) + np.exp(-3))
    np.testing.assert_allclose(by_id(raw.ids, shard.read(0).logps), [[-0.5 - total, -1 - total]], rtol=1e-6)


def test_no_mass_denormals_and_absurd_log_probs(tmp_path):
    """-inf stays -inf, a log-prob of -0 or of the smallest denormal is 0, and below -2**24 steps is no mass."""
    logps = np.array([[0, -np.inf, -np.inf], [-1e-45, -200, -600_000], [-np.inf, -np.inf, -np.inf]], dtype=np.float32)
    reference = np.array([[-np.inf, -1, -np.inf], [-2, -np.inf, -3], [-4, -5, -np.inf]], dtype=np.float32)
    finite = np.where(np.isneginf(logps), 0, logps)
    rows = SignalRows(
        np.array([[0, 1, 2]] * 3),
        logps,
        np.array([0, 3, 3]),
        np.array([0, -np.inf, -600_000], dtype=np.float32),
        np.array([-np.inf, -5e5, -np.inf], dtype=np.float32),
        finite - reference,
        np.array([[False, True, False]] * 3),
        np.array([-1, -2, -np.inf]),
        np.array([-np.inf, -7, -8]),
        np.array([-np.inf, -np.inf, -1]),
    )
    shard = written(tmp_path / "s.adpa", spec_of(3, 5), [(key_of(rows, "a"), rows)])
    raw = shard.read(0, raw=True)
    seen = np.where(logps < -524_288, -np.inf, np.where(logps > -1e-30, 0, logps))
    np.testing.assert_array_equal(by_id(raw.ids, raw.logps), seen)
    np.testing.assert_array_equal(raw.label_logps, [0, -np.inf, -np.inf])
    np.testing.assert_array_equal(raw.rest_logps, [-np.inf, -500_000, -np.inf])
    np.testing.assert_array_equal(by_id(raw.ids, reference_logps(raw)), reference)
    np.testing.assert_array_equal(by_id(raw.ids, raw.in_reference), rows.in_reference)
    np.testing.assert_array_equal(raw.reference_kth, rows.reference_kth)
    np.testing.assert_array_equal(raw.reference_label_logps, rows.reference_label_logps)
    np.testing.assert_array_equal(raw.reference_rest_logps, rows.reference_rest_logps)
    read = shard.read(0)
    for field in fields(SignalRows):
        value = getattr(read, field.name)
        assert value is None or not np.isnan(value).any(), field.name
    np.testing.assert_allclose(
        np.exp(classes_of(read, read.logps, read.label_logps, read.rest_logps)).sum(axis=1)[:2], 1
    )


@QUICK
@given(seed=st.integers(0, 2**32 - 1), step=st.sampled_from([1 / 32, 0.25, 1.0]), scale=st.floats(0.1, 6))
def test_a_kl_is_never_negative(tmp_path, seed, step, scale):
    """Against the reference and against the teacher before it was quantised, where p and q are almost equal."""
    rows = sample_rows(seed, 12, 6, 40, scale=scale)
    read = written(tmp_path / "s.adpa", spec_of(6, 40, step=step), [(key_of(rows, "a"), rows)]).read(0)
    p = classes_of(read, read.logps, read.label_logps, read.rest_logps).astype(np.float64)
    q = classes_of(read, reference_logps(read), read.reference_label_logps, read.reference_rest_logps).astype(
        np.float64
    )
    back = np.argsort(np.argsort(read.ids, axis=1), axis=1)
    sorted_logps = by_id(rows.ids, rows.logps)
    exact = classes_of(read, np.take_along_axis(sorted_logps, back, axis=1), rows.label_logps, rows.rest_logps)
    for other in (q, exact.astype(np.float64)):
        ratio = np.where(np.isneginf(p), 0, p) - np.where(np.isneginf(other), 0, other)
        kl = (np.exp(p) * ratio).sum(axis=1)
        assert (kl >= -1e-6).all()


def test_any_answer_alone_equals_iteration(tmp_path):
    shard = written(tmp_path / "s.adpa", spec_of(8, 90), sample_answers((5, 0, 130, 1, 17), 8, 90))
    whole = list(shard)
    for i in (3, 0, 4, 2, 1, 2):
        key, expected = whole[i]
        assert key == shard.keys[i]
        alone = Shard(shard.path).read(i)
        for field in fields(SignalRows):
            np.testing.assert_array_equal(getattr(alone, field.name), getattr(expected, field.name))


def test_same_answers_same_bytes(tmp_path):
    answers = sample_answers((5, 40, 3), 8, 90)
    shuffled = []
    for i, (key, rows) in enumerate(answers):
        order = np.random.default_rng(i).permuted(np.tile(np.arange(8), (len(rows), 1)), axis=1)
        per_id = ("ids", "logps", "difference", "in_reference")
        moved = {name: np.take_along_axis(getattr(rows, name), order, axis=1) for name in per_id}
        shuffled.append((key, replace(rows, **moved)))
    for name, given_answers in (("a", answers), ("b", iter(answers)), ("c", shuffled)):
        write_shard(tmp_path / name, spec_of(8, 90), given_answers)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == (tmp_path / "c").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b", "c"]


def test_stored_values_are_stored_again_to_the_same_bytes(tmp_path):
    shard = written(tmp_path / "a", spec_of(8, 90), sample_answers((5, 40), 8, 90))
    write_shard(tmp_path / "b", shard.spec, [(key, shard.read(i, raw=True)) for i, key in enumerate(shard.keys)])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_header_needs_the_standard_library_and_zstandard_only(tmp_path):
    answers = sample_answers((5, 3), 8, 90)
    shard = written(tmp_path / "s.adpa", spec_of(8, 90), answers)
    data = shard.path.read_bytes()
    version, size, crc = (int.from_bytes(data[i : i + 4], "little") for i in (8, 12, 16))
    assert (data[:8], version) == (b"adpa-sig", 1)
    assert crc == zlib.crc32(data[:16] + data[20 : 20 + size])
    header = json.loads(zstandard.ZstdDecompressor().decompress(data[20 : 20 + size]))
    assert (header["k"], header["vocab_size"], header["step"], header["difference_step"]) == (8, 90, 1 / 32, 1 / 128)
    assert header["teachers"] == {"aligned": "aa" * 6, "reference": "bb" * 6}
    assert header["answers"]["example_id"] == ["example-0", "example-1"]
    assert header["answers"]["hash"] == [key.tokens for key, _ in answers]
    assert header["answers"]["tokens"] == [5, 3]
    assert 20 + size + header["ranking"]["bytes"] + sum(header["answers"]["bytes"]) == len(data)


def test_a_failed_write_leaves_the_old_shard(tmp_path):
    good = sample_answers((5,), 8, 90)
    write_shard(tmp_path / "s.adpa", spec_of(8, 90), good)
    before = (tmp_path / "s.adpa").read_bytes()
    with pytest.raises(DataError):
        write_shard(tmp_path / "s.adpa", spec_of(8, 90), good * 2)
    assert (tmp_path / "s.adpa").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["s.adpa"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"ids": np.zeros((4, 3), np.int32)}, "ids"),
        ({"ids": np.full((4, 3), 99, np.int32)}, "ids"),
        ({"ids": np.zeros((4, 2), np.int32)}, "ids"),
        ({"logps": np.full((4, 3), np.nan, np.float32)}, "logps"),
        ({"logps": np.ones((4, 3), np.float32)}, "logps"),
        ({"label_ids": np.full(4, -1, np.int32)}, "label_ids"),
        ({"label_logps": np.full(4, -9.5, np.float32)}, "label_logps"),
        ({"rest_logps": np.zeros(3, np.float32)}, "rest_logps"),
        ({"difference": None}, "difference"),
        ({"difference": np.full((4, 3), -np.inf, np.float32)}, "difference"),
    ],
)
def test_rows_that_cannot_be_stored_name_the_field(tmp_path, change, named):
    rows = sample_rows(1, 4, 3, 20)
    if named == "label_logps":
        rows = replace(rows, label_ids=rows.ids[:, 0])
    with pytest.raises(DataError, match=named):
        write_shard(tmp_path / "s.adpa", spec_of(3, 20), [(key_of(rows, "a"), replace(rows, **change))])


@pytest.mark.parametrize("change", [{"k": 0}, {"k": 21}, {"step": -1}, {"step": float("nan")}, {"difference_step": 99}])
def test_impossible_specs_are_refused(change):
    with pytest.raises(DataError):
        replace(spec_of(3, 20), **change)


def test_real_signal(tmp_path, shared_data):
    with np.load(shared_data / "teacher_top50_v128k.npz") as real:
        at = {name: real[name] for name in real}
    other, kth = at["reference_logps"], at["reference_kth_logp"]
    rows = SignalRows(
        *(at[name] for name in ("ids", "logps", "label_ids", "label_logps", "rest_logps")),
        at["logps"] - other,
        other >= kth[:, None],
        kth,
        at["reference_label_logps"],
        at["reference_rest_logps"],
    )
    shard = written(tmp_path / "s.adpa", spec_of(50, int(at["vocab_size"])), [(key_of(rows, "a"), rows)])
    assert_stored(shard.read(0, raw=True), rows, 1 / 32, 1 / 128)
    assert_normalised(shard.read(0))
    assert shard.path.stat().st_size < 145 * len(rows)
