"""`adpa chat`: what a name means to it, answers through a pipe, and a conversation at a real terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from adpa_cli.cli.commands import chat as talking
from adpa_cli.cli.commands.chat import column_width, side_by_side, wrapped
from adpa_cli.data.examples import Message
from adpa_cli.engine.generation import chat_model as talk
from adpa_cli.engine.generation.sampling import Sampling
from adpa_cli.errors import NotFound, UsageError
from adpa_cli.planning.lineage import trained
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.store.store import Store
from support.cli_samples import Cli, Pipeline
from support.store_samples import make, new_store

PROMPTS = "hello\nwhich word is longest ?\n\n"


@pytest.fixture(scope="module")
def names(shared_pipeline: Pipeline) -> Names:
    return Names(Store.find(shared_pipeline.store))


@pytest.fixture(scope="module")
def talker(names: Names) -> talk.ChatModel:
    found = trained(names, "tiny")
    return talk.load_chat_model(found.label, found.folder, found.template, found.dtype)


def ask(text: str) -> list[Message]:
    return [Message("user", text)]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_stream_is_the_answer_that_a_block_gives(talker: talk.ChatModel, temperature: float) -> None:
    sampling = Sampling(temperature=temperature, max_new_tokens=40, seed=3)
    for text in ("hello", "what is the capital of turkey ?"):
        whole = next(talk.chat_answers(talker, [ask(text)], sampling))
        ids, dropped = talk.fitted_conversation(talker, ask(text), sampling)
        assert dropped == 0
        assert "".join(talk.answer_text(talker, ids, sampling)) == whole.text != ""


def test_a_character_of_several_tokens_comes_when_it_is_whole() -> None:
    class Bytes:
        """Byte-level ids, which are decoded as such tokenizers do."""

        def decode(self, ids: Sequence[int]) -> str:
            return bytes(ids).decode("utf-8", "replace")

    encoder: Any = Bytes()
    assert list(talk.text_deltas(encoder, "aé€!".encode())) == ["a", "é", "€", "!"]
    assert list(talk.text_deltas(encoder, "é".encode()[:1])) == ["\N{REPLACEMENT CHARACTER}"]


def test_the_oldest_turns_make_room_and_the_system_message_stays(talker: talk.ChatModel) -> None:
    turns = [Message("system", "the"), *(Message(r, "the word " * 9) for _ in range(9) for r in ("user", "assistant"))]
    ids, dropped = talk.fitted_conversation(talker, [*turns, *ask("hello")], Sampling(max_new_tokens=100))
    assert dropped > 0
    assert dropped % 2 == 0
    assert len(ids) + talk.LEAST_ROOM <= talker.context
    assert talk.fitted_conversation(talker, [*turns[:1], *turns[1 + dropped :], *ask("hello")], Sampling())[0] == ids


def test_texts_side_by_side_are_printed_line_by_line_as_they_grow() -> None:
    seen: list[str] = []

    def growing(pieces: Sequence[str]) -> Iterator[str]:
        for piece in pieces:
            seen.append(piece)
            yield piece

    heard = ["", ""]
    lines = side_by_side([growing(["one two", " three", " four"]), growing(["x"])], heard, 9)
    assert next(lines) == "one two   │ x"
    assert seen == ["one two", "x", " three"]
    assert list(lines) == ["three     │", "four      │"]
    assert heard == ["one two three four", "x"]


def test_wrapping_only_changes_the_last_line_when_text_is_added() -> None:
    text = "a verylongword that is\nbroken  twice"
    assert wrapped(text, 8) == ["a", "verylong", "word", "that is", "broken ", "twice"]
    for end in range(len(text)):
        shorter = wrapped(text[:end], 8)
        assert wrapped(text, 8)[: len(shorter) - 1] == shorter[:-1]
    assert column_width(2, 80) == 38
    assert column_width(2, 40) == 0
    assert column_width(1, 80) == 0


def test_an_alias_is_the_trained_model_of_the_store_and_nothing_is_built(names: Names, tmp_path: Path) -> None:
    (sft,) = [m for m in names.store.artifacts() if m.made["role"] == "student"]
    (aligned,) = [m for m in names.store.artifacts() if m.stage == "dpo-teacher"]
    assert trained(names, "tiny").label == sft.ref
    assert trained(names, "tiny-teacher").label == aligned.ref
    with pytest.raises(NotFound, match="no fine-tuned danube3-500m") as missing:
        trained(names, "danube3-500m")
    assert missing.value.hint == "make it: adpa sft --model danube3-500m"
    with pytest.raises(NotFound) as missing:
        trained(names, "mistral-7b")
    assert missing.value.hint == "make it: adpa dpo-teacher --reference mistral-7b"
    store = new_store(tmp_path)
    model = {"model": "model:" + "a" * 64}
    facts = {"model:" + "a" * 64: {"name": "builtin:student"}}
    two = [make(store, inputs=model, sources=facts, template="t", end="e", n=n).ref for n in range(2)]
    with pytest.raises(UsageError) as several:
        trained(Names(store), "tiny")
    assert all(ref in several.value.message for ref in two)
    make(store, inputs=model, sources=facts, template="t", end="e", n=3, made={"smoke": True})
    assert len(store.artifacts()) == 3


def test_prompts_through_a_pipe_give_one_line_each(pipeline: Pipeline, cli: Cli) -> None:
    first, second = pipeline.made("student"), pipeline.made("distill adpa")
    one = cli("chat", first, "-", stdin=PROMPTS).rows
    assert [len(row) for row in one] == [1, 1]
    both = cli("chat", first, second, "-", "--system", "the", "--temperature", 1, "--seed", 5, stdin=PROMPTS).rows
    assert [len(row) for row in both] == [2, 2]
    again = cli("chat", second, "-", "--system", "the", "--temperature", 1, "--seed", 5, stdin=PROMPTS).rows
    assert [row[0] for row in again] == [row[1] for row in both]
    records = [json.loads(line) for line in cli("chat", first, "-", "--json", stdin=PROMPTS).out.splitlines()]
    assert [record["prompt"] for record in records] == PROMPTS.split("\n")[:2]
    assert [" ".join(record["answers"][0]["text"].split()) for record in records] == [row[0] for row in one]
    assert records[0]["answers"][0]["ref"] == first
    short = json.loads(cli("chat", first, "-", "--json", "--max-new-tokens", 1, stdin="hello\n").out)["answers"][0]
    assert (short["tokens"], short["cut"]) == (1, True)


def test_bad_words_are_refused_before_anything_is_loaded(pipeline: Pipeline, cli: Cli) -> None:
    student = pipeline.made("student")
    assert "one or two models; got none" in cli.refused(2, "chat", "-", stdin="hello\n")
    assert "one or two models; got 3" in cli.refused(2, "chat", student, student, student)
    assert f"adpa chat {student} - < prompts" in cli.refused(2, "chat", student)
    assert "nothing came through the pipe" in cli.refused(3, "chat", student, "-", stdin="\n")
    assert "--temperature must be 0 (greedy) or more; got -1" in cli.refused(
        2, "chat", student, "-", "--temperature", "-1", stdin="hello\n"
    )
    assert "--max-new-tokens must be 1 or more; got 0" in cli.refused(
        2, "chat", student, "-", "--max-new-tokens", "0", stdin="x\n"
    )
    assert "needs an artifact made by sft or" in cli.refused(2, "chat", pipeline.made("rollouts"), "-", stdin="hello\n")
    assert "prompt 2 is not UTF-8 text" in cli.refused(2, "chat", student, "-", stdin="hello\n\udcff\n")
    said = cli.refused(1, "chat", student, "-", stdin="hello\n" + "the word " * 200 + "\n")
    assert "prompt 2 has 40" in said
    assert f"{student} takes 256" in said
    base = Path(talk.__file__).parents[2] / "lab" / "bases" / "student"
    assert "has no chat template" in cli.refused(2, "chat", base, "-", stdin="hello\n")


class Interrupting:
    """A stdout that sends SIGINT to this process when a given piece is written."""

    encoding = "utf-8"

    def __init__(self, at: int) -> None:
        self.written: list[str] = []
        self.at = at

    def write(self, text: str) -> int:
        self.written.append(text)
        if len(self.written) == self.at:
            signal.raise_signal(signal.SIGINT)
        return len(text)

    def flush(self) -> None:
        pass


def test_ctrl_c_stops_the_answer_which_stays_in_the_conversation(
    talker: talk.ChatModel, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out: Any = Interrupting(at=3)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(sys, "stdout", out)
    spoken, stopped = talking._turn([talker], [[]], "hello", Sampling(temperature=3.0, max_new_tokens=100))
    monkeypatch.undo()
    signal.signal(signal.SIGINT, before)
    assert stopped
    assert [turn.role for turn in spoken[0]] == ["user", "assistant"]
    assert spoken[0][1].content == "".join(out.written[:3])
    assert out.written[3:] == ["\n"]
    assert "(stopped)" in capsys.readouterr().err


class Terminal:
    """A process at a terminal of its own, 80 columns wide."""

    def __init__(self, words: Sequence[str], folder: Path) -> None:
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            os.chdir(folder)
            os.environ.update(TERM="xterm", COLUMNS="80", LINES="24", LC_ALL="C.UTF-8", OMP_NUM_THREADS="1")
            os.execv(sys.executable, [sys.executable, "-m", "adpa_cli", *words])

    def until(self, mark: str, seconds: float = 120) -> str:
        got, end = b"", time.monotonic() + seconds
        while mark.encode() not in got and time.monotonic() < end:
            if select.select([self.descriptor], [], [], 0.1)[0]:
                try:
                    got += os.read(self.descriptor, 65536)
                except OSError:  # the other end is closed
                    break
        text = got.decode().replace("\r\n", "\n")
        assert mark in text or not mark, text
        return text

    def type(self, keys: str) -> None:
        if keys == "\x03":
            time.sleep(0.5)  # Python misses a signal that comes between the prompt and its wait for keys
        os.write(self.descriptor, keys.encode())


def test_a_conversation_at_a_terminal(pipeline: Pipeline, cli: Cli, tmp_path: Path) -> None:
    first, second = pipeline.made("student"), pipeline.made("distill adpa")
    (answer,) = cli("chat", first, "-", stdin="hello\n").rows[0]
    terminal = Terminal(["chat", first, second], tmp_path)
    assert f"{first} · {second}" in terminal.until("> ")
    terminal.type("hello\n")
    shown = terminal.until("\n> ")
    _, head, *lines = [line for line in shown.split("\n") if line.strip()]
    assert [cell.strip() for cell in head.split("│")] == [first, second]
    rows = [line.split("│") for line in lines[:-1]]
    assert " ".join(" ".join(row[0].split()) for row in rows).split() == answer.split()
    assert {len(line) for line in [head, *lines[:-1]]} <= set(range(81))
    terminal.type("/reset\n")
    assert "A new conversation" in terminal.until("\n> ")
    terminal.type("/help\n")
    assert "/quit quits" in terminal.until("\n> ")
    terminal.type("\x03")
    assert "Press Ctrl-C again" in terminal.until("\n> ")
    terminal.type("\x03")
    terminal.until("", 5)
    assert os.waitstatus_to_exitcode(os.waitpid(terminal.pid, 0)[1]) == 130
