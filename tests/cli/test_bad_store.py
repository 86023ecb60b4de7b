"""A store that cannot be written, or not any longer: what is said, what is left, and that the command goes on."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adpa_cli.cli.console.progress import Screen
from adpa_cli.stages import Node
from adpa_cli.store.store import Store
from support.cli_samples import Cli, write_rows

SFT = ("sft", "--model", "tiny", "--max-steps", "1", "--limit", "8")
Disk = Callable[[str], Path]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A file system of its own; called with mount options it makes it, or remounts it. Only root may."""
    place = tmp_path / "disk"
    place.mkdir()
    made = False

    def mount(options: str) -> Path:
        nonlocal made
        words = (
            ["-o", f"remount,{options}", str(place)] if made else ["-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        )
        if sys.platform != "linux" or os.geteuid() or subprocess.run(["mount", *words], capture_output=True).returncode:
            pytest.skip("no file system can be mounted here")
        made = True
        return place

    yield mount
    if made:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_file_where_the_store_should_be_is_named(cli: Cli) -> None:
    Path("thesis").write_text("mine")
    for place in ("thesis", "thesis/below"):
        said, _, tried = cli.refused(2, *SFT, "--store", place).partition("\ntry: ")
        assert "thesis is a file" in said
        assert "--store DIR" in tried
    assert Path("thesis").read_text() == "mine"


def test_a_place_where_no_folder_can_be_made_is_named(cli: Cli) -> None:
    if not Path("/proc").is_dir():
        pytest.skip("no place here refuses root too")
    said, _, tried = cli.refused(1, *SFT, "--store", "/proc/adpa/store").partition("\ntry: ")
    assert "/proc/adpa/store cannot be written" in said
    assert "--store DIR or $ADPA_STORE" in tried


def test_a_read_only_store_serves_what_it_has_and_refuses_to_make_more(cli: Cli, disk: Disk) -> None:
    store = disk("size=8m") / "store"
    made = cli(*SFT, "--store", store).ref
    disk("ro")
    assert "Nothing to do" in cli(*SFT, "--store", store).err
    assert made in cli("show", "--store", store).out
    for words in ([*SFT, "--seed", "1"], ["tag", "mine", made]):
        said, _, tried = cli.refused(1, *words, "--store", store).partition("\ntry: ")
        assert "cannot be written (Read-only file system)" in said
        assert "--store DIR or $ADPA_STORE" in tried
    assert "cannot be written" in cli.refused(1, *SFT, "--store", store.with_name("other") / "deep")


def test_a_disk_that_fills_in_mid_plan_keeps_what_is_whole_and_the_command_goes_on(
    cli: Cli, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else takes all the room as soon as the third stage begins."""
    words = ("distill", "--method", "adpa+", "--student", "tiny", "--smoke", "--no-eval")
    plan = [row[4] for row in cli(*words, "-n").rows]
    place = disk("size=32m")
    store = place / "store"
    start = Screen.start

    def start_and_fill(screen: Screen, node: Node, n: int, of: int) -> None:
        start(screen, node, n, of)
        if n == 3:
            with contextlib.suppress(OSError), (place / "ballast").open("wb", buffering=0) as ballast:
                while True:
                    ballast.write(bytes(4096))

    with monkeypatch.context() as patch:
        patch.setattr(Screen, "start", start_and_fill)
        ran = cli(*words, "--store", store)
    said, _, tried = ran.err.partition("\nerror: ")[2].partition("\ntry: ")
    assert (ran.code, ran.out) == (1, "")
    assert "is full" in said
    assert "nothing half-made is visible" in said
    assert "type the same command again; it continues from the last saved state" in tried
    assert {manifest.ref for manifest in Store.find(store).artifacts()} == set(plan[:2])
    assert {line.split("\t")[1] for line in cli("verify", "--store", store).out.splitlines()} == {"whole"}
    (place / "ballast").unlink()
    again = cli(*words, "--store", store)
    assert again.ref == plan[-1]
    assert all(f"done   {ref}" not in again.err for ref in plan[:2])
    assert {manifest.ref for manifest in Store.find(store).artifacts()} == set(plan)
    assert Store.find(store).unfinished() == []


def data_of(folder: Path) -> list[str]:
    """Options that name two files, which make two tables."""
    pairs = [{"prompt": f"why {number} ?", "chosen": "because .", "rejected": "no ."} for number in range(3000)]
    for name in ("pairs", "dialogues"):
        write_rows(folder / f"{name}.jsonl", pairs)
    return ["--data", "pairs.jsonl", "--sft-data", "dialogues.jsonl"]


def test_a_full_disk_of_the_cache_is_one_error(
    cli: Cli, disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = disk("size=200k")
    monkeypatch.setenv("ADPA_CACHE", str(place))
    words = ("distill", "--method", "dpo", "--student", "tiny", "--no-eval", *data_of(tmp_path))
    said, _, tried = cli.refused(1, *words, "-n").partition("\ntry: ")
    assert said.startswith(f"the disk of {place}, where prepared data are kept, is full; these data take about ")
    assert said.count("is full") == 1
    assert tried.strip().endswith("export ADPA_CACHE=DIR")
    assert [path for path in place.glob("*/*") if path.name.startswith(".")] == []


def test_a_cache_that_cannot_be_written_is_said_once(
    cli: Cli, disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = disk("size=8m")
    disk("ro")
    monkeypatch.setenv("ADPA_CACHE", str(place))
    words = ("distill", "--method", "dpo", "--student", "tiny", "--no-eval", *data_of(tmp_path))
    for ran in (cli(*words, "-n"), cli("data", "pairs.jsonl")):
        assert ran.code == 0
        assert ran.err.count(f"{place} is not writable (Read-only file system), so ") == 1
