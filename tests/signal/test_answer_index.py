"""Answers among many: found as a dict would find them, also where hashes collide, in a few bytes each."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path

import pytest

from adpa_cli.errors import Corrupt, DataError
from adpa_cli.signal import answer_index, shard
from adpa_cli.signal.answer_index import AnswerIndex, AnswerKeys
from adpa_cli.signal.rows import AnswerKey
from adpa_cli.signal.shard import SignalReader, write_shard
from support.signal_samples import key_of, sample_rows, spec_of

PARTS = ("chosen", "rejected", "rollout")


@pytest.fixture(params=[64, 3, 0], ids=lambda bits: f"{bits} bits")
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many bits of the hash of a name are used: with few of them many names share one."""
    bits, whole = request.param, answer_index.name_hash
    if bits < 64:
        monkeypatch.setattr(answer_index, "name_hash", lambda *name: whole(*name) % (1 << bits))
    return int(bits)


def some_keys(count: int, seed: int = 0) -> list[AnswerKey]:
    """Keys of distinct names, of which one text may begin another, in no order."""
    draw = random.Random(seed)
    names = {
        (draw.choice(["", "é", "row-"]) + str(draw.randrange(10 * count)), draw.choice(PARTS)) for _ in range(count)
    }
    keys = [AnswerKey(*name, f"{draw.getrandbits(128):032x}") for name in sorted(names)]
    draw.shuffle(keys)
    return keys


def test_keys_are_held_as_texts() -> None:
    keys = some_keys(50)
    held = AnswerKeys(*([getattr(key, name) for key in keys] for name in ("example_id", "part", "tokens")))
    assert (len(held), list(held), held[:], held[-1], held[3:9:2]) == (
        len(keys), keys, tuple(keys), keys[-1], tuple(keys[3:9:2]),
    )  # fmt: skip
    with pytest.raises(IndexError):
        held[len(keys)]
    with pytest.raises(ValueError, match="equally long"):
        AnswerKeys(["a"], ["chosen"], [])


@pytest.mark.parametrize("count", [0, 1, 300])
def test_places_are_those_of_a_dict(count: int, width: int) -> None:
    keys, strangers = some_keys(count), some_keys(300, seed=1)
    places = {(key.example_id, key.part): place for place, key in enumerate(keys)}
    index = AnswerIndex()
    index.add(keys[: count // 2])
    index.add(keys[count // 2 :])
    index.sort()
    assert len(index) == len(keys)
    for key in keys + strangers:
        found = index.places(key.example_id, key.part)
        assert found == sorted(found)
        mine = [place for place in found if (keys[place].example_id, keys[place].part) == (key.example_id, key.part)]
        assert mine == [places[name] for name in [(key.example_id, key.part)] if name in places]
    assert list(index.missing(keys)) == []
    assert list(index.missing(iter(strangers))) == [key for key in strangers if key not in set(keys)]
    groups = list(index.namesakes())
    assert all(len(group) > 1 for group in groups)
    assert (groups == []) == (width == 64 or count < 2)


def test_a_reader_finds_what_a_dict_finds(tmp_path: Path, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer shards open than there are."""
    monkeypatch.setattr(shard, "OPEN", 2)
    answers = [(key_of(sample_rows(n, 2, 3, 20), f"example-{n % 20}", PARTS[n // 20]), n) for n in range(60)]
    random.Random(0).shuffle(answers)
    for number in range(5):
        own = [(key, sample_rows(n, 2, 3, 20)) for key, n in answers[12 * number : 12 * number + 12]]
        write_shard(tmp_path / f"signal-{number:05d}.adpa", spec_of(3, 20), own)
    reader = SignalReader(tmp_path)
    reader.check(key for key, _ in answers)
    for key, n in random.Random(1).sample(answers, 60):
        assert reader.read(key).label_ids.tolist() == sample_rows(n, 2, 3, 20).label_ids.tolist()
        assert reader.named(key.example_id, key.part).label_ids.tolist() == sample_rows(n, 2, 3, 20).label_ids.tolist()
    for stranger in (AnswerKey("example-20", "chosen", ""), AnswerKey("example-0", "first", "")):
        with pytest.raises(
            DataError,
            match=r"it was made for 20 others|has no first answer of the example 'example-0', only chosen and ",
        ):
            reader.check([stranger])
    write_shard(tmp_path / "signal-00005.adpa", spec_of(3, 20), [(answers[0][0], sample_rows(answers[0][1], 2, 3, 20))])
    with pytest.raises(Corrupt, match=r"signal-00005\.adpa: example 'example-\d+' \(\w+\) is in two shards"):
        SignalReader(tmp_path)


def test_an_answer_takes_few_bytes(tmp_path: Path) -> None:
    """48,000 answers in 24 shards, of which two are open; their frames are not read."""
    program = """
import sys
from pathlib import Path
import numpy as np
from adpa_cli.signal import shard
from adpa_cli.signal.rows import AnswerKey
from adpa_cli.signal.shard import Index, SignalReader, write_index, write_ranking
from support.signal_samples import spec_of

def anon():
    (line,) = (line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])

folder, answers, one = Path(sys.argv[1]), 2000, np.ones(2000, np.int64)
ranking = write_ranking(np.zeros(0, np.int32), ())
shard.OPEN = 2
for number in range(24):
    keys = [AnswerKey(f"{n:016x}", "chosen", f"{n:032x}") for n in range(number * answers, (number + 1) * answers)]
    head = write_index(Index(spec_of(2, 8), keys, one, one, len(ranking), ()))
    (folder / f"signal-{number:05d}.adpa").write_bytes(head + ranking + bytes(answers))
few = SignalReader(folder)
before = anon()
readers = [SignalReader(folder) for _ in range(4)]
print((anon() - before) / 4 / len(few))
"""
    path = [str(Path(__file__).parents[1]), *sys.path]
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{program}", str(tmp_path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert float(done.stdout) < 60, "bytes an answer, those of the shards that are open among them"
