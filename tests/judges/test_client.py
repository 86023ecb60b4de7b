"""Asking a judge on a real port: faults, refusals, what is kept, and what nobody may read."""

from __future__ import annotations

import base64
import contextlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from adpa_cli.endpoint import shown_url
from adpa_cli.errors import AdpaError, UsageError
from adpa_cli.judges.calls import Asked, Call, Journal, ask_all
from adpa_cli.judges.client import Endpoint, Reply, reply_of
from adpa_cli.judges.verdicts import Verdict, preference
from support.judge_server import FAULTS, Judge, judging

PARAMETERS = {"model": "j", "temperature": 0.0, "max_tokens": 8, "logprobs": True, "top_logprobs": 5}


def calls(count: int) -> list[Call]:
    return [
        Call(f"{n:016x}", "order", part, [{"role": "user", "content": f"{n} {part}"}], {"chars": [n, 1]})
        for n in range(count)
        for part in (1, 2)
    ]


def read(reply: Reply) -> Verdict | None:
    return preference(reply.text, reply.tokens, ("A", "B"))


def ask(
    url: str, folder: Path, asked: Sequence[Call], stop: Callable[[], str | None] = lambda: None, **endpoint: Any
) -> tuple[Journal, list[dict[str, Any]]]:
    with contextlib.closing(Journal(folder / "_calls.jsonl")) as journal:
        left = [call for call in asked if call.name not in journal.rows]
        unusable = ask_all(left, journal, Asked(PARAMETERS, read), Endpoint(url, **endpoint), lambda done: None, stop)
    return journal, unusable


def test_every_kind_of_fault_is_survived_and_no_call_is_kept_twice(tmp_path: Path) -> None:
    with judging(Judge(lambda messages: "B", faults=0.2)) as judge:
        journal, unusable = ask(judge.url, tmp_path, calls(60))
    assert unusable == []
    lines = [json.loads(line) for line in (tmp_path / "_calls.jsonl").read_text().splitlines()]
    assert len(lines) == len({(line["id"], line["order"]) for line in lines}) == 120
    assert {line["verdict"] for line in lines} == {0.0}
    assert set(judge.met) == set(FAULTS)
    assert sum(line["attempts"] for line in lines) > 120
    assert journal.rows.keys() == {call.name for call in calls(60)}


def test_a_row_tells_the_whole_call(tmp_path: Path) -> None:
    with judging(Judge(lambda messages: "A")) as judge:
        journal, _ = ask(judge.url, tmp_path, calls(1)[:1])
    (row,) = journal.rows.values()
    assert row == {
        "id": "0" * 16, "order": 1, "messages": calls(1)[0].digest, "chars": [0, 1], "verdict": 1.0, "logps": None,
        "reply": "A", "finish_reason": "stop", "usage": {"prompt_tokens": 7, "completion_tokens": 2},
        "model": "j-served", "attempts": 1,
    }  # fmt: skip
    (body,) = judge.bodies
    assert body == {**PARAMETERS, "messages": [{"role": "user", "content": "0 1"}]}


def test_a_row_that_was_cut_off_is_asked_again_and_no_other(tmp_path: Path) -> None:
    with judging(Judge(lambda messages: "A")) as judge:
        ask(judge.url, tmp_path, calls(3))
        path = tmp_path / "_calls.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
        del judge.bodies[:]
        journal, _ = ask(judge.url, tmp_path, calls(3))
    assert len(judge.bodies) == 1
    assert len(journal.rows) == 6
    assert path.read_bytes().splitlines(keepends=True)[:-1] == lines[:-1]


def test_what_cannot_be_read_is_returned_with_its_reply_and_not_kept(tmp_path: Path) -> None:
    say = {"0 1": "I cannot say.", "0 2": "A", "1 1": "", "1 2": "B"}
    with judging(Judge(lambda messages: say[messages[-1]["content"]])) as judge:
        journal, unusable = ask(judge.url, tmp_path, calls(2))
    assert {(row["id"][-1], row["order"]): row["why"] for row in unusable} == {
        ("0", 1): "the reply holds no verdict", ("1", 1): "the reply is empty",
    }  # fmt: skip
    assert unusable[0]["reply"] == "I cannot say."
    assert len(journal.rows) == 2
    assert judge.asked.count("0 1") == 3, "the same words three times are enough"


def test_a_stop_begins_no_further_call(tmp_path: Path) -> None:
    with judging(Judge(lambda messages: "A", delay=0.05)) as judge:

        def stop() -> str | None:
            return "SIGTERM" if len(judge.bodies) >= 6 else None

        journal, _ = ask(judge.url, tmp_path, calls(30), stop, concurrency=2)
    assert 6 <= len(journal.rows) <= 8


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("max_tokens", "eval.max_completion_tokens=N"),
        ("temperature", "eval.temperature=none"),
        ("logprobs", "eval.verdict=text"),
        ("top_logprobs", "eval.top_logprobs=5"),
    ],
)
def test_a_refused_parameter_names_its_setting(tmp_path: Path, name: str, setting: str) -> None:
    with judging(Judge(lambda messages: "A", refused=[name])) as judge, pytest.raises(AdpaError) as refused:
        ask(judge.url, tmp_path, calls(2))
    assert f"refuses the parameter {name}" in refused.value.message
    assert setting in refused.value.hint


def test_the_parameter_that_was_sent_is_named_not_the_one_to_send_instead(tmp_path: Path) -> None:
    words = "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
    with judging(Judge(lambda messages: "A", status=400, words=words)) as judge, pytest.raises(AdpaError) as refused:
        ask(judge.url, tmp_path, calls(1))
    assert "refuses the parameter max_tokens (400)" in refused.value.message
    assert "eval.max_completion_tokens=N" in refused.value.hint


def test_a_server_that_only_fails_is_not_asked_call_by_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adpa_cli.judges.client.RETRIES", 0)
    said = pytest.raises(AdpaError, match=r"keeps failing \(503\): .*loading")
    with judging(Judge(lambda messages: "A", status=503, words="loading")) as judge, said as failing:
        ask(judge.url, tmp_path, calls(100), concurrency=4)
    assert "the same command" in failing.value.hint


@pytest.mark.parametrize(
    ("choice", "found"),
    [
        ({"message": "A"}, "the reply is empty"),
        ({"message": {"content": [{"text": "A"}]}}, "the reply is empty"),
        ({"message": {"content": "A \ud800"}, "finish_reason": {}}, Reply("A ?", None, None, {}, None)),
        ({"message": {"content": "A"}, "logprobs": ["A"]}, Reply("A", None, None, {}, None)),
        *(
            ({"message": {"content": "A"}, "logprobs": {"content": [token]}}, Reply("A", None, None, {}, None))
            for token in (
                {"token": "A", "logprob": None},
                {"token": "A", "logprob": float("nan")},
                {"token": "A", "logprob": -1.0, "top_logprobs": [{"token": "A"}]},
                {"token": "A", "logprob": -1.0, "top_logprobs": {"A": -1.0}},
            )
        ),
    ],
)
def test_an_answer_of_another_form_is_no_accident(choice: dict[str, Any], found: Reply | str) -> None:
    assert reply_of(json.dumps({"choices": [choice], "model": 1})) == found


def test_a_question_that_is_too_long_stops_no_other(tmp_path: Path) -> None:
    """Though its refusal names a parameter."""
    words = "This model's maximum context length is 10 tokens, and 'max_tokens' is 8."
    with judging(Judge(lambda messages: "A", status=400, words=words)) as judge:
        _, unusable = ask(judge.url, tmp_path, calls(1))
    assert [words in row["why"] for row in unusable] == [True, True]


def test_nobody_listening(tmp_path: Path) -> None:
    with judging(Judge(lambda messages: "A")) as judge:
        url = judge.url
    with pytest.raises(AdpaError, match=r"there is no judge at http://127\.0\.0\.1:") as refused:
        ask(url, tmp_path, calls(1))
    assert "--judge-url" in refused.value.hint


def test_a_judge_that_goes_away_is_not_waited_for_call_by_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it said is kept."""
    monkeypatch.setattr("adpa_cli.judges.client.RETRIES", 0)
    with judging(Judge(lambda messages: "A")) as judge:
        judge.say = lambda messages: judge.stop() if len(judge.bodies) == 20 else "A"
        with pytest.raises(AdpaError, match="any more") as gone:
            ask(judge.url, tmp_path, calls(100), concurrency=4)
    assert "are saved" in gone.value.hint
    assert (tmp_path / "_calls.jsonl").read_text().count("\n") >= 15


def test_a_judge_that_takes_too_long(tmp_path: Path) -> None:
    with judging(Judge(lambda messages: "A", delay=1.0)) as judge, pytest.raises(AdpaError) as refused:
        ask(judge.url, tmp_path, calls(1)[:1], timeout=0.1)
    assert "did not answer within 0.1 s" in refused.value.message
    assert "judge_timeout" in refused.value.hint


def test_an_unknown_model_or_path(tmp_path: Path) -> None:
    with judging(Judge(lambda messages: "A", status=404, words="no model j")) as judge, pytest.raises(AdpaError) as no:
        ask(judge.url, tmp_path, calls(1))
    assert "no model j" in no.value.message
    assert "--judge NAME" in no.value.hint


def test_a_refused_key_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hidden-1")
    with judging(Judge(lambda messages: "A", key="sk-right")) as judge:
        with pytest.raises(AdpaError, match="refuses the key") as refused:
            ask(judge.url, tmp_path, calls(1))
        assert "sk-hidden" not in refused.value.message + refused.value.hint
        monkeypatch.setenv("OPENAI_API_KEY", "sk-right")
        journal, _ = ask(judge.url, tmp_path, calls(1))
    assert len(journal.rows) == 2


def test_user_password_and_query_reach_the_server_and_nobody_else(tmp_path: Path) -> None:
    with judging(Judge(lambda messages: "A")) as judge:
        url = judge.url.replace("://", "://ada:hidden-1@") + "?token=hidden-2"
        ask(url, tmp_path, calls(1))
        assert judge.headers[0]["authorization"].startswith("Basic ")
        judge.status = 403
        with pytest.raises(AdpaError) as refused:
            ask(url, tmp_path, calls(2))
    said = refused.value.message + refused.value.hint + repr(Endpoint(url)) + (tmp_path / "_calls.jsonl").read_text()
    assert "hidden" not in said
    assert "ada" not in said
    assert Endpoint(url).place == judge.url


def test_a_reply_is_kept_without_the_key_and_the_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the server repeats; a short word of the URL is a word of the reply."""
    monkeypatch.setenv("OPENAI_API_KEY", "sk-hidden-1")
    sent = base64.b64encode(b"B:hidden@2").decode()
    with judging(Judge(lambda messages: f"sk-hidden-1 hidden@2 hidden%402 hidden 3 {sent}\nB")) as judge:
        url = judge.url.replace("://", "://B:hidden%402@") + "?token=hidden%203"
        journal, _ = ask(url, tmp_path, calls(1))
    assert {(row["reply"], row["verdict"]) for row in journal.rows.values()} == {("… … … … …\nB", 0.0)}


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000/v1", "ftp://a/v1", "http://", "here", "http://a:port/v1", "http://a:99999/v1", "http://[::1/v1",
        "http://ada:hid/den@a/v1", "http://ada:1/den@a/v1",
    ],
)  # fmt: skip
def test_what_is_no_url(url: str) -> None:
    assert "den" not in shown_url(url)
    with pytest.raises(UsageError, match="not a valid URL of a server"):
        Endpoint(url)


def test_without_a_key_the_environment_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with judging(Judge(lambda messages: "A")) as judge:
        ask(judge.url, tmp_path, calls(1))
    assert "OPENAI_API_KEY" not in os.environ
