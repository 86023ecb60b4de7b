"""`adpa import`: captures of DistillKit, written here by its documentation, and chat completions with top_logprobs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adpa_cli.data import distillkit, flat_yaml
from adpa_cli.data.chat import Encoder, Template
from adpa_cli.data.preferences import load_pairs
from adpa_cli.data.top_logprobs import spelling
from adpa_cli.engine.models import load_tokenizer
from adpa_cli.signal import SignalReader, token_hash
from adpa_cli.stages.names import open_sources
from adpa_cli.store.store import Store
from cli_samples import Cli, Pipeline

DOCUMENTED = """\
d: {d}
k: 12
exact_k: 4   # the values that are stored as they are
exact_dtype: bfloat16
polynomial_terms: [0, 1, "sqrt"]
term_dtype: float32
residual_bins:
- scale_dtype: float16
  element_bits: 8
  num_elements: 5
- element_bits: 3
  num_elements: 2
  scale_dtype: float32
delta_encoding: false
error_diffusion: false
"""


def bits(numbers: list[int], width: int) -> list[int]:
    """Integers as one stream of bits, highest first, filled up to whole bytes."""
    text = "".join(format(number, f"0{width}b") for number in numbers)
    text += "0" * (-len(text) % 8)
    return [int(text[i : i + 8], 2) for i in range(0, len(text), 8)]


def half(value: float) -> np.float32:
    """Rounded to bfloat16: the upper half of a float32."""
    return np.float32(np.frombuffer(np.float32(value).tobytes()[2:].rjust(4, b"\0"), "<f4")[0])


def encoded(logps: list[float]) -> tuple[list[int], list[float]]:
    """One position under DOCUMENTED: its bytes, and the values that they stand for."""
    exact = [half(value) for value in logps[:4]]
    data = b"".join(value.tobytes()[2:] for value in exact)
    t = np.arange(8, dtype=np.float64)
    curve = np.stack([t**0, t, np.sqrt(t)], axis=1)
    factors = np.linalg.lstsq(curve, np.array(logps[4:]), rcond=None)[0].astype("<f4")
    data += factors.tobytes()
    values = [float(value) for value in curve @ factors.astype(np.float64)]
    start = 0
    for kind, width, count in (("<f2", 8, 5), ("<f4", 3, 2)):
        left = [logps[4 + start + i] - values[start + i] for i in range(count)]
        scale = np.array([max(max(map(abs, left)) / 2 ** (width - 1), 1e-6)], dtype=kind)
        low, high = -(2 ** (width - 1)), 2 ** (width - 1) - 1
        numbers = [min(high, max(low, round(value / float(scale[0])))) for value in left]
        data += scale.tobytes() + bytes(bits([number - low for number in numbers], width))
        for i, number in enumerate(numbers):
            values[start + i] += number * float(scale[0])
        start += count
    return list(data), [*map(float, exact), *values]


@dataclass(frozen=True)
class Sequences:
    """The answers of the pipeline's pairs under its tokenizer, with made-up teachers."""

    model: str
    size: int
    rows: list[tuple[str, str, list[int], list[int]]]
    """Example id, part, prompt ids, answer ids."""


@pytest.fixture
def sequences(pipeline: Pipeline) -> Sequences:
    model = pipeline.made("aligned teacher")
    spec = Store.find(pipeline.store).resolve(model).spec
    encoder = Encoder(load_tokenizer(pipeline.store / model), Template(spec["template"], spec["end"]))
    pairs = load_pairs(open_sources([str(pipeline.data)]), "train").items
    rows = [
        (pair.id, part, encoder.prompt(pair.prompt), encoder.answer(getattr(pair, part)))
        for pair in pairs
        for part in ("chosen", "rejected")
    ]
    size = json.loads((pipeline.store / model / "config.json").read_text())["vocab_size"]
    return Sequences(model, size, rows)


def ranked(rng: np.random.Generator, size: int, k: int) -> tuple[list[int], list[float]]:
    logits = rng.normal(0, 3, size)
    logps = logits - np.log(np.exp(logits).sum())
    order = np.argsort(-logps)[:k]
    return order.tolist(), logps[order].tolist()


def write_capture(folder: Path, made: Sequences) -> dict[tuple[str, str], list[tuple[list[int], list[float]]]]:
    """A DistillKit capture of the sequences, with a padding token behind; by answer, what each position holds."""
    folder.mkdir()
    (folder / "compression_config.yaml").write_text(DOCUMENTED.format(d=made.size))
    rng, width = np.random.default_rng(0), int(np.ceil(np.log2(made.size)))
    columns: dict[str, list[Any]] = {"input_ids": [], "compressed_logprobs": [], "bytepacked_indices": []}
    expected = {}
    for example, part, prompt, answer in made.rows:
        tokens = [*prompt, *answer, 0]
        codes, packed, values = [], [], []
        for _ in tokens[1:]:
            ids, logps = ranked(rng, made.size, 12)
            code, meant = encoded(logps)
            codes.append(code)
            packed.append(bits(ids, width))
            values.append((ids, meant))
        for name, value in zip(columns, (tokens, codes, packed), strict=True):
            columns[name].append(value)
        expected[example, part] = values[len(prompt) - 1 :][: len(answer)]
    lists = {"input_ids": pa.list_(pa.uint64()), "compressed_logprobs": pa.list_(pa.list_(pa.uint8()))}
    lists["bytepacked_indices"] = lists["compressed_logprobs"]
    pq.write_table(pa.table({name: pa.array(v, lists[name]) for name, v in columns.items()}), folder / "data_0.parquet")
    return expected


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
    [("k: 12\n", "d"), ("d: 40\nk: 13\nexact_k: 14\n", "0 <= exact_k"), ("- 3\n", "a list without a name"),
     (DOCUMENTED.format(d=60).replace("exact_k: 4 ", "exact_k: 3 "), "bytes of log-probs"),
     ("legacy_logit_compression:\n  k: 3\n", "key: value")],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused(
    pipeline: Pipeline, cli: Cli, sequences: Sequences, tmp_path: Path, settings: str, expected: str
) -> None:
    small = Sequences(sequences.model, sequences.size, sequences.rows[:1])
    write_capture(tmp_path / "capture", small)
    (tmp_path / "other.yaml").write_text(settings.replace("d: 60", f"d: {sequences.size}"))
    assert expected in cli.refused(1, "import", "capture", "--format", "distillkit", "--settings", "other.yaml")


def test_every_kind_of_code_is_read() -> None:
    """One position worked by hand for each part of a code that DOCUMENTED lacks."""
    raw = {"d": 9, "k": 3, "exact_k": 1, "exact_dtype": "float64", "polynomial_terms": None, "delta_encoding": True,
           "residual_bins": [{"scale_dtype": "bfloat16", "element_bits": 1, "num_elements": 1}]}  # fmt: skip
    settings = distillkit.settings_of(raw, "here")
    code = np.frombuffer(np.float64(-0.25).tobytes() + np.float32(2.0).tobytes()[2:] + b"\x00", np.uint8)
    # -0.25, then a step of (2 · 0 - 1) · 2, then one of 0.
    np.testing.assert_allclose(distillkit.decode(code[None], settings), [[-0.25, -2.25, -2.25]])
    raw |= {"exact_k": 0, "polynomial_terms": [1, "exp"], "normalize_t": True, "residual_bins": [],
            "delta_encoding": False, "term_dtype": "float16"}  # fmt: skip
    code = np.frombuffer(np.array([-2, -1], "<f2").tobytes(), np.uint8)
    expected = [-2 * t - np.exp(t) for t in (0, 0.5, 1)]
    np.testing.assert_allclose(
        distillkit.decode(code[None], distillkit.settings_of(raw, "here"))[0], expected, rtol=2e-3
    )
    assert distillkit.unpack(np.array([[0b10101100, 0b01000000]], np.uint8), 5, 2).tolist() == [[21, 17]]
    assert flat_yaml.parse(DOCUMENTED)["polynomial_terms"] == [0, 1, "sqrt"]
    assert flat_yaml.parse("a:\n- 0\n- sqrt\nb: -1.5\nc: null\n") == {"a": [0, "sqrt"], "b": -1.5, "c": None}


def completion(tokenizer: Any, answer: list[int], rng: np.random.Generator, size: int) -> dict[str, Any]:
    """A chat completion; its tokens told by id, by bytes or by text in turn."""
    content = []
    for t, label in enumerate(answer):
        ids, logps = ranked(rng, size, 5 - (t == 1))

        def entry(token: int, logp: float, kind: int = t % 3) -> dict[str, Any]:
            text = tokenizer.convert_ids_to_tokens(token)
            told = (f"token_id:{token}", "?", text)[kind]
            return {"token": told, "logprob": logp, "bytes": list(text.encode()) if kind == 1 else None}

        own = dict(zip(ids, logps, strict=True)).get(label, -30.0)
        content.append({**entry(label, own), "top_logprobs": [entry(*x) for x in zip(ids, logps, strict=True)]})
    return {"choices": [{"logprobs": {"content": content}}]}


def test_chat_completions_are_matched_by_their_messages_and_hold_the_rest(
    pipeline: Pipeline, cli: Cli, sequences: Sequences, tmp_path: Path
) -> None:
    pairs = {pair.id: pair for pair in load_pairs(open_sources([str(pipeline.data)]), "train").items}
    tokenizer = load_tokenizer(pipeline.store / sequences.model)
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
            "line 1, position 2: the token 'no such word' is no id",
        ),
        (lambda c: c[1].update(token="", bytes=[]), 1, "position 1: a token without text"),
        (lambda c: c[0]["top_logprobs"].append(c[0]["top_logprobs"][0]), 1, "position 0: an id is listed twice"),
        (lambda c: c[0]["top_logprobs"][1].update(logprob=0.0), 1, "position 0: its tokens have a mass"),
        (lambda c: c[0].pop("top_logprobs"), 1, "position 0"),
        (lambda c: c.clear(), 1, "line 1: it has no logprobs.content"),
        (lambda c: c.pop(), 1, "the end, the data have id"),
    ],
)
def test_completions_that_cannot_be_read_name_line_and_position(
    pipeline: Pipeline, cli: Cli, sequences: Sequences, tmp_path: Path, change: Any, code: int, expected: str
) -> None:
    tokenizer = load_tokenizer(pipeline.store / sequences.model)
    made = completion(tokenizer, sequences.rows[0][3], np.random.default_rng(2), sequences.size)
    change(made["choices"][0]["logprobs"]["content"])
    (tmp_path / "one.jsonl").write_text(json.dumps(made) + "\n")
    words = ["import", "one.jsonl", "--format", "top-logprobs", "--model", sequences.model, "--data", pipeline.data]
    assert expected in cli.refused(code, *words)


def test_tokens_are_told_by_their_bytes() -> None:
    words = spelling(["Ġa", "â", "a", "▁a", "<|end|>"], {"<|end|>": 4}, byte_level=True)
    assert words.id_of({"token": "?", "bytes": [0x20, 0x61]}) == 0
    assert words.id_of({"token": "?", "bytes": [0xE2]}) == 1
    assert words.id_of({"token": "<|end|>"}) == 4
    pieces = spelling(["▁a", "<0x0A>", " a"], {}, byte_level=False)
    assert pieces.id_of({"token": "\n", "bytes": None}) == 1
    with pytest.raises(ValueError, match="is the ids 0, 2"):
        pieces.id_of({"token": " a"})
    with pytest.raises(ValueError, match="the vocabulary has 3"):
        pieces.id_of({"token": "token_id:3"})
