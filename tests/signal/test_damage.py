"""Damage anywhere in a shard: the row is named, or the shard is refused; nothing passes."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from adpa_cli.errors import Corrupt
from adpa_cli.signal.shard import Shard, write_shard
from adpa_cli.signal.stored_frames import damage, patch_shard, signal_distance
from support.signal_samples import key_of, sample_answers, spec_of


@pytest.mark.parametrize("pair", [True, False])
def test_a_flipped_bit_anywhere_is_named_by_its_row_or_refused(tmp_path: Path, pair: bool) -> None:
    path = tmp_path / "signal-00000.adpa"
    write_shard(path, spec_of(10, 300, pair=pair), sample_answers((20, 3, 0, 9), 10, 300, pair=pair))
    whole, sizes = path.read_bytes(), Shard(path).sizes
    assert damage(path) == []
    bounds = np.cumsum([len(whole) - sum(sizes), *sizes])
    draw = random.Random(7)
    for place in {*range(24), *range(bounds[0] - 8, bounds[0] + 24), *draw.sample(range(len(whole)), 250)}:
        changed = bytearray(whole)
        changed[place] ^= 1 << draw.randrange(8)
        path.write_bytes(changed)
        if place < bounds[0]:
            with pytest.raises(Corrupt):
                damage(path)
        else:
            assert damage(path) == [int(np.searchsorted(bounds, place, side="right")) - 1], place
    for missing in (1, sizes[-1], sizes[-1] + 1):
        path.write_bytes(whole[:-missing])
        assert damage(path) == ([3] if missing <= sizes[-1] else [2, 3])


def test_new_frames_leave_the_others_as_they_are(tmp_path: Path) -> None:
    path, answers = tmp_path / "signal-00000.adpa", sample_answers((6, 4, 5), 8, 60)
    write_shard(path, spec_of(8, 60), answers)
    whole, stored = path.read_bytes(), Shard(path)
    patch_shard(path, stored, {1: answers[1][1]})
    assert path.read_bytes() == whole
    lower = replace(answers[1][1], rest_logps=answers[1][1].rest_logps - 1)
    patch_shard(path, stored, {1: lower})
    again = Shard(path)
    assert [again.frame(i) == stored.frame(i) for i in range(3)] == [True, False, True]
    assert Shard(path).read(1, raw=True).rest_logps == pytest.approx(lower.rest_logps, abs=1 / 64)


def test_distance_is_in_steps_of_what_is_stored() -> None:
    spec = spec_of(8, 60)
    ((_, rows),) = sample_answers((5,), 8, 60)
    assert signal_distance(rows, rows, spec) == 0
    assert signal_distance(rows, replace(rows, rest_logps=rows.rest_logps + 1 / 16), spec) == pytest.approx(8, rel=1e-3)
    assert signal_distance(rows, replace(rows, logps=rows.logps + 1 / 32), spec) == pytest.approx(1, rel=1e-3)
    moved = replace(rows, difference=rows.difference - 1 / 64)
    assert signal_distance(rows, moved, spec) == pytest.approx(2, rel=1e-3)
    order = np.argsort(rows.logps, axis=1)
    turned = {name: np.take_along_axis(getattr(rows, name), order, axis=1) for name in ("ids", "logps", "difference")}
    assert signal_distance(rows, replace(rows, **turned), spec) == 0
    assert signal_distance(rows, replace(rows, label_ids=rows.label_ids[::-1].copy()), spec) == np.inf
    # The least id of a token swapped for one that nobody counted: as far as its log-prob is above the other's least.
    least = rows.logps[0].argmin()
    ids, logps = rows.ids.copy(), rows.logps.copy()
    ids[0, least] = next(i for i in range(60) if i not in rows.ids[0])
    logps[0, least] += 1 / 64
    assert signal_distance(rows, replace(rows, ids=ids, logps=logps), spec) <= 0.51


def test_rounding_that_lifts_a_log_prob_above_0_is_no_damage(tmp_path: Path) -> None:
    """-0.0155 is stored as 0, its difference of -0.0154 as -2/128: the reference's label is read back as +0.0156."""
    path = tmp_path / "signal-00000.adpa"
    answers = []
    for key, rows in sample_answers((4, 3), 10, 300):
        outside = [next(i for i in range(300) if i not in ids) for ids in rows.ids]
        near, at = np.full(len(rows), -0.0155, np.float32), np.full(len(rows), -0.0001, np.float32)
        lifted = replace(rows, label_ids=np.array(outside, np.int32), label_logps=near, reference_label_logps=at)
        answers.append((key_of(lifted, key.example_id), lifted))
    write_shard(path, spec_of(10, 300), answers)
    assert float(Shard(path).read(0, raw=True).reference_label_logps.max()) > 0.01
    assert damage(path) == []
    whole = bytearray(path.read_bytes())
    whole[-9] ^= 1
    path.write_bytes(whole)
    assert damage(path) == [1]
