"""What `adpa gc` takes away, what it leaves, and that neither a kill nor another command at work comes to harm."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from adpa_cli.errors import Corrupt
from adpa_cli.store import gc
from adpa_cli.store.lock import reserved
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store
from support.cli_samples import Cli
from support.store_samples import DATA, make, new_store, place, recipe

DAY = 86400.0
NOW = time.time()


def keep(named: Sequence[str] = (), days: float = 14) -> gc.Keep:
    """What `adpa gc` keeps."""
    return gc.Keep(("distill", "eval"), named, days)


def put(store: Store, stage: str, age: float, inputs: list[Manifest] | None = None, **fields: Any) -> Manifest:
    """An artifact of `age` days, made from others."""
    smoke = {"smoke": True} if fields.pop("smoke", False) else {}
    contents = {"data": DATA, "from": [f"artifact:{manifest.id}" for manifest in inputs or ()]}
    made = {"at": _iso(NOW - age * DAY), "command": "adpa x", **smoke}
    return place(store, recipe(stage, contents, **fields), made=made)


def _iso(seconds: float) -> str:
    from adpa_cli.store.manifest import utc

    return utc(seconds)


def sorted_out(store: Store, named: list[str] | None = None, days: float = 14.0) -> tuple[set[str], dict[str, str]]:
    """(references that go, why by reference that stays)."""
    sweep = gc.survey(store, keep(named or [], days))
    return {item.ref for item in sweep.removed}, {item.ref: item.why for item in sweep.kept}


def test_a_result_keeps_all_it_needs_and_what_nothing_needs_goes(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    base = put(store, "sft", 90, n=1)
    signal_ = put(store, "cache-teacher", 80, [base], n=2)
    student = put(store, "distill", 70, [signal_], n=3)
    numbers = put(store, "eval", 60, [put(store, "sft", 65, n=4)], n=5)
    idle = put(store, "cache-teacher", 50, [base], n=6)
    gone, kept = sorted_out(store)
    assert gone == {idle.ref}
    assert kept[student.ref] == kept[numbers.ref] == "a finished result"
    assert kept[signal_.ref] == kept[base.ref] == f"needed by {student.ref}"


def test_tags_names_and_fourteen_days_keep_what_they_reach(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    old = [put(store, "sft", 90, n=number) for number in range(5)]
    over = [put(store, "rollout", 80, [parent], n=10 + i) for i, parent in enumerate(old[:2])]
    young = put(store, "rollout", 13.9, [old[2]], n=20)
    store.tag("best", over[0].id)
    gone, kept = sorted_out(store, [over[1].id])
    assert gone == {old[3].ref, old[4].ref}
    assert kept[over[0].ref] == "tag best"
    assert kept[over[1].ref] == "named"
    assert kept[young.ref] == "made in the last 14 days"
    assert {kept[old[0].ref], kept[old[1].ref], kept[old[2].ref]} == {f"needed by {m.ref}" for m in (*over, young)}
    assert young.ref in sorted_out(store, days=13.8)[0]


def test_rehearsals_are_no_results_and_stay_a_day(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    base = put(store, "sft", 2, smoke=True, n=1)
    result = put(store, "distill", 1.1, [base], smoke=True, n=2)
    fresh = put(store, "distill", 0.9, smoke=True, n=3)
    tagged = put(store, "eval", 30, smoke=True, n=4)
    store.tag("kept", tagged.id)
    gone, kept = sorted_out(store)
    assert gone == {base.ref, result.ref}
    assert kept == {fresh.ref: "made in the last day", tagged.ref: "tag kept"}


def test_unfinished_work_stays_with_its_inputs_until_nobody_goes_on(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    base = put(store, "sft", 90, n=1)
    wanted = recipe("distill", {"model": f"artifact:{base.id}", "data": DATA}, n=2)
    with store.build(wanted, command="adpa distill") as work:
        work.save_state({"step": 1, "of": 9})
        _, kept = sorted_out(store, days=0)
        assert f"process {os.getpid()}" in kept[wanted.ref]
        assert kept[base.ref] == f"needed by {wanted.ref}, which is unfinished"
    assert wanted.ref in sorted_out(store)[1]
    assert sorted_out(store, days=0)[0] == {wanted.ref, base.ref}
    sweep = gc.survey(store, keep(days=0))
    assert {item.ref for item in gc.collect(store, sweep, keep(days=0), "adpa gc")} == {wanted.ref, base.ref}
    assert store.unfinished() == []
    assert (store.root / ".partial" / f"{wanted.id}.lock").exists()


def test_what_a_command_at_work_uses_stays_though_it_was_chosen(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    used, tagged, idle = (put(store, "sft", 90, n=number) for number in range(3))
    sweep = gc.survey(store, keep())
    assert len(sweep.removed) == 3
    with reserved(store.root, [used.id], "adpa distill --student x"):
        store.tag("late", tagged.id)
        assert f"in use by process {os.getpid()}" in sorted_out(store)[1][used.ref]
        assert [item.ref for item in gc.collect(store, sweep, keep(), "adpa gc")] == [idle.ref]
    assert store.get(used.ref)
    assert [item.ref for item in gc.survey(store, keep()).removed] == [used.ref]
    assert list((store.root / ".partial").glob("use-*")) == []


def test_the_note_of_a_killed_command_keeps_nothing(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    idle = put(store, "sft", 90)
    child = os.fork()
    if child == 0:
        with reserved(store.root, [idle.id], "adpa distill"):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(list((store.root / ".partial").glob("use-*.lock"))) == 1
    gc.collect(store, gc.survey(store, keep()), keep(), "adpa gc")
    assert store.get(idle.ref) is None
    assert list((store.root / ".partial").glob("use-*")) == []


def test_a_kill_at_any_step_leaves_whole_artifacts_and_the_next_run_finishes(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    seen_half = 0
    for step in range(1, 200):
        manifest = make(store, files={"a": b"1", "b/c": b"2", "d": b"3"}, made={"at": _iso(NOW - 90 * DAY)}, n=step)
        child = os.fork()
        if child == 0:
            _die_before(step)
            gc.collect(store, gc.survey(store, keep()), keep(), "adpa gc")
            os._exit(0)
        finished = os.waitpid(child, 0)[1] == 0
        folder = store.root / manifest.ref
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert files in (set(), {"a", "b/c", "d", "manifest.json"})
        seen_half += bool(list((store.root / ".partial" / "trash").glob("*")))
        if finished:
            break
        gc.collect(store, gc.survey(store, keep()), keep(), "adpa gc")
        assert not folder.exists()
        assert list((store.root / ".partial" / "trash").glob("*")) == []
    assert finished
    assert seen_half > 2


def _die_before(step: int) -> None:
    import sys

    seen = 0

    def count(event: str, _: object) -> None:
        nonlocal seen
        if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "fcntl.flock", "shutil.rmtree"):
            seen += 1
            if seen == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)


def test_a_manifest_that_cannot_be_read_stops_the_collector(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    broken = put(store, "distill", 90)
    (store.root / broken.ref / "manifest.json").write_text("{")
    with pytest.raises(Corrupt, match="is no manifest"):
        gc.survey(store, keep())


def test_the_command_shows_asks_and_removes(tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    store = new_store(tmp_path)
    kept, gone = put(store, "distill", 90, n=1), put(store, "sft", 90, n=2)
    assert "there is no terminal to ask at" in cli.refused(2, "gc")
    assert [row[:3] for row in cli("gc", "-n").rows] == [
        ["goes", "artifact", gone.ref], ["stays", "artifact", kept.ref]
    ]  # fmt: skip
    record = json.loads(cli("gc", "-n", "--json", "--keep", gone.ref).out)
    assert record["goes"] == []
    assert {entry["id"]: entry["why"] for entry in record["stays"]}[gone.ref] == "named"
    for module in ("console.streams", "commands.gc"):
        monkeypatch.setattr(f"adpa_cli.cli.{module}.can_ask", lambda: True)
    assert "Delete 1 artifact" in cli("gc", stdin="\n").err
    assert store.get(gone.ref)
    ran = cli("gc", "--yes")
    assert "Removed 1 artifact" in ran.err
    assert ran.rows[0][:3] == ["goes", "artifact", gone.ref]
    assert [manifest.ref for manifest in store.artifacts()] == [kept.ref]
    assert cli("gc", "--yes", "-q").err == ""


def test_what_is_to_be_removed_goes_with_what_only_it_needs(tmp_path: Path, cli: Cli) -> None:
    store = new_store(tmp_path)
    shared = put(store, "sft", 1, n=1)
    own = put(store, "sft", 1, n=2)
    model = put(store, "distill", 1, [own, shared], n=3)
    other = put(store, "distill", 1, [shared], n=4)
    measured = put(store, "eval", 1, [model], n=5)
    store.tag("mine", model.id)
    assert f"adpa gc --keep {model.ref}, or adpa gc --remove {model.ref}" in cli.refused(2, "gc", model.ref, "-n")
    assert "is needed by" in cli.refused(2, "gc", "--remove", own.ref, "-y")
    ran = cli("gc", "--remove", "mine", "--yes")
    assert {row[2] for row in ran.rows if row[0] == "goes"} == {own.ref, model.ref, measured.ref}
    assert {manifest.ref for manifest in store.artifacts()} == {shared.ref, other.ref}
    assert store.tags() == {}
