"""One question to a judge behind any OpenAI-compatible chat endpoint, asked until its reply can be used.

`openai` asks again what fails in transport: 408, 409, 429, 5xx, lost connections, timeouts. What it hands over as an
answer though it is none is asked again here: broken JSON, HTML, no choices, an empty text, one cut by length.
Nothing that is raised or returned holds a key, or a URL with more than its host and path.
"""

from __future__ import annotations

import importlib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Generic, TypeVar
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from adpa_cli.endpoint import JUDGE_URL, Address
from adpa_cli.errors import AdpaError

T = TypeVar("T")
TRIES, SAME_TRIES = 6, 3
"""How often a question is asked in all where replies are no answers, and where they are one and the same text."""
RETRIES = 6
"""Of `openai`, beneath each of them: about half a minute."""
LOST = 16
"""Calls in a row whose connection is lost, each after all retries, before nobody is thought to listen any more."""
ROUNDS = 3
"""How often every call under way may end with 429 or 5xx, each after all retries, with no answer between: minutes."""
PAUSE, LONGEST_PAUSE = 0.25, 1.0
"""Seconds before a question is asked the second time, twice as long each time after, and the longest."""
SECRET = 6
"""Characters from which on a secret is looked for in a reply; a shorter one may be a word of it."""
KEY = "OPENAI_API_KEY"
SETTINGS = {
    "top_logprobs": "eval.top_logprobs=5, or eval.verdict=text, which asks for no log-probs",
    "logprobs": "eval.verdict=text, which asks for no log-probs",
    "max_completion_tokens": "eval.max_completion_tokens=none",
    "max_tokens": "eval.max_completion_tokens=N, which is sent instead, or eval.max_tokens=none",
    "temperature": "eval.temperature=none",
    "seed": "eval.judge_seed=none",
}
"""What to set where a server refuses a parameter, by the name that it has there; the longer names first."""
TOO_LONG = ("context length", "context_length", "context window", "too long", "maximum model length")


@dataclass(frozen=True)
class Endpoint(Address):
    """Where a judge listens, how many calls are under way there at once, and after how many seconds one is given up."""

    option: ClassVar[str] = JUDGE_URL
    key: ClassVar[str] = KEY
    concurrency: int = 16
    timeout: float = 600.0


@dataclass(frozen=True)
class Reply:
    """What a server answered: the text, the tokens with their log-probs (None where it gives none), why it ended, how
    many tokens it took, and the name of the model that the server gives."""

    text: str
    tokens: Sequence[Mapping[str, Any]] | None
    finish_reason: str | None
    usage: Mapping[str, int]
    model: str | None

    @property
    def is_cut(self) -> bool:
        return self.finish_reason == "length"


@dataclass(frozen=True)
class Answer(Generic[T]):
    """A reply with what was read from it, or neither and why; and how many requests it took."""

    reply: Reply | None
    value: T | None
    attempts: int
    why: str = ""


class Client:
    """Asks one judge. `close` it in the event loop in which it was used."""

    def __init__(self, endpoint: Endpoint) -> None:
        parts = urlsplit(endpoint.url)
        self.endpoint = endpoint
        self.is_reached = False
        self._lost, self._failed = 0, 0
        base = urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))
        self._openai = openai_module().AsyncOpenAI(
            base_url=base, api_key=os.environ.get(KEY) or "none", timeout=endpoint.timeout, max_retries=RETRIES,
            default_query=dict(parse_qsl(parts.query)),
        )  # fmt: skip

    async def close(self) -> None:
        await self._openai.close()

    async def ask(self, body: Mapping[str, Any], read: Callable[[Reply], T | None]) -> Answer[T]:
        """The answer to a chat completion of `body`, of which `read` makes what is wanted, or None where it cannot.

        Raises AdpaError where no question would be answered: nobody listens, the key or a parameter is refused.
        """
        import asyncio  # which would take a tenth of the start of every command

        attempts, why, reply = 0, "", None
        seen: Counter[str] = Counter()
        for again in range(TRIES):
            if again:
                await asyncio.sleep(min(PAUSE * 2 ** (again - 1), LONGEST_PAUSE))
            text, more, why = await self._text(body)
            attempts += more
            if text is None:
                if why:
                    break
                why = "the server failed each time"
                continue
            answered = reply_of(text)
            if isinstance(answered, str):
                why = answered
                continue
            reply, value = replace(answered, text=self.endpoint.without_secrets(answered.text, SECRET)), read(answered)
            if value is not None:
                return Answer(reply, value, attempts)
            why = "the reply is cut by length" if reply.is_cut else "the reply holds no verdict"
            seen[reply.text] += 1
            if seen[reply.text] >= SAME_TRIES:
                break
        return Answer(reply, None, attempts, why)

    async def _text(self, body: Mapping[str, Any]) -> tuple[str | None, int, str]:
        """(the body of an answer, requests that it took, ""), (None, …, "") where the server failed, and (None, …, why)
        where it refuses this question."""
        openai = openai_module()
        retries = RETRIES if self.is_reached else 1
        try:
            answer = await self._openai.with_options(max_retries=retries).chat.completions.with_raw_response.create(
                **body
            )
        except openai.BadRequestError as error:
            return None, 1, self._refused(error, body)
        except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
            raise self._closed(error) from None
        except openai.APIConnectionError as error:
            is_slow = isinstance(error, openai.APITimeoutError)
            self._lost += not is_slow
            if self.is_reached and self._lost < LOST:
                return None, 1 + retries, ""
            raise self._unreached(is_slow) from None
        except openai.APIStatusError as error:
            self.is_reached = True
            if error.status_code not in (408, 409, 429) and error.status_code < 500:
                return None, 1, f"the server refuses it ({error.status_code}): {self._words(error)}"
            self._failed += 1
            if self._failed >= ROUNDS * self.endpoint.concurrency:
                raise self._failing(error) from None
            return None, 1 + retries, ""
        self.is_reached, self._lost, self._failed = True, 0, 0
        return answer.text, 1 + int(answer.retries_taken), ""

    def _words(self, error: Any) -> str:
        return self.endpoint.without_secrets(str(error.message))[:300]

    def _refused(self, error: Any, body: Mapping[str, Any]) -> str:
        """Why a question of 400 is refused; AdpaError where every other would be too: it names a parameter of `body`,
        and maybe another that is to be sent instead."""
        words = self._words(error)
        is_long = any(text in words.lower() for text in TOO_LONG)
        name = None if is_long else next((name for name in SETTINGS if name in body and name in words), None)
        if name is not None:
            raise AdpaError(
                f"the judge at {self.endpoint.place} refuses the parameter {name} (400): {words}",
                f"run the same command with --set {SETTINGS[name]}",
            )
        return f"the server refuses it (400): {words}"

    def _closed(self, error: Any) -> AdpaError:
        place, words = self.endpoint.place, self._words(error)
        if error.status_code == 404:
            return AdpaError(
                f"the judge at {place} does not know this path or model (404): {words}",
                "check --judge NAME, and that --judge-url is the part before /chat/completions, usually ending in /v1",
            )
        kept = "is set" if os.environ.get(KEY) else "is not set"
        return AdpaError(
            f"the judge at {place} refuses the key ({error.status_code}); ${KEY} {kept}",
            f"export {KEY}=KEY, then run the same command again",
        )

    def _failing(self, error: Any) -> AdpaError:
        return AdpaError(
            f"the judge at {self.endpoint.place} keeps failing ({error.status_code}): {self._words(error)}",
            "replies so far are saved; when the judge works again, run the same command to ask for the rest",
        )

    def _unreached(self, is_slow: bool) -> AdpaError:
        if is_slow:
            return AdpaError(
                f"the judge at {self.endpoint.place} did not answer within {self.endpoint.timeout:g} s",
                "wait until it is ready, or allow more time: --runtime judge_timeout=SECONDS",
            )
        if self.is_reached:
            return AdpaError(
                f"the judge at {self.endpoint.place} cannot be reached any more",
                "replies so far are saved; when the judge is back, run the same command to ask for the rest",
            )
        return AdpaError(
            f"there is no judge at {self.endpoint.place}: the connection failed",
            "start it there, for example with vllm serve NAME, or give its address: --judge-url URL",
        )


def reply_of(text: str) -> Reply | str:
    """The reply in the body of a chat completion, or why it holds none."""
    try:
        answer = json.loads(text)
    except ValueError:
        return "the server sent HTML" if text.lstrip()[:1] == "<" else "the server sent no JSON"
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        return "the server sent no choices"
    choice, usage = choices[0], answer.get("usage")
    message = choice.get("message")
    content = _encodable(message.get("content")) if isinstance(message, dict) else None
    if not content or not content.strip():
        return "the reply is empty" + (", and cut by length" if choice.get("finish_reason") == "length" else "")
    counts = usage if isinstance(usage, dict) else {}
    usage = {name: counts[name] for name in ("prompt_tokens", "completion_tokens") if isinstance(counts.get(name), int)}
    ended, served = _encodable(choice.get("finish_reason")), _encodable(answer.get("model"))
    return Reply(content, _listed(choice.get("logprobs")), ended, usage, served)


def _encodable(value: Any) -> str | None:
    """A text without halves of surrogate pairs, which no file can hold; None where it is no text."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else None


def _listed(logprobs: Any) -> Sequence[Mapping[str, Any]] | None:
    """The tokens of a reply with their log-probs; None where the server gives none, or any that is no number."""
    tokens = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(tokens, list) or not all(isinstance(token, dict) for token in tokens):
        return None
    tops = [token.get("top_logprobs") or [] for token in tokens]
    every = [*tokens, *(other for top in tops if isinstance(top, list) for other in top)]
    are_numbers = all(isinstance(one, dict) and _is_number(one.get("logprob")) for one in every)
    return tokens if tokens and are_numbers and all(isinstance(top, list) for top in tops) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not math.isnan(value)


def openai_module() -> Any:
    """`openai`, which is not loaded before a judge is asked. AdpaError where it is not installed."""
    try:
        return importlib.import_module("openai")
    except ImportError:
        raise AdpaError("judges need the package openai, which is not installed", "pip install openai") from None
