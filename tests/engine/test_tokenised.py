"""Tokenised tables: the same as row by row, made once for all processes, whole or not at all, and of little memory."""

from __future__ import annotations

import functools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adpa_cli.data import tables
from adpa_cli.data.chat import Encoder
from adpa_cli.data.examples import Message
from adpa_cli.data.templates import Template
from adpa_cli.data.tokenizer import Tokenizer
from adpa_cli.engine.layout import tokenised
from adpa_cli.engine.layout.examples import answers_for, dialogue_examples, dialogues_for, pair_answers, pair_examples
from adpa_cli.engine.training.schedule import step_rows
from adpa_cli.errors import DataError
from adpa_cli.hub import Located
from adpa_cli.hub.externals import dialogues_of, pairs_of
from adpa_cli.planning.chat_templates import TemplateChoice, template_in
from adpa_cli.spec import TrainSpec
from support.chat_families import FAMILIES

WORDS = [
    *("It", "is", "four,", "and", "three", "is", "seven.", "Bonjour", "!", "Ça", "va", "très", "bien"),
    *("你好，世界", "def", "add(left,", "right):", "1969"),
]
SYSTEMS, TURNS = ("You are brief.", ""), 3


def text(rng: random.Random, words: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(words))


@functools.cache
def family(name: str, folder: Path) -> tuple[Path, Template, Tokenizer]:
    saved = FAMILIES[name].save(folder / name)
    template = template_in(saved, TemplateChoice.of(None, None, None))
    assert template is not None
    return saved, template, Tokenizer.of(saved)


def chats(rows: int, names: Sequence[str], seed: int = 0) -> list[list[dict[str, str]]]:
    """Dialogues of one or several turns, short and long, of which some name special tokens."""
    rng, found = random.Random(seed), []
    for n in range(rows):
        turns = []
        for turn in range(rng.randrange(1, TURNS + 1)):
            said = text(rng, rng.choice((1, 4, 30)))
            turns.append({"role": "user", "content": f"{n} {turn} {said} {rng.choice((*names, '', ''))}"})
            turns.append({"role": "assistant", "content": text(rng, rng.choice((2, 9, 60))) + rng.choice(("\n ", ""))})
        found.append(turns)
    return found


def written(folder: Path, rows: Sequence[Any]) -> Located:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Located("data", "data:0", "rows.jsonl", (str(path),))


def pair_source(folder: Path, rows: int, names: Sequence[str] = ()) -> Located:
    rng = random.Random(1)
    return written(folder, [
        {"prompt": turns[:-1], "chosen": turns[-1:],
         "rejected": [{"role": "assistant", "content": text(rng, rng.choice((3, 80)))}]}
        for turns in chats(rows, names)
    ])  # fmt: skip


def spec_of(template: Template, **settings: Any) -> TrainSpec:
    given = {"max_length": 2048, "limit": None, "skip_bad_rows": True, **settings}
    spec: TrainSpec = TrainSpec.__new__(TrainSpec)
    for name, value in {"template": template.text, "end": template.end, "truncation": "pair", **given}.items():
        object.__setattr__(spec, name, value)
    return spec


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADPA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=["one core", "all cores"])
def cores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of making a table, in batches of which several are needed."""
    monkeypatch.setattr(tokenised, "MUCH_TEXT", 0 if request.param == "all cores" else 1e9)
    monkeypatch.setattr(tokenised, "BATCH", 16)
    return str(request.param)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("truncation", "longest"), [("pair", 48), ("pair", 4096), ("answer", 48)])
def test_pairs_have_the_ids_that_they_have_row_by_row(
    name: str, truncation: str, longest: int, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, template, tokenizer = family(name, tmp_path_factory.getbasetemp() / "tokenised")
    source = pair_source(tmp_path, 40, tokenizer.specials[:2])
    spec = spec_of(template, max_length=longest, truncation=truncation)
    items = list(pairs_of(source.where, "train", None, True, template.text).items)
    expected = pair_answers(items, Encoder(tokenizer, template), longest, spec.truncation, "rows.jsonl")
    made = answers_for(spec, source, "train", folder)
    assert made.cut == expected.cut
    assert longest > 48 or made.cut.cut > 0
    for part in ("chosen", "rejected"):
        ours, theirs = made.of(part), expected.of(part)
        assert list(ours) == theirs
        assert list(ours.answer_keys()) == [answer.key for answer in theirs]
        assert ours.prompts.tolist() == [len(answer.prompt) for answer in theirs]
        assert ours.tokens.tolist() == [len(answer.answer) for answer in theirs]
        for n, answer in enumerate(theirs):
            own, other = ours.sequence(n), answer.sequence()
            assert own.ids.tolist() == other.ids.tolist()
            assert own.answer.tolist() == other.answer.tolist()


@pytest.mark.parametrize("name", FAMILIES)
def test_dialogues_have_the_ids_and_masks_that_they_have_row_by_row(
    name: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, template, tokenizer = family(name, tmp_path_factory.getbasetemp() / "tokenised")
    source = written(tmp_path, [{"messages": turns} for turns in chats(60, tokenizer.specials[:2])])
    for longest in (40, 4096):
        items = list(dialogues_of(source.where, "train", None, True, template.text).items)
        expected, cut = dialogue_examples(items, Encoder(tokenizer, template), longest, "rows.jsonl")
        made, lost = dialogues_for(spec_of(template, max_length=longest), source, "train", folder)
        assert lost == cut
        assert len(made) == len(expected) > 0
        for own, other in zip(made, expected, strict=True):
            assert own.id == other.id
            assert own.parts["chosen"].ids.tolist() == other.parts["chosen"].ids.tolist()
            assert own.parts["chosen"].answer.tolist() == other.parts["chosen"].answer.tolist()


def test_other_processes_make_what_this_one_makes(
    cores: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, template, tokenizer = family("qwen2.5", tmp_path_factory.getbasetemp() / "tokenised")
    source = pair_source(tmp_path, 90)
    spec = spec_of(template, max_length=64)
    items = list(pairs_of(source.where, "train", None, True, template.text).items)
    expected = pair_answers(items, Encoder(tokenizer, template), 64, "pair", "rows.jsonl")
    made = answers_for(spec, source, "train", folder)
    assert (list(made.chosen), list(made.rejected), made.cut) == (expected.chosen, expected.rejected, expected.cut)
    assert len(made.chosen.table.starts) > 3
    refused = spec_of(template, max_length=1, truncation="answer")
    with pytest.raises(DataError, match=rf"rows\.jsonl row {items[0].row}, chosen: .* do not fit into 1") as raised:
        answers_for(refused, source, "train", folder)
    assert raised.value.hint.startswith("--set max_length=")


def test_examples_are_those_of_the_step(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder, template, _ = family("qwen2.5", tmp_path_factory.getbasetemp() / "tokenised")
    source, spec = pair_source(tmp_path, 40), spec_of(template, batch_size=7, seed=3, epochs=1.0)
    examples = pair_examples(spec, source, "train", folder)
    every = list(examples)
    for step in range(3):
        rows = step_rows(len(every), spec, step)
        assert [examples[row].id for row in rows] == [every[row].id for row in rows]
        assert [e.id for e in examples.at(np.array(rows))] == [every[row].id for row in rows]
    assert [e.id for e in examples[1::2]] == [e.id for e in every[1::2]]
    assert examples.lengths.max(0).tolist() == [e.length for e in every]


def test_a_table_is_made_once_and_made_again_when_it_is_gone(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, empty_cache: Path
) -> None:
    folder, template, _ = family("qwen2.5", tmp_path_factory.getbasetemp() / "tokenised")
    source, spec = pair_source(tmp_path, 30), spec_of(template)
    asked: list[Any] = []
    answered = Encoder.answered
    monkeypatch.setattr(
        Encoder, "answered", lambda self, prompt, *texts: asked.append(prompt) or answered(self, prompt, *texts)
    )
    first = answers_for(spec, source, "train", folder)
    once = len(asked)
    assert once == len(first.chosen) > 0
    shutil.copy(source.where[0], tmp_path / "copy.jsonl")
    copy = Located("data", "data:0", "copy", (str(tmp_path / "copy.jsonl"),))
    for where in (source, copy):
        assert list(answers_for(spec, where, "train", folder).rejected) == list(first.rejected)
    assert len(asked) == once
    shutil.rmtree(empty_cache)
    assert first.chosen[0].answer  # what is mapped stays
    assert len(asked) == once
    again = answers_for(spec, source, "train", folder)
    assert len(asked) == 2 * once
    assert list(again.chosen) == list(first.chosen)
    answers_for(spec_of(template, max_length=32), source, "train", folder)
    assert len(asked) == 3 * once


def test_a_damaged_table_is_made_again_and_a_cache_that_cannot_be_written_is_done_without(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, empty_cache: Path
) -> None:
    folder, template, _ = family("qwen2.5", tmp_path_factory.getbasetemp() / "tokenised")
    source, spec = pair_source(tmp_path, 30), spec_of(template)
    first = list(answers_for(spec, source, "train", folder).chosen)
    (table,) = (empty_cache / "tokens").iterdir()
    os.truncate(table / tables.ROWS, 100)
    assert list(answers_for(spec, source, "train", folder).chosen) == first
    (tmp_path / "file").touch()
    monkeypatch.setenv("ADPA_CACHE", str(tmp_path / "file"))
    assert list(answers_for(spec, source, "train", folder).chosen) == first


PROGRAM = """
import hashlib, json, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from adpa_cli.engine.layout import tokenised
from adpa_cli.engine.layout.examples import answers_for
from adpa_cli.data import tables
from adpa_cli.data.chat import Encoder
from adpa_cli.data.templates import Template
from adpa_cli.hub import Located
from engine.test_tokenised import spec_of
if __name__ == "__main__":
    _, where, folder, text, end, pause = sys.argv[1:]
    asked, answered = [], Encoder.answered
    def slowly(self, prompt, *texts):
        asked.append(prompt)
        time.sleep(float(pause))
        return answered(self, prompt, *texts)
    Encoder.answered = slowly
    print("begun", flush=True)
    made = answers_for(spec_of(Template(text, end)), Located("data", "data:0", "rows", (where,)), "train", Path(folder))
    digest, tokens = hashlib.sha256(), sum(made.rejected.tokens.tolist())
    for key in made.chosen.answer_keys():
        digest.update(str(key).encode())
    private = next(l for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("RssAnon"))
    print(json.dumps([len(asked), len(made.chosen), [digest.hexdigest(), tokens], int(private.split()[1])]))
"""


def started(source: Located, folder: Path, template: Template, pause: float = 0.0) -> subprocess.Popen[str]:
    words = [str(Path(__file__).parents[1]), *source.where, str(folder), template.text, template.end, str(pause)]
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *words], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    )


def said(process: subprocess.Popen[str]) -> Any:
    out, _ = process.communicate(timeout=100)
    assert process.returncode == 0
    return json.loads(out.splitlines()[-1])


def test_one_of_two_processes_makes_a_table_and_the_other_waits(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, template, _ = family("qwen2.5", tmp_path_factory.getbasetemp() / "tokenised")
    source = pair_source(tmp_path, 40)
    both = [said(process) for process in [started(source, folder, template, 0.02) for _ in range(2)]]
    assert sorted(asked for asked, *_ in both) == [0, both[0][1]]
    assert both[0][1:3] == both[1][1:3]


def test_of_a_killed_maker_nothing_is_seen_and_nothing_stays(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, empty_cache: Path
) -> None:
    folder, template, _ = family("qwen2.5", tmp_path_factory.getbasetemp() / "tokenised")
    source = pair_source(tmp_path, 40)
    process = started(source, folder, template, 0.05)
    deadline = time.monotonic() + 60
    while not list(empty_cache.glob("tokens/.*/*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [path for path in empty_cache.glob("tokens/*") if path.suffix != ".lock" and path.name[0] != "."] == []
    asked, rows, *_ = said(started(source, folder, template))
    assert asked == rows > 0
    (only,) = (empty_cache / "tokens").iterdir()
    assert {path.name for path in only.iterdir()} == {tables.ROWS, tables.ABOUT}


def test_rows_cost_little_private_memory(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder, template, _ = family("qwen2.5", tmp_path_factory.getbasetemp() / "tokenised")
    private = {}
    for rows in (1_000, 8_000):
        (tmp_path / str(rows)).mkdir()
        line = {"prompt": "What is two and two?", "chosen": "It is four.", "rejected": "It is it."}
        source = written(tmp_path / str(rows), [{**line, "prompt": f"{n} {line['prompt']}"} for n in range(rows)])
        said(started(source, folder, template))
        asked, made, _, private[rows] = said(started(source, folder, template))
        assert (asked, made) == (0, rows - min(500, rows // 20))
    assert 1024 * (private[8_000] - private[1_000]) / 7_000 < 250


def test_system_turns_and_prompts_that_several_rows_share_stay_what_they_are(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, template, tokenizer = family("qwen2.5", tmp_path_factory.getbasetemp() / "tokenised")
    asked = [{"role": "system", "content": "You are brief."}, {"role": "user", "content": "Two?"}]
    rows = [{"prompt": asked, "chosen": f"It is {n}.", "rejected": f"No {n}."} for n in range(5)]
    rows += [{**row, "prompt": [asked[1]]} for row in rows]
    source = written(tmp_path, rows)
    made = answers_for(spec_of(template), source, "train", folder)
    encoder = Encoder(tokenizer, template)
    for pair, answer in zip(pairs_of(source.where, "train", None, True, template.text).items, made.chosen, strict=True):
        assert list(answer.prompt) == encoder.prompt([Message(m.role, m.content) for m in pair.prompt])
