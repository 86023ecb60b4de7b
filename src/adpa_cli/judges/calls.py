"""The calls of a judge, kept one by one: what a kill loses are those in flight, and what is kept is not asked again.

A call is named by the id of its prompt and by a number: its order, 1 where the measured model's answer is shown first
and 2 where it is shown second, or the turn that is graded. Calls lie in JSON Lines, each synced to the disk before the
next is taken up.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from adpa_cli.disk import sync_folder, write_atomic
from adpa_cli.judges.client import Answer, Client, Endpoint, Reply
from adpa_cli.judges.prompts import prompt_name
from adpa_cli.judges.verdicts import Verdict

ROWS_FILE = "judgements.jsonl"
"""In an artifact of judgements: a row a call, and one for each prompt whose two answers are one text."""
LOOK, GRACE = 0.5, 10.0
"""Seconds between two looks for a stop, and those that calls in flight are given after one."""
Name = tuple[str, int]
"""The id of a prompt, and its order or turn."""
Unit = Literal["order", "turn"]


@dataclass(frozen=True)
class Call:
    """A question to a judge: whose it is, its messages, and what is kept of it beside the reply."""

    id: str
    unit: Unit
    number: int
    messages: Sequence[Mapping[str, str]]
    about: Mapping[str, Any]

    @property
    def name(self) -> Name:
        return self.id, self.number

    @property
    def digest(self) -> str:
        """sha256 of the messages as JSON."""
        text = json.dumps(list(self.messages), ensure_ascii=False, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()


def name_of(row: Mapping[str, Any]) -> Name:
    """The name of the call that a row is of."""
    return row["id"], row["order"] if "order" in row else row["turn"]


class Journal:
    """The rows of a file by the name of their call; a row that a kill cut off is dropped."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[Name, dict[str, Any]] = {}
        whole = 0
        for line in path.read_bytes().splitlines(keepends=True) if path.exists() else ():
            try:
                row = json.loads(line) if line.endswith(b"\n") else None
            except ValueError:
                row = None
            if row is None:
                break
            self.rows[name_of(row)] = row
            whole += len(line)
        self._file = path.open("ab")
        self._file.truncate(whole)
        sync_folder(path.parent)

    def append(self, row: dict[str, Any]) -> None:
        """Keep a row: it is on the disk when this returns."""
        self._file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.rows[name_of(row)] = row

    def close(self) -> None:
        self._file.close()


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of an artifact of judgements."""
    with (folder / ROWS_FILE).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write_rows(folder: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the rows of an artifact of judgements."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomic(folder / ROWS_FILE, "".join(lines).encode())


def call_facts(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many calls have a verdict and how many have none, how many were read from log-probs, what all of them took,
    and the names of the models that answered."""
    asked = [row for row in rows if "verdict" in row]
    read = [row for row in asked if row["verdict"] is not None]
    usage = [row.get("usage") or {} for row in asked]
    return {
        "stored": len(read), "unparsable": len(asked) - len(read), "identical": len(rows) - len(asked),
        "attempts": sum(row.get("attempts", 0) for row in asked),
        "from_logprobs": sum(row.get("logps") is not None for row in read),
        "served": sorted({str(row["model"]) for row in asked if row.get("model")}),
        **{name: sum(each.get(name, 0) for each in usage) for name in ("prompt_tokens", "completion_tokens")},
    }  # fmt: skip


def judge_record(values: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What an evaluation tells of its judge: by the spec of the artifact whose rows it read."""
    who = {"name": values.get("judge", ""), "prompt": prompt_name(str(values.get("prompts", "[]")))}
    return {**who, **call_facts(rows)}


@dataclass(frozen=True)
class Asked:
    """How a judge was asked: its name and parameters of the request, and how a reply is read."""

    parameters: Mapping[str, Any]
    read: Callable[[Reply], Verdict | None]


def ask_all(
    calls: Iterable[Call], journal: Journal, asked: Asked, endpoint: Endpoint, progress: Callable[[int], None],
    stop: Callable[[], str | None],
) -> list[dict[str, Any]]:  # fmt: skip
    """Ask every call that the journal lacks, some at once, and keep each usable reply; the rows of those that are not.

    `progress` hears how many are done. Where `stop` answers, no further call is begun. Raises as `Client.ask` does.
    """
    return asyncio.run(_ask_all(list(calls), journal, asked, endpoint, progress, stop))


async def _ask_all(
    calls: list[Call], journal: Journal, asked: Asked, endpoint: Endpoint, progress: Callable[[int], None],
    stop: Callable[[], str | None],
) -> list[dict[str, Any]]:  # fmt: skip
    unusable: list[dict[str, Any]] = []
    client, left = Client(endpoint), iter(calls)

    async def work() -> None:
        for call in left:
            if stop():
                return
            answer = await client.ask({**asked.parameters, "messages": call.messages}, asked.read)
            row = row_of(call, answer)
            if answer.value is None:
                unusable.append(row)
            else:
                journal.append(row)
            progress(len(journal.rows) + len(unusable))

    tasks = {asyncio.create_task(work()) for _ in range(min(endpoint.concurrency, len(calls)))}
    try:
        await _until_stopped(tasks, stop)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await client.close()
    return unusable


async def _until_stopped(tasks: set[asyncio.Task[None]], stop: Callable[[], str | None]) -> None:
    """Wait for tasks, and after a stop only a while longer; raises what one of them raises."""
    left, patience = tasks, GRACE
    while left and patience > 0:
        ended, left = await asyncio.wait(left, timeout=LOOK, return_when=asyncio.FIRST_EXCEPTION)
        for task in ended:
            task.result()
        patience -= LOOK if stop() else 0.0


def row_of(call: Call, answer: Answer[Verdict]) -> dict[str, Any]:
    """What is kept of a call."""
    reply, verdict = answer.reply, answer.value
    said = {} if reply is None else {
        "reply": reply.text, "finish_reason": reply.finish_reason, "usage": dict(reply.usage), "model": reply.model,
    }  # fmt: skip
    read = {"why": answer.why} if verdict is None else {"verdict": verdict.value, "logps": verdict.logps}
    return {"id": call.id, call.unit: call.number, "messages": call.digest, **call.about, **read, **said,
            "attempts": answer.attempts}  # fmt: skip
