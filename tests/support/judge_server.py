"""A judge on a local port: a real server of chat completions whose replies and faults a test chooses."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

FAULTS = ("429", "429 after", "500", "503", "drop", "slow", "broken", "html", "empty", "null", "no choices", "cut")
SLOW = 0.3


@dataclass
class Judge:
    """What the server says to some messages, and what it was asked. `say` returns a text, or a text and its tokens."""

    say: Callable[[list[dict[str, str]]], Any]
    faults: float = 0.0
    """Share of the requests that meet a fault, each kind in turn."""
    refused: Sequence[str] = ()
    """Parameters that are refused with 400."""
    status: int = 0
    """What every request is answered with instead, where it is not 0, and the words that come with it."""
    words: str = ""
    key: str = ""
    delay: float = 0.0
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    """Of the requests that were answered."""
    met: Counter[str] = field(default_factory=Counter)
    """Faults by kind."""
    headers: list[dict[str, str]] = field(default_factory=list)
    stop: Callable[[], Any] = lambda: None
    """Ends the server at once."""
    random: random.Random = field(default_factory=lambda: random.Random(3))

    @property
    def asked(self) -> list[str]:
        """The last message of every request that was answered."""
        return [body["messages"][-1]["content"] for body in self.bodies]


@contextlib.contextmanager
def judging(judge: Judge) -> Iterator[Judge]:
    """Serve a judge on a free port until it is no longer needed."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        config = uvicorn.Config(application(judge), log_config=None, ws="none", lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        judge.stop = functools.partial(_end, server)
        judge.url = f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        try:
            yield judge
        finally:
            _end(server)
            thread.join(10)


def _end(server: uvicorn.Server) -> None:
    server.should_exit = server.force_exit = True


def application(judge: Judge) -> FastAPI:
    """The server of a judge."""
    app = FastAPI()

    @app.post("/v1/chat/completions")
    async def answer(request: Request) -> Response:
        body = await request.json()
        judge.headers.append(dict(request.headers))
        if judge.status:
            return error(judge.status, judge.words or f"refused: {request.headers.get('authorization')}")
        if judge.key and request.headers.get("authorization") != f"Bearer {judge.key}":
            return error(401, f"wrong key {request.headers.get('authorization')}")
        for name in judge.refused:
            if name in body:
                return error(400, f"Unsupported parameter: '{name}' is not supported with this model.")
        if judge.random.random() < judge.faults:
            kind = FAULTS[judge.met.total() % len(FAULTS)]
            judge.met[kind] += 1
            fault = await faulty(kind)
            if fault is not None:
                return fault
        await asyncio.sleep(judge.delay)
        said = judge.say(body["messages"])
        text, tokens = said if isinstance(said, tuple) else (said, None)
        judge.bodies.append(body)
        return JSONResponse(completion(text, tokens if body.get("logprobs") else None, body["model"]))

    return app


def completion(text: str | None, tokens: Any, model: str, finish: str = "stop") -> dict[str, Any]:
    """The body of a chat completion."""
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
    choice["logprobs"] = {"content": tokens} if tokens else None
    return {
        "id": "1", "object": "chat.completion", "created": 1, "model": f"{model}-served", "choices": [choice],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
    }  # fmt: skip


def error(status: int, words: str, **headers: str) -> JSONResponse:
    return JSONResponse({"error": {"message": words, "code": status}}, status, headers)


async def faulty(kind: str) -> Response | None:
    """What a fault answers with; None for one after which the true answer follows."""
    if kind.startswith("429"):
        return error(429, "slow down", **({"Retry-After": "0.2"} if kind.endswith("after") else {}))
    if kind in ("500", "503"):
        return error(int(kind), "out of order")
    if kind == "slow":
        await asyncio.sleep(SLOW)
        return None
    if kind == "html":
        return HTMLResponse("<html><body>Bad gateway</body></html>")
    if kind == "broken":
        return Response('{"id": "1", "choices": [{"mess', media_type="application/json")
    if kind == "drop":
        return Response(b"{", media_type="application/json", headers={"Content-Length": "1000"})
    if kind == "no choices":
        return JSONResponse({"id": "1", "object": "chat.completion", "choices": []})
    if kind == "cut":
        return JSONResponse(completion("The better answer is", None, "judge", "length"))
    return JSONResponse(completion("" if kind == "empty" else None, None, "judge"))


def token(text: str, logprob: float, **others: float) -> dict[str, Any]:
    """A token of a reply with its log-prob and those of others at its place."""
    listed = {text: logprob, **others}
    top = [{"token": name, "logprob": logp, "bytes": None} for name, logp in listed.items()]
    return {"token": text, "logprob": logprob, "bytes": None, "top_logprobs": top}
