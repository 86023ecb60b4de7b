"""Judgements in the files of AlpacaEval and of FastChat's MT-Bench: there, here and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from adpa_cli.report.scores import Line, scores, screen
from adpa_cli.store.store import Store
from support.cli_samples import Cli, Pipeline, by_metric, write_rows
from support.judge_server import Judge, judging

ANNOTATIONS = [
    {"instruction": f"Question {n}", "output_1": "x" * n, "generator_1": "base", "output_2": "y\u2028\x85",
     "generator_2": "ours", "annotator": "someone", "preference": preference, "dataset": "d"}
    for n, preference in enumerate((1.0, 1.25, 2, 1.5, 0))
]  # fmt: skip


def measured(cli: Cli, *refs: object, words: tuple[object, ...] = ()) -> list[dict[str, Any]]:
    ran = cli("eval", *refs, *words, "--json")
    assert ran.code == 0, ran.err
    return [json.loads(line) for line in ran.out.splitlines()]


def test_annotations_are_measured_and_written_back(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "annotations.json").write_text(json.dumps(ANNOTATIONS))
    ref = cli("import", "annotations.json", "--format", "alpaca-eval").ref
    assert cli("import", "annotations.json", "--format", "alpaca-eval").ref == ref
    (line,) = measured(cli, ref)
    assert by_metric(line)["win_rate"]["value"] == pytest.approx((0 + 0.25 + 1 + 0.5 + 0.5) / 5)
    assert by_metric(line)["win_rate"]["against"] == "base"
    assert by_metric(line)["lc_win_rate"]["sides"] == {"longer": 0.6, "shorter": 0.2}
    assert "position_bias" not in by_metric(line)
    assert json.loads(cli("show", ref, "--row", "1", "--json").out)["annotation"]["output_2"] == "y\u2028\x85"
    assert line["judge"]["name"] == "someone"
    assert cli("export", ref, "out", "--to", "alpaca-eval").code == 0
    written = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert written == [{**row, "preference": row["preference"] or 1.5} for row in ANNOTATIONS]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"preference": None}, "row 2: preference must be a number from 1 to 2; it is None"),
        ({"preference": 3}, "row 2: preference must be a number from 1 to 2; it is 3"),
        ({"output_2": None}, "row 2: an annotation needs instruction, output_1 and output_2"),
        ({"generator_2": "other"}, "row 2: generator_2 is 'other'"),
        ({"instruction": "Question 0"}, "row 2: the instruction occurs a second time"),
        ({"output_2": "half \ud800"}, "row 2 has half of a surrogate pair"),
    ],
)
def test_what_is_no_annotation(cli: Cli, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    rows = [ANNOTATIONS[0], {**ANNOTATIONS[1], **change}]
    (tmp_path / "annotations.json").write_text(json.dumps(rows))
    assert said in cli.refused(1, "import", "annotations.json", "--format", "alpaca-eval")


def test_what_has_no_effect_on_judgements_is_refused(cli: Cli, tmp_path: Path) -> None:
    """Neither does a suite measure those of another kind."""
    (tmp_path / "annotations.json").write_text(json.dumps(ANNOTATIONS))
    write_rows(tmp_path / "judgments.jsonl", JUDGMENTS)
    compared = cli("import", "annotations.json", "--format", "alpaca-eval").ref
    graded = cli("import", "judgments.jsonl", "--format", "mt-bench").ref
    for words in (("--judge", "j"), ("--against", "base"), ("--data", "a.jsonl"), ("--split", "all"), ("--limit", 2)):
        said = cli.refused(2, "eval", compared, *words)
        assert said.startswith(words[0])
        assert "has no effect on" in said
        assert f"leave out {words[0]}" in said or f"leave {words[0]} out" in said
    assert "has no effect" in cli.refused(2, "eval", compared, "--set", "rollout.temperature=0")
    said = cli.refused(2, "eval", graded, "--suite", "win-rate")
    assert said == f"--suite win-rate cannot measure {graded}\ntry: --suite mt-bench\n"
    assert "try: --suite win-rate or alpaca-eval" in cli.refused(2, "eval", compared, "--suite", "accuracy")
    assert cli("eval", compared, "--suite", "alpaca-eval", "--set", "eval.bootstrap=50").code == 0


def test_published_annotations(cli: Cli, shared_data: Path, tmp_path: Path) -> None:
    """The figures of the leaderboard; length control is supported on one of the two."""
    refs = [
        cli("import", shared_data / f"alpaca_eval_annotations_{name}.json.zst", "--format", "alpaca-eval").ref
        for name in ("near", "far")
    ]
    near, far = measured(cli, *refs)
    assert by_metric(near)["win_rate"]["value"] == pytest.approx(0.29921932, abs=1e-8)
    assert by_metric(near)["win_rate"]["standard_error"] == pytest.approx(0.01393458, abs=1e-8)
    assert by_metric(near)["lc_win_rate"]["value"] == pytest.approx(0.2593, abs=0.0005)
    assert by_metric(near)["lc_win_rate"]["supported"]
    assert by_metric(far)["win_rate"]["value"] == pytest.approx(0.02591451, abs=1e-8)
    assert not by_metric(far)["lc_win_rate"]["supported"]
    assert by_metric(far, "differences")["win_rate"]["value"] == pytest.approx(0.02591451 - 0.29921932, abs=1e-8)
    shown = cli("eval", *refs).err
    assert "LC WIN RATE" in shown
    made = Store.find(tmp_path / "adpa-store").resolve(near["ref"])
    line = Line({}, near["model"], tuple(scores(made)), name="near")
    assert ("LC WIN RATE" in screen([line], 200), "not AlpacaEval's LC" in screen([line], 200)) == (True, True)
    assert "19.8" not in shown, "what extrapolates is not shown"


def test_our_judgements_as_annotations(pipeline: Pipeline, cli: Cli, tmp_path: Path) -> None:
    student, start = pipeline.made("distill adpa"), pipeline.made("student")
    with judging(Judge(lambda messages: "A")) as judge:
        words = ("--against", start, "--data", pipeline.data, "--judge", "j", "--judge-url", judge.url)
        cli("eval", student, *words, "--set", "rollout.max_new_tokens=12")
    ref = next(line.split("\t")[0] for line in cli("show", "--all").out.splitlines() if line.startswith("judgements/"))
    assert cli("export", ref, "out", "--to", "alpaca-eval").code == 0
    rows = json.loads((tmp_path / "out" / "annotations.json").read_text())
    assert {(row["generator_1"], row["generator_2"], row["annotator"], row["preference"]) for row in rows} == {
        (start, student, "j", 1.5)
    }
    ours = json.loads((tmp_path / "out" / "model_outputs.json").read_text())
    assert [(row["instruction"], row["output"]) for row in ours] == [(r["instruction"], r["output_2"]) for r in rows]
    again = cli("import", tmp_path / "out" / "annotations.json", "--format", "alpaca-eval").ref
    (line,) = measured(cli, again)
    assert by_metric(line)["win_rate"]["value"] == 0.5
    rollout = next(line.split("\t")[0] for line in cli("show", "--all").out.splitlines() if line.startswith("rollout/"))
    assert cli("export", rollout, "answers", "--to", "alpaca-eval").code == 0
    assert "--dtype float16 is for models" in cli.refused(
        2, "export", rollout, "no", "--to", "alpaca-eval", "--dtype", "float16"
    )
    assert json.loads((tmp_path / "answers" / "model_outputs.json").read_text())[0].keys() == {
        "instruction", "output", "generator",
    }  # fmt: skip


JUDGMENTS = [
    {
        "question_id": number,
        "model": "m",
        "judge": ["gpt-4", "single-v1"],
        "judgment": text,
        "score": score,
        "turn": turn,
    }
    for number, turn, score, text in ((81, 1, 7, "[[7]]"), (81, 2, -1, "?"), (111, 1, 4, "[[4]]"))
]


def test_judgments_are_measured_and_written_back(cli: Cli, tmp_path: Path) -> None:
    write_rows(tmp_path / "gpt-4_single.jsonl", JUDGMENTS)
    questions = [{"question_id": n, "category": c, "turns": ["a", "b"]} for n, c in ((81, "writing"), (111, "math"))]
    write_rows(tmp_path / "question.jsonl", questions)
    words = ("import", "gpt-4_single.jsonl", "--format", "mt-bench")
    plain, ref = cli(*words).ref, cli(*words, "--data", "question.jsonl").ref
    (line,) = measured(cli, ref)
    found = {name: score["value"] for name, score in by_metric(line).items()}
    assert found == {"grade": 5.5, "turn_1_grade": 5.5, "writing_grade": 7.0, "math_grade": 4.0}
    assert line["judge"]["unparsable"] == 1
    assert by_metric(measured(cli, plain)[0]).keys() == {"grade", "turn_1_grade"}
    assert cli("export", ref, "out", "--to", "mt-bench").code == 0
    (path,) = (tmp_path / "out" / "model_judgment").iterdir()
    written = [json.loads(row) for row in path.read_text().splitlines()]
    kept = ("question_id", "model", "judgment", "score", "turn")
    assert [[row[key] for key in kept] for row in written] == [[row[key] for key in kept] for row in JUDGMENTS]


def test_what_is_no_judgment_and_what_has_no_such_form(cli: Cli, pipeline: Pipeline, tmp_path: Path) -> None:
    write_rows(tmp_path / "j.jsonl", [*JUDGMENTS, JUDGMENTS[0]])
    assert "row 4: turn 1 of the question 81 occurs a second time" in cli.refused(
        1, "import", "j.jsonl", "--format", "mt-bench"
    )
    write_rows(tmp_path / "k.jsonl", [{"question_id": 1, "score": 3}])
    assert "row 1: a judgment needs" in cli.refused(1, "import", "k.jsonl", "--format", "mt-bench")
    said = cli.refused(2, "export", pipeline.made("student"), "out", "--to", "mt-bench")
    assert "--to mt-bench needs answers of two turns, or a judge's grades of them; sft/" in said
    assert "holds neither" in said
