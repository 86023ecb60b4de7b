"""The store seen from the command line: damage, newer formats, ambiguous names, full disks, two builders."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from adpa_cli.cli.console.progress import Screen
from adpa_cli.store.store import Store
from support.cli_samples import Cli, Pipeline
from support.store_samples import place, recipe


def flip(path: Path, position: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[position] ^= 0xFF
    path.write_bytes(raw)


@pytest.fixture
def damaged(pipeline: Pipeline) -> str:
    """A signal artifact with a flipped byte in the middle of its rows."""
    ref = pipeline.made("signal #2")
    shard = pipeline.store / ref / "signal-00000.adpa"
    flip(shard, shard.stat().st_size * 3 // 4)
    return ref


def test_verify_names_the_damaged_row(pipeline: Pipeline, cli: Cli, damaged: str) -> None:
    count = len(Store.find(pipeline.store).artifacts())
    head, line, tried = cli.refused(5, "verify").splitlines()
    assert head == f"1 of {count} artifacts are damaged"
    ref, file, problem, rows = line.strip().split("\t")
    assert (ref, file, problem) == (damaged, "signal-00000.adpa", "its bytes have changed")
    assert rows.startswith("row ")
    assert "rollout" in rows
    assert tried == f"try: adpa verify {damaged} --repair"
    ran = cli("verify", damaged, "--json")
    record = json.loads(ran.err)
    assert (ran.code, ran.out, record["exit"]) == (5, "", 5)
    assert [entry["file"] for entry in record["damage"][damaged]] == ["signal-00000.adpa"]


def test_distill_refuses_a_damaged_signal_and_names_it(pipeline: Pipeline, cli: Cli, damaged: str) -> None:
    words = ("distill", "--method", "adpa", "--student", pipeline.made("distill dckd"), "--cache", damaged)
    said = cli.refused(5, *words, "--limit", "40", "--no-eval")
    assert "signal-00000.adpa" in said
    assert "row " in said
    assert "adpa verify" in said


def test_verify_names_missing_shortened_and_changed_files(pipeline: Pipeline, cli: Cli) -> None:
    folder = pipeline.store / pipeline.made("student")
    (folder / "metrics.jsonl").unlink()
    (folder / "config.json").write_text("{}")
    flip(folder / "model.safetensors", 5000)
    said = cli.refused(5, "verify", pipeline.made("student"))
    problems = {line.split("\t")[1]: line.split("\t")[2] for line in said.splitlines() if "\t" in line}
    assert problems.pop("config.json").startswith("it has 2 bytes instead of ")
    assert problems == {"metrics.jsonl": "missing", "model.safetensors": "its bytes have changed"}


def test_a_manifest_that_is_none_is_named_and_show_lists_the_rest(pipeline: Pipeline, cli: Cli) -> None:
    ref, other = pipeline.made("student"), pipeline.made("distill adpa")
    (pipeline.store / ref / "manifest.json").write_text("{")
    assert f"{ref}/manifest.json is no manifest" in cli.refused(5, "show", ref)
    listed = cli("show")
    assert listed.code == 0
    assert other in listed.out
    assert ref in listed.out + listed.err


@pytest.mark.parametrize("words", [["show"], ["verify"], ["tag"], ["sft", "--model", "tiny"], ["path", "x"]])
def test_a_store_of_a_newer_format_is_left_alone(pipeline: Pipeline, cli: Cli, words: list[str]) -> None:
    (pipeline.store / "adpa.json").write_text('{"format": 2}')
    before = sorted(pipeline.store.rglob("*"))
    said = cli.refused(1, *words)
    assert "was made by a newer version of adpa (store format 2; this version reads up to 1)" in said
    assert "git pull && pip install ." in said
    assert sorted(pipeline.store.rglob("*")) == before


def test_an_artifact_of_a_newer_format_is_named(pipeline: Pipeline, cli: Cli) -> None:
    ref = pipeline.made("student")
    path = pipeline.store / ref / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 2}))
    said = cli.refused(1, "rollout", "--student", ref)
    assert f"{ref} was made by a newer adpa (its manifest has format 2; this adpa reads up to 1)" in said


def test_a_reference_that_matches_two_artifacts_lists_both(pipeline: Pipeline, cli: Cli) -> None:
    store = Store.find(pipeline.store)
    known = pipeline.made("student").split("/")[1][:4]
    twin = next(made for n in range(10**6) if (made := recipe("distill", n=n)).id.startswith(known))
    place(store, twin)
    for words in (["path", known], ["rollout", "--student", known], ["show", known], ["tag", "mine", known]):
        said = cli.refused(2, *words)
        assert f"{known} is ambiguous: it could be any of distill/{twin.id[:12]}, {pipeline.made('student')}" in said
    assert cli("path", f"sft/{known}").ref.endswith(pipeline.made("student"))


def test_an_alias_that_is_a_tag_too_is_refused(pipeline: Pipeline, cli: Cli) -> None:
    assert "tiny is a built-in name" in cli.refused(2, "tag", "tiny", "sft@latest")
    (pipeline.store / "tags").mkdir(exist_ok=True)
    (pipeline.store / "tags" / "tiny").write_text("0" * 64)
    assert "tiny is ambiguous: it is an alias, and also the tag of 000000000000" in cli.refused(
        2, "rollout", "--student", "tiny"
    )


def test_a_folder_with_other_things_is_not_made_a_store(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    said = cli.refused(2, "sft", "--model", "tiny", "--store", "full")
    assert "is not a store, and it holds other files" in said
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte; only root may make one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if sys.platform != "linux" or os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_without_room_is_refused_before_any_work_and_the_command_goes_on_after_space_is_freed(
    cli: Cli, small_disk: Path
) -> None:
    words = ("sft", "--model", "tiny", "--max-steps", "2", "--limit", "16", "--store", str(small_disk / "store"))
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(900_000))
    said = cli.refused(1, *words)
    assert "MB free; the plan needs" in said
    assert "free some space" in said
    assert cli("show", "--json", "--store", small_disk / "store").code == 0
    assert Store.find(small_disk / "store").artifacts() == []
    ballast.unlink()
    ran = cli(*words)
    assert cli("verify", "--store", small_disk / "store").out == f"{ran.ref}\twhole\n"


def test_the_second_of_two_builders_waits_and_prints_the_same_id(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is a process of its own, held while it builds until the second has said that it waits."""
    words = ["sft", "--model", "tiny", "--max-steps", "30", "--limit", "200", "--set", "batch_size=4"]
    first = subprocess.Popen(
        [sys.executable, "-m", "adpa_cli", *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("adpa-store/.partial/*/state.json")):
            assert first.poll() is None, first.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.002)
        first.send_signal(signal.SIGSTOP)
        said = cli.refused(4, *words, "--no-wait")
        assert f"is already being made by process {first.pid}" in said
        assert "--max-steps 30" in said
        say = Screen.say

        def say_and_let_go(screen: Screen, line: str) -> None:
            say(screen, line)
            if line.startswith("waiting for sft/"):
                first.send_signal(signal.SIGCONT)

        monkeypatch.setattr(Screen, "say", say_and_let_go)
        second = cli(*words)
        assert f"which process {first.pid} on " in second.err
        out, _ = first.communicate(timeout=60)
    finally:
        first.kill()
        first.wait()
    assert out == second.out
    assert first.returncode == 0
    assert len(Store.find(tmp_path / "adpa-store").artifacts()) == 1
    shutil.rmtree(tmp_path / "adpa-store")
