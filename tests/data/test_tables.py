"""Tables of rows: read from a file once, kept in a cache that nobody depends on, and counted on the screen."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from adpa_cli.cli.console.progress import Screen
from adpa_cli.data import files, items, tables
from adpa_cli.data.preferences import load_dialogues, load_pairs
from adpa_cli.data.sources import parse_source
from adpa_cli.data.tables import BATCH, heeding, remove_unused, table, watching
from adpa_cli.data.templates import CHATML
from adpa_cli.errors import AdpaError, DataError, Stopped
from adpa_cli.hub.externals import pairs_of


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADPA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(path: Path, rows: int, word: str = "because") -> str:
    lines = ({"prompt": f"why {n} ?", "chosen": f"{word} .", "rejected": f"no {n} ."} for n in range(rows))
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


SCHEMA = pa.schema([("number", pa.int64()), ("list", pa.list_(pa.int32())), ("text", pa.large_string())])


def numbers(rows: int) -> tables.Table:
    def fill(add: tables.Watch) -> dict[str, int]:
        for start in range(0, rows, 7):
            own = range(start, min(start + 7, rows))
            add(pa.record_batch([pa.array(own), pa.array([[n] * n for n in own]), pa.array(map(str, own))], SCHEMA))
        return {"rows": rows}

    return table("numbers", None, SCHEMA, fill)


def test_a_table_gives_its_rows_by_number_in_any_order() -> None:
    held = numbers(40)
    assert (len(held), held.about) == (40, {"rows": 40})
    assert held.values("number").tolist() == list(range(40))
    assert held.lengths("list").tolist() == list(range(40))
    wanted = np.array([3, 4, 39, 0, 0, 21, 22, 23, 24, 25, 26, 27, 2])
    assert list(held.records(wanted, ("text", "number"))) == [(str(n), n) for n in wanted]
    batch, row = held.place(39)
    assert (batch.list("list", row).tolist(), batch.cell("text", row)) == ([39] * 39, "39")
    with pytest.raises(IndexError):
        held.place(40)
    assert (len(numbers(0)), numbers(0).values("number").tolist()) == (0, [])


def test_a_file_is_read_once_and_again_when_it_changes(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    lines_of = files.open_lines
    monkeypatch.setattr(files, "open_lines", lambda path: read.append(path.name) or lines_of(path))
    source = write(tmp_path / "pairs.jsonl", 30)
    first = load_pairs([parse_source(source)])
    passes = len(read)
    assert passes > 0
    assert load_pairs([parse_source(source)]) == first
    assert load_pairs([parse_source(source)], "test", template=CHATML.text).items
    assert len(read) == passes
    write(tmp_path / "pairs.jsonl", 30, "because!")
    changed = load_pairs([parse_source(source)])
    assert len(read) == 2 * passes
    assert {pair.chosen for pair in changed.items} == {"because! ."}
    assert {pair.chosen for pair in first.items} == {"because ."}, "what is mapped stays as it was"
    load_dialogues([parse_source(source)])
    assert len(read) == 3 * passes
    for path in sorted(cache.rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    assert list(first.items) == list(first.items)
    assert load_pairs([parse_source(source)]) == changed


def test_a_file_that_changes_while_it_is_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write(tmp_path / "pairs.jsonl", 30)
    record = items.record
    monkeypatch.setattr(items, "record", lambda *given: (os.utime(source), record(*given))[1])
    with pytest.raises(DataError, match=r"pairs\.jsonl changed while it was being read"):
        load_pairs([parse_source(source)])


def test_a_full_disk_says_where_tables_may_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ROWS", "/dev/full")
    source = write(tmp_path / "pairs.jsonl", 3 * BATCH)
    said = f"the disk of {tmp_path}/cache, where prepared data are kept, is full"
    with pytest.raises(AdpaError, match=rf"{said}; these data take about 0\.\d MB") as raised:
        load_pairs([parse_source(source)])
    assert raised.value.hint.endswith("(adpa gc), or keep them on another disk: export ADPA_CACHE=DIR")
    assert list((tmp_path / "cache" / "items").iterdir()) == []
    monkeypatch.setenv("ADPA_CACHE", source)
    with pytest.raises(AdpaError, match="is full") as raised:
        load_pairs([parse_source(source)])
    assert raised.value.hint == "free some space, or keep them on another disk: export TMPDIR=DIR"


def test_what_a_killed_process_left_goes_and_what_is_being_made_stays(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    left, new, own = cache / "items" / ".a-left", cache / "items" / ".b-new", tmp_path / "adpa-rows-left"
    for folder in (left, new, own):
        (folder / "table").mkdir(parents=True)
        (folder / "table" / tables.ROWS).write_bytes(b"rows")
    for folder in (left, own):
        os.utime(folder, (0, 0))

    def fill(add: tables.Watch) -> dict[str, int]:
        (private,) = (path for path in (cache / "numbers").glob(".*") if path.is_dir())
        os.utime(private, (0, 0))
        assert remove_unused(10_000) >= len(b"rows")
        assert private.exists()
        return {}

    table("numbers", ["a table"], SCHEMA, fill)
    assert (left.exists(), new.exists(), own.exists()) == (False, True, True)
    numbers(3)
    assert not own.exists()


def test_tables_that_nobody_opened_lately_go(tmp_path: Path, cache: Path) -> None:
    for name in ("one", "two"):
        load_pairs([parse_source(write(tmp_path / f"{name}.jsonl", 3))])
    made = sorted((cache / "items").iterdir())
    os.utime(made[0], (0, 0))
    assert remove_unused(10_000) > 0
    assert sorted((cache / "items").iterdir()) == made[1:]
    assert remove_unused() == 0


def test_the_first_pass_is_told_and_stopped_between_batches(tmp_path: Path) -> None:
    source = write(tmp_path / "pairs.jsonl", 2 * BATCH + 10)
    told: list[tuple[str, int, int]] = []
    with watching(lambda *what: told.append(what)):
        load_pairs([parse_source(source)])
    rows = 2 * BATCH + 10
    assert [done for what, done, _ in told if what == f"reading {source}"][:3] == [BATCH, 2 * BATCH, rows]
    assert {of for _, _, of in told} == {0, rows}
    passes = [what for what, _ in itertools.groupby(what for what, *_ in told)]
    assert len(passes) == len(set(passes)) == 3, "each pass is called what it is for"
    told.clear()
    with watching(lambda *what: told.append(what)):
        load_pairs([parse_source(source)])
    assert told == []
    write(tmp_path / "pairs.jsonl", 2 * BATCH)
    stopped = pytest.raises(Stopped, match=r"Stopped by SIGTERM while reading .*pairs\.jsonl")
    with stopped, watching(heeding(lambda: "SIGTERM" if len(told) > 1 else None, lambda *what: told.append(what))):
        pairs_of((source,), "train", 5, False)
    assert [done for _, done, _ in told] == [BATCH, 2 * BATCH]


def test_a_person_is_told_of_rows_that_take_a_while(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    screen = Screen(quiet=False)
    for done in range(0, 10_001, 1000):
        screen.reading("reading pairs.jsonl", done, 10_000)
        clock[0] += 10
    said = capsys.readouterr().err.splitlines()
    assert said[0].split("  ") == ["", "reading pairs.jsonl", "1,000/10,000 rows", "90 s left"]
    assert len(said) == 10
    Screen(quiet=True).reading("reading", 1, 2)
    assert capsys.readouterr().err == ""


def test_a_cache_that_is_removed_while_it_is_written_is_named(cache: Path) -> None:
    def fill(add: tables.Watch) -> dict[str, int]:
        shutil.rmtree(cache)
        return {}

    with pytest.raises(AdpaError, match="numbers was deleted while data were being written to it") as caught:
        table("numbers", ["a table"], SCHEMA, fill)
    assert caught.value.hint == "run the command again"
    assert len(table("numbers", ["a table"], SCHEMA, lambda add: {})) == 0


def test_what_others_clear_away_meanwhile_is_never_a_table_at_work(cache: Path) -> None:
    at_work: list[list[str]] = []

    def fill(add: tables.Watch) -> dict[str, int]:
        (private,) = cache.glob("numbers/.*-*")
        os.utime(private, (0, 0))
        remove_unused()
        at_work.append(sorted(path.name for path in private.iterdir()))
        add(pa.record_batch([pa.array([1]), pa.array([[1]]), pa.array(["1"])], SCHEMA))
        return {}

    assert len(table("numbers", ["here"], SCHEMA, fill)) == 1
    assert at_work == [["table"]]
    left = cache / "numbers" / ".left-by-a-killed-one"
    left.mkdir()
    os.utime(left, (0, 0))
    remove_unused()
    assert [path.name for path in cache.glob("numbers/.*")] == []
