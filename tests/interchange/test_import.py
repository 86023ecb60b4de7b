"""`adpa import`: captures of DistillKit, written here by its documentation, and chat completions with top_logprobs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from adpa_cli.data.chat import Encoder
from adpa_cli.data.preferences import load_pairs
from adpa_cli.data.templates import Template
from adpa_cli.data.tokenizer import Tokenizer
from adpa_cli.hub.externals import open_sources
from adpa_cli.signal.rows import token_hash
from adpa_cli.signal.shard import SignalReader
from adpa_cli.store.store import Store
from support.cli_samples import Cli, Pipeline
from support.import_samples import DOCUMENTED, Sequences, completion, ranked, write_capture


@pytest.fixture
def sequences(pipeline: Pipeline) -> Sequences:
    model = pipeline.made("aligned teacher")
    spec = Store.find(pipeline.store).resolve(model).spec
    encoder = Encoder(Tokenizer.of(pipeline.store / model), Template(spec["template"], spec["end"]))
    pairs = load_pairs(open_sources([str(pipeline.data)]), "train").items
    rows = [
        (pair.id, part, encoder.prompt(pair.prompt), encoder.answer(pair.prompt, getattr(pair, part)))
        for pair in pairs
        for part in ("chosen", "rejected")
    ]
    size = json.loads((pipeline.store / model / "config.json").read_text())["vocab_size"]
    return Sequences(model, size, rows)


def test_a_capture_of_distillkit_is_keyed_by_its_data_and_trains(
    pipeline: Pipeline, cli: Cli, sequences: Sequences, tmp_path: Path
) -> None:
    expected = write_capture(tmp_path / "capture", sequences)
    words = ["import", "capture", "--format", "distillkit", "--model", sequences.model, "--data", pipeline.data]
    ref = cli(*words, "--precision", "0").ref
    assert cli(*words, "--precision", "0").ref == ref
    reader = SignalReader(pipeline.store / ref)
    assert len(reader) == len(expected) == len(sequences.rows)
    rows = {(key.example_id, key.part): (key, shard.read(i, raw=True)) for shard in reader.shards
            for i, key in enumerate(shard.keys)}  # fmt: skip
    for example, part, prompt, answer in sequences.rows:
        key, found = rows[example, part]
        assert key.tokens == token_hash(prompt, answer)
        assert found.label_ids.tolist() == answer
        for t, (ids, values) in enumerate(expected[example, part]):
            here = dict(zip(found.ids[t].tolist(), found.logps[t].tolist(), strict=True))
            assert here == pytest.approx(dict(zip(ids, (min(v, 0.0) for v in values), strict=True)), abs=1e-5)
            mass = sum(np.exp(v) for v in here.values())
            assert np.exp(found.rest_logps[t]) == pytest.approx(max(0.0, 1 - mass), abs=1e-5)
            assert float(found.label_logps[t]) == here.get(answer[t], -np.inf)
    manifest = Store.find(pipeline.store).resolve(ref)
    assert manifest.spec["imported"] == "distillkit"
    assert manifest.spec["settings"]["exact_k"] == 4
    assert manifest.spec["parts"] == ["chosen", "rejected"]
    assert manifest.sources[manifest.inputs["captured"]]["name"] == "data_0.parquet"
    trained = cli(
        "distill", "--method", "dckd", "--student", pipeline.made("student"), "--cache", ref, "--max-steps", "2",
        "--no-eval",
    )  # fmt: skip
    assert trained.ref.startswith("distill/")
    words = ["distill", "--student", pipeline.made("student"), "--cache", ref, "--max-steps", "2", "--no-eval"]
    assert "train with dckd or vanilla-kd" in cli.refused(1, *words, "--method", "atkd")
    assert "imported" in cli.refused(2, "show", ref, "--fidelity", "--teacher", "recorded")
    assert "made by: adpa import capture" in cli.refused(3, "show", ref, "--recipe")
    assert cli("show", trained.ref, "--recipe").code == 0
    for form in ([], ["--row", "1"], ["--fidelity"]):
        assert cli("show", ref, *form).code == 0


def test_rows_of_other_data_are_named_or_left_out(
    pipeline: Pipeline, cli: Cli, sequences: Sequences, tmp_path: Path
) -> None:
    example, part, prompt, answer = sequences.rows[0]
    other = Sequences(sequences.model, sequences.size, [(example, part, prompt, [9, *answer[1:]]), *sequences.rows[1:]])
    write_capture(tmp_path / "capture", other)
    words = ["import", "capture", "--format", "distillkit", "--model", sequences.model, "--data", pipeline.data]
    said = cli.refused(1, *words)
    assert f"1 of {len(other.rows)} rows" in said
    assert "data_0.parquet row 1: differs from" in said
    assert "token" in said
    kept = SignalReader(pipeline.store / cli(*words, "--skip-bad-rows").ref)
    assert len(kept) == len(other.rows) - 1
    alone = cli("import", "capture", "--format", "distillkit").ref
    keys = [key for shard in SignalReader(pipeline.store / alone).shards for key in shard.keys]
    first = [*prompt, 9, *answer[1:], 0]
    assert keys[0].tokens == token_hash(first[:1], first[1:])
    assert keys[0].part == "text"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [("k: 12\n", "d"), ("d: 40\nk: 13\nexact_k: 14\n", "0 <= exact_k"),
     ("- 3\n", "other.yaml: the file holds no settings"),
     ("d: [\n", "other.yaml: while parsing a flow node"),
     (DOCUMENTED.format(d=60).replace("exact_k: 4 ", "exact_k: 3 "), "bytes of log-probs"),
     ("legacy_logit_compression:\n  k: 3\n", "a legacy capture, whose logits cannot be")],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused(
    pipeline: Pipeline, cli: Cli, sequences: Sequences, tmp_path: Path, settings: str, expected: str
) -> None:
    small = Sequences(sequences.model, sequences.size, sequences.rows[:1])
    write_capture(tmp_path / "capture", small)
    (tmp_path / "other.yaml").write_text(settings.replace("d: 60", f"d: {sequences.size}"))
    assert expected in cli.refused(1, "import", "capture", "--format", "distillkit", "--settings", "other.yaml")


def test_chat_completions_are_matched_by_their_messages_and_hold_the_rest(
    pipeline: Pipeline, cli: Cli, sequences: Sequences, tmp_path: Path
) -> None:
    pairs = {pair.id: pair for pair in load_pairs(open_sources([str(pipeline.data)]), "train").items}
    tokenizer = AutoTokenizer.from_pretrained(pipeline.store / sequences.model)
    rng, lines = np.random.default_rng(1), []
    for example, _, _, answer in sequences.rows:
        turns = [vars(turn) for turn in pairs[example].prompt]
        lines.append({"messages": turns, "response": completion(tokenizer, answer, rng, sequences.size)})
    path = tmp_path / "answers.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    words = ["import", path, "--format", "top-logprobs", "--model", sequences.model, "--data", pipeline.data]
    reader = SignalReader(pipeline.store / cli(*words, "--precision", "0").ref)
    assert (len(reader), reader.spec.k) == (len(lines), 5)
    rng = np.random.default_rng(1)
    rows = {(key.example_id, key.part): shard.read(i, raw=True) for shard in reader.shards
            for i, key in enumerate(shard.keys)}  # fmt: skip
    for example, part, _, answer in sequences.rows:
        found = rows[example, part]
        for t, label in enumerate(answer):
            ids, logps = ranked(rng, sequences.size, 5 - (t == 1))
            here = {int(i): float(v) for i, v in zip(found.ids[t], found.logps[t], strict=True) if np.isfinite(v)}
            assert here == pytest.approx(dict(zip(ids, logps, strict=True)), abs=1e-5)
            own = here.get(label, -30.0)
            assert found.label_logps[t] == pytest.approx(own, abs=1e-5)
            rest = 1 - sum(np.exp(list(here.values()))) - (0 if label in here else np.exp(own))
            assert np.exp(found.rest_logps[t]) == pytest.approx(rest, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "code", "expected"),
    [
        (
            lambda c: c[2].update(token="no such word", bytes=None),
            1,
            "line 1, position 2: the token 'no such word' is not in the vocabulary",
        ),
        (lambda c: c[1].update(token="", bytes=[]), 1, "position 1: the token has no text"),
        (
            lambda c: c[0]["top_logprobs"].append(c[0]["top_logprobs"][0]),
            1,
            "position 0: top_logprobs lists one token twice",
        ),
        (
            lambda c: c[0]["top_logprobs"][1].update(logprob=0.0),
            1,
            "position 0: the probabilities of its tokens sum to",
        ),
        (lambda c: c[0].pop("top_logprobs"), 1, "position 0"),
        (lambda c: c.clear(), 1, "line 1: the choice has no logprobs.content"),
        (lambda c: (c.pop(), c.pop()), 1, "the end, the data have id"),
    ],
)
def test_completions_that_cannot_be_read_name_line_and_position(
    pipeline: Pipeline, cli: Cli, sequences: Sequences, tmp_path: Path, change: Any, code: int, expected: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(pipeline.store / sequences.model)
    made = completion(tokenizer, sequences.rows[0][3], np.random.default_rng(2), sequences.size)
    change(made["choices"][0]["logprobs"]["content"])
    (tmp_path / "one.jsonl").write_text(json.dumps(made) + "\n")
    words = ["import", "one.jsonl", "--format", "top-logprobs", "--model", sequences.model, "--data", pipeline.data]
    assert expected in cli.refused(code, *words)
