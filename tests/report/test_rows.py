"""Single rows of signals, rollouts and evaluations, from real artifacts in a real store."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import zstandard
from tokenizers import AddedToken, Tokenizer, decoders, models

from adpa_cli.data.examples import Message
from adpa_cli.engine.layout.examples import ROWS, Rollout, write_rollouts
from adpa_cli.errors import Corrupt, NotFound, UsageError
from adpa_cli.report import rows, text
from adpa_cli.report import signal_rows as tokens
from adpa_cli.report.signal_rows import SAMPLE
from adpa_cli.signal.rows import AnswerKey, SignalRows, SignalSpec, difference_of, token_hash
from adpa_cli.signal.shard import write_shard
from adpa_cli.sizes import spread
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store
from support.signal_samples import sample_answers, spec_of
from support.store_samples import DATA, MODEL, make, new_store, recipe

WORDS = ["<end>", "Sure", "Certainly", "Yeah", "\n", "hello", "é", "日本"]
HOSTILE = "line one\n\x1b[31mred\u202e and " + "long " * 40


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return new_store(tmp_path)


def word_tokenizer() -> Tokenizer:
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<end>"))
    inner.add_special_tokens([AddedToken("<end>", special=True)])
    return inner


def pack(inner: Tokenizer) -> bytes:
    return zstandard.ZstdCompressor().compress(inner.to_str().encode())


def hand_rows(pair: bool = True) -> SignalRows:
    """Two tokens over 8 words, k = 2.

    Token 0 is "Sure" (1), among the ids {1, 2}; token 1 is "Yeah" (3), outside the ids {0, 4}.
    """
    probabilities = np.array([[0.5, 0.25], [0.6, 0.2]])
    logps = np.log(probabilities).astype(np.float32)
    label = np.log(np.array([0.5, 0.1])).astype(np.float32)
    rest = np.log(np.array([0.25, 0.1])).astype(np.float32)
    base = (np.array([[1, 2], [0, 4]], np.int32), logps, np.array([1, 3], np.int32), label, rest)
    if not pair:
        return SignalRows(*base)
    reference = np.log(np.array([[0.4, 0.05], [0.3, 0.4]])).astype(np.float32)
    kth = np.log(np.array([0.3, 0.3])).astype(np.float32)  # floors id 2 of token 0
    own, other = np.log(np.array([0.4, 0.2])), np.log(np.array([0.55, 0.1]))
    return SignalRows(
        *base, difference_of(logps, reference), reference >= kth[:, None], kth, own.astype(np.float32),
        other.astype(np.float32),
    )  # fmt: skip


def rollouts() -> list[Rollout]:
    turns = (Message("system", "Be kind."), Message("user", "Say hello."))
    return [
        Rollout("0" * 16, turns, (5, 6, 7), (1, 0), "Sure", False),
        Rollout("1" * 16, (Message("user", "日本 " * 30),), (5, 6, 7, 4), (1, 3), HOSTILE, True),
    ]


def make_rollouts(store: Store) -> Manifest:
    with store.build(recipe("rollout", {"model": MODEL, "data": DATA}), command="adpa rollout") as work:
        write_rollouts(work.dir / ROWS, rollouts())
        return work.commit()


def make_signal(store: Store, inputs: dict[str, str], pair: bool = True, tokenizer: bool = True) -> Manifest:
    """Two shards with one answer each, the second being `hand_rows`."""
    teachers = {role: inputs[role] for role in ("aligned", "reference") if role in inputs}
    spec = SignalSpec(2, len(WORDS), 0, 0, teachers)
    with store.build(recipe("cache-teacher", inputs, pair=pair), command="adpa cache-teacher") as work:
        for number, row in enumerate(rollouts()):
            key = AnswerKey(row.id, "rollout", token_hash(row.prompt_ids, row.answer_ids))
            write_shard(work.dir / f"signal-{number:05d}.adpa", spec, [(key, hand_rows(pair))])
        if tokenizer:
            (work.dir / "tokenizer.json.zst").write_bytes(pack(word_tokenizer()))
        return work.commit(sources={MODEL: {"name": "tulu-3-8b-dpo", "commit": "a7be" * 10}})


def pair_signal(store: Store) -> Manifest:
    reference = make(store, "sft")
    made_from = make_rollouts(store)
    parts = {"aligned": MODEL, "reference": f"artifact:{reference.id}", "rollouts": f"artifact:{made_from.id}"}
    return make_signal(store, parts)


def test_a_signal_row_has_the_papers_advantage_and_its_extremes(store: Store) -> None:
    found = rows.row_record(store, pair_signal(store), 2)
    first, second = found["tokens"]
    assert (first["taken"], first["in_top_k"]) == ('"Sure"', True)
    assert (first["best"], first["worst"]) == ('"Sure"', '"Certainly"')
    assert first["logp"] == pytest.approx(math.log(0.5), abs=1e-6)
    assert first["reference_logp"] == pytest.approx(math.log(0.4), abs=1e-6)
    assert first["advantage"] == first["best_advantage"] == pytest.approx(math.log(0.5 / 0.4), abs=1e-6)
    # the reference's 0.05 is below its k-th, 0.3, which takes its place
    assert first["worst_advantage"] == pytest.approx(math.log(0.25 / 0.3), abs=1e-6)
    assert first["rest"] == pytest.approx(0.25, abs=1e-6)
    assert (second["taken"], second["in_top_k"], second["advantage"]) == ('"Yeah"', False, 0.0)
    assert (second["best"], second["worst"]) == ("<end>", '"\\n"')
    assert second["best_advantage"] == pytest.approx(math.log(0.6 / 0.3), abs=1e-6)
    assert second["worst_advantage"] == pytest.approx(math.log(0.2 / 0.4), abs=1e-6)


def test_a_signal_row_names_teachers_and_the_rollout_it_is_from(store: Store) -> None:
    manifest = pair_signal(store)
    found = rows.row_record(store, manifest, 2)
    rollout, reference = (store.resolve(f"{stage}@latest").ref for stage in ("rollout", "sft"))
    assert found["from"] == f"{rollout}#2"
    assert found["prompt_tokens"] == 4
    assert found["signal"]["teachers"] == {"aligned": "tulu-3-8b-dpo@a7bea7b", "reference": reference}
    assert (found["row"], found["rows"], found["example_id"], found["text"]) == (2, 2, "1" * 16, "Sure Yeah")
    signal = found["signal"]
    assert (signal["answers"], signal["tokens"], signal["sampled_answers"]) == (2, 4, 2)
    # masses 0.75, 0.8, twice each: the 5 % quantile is the lower one
    assert signal["mean_mass"] == pytest.approx(0.775, abs=1e-6)
    assert signal["mass_5_percent"] == pytest.approx(0.75, abs=1e-6)
    assert signal["taken_outside"] == 0.5
    json.dumps(found, allow_nan=False)


def test_the_screen_of_a_signal_row(store: Store) -> None:
    manifest = pair_signal(store)
    size = sum(entry["bytes"] for name, entry in manifest.files.items() if name.startswith("signal-"))
    sizes = f"{size / 4:.0f} B/token   {text.human_size(size)}"
    rollout, reference = (store.resolve(f"{stage}@latest").ref for stage in ("rollout", "sft"))
    head, table = rows.row_screen(store, manifest, 2, 120).split("\n\nt ")
    first, *turns = head.splitlines()
    assert turns[0] == "user"
    assert turns[1].startswith("  日本")
    assert turns[-2:] == ["answer", "  Sure Yeah"]
    assert f"{first}\nt {table}" == textwrap.dedent(f"""\
        row 2 of 2   prompt 4, answer 2 tokens   rollout of 1111111111111111   from {rollout}#2
        t  taken   log p  log p_ref  A(taken)  best A         worst A            rest
        0  "Sure"  -0.69      -0.92     +0.22  (taken) +0.22  "Certainly" -0.18  0.25
        1  "Yeah"  -2.30      -1.61   outside  <end> +0.69    "\\n" -0.69         0.10

        {manifest.ref}   top 2 of 8 · step 0 (exact) · aligned - reference 0 (exact) · 2 answers, 4 tokens
        teachers  aligned tulu-3-8b-dpo@a7bea7b   reference {reference}   {sizes}
        mass in top 2   mean 0.775   5 % of tokens below 0.75   taken token outside top 2: 50.0 %
        """)


def test_a_signal_of_one_teacher_has_no_columns_of_the_reference(store: Store) -> None:
    manifest = make_signal(store, {"aligned": MODEL, "data": DATA}, pair=False)
    shown = rows.row_screen(store, manifest, 1, 120)
    assert "t  taken   log p  rest\n" in shown
    assert "reference" not in shown
    assert set(rows.row_record(store, manifest, 1)["tokens"][0]) == {"t", "id", "taken", "in_top_k", "logp", "rest"}


def test_a_signal_row_has_each_token(store: Store) -> None:
    found = rows.row_record(store, pair_signal(store), 2)["tokens"]
    assert [token["taken"] for token in found] == ['"Sure"', '"Yeah"']
    assert found[1]["worst"] == '"\\n"'
    assert found[0]["advantage"] == pytest.approx(math.log(0.5 / 0.4), abs=1e-6)


def test_ids_stand_for_words_without_a_tokenizer(store: Store) -> None:
    manifest = make_signal(store, {"aligned": MODEL, "data": DATA}, pair=False, tokenizer=False)
    found = rows.row_record(store, manifest, 1)
    assert (found["tokens"][1]["taken"], found["text"]) == ("[3]", "[1] [3]")


def test_an_id_without_mass_is_neither_best_nor_worst(store: Store) -> None:
    spec = SignalSpec(2, 8, 0, 0, {"aligned": MODEL, "reference": MODEL})
    whole = hand_rows()
    logps = np.array([[0.0, -np.inf]], np.float32)
    reference = np.log(np.array([[0.5, 0.25]])).astype(np.float32)
    row = SignalRows(
        whole.ids[:1], logps, np.array([2], np.int32), logps[:, 1], np.array([-np.inf], np.float32),
        difference_of(logps, reference), np.ones((1, 2), bool), reference[:, 1], reference[:, 1],
        reference[:, 1],
    )  # fmt: skip
    with store.build(recipe("cache-teacher", {"aligned": MODEL, "data": DATA}), command="c") as work:
        write_shard(work.dir / "signal-00000.adpa", spec, [(AnswerKey("a", "chosen", token_hash([], [2])), row)])
        manifest = work.commit()
    (token,) = rows.row_record(store, manifest, 1)["tokens"]
    assert (token["advantage"], token["logp"], token["best_id"], token["worst_id"]) == (None, None, 1, 1)
    assert any(" – " in line for line in rows.row_screen(store, manifest, 1, 120).splitlines())


def test_figures_of_a_large_signal_are_of_an_even_sample_and_say_so(store: Store) -> None:
    lengths = tuple(1 + number // 100 for number in range(SAMPLE + 50))
    with store.build(recipe("cache-teacher", {"aligned": MODEL, "data": DATA}), command="c") as work:
        write_shard(work.dir / "signal-00000.adpa", spec_of(4, 16), sample_answers(lengths, 4, 16))
        manifest = work.commit()
    assert "(of 200 answers, evenly spread)" in rows.row_screen(store, manifest, 250, 120)
    assert "greatest error 0.0156 as stored, 0.0312 as read" in rows.row_screen(store, manifest, 250, 120)
    assert "greatest error of a log-prob: 0.0156 as stored, 0.0312 as read (nats)" in tokens.screen(
        tokens.collect(store, manifest), 120
    )
    assert rows.row_record(store, manifest, 250)["example_id"] == "example-249"
    few, many = spread(3, SAMPLE), spread(1000, SAMPLE)
    assert (few, len(set(many)), many[:2], spread(0, SAMPLE)) == ([0, 1, 2], SAMPLE, [0, 5], [])


def test_a_rollout_row_shows_turns_answer_and_how_it_ended(store: Store) -> None:
    manifest = make_rollouts(store)
    assert rows.row_screen(store, manifest, 1, 80) == textwrap.dedent(f"""\
        {manifest.ref}   row 1 of 2   id 0000000000000000
        prompt 3 tokens, answer 2 tokens, ended by itself
        system
          Be kind.
        user
          Say hello.
        answer
          Sure
        """)
    shown = rows.row_screen(store, manifest, 2, 40)
    assert "cut off at the limit" in " ".join(shown.split())
    assert max(map(text.width_of, shown.splitlines())) <= 40
    assert "\x1b" not in shown
    assert "\\x1b[31mred\\u202e" in shown
    assert shown.count("long") == 40
    assert shown.count("日本") == 30


def test_a_rollout_row_as_json_keeps_everything(store: Store) -> None:
    found = rows.row_record(store, make_rollouts(store), 2)
    assert (found["text"], found["cut"], found["answer_ids"], found["prompt_tokens"]) == (HOSTILE, True, [1, 3], 4)
    assert found["prompt"] == [{"role": "user", "content": "日本 " * 30}]


def test_first_rows_of_a_rollout(store: Store) -> None:
    manifest = make_rollouts(store)
    assert [row["row"] for row in rows.first_records(store, manifest, 5)] == [1, 2]
    header, line = rows.first_tsv(store, manifest, 1).splitlines()
    assert header.split("\t") == ["row", "id", "prompt", "text", "prompt_tokens", "answer_tokens", "cut"]
    assert json.loads(line.split("\t")[2])[1] == {"role": "user", "content": "Say hello."}
    table = rows.first_screen(store, manifest, 2, 90).splitlines()
    assert "Say hello." in table[1]
    assert max(map(text.width_of, table)) <= 90


def test_first_rows_of_a_signal_are_answers(store: Store) -> None:
    manifest = pair_signal(store)
    first, second = rows.first_records(store, manifest, 2)
    assert (first["example_id"], second["example_id"], second["answer_tokens"]) == ("0" * 16, "1" * 16, 2)
    assert first["mean_logp"] == pytest.approx((math.log(0.5) + math.log(0.1)) / 2, abs=1e-6)
    assert "Sure Yeah" in rows.first_screen(store, manifest, 1, 120)


def test_rows_of_an_evaluation_have_what_each_adds_to_a_metric(store: Store) -> None:
    kept = {"rows": {"agreement": {"p9": 1.0}, "margin": {"p9": 0.5}}, "prompts": {"p9": "q"}}
    manifest = make(store, "eval", {"model": MODEL}, files={"scores.json": json.dumps(kept).encode()})
    assert rows.first_tsv(store, manifest, 9) == "row\tkind\tid\tagreement\tmargin\n1\tpair\tp9\t1.0\t0.5\n"


def test_rows_of_an_older_evaluation_are_pairs_then_prompts(store: Store) -> None:
    answers = make_rollouts(store)
    scores = {"margins": {"p9": 0.5, "p1": -0.25}, "rewards": {"0" * 16: 0.75}, "against": {"0" * 16: 0.5}}
    files = {"scores.json": json.dumps(scores).encode()}
    manifest = make(store, "eval", {"model": MODEL, "rollouts": f"artifact:{answers.id}"}, files=files)
    assert rows.first_tsv(store, manifest, 9) == (
        "row\tkind\tid\tmargin\treward\tagainst\n"
        f"1\tpair\tp9\t0.5\t\t\n2\tpair\tp1\t-0.25\t\t\n3\tprompt\t{'0' * 16}\t\t0.75\t0.5\n"
    )
    assert rows.row_record(store, manifest, 2)["margin"] == -0.25
    assert rows.row_screen(store, manifest, 1, 80).splitlines()[1] == "measured  margin +0.5000"
    shown = rows.row_screen(store, manifest, 3, 80)
    assert f"from      {answers.ref}#1\n" in shown
    assert shown.endswith("answer\n  Sure\n")


@pytest.mark.parametrize("index", [0, -1, 3])
def test_a_row_that_is_not_there_says_which_are(store: Store, index: int) -> None:
    manifest = make_rollouts(store)
    with pytest.raises(NotFound, match="rows are numbered 1 to 2") as caught:
        rows.row_screen(store, manifest, index, 80)
    assert caught.value.hint == f"adpa show {manifest.ref} --row {2 if index == 3 else 1}"


def test_a_checkpoint_has_no_rows(store: Store) -> None:
    manifest = make(store, "sft")
    for call in (lambda: rows.row_record(store, manifest, 1), lambda: rows.first_tsv(store, manifest, 1)):
        with pytest.raises(UsageError, match="has no rows"):
            call()


def test_no_rows_cannot_be_the_first(store: Store) -> None:
    with pytest.raises(UsageError, match="--rows must be 1 or more; got 0"):
        rows.first_records(store, make_rollouts(store), 0)


@pytest.mark.parametrize(
    ("stage", "name"),
    [("rollout", ROWS), ("eval", "scores.json"), ("cache-teacher", "tokenizer.json.zst")],
)
@pytest.mark.parametrize("content", [b"", b"[]", pack(word_tokenizer())[:-9]], ids=["empty", "list", "torn"])
def test_a_damaged_file_is_named(store: Store, stage: str, name: str, content: bytes) -> None:
    manifest = pair_signal(store) if stage == "cache-teacher" else make(store, stage, files={name: b"x"})
    (store.folder(manifest.ref) / name).write_bytes(content)
    with pytest.raises(Corrupt, match=manifest.id[:12]):
        rows.row_record(store, manifest, 1)


def test_a_tokenizer_that_unpacks_to_too_much_is_refused(tmp_path: Path) -> None:
    stream = zstandard.ZstdCompressor().compressobj(size=tokens.MAX_BYTES + 1)
    (tmp_path / tokens.FILE_NAME).write_bytes(stream.compress(b"{}") + stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
    with pytest.raises(Corrupt, match="impossible size"):
        tokens.load_tokens(tmp_path)


def test_pieces_of_characters_and_leading_spaces_are_shown() -> None:
    byte_level = Tokenizer(models.BPE({"Ġhi": 0, "æĹ": 1, "æĹ¥": 2}, []))
    byte_level.decoder = decoders.ByteLevel()
    assert [tokens.Tokens(byte_level).one(token_id) for token_id in range(4)] == ['" hi"', '"æĹ"', '"日"', "[3]"]
    spaced = Tokenizer(models.WordLevel({"▁hi": 0, "\x1b": 1}, "▁hi"))
    spaced.decoder = decoders.Metaspace()
    assert [tokens.Tokens(spaced).one(token_id) for token_id in range(2)] == ['" hi"', '"\\u001b"']


def test_folding_breaks_at_spaces_and_keeps_what_is_written() -> None:
    assert text.fold("one two  three", 9) == ["  one two", "  three"]
    assert text.fold("abcdefghij\n\n  x", 6) == ["  abcd", "  efgh", "  ij", "  ", "    x"]
    assert text.fold("日本語", 6) == ["  日本", "  語"]


def test_rows_need_no_torch_or_transformers(store: Store) -> None:
    manifest = pair_signal(store)
    code = f"""
        import sys
        for name in ("torch", "transformers", "datasets", "accelerate"):
            sys.modules[name] = None
        from pathlib import Path
        from adpa_cli.report import rows
        assert not {{"pyarrow", "tokenizers"}} & set(sys.modules)
        from adpa_cli.store.store import Store
        store = Store(Path({str(store.root)!r}))
        print(rows.row_screen(store, store.resolve({manifest.ref!r}), 1, 100))
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"Sure"' in done.stdout
