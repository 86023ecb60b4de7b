"""`adpa report`: what it compares, where it writes, and that no model is loaded for it."""

from __future__ import annotations

import csv
import io
import json
import re
import statistics
from pathlib import Path

import pytest

from adpa_cli.stages.eval import SCORES
from adpa_cli.store.store import Store
from support.cli_samples import Cli, Pipeline
from support.judge_server import Judge, judging


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def test_a_page_and_the_numbers_behind_it(cli: Cli, pipeline: Pipeline) -> None:
    both = [pipeline.made("distill dckd"), pipeline.made("distill adpa")]
    ran = cli("report", "-", "--to", "out", "--json", stdin="\n".join(both))
    written = json.loads(ran.out)["written"]
    assert written[0] == "out/report.html"
    assert all(Path(name).is_file() for name in written)
    store = Store.find(pipeline.store)
    for row in table(Path("out/scores.csv")):
        scores = store.resolve(row["evaluation"]).metrics["scores"]
        name = "_".join(row["metric"].partition(" against")[0].split())
        assert float(row["value"]) == pytest.approx(scores[name]["value"], rel=1e-5)
    steps = [row for row in table(Path("out/steps.csv")) if row["model"] == both[1] and row["number"] == "loss"]
    kept = [json.loads(line) for line in (pipeline.store / both[1] / "metrics.jsonl").read_text().splitlines()]
    assert [float(row["value"]) for row in steps] == pytest.approx([line["loss"] for line in kept], rel=1e-5)


def test_who_beats_whom_is_what_the_rewards_say(cli: Cli, pipeline: Pipeline) -> None:
    """Of the rewards of two evaluations, counted here by hand."""
    both = [pipeline.made("distill dckd"), pipeline.made("distill adpa")]
    assert cli("report", *both, "--to", "out").code == 0
    rows = table(Path("out/win-matrix.csv"))
    names = [row[""] for row in rows]
    rewards = {}
    for row in table(Path("out/scores.csv")):
        if row["metric"] == "mean reward":
            kept = json.loads((pipeline.store / row["evaluation"] / SCORES).read_text())
            rewards[row["model"]] = kept["rows"]["mean_reward"]
    assert set(names) == set(rewards)
    one, other = names[:2]
    won = [(a > b) + (a == b) / 2 for id_, a in rewards[one].items() if (b := rewards[other].get(id_)) is not None]
    assert float(rows[0][other]) == pytest.approx(statistics.fmean(won), rel=1e-5)
    assert float(rows[0][other]) + float(rows[1][one]) == pytest.approx(1, abs=1e-5)


def test_the_page_names_every_command_and_shows_answers(cli: Cli, pipeline: Pipeline) -> None:
    model = pipeline.made("distill adpa")
    assert cli("report", model).out.strip() == "report.html"
    shown = Path("report.html").read_text(encoding="utf-8")
    store = Store.find(pipeline.store)
    lineage = [store.resolve(model), *(store.get(parent) for _, parent in store.resolve(model).parents())]
    assert all(f'id="a-{one.ref.replace("/", "-")}"' in shown for one in lineage if one is not None)
    assert len(re.findall('class="sample"', shown)) > 5
    assert "Where teacher and student differ" in shown


def test_what_a_judge_said_stands_beside_what_rewards_say(cli: Cli, pipeline: Pipeline) -> None:
    model, start = pipeline.made("distill adpa"), pipeline.made("student")
    with judging(Judge(lambda messages: "A")) as judge:
        words = ("eval", model, "--against", start, "--data", pipeline.data, "--set", "rollout.max_new_tokens=12")
        assert cli(*words, "--judge", "j", "--judge-url", judge.url).code == 0
    assert cli("report", model, "--to", "out").code == 0
    rows = [row for row in table(Path("out/scores.csv")) if row["metric"].startswith("win rate")]
    assert len({row["metric"] for row in rows}) == 2
    assert any(row["metric"].endswith("by j") for row in rows)
    assert "by j" in Path("out/report.html").read_text(encoding="utf-8")


def test_a_tag_names_a_model(cli: Cli, pipeline: Pipeline) -> None:
    assert cli("tag", "best", pipeline.made("distill adpa")).code == 0
    assert cli("report", "best", "--to", "r.html").code == 0
    assert "<h1>Report: best</h1>" in Path("r.html").read_text(encoding="utf-8")


def test_what_is_refused(cli: Cli, pipeline: Pipeline, tmp_path: Path) -> None:
    model = pipeline.made("distill adpa")
    (tmp_path / "file").write_text("")
    assert "adpa report needs the models to report on" in cli.refused(2, "report")
    assert "is no model" in cli.refused(2, "report", pipeline.made("rollouts"))
    assert "ends in .html, or a folder; got report.pdf" in cli.refused(2, "report", model, "--to", "report.pdf")
    assert "ends in .html, or a folder; got file" in cli.refused(2, "report", model, "--to", "file")
    assert "no folder" in cli.refused(2, "report", model, "--to", "gone/report.html")
