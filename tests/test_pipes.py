"""Makers and readers in real shells: pipes, command substitution, closed descriptors, one terminal for two makers.

Faults of a plain command-line program that are shown absent here: an empty pipe that runs a stage on `''` and exits 0;
an id that is handed over while its maker still holds the device; two live bars that garble one screen
(`test_two_makers_…`); a global option that is a usage error on the wrong side of the command; a traceback when `head`
has read enough (`test_readers_…`); a shell loop whose list is eaten (`test_a_loop_…`).
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adpa_cli.store.store import Store
from support.cli_samples import Cli, Pipeline

ADPA = f"{shlex.quote(sys.executable)} -m adpa_cli"
PATIENCE = 120.0
MAKER = "--limit 8 --set max_new_tokens=8"


def shell(script: str, folder: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a script with `adpa` on its path, with `pipefail`."""
    text = f'set -o pipefail; adpa() {{ {ADPA} "$@"; }}; {script}'
    return subprocess.run(
        ["bash", "-c", text], cwd=folder, text=True, capture_output=True, timeout=PATIENCE, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
    )  # fmt: skip


@pytest.fixture
def screen_of(tmp_path: Path):
    """Runs a script in a tmux window and returns its screen with what scrolled off it."""
    socket = tmp_path / "tmux"
    tmux = ["tmux", "-S", str(socket), "-f", "/dev/null"]

    def run(script: str, columns: int) -> str:
        done = tmp_path / "done"
        text = f'cd {tmp_path}; adpa() {{ {ADPA} "$@"; }}; {script}; touch {done}; sleep 60'
        size = ["-x", str(columns), "-y", "60", "-e", "OMP_NUM_THREADS=1"]
        subprocess.run([*tmux, "new-session", "-d", *size, f"bash -c {shlex.quote(text)}"], check=True)
        deadline = time.monotonic() + PATIENCE
        while not done.exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        shot = subprocess.run(
            [*tmux, "capture-pane", "-p", "-J", "-S", "-"], check=True, text=True, capture_output=True
        )
        return shot.stdout.rstrip("\n")

    yield run
    subprocess.run([*tmux, "kill-server"], check=False, capture_output=True)


def test_two_makers_in_one_pipe_share_a_terminal(pipeline: Pipeline, tmp_path: Path, screen_of) -> None:
    """The first must not draw: its ids go to another program, which may speak on the same screen."""
    made = tmp_path / "made"
    first = f"adpa rollout --student {pipeline.made('student')} --data {pipeline.data} {MAKER}"
    second = f"adpa cache-teacher --teacher {pipeline.made('aligned teacher')} --rollouts - --limit 8 | tee {made}"
    screen = screen_of(f"{first} | {second}; adpa show {pipeline.made('student')} --json > page.json", 90)
    (ref,) = made.read_text().splitlines()
    assert re.fullmatch(r"cache-teacher/[0-9a-f]{12}", ref)
    lines = screen.splitlines()
    assert not [line for line in lines if "█" in line or "░" in line], screen
    starts = ("[1/1] rollouts: ", "done   rollout/", "[1/1] signal: ", "done   cache-teacher/", ref)
    order = [next(n for n, line in enumerate(lines) if line.startswith(start)) for start in starts]
    assert order == sorted(order), screen
    manifest = Store(pipeline.store).get(ref)
    assert manifest is not None
    assert "-" not in shlex.split(manifest.made["command"])
    assert re.search(r"--rollouts=rollout/[0-9a-f]{12}", manifest.made["command"])
    assert json.loads((tmp_path / "page.json").read_text())["id"]


def test_one_worst_case_of_everything(pipeline: Pipeline, tmp_path: Path) -> None:
    """No terminal, no streams to speak of, another locale; libraries and children that print from the start."""
    noise = tmp_path / "noise"
    noise.mkdir()
    (noise / "sitecustomize.py").write_text(
        "import atexit, os\natexit.register(lambda: os.write(1, b''))\n"
        "import importlib.abc, sys\n"
        "class Loud(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'transformers':\n"
        "            print('a print while importing'); sys.stdout.flush(); os.system('echo a child')\n"
        "sys.meta_path.insert(0, Loud())\n"
    )
    student = pipeline.made("student")
    command = f"adpa rollout --student {student} --data {pipeline.data} {MAKER}"
    ran = shell(
        f'id=$(setsid {ADPA} {command[5:]} <&- 2>&-) && echo "<$id>" && again=$({command} <&-) && echo "<$again>"',
        tmp_path, PYTHONPATH=str(noise), LC_ALL="C", LANG="C", PYTHONIOENCODING="ascii", TERM="dumb", COLUMNS="40",
        PYTHONCOERCECLOCALE="0", PYTHONUTF8="0",
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    first, again = ran.stdout.splitlines()
    assert re.fullmatch(r"<rollout/[0-9a-f]{12}>", first)
    assert first == again
    assert "Nothing to do: rollout/" in ran.stderr
    assert (pipeline.store / first[1:-1] / "log.txt").exists()


def test_a_failure_upstream_runs_nothing(tmp_path: Path) -> None:
    ran = shell(
        "adpa rollout --student nothing | adpa distill --method dckd --cache - --student tiny; echo ${PIPESTATUS[*]};"
        'adpa distill --method dpo --student "$(false)"; echo $?', tmp_path,
    )  # fmt: skip
    assert ran.stdout.splitlines() == ["3 3", "2"]
    assert "nothing came through the pipe" in ran.stderr
    assert "--student is empty" in ran.stderr
    assert list(tmp_path.iterdir()) == []


def test_readers_end_quietly_when_nobody_reads_on(pipeline: Pipeline, tmp_path: Path) -> None:
    ran = shell("adpa show --json | (exec true); echo ${PIPESTATUS[0]}; adpa show | head -1; adpa show >&-", tmp_path)
    quiet, line = ran.stdout.splitlines()
    assert quiet in ("141", "0")  # 0: all of it was in the pipe before the reader left
    assert line.split("\t")[0] in {made.ref for made in Store(pipeline.store).artifacts()}
    assert ran.stderr == ""


def test_a_loop_keeps_its_list(pipeline: Pipeline, tmp_path: Path) -> None:
    refs = [pipeline.made("student"), pipeline.made("distill dckd")]
    (tmp_path / "list").write_text("\n".join(refs) + "\n")
    ran = shell(
        f"while read ref; do adpa rollout --student $ref --data {pipeline.data} -n --json -q; done < list", tmp_path
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("rollout/") >= 2


@pytest.mark.parametrize(
    "stdin",
    [
        "{ref}\r\n",
        "\t {ref} \n\n",
        "\ufeff{ref}",
        '{{\n "id": "{ref}",\n "spec": {{"a": [1, 2]}}\n}}\n',
        '{{"id":"{ref}"}}',
    ],
)
def test_a_dash_understands_what_pipes_bring(pipeline: Pipeline, cli: Cli, stdin: str) -> None:
    ref = pipeline.made("student")
    assert cli("path", "-", stdin=stdin.format(ref=ref)).ref == str(pipeline.store / ref)


def test_a_dash_understands_several(pipeline: Pipeline, cli: Cli) -> None:
    refs = [pipeline.made("student"), pipeline.made("distill dckd")]
    page = cli("show", refs[0], "--json").out
    assert len(page.splitlines()) > 5
    assert [row[0] for row in cli("verify", "-", stdin=f"{page}\r\n{refs[1]}\r\n").rows] == refs
    assert [row[0] for row in cli("verify", "-", stdin=" ".join(refs)).rows] == refs


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("rollout --student", "--student is empty"), ("sft --model", "--model is empty"), ("eval", "REF is empty"),
        ("verify", "REF is empty"), ("path", "REF is empty"), ("distill --method", "--method is empty"),
        ("rollout --student tiny --data", "data source is empty"), ("sft --model tiny --set", "--set"),
        ("cache-teacher --teacher tiny --rollouts", "--rollouts is empty"),
        ("distill --method dckd --student tiny --cache", "--cache is empty"),
    ],
)  # fmt: skip
def test_an_empty_value_is_misuse(cli: Cli, words: str, named: str, tmp_path: Path) -> None:
    assert named in cli.refused(2, *words.split(), "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "5", "3x", "0s", "-1h", "1h 30m", "h", "3:50", "nan"])
def test_a_time_that_is_none_is_misuse(cli: Cli, text: str) -> None:
    assert "--stop-after" in cli.refused(2, "sft", "--model", "tiny", f"--stop-after={text}")


@pytest.mark.parametrize(
    ("text", "seconds"), [("3h50m", 13800.0), ("90s", 90.0), ("2h", 7200.0), ("1.5m", 90.0), ("1d1s", 86401.0)]
)
def test_a_time_in_words(text: str, seconds: float) -> None:
    from adpa_cli.cli.console.stopping import seconds_of

    assert seconds_of(text) == seconds


def test_stdin_is_read_before_anything_heavy_is_loaded(tmp_path: Path) -> None:
    script = (
        "import sys\nfrom adpa_cli.cli.console import streams\n"
        "def read(option):\n    print({'torch', 'transformers', 'pyarrow'} & set(sys.modules))\n    return ['x']\n"
        "streams.read_ids = read\nfrom adpa_cli.cli.main import main\n"
        "main(['rollout', '--student', '-', '--gpus', '2', '--stop-after', '2h'])"
    )
    ran = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, text=True, capture_output=True, check=False)
    assert ran.stdout == "set()\n", ran.stderr


def test_the_command_that_goes_on_works_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from adpa_cli.cli.console.streams import GLOBALS, dashes, take_globals

    monkeypatch.chdir(tmp_path)
    (tmp_path / "my pairs.jsonl").touch()
    monkeypatch.setattr("adpa_cli.cli.console.streams.read_ids", lambda option: ["rollout/0123456789ab"])
    take_globals(["cache-teacher", "--data", "my pairs.jsonl#test", "--teacher", "./my model", "--rollouts", "-"])
    dashes({"--rollouts": ["-"]})
    assert shlex.split(GLOBALS.again(tmp_path / "adpa-store"))[1:] == [
        "cache-teacher", "--data", f"{tmp_path}/my pairs.jsonl#test", "--teacher", f"{tmp_path}/my model",
        "--rollouts=rollout/0123456789ab", "--store", f"{tmp_path}/adpa-store",
    ]  # fmt: skip
    take_globals(["--store", "here", "sft", "--model", "tiny", "--data=argilla/dpo-mix-7k"])
    assert GLOBALS.again(Path("/the store")) == ("adpa sft --model tiny --data=argilla/dpo-mix-7k --store '/the store'")
