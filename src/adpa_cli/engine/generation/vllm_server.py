"""Servers of vLLM: what they are asked over HTTP, and one that is started for a model folder and ends with its stage.

Nothing here loads torch, for plans ask which release of vLLM it is.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import json
import os
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar
from urllib.error import HTTPError
from urllib.parse import urlsplit, urlunsplit

from adpa_cli.endpoint import BASE_URL, Address
from adpa_cli.errors import AdpaError

LOST = (OSError, http.client.HTTPException, ValueError)
"""What a call raises whose answer does not arrive whole; an HTTPError is an OSError too."""
LOOK, GRACE = 0.5, 20.0
"""Seconds between two looks at a server that starts, and those that it is given to end by itself."""
TIMEOUT = 3600.0
"""Seconds after which an answer is given up: a row waits in the server until there is room for it."""
OTHERS = ("PYTHONPATH", "PYTHONHOME", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK",
          "MASTER_ADDR", "MASTER_PORT")  # fmt: skip
"""Variables of this environment, and of this program's processes, which mean something else to vLLM."""


@dataclass(frozen=True)
class Server(Address):
    """Where a server of vLLM listens, with or without /v1 at the end; `model` is the name that it gives the model."""

    option: ClassVar[str] = BASE_URL
    key: ClassVar[str] = "VLLM_API_KEY"
    model: str = ""
    died: Callable[[], str] = lambda: ""
    """Why it has ended; empty as long as it may run."""

    def call(self, path: str, body: Mapping[str, Any] | None = None, timeout: float = TIMEOUT) -> Any:
        """The JSON that a path answers with, to a POST of `body` if there is one. Raises one of LOST."""
        parts = urlsplit(self.url)
        root = parts.path.rstrip("/").removesuffix("/v1")
        url = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], root + path, parts.query, ""))
        key = f"Basic {self.basic}" if self.basic else f"Bearer {os.environ.get(self.key, '')}"
        request = urllib.request.Request(url, None if body is None else json.dumps(body).encode())
        request.add_header("Content-Type", "application/json")
        request.add_unredirected_header("Authorization", key)
        own = [urllib.request.ProxyHandler({})] if parts.hostname in ("localhost", "127.0.0.1", "::1") else []
        with urllib.request.build_opener(*own).open(request, timeout=timeout) as answer:
            return json.loads(answer.read() or b"null")

    def why(self, error: Exception) -> str:
        """What a call failed with, in words."""
        if isinstance(error, HTTPError):
            with error:
                text = error.read().decode("utf-8", "replace")
            with contextlib.suppress(ValueError, KeyError, TypeError):
                text = json.loads(text)["error"]["message"]
            text = str(error.reason) if text.lstrip().startswith("<") else text  # a page of another program
            return self.without_secrets(f"{error.code}: {' '.join(text.split())}")[:300]
        return self.without_secrets(str(getattr(error, "reason", error)) or type(error).__name__)


def release(server: Server) -> str:
    """The release of vLLM that a server runs. Raises AdpaError where none is reached, and for another program."""
    try:
        found = server.call("/version", timeout=30)
    except HTTPError as error:
        raise AdpaError(
            f"the server at {server.place} does not say which release of vLLM it runs ({server.why(error)})",
            f"start one with vllm serve MODEL-FOLDER, and give its address: {BASE_URL} http://HOST:8000; a key of it "
            f"is read from ${Server.key}",
        ) from None
    except LOST as error:
        raise AdpaError(
            f"there is no vLLM server at {server.place}: {server.why(error)}",
            f"start one there with vllm serve MODEL-FOLDER, or give its address: {BASE_URL} URL",
        ) from None
    if not isinstance(found, dict) or not isinstance(found.get("version"), str):
        raise AdpaError(
            f"the server at {server.place} is not vLLM: it does not say its version",
            f"start one with vllm serve MODEL-FOLDER, and give its address: {BASE_URL} URL",
        )
    return str(found["version"])


def ready(server: Server, version: str, context: int) -> Server:
    """A server with the name of the model that it serves. Raises AdpaError for one that cannot be used: of another
    release, or with a context that is too short for prompts and answers together."""
    if (found := release(server)) != version:
        raise AdpaError(
            f"the server at {server.place} runs vLLM {found}, and the answers are to be drawn by {version}",
            f"use servers of one release, or leave out rollout.engine_version={version}",
        )
    try:
        model = server.call("/v1/models", timeout=60)["data"][0]
        name, longest = str(model["id"]), int(model.get("max_model_len") or context)
    except (*LOST, LookupError, TypeError) as error:
        why = server.why(error) if isinstance(error, LOST) else "no model is listed"
        raise AdpaError(
            f"the server at {server.place} does not say which model it serves: {why}",
            f"start it with vllm serve MODEL-FOLDER; a key of it is read from ${Server.key}",
        ) from None
    if longest < context:
        raise AdpaError(
            f"the server at {server.place} has a context of {longest:,} tokens, and prompts and answers take up to "
            f"{context:,}",
            f"start it with --max-model-len {context}, or use --set rollout.max_length={longest}",
        )
    return replace(server, model=name)


@functools.cache
def release_of_program(program: str) -> str:
    """The release of an executable of vLLM. Raises AdpaError where it is none."""
    found = shutil.which(os.path.expanduser(program))
    hint = "install it in an environment of its own: python -m venv ~/vllm && ~/vllm/bin/pip install vllm; then " \
        "--set rollout.vllm=~/vllm/bin/vllm"  # fmt: skip
    if found is None:
        raise AdpaError(f"there is no executable {program}", hint)
    # The package's own python answers at once; the program itself loads torch before it says its version.
    with open(found, "rb") as file:
        line = file.readline(300).decode("utf-8", "replace").strip()
    python = line.removeprefix("#!").strip() if line.startswith("#!") and "python" in line else ""
    asked = [[python, "-c", "import importlib.metadata as m; print(m.version('vllm'))"]] if python else []
    for command in [*asked, [found, "--version"]]:
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
                                  env=environment(found), check=True)  # fmt: skip
            if words := done.stdout.split():
                return words[-1]
    raise AdpaError(f"{program} does not say which release of vLLM it is", f"try: {found} --version; {hint}")


def environment(program: str) -> dict[str, str]:
    """That of a program of another environment: its folder is searched first, and nothing of ours is imported."""
    kept = {name: value for name, value in os.environ.items() if name not in OTHERS and "TORCHELASTIC" not in name}
    path = f"{Path(program).absolute().parent}{os.pathsep}{kept.get('PATH', '')}"
    return {**kept, "PATH": path, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}


@contextlib.contextmanager
def started(
    program: str, folder: Path, dtype: str, context: int, log: Path, look: Callable[[], None]
) -> Iterator[Server]:
    """A server of the model in a folder, on a free port of this machine, until it is no longer needed.

    What it prints is appended to the file `log`. `look` is called while it starts, and may raise. The server ends with
    this process too, however that ends. Raises AdpaError where it does not start.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = shutil.which(os.path.expanduser(program)) or program
    command = [
        found, "serve", str(folder), "--host", "127.0.0.1", "--port", str(port), "--dtype", dtype, "--max-model-len",
        str(context), "--served-model-name", "model", "--generation-config", "vllm", "--disable-uvicorn-access-log",
    ]  # fmt: skip
    begun = log.stat().st_size if log.exists() else 0
    with log.open("ab") as out:
        guard = subprocess.Popen(
            [sys.executable, "-m", __name__, *command], stdin=subprocess.PIPE, stdout=out, stderr=out,
            start_new_session=True,
        )  # fmt: skip

    def died() -> str:
        return "" if guard.poll() is None else f"exit status {guard.returncode}: {_first_error(log, begun)}"

    server = Server(f"http://127.0.0.1:{port}", model="model", died=died)
    try:
        while not _is_ready(server):
            if why := died():
                raise AdpaError(f"vllm serve did not start, {why}", f"see what it printed in {log}")
            look()
            time.sleep(LOOK)
        yield server
    finally:
        if guard.stdin is not None:
            guard.stdin.close()
        guard.wait()


def _is_ready(server: Server) -> bool:
    with contextlib.suppress(*LOST):
        server.call("/health", timeout=30)
        return True
    return False


def _first_error(log: Path, begun: int) -> str:
    """The first error in a log from some byte on, from which the others follow; else its last line."""
    with log.open("rb") as file:
        file.seek(begun)
        text = file.read().decode("utf-8", "replace").strip()
    found = re.search(r"^(?:.* ERROR .*\] )?(\w*(?:Error|Exception): .*)", text, re.MULTILINE)
    return found[1] if found else text.rpartition("\n")[2] or "it printed nothing"


def main(command: Sequence[str]) -> int:
    """Run a program until it ends or stdin is closed, which the end of the parent does; then end all its processes."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)  # the parent decides when it is over
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, env=environment(command[0]))
    while child.poll() is None and not (select.select([0], [], [], LOOK)[0] and not os.read(0, 1)):
        pass
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        child.wait(GRACE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    return child.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
