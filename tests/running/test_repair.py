"""`adpa verify` on damaged signals, and `--repair`: the damaged rows again, the same bytes as before, or nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from adpa_cli import disk as swaps
from adpa_cli.signal.shard import Shard
from adpa_cli.signal.stored_frames import patch_shard
from adpa_cli.store.store import Store
from support.cli_samples import Cli, Pipeline

SHARD = "signal-00000.adpa"


def flipped(path: Path, *places: int) -> bytes:
    """Change one bit of the file at each place; returns the bytes of before."""
    before = path.read_bytes()
    data = bytearray(before)
    for place in places:
        data[place] ^= 16
    path.write_bytes(data)
    return before


def frames_of(path: Path) -> list[range]:
    """Where each frame lies in a shard: they fill the end of the file."""
    shard = Shard(path)
    end, found = path.stat().st_size, []
    for size in reversed(shard.sizes):
        found.append(range(end - size, end))
        end -= size
    return found[::-1]


def test_damaged_frames_are_named_by_row_and_computed_again_to_the_same_bytes(pipeline: Pipeline, cli: Cli) -> None:
    ref = pipeline.made("signal #2")  # the pair, on rollouts
    path = pipeline.store / ref / SHARD
    frames = frames_of(path)
    # The middle of two frames, and the bit of a third frame's header that zstandard ignores.
    before = flipped(path, frames[3].start + len(frames[3]) // 2, frames[11].stop - 1, frames[7].start + 4)
    said = cli.refused(5, "verify", ref)
    for row in (4, 8, 12):
        assert f"row {row} (" in said
    assert said.count("row ") == 3
    assert f"try: adpa verify {ref} --repair" in said
    ran = cli("verify", ref, "--repair")
    assert ran.code == 0, ran.err
    assert "3 rows computed again: the same bytes as before" in ran.out
    assert path.read_bytes() == before
    (record,) = Store.find(pipeline.store).resolve(ref).repaired["repairs"]
    assert record["files"] == {SHARD: [4, 8, 12]}
    assert record["compared"] >= 1
    assert record["greatest_steps"] <= 0.51
    assert cli("verify", ref).rows == [[ref, "whole"]]
    assert not list((pipeline.store / ".partial").glob("*.repair"))


@pytest.mark.parametrize("place", [10, 60, "tail", "longer"])
def test_a_lost_header_or_tail_is_made_again(pipeline: Pipeline, cli: Cli, place: int | str) -> None:
    ref = pipeline.made("signal #1")  # one teacher, on pairs
    path = pipeline.store / ref / SHARD
    before = path.read_bytes()
    rows = len(Shard(path))
    if place == "tail":
        path.write_bytes(before[:-100])
    elif place == "longer":
        path.write_bytes(before + b"more")
    else:
        flipped(path, int(place))
    said = cli.refused(5, "verify", ref)
    assert ("all rows: " in said) == isinstance(place, int)
    assert (f"row {rows} (" in said) == (place == "tail")
    assert cli("verify", ref, "--repair").code == 0
    assert path.read_bytes() == before


def test_rows_that_come_out_otherwise_and_other_teachers_are_refused(pipeline: Pipeline, cli: Cli) -> None:
    ref = pipeline.made("signal #1")
    path = pipeline.store / ref / SHARD
    stored = Shard(path)
    rows = Shard(path).read(2, raw=True)
    moved = rows.rest_logps - 2 * stored.spec.step
    patch_shard(path, stored, {2: replace(rows, rest_logps=moved)})  # a whole frame with other values
    flipped(path, frames_of(path)[5].start + 40)
    after = path.read_bytes()
    said = cli.refused(1, "verify", ref, "--repair")
    assert f"row 3 of {SHARD}" in said
    assert "undamaged" in said
    other = pipeline.made("student")
    assert "is not the aligned teacher" in cli.refused(2, "verify", ref, "--repair", "--teacher", other)
    assert path.read_bytes() == after
    gone = pipeline.store / pipeline.made("aligned teacher")
    gone.rename(gone.with_name("elsewhere"))
    assert "--teacher MODEL" in cli.refused(3, "verify", ref, "--repair")


def test_other_damage_is_answered_with_the_command_that_makes_it_again(pipeline: Pipeline, cli: Cli) -> None:
    ref = pipeline.made("student")
    flipped(pipeline.store / ref / "model.safetensors", -1)
    said = cli.refused(5, "verify", ref)
    assert "move the folder" in said
    assert "adpa distill --method adpa+" in said
    assert "cannot be repaired; only the rows of a signal can" in cli.refused(5, "verify", ref, "--repair")
    assert "adpa verify REF --repair; adpa verify names what is damaged" in cli.refused(2, "verify", "--repair")


def test_what_to_type_is_about_the_store_that_is_checked(pipeline: Pipeline, cli: Cli, tmp_path: Path) -> None:
    ref, signal = pipeline.made("student"), pipeline.made("signal #1")
    moved = pipeline.store.rename(tmp_path / "moved")
    words = json.loads((moved / ref / "manifest.json").read_text())["made"]["command"].split()
    typed = words[words.index("--store") + 1]
    flipped(moved / ref / "model.safetensors", -1)
    said = cli.refused(5, "verify", "--store", moved, ref)
    assert f"move the folder {moved / ref} away, then: adpa distill --method adpa+" in said
    assert said.strip().endswith(f" --store {moved}")
    assert typed not in said
    flipped(moved / signal / SHARD, frames_of(moved / signal / SHARD)[5].start + 40)
    assert f"adpa verify {signal} --repair --store {moved}" in cli.refused(5, "verify", "--store", moved, signal)


def test_a_lost_tokenizer_of_a_signal_is_written_again(pipeline: Pipeline, cli: Cli) -> None:
    ref = pipeline.made("signal #1")
    path = pipeline.store / ref / "tokenizer.json.zst"
    before = path.read_bytes()
    path.unlink()
    assert cli("verify", ref, "--repair").code == 0
    assert path.read_bytes() == before


KILLED = """
import os, signal, sys
from adpa_cli.cli.main import main
from adpa_cli.running import repair
repair.swap = lambda new, target: os.kill(os.getpid(), signal.SIGKILL)
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_repair_that_is_killed_leaves_the_old_one_and_can_be_repeated(pipeline: Pipeline, cli: Cli) -> None:
    ref = pipeline.made("signal #1")
    path = pipeline.store / ref / SHARD
    before = flipped(path, frames_of(path)[0].start + 40)
    after = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", KILLED, "verify", ref, "--repair"], check=False, env=os.environ)
    assert done.returncode == -9
    assert path.read_bytes() == after
    assert Store.find(pipeline.store).resolve(ref).repaired is None
    assert cli("verify", ref, "--repair").code == 0
    assert path.read_bytes() == before


@pytest.mark.parametrize("able", [True, False])
def test_two_folders_change_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, able: bool) -> None:
    if not able:
        monkeypatch.setattr(swaps, "_exchanged", lambda one, other: False)
    for name in ("new", "target"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    swaps.swap(tmp_path / "new", tmp_path / "target")
    assert {name: (tmp_path / name / "file").read_text() for name in ("new", "target")} == {
        "new": "target", "target": "new",
    }  # fmt: skip
