"""Chat completions as servers write them: no position for the end token, -9999, halves of characters, messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adpa_cli.data.chat import Encoder, Template
from adpa_cli.data.examples import TOOLS, Message, Prompt
from adpa_cli.data.preferences import load_pairs
from adpa_cli.data.tokenizer import Tokenizer
from adpa_cli.errors import DataError
from adpa_cli.hub.externals import open_sources
from adpa_cli.interchange.captured import Captured, read_top_logprobs, spelling
from adpa_cli.signal.rows import token_hash
from adpa_cli.signal.shard import SignalReader
from adpa_cli.store.store import Store
from support.cli_samples import Cli, Pipeline, write_rows

PIECES = ["It", "No", "\ufffd", "æ", "<end>"]
WORDS = spelling(PIECES, {"<end>": 4}, byte_level=False)
BYTES = spelling(["It", "Ã", "<end>"], {"<end>": 2}, byte_level=True)


def entry(token: str, logprob: float, *top: tuple[str, float], raw: list[int] | None = None) -> dict[str, Any]:
    listed = [{"token": other, "logprob": value} for other, value in (top or ((token, logprob),))]
    told = {"bytes": raw} if raw is not None else {}
    return {"token": token, "logprob": logprob, "top_logprobs": listed, **told}


def completion(*content: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**more, "choices": [{"finish_reason": "stop", "logprobs": {"content": list(content)}}]}


def read(folder: Path, *lines: dict[str, Any], words: Any = WORDS) -> list[Captured]:
    """The rows of a capture; the first that cannot be read is raised."""
    found = list(read_top_logprobs(write_rows(folder / "capture.jsonl", lines), words))
    for row in found:
        if isinstance(row, DataError):
            raise row
    return [row for row in found if isinstance(row, Captured)]


def test_a_log_prob_of_minus_9999_is_not_in_the_top(tmp_path: Path) -> None:
    listed = entry("It", -0.1, ("It", -0.1), ("No", -9999.0))
    unlisted = entry("No", -9999.0, ("It", -0.1), ("No", -9999.0))
    (row,) = read(tmp_path, completion(listed, unlisted))
    assert row.tokens == (0, 1)
    assert row.ids.tolist() == [[0], [0]]
    np.testing.assert_allclose(row.logps, [[-0.1], [-0.1]])
    np.testing.assert_allclose(row.label_logps, [-0.1, -np.inf])


def test_a_position_of_which_nothing_is_known_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"capture\.jsonl line 1, position 1: top_logprobs is empty"):
        read(tmp_path, completion(entry("It", -0.1), entry("It", -9999.0)))


@pytest.mark.parametrize(("listed", "said"), [(None, "empty"), ([], "empty"), (..., "missing")])
def test_a_position_without_top_logprobs_says_how_to_ask_for_them(tmp_path: Path, listed: Any, said: str) -> None:
    without = {key: value for key, value in entry("It", -0.1).items() if key != "top_logprobs"}
    asked = without if listed is ... else {**without, "top_logprobs": listed}
    with pytest.raises(DataError, match=f"line 1, position 0: top_logprobs is {said}") as caught:
        read(tmp_path, completion(asked))
    assert "top_logprobs=20" in str(caught.value.hint)


@pytest.mark.parametrize("logprob", [3.0, float("nan")])
def test_a_log_prob_that_none_can_be_is_refused(tmp_path: Path, logprob: float) -> None:
    with pytest.raises(DataError, match=r"line 1, position 0: its log-prob must be 0 or less; got (3|nan)"):
        read(tmp_path, completion(entry("It", logprob, ("It", -0.1))))


@pytest.mark.parametrize(
    "line",
    [b'{"choices": null}', b'{"choices": 3}', b'{"messages": "\xe9"}',
     b'{"choices": [{"logprobs": {"content": ["It"]}}]}',
     b'{"choices": [{"logprobs": {"content": [{"token": "It", "logprob": 0, "top_logprobs": {"It": 0}}]}}]}'],
)  # fmt: skip
def test_a_line_that_is_no_completion_is_named_and_the_others_are_read(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "capture.jsonl"
    whole = json.dumps(completion(entry("It", -0.1))).encode()
    path.write_bytes(b"\xef\xbb\xbf" + whole + b"\n" + line + b"\n" + whole + b"\n")
    first, second, third = read_top_logprobs(path, WORDS)
    assert isinstance(first, Captured)
    assert isinstance(third, Captured)
    assert isinstance(second, DataError)
    assert "capture.jsonl line 2" in str(second)


@pytest.mark.parametrize(
    "half",
    [{"token": "\ufffd", "bytes": [239, 191, 189]}, {"token": "\ufffd", "bytes": []}, {"token": "\ufffd"},
     {"token": "", "bytes": [239, 191, 189]}, {"token": " \ufffd", "bytes": None}],
)  # fmt: skip
@pytest.mark.parametrize("is_taken", [True, False])
def test_half_a_character_is_refused_by_line_and_position(tmp_path: Path, half: dict[str, Any], is_taken: bool) -> None:
    bad = {**entry("It", -0.1), **half} if is_taken else entry("It", -0.1)
    if not is_taken:
        bad["top_logprobs"].append({**half, "logprob": -3.0})
    with pytest.raises(DataError, match=r"capture\.jsonl line 2, position 1: the token is half a character") as caught:
        read(tmp_path, completion(entry("It", -0.1)), completion(entry("It", -0.1), bad))
    assert "return_tokens_as_token_ids" in caught.value.hint


def test_half_a_character_with_its_own_bytes_is_that_token(tmp_path: Path) -> None:
    half = {"token": "\ufffd", "bytes": [0xC3], "logprob": -0.2}
    (row,) = read(tmp_path, completion({**half, "top_logprobs": [half]}), words=BYTES)
    assert row.tokens == (1,)
    by_id = entry("token_id:2", -0.1)
    (row,) = read(tmp_path, completion(by_id))
    assert row.tokens == (2,)


def test_completions_that_cannot_be_read_are_left_out_when_asked(cli: Cli, pipeline: Pipeline, tmp_path: Path) -> None:
    whole = completion(entry("token_id:5", -0.1))
    half = completion(entry("token_id:5", -0.1), entry("\ufffd", -0.1))
    path = write_rows(tmp_path / "answers.jsonl", [whole, half, {"no": 1}])
    words = ["import", path, "--format", "top-logprobs", "--model", pipeline.made("aligned teacher")]
    said = cli.refused(1, *words)
    assert "2 of 3 rows cannot be used" in said
    assert "answers.jsonl line 2, position 1: the token is half a character" in said
    assert "answers.jsonl line 3: this is not a chat completion" in said
    assert "return_tokens_as_token_ids, or leave them out: --skip-bad-rows" in said
    assert len(SignalReader(pipeline.store / cli(*words, "--skip-bad-rows").ref)) == 1


CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
TOOL = {"type": "function", "function": {"name": "add"}}


@pytest.mark.parametrize(
    ("messages", "prompt"),
    [
        ([{"role": "user", "content": [{"type": "text", "text": "why "}, {"type": "text", "text": "?"}]}],
         (Message("user", "why ?"),)),
        ([{"role": "developer", "content": "be brief"}, {"role": "user", "content": "why ?"}],
         (Message("system", "be brief"), Message("user", "why ?"))),
        ([{"role": "assistant", "content": None, "tool_calls": [CALL]}],
         (Message("assistant", "", json.dumps({"tool_calls": [CALL]}, separators=(",", ":"))),)),
    ],
)  # fmt: skip
def test_messages_of_the_request_are_turns(tmp_path: Path, messages: list[Any], prompt: Prompt) -> None:
    request = {"messages": messages, "tools": [TOOL]}
    (row,) = read(tmp_path, completion(entry("It", -0.1), request=request))
    assert row.prompt == (Message(TOOLS, json.dumps([TOOL], separators=(",", ":"))), *prompt)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "content: the key is missing or null"),
        ([{"type": "image_url", "image_url": {}}], r"content\[0\]: its type is image_url"),
    ],
)
def test_messages_that_cannot_be_read_name_the_line(tmp_path: Path, content: Any, said: str) -> None:
    asked = [{"role": "user", "content": content}]
    with pytest.raises(DataError, match=rf"capture\.jsonl line 1, messages\[0\]\.{said}"):
        read(tmp_path, completion(entry("It", -0.1), messages=asked))


@pytest.mark.parametrize("tail", ["bucket", "renormalised"])
def test_an_answer_without_a_position_for_its_end_is_the_datas_and_trains(
    pipeline: Pipeline, cli: Cli, tmp_path: Path, tail: str
) -> None:
    model = pipeline.made("aligned teacher")
    spec = Store.find(pipeline.store).resolve(model).spec
    encoder = Encoder(Tokenizer.of(pipeline.store / model), Template(spec["template"], spec["end"]))
    lines, expected = [], {}
    for pair in load_pairs(open_sources([str(pipeline.data)]), "train").items:
        for part in ("chosen", "rejected"):
            answer = encoder.answer(pair.prompt, getattr(pair, part))
            expected[pair.id, part] = token_hash(encoder.prompt(pair.prompt), answer)
            said = [entry(f"token_id:{token}", -0.5, (f"token_id:{token}", -0.5)) for token in answer[:-1]]
            lines.append(completion(*said, messages=[vars(turn) for turn in pair.prompt]))
    path = write_rows(tmp_path / "answers.jsonl", lines)
    words = ["import", path, "--format", "top-logprobs", "--model", model, "--data", pipeline.data]
    ran = cli(*words, "--precision", "0")
    assert f"{len(lines)} answers have no position for their end token, so the end is not distilled there" in ran.err
    assert Store.find(pipeline.store).resolve(ran.ref).metrics["uncovered"] == len(lines)
    reader = SignalReader(pipeline.store / ran.ref)
    rows = {(key.example_id, key.part): (key.tokens, shard.read(i)) for shard in reader.shards
            for i, key in enumerate(shard.keys)}  # fmt: skip
    assert {name: tokens for name, (tokens, _) in rows.items()} == expected
    for _, found in rows.values():
        assert found.label_ids[-1] == encoder.end_id
        assert np.isneginf(found.logps[-1]).all()
        assert np.isneginf(found.label_logps[-1])
        assert found.rest_logps[-1] == 0
        np.testing.assert_allclose(found.label_logps[:-1], -0.5, atol=1e-5)
    trained = cli(
        "distill", "--method", "dckd", "--student", pipeline.made("student"), "--cache", ran.ref, "--max-steps", "2",
        "--set", f"tail={tail}", "--no-eval",
    )  # fmt: skip
    metrics = [json.loads(line) for line in (pipeline.store / trained.ref / "metrics.jsonl").read_text().splitlines()]
    assert all(np.isfinite(line["loss"]) for line in metrics if "loss" in line)
    for form in ([], ["--row", "1"], ["--fidelity"]):
        assert cli("show", ran.ref, *form).code == 0
    cut = completion(*lines[0]["choices"][0]["logprobs"]["content"][:-1], messages=lines[0]["messages"])
    write_rows(path, [cut])
    assert "differs from" in cli.refused(1, *words)
