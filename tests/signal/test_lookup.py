"""Finding an answer among shards, blocks of a capture, hashes of tokens, and the size of the advantage."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import fields, replace

import numpy as np
import pytest

from adpa_cli.errors import Corrupt, DataError, NotFound
from adpa_cli.signal.block_files import load_block, save_block
from adpa_cli.signal.rows import SignalRows, advantage, difference_of, reference_logps, rms_advantage, token_hash
from adpa_cli.signal.shard import SignalReader, write_shard
from support.signal_samples import key_of, sample_answers, sample_rows, spec_of


@pytest.fixture
def folder(tmp_path):
    answers = sample_answers((4, 0, 9, 2), 5, 60)
    answers[3] = (key_of(answers[3][1], "example-2", "chosen"), answers[3][1])
    write_shard(tmp_path / "signal-00000.adpa", spec_of(5, 60), answers[:2])
    write_shard(tmp_path / "signal-00001.adpa", spec_of(5, 60), answers[2:])
    return tmp_path


def test_answers_are_found_in_every_shard(folder):
    reader = SignalReader(folder)
    assert (len(reader), reader.tokens, reader.parts, reader.spec) == (4, 15, ("chosen", "rollout"), spec_of(5, 60))
    keys = [key for shard in reader.shards for key in shard.keys]
    assert [len(reader.read(key)) for key in reversed(keys)] == [2, 9, 0, 4]
    reader.check(keys)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"example_id": "nobody"}, "has no example 'nobody'; it was made for [0-9] others"),
        ({"part": "rejected"}, "has no rejected answer of the example 'example-2', only chosen and rollout"),
        ({"tokens": "0" * 32}, "was made for other tokens of the example 'example-2'"),
    ],
)
def test_a_mismatch_names_what_differs(folder, change, said):
    reader = SignalReader(folder)
    key = replace(reader.shards[1].keys[0], **change)
    with pytest.raises(DataError, match=said) as caught:
        reader.read(key)
    assert "adpa cache-teacher" in caught.value.hint
    with pytest.raises(DataError, match=said):
        reader.check([reader.shards[0].keys[0], key])


def test_shards_that_do_not_belong_together_are_refused(folder):
    other = sample_answers((1, 1, 1, 1, 3), 5, 60)[4:]
    write_shard(folder / "signal-00002.adpa", spec_of(5, 60, step=1 / 16), other)
    with pytest.raises(Corrupt, match="signal-00002"):
        SignalReader(folder)


def test_an_answer_in_two_shards_is_refused(folder):
    (folder / "signal-00002.adpa").write_bytes((folder / "signal-00001.adpa").read_bytes())
    with pytest.raises(Corrupt, match="two shards"):
        SignalReader(folder)


def test_a_folder_without_signal_is_not_found(tmp_path):
    with pytest.raises(NotFound):
        SignalReader(tmp_path)


def test_token_hash_separates_prompt_and_answer():
    """Golden: stored signal is found by this value, so it may never change."""
    assert token_hash([1, 2], [3]) == "ffb94601c10ebf3a2ebf9ae3db6b19b8"
    assert token_hash(np.array([1, 2], np.int32), np.array([3], np.int64)) == token_hash([1, 2], [3])
    different = {token_hash([1, 2], [3]), token_hash([1], [2, 3]), token_hash([], [1, 2, 3]), token_hash([1, 2], [])}
    assert len(different) == 4


@pytest.mark.parametrize("pair", [True, False])
@pytest.mark.parametrize("lengths", [(), (0,), (3, 0, 5)])
def test_blocks_return_exactly(tmp_path, pair, lengths):
    answers = sample_answers(lengths, 4, 40, pair=pair)
    save_block(tmp_path / "a", answers)
    save_block(tmp_path / "b", answers)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    found = load_block(tmp_path / "a")
    assert [key for key, _ in found] == [key for key, _ in answers]
    for (_, stored), (_, rows) in zip(found, answers, strict=True):
        for field in fields(SignalRows):
            np.testing.assert_array_equal(getattr(stored, field.name), getattr(rows, field.name))


def test_a_shard_from_blocks_is_the_shard_from_memory(tmp_path):
    answers = sample_answers((4, 0, 9, 2), 5, 60)
    save_block(tmp_path / "0", answers[:2])
    save_block(tmp_path / "1", answers[2:])
    write_shard(tmp_path / "a", spec_of(5, 60), answers)
    write_shard(tmp_path / "b", spec_of(5, 60), (pair for name in "01" for pair in load_block(tmp_path / name)))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_advantage_by_hand():
    """Aligned (-1, -2, -3), reference (-2, -1, -9) with its k-th at -4: A = (1, -1, 1)."""
    aligned, reference = np.array([[-1, -2, -3]], np.float32), np.array([[-2, -1, -9]], np.float32)
    rows = SignalRows(
        np.array([[5, 6, 7]], np.int32),
        aligned,
        np.array([5], np.int32),
        np.array([-1], np.float32),
        np.array([-2], np.float32),
        difference_of(aligned, reference),
        np.array([[True, True, False]]),
        np.array([-4], np.float32),
        np.array([-2], np.float32),
        np.array([-2], np.float32),
    )
    np.testing.assert_array_equal(advantage(rows), [[1, -1, 1]])
    np.testing.assert_array_equal(reference_logps(rows), reference)
    louder = replace(rows, difference=np.array([[3, -1, 9]], np.float32), reference_kth=np.array([-9], np.float32))
    np.testing.assert_array_equal(advantage(louder), [[3, -1, 6]])
    assert rms_advantage([rows, louder]) == pytest.approx(math.sqrt((1 + 1 + 1 + 9 + 1 + 36) / 6))
    assert rms_advantage([]) == 0


def test_ids_without_mass_do_not_count_in_the_advantage():
    rows = sample_rows(0, 3, 4, 30)
    none = replace(rows, logps=np.full_like(rows.logps, -np.inf))
    assert rms_advantage([rows, none]) == rms_advantage([rows])


def test_one_teacher_has_no_advantage():
    with pytest.raises(DataError, match="reference") as caught:
        advantage(sample_rows(0, 3, 4, 30, pair=False))
    assert "--reference" in caught.value.hint


def test_reading_needs_no_torch(folder):
    program = f"""
import sys
for name in ("torch", "transformers", "datasets", "accelerate"):
    sys.modules[name] = None
from adpa_cli.signal.shard import SignalReader
print(SignalReader({str(folder)!r}).tokens)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "15\n"
