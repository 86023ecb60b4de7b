"""The screens of `adpa show` on a real store: what differs from the family, and models side by side, row by row."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from adpa_cli.report import page
from adpa_cli.report.differences import Difference, Rows, paired, rows_of
from adpa_cli.store.store import Store
from support.cli_samples import Cli, Pipeline


def differs(cli: Cli, ref: str) -> Any:
    return json.loads(cli("show", ref, "--json").out)["differs"]


def test_a_page_says_what_is_not_the_familys(pipeline: Pipeline, cli: Cli) -> None:
    assert differs(cli, pipeline.made("distill adpa")) == ["max_steps 2 (–)", "limit 40 (–)"]
    assert differs(cli, pipeline.made("rollouts")) == ["max_new_tokens 12 (64)", "limit 40 (–)"]
    assert differs(cli, pipeline.made("student")) == ["max_steps 2 (–)", "limit 64 (–)"]
    words = ("distill", "--method", "dckd", "--student", pipeline.made("student"), "--data", pipeline.data, "--no-eval")
    changed = cli(*words, "--limit", "8", "--max-steps", "1", "--set", "alpha=0.5", "--teacher",
                  pipeline.made("student")).ref  # fmt: skip
    found = differs(cli, changed)
    assert {"alpha 0.5 (5)", "max_steps 1 (–)", "limit 8 (–)", "teacher builtin:student"} == set(found)
    store = Store.find(pipeline.store)
    said = page.screen(page.collect(store, store.resolve(changed)), 200, 0.0)
    assert "differs   from the family's defaults:  max_steps 1" in said


def test_a_model_of_no_family_differs_from_nothing(pipeline: Pipeline, cli: Cli) -> None:
    shutil.copytree(pipeline.store / pipeline.made("student"), "mine")
    ran = cli("rollout", "--student", "./mine", "--data", pipeline.data, "--limit", "2", "--max-new-tokens", "4",
              "--set", "max_length=128")  # fmt: skip
    assert differs(cli, ran.ref) is None
    assert "differs" not in cli("show", ran.ref).out.replace("differs\tnull", "")


def test_models_are_compared_row_by_row(pipeline: Pipeline, cli: Cli) -> None:
    """The three figures are counted by hand from the margins of the two evaluations."""
    start, student = pipeline.made("student"), pipeline.made("distill adpa")
    rows = {line[0]: line[1:] for line in cli("show", start, student).rows}
    name = "difference from the first: reward-accuracy on pairs (n=12) [accuracy]"
    empty, said = rows[name]
    assert empty == ""
    store = Store.find(pipeline.store)
    margins = []
    for ref in (start, student):
        (mine,) = {
            m.ref for m in store.artifacts()
            if m.stage == "eval" and m.spec["suite"] == "accuracy" and store.resolve(ref).id in str(m.inputs["model"])
        }  # fmt: skip
        margins.append(json.loads((store.folder(mine) / "scores.json").read_text())["rows"]["margin"])
    won = [{row: (value > 0) + 0.5 * (value == 0) for row, value in table.items()} for table in margins]
    mean = 100 * sum(won[1][row] - won[0][row] for row in won[0]) / len(won[0])
    assert said.startswith(f"{mean:+.1f} (")
    assert any(key.startswith("difference from the first: mean-reward") for key in rows)


def test_the_difference_of_pairs_is_narrower_than_that_of_strangers() -> None:
    """Rows that are hard for one model are hard for the other: only a paired bootstrap sees it."""
    hard = {str(n): float(n % 10) for n in range(100)}
    better = {row: value + 1.0 for row, value in hard.items()}
    found = paired(Rows(better, {}), Rows(hard, {}))
    assert found is not None
    assert (found.value, found.low, found.high, found.n) == (1.0, 1.0, 1.0, 100)
    assert found.p < 0.001
    assert paired(Rows({"a": 1.0}, {}), Rows({"b": 1.0}, {})) is None
    found = paired(Rows({"1": 1.0, "2": 0.0, "3": 5.0}, {}), Rows({"1": 0.0, "2": 0.0}, {}))
    assert found == Difference(0.5, 0.0, 1.0, 1.0, 2)
    one = {"1": "p", "2": "p"}
    together = paired(Rows({"1": 1.0, "2": 0.0}, one), Rows({"1": 0.0, "2": 0.0}, one))
    assert together == Difference(0.5, 0.5, 0.5, 1.0, 2), "two pairs of one prompt are one draw"


@pytest.mark.parametrize("content", [None, "{", '{"margins": {}}'])
def test_evaluations_without_their_rows_have_no_differences(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "scores.json").write_text(content)
    assert rows_of(tmp_path, "reward_accuracy") == Rows({}, {})


def test_manifests_hold_names_hashes_and_counts_but_no_paths_and_no_rows(pipeline: Pipeline) -> None:
    words = {turn["content"] for row in (pipeline.data / "train.jsonl").read_text().splitlines()
             for turn in json.loads(row)["chosen"] if turn["role"] == "assistant"}  # fmt: skip
    assert words
    for manifest in Store.find(pipeline.store).artifacts():
        raw = json.loads((pipeline.store / manifest.ref / "manifest.json").read_text())
        raw["made"].pop("command")  # as it was typed
        texts = list(every_text(raw))
        assert [text for text in texts if text.startswith(("/", "~")) or str(pipeline.data.parent) in text] == []
        assert not words & set(texts)


def every_text(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value if isinstance(value, list) else [*value, *value.values()] if isinstance(value, dict) else []
    return [text for item in inner for text in every_text(item)]
