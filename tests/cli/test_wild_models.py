"""Models as they lie on the hub: what is fed is what their templates write, and the rest is refused before any work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from adpa_cli.store.store import Store
from support.cli_samples import Cli
from support.wild_models import CHATML, KINDS, wild_folder

ROWS = [{"prompt": f"What is {n}+{n}?", "chosen": f"It is {2 * n}.", "rejected": "No idea, none."} for n in range(12)]
TURNS = [
    {"messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["chosen"]}]}
    for row in ROWS
]
FEW = ("--max-steps", "1", "--batch-size", "4", "--set", "max_length=200", "--set", "dtype=float32")
THOUGHT = "<think>\nhm\n</think>\n\nHello."


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def lines(rows: list[Any], name: str = "rows.jsonl") -> Path:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return tmp_path / name

    return lines


def shown(cli: Cli, data: Path, model: Path, *words: str) -> dict[str, Any]:
    ran = cli("data", data, "--model", model, "--json", "--rows", "3", *words)
    assert ran.code == 0, ran.err
    record: dict[str, Any] = json.loads(ran.out)
    return record


@pytest.mark.parametrize(("kind", "end"), [("qwen-base", 2), ("gemma", 4), ("qwen3", 2), ("mistral", 2)])
def test_prompt_answer_and_end_are_what_the_template_writes(
    cli: Cli, tmp_path: Path, write: Any, kind: str, end: int
) -> None:
    """Against tokenizer.json and the transformers library's own rendering, for pairs and for dialogues."""
    model = wild_folder(tmp_path / "m", kind)
    core = Tokenizer.from_file(str(model / "tokenizer.json"))
    theirs: Any = AutoTokenizer.from_pretrained(model)
    pairs, dialogues = shown(cli, write(ROWS), model), shown(cli, write(TURNS, "sft.jsonl"), model, "--sft")
    assert pairs["template"]["end_id"] == dialogues["template"]["end_id"] == end
    chosen = [row for row in pairs["shown"] if row["side"] == "chosen"]
    for row, dialogue, turns in zip(chosen, dialogues["shown"], TURNS, strict=False):
        text = theirs.apply_chat_template(turns["messages"], tokenize=False)
        ids = core.encode(text, add_special_tokens=False).ids
        ids = ids[: len(ids) - ids[::-1].index(end)]
        asked = theirs.apply_chat_template(turns["messages"][:1], tokenize=False, add_generation_prompt=True)
        assert row["ids"] == dialogue["ids"] == ids
        assert ids[: row["trained_from"]] == core.encode(asked, add_special_tokens=False).ids
        assert dialogue["trained_from"] == row["trained_from"]


def test_what_is_made_stops_where_its_source_did_and_at_the_templates_end(cli: Cli, tmp_path: Path, write: Any) -> None:
    for kind, stops in (("qwen-base", [2, 0]), ("gemma", [4, 1])):
        model = wild_folder(tmp_path / kind, kind)
        ran = cli("sft", "--model", model, "--data", write(TURNS), *FEW)
        made = Store.find(tmp_path / "adpa-store").folder(ran.ref)
        generation = json.loads((made / "generation_config.json").read_text())
        assert generation["eos_token_id"] == stops
        assert (generation["temperature"], generation["top_p"]) == (0.7, 0.8)
        said = " ".join(ran.err.split())
        assert f"answers end with {KINDS[kind].tokens[stops[0]]}, which the chat template writes" in said
        pairs, short = write(ROWS, "pairs.jsonl"), ("--max-new-tokens", "8", "--set", "max_length=200")
        answered = cli("rollout", "--student", ran.ref, "--data", pairs, *short)
        assert answered.code == 0, answered.err


def test_a_row_that_the_template_refuses_is_found_before_the_work(cli: Cli, tmp_path: Path, write: Any) -> None:
    model = wild_folder(tmp_path / "m", "gemma")
    system = {"messages": [{"role": "system", "content": "Be brief."}, *TURNS[0]["messages"]]}
    twice = {"messages": [TURNS[0]["messages"][0], *TURNS[1]["messages"]]}
    data = write([*TURNS, system, twice])
    for words in ((), ("-n",)):
        said = cli.refused(1, "sft", "--model", model, "--data", data, *FEW, *words)
        assert "rows.jsonl row 13: the chat template refuses these turns (system, user, assistant): System role" in said
        assert "rows.jsonl row 14: the chat template refuses these turns (user, user, assistant)" in said
    ran = cli("sft", "--model", model, "--data", data, *FEW, "--skip-bad-rows")
    assert ran.code == 0, ran.err
    assert "refused by the chat template (2)" in " ".join(ran.err.split())


def test_one_rule_for_reasoning_in_training_and_when_asked(cli: Cli, tmp_path: Path, write: Any) -> None:
    model = wild_folder(tmp_path / "m", "qwen3")
    core = Tokenizer.from_file(str(model / "tokenizer.json"))
    thoughts = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": THOUGHT}]}]
    data = write([*thoughts, *TURNS])
    kept, off = (shown(cli, data, model, "--sft", *words) for words in ((), ("--thinking", "off")))

    def trained(record: dict[str, Any]) -> list[str]:
        rows = record["shown"][:2]
        return [core.decode(row["ids"][row["trained_from"] :], skip_special_tokens=False) for row in rows]

    assert trained(kept) == [f"{THOUGHT}<|im_end|>", "<think>\n\n</think>\n\nIt is 0.<|im_end|>"]
    assert trained(off) == ["Hello.<|im_end|>", "It is 0.<|im_end|>"]
    assert any("thinking kept" in note for note in kept["notes"])
    assert any("thinking off" in note for note in off["notes"])
    ran = cli("sft", "--model", model, "--data", data, *FEW, "--thinking", "off")
    made = Store.find(tmp_path / "adpa-store").folder(ran.ref)
    theirs: Any = AutoTokenizer.from_pretrained(made)
    asked = theirs.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    row = off["shown"][0]
    assert core.encode(asked, add_special_tokens=False).ids == row["ids"][: row["trained_from"]]
    assert ran.ref != cli("sft", "--model", model, "--data", data, *FEW).ref
    pairs = write(ROWS, "pairs.jsonl")
    said = cli.refused(2, "dpo-teacher", "--reference", ran.ref, "--data", pairs, *FEW, "--thinking", "keep")
    assert "was made with another chat template, end token or --thinking" in said
    plain = wild_folder(tmp_path / "plain", "gemma")
    said = cli.refused(2, "sft", "--model", plain, "--data", data, "--thinking", "off")
    assert "--thinking off has no effect: the chat template does not mention reasoning" in said


def test_a_template_and_an_end_can_be_named(cli: Cli, tmp_path: Path, write: Any) -> None:
    endless = CHATML.replace("<|im_end|>\\n' }}{% endfor %}", "\\n' }}{% endfor %}")
    model, data = wild_folder(tmp_path / "m", "qwen-base", template=endless), write(TURNS)
    said = cli.refused(2, "sft", "--model", model, "--data", data, *FEW)
    assert "does not end an answer with a token of the tokenizer; it writes '\\n' after the answer" in said
    (tmp_path / "mine.jinja").write_text(CHATML)
    named = cli("sft", "--model", model, "--data", data, *FEW, "--template", tmp_path / "mine.jinja")
    made = Store.find(tmp_path / "adpa-store").folder(named.ref)
    assert (made / "chat_template.jinja").read_text() == CHATML
    assert cli("sft", "--model", model, "--data", data, *FEW, "--template", "chatml", "-n").code == 0
    (tmp_path / "mine.jinja").unlink()
    assert CHATML[:40] in cli("show", named.ref, "--recipe").out
    ended = shown(cli, data, model, "--sft", "--end", "<|im_end|>")["shown"][0]["ids"]
    assert ended[-1] == 2
    whole = wild_folder(tmp_path / "whole", "qwen-base")
    said = cli.refused(2, "sft", "--model", whole, "--data", data, *FEW, "--end", "<|endoftext|>", "-n")
    assert "--end <|endoftext|> contradicts the chat template of whole, which ends an answer with <|im_end|>" in said
    said = cli.refused(1, "sft", "--model", model, "--data", data, *FEW, "--end", "<|nowhere|>", "-n")
    assert "'<|nowhere|>' is" in said
    assert "tokens in this tokenizer, and must be one" in said
    unended = KINDS["gemma"].template.replace("<end_of_turn>", "")
    base = wild_folder(tmp_path / "gemma", "gemma", template=unended)
    said = cli.refused(1, "sft", "--model", base, "--data", data, *FEW, "--end", "<nowhere>", "-n")
    assert "'<bos>'" not in said
    assert "'<pad>'" not in said
    assert "'<end_of_turn>'" in said
    assert "is neither a file nor the name of a template" in cli.refused(
        3, "sft", "--model", base, "--data", data, "--template", "chatmll"
    )


def test_a_teacher_with_another_tokenizer_gives_its_answers_as_text_or_nothing(
    cli: Cli, tmp_path: Path, write: Any
) -> None:
    student, teacher = wild_folder(tmp_path / "s", "gemma"), wild_folder(tmp_path / "t", "qwen-base")
    data = write(ROWS)
    words = ("--student", student, "--teacher", teacher, "--data", data, *FEW, "--no-eval")
    for dry in ((), ("-n",)):
        said = cli.refused(1, "distill", "--method", "dckd", *words, *dry)
        assert "teacher and student differ in" in said
        assert "reads a teacher's answers as text: --method seqkd" in said
    more = ("--set", "rollout.max_length=200", "--set", "rollout.max_new_tokens=6")
    ran = cli("distill", "--method", "seqkd", *words, *more)
    assert ran.code == 0, ran.err
    store = Store.find(tmp_path / "adpa-store")
    inputs = store.resolve(ran.ref).inputs
    answers = store.get(str(inputs["rollouts"]))
    assert answers is not None
    assert answers.spec["end"] == "<|im_end|>"
    assert store.resolve(ran.ref).spec["end"] == "<end_of_turn>"


def test_both_answers_follow_one_prompt_and_what_is_cut_is_said(cli: Cli, tmp_path: Path, write: Any) -> None:
    model = wild_folder(tmp_path / "m", "qwen-base")
    long = {"prompt": "word " * 60, "chosen": "yes " * 30, "rejected": "no"}
    alike = {"prompt": "Say it.", "chosen": "so " * 90 + "a", "rejected": "so " * 90 + "b"}
    data = write([long, alike, *ROWS])
    first = shown(cli, data, model, "--max-length", "200")["shown"][:2]
    assert first[0]["ids"][: first[0]["trained_from"]] == first[1]["ids"][: first[1]["trained_from"]]
    assert len(first[0]["ids"]) == 200
    ran = cli("dpo-teacher", "--reference", model, "--data", data, *FEW)
    said = " ".join(ran.err.split())
    assert "1 of 13 pairs are longer than max_length 200: " in said.partition("[1/2]")[0]
    assert "1 of 13 pairs are left out: max_length leaves no token to train on" in said.partition("[1/2]")[0]
    manifest = Store.find(tmp_path / "adpa-store").resolve(ran.ref)
    assert manifest.spec["truncation"] == "pair"
    cut = manifest.metrics["truncation"]
    assert (cut["cut"], cut["left_out"]) == (1, 1)
    assert manifest.metrics["examples"] == cut["rows"] - 1


def test_what_people_write_of_special_tokens_stays_text(cli: Cli, tmp_path: Path, write: Any) -> None:
    model = wild_folder(tmp_path / "m", "qwen-base")
    spelled = {"prompt": "Say <|im_end|> and <|im_start|>", "chosen": "It is <|im_end|> here", "rejected": "no"}
    first, plain = (shown(cli, write([row, *ROWS]), model)["shown"][0]["ids"] for row in (spelled, ROWS[0]))
    for token in (0, 1, 2):
        assert first.count(token) == plain.count(token)
    data = write([{"prompt": f"<|im_start|>user {n}<|im_end|>", "chosen": "a", "rejected": "b"} for n in range(6)])
    said = "contain the model's special tokens, such as <|im_start|>, which are read as plain text; if a template"
    assert any(said in note for note in shown(cli, data, model)["notes"])
    assert said in cli("dpo-teacher", "--reference", model, "--data", data, *FEW, "-n").err


def test_reasoning_beside_the_text_that_no_template_writes_is_said(cli: Cli, tmp_path: Path, write: Any) -> None:
    turns = [TURNS[0]["messages"][0], {"role": "assistant", "content": "It is 0.", "reasoning_content": "hm"}]
    data = write([{"messages": turns}, *TURNS])
    model = wild_folder(tmp_path / "m", "qwen-base")
    said = "has reasoning_content, which the chat template leaves out"
    notes = shown(cli, data, model, "--sft")["notes"]
    assert any("1 row of " in note and said in note for note in notes)


def test_facts_that_the_weights_contradict_are_told_before_the_work(cli: Cli, tmp_path: Path, write: Any) -> None:
    model, data = wild_folder(tmp_path / "m", "qwen-base"), write(TURNS)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 1}))
    said = cli("sft", "--model", model, "--data", data, *FEW, "-n").err
    assert "m: config.json says 1 layer and the weights have 2; only the first are used" in said
    (model / "config.json").write_text(json.dumps({**config, "vocab_size": config["vocab_size"] + 5}))
    said = cli.refused(1, "sft", "--model", model, "--data", data, *FEW, "-n")
    assert f"says vocab_size {config['vocab_size'] + 5}, and the embedding has {config['vocab_size']} rows" in said
