"""A maker at a real terminal and under real signals.

Faults of a plain command-line program that are shown absent here: a question that lands on stdout and eats what is
piped in (`test_a_question_…`); a bar that garbles the screen, or appears only at the end of a log file
(`test_the_bar_…`, `test_without_a_terminal_…`); a library's print among the ids (`test_stdout_is_one_id_…`); work that
is lost, or a command line that cannot be repeated, after a signal (`test_a_stop_in_any_stage_…`, `test_a_signal_…`); a
closed terminal window that kills the saving (`test_a_closed_window_…`).
"""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import signal
import time
from pathlib import Path

import pytest

from adpa_cli.cli.main import main
from adpa_cli.lab import world
from adpa_cli.report import listing
from adpa_cli.store.lock import locked
from adpa_cli.store.store import Store
from support.cli_samples import write_rows
from support.processes import Running, adpa, shown

SFT = ("sft", "--model", "tiny", "--limit", "64", "--epochs", "8", "--set", "batch_size=4")
STUDENT = ("--set", "sft.max_steps=2", "--set", "sft.limit=64")
CHAIN = (
    "distill", "--method", "adpa", "--student", "tiny", "--limit", "48", "--epochs", "2", "--set", "batch_size=4",
    "--set", "sft.limit=40", "--set", "sft.batch_size=4", "--set", "sft.epochs=4",
    "--set", "dpo-teacher.limit=32", "--set", "dpo-teacher.batch_size=4",
    "--set", "rollout.max_new_tokens=16", "--set", "rollout.block_tokens=250", "--set", "cache-teacher.block_tokens=64",
    "--set", "eval.bootstrap=20000",
)  # fmt: skip
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129, signal.SIGUSR1: 75, signal.SIGALRM: 75}
STAND = """
import sys, time
from adpa_cli.cli.console.options import Request
def stand(*arguments):
    sys.stderr.write("planning\\n")
    while True:
        try:
            time.sleep(60)
        except {swallowed}:
            pass
Request.plan = stand
"""
ASK = """
import sys
from adpa_cli.cli.console.options import Request
from adpa_cli.cli.console.streams import confirm
planned = Request.plan
def asked(*arguments):
    sys.stderr.write(f"the answer is {confirm('Continue?', True)}\\n")
    return planned(*arguments)
Request.plan = asked
"""
NOISE = """
import os
from dataclasses import replace
from adpa_cli import stages
rollout = stages.every()["rollout"]
compute = rollout.compute
def noisy(*arguments):
    print("a library's print")
    os.write(1, b"a library's write\\n")
    os.system("echo the echo of a child; cat")
    compute(*arguments)
stages.every()["rollout"] = replace(rollout, compute=noisy)
"""


def pairs_in(folder: Path) -> Path:
    made = folder / "pairs"
    made.mkdir()
    for split, count in (("train", 48), ("test", 24)):
        write_rows(made / f"{split}.jsonl", world.preferences(split)[:count])
    return made


def going_on(said: str) -> list[str]:
    """The words of the command that a stopped one names at its end."""
    found = re.search(r"Continue with:\n  (adpa .*)\s*$", said)
    assert found, said
    words = shlex.split(found[1])[1:]
    assert "-" not in words
    return words


def contents(root: Path) -> dict[str, dict[str, str]]:
    """The hash of every file of every artifact."""
    return {made.ref: {n: f["sha256"] for n, f in made.files.items()} for made in Store(root).artifacts()}


def step_of(root: Path, ref: str) -> int:
    """The step or block that the unfinished work on an artifact has recorded."""
    for path in (root / ".partial").glob(f"{ref.split('/')[1]}*/state.json"):
        with contextlib.suppress(OSError):
            return int(json.loads(path.read_text())["progress"].get("step", 0))
    return 0


@pytest.mark.slow
def test_a_stop_in_any_stage_goes_on_to_the_same_bytes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data, store = pairs_in(tmp_path), tmp_path / "stopped"
    words: list[str] = [*CHAIN, "--data", "./pairs", "--store", "stopped", "--stop-after", "1d"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        patch.setenv("OMP_NUM_THREADS", "1")
        assert main([*words, "--dry-run"]) == 0
        rows = [line.split("\t") for line in capfd.readouterr().out.splitlines()]
        assert main([*CHAIN, "--data", str(data), "--store", "whole"]) == 0
    refs = {
        re.sub(r" .*", "", row[2]): next(cell for cell in row if re.fullmatch(r"[a-z-]+/[0-9a-f]{12}", cell))
        for row in reversed(rows)
    }
    refs["judged"] = [row[4] for row in rows if row[2] == "rollouts"][-1]
    where = tmp_path
    for stage, how in (
        ("student", signal.SIGINT), ("student", signal.SIGTERM), ("aligned", signal.SIGHUP),
        ("rollouts", signal.SIGUSR1), ("signal", signal.SIGTERM), ("distill", signal.SIGALRM),
        ("judged", signal.SIGINT),
    ):  # fmt: skip
        before = step_of(store, refs[stage])
        with adpa(words, where) as running:
            running.until(lambda ref=refs[stage], n=before: step_of(store, ref) > n, f"a step of {stage}")
            running.signal(how)
            assert running.code() == CODES[how], running.said
            name = "--stop-after" if how == signal.SIGALRM else how.name
            stopped = "Stopped" if how == signal.SIGINT else f"Stopped by {name}"
            assert re.search(rf"\n{stopped} (at|after) [^\n]* Continue with:\n", running.said), running.said
            assert "error:" not in running.said
            words = going_on(running.said)
            # Each target's id is printed when it is there; nothing else ever is.
            assert running.out.read_text() in ("", f"{refs['distill']}\n" if stage == "judged" else "")
        where = tmp_path / "elsewhere"
        where.mkdir(exist_ok=True)
    with adpa(words, where) as running:
        assert running.code() == 0, running.said
        assert running.out.read_text() == f"{refs['distill']}\n"
    assert contents(store) == contents(tmp_path / "whole")
    log = (store / refs["student"] / "log.txt").read_text()
    told = [re.sub(r"^\S+  | (after|at) .*", "", line) for line in log.splitlines() if "$ adpa" not in line]
    assert [line for line in told if line.startswith(("Stopped", "done"))] == [
        "Stopped", "Stopped by SIGTERM", "done",
    ]  # fmt: skip
    assert not list((store / ".partial").glob("*/"))


def test_a_signal_outside_of_work_stops_at_once(tmp_path: Path) -> None:
    """While it plans, in a library that swallows errors, or everything, and while it waits for another builder."""
    for how, swallowed in ((signal.SIGTERM, "Exception"), (signal.SIGUSR1, "BaseException")):
        with adpa(SFT, tmp_path, hook=STAND.format(swallowed=swallowed)) as running:
            running.until(lambda running=running: "planning" in running.said, "the plan")
            running.signal(how)
            assert running.code() == CODES[how]
            assert f"Stopped by {how.name}; everything that was finished is saved. Continue with:" in running.said
            assert going_on(running.said) == [*SFT, "--store", str(tmp_path / "adpa-store")]
    store = Store.find(tmp_path / "adpa-store", create=True)
    with adpa([*SFT, "-n"], tmp_path) as running:
        assert running.code() == 0
        ref = re.search(r"sft/[0-9a-f]{12}", running.out.read_text())
    assert ref
    mine = f".partial/{ref[0].split('/')[1]}*.lock"
    with adpa(SFT, tmp_path) as first:
        first.until(lambda: list(store.root.glob(mine)), "its lock")
        first.process.kill()
        first.code()
    with locked(next(store.root.glob(mine)), "adpa sft --of-somebody-else"):
        for how, more in ((signal.SIGINT, ()), (signal.SIGALRM, ("--stop-after", "3s"))):
            with adpa([*SFT, *more], tmp_path) as running:
                running.until(lambda running=running: "waiting for" in running.said, "the waiting")
                if not more:
                    running.signal(how)
                assert running.code() == CODES[how]
                assert re.search(rf"waiting for {ref[0]}, which process \d+ on \S+ \(adpa sft --of-", running.said)
                assert going_on(running.said)[: len(SFT)] == list(SFT)
                assert running.out.read_text() == ""


def test_the_second_signal_leaves_at_once(tmp_path: Path) -> None:
    held = "import time, sys\nimport adpa_cli.stages.training as train\ntrain.compute = lambda *_: time.sleep(300)"
    with adpa(SFT, tmp_path, hook=held) as running:
        running.until(lambda: "[1/1] student" in running.said, "the stage")
        time.sleep(0.3)
        running.signal(signal.SIGTERM)
        running.until(lambda: "again to quit immediately." in running.said, "the answer")
        running.signal(signal.SIGINT)
        assert running.code() == 130
        assert running.out.read_text() == ""


def test_a_closed_window_stops_and_saves(tmp_path: Path) -> None:
    with adpa([*SFT, "--max-steps", "60"], tmp_path, terminal=True) as running:
        running.until(lambda: re.search(r"[1-9]\d*/60", running.screen), "a step")
        running.hang_up()
        assert running.code() == 129
    (left,) = Store(tmp_path / "adpa-store").unfinished()
    assert left.stopped == "SIGHUP"
    assert 0 < left.progress["step"] < 60
    assert list((tmp_path / "adpa-store" / ".partial").glob("*/_resume.json"))


def test_a_question_stands_on_the_terminal_alone(tmp_path: Path) -> None:
    def asked(answer: str) -> tuple[int, str, str]:
        with adpa([*SFT, "-n"], tmp_path, terminal=True, hook=ASK) as running:
            running.until(lambda: "Continue? [Y/n] " in running.screen, "the question")
            if answer == "SIGTERM":
                running.signal(signal.SIGTERM)
            else:
                running.type(answer)
            return running.code(), running.screen, running.out.read_text()

    for answer, meant in (("\n", True), ("maybe\nn\n", False), ("\x04", False)):
        code, screen, out = asked(answer)
        assert (code, f"the answer is {meant}" in screen) == (0, True), screen
        assert screen.count("Continue?") == 1 + answer.startswith("maybe")
        assert "Continue?" not in out
    code, screen, out = asked("SIGTERM")
    assert (code, out) == (143, "")
    assert "Stopped by SIGTERM" in screen


def asserted_plain(running: Running, of: int) -> None:
    """Lines only: the start and the end of the stage, nothing drawn over anything else."""
    assert running.code() == 0, running.said
    assert "\x1b" not in running.said
    assert "█" not in running.said
    lines = running.said.replace("\r\n", "\n").splitlines()
    assert not [line for line in lines if "\r" in line]
    start = next(n for n, line in enumerate(lines) if line.startswith(f"[1/{of}] student: "))
    assert [line for line in lines[start + 1 :] if line.startswith("done   sft/")]


def test_the_bar_fits_forty_columns_and_leaves_finished_stages(tmp_path: Path) -> None:
    with adpa([*SFT, "--max-steps", "12"], tmp_path, terminal=True, columns=40) as running:
        assert running.code() == 0, running.screen
        drawn = [part for part in running.screen.split("\r") if "█" in part or "░" in part]
        assert drawn
        assert all(re.match(r"\[1/1\] student [█░]{8}  \d+/12  ", part) for part in drawn), drawn
        assert all(len(part.rstrip("\n")) <= 39 for part in drawn)
        assert "\x1b" not in running.screen
        end = running.screen.rpartition("\r" + " " * 39 + "\r")[2]
        assert re.fullmatch(r"done   sft/[0-9a-f]{12} .* kB\r\n", end), end
        assert not [line for line in shown(running.screen, 200) if "█" in line], "a bar is left on the screen"
        assert re.fullmatch(r"sft/[0-9a-f]{12}\n", running.out.read_text())


def test_without_a_terminal_that_draws_there_are_lines(tmp_path: Path) -> None:
    with adpa([*SFT, "--max-steps", "3"], tmp_path) as running:
        asserted_plain(running, 1)
    for n, env in enumerate(({"TERM": "dumb"}, {"TERM": ""})):
        with adpa([*SFT, "--max-steps", str(4 + n)], tmp_path, terminal=True, env=env) as running:
            asserted_plain(running, 1)


def test_a_terminal_that_has_no_unicode_gets_ascii(tmp_path: Path) -> None:
    with adpa([*SFT, "--max-steps", "6"], tmp_path, terminal=True, env={"PYTHONIOENCODING": "ascii"}) as running:
        assert running.code() == 0
        assert running.screen.isascii()
        assert re.search(r"\[1/1\] student #*\.+  [1-6]/6", running.screen)
        assert "\\u" not in running.screen


def test_stdout_is_one_id_whatever_is_around(tmp_path: Path) -> None:
    """Every environment with a library and a child that write to file descriptor 1, and a child that reads stdin."""
    piped = tmp_path / "piped"
    piped.write_text("not for a child\n")
    for n, (words, terminal, columns, env) in enumerate((
        ([], False, 100, {}),
        (["-v"], True, 100, {}),
        ([], True, 40, {"NO_COLOR": "1"}),
        (["--json"], True, 100, {"TERM": "dumb", "FORCE_COLOR": "1"}),
        ([], False, 40, {"LANG": "C", "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "FORCE_COLOR": "1"}),
    )):  # fmt: skip
        rollout = ["rollout", "--student", "tiny", *STUDENT, "--limit", str(n + 2), "--set", "max_new_tokens=8"]
        stdin = str(piped)
        with adpa([*words, *rollout], tmp_path, stdin=stdin, terminal=terminal, columns=columns, env=env,
                  hook=NOISE) as running:  # fmt: skip
            assert running.code() == 0, running.said
            for noise in ("print", "write", "echo of a child"):
                assert noise in running.said
            assert "not for a child" not in running.said
            (line,) = running.out.read_text().splitlines()
            ref = json.loads(line)["ref"] if "--json" in words else line
            assert re.fullmatch(r"rollout/[0-9a-f]{12}", ref)
            assert (tmp_path / "adpa-store" / ref / "manifest.json").exists()


def test_a_clock_that_jumps_breaks_nothing(tmp_path: Path) -> None:
    jump = (
        "import time\nreal = time.time\ntime.time = lambda: real() + {}\ntime.time_ns = lambda: int(time.time() * 1e9)"
    )
    words = [*SFT, "--max-steps", "40"]
    with adpa(words, tmp_path, hook=jump.format(10**9)) as running:
        running.until(lambda: list(tmp_path.glob("adpa-store/.partial/*/_resume.json")), "a resume point")
        running.signal(signal.SIGTERM)
        assert running.code() == 143
    listed = listing.screen(listing.collect(Store(tmp_path / "adpa-store")), 100, time.time())
    assert "stopped 0 s ago by SIGTERM" in listed
    with adpa(words, tmp_path, hook=jump.format(-(10**8))) as running:
        assert running.code() == 0, running.said
        assert "starts again" not in running.said
        (line,) = running.out.read_text().splitlines()
    made = Store(tmp_path / "adpa-store").get(line)
    assert made is not None
    assert 0 < made.made["seconds"] < 60
    with adpa(words, tmp_path, hook=jump.format(-2 * 10**8)) as running:
        assert running.code() == 0
        assert "Nothing to do" in running.said
        assert "was made 0 s ago" in running.said
