"""Answers from servers of vLLM: token ids go in and come out, and each row is drawn with a seed of its own.

Rows are asked for one by one, in turn from all servers; a row that one does not answer goes to the next. Until a server
whose weights are not known has answered a block, it also gives the log-probs of its tokens, which the local model
checks.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any
from urllib.error import HTTPError

from adpa_cli.endpoint import BASE_URL
from adpa_cli.engine.generation.generate import Generated
from adpa_cli.engine.generation.sampling import Decoding, answer_limit, row_key
from adpa_cli.engine.generation.vllm_server import LOST, Server
from adpa_cli.engine.layout.micro_batches import Block
from adpa_cli.errors import AdpaError

AT_ONCE = 256
"""Rows under way at a server."""
AHEAD = 1
"""Blocks that are asked for before the one that is waited for is whole, so that no server waits for its last rows."""
TRIES, PAUSE = 9, 0.5
"""Rounds over all servers for a row, and the seconds after the first that fails, doubled after each: two minutes."""
MOST_OFF = 0.1
"""Nats by which the mean log-prob of a server's tokens may differ from that under the local model."""
WAIT = (408, 409, 425, 429)
"""Statuses below 500 after which the same request may succeed."""
NEXT = "finished blocks are saved; when it runs again, run the same command to continue"
Named = tuple[str, Sequence[int]]
"""The id of a row and the token ids of its prompt."""
Score = Callable[[Sequence[Sequence[int]], Sequence[Sequence[int]]], Sequence[float]]
"""The log-probs of the tokens of answers to prompts, one after the other, under the local model."""


@dataclass(frozen=True)
class Reply:
    """An answer, by which server, and the log-probs of its tokens where they were asked for."""

    made: Generated
    server: Server
    logps: list[float] | None


@dataclass
class Client:
    """Draws answers from servers; `score` is None where their weights are known."""

    servers: Sequence[Server]
    decoding: Decoding
    vocabulary: int
    score: Score | None = None
    _rows: int = 0
    _checked: set[str] = field(default_factory=set)
    _tasks: queue.SimpleQueue[tuple[Future[Reply], int, Named] | None] = field(default_factory=queue.SimpleQueue)
    _over: threading.Event = field(default_factory=threading.Event)

    def drawn(self, blocks: Sequence[Block[Named]]) -> Iterator[tuple[Block[Named], list[Generated]]]:
        """The blocks in their order with the answers to their rows. Raises AdpaError for a row that no server answers,
        a server that refuses it, and one whose model is not the local one."""
        count = min(AT_ONCE * len(self.servers), (1 + AHEAD) * max(len(block.items) for block in blocks))
        for _ in range(count):
            # Not an executor, which would keep the program from ending before every request under way has.
            threading.Thread(target=self._work, daemon=True).start()
        under_way: deque[tuple[Block[Named], list[Future[Reply]]]] = deque()
        left = iter(blocks)
        try:
            while True:
                while len(under_way) <= AHEAD and (block := next(left, None)) is not None:
                    under_way.append((block, [self._asked(row) for row in block.items]))
                if not under_way:
                    return
                block, futures = under_way.popleft()
                replies = [future.result() for future in futures]
                self._check(block, replies)
                yield block, [reply.made for reply in replies]
        finally:
            self._over.set()
            for _ in range(count):
                self._tasks.put(None)

    def _asked(self, row: Named) -> Future[Reply]:
        future: Future[Reply] = Future()
        self._tasks.put((future, self._rows, row))
        self._rows += 1
        return future

    def _work(self) -> None:
        """One thread: rows in turn."""
        while (task := self._tasks.get()) is not None:
            future, number, row = task
            try:
                future.set_result(self._answer(number, row))
            except BaseException as error:
                future.set_exception(error)

    def _answer(self, number: int, row: Named) -> Reply:
        """The answer to a row: from the server whose turn it is, or from the next that gives one."""
        why = ""
        for again in range(TRIES):
            if again and self._over.wait(PAUSE * 2 ** (again - 1)):
                break
            for place in range(len(self.servers)):
                server = self.servers[(number + place) % len(self.servers)]
                if stopped := server.died():
                    raise AdpaError(f"the vLLM server that was started has ended, {stopped}", NEXT)
                try:
                    return self._read(server, row, server.call("/v1/completions", self._body(server, row)))
                except LOST as error:
                    is_refusal = isinstance(error, HTTPError) and error.code < 500 and error.code not in WAIT
                    why = f"the vLLM server at {server.place} does not answer: {server.why(error)}"
                    if is_refusal:
                        raise AdpaError(
                            f"the vLLM server at {server.place} refuses row {row[0]!r}: "
                            f"{why.partition(' does not answer: ')[2]}",
                            f"see its log; finished blocks are saved. A key of it is read from ${Server.key}",
                        ) from None
        raise AdpaError(why, f"{NEXT}; or give another: {BASE_URL} URL")

    def _body(self, server: Server, row: Named) -> dict[str, Any]:
        """What is asked for a row. All that a server may set by itself is said, so that none of its defaults acts."""
        sampling, (name, prompt) = self.decoding.sampling, row
        seeded = {"seed": row_key(sampling.seed, name) % 2**63} if sampling.temperature else {}
        return {
            "model": server.model, "prompt": list(map(int, prompt)), "temperature": sampling.temperature,
            "top_p": sampling.top_p, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0,
            "frequency_penalty": 0.0, "max_tokens": self._limit(row), "stop_token_ids": list(self.decoding.end_ids),
            "ignore_eos": True, "return_token_ids": True, "skip_special_tokens": False, "add_special_tokens": False,
            **seeded, **({"logprobs": 0} if self._is_unknown(server) else {}),
        }  # fmt: skip

    def _limit(self, row: Named) -> int:
        return answer_limit(len(row[1]), row[0], self.decoding.sampling, self.decoding.context)

    def _is_unknown(self, server: Server) -> bool:
        return self.score is not None and server.url not in self._checked

    def _read(self, server: Server, row: Named, answer: Any) -> Reply:
        """The answer to a row in a body. ValueError for one that is cut short, AdpaError where there are no ids."""
        try:
            choice = answer["choices"][0]
            ids, prompt, listed = choice.get("token_ids"), choice.get("prompt_token_ids"), choice.get("logprobs")
        except (LookupError, TypeError, AttributeError):
            raise ValueError("the reply holds no answer") from None
        if not isinstance(ids, list) or (prompt is not None and prompt != list(row[1])):
            raise AdpaError(
                f"the server at {server.place} does not take and return token ids, and answers are never read from "
                "text, which may be tokenised otherwise",
                "use vllm serve 0.11 or newer; transformers serve and most proxies handle text only",
            )
        if any(not isinstance(token, int) or not 0 <= token < self.vocabulary for token in ids):
            raise AdpaError(
                f"the server at {server.place} answers with token {max(ids)}, and the vocabulary ends at "
                f"{self.vocabulary - 1}: it serves another model",
                "serve the model folder that the rollout is of",
            )
        is_ended = bool(ids) and ids[-1] in self.decoding.end_ids
        if not is_ended and len(ids) != self._limit(row):
            raise ValueError(f"an answer ends after {len(ids)} tokens ({choice.get('finish_reason')})")
        logps = listed.get("token_logprobs") if isinstance(listed, dict) else None
        return Reply(Generated(ids, cut=not is_ended), server, logps)

    def _check(self, block: Block[Named], replies: Sequence[Reply]) -> None:
        """Raise AdpaError where the local model gives other log-probs to the answers of a server not checked before."""
        for server in self.servers:
            own = [n for n, reply in enumerate(replies) if reply.server.url == server.url]
            if not own or self.score is None or not self._is_unknown(server):
                continue
            answers = [replies[n].made.ids for n in own]
            theirs = [logp for n in own for logp in replies[n].logps or ()]
            if len(theirs) != sum(map(len, answers)):
                raise AdpaError(
                    f"the server at {server.place} gives no log-probs, so nothing tells which model it serves",
                    "start it without --max-logprobs 0",
                )
            ours = self.score([block.items[n][1] for n in own], answers)
            said, scored = (sum(logps) / len(theirs) for logps in (theirs, ours))
            if not abs(said - scored) <= MOST_OFF:
                raise AdpaError(
                    f"the server at {server.place} serves another model: it gives its answers a mean log-prob of "
                    f"{said:.3f} nat a token, and the model of the rollout gives them {scored:.3f}",
                    "serve the model folder that the rollout is of: vllm serve $(adpa path MODEL)",
                )
            self._checked.add(server.url)
