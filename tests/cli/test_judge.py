"""`adpa eval` by a judge behind a real endpoint: what is asked, kept, asked again, and shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from adpa_cli.engine.models import save
from adpa_cli.store.store import Store
from support.cli_samples import STUDENT_AND_DCKD, Cli, Pipeline, by_metric, write_rows
from support.judge_server import FAULTS, Judge, judging, token
from support.model_folders import byte_level
from support.serve import sayer, serving
from support.tiny_models import TEMPLATE, as_ours

WORDS = ("--set", "rollout.max_new_tokens=12", "--judge", "j")


def longer(messages: list[dict[str, str]]) -> str:
    """A judge that prefers the longer answer, and the first of two equally long ones."""
    text = messages[-1]["content"]
    first = text.partition("=== Answer A ===\n")[2].partition("\n\n=== Answer B ===")[0]
    second = text.partition("=== Answer B ===\n")[2].partition("\n\n=== Your verdict")[0]
    return "A" if len(first) >= len(second) else "B"


def judgements(store: Path) -> list[Any]:
    return [made for made in Store.find(store).artifacts() if made.stage == "judgements"]


def rows(store: Path) -> list[dict[str, Any]]:
    (made,) = judgements(store)
    text = (store / made.ref / "judgements.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_a_judge_compares_answers_in_both_orders(pipeline: Pipeline, cli: Cli) -> None:
    student, start = pipeline.made("distill adpa"), pipeline.made("student")
    with judging(Judge(longer)) as judge:
        words = ("eval", student, "--against", start, "--data", pipeline.data, *WORDS, "--judge-url", judge.url)
        ran = cli(*words, "--json")
        assert ran.code == 0, ran.err
        (line,) = map(json.loads, ran.out.splitlines())
        assert cli(*words).ref == line["ref"]
    made = rows(pipeline.store)
    asked = [row for row in made if "verdict" in row]
    assert len(judge.bodies) == len(asked) == line["judge"]["stored"]
    assert {(row["id"], row["order"]) for row in asked} == {(row["id"], n) for row in asked for n in (1, 2)}
    wins = {row["id"]: 0.5 if row.get("identical") else float(row["chars"][0] > row["chars"][1]) for row in made}
    same = {row["id"] for row in made if row["chars"][0] == row["chars"][1]}
    wins |= dict.fromkeys(same, 0.5)
    rate = by_metric(line)["win_rate"]
    assert rate["value"] == pytest.approx(sum(wins.values()) / len(wins))
    assert rate["n"] == len(wins) == 12
    assert rate["against"] == start
    assert by_metric(line)["lc_win_rate"].keys() >= {"value", "low", "high", "supported", "sides"}
    assert line["judge"]["name"] == "j"
    assert line["judge"]["prompt"].startswith("pairwise-1 (")
    assert "reward_accuracy" in by_metric(line)


def compare(pipeline: Pipeline, *words: object) -> tuple[object, ...]:
    student, start = pipeline.made("distill adpa"), pipeline.made("student")
    return ("eval", student, "--against", start, "--data", pipeline.data, *WORDS, *words)


def test_what_stays_unusable_is_shown_and_asked_again_alone(pipeline: Pipeline, cli: Cli) -> None:
    """Exit 75 with the table of what there is; then only what is missing is asked, or it is left out."""
    asked = []

    def say(messages: list[dict[str, str]]) -> str:
        asked.append(messages[-1]["content"])
        return "I would rather not say." if asked[-1] == asked[0] else "A"

    with judging(Judge(say)) as judge:
        words = compare(pipeline, "--judge-url", judge.url, "--runtime", "judge_concurrency=1")
        ran = cli(*words)
        assert ran.code == 75, ran.err
        assert "I would rather not say." in ran.err
        assert "WIN RATE" in ran.err
        assert judgements(pipeline.store) == []
        whole = len(set(asked))
        again = cli(*words, "--json")
        assert again.code == 75
        (line,) = map(json.loads, again.out.splitlines())
        assert (line["ref"], line["judge"]["unparsable"], line["judge"]["stored"]) == (None, 1, whole - 1)
        assert set(asked[whole + 2 :]) == {asked[0]}, "the others are kept"
        left = cli(*words, "--set", "eval.unparsable=leave-out", "--json")
        assert left.code == 0, left.err
        (line,) = map(json.loads, left.out.splitlines())
        assert (line["judge"]["unparsable"], line["judge"]["stored"]) == (1, whole - 1)
        assert "1 call has no verdict and is left out" in cli("show", line["ref"]).out
        assert len(set(asked)) == whole
        judge.say = lambda messages: "A"
        done = cli(*words, "--json")
        (line,) = map(json.loads, done.out.splitlines())
    assert (line["judge"]["unparsable"], line["judge"]["stored"]) == (0, whole)
    assert len(judgements(pipeline.store)) == 2


def test_nothing_is_done_where_no_reply_can_be_used(pipeline: Pipeline, cli: Cli) -> None:
    with judging(Judge(lambda messages: "Hm.")) as judge:
        said = cli.refused(1, *compare(pipeline, "--judge-url", judge.url))
    assert "can be used" in said
    assert judgements(pipeline.store) == []


def test_another_port_finds_the_same_and_nothing_tells_where_it_was(
    pipeline: Pipeline, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-qz9-key")
    with judging(Judge(lambda messages: "A", key="")) as judge:
        url = judge.url.replace("://", "://ada:qz9-word@") + "?token=qz9-query"
        first = cli(*compare(pipeline, f"--judge-url={url}"), "-v")
    with judging(Judge(lambda messages: "A")) as other:
        second = cli(*compare(pipeline, "--judge-url", other.url))
    assert first.ref == second.ref
    assert other.bodies == []
    assert "qz9" not in first.err
    for path in pipeline.store.rglob("*"):
        assert not path.is_file() or b"qz9" not in path.read_bytes(), path


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ((), 2, "the address of the judge j is missing"),
        (("--judge-url", "localhost:8000"), 2, "not a valid URL of a server"),
        (("--judge-url", "http://127.0.0.1:9/v1"), 1, "there is no judge at http://127.0.0.1:9/v1"),
        (("--judge-url", "http://127.0.0.1:9/v1", "--judge-prompts", "none.txt"), 3, "no such file"),
        (("--judge-url", "http://127.0.0.1:9/v1", "--set", "eval.temperatur=1"), 2, "no such setting"),
        (("--suite", "accuracy"), 2, "has no effect with --suite accuracy"),
        (("--judge-url", "http://ada:hid/den@127.0.0.1:9/v1"), 2, "not a valid URL of a server"),
        (("--runtime", "judge_concurrency=0"), 2, "judge_concurrency must be 1 or more; got 0"),
        (("--runtime", "judge_timeout=0"), 2, "judge_timeout must be 1 or more; got 0"),
        (("--set", "eval.max_tokens=0"), 2, "max_tokens must be 1 or more; got 0"),
    ],
)
def test_bad_input(pipeline: Pipeline, cli: Cli, words: tuple[str, ...], code: int, said: str) -> None:
    assert said in cli.refused(code, *compare(pipeline, *words))


def test_a_url_that_is_none_is_told_to_nobody(pipeline: Pipeline, cli: Cli) -> None:
    """Neither where a slash in a password ends its host, nor where its port is none."""
    for password in ("qz8word/1", "8/qz8word", "qz8word@["):
        url = f"http://ada:{password}@127.0.0.1:9/v1"
        assert "qz8word" not in cli.refused(2, *compare(pipeline, "--judge-url", url, "-v"))
    for path in pipeline.store.rglob("*"):
        assert not path.is_file() or b"qz8word" not in path.read_bytes(), path


def test_without_the_extra_nothing_is_begun(pipeline: Pipeline, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    said = cli.refused(1, *compare(pipeline, "--judge-url", "http://127.0.0.1:9/v1"))
    assert "pip install openai" in said


def test_a_judge_needs_an_opponent_and_a_suite_of_a_judge_needs_one(pipeline: Pipeline, cli: Cli) -> None:
    student = pipeline.made("distill adpa")
    assert "--against REF" in cli.refused(2, "eval", student, "--judge", "j")
    assert "--judge NAME" in cli.refused(2, "eval", student, "--suite", "win-rate", "--against", student)


def test_how_often_a_judge_prefers_the_chosen_answers(pipeline: Pipeline, cli: Cli) -> None:
    """A judge of length alone agrees as often as the longer answer is the chosen one."""
    with judging(Judge(longer)) as judge:
        words = ("eval", "--suite", "agreement", "--data", pipeline.data, "--judge", "j", "--judge-url", judge.url)
        ran = cli(*words, "--split", "test", "--json")
        assert ran.code == 0, ran.err
        (line,) = map(json.loads, ran.out.splitlines())
        assert cli(*words, "--split", "all", "--limit", "3", "--json").code == 0
    of_pairs = next(made for made in judgements(pipeline.store) if made.spec.get("judged") == "pairs")
    assert "judgements of preference pairs" in cli.refused(2, "eval", of_pairs.ref)
    scores = by_metric(line)
    assert scores["agreement"]["value"] == scores["longer_baseline"]["value"]
    assert scores["agreement"]["n"] == 12
    assert line["model"].startswith("judgements/")
    assert line["judge"]["stored"] == 24
    assert len(judge.bodies) == 24 + 6


QUESTIONS = [
    {"question_id": 81, "category": "writing", "turns": ["Say hello.", "Say it again."]},
    {"question_id": 111, "category": "math", "turns": ["What is 2 and 2?", "And 3 and 3?"]},
]
REFERENCES = [{"question_id": 111, "model_id": "gpt-4", "choices": [{"index": 0, "turns": ["It is 4.", "It is 6."]}]}]


def test_both_turns_are_graded(pipeline: Pipeline, cli: Cli, tmp_path: Path) -> None:
    """Math beside its reference; the second question is asked after the model's own answer to the first."""
    write_rows(tmp_path / "questions.jsonl", QUESTIONS)
    write_rows(tmp_path / "references.jsonl", REFERENCES)

    def grade(messages: list[dict[str, str]]) -> str:
        text = messages[-1]["content"]
        return f"Fine.\n[[{1 + 2 * ('Second request' in text) + 5 * ('odel solution' in text)}]]"

    words = (
        "eval", pipeline.made("distill adpa"), "--suite", "mt-bench", "--data", "questions.jsonl",
        "--references", "references.jsonl", "--set", "rollout.max_new_tokens=8", "--judge", "j",
    )  # fmt: skip
    with judging(Judge(grade)) as judge:
        ran = cli(*words, "--judge-url", judge.url, "--json")
        assert ran.code == 0, ran.err
        again = cli(*words, "--judge-url", judge.url)
    (line,) = map(json.loads, ran.out.splitlines())
    found = {name: score["value"] for name, score in by_metric(line).items()}
    assert found == {
        "grade": (1 + 3 + 6 + 8) / 4, "turn_1_grade": 3.5, "turn_2_grade": 5.5, "writing_grade": 2.0, "math_grade": 7.0,
    }  # fmt: skip
    assert again.ref == line["ref"]
    asked = dict(zip(judge.asked, judge.bodies, strict=True))
    (second,) = [text for text in asked if "It is 6." in text]
    (dialogue,) = [row for row in dialogues(pipeline.store) if row["question_id"] == 111]
    assert all(text in second for text in (*dialogue["questions"], *dialogue["text"], "It is 4."))
    assert all("logprobs" not in body and body["max_tokens"] == 2048 for body in judge.bodies)
    (made,) = judgements(pipeline.store)
    assert json.loads(cli("show", made.ref, "--row", 2, "--json").out)["reply"] == "Fine.\n[[3]]"
    assert "And 3 and 3?" in cli("show", dict(made.parents())["rollouts"], "--rows", 2).out


def dialogues(store: Path) -> list[dict[str, Any]]:
    (made,) = [made for made in Store.find(store).artifacts() if made.stage == "two-turns"]
    text = (store / made.ref / "dialogues.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_a_question_of_one_turn_is_refused(pipeline: Pipeline, cli: Cli, tmp_path: Path) -> None:
    write_rows(tmp_path / "questions.jsonl", [*QUESTIONS, {"question_id": 3, "category": "x", "turns": ["One."]}])
    words = ("--suite", "mt-bench", "--data", "questions.jsonl", "--judge", "j", "--judge-url", "http://127.0.0.1:9/v1")
    assert "questions.jsonl row 3 has one turn" in cli.refused(1, "eval", pipeline.made("student"), *words)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"instruction": "Say hello.", "output": "Hello."}, "references.jsonl row 1 is not a reference answer"),
        ({**REFERENCES[0], "choices": [{"turns": ["It is 4."]}]}, "references.jsonl row 1 has one turn"),
    ],
)
def test_what_is_no_reference_answer_is_refused_before_any_answer(
    pipeline: Pipeline, cli: Cli, tmp_path: Path, row: dict[str, Any], said: str
) -> None:
    write_rows(tmp_path / "questions.jsonl", QUESTIONS)
    write_rows(tmp_path / "references.jsonl", [row])
    words = ("--suite", "mt-bench", "--data", "questions.jsonl", "--references", "references.jsonl", "--judge", "j")
    url = ("--judge-url", "http://127.0.0.1:9/v1")
    assert said in cli.refused(1, "eval", pipeline.made("student"), *words, *url)
    assert not [made for made in Store.find(pipeline.store).artifacts() if made.stage == "two-turns"]


def test_a_plan_tells_what_a_judge_takes_and_asks_nobody(pipeline: Pipeline, cli: Cli) -> None:
    words = compare(pipeline, "--judge-url", "http://127.0.0.1:9/v1", "-n", "--judge-price", "2.5,10")
    judge = json.loads(cli(*words, "--json").out)["judge"]
    assert judge["calls"] == 24
    assert judge["completion_tokens"] == 48
    assert 24 * 150 < judge["prompt_tokens"] < 24 * 400
    assert judge["cost"] == pytest.approx((2.5 * judge["prompt_tokens"] + 480) / 1e6)
    assert judge["detectable"] == pytest.approx(2.8 * 0.4 / 12**0.5)
    for key, most in (("max_tokens", 1), ("max_tokens", 100), ("max_completion_tokens", 2048)):
        limited = json.loads(cli(*words, "--set", f"eval.{key}={most}", "--json").out)["judge"]
        assert limited["completion_tokens"] == 24 * min(300, most)
    assert "at most 24 calls" in cli(*words).err
    assert "must be two prices, of input and of output; got cheap" in cli.refused(
        2, *compare(pipeline, "-n", "--judge-price", "cheap")
    )


def answers(folder: Path, count: int) -> tuple[str, str]:
    """Two files of answers to some prompts, in AlpacaEval's format."""
    for name, text in (("ours", "Because of {}."), ("theirs", "{} is why, as everybody knows.")):
        rows = [{"instruction": f"Why {n}?", "output": text.format(n), "generator": name} for n in range(count)]
        (folder / f"{name}.json").write_text(json.dumps(rows))
    return "ours.json", "theirs.json"


@pytest.mark.slow
def test_a_kill_loses_only_what_was_in_flight(cli: Cli, tmp_path: Path) -> None:
    """250 prompts at 16 at once, one request in ten with a fault; no stored call is asked again after kill -9."""
    ours, theirs = answers(tmp_path, 250)
    words = ["eval", ours, "--against", theirs, "--judge", "j", "--judge-url"]
    with judging(Judge(longer, faults=0.1)) as judge:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "adpa_cli", *words, judge.url]
        with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) as run:
            while len(judge.bodies) < 200 and run.poll() is None:
                time.sleep(0.01)
            run.kill()
        assert run.returncode == -9
        before = set(judge.asked)
        (journal,) = tmp_path.glob("adpa-store/.partial/*/_calls.jsonl")
        kept = journal.read_text().count("\n")
        assert len(before) - 32 < kept <= len(before)
        done = len(judge.bodies)
        ran = cli(*words, judge.url, "--json")
        assert ran.code == 0, ran.err
    (line,) = map(json.loads, ran.out.splitlines())
    assert (line["judge"]["stored"], line["judge"]["unparsable"]) == (500, 0)
    assert line["judge"]["attempts"] > 500
    again = judge.asked[done:]
    assert len(again) == len(set(again)) == 500 - kept
    made = rows(tmp_path / "adpa-store")
    assert len({(row["id"], row["order"]) for row in made}) == len(made) == 500
    assert set(judge.met) == set(FAULTS)
    with judging(Judge(longer)) as other:
        assert cli(*words, other.url).ref == line["ref"]
    assert other.bodies == []


def test_a_judge_that_always_names_the_first(cli: Cli, tmp_path: Path) -> None:
    ours, theirs = answers(tmp_path, 6)
    with judging(Judge(lambda messages: "A")) as judge:
        ran = cli("eval", ours, "--against", theirs, "--judge", "j", "--judge-url", judge.url, "--json")
    scores = by_metric(json.loads(ran.out))
    found = [scores[name]["value"] for name in ("win_rate", "position_bias", "consistency")]
    assert found == [0.5, 0.5, 0.0]
    assert scores["win_rate"]["standard_error"] == 0.0


def test_answers_to_other_prompts(cli: Cli, tmp_path: Path) -> None:
    ours, theirs = answers(tmp_path, 4)
    few = json.loads((tmp_path / theirs).read_text())[:3]
    (tmp_path / theirs).write_text(json.dumps(few))
    with judging(Judge(longer)) as judge:
        words = ("eval", ours, "--against", theirs, "--judge", "j", "--judge-url", judge.url)
        ran = cli(*words)
        assert "answers 3 of the 4 prompts" in " ".join(ran.err.split())
        assert len(judge.bodies) == 6
        (tmp_path / theirs).write_text(json.dumps([{**row, "instruction": "Who?" + row["output"]} for row in few]))
        assert "has no answer to any of the 4 prompts" in cli.refused(1, *words)
        (tmp_path / theirs).write_text(json.dumps([*few, few[0]]))
        assert "row 4 answers the same prompt as row 1" in cli.refused(1, *words)


def test_log_probs_of_a_real_model(cli: Cli, tmp_path: Path) -> None:
    """A server over a model that lists true log-probs: P(win) is the softmax over the two letters, mean of both orders;
    as text it is the likelier letter. The server favours the letters alike, so that both are among the twenty."""
    ours, theirs = answers(tmp_path, 3)
    tokenizer = byte_level()
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=4096, initializer_range=0.5,
    ))  # fmt: skip
    letters = [tokenizer.token_to_id(letter) for letter in "AB"]
    firsts: dict[str, float] = {}

    def say(messages: list[dict[str, str]]) -> Any:
        ids = tokenizer.encode("".join(message["content"] for message in messages)).ids
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1].double()
        firsts[messages[-1]["content"]] = float(logits[letters].softmax(0)[0])
        logits[letters] += 20.0
        top = logits.log_softmax(0).topk(20)
        names = map(tokenizer.id_to_token, top.indices.tolist())
        listed = dict(zip(names, top.values.tolist(), strict=True))
        name = next(iter(listed))
        return name, [token(name, listed.pop(name), **listed)]

    with judging(Judge(say)) as judge:
        words = ("eval", ours, "--against", theirs, "--judge", "j", "--judge-url", judge.url, "--json")
        line, text = (json.loads(cli(*words, *more).out) for more in ((), ("--set", "eval.verdict=text")))
    expected, by_letter = [], []
    for row in json.loads((tmp_path / ours).read_text()):
        both = [asked for asked in firsts if row["output"] in asked and row["instruction"] in asked]
        one, two = (firsts[asked] for asked in sorted(both, key=lambda asked: asked.index(row["output"])))
        expected.append((one + 1 - two) / 2)
        by_letter.append((float(one > 0.5) + float(two < 0.5)) / 2)
    assert line["judge"]["from_logprobs"] == 6
    assert by_metric(line)["win_rate"]["value"] == pytest.approx(sum(expected) / 3, abs=1e-6)
    assert text["judge"]["from_logprobs"] == 0
    assert text["id"] != line["id"]
    assert by_metric(text)["win_rate"]["value"] == pytest.approx(sum(by_letter) / 3)
    assert all("logprobs" not in body for body in judge.bodies[6:])


@pytest.mark.slow
def test_transformers_serve_as_judge(cli: Cli, tmp_path: Path) -> None:
    """It gives no log-probs: what its model says, always A, is read from the text."""
    ours, theirs = answers(tmp_path, 2)
    words = {name: number for number, name in enumerate(("<unk>", "<pad>", "<s>", "</s>", "<end>", "A"))}
    inner = Tokenizer(WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        additional_special_tokens=["<end>"],
    )  # fmt: skip
    model = sayer(tokenizer, ("<end>", "A", "<end>"), 1024)
    save(model, as_ours(tokenizer), tmp_path / "judge", TEMPLATE, "<end>")
    with serving(tmp_path / "judge", tmp_path / "log") as url:
        asked = ("eval", ours, "--against", theirs, "--judge-url", f"{url}/v1", "--judge", tmp_path / "judge")
        ran = cli(*asked, "--json")
    line = json.loads(ran.out)
    assert [by_metric(line)[name]["value"] for name in ("win_rate", "consistency")] == [0.5, 0.0]
    assert (line["judge"]["stored"], line["judge"]["from_logprobs"]) == (4, 0)
    (made,) = judgements(tmp_path / "adpa-store")
    assert "0 of 4 verdicts" in made.metrics["say"][0]


def test_a_judged_table_names_the_judge_and_its_agreement(pipeline: Pipeline, cli: Cli, tmp_path: Path) -> None:
    ours, theirs = answers(tmp_path, 5)
    with judging(Judge(longer)) as judge:
        words = ("--judge", "j", "--judge-url", judge.url)
        compared = ("eval", ours, "--against", theirs, *words)
        said = " ".join(cli(*compared).err.split())
        assert "judge: j by pairwise-1 (" in said
        assert "how often it agrees with people is not measured" in said
        line = json.loads(cli("eval", "--suite", "agreement", "--data", pipeline.data, *words, "--json").out)
        shown = cli(*compared, "--to", "table.md").err
    share = by_metric(line)["agreement"]["value"]
    assert f"it prefers the chosen answer of {100 * share:.1f} % of pairs" in " ".join(shown.split())
    assert "judge: j by pairwise-1 (" in (tmp_path / "table.md").read_text()
    assert "not AlpacaEval's LC" not in shown, "the answers of one side are all longer"


def test_a_recipe_closes_with_win_rates_by_its_judge(pipeline: Pipeline, cli: Cli, tmp_path: Path) -> None:
    """Where the judge listens is said to `adpa run`; the row that others are compared with is not judged."""
    (tmp_path / "judged.toml").write_text(f"""
student = "tiny"
data = "{pipeline.data}"
max-steps = 2
limit = 40
"sft.max_steps" = 2
"sft.limit" = 64
"dpo-teacher.max_steps" = 2
"dpo-teacher.limit" = 40
"rollout.max_new_tokens" = 12

[report]
suite = "win-rate"
judge = "j"
against = "Student"
data = "questions.jsonl"
{STUDENT_AND_DCKD}""")
    write_rows(tmp_path / "questions.jsonl", [{"instruction": f"Say {n}."} for n in range(5)])
    with judging(Judge(lambda messages: "A")) as judge:
        ran = cli("run", "judged.toml", "--judge-url", judge.url, "-y", "--json")
        assert ran.code == 0, ran.err
        shown = cli("run", "judged.toml", "--judge-url", judge.url, "-y")
    student, dckd = [line for line in map(json.loads, ran.out.splitlines()) if "scores" in line]
    assert "win_rate" not in {score["metric"] for score in student["scores"]}
    (rate,) = [score for score in dckd["scores"] if score["metric"] == "win_rate"]
    assert (rate["value"], rate["n"], rate["against"]) == (0.5, 5, "Student")
    assert "judge: j by pairwise-1 (" in " ".join(shown.err.split())
