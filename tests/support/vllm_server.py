"""A server in the shape of vLLM's on a local port, which draws its answers with a real model, one token at a time.

`python FILE --version` and `python FILE serve FOLDER --port N …` stand for its executable.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from transformers import AutoModelForCausalLM

RELEASE = "0.32.0"
RECORDED: dict[str, Any] = json.loads(Path(__file__).with_name("vllm_replies.json").read_text(encoding="utf-8"))
"""Replies of vllm serve 0.32.0, by what they answer."""


@dataclass
class Vllm:
    """What the server serves, what is wrong with it, and what it was asked."""

    folder: Path
    release: str = RELEASE
    context: int = 128
    gives_ids: bool = True
    works_for: int = 10**9
    """Completions after which it answers no more."""
    key: str = ""
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    """Of the completions that it answered."""

    @functools.cached_property
    def model(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()

    @torch.no_grad()
    def drawn(self, body: dict[str, Any]) -> tuple[list[int], list[float]]:
        """Token ids and their log-probs before temperature: greedy, or sampled by the seed of the request alone."""
        ids, logps = list(body["prompt"]), list[float]()
        source = torch.Generator().manual_seed(body.get("seed", 0))
        while len(logps) < body["max_tokens"] and not (logps and ids[-1] in body["stop_token_ids"]):
            scores = self.model(torch.tensor([ids])).logits[0, -1]
            hot = (scores / body["temperature"]).softmax(-1) if body["temperature"] else None
            token = scores.argmax() if hot is None else torch.multinomial(hot, 1, generator=source)[0]
            ids.append(int(token))
            logps.append(float(scores.log_softmax(-1)[token]))
        return ids[len(body["prompt"]) :], logps


def application(served: Vllm) -> FastAPI:
    """The server of a model."""
    app = FastAPI()

    @app.get("/health")
    def health() -> None:
        return None

    @app.get("/version")
    def version() -> dict[str, str]:
        return {**RECORDED["version"], "version": served.release}

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        made = copy.deepcopy(RECORDED["models"])
        made["data"][0] |= {"root": str(served.folder), "max_model_len": served.context}
        return dict(made)

    @app.post("/v1/completions")
    def complete(body: dict[str, Any], request: Request) -> JSONResponse:
        if served.key and request.headers.get("authorization") != f"Bearer {served.key}":
            return JSONResponse({"error": "Unauthorized"}, 401)
        if body["model"] != RECORDED["models"]["data"][0]["id"]:
            return JSONResponse(RECORDED["wrong model"], 404)
        if len(served.bodies) >= served.works_for:
            return JSONResponse(RECORDED["dead engine"], 500)
        served.bodies.append(body)
        ids, logps = served.drawn(body)
        made = copy.deepcopy(RECORDED["completion"])
        choice, listed = made["choices"][0], made["choices"][0]["logprobs"]
        is_ended = ids[-1] in body["stop_token_ids"]
        choice |= {
            "token_ids": ids if served.gives_ids and body.get("return_token_ids") else None,
            "prompt_token_ids": body["prompt"] if served.gives_ids else None,
            "finish_reason": "stop" if is_ended else "length", "stop_reason": ids[-1] if is_ended else None,
            "logprobs": {**listed, "token_logprobs": logps} if "logprobs" in body else None,
        }  # fmt: skip
        return JSONResponse(made)

    return app


@contextlib.contextmanager
def serving(served: Vllm) -> Iterator[Vllm]:
    """Serve on a free port until it is no longer needed."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(application(served), log_config=None, ws="none", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        served.url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        try:
            yield served
        finally:
            server.should_exit = server.force_exit = True
            thread.join(10)


def executable(path: Path) -> Path:
    """A program at `path` that does what vLLM's does, as far as it is used."""
    tests = Path(__file__).resolve().parents[1]
    lines = [f"#!{sys.executable}", "import sys", f"sys.path.insert(0, {str(tests)!r})",
             "from support.vllm_server import main", "main(sys.argv[1:])"]  # fmt: skip
    path.write_text("\n".join(lines) + "\n")
    path.chmod(0o755)
    return path


def main(words: list[str]) -> None:
    """The program."""
    if words == ["--version"]:
        print(RELEASE)
        return
    options = dict(zip(words[2::2], words[3::2], strict=False))
    print(f"serving {words[1]} with {' '.join(words[2:])}", flush=True)
    served = Vllm(Path(words[1]), context=int(options["--max-model-len"]))
    uvicorn.run(application(served), host="127.0.0.1", port=int(options["--port"]), log_config=None)
