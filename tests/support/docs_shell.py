"""A real bash whose `adpa` is answered by this process: syntax as it is typed, without a start of torch for each."""

from __future__ import annotations

import io
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adpa_cli.cli.main import main

CLIENT = """#!{python} -S
import json, os, socket, sys
words = sys.argv[1:]
stdin = sys.stdin.read() if "-" in words else ""
asked = dict(words=words, stdin=stdin, folder=os.getcwd(), store=os.environ.get("ADPA_STORE", ""))
with socket.socket(socket.AF_UNIX) as line:
    line.connect({address!r})
    line.sendall(json.dumps(asked).encode())
    line.shutdown(socket.SHUT_WR)
    answer = json.loads(b"".join(iter(lambda: line.recv(65536), b"")))
sys.stdout.write(answer["out"])
sys.stderr.write(answer["err"])
sys.stdout.flush()
sys.exit(answer["code"])
"""


def run(script: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> subprocess.CompletedProcess[str]:
    """Run a script in `folder`; a command waits for its stdin to end before it is asked here, as `adpa -` does."""
    address = str(folder.parent / "line")
    program = folder.parent / "bin" / "adpa"
    program.parent.mkdir(exist_ok=True)
    program.write_text(CLIENT.format(python=sys.executable, address=address), encoding="utf-8")
    program.chmod(0o755)
    environment = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}"}
    out, err = folder.parent / "out", folder.parent / "err"
    with socket.socket(socket.AF_UNIX) as line, out.open("w") as to_out, err.open("w") as to_err:
        line.bind(address)
        line.listen()
        line.settimeout(0.05)
        argv = ["bash", "-euo", "pipefail", "-c", script]
        with subprocess.Popen(
            argv, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=to_out, stderr=to_err
        ) as shell:
            try:
                while shell.poll() is None:
                    _serve(line, capfd)
            finally:
                shell.kill()
    os.unlink(address)
    return subprocess.CompletedProcess(argv, shell.returncode, out.read_text(), err.read_text())


def _serve(line: socket.socket, capfd: pytest.CaptureFixture[str]) -> None:
    """Answer one caller, if there is one."""
    try:
        caller, _ = line.accept()
    except TimeoutError:
        return
    with caller:
        caller.settimeout(None)
        asked = json.loads(b"".join(iter(lambda: caller.recv(65536), b"")))
        caller.sendall(json.dumps(_answer(asked, capfd)).encode())


def _answer(asked: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> dict[str, object]:
    """One command, run in this process as if typed there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(str(asked["folder"]))
        patch.setattr("sys.stdin", io.StringIO(str(asked["stdin"])))
        patch.setenv("ADPA_STORE", str(asked["store"]))
        capfd.readouterr()
        code = main([str(word) for word in asked["words"]])
        out, err = capfd.readouterr()
    return {"code": code, "out": out, "err": err}
