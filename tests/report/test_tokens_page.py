"""The page of a signal's row: its numbers, its texts, and that nothing of a model's text can act in it."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models

from adpa_cli.errors import UsageError
from adpa_cli.report.html import as_data, checked_path, render, tokens
from adpa_cli.report.signal_rows import Signals, Tokens
from adpa_cli.signal.rows import AnswerKey, SignalRows, SignalSpec, difference_of
from adpa_cli.signal.shard import write_shard
from adpa_cli.store.store import Store
from support.store_samples import DATA, MODEL, new_store, recipe

WORDS = ["<end>", "Sure", "</script><b>", "\u202eevil", "\n", "hello"]


def log(*values: float) -> np.ndarray:
    return np.log(np.array(values, dtype=np.float32))


def rows() -> SignalRows:
    """Two tokens, k = 2: the first is among its ids {1, 2}, the second is 3 and outside of {0, 4}."""
    logps = np.stack([log(0.5, 0.25), log(0.6, 0.2)])
    reference = np.stack([log(0.4, 0.05), log(0.3, 0.4)])
    return SignalRows(
        np.array([[1, 2], [0, 4]], np.int32), logps, np.array([1, 3], np.int32), log(0.5, 0.1), log(0.25, 0.1),
        difference_of(logps, reference), reference >= log(0.3, 0.3)[:, None], log(0.3, 0.3), log(0.4, 0.2),
        log(0.55, 0.1),
    )  # fmt: skip


def by_name(found: list[tokens.Metric]) -> dict[str, list[float]]:
    return {metric.name: metric.values.tolist() for metric in found}


def test_what_tokens_are_coloured_by() -> None:
    found = by_name(tokens.metrics(rows(), [-1.0, -2.0]))
    assert found["advantage"] == pytest.approx([math.log(0.5 / 0.4), 0.0])
    assert found["log-prob"] == pytest.approx([math.log(0.5), math.log(0.1)])
    first = 0.5 * math.log(0.5 / 0.4) + 0.25 * math.log(0.25 / 0.05) + 0.25 * math.log(0.25 / 0.55)
    second = 0.6 * math.log(0.6 / 0.3) + 0.2 * math.log(0.2 / 0.4) + 0.1 * math.log(0.1 / 0.2) + 0.1 * math.log(1)
    assert found["KL"] == pytest.approx([first, second], abs=1e-6)
    assert found["entropy"] == pytest.approx(
        [-sum(p * math.log(p) for p in ps) for ps in ((0.5, 0.25, 0.25), (0.6, 0.2, 0.1, 0.1))]
    )
    assert found["student"] == [-1.0, -2.0]
    assert found["student − teacher"] == pytest.approx([-1 - math.log(0.5), -2 - math.log(0.1)])


def test_one_teacher_has_no_advantage() -> None:
    none: dict[str, Any] = dict.fromkeys(
        ("difference", "in_reference", "reference_kth", "reference_label_logps", "reference_rest_logps")
    )
    alone = replace(rows(), **none)
    assert list(by_name(tokens.metrics(alone))) == ["log-prob", "entropy"]


def test_ids_without_mass_leave_the_other_numbers_whole() -> None:
    given = rows()
    logps = given.logps.copy()
    logps[0, 1] = -np.inf
    found = by_name(tokens.metrics(replace(given, logps=logps)))
    assert all(math.isfinite(value) for values in found.values() for value in values)


def test_levels_show_the_sign_and_what_is_no_number() -> None:
    metric = tokens.Metric("a", "advantage", "", np.array([0.0, 2.0, -2.0, 1.0, np.nan]), True)
    assert metric.levels == [0, 10, -10, 5, None]
    nothing = tokens.Metric("a", "advantage", "", np.array([np.nan]), True)
    assert nothing.levels == [None]


def signal(store: Store) -> Signals:
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<end>"))
    inner.add_special_tokens([AddedToken("<end>", special=True)])
    import zstandard

    inputs = {"aligned": MODEL, "reference": MODEL, "data": DATA}
    with store.build(recipe("cache-teacher", inputs), command="adpa cache-teacher") as work:
        spec = SignalSpec(2, len(WORDS), 0, 0, {"aligned": MODEL, "reference": MODEL})
        write_shard(work.dir / "signal-00000.adpa", spec, [(AnswerKey("0" * 16, "chosen", "0" * 32), rows())])
        (work.dir / "tokenizer.json.zst").write_bytes(zstandard.ZstdCompressor().compress(inner.to_str().encode()))
        manifest = work.commit(sources={MODEL: {"name": "tulu"}, DATA: {"name": "pairs"}})
    return Signals(store, manifest)


def test_a_page_holds_every_number_and_no_text_of_a_model_acts_in_it(tmp_path: Path) -> None:
    signals = signal(new_store(tmp_path))
    prompt = [{"role": "user", "content": "<script>alert(1)</script>"}]
    shown = tokens.page("row", tokens.block(signals, 0, prompt, signals.facts(0)))
    assert "<script>alert" not in shown
    assert "</script><b>" not in shown
    assert "\u202e" not in shown.partition('class="answer"')[2].partition("</div>")[0]
    data = json.loads(re.findall(r'class="token-data">(.*?)</script>', shown, re.DOTALL)[0])
    assert data["words"][data["tokens"][0]["i"]] == '"Sure"'
    listed = {data["words"][entry[0]]: entry[1:] for entry in data["tokens"][0]["k"]}
    # the reference's 0.05 lies below its k-th log-prob, which is taken in its place
    assert listed['"</script><b>"'] == pytest.approx([math.log(0.25), math.log(0.05), math.log(0.25 / 0.3)], abs=1e-3)
    assert data["tokens"][1]["r"] == pytest.approx([0.1, 0.1], abs=1e-3)
    assert len(re.findall(r"<tr>", shown.partition("<noscript>")[2].partition("</noscript>")[0])) == 3


def test_a_page_asks_nobody_for_anything(tmp_path: Path) -> None:
    shown = tokens.page("row", tokens.block(signal(new_store(tmp_path)), 0, None))
    assert "default-src 'none'" in shown
    assert not re.findall(r"(?:src|href)=\"(?!data:)", shown)
    assert "The prompt is not shown" in shown


def test_a_character_of_several_tokens_is_shown_once() -> None:
    letters = {letter: number for number, letter in enumerate("ðŁĺĢabĠ")}
    inner = Tokenizer(models.BPE(letters, []))
    inner.decoder = decoders.ByteLevel()
    ids = [letters[letter] for letter in "aðŁĺĢĠb"]
    assert Tokens(inner).pieces(ids) == ["a", "", "", "", "\U0001f600", " ", "b"]
    assert Tokens(inner).pieces([letters["ð"], letters["a"]]) == ["", "\ufffda"]


def test_words_keep_the_spaces_between_them() -> None:
    inner = Tokenizer(models.WordLevel({"the": 0, "answer": 1, "<end>": 2}, unk_token="<end>"))
    assert "".join(Tokens(inner).pieces([0, 1])) == "the answer"
    assert Tokens(inner).pieces([7, 0]) == ["[7]", "the"]
    assert Tokens().pieces([7]) == ["[7]"]


def test_data_in_a_page_cannot_end_its_element() -> None:
    assert "</" not in as_data(["</script>", "<!--"])
    assert json.loads(as_data(["</script>\u2028"])) == ["</script>\u2028"]
    with pytest.raises(ValueError, match="JSON"):
        as_data([math.nan])


def test_where_a_page_goes(tmp_path: Path) -> None:
    assert checked_path("--html", str(tmp_path / "a.html")) == tmp_path / "a.html"
    with pytest.raises(UsageError, match=r"a\.txt does not end with"):
        checked_path("--html", "a.txt")
    with pytest.raises(UsageError, match="no folder"):
        checked_path("--html", str(tmp_path / "gone" / "a.html"))


def test_what_a_template_is_given_is_escaped() -> None:
    assert "<b>" not in render("page.html.j2", title="<b>").partition("<title>")[2].partition("</title>")[0]
