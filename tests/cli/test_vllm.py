"""`adpa rollout --engine vllm`: ids, plans, what is kept of servers, one that is started, and what is refused."""

from __future__ import annotations

import contextlib
import http.server
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adpa_cli.engine.layout.examples import read_rollouts
from support.cli_samples import Cli, Pipeline
from support.judge_server import Judge, judging
from support.vllm_server import RELEASE, Vllm, executable, serving

FEW = ("--limit", "8", "--max-new-tokens", "6", "--temperature", "0", "--set", "dtype=float32")


def asked(pipeline: Pipeline, *words: object) -> tuple[object, ...]:
    return ("rollout", "--student", pipeline.made("student"), "--data", pipeline.data, *FEW, *words)


def folder_of(pipeline: Pipeline) -> Path:
    return pipeline.store / pipeline.made("student")


def test_servers_draw_what_we_draw_and_nothing_tells_where_they_were(
    pipeline: Pipeline, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "sk-qz9-key")
    plain = cli(*asked(pipeline)).ref
    assert cli(*asked(pipeline, "--engine", "hf")).ref == plain, "the default, said aloud"
    with serving(Vllm(folder_of(pipeline))) as server:
        url = server.url.replace("://", "://ada:qz9-word@") + "?token=qz9-query"
        ran = cli(*asked(pipeline, "--engine", "vllm", f"--base-url={url}", "-v"))
        assert ran.code == 0, ran.err
        assert len(server.bodies) == 8
    again = ("--engine", "vllm", "--set", f"engine_version={RELEASE}")
    assert cli(*asked(pipeline, *again)).ref == ran.ref != plain, "found without a server"
    assert list(read_rollouts(pipeline.store / ran.ref)) == list(read_rollouts(pipeline.store / plain))
    assert f"vLLM {RELEASE}" in cli("show", ran.ref).out
    recipe = cli("show", ran.ref, "--recipe")
    assert recipe.code == 0, recipe.err
    assert f'engine_version = "{RELEASE}"' in recipe.out
    assert "qz9" not in ran.err + recipe.out
    for path in pipeline.store.rglob("*"):
        assert not path.is_file() or b"qz9" not in path.read_bytes(), path


def test_a_server_is_started_for_the_model_and_ends_with_the_stage(pipeline: Pipeline, cli: Cli) -> None:
    program = executable(Path("vllm").absolute())
    ran = cli(*asked(pipeline, "--engine", "vllm", "--set", f"rollout.vllm={program}"))
    assert ran.code == 0, ran.err
    made = pipeline.store / ran.ref
    log = (made / "log.txt").read_text()
    assert f"serving {folder_of(pipeline)}" in log
    assert "--dtype float32" in log
    spec = json.loads((made / "manifest.json").read_text())["spec"]
    assert (spec["engine"], spec["engine_version"]) == ("vllm", RELEASE)
    assert str(program) not in json.dumps(spec)
    (port,) = ports(pipeline.store)
    assert not listens(port)


def listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def until(found: Callable[[], Any]) -> Any:
    """What `found` gives as soon as it is something."""
    deadline = time.monotonic() + 120
    while not (value := found()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return value


def ports(store: Path) -> list[int]:
    """Those of servers that stages of a store have started."""
    logs = [path.read_text() for path in store.rglob("log.txt")]
    return [int(port) for log in logs for port in re.findall(r"^serving .* --port (\d+)", log, re.MULTILINE)]


def test_a_started_server_ends_with_a_program_that_is_killed(pipeline: Pipeline, tmp_path: Path) -> None:
    words = asked(pipeline, "--engine", "vllm", "--set", f"rollout.vllm={executable(tmp_path / 'vllm')}")
    command = [sys.executable, "-m", "adpa_cli", *map(str, words), "--store", str(pipeline.store)]
    with subprocess.Popen(command, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as child:
        try:
            (port,) = until(lambda: ports(pipeline.store))
        finally:
            child.kill()
    until(lambda: not listens(port) and not running(str(port)))


def running(word: str) -> list[str]:
    """The command lines of running processes that have a word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode("utf-8", "replace").split("\0")
            found += [" ".join(words)] if word in words else []
    return found


def test_rollouts_of_other_commands_are_drawn_by_servers_too(pipeline: Pipeline, cli: Cli) -> None:
    with serving(Vllm(folder_of(pipeline))) as server:
        words = ("distill", "--method", "adpa+", "--student", "tiny", "-n")
        more = ("--set", "rollout.engine=vllm", "--base-url", server.url)
        plain, served = cli(*words).rows, cli(*words, *more).rows
        assert server.bodies == [], "a plan asks for the release alone"
    first = [row[2] for row in plain].index("rollouts")
    assert [row[4] for row in plain[:first]] == [row[4] for row in served[:first]]
    assert plain[first][4] != served[first][4]
    assert "?" in served[first]
    assert "?" not in plain[first]


@pytest.mark.parametrize(
    ("words", "code", "said", "hint"),
    [
        (("--engine", "vllm"), 2, "needs the executable of vLLM, or the address", "--set rollout.vllm=PATH"),
        (("--base-url", "http://127.0.0.1:9"), 2, "are not drawn by vLLM", "--engine vllm"),
        (("--engine", "vllm", "--base-url", "127.0.0.1:9"), 2, "--base-url is not a valid URL", "localhost:8000"),
        (
            ("--engine", "vllm", "--base-url", "http://a:qz9@127.0.0.1:9"), 1,
            "no vLLM server at http://127.0.0.1:9:", "vllm serve",
        ),
        (("--engine", "vllm", "--set", "rollout.vllm=./none"), 1, "there is no executable ./none", "pip install vllm"),
        (("--engine", "vllm", "--set", "engine_version=0.32.0"), 2, "needs the executable", "--base-url"),
        (("--engine", "vllm", "--set", "quantise=nf4"), 2, "vLLM draws the answers", "rollout.quantise=none"),
        (("--engine", "vllm", "--set", "dtype=tf32"), 2, "no dtype tf32", "dtype=float32"),
        (("--set", "rollout.vllm=./vllm"), 2, "has no effect without vLLM", "rollout.engine=vllm"),
        (("--engine", "sglang"), 2, "engine must be one of hf, vllm", "engine="),
    ],
)  # fmt: skip
def test_what_is_missing_is_said_before_any_work(
    pipeline: Pipeline, cli: Cli, words: tuple[str, ...], code: int, said: str, hint: str
) -> None:
    before = set(pipeline.store.rglob("*"))
    refused = cli.refused(code, *asked(pipeline, *words))
    assert said in refused
    assert hint in refused
    assert "qz9" not in refused
    assert {path for path in pipeline.store.rglob("*") if path.name == "manifest.json"} <= before


def test_a_page_of_another_program_is_not_shown(pipeline: Pipeline, cli: Cli) -> None:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        words = ("--engine", "vllm", "--base-url", f"http://127.0.0.1:{other.server_port}")
        said = cli.refused(1, *asked(pipeline, *words))
        other.shutdown()
    assert "does not say which release of vLLM it runs (501: Unsupported method ('GET'))" in said


def test_other_programs_adapters_and_several_releases_are_refused(pipeline: Pipeline, cli: Cli) -> None:
    with judging(Judge(lambda messages: "A")) as other:
        words = ("--engine", "vllm", "--base-url", other.url)
        assert "does not say which release of vLLM it runs (404" in cli.refused(1, *asked(pipeline, *words))
    with serving(Vllm(folder_of(pipeline))) as one, serving(Vllm(folder_of(pipeline), release="0.31.0")) as two:
        words = ("--engine", "vllm", "--base-url", one.url, "--base-url", two.url)
        assert "several releases: vLLM 0.32.0 at" in cli.refused(2, *asked(pipeline, *words))
        assert cli("sft", "--model", "tiny", "--set", "lora=4", "--max-steps", "1", "--tag", "low", "-q").code == 0
        words = ("rollout", "--student", "low", "--engine", "vllm", "--base-url", one.url)
        refused = cli.refused(2, *words)
    assert "is an adapter, and vLLM draws from whole weights" in refused
    assert "adpa export sft/" in refused
