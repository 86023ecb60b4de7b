"""docs/json.md: every key that it names is there, and no output has another one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adpa_cli.cli.commands import makers
from adpa_cli.report.differences import Difference
from adpa_cli.report.scores import Score
from adpa_cli.stages import every
from adpa_cli.store.manifest import Manifest
from support.cli_samples import Cli, Pipeline, by_metric

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "json.md").read_text(encoding="utf-8")
ONLY_SOMETIMES = {"adapter", "judge"}
MADE = {"id", "ref", "path"}
SMALL_RECIPE = """
student = "tiny"
data = {data}
max-steps = 2
limit = 40

[sft]
max_steps = 2
limit = 64

[dpo-teacher]
max_steps = 2
limit = 40
"""


def section(heading: str) -> str:
    """The text below a heading, up to the next one."""
    return re.split(r"^#+ .*\n", PAGE.split(f" {heading}\n", 1)[1], maxsplit=1, flags=re.M)[0]


def documented(heading: str) -> set[str]:
    """The keys of the table below a heading."""
    return set(re.findall(r"^\| `(\w+)` \|", section(heading), re.M))


def listed(heading: str, key: str) -> set[str]:
    """The keys of what the list `key` has, as the table says; up to the colon or semicolon behind them."""
    (line,) = re.findall(rf"^\| `{key}` \| (?:.*?a list with )?(`[^:;|]*)", section(heading), re.M)
    return set(re.findall(r"`(\w+)`", line))


def differing(found: Mapping[str, Any], keys: set[str]) -> set[str]:
    return (set(found) ^ keys) - ONLY_SOMETIMES


def said(cli: Cli, *words: str) -> Any:
    """What a command prints: one value, or one a line."""
    ran = cli(*words, "--json")
    assert ran.code == 0, ran.err
    return json.loads(ran.out) if ran.out.startswith(("{\n", "[\n")) else [*map(json.loads, ran.out.splitlines())]


def test_the_page_names_the_keys_of_scores_and_differences() -> None:
    score = Score("win_rate", 0.5, None, None, 3, "s", "", "", "", "eval/1", 0.0)
    assert list(score.record()) == re.findall(r"^\| `(\w+)` \|", section("A score"), re.M)
    record = Difference(0.1, 0.0, 0.2, 0.5, 9).record("win_rate", "distill/1", "sft/1", 1.0)
    assert set(record) == documented("A difference")
    assert score.record()["against"] is None


def test_what_shows_the_store(pipeline: Pipeline, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patch:
        patch.setitem(every(), "sft", replace(every()["sft"], compute=broken))
        with pytest.raises(RuntimeError, match="a bug"):
            cli("sft", "--model", "tiny", "--max-steps", "1", "--limit", "8", "--seed", "3")
    head = "`adpa show --json`"
    found = said(cli, "show")
    assert not differing(found, documented(head))
    for key in ("artifacts", "unfinished"):
        assert set(found[key][0]) == listed(head, key)
    model = next(made for made in found["artifacts"] if made["ref"] == pipeline.made("distill adpa"))
    assert set(model["score"]) >= documented("A score")
    assert set(model["win"]) >= documented("A score")
    begun = cli("show").rows[-1]
    assert begun[0] == found["unfinished"][0]["ref"]
    assert begun[7] == "stopped"
    assert begun[8] == found["unfinished"][0]["command"]


def test_a_page_and_a_comparison(pipeline: Pipeline, cli: Cli) -> None:
    refs = pipeline.made("distill dckd"), pipeline.made("distill adpa")
    head = "`adpa show REF --json`"
    assert cli("verify", refs[1]).code == 0
    page = said(cli, "show", refs[1])
    fields = set(Manifest.__dataclass_fields__)
    assert set(re.findall(r"`(\w+)`", section(head).partition("\n\n| key")[0])) == fields
    assert not differing(page, fields | documented(head))
    assert (set(page["made_from"][0]), set(page["used_by"][0])) == (listed(head, "made_from"), listed(head, "used_by"))
    assert page["verified"].endswith("Z")

    head = "`adpa show A B --json`"
    both = said(cli, "show", *refs)
    assert not differing(both, documented(head))
    assert set(both["artifacts"][0]) == listed(head, "artifacts")
    assert both["settings"]["method"] == ["dckd", "adpa"]
    first, second = ({s["metric"]: s["value"] for s in scores} for scores in both["scores"])
    (found,) = (one for one in both["differences"] if one["metric"] == "mean_reward")
    assert set(found) == documented("A difference")
    assert (found["from"], found["model"]) == refs
    assert found["value"] == pytest.approx(second["mean_reward"] - first["mean_reward"])


def test_what_makers_print(pipeline: Pipeline, cli: Cli) -> None:
    (made,) = said(cli, *pipeline.words)
    assert set(made) == documented("`adpa sft --json` and the other commands that make something") == MADE
    models = pipeline.made("student"), pipeline.made("distill adpa")
    lines = said(cli, "eval", *models, "--data", str(pipeline.data), "--suite", "accuracy")
    for line in lines:
        assert not differing(line, documented("`adpa eval --json`"))
        assert [set(score) for score in line["scores"]] == [documented("A score")] * len(line["scores"])
    assert set(by_metric(lines[1], "differences")["reward_accuracy"]) == documented("A difference")
    assert "plan" not in makers()


def test_plans_and_logs(pipeline: Pipeline, cli: Cli) -> None:
    head = "`adpa plan --json`"
    found = said(cli, "plan", *pipeline.words, "--seed", "9")
    assert found.keys() == said(cli, *pipeline.words, "--seed", "9", "-n").keys()
    assert not differing(found, documented(head))
    assert set(found["rows"][0]) == listed(head, "rows")
    assert set(found["totals"]) == listed(head, "totals")
    log = said(cli, "log", pipeline.made("student"))
    assert set(log) == documented("`adpa log REF --json`")


def test_a_sweep_ends_with_scores(pipeline: Pipeline, cli: Cli) -> None:
    few = SMALL_RECIPE.replace("{data}", json.dumps(str(pipeline.data)))
    Path("r.toml").write_text(f'method = ["dckd", "sft"]\n{few}', encoding="utf-8")
    shown = said(cli, "run", "r.toml", "-n")
    assert set(shown[0]) == {"cell", "state", "id", "ref", "settings"}
    *_, last = lines = said(cli, "run", "r.toml")
    assert [set(line) for line in lines[:2]] == [MADE | {"settings"}] * 2
    table = [line for line in lines if "scores" in line]
    assert not differing(last, documented("`adpa run --json`"))
    assert [line["model"] for line in table[:2]] == [line["ref"] for line in lines[:2]]
    assert all(set(score) >= documented("A score") for line in table for score in line["scores"])
    assert all(line["scores"] for line in table[:2])


def test_an_error_is_an_object(cli: Cli) -> None:
    ran = cli("show", "nosuch", "--json")
    assert set(json.loads(ran.err)) >= documented("Errors")
    assert ran.out == ""
