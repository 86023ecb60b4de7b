"""`--select` and `--keep`: which weights an artifact has, what is measured on the way, and what stays beside them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adpa_cli.hub.externals import pairs_of
from adpa_cli.lab import world
from adpa_cli.store.store import Store
from support.cli_samples import Cli, Pipeline, Ran, write_rows

LIKE_TINY = ("--set", "max_length=128", "--set", "dtype=float32")
STEPS = ("--epochs", "2", "--batch-size", "10", "--limit", "40", "--no-eval")  # 8 steps; points 2, 4, 6, 8


def distill(cli: Cli, pipeline: Pipeline, *more: object) -> Ran:
    student = pipeline.made("student")
    return cli("distill", "--method", "dpo", "--student", student, "--data", pipeline.data, *STEPS, *more)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.fixture
def store(pipeline: Pipeline) -> Store:
    return Store.find(pipeline.store)


def test_a_default_said_aloud_is_the_default(cli: Cli, pipeline: Pipeline) -> None:
    def planned(*more: str) -> str:
        return distill(cli, pipeline, "-n", *more).rows[-1][4]

    usual = planned()
    assert planned("--select", "last", "--keep", "selected") == planned("--set", "distill.select=last") == usual
    assert len({usual, planned("--select", "best"), planned("--select", "3"), planned("--keep", "all")}) == 4


def test_the_best_point_is_what_an_evaluation_finds_best(cli: Cli, pipeline: Pipeline, store: Store) -> None:
    made = distill(cli, pipeline, "--select", "best", "--keep", "all", "--lr", "3e-3")
    folder = store.root / made.ref
    chosen = store.resolve(made.ref).metrics["selection"]
    assert [point["step"] for point in chosen["points"]] == [2, 4, 6, 8]
    assert chosen["rule"] == "best"
    assert f"best step is {chosen['step']} of 8" in made.err
    assert weights(folder) == weights(folder / f"step-{chosen['step']:06d}")
    assert len({weights(folder / f"step-{step:06d}") for step in (2, 4, 6, 8)}) == 4

    points = {point["step"]: point for point in chosen["points"]}
    for model, step in ((made.ref, chosen["step"]), (f"./adpa-store/{made.ref}/step-000002", 2)):
        words = ("eval", model, "--suite", "accuracy", "--data", pipeline.data, *LIKE_TINY)
        ran = cli(*words, "--set", "measure_on=validation")
        assert ran.code == 0, ran.err
        scores = store.resolve(ran.out.splitlines()[-1]).metrics["scores"]
        assert scores["reward_accuracy"]["value"] == pytest.approx(points[step]["accuracy"])
        assert scores["reward_accuracy"]["n"] == points[step]["pairs"]
        assert 0 < points[step]["pairs"] < 12
    best = max(points.values(), key=lambda p: (p["accuracy"], p["margin"], p["step"]))
    assert chosen["step"] == best["step"]

    assert cli("verify", made.ref).out == f"{made.ref}\twhole\n"
    (folder / "step-000004" / "config.json").write_text("{}")
    damaged = cli("verify", made.ref)
    assert damaged.code == 5
    assert "step-000004/config.json" in damaged.err
    shown = json.loads(cli("show", made.ref, "--json").out)
    assert shown["metrics"]["selection"] == chosen
    assert cli("path", made.ref).out == f"{folder}\n"


def test_what_selected_a_model_does_not_measure_it(cli: Cli, pipeline: Pipeline, store: Store) -> None:
    """The held-out prompts are cut in two by their hash; a comparison stays on the prompts of both."""
    usual, best = distill(cli, pipeline).ref, distill(cli, pipeline, "--select", "best").ref
    words = ("--suite", "accuracy", "--data", pipeline.data)

    def measured(*more: object) -> tuple[dict[str, Any], dict[str, Any], str]:
        ran = cli("eval", *more, *words)
        made = store.resolve(ran.ref)
        figures = json.loads((store.folder(made.ref) / "scores.json").read_text())
        return figures["rows"]["margin"], made.metrics, made.ref

    report, said, ref = measured(best)
    everything, nothing, other = measured(usual)
    validation, _, _ = measured(best, "--set", "measure_on=validation")
    whole, shared, _ = measured(best, "--set", "measure_on=all")
    assert said["prompts"] == "report half"
    assert shared["prompts"] == "some of which selected it"
    assert "prompts" not in nothing
    assert (len(everything), set(whole)) == (12, set(everything))
    assert not report.keys() & validation.keys()
    assert report.keys() | validation.keys() == everything.keys()
    assert len(validation) == store.resolve(best).metrics["selection"]["points"][0]["pairs"]

    rows = cli("show", other, ref).rows
    (row,) = [row for row in rows if row[0].endswith("on the prompts that both answered")]
    wins = [np.mean([float(margins[pair] > 0) for pair in report]) for margins in (report, everything)]
    assert row[2].startswith(f"{100 * (wins[0] - wins[1]):+.1f} ")
    both = cli("eval", best, usual, *words).out.split()
    assert both[0] == ref
    assert store.resolve(both[1]).metrics["prompts"] == "report half", "what is measured together, on the same prompts"
    assert "metrics   prompts report half\n" in cli("show", ref).out


def test_other_data_may_hold_the_prompts_that_selected(cli: Cli, pipeline: Pipeline, store: Store) -> None:
    """They are of the same half there: what selected a model does not measure it under another name either."""
    rows = [json.loads(line) for line in (pipeline.data / "test.jsonl").read_text().splitlines()]
    others = pipeline.store.parent / "others"
    others.mkdir()
    write_rows(others / "train.jsonl", world.preferences("train")[:40])
    write_rows(others / "test.jsonl", [*rows, *world.preferences("test")[20:30]])
    words = ("--suite", "accuracy", "--data", others)
    best = distill(cli, pipeline, "--select", "best").ref
    everything = distill(cli, pipeline, "--select", "best", "--set", "select_on=all").ref

    def prompts(ref: str, *more: object) -> str | None:
        return store.resolve(cli("eval", ref, *words, *more).ref).metrics.get("prompts")

    assert prompts(best) == "report half"
    assert prompts(best, "--set", "measure_on=all") == "some of which may have selected it"
    assert prompts(everything) == "report half, some of which may have selected it"
    assert prompts(distill(cli, pipeline).ref) is None


def test_a_half_without_prompts_is_refused_before_any_work(cli: Cli, pipeline: Pipeline) -> None:
    folder = pipeline.store.parent / "one-half"
    folder.mkdir()
    held = pairs_of((str(pipeline.data),), "test", None, False).items.of_half("validation", "pairs")
    asked = {pair.prompt[-1].content for pair in held}
    for split in ("train", "test"):
        rows = [json.loads(line) for line in (pipeline.data / f"{split}.jsonl").read_text().splitlines()]
        kept = [row for row in rows if split == "train" or row["prompt"][-1]["content"] in asked]
        write_rows(folder / f"{split}.jsonl", kept)
    words = ("distill", "--method", "dpo", "--student", pipeline.made("student"), "--data", folder, *STEPS[:-1], "-n")
    assert cli(*words).code == 0
    said = cli.refused(1, *words, "--select", "best")
    assert "none of the held-out prompts of one-half falls into the half used for report" in said
    assert "or use all of them: --set eval.measure_on=all" in said
    assert cli(*words, "--select", "best", "--set", "eval.measure_on=all").code == 0


def test_a_kept_point_is_measured_as_its_training_is(cli: Cli, pipeline: Pipeline, store: Store) -> None:
    """On its data, beside the model that it was trained from, and on the prompts that selected no point of it."""
    best = distill(cli, pipeline, "--select", "best", "--keep", "all").ref
    whole, point = (store.resolve(cli("eval", ref, "--suite", "agreement").ref) for ref in (best, f"{best}@2"))
    assert point.metrics["prompts"] == whole.metrics["prompts"] == "report half"
    assert (point.inputs["data"], point.inputs["reference"]) == (whole.inputs["data"], whole.inputs["reference"])
    said = cli.refused(3, "eval", f"{best}@3")
    assert f"try: {best}@2 or {best}@4 or {best}@6 or {best}@8" in said


def test_a_point_that_all_prompts_selected_has_the_id_of_before(cli: Cli, pipeline: Pipeline, store: Store) -> None:
    whole = distill(cli, pipeline, "--select", "best", "--set", "select_on=all").ref
    made = store.resolve(whole)
    assert "select_on" not in made.spec
    assert made.metrics["selection"]["points"][0]["pairs"] == 12
    measured = store.resolve(cli("eval", whole, "--suite", "accuracy", "--data", pipeline.data).ref)
    assert measured.metrics["prompts"] == "report half, which selected it"
    last, without = (distill(cli, pipeline, "-n", *more).rows[-1][4] for more in (("--set", "select_on=all"), ()))
    assert last == without, "nothing is selected"


def test_a_step_has_the_weights_of_the_whole_run_after_it(cli: Cli, pipeline: Pipeline, store: Store) -> None:
    whole = distill(cli, pipeline, "--keep", "all")
    early = distill(cli, pipeline, "--select", "4")
    assert weights(store.root / early.ref) == weights(store.root / whole.ref / "step-000004")
    assert weights(store.root / whole.ref) == weights(store.root / whole.ref / "step-000008")
    assert len((store.root / early.ref / "metrics.jsonl").read_text().splitlines()) == 4
    assert not [name for name in store.resolve(early.ref).files if "/" in name]
    assert "selection" not in distill(cli, pipeline).err


def test_sft_selects_by_the_likelihood_of_held_out_dialogues(cli: Cli, pipeline: Pipeline, store: Store) -> None:
    made = cli("sft", "--model", "tiny", "--data", pipeline.data, "--epochs", "2", "--batch-size", "20",
               "--limit", "40", "--select", "best")  # fmt: skip
    chosen = store.resolve(made.ref).metrics["selection"]
    assert [point["step"] for point in chosen["points"]] == [1, 2, 3, 4]
    assert chosen["step"] == min(chosen["points"], key=lambda point: point["nll"])["step"]
    assert chosen["points"][0]["nll"] > chosen["points"][-1]["nll"] > 0
    assert "step-" not in " ".join(store.resolve(made.ref).files)


@pytest.mark.parametrize(
    ("more", "code", "words"),
    [
        (("--select", "9"), 2, "--select 9 is not possible: the run has only 8 steps"),
        (("--select", "5", "--max-steps", "4"), 2, "--select 5 is not possible: the run has only 4 steps"),
        (("--select", "first"), 2, "select must be last, best, or the number of a step from 1; got first"),
        (("--select", "0"), 2, "select must be last, best, or the number of a step from 1; got 0"),
        (("--keep", "none"), 2, "keep must be one of selected, all; got none"),
    ],
)
def test_what_cannot_be_selected_is_refused(
    more: tuple[str, ...], code: int, words: str, cli: Cli, pipeline: Pipeline
) -> None:
    before = sorted(path.name for path in (pipeline.store / "distill").iterdir())
    student = ("distill", "--method", "dpo", "--student", pipeline.made("student"), "--data", pipeline.data)
    assert words in cli.refused(code, *student, *STEPS, *more)
    assert sorted(path.name for path in (pipeline.store / "distill").iterdir()) == before


def test_best_without_held_out_rows_is_refused_before_anything_is_made(cli: Cli, pipeline: Pipeline) -> None:
    one = pipeline.store.parent / "one.jsonl"
    one.write_text((pipeline.data / "train.jsonl").read_text().splitlines()[0] + "\n")
    found = cli.refused(
        1, "distill", "--method", "dpo", "--student", pipeline.made("student"), "--data", one, "--select", "best"
    )
    assert "--select best needs held-out rows of one.jsonl" in found
