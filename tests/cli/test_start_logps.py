"""Start log-probs through the commands: scored once for all trainings that compare with a model, and in no id."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from adpa_cli.data.chat import Encoder
from adpa_cli.data.examples import Message
from adpa_cli.data.templates import Template
from adpa_cli.data.tokenizer import Tokenizer
from adpa_cli.engine.models import load
from adpa_cli.store import gc
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store
from support.cli_samples import Cli, Pipeline, Ran

STEPS = ("--max-steps", "2", "--no-eval")

RESULTS = ("distill", "eval")


@pytest.fixture
def words(pipeline: Pipeline) -> list[str]:
    """A training with DPO from the student of the pipeline, on twelve of its pairs."""
    Path("few").mkdir()
    for split, count in (("train", 12), ("test", 2)):
        rows = (pipeline.data / f"{split}.jsonl").read_text().splitlines(keepends=True)[:count]
        Path(f"few/{split}.jsonl").write_text("".join(rows))
    return ["distill", "--student", pipeline.made("student"), "--data", "./few", *STEPS]


def states(ran: Ran) -> list[tuple[str, str]]:
    """(found or build, role) of every stage of a plan."""
    return [(row[1], row[2]) for row in ran.rows]


def of_stage(store: Path, stage: str) -> list[Manifest]:
    return [manifest for manifest in Store.find(store).artifacts() if manifest.stage == stage]


def test_trainings_on_one_start_share_them(pipeline: Pipeline, cli: Cli, words: Sequence[str]) -> None:
    before = of_stage(pipeline.store, "start-logps")
    assert states(cli(*words, "--method", "dpo", "-n")) == [("build", "start log-probs"), ("build", "distill dpo")]
    first = cli(*words, "--method", "dpo")
    assert "mean log-prob of a token: chosen -" in first.err
    others = {
        "distill dpo": ["--method", "dpo", "--set", "beta=0.3", "--lr", "1e-4", "--seed", "3"],
        "distill wpo": ["--method", "wpo"],
    }
    for role, more in others.items():
        assert states(cli(*words, *more, "-n")) == [("found", "start log-probs"), ("build", role)]
        assert cli(*words, *more).ref != first.ref
    explicit = [*words, "--method", "ddpo", "--set", "reward=explicit", "-n"]
    assert ("found", "start log-probs") in states(cli(*explicit, "--reward-model", "tiny"))
    (made,) = (one for one in of_stage(pipeline.store, "start-logps") if one not in before)
    readers = [one for one in of_stage(pipeline.store, "distill") if one.derived()]
    assert [one.derived() for one in readers] == [[("start-logps", made.id)]] * 3
    assert "start-logps" not in readers[0].inputs
    assert states(cli(*words, "--method", "dpo", "-n")) == [("found", "distill dpo")]
    assert states(cli(*words, "--method", "dpo", "--limit", "8", "-n"))[0] == ("build", "start log-probs")
    smoke = cli("show", cli(*words, "--method", "dpo", "--smoke").ref, "--json")
    rehearsed = json.loads(smoke.out)["made"]["derived"]["start-logps"]
    assert Store.find(pipeline.store).get(rehearsed).made["smoke"] is True


def test_a_grid_scores_a_start_once(pipeline: Pipeline, cli: Cli, words: Sequence[str]) -> None:
    Path("grid.toml").write_text(
        f'method = ["dpo", "wpo"]\nstudent = "{words[2]}"\ndata = "./few"\nmax-steps = 1\nno-eval = true\n'
        "beta = [0.1, 0.5]\n[start-logps]\nblock_tokens = 100\n"
    )
    before = len(of_stage(pipeline.store, "start-logps"))
    ran = cli("run", "grid.toml")
    assert len(ran.out.split()) == 4, ran.err
    assert len(of_stage(pipeline.store, "start-logps")) == before + 1
    assert of_stage(pipeline.store, "start-logps")[0].spec["block_tokens"] == 100


def test_how_they_are_cut_is_in_their_id_and_in_no_other(cli: Cli, words: Sequence[str]) -> None:
    (first, dpo), (other, same) = (
        [row[4] for row in cli(*words, "--method", "dpo", *more, "-n").rows]
        for more in ([], ["--set", "start-logps.block_tokens=100"])
    )
    assert first != other
    assert dpo == same
    said = cli.refused(2, *words, "--method", "dpo", "--set", "start-logps.dtype=bfloat16")
    assert "try: settings and defaults: block_tokens=16384" in said
    plan = json.loads(cli(*words, "--method", "dpo", "-n", "--json").out)
    step, training = plan["rows"]
    assert (step["stage"], step["state"], step["rows"]) == ("start-logps", "build", 12)
    assert all(step[key] > 0 for key in ("bytes", "memory", "seconds"))
    assert step["memory"] < training["memory"]


def test_a_training_reads_the_numbers_of_its_start(pipeline: Pipeline, cli: Cli, words: Sequence[str]) -> None:
    """The loss of a second step, from plain forwards of the start and of the weights that the first step left."""
    run = [*words, "--method", "dpo", "--batch-size", "12", "--epochs", "2", "--keep", "all"]
    ref = cli(*run).ref
    made = Store.find(pipeline.store).get(ref)
    assert made is not None
    losses = [json.loads(line)["loss"] for line in (pipeline.store / ref / "metrics.jsonl").read_text().splitlines()]
    start, moved = pipeline.store / pipeline.made("student"), pipeline.store / ref / "step-000001"
    before, after = sums(start, made), sums(moved, made)
    h = [(b[0] - a[0]) - (b[1] - a[1]) for a, b in zip(before, after, strict=True)]
    wanted = -torch.nn.functional.logsigmoid(made.spec["params"]["beta"] * torch.tensor(h)).mean()
    assert losses[1] == pytest.approx(float(wanted), rel=1e-5)
    assert losses[1] != losses[0]


def sums(folder: Path, made: Manifest) -> list[tuple[float, float]]:
    """Log-probs of the chosen and of the rejected answer of each pair, one forward each, in float64."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), load(folder).double()
    encoder = Encoder(Tokenizer.of(folder), Template(made.spec["template"], made.spec["end"]))
    found = []
    for line in Path("few/train.jsonl").read_text().splitlines():
        row = json.loads(line)
        both = []
        for part in ("chosen", "rejected"):
            ids = tokenizer.apply_chat_template([*row["prompt"], *row[part]])["input_ids"]
            turns = tuple(Message(**turn) for turn in row["prompt"])
            answer = encoder.answer(turns, row[part][-1]["content"])
            assert ids[-len(answer) :] == answer
            with torch.no_grad():
                logps = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            at = range(len(ids) - len(answer), len(ids))
            both.append(sum(float(logps[t - 1, ids[t]]) for t in at))
        found.append((both[0], both[1]))
    return found


def test_what_was_made_from_them_stays_whole_without_them(pipeline: Pipeline, cli: Cli, words: Sequence[str]) -> None:
    ref = cli(*words, "--method", "dpo").ref
    (_, scored) = next(one for one in of_stage(pipeline.store, "distill") if one.ref == ref).derived()[0]
    made = Store.find(pipeline.store).get(scored)
    assert made is not None
    page = json.loads(cli("show", made.ref, "--json").out)
    assert page["used_by"] == [{"ref": ref, "what": f"dpo β 0.5 from {words[2]}"}]
    assert page["metrics"]["tokens"] > 0
    below = json.loads(cli("show", ref, "--json").out)["made_from"]
    assert made.ref in [link["ref"] for link in below if link["role"] == "start-logps"]
    assert f"{made.ref}\tlog-probs of chosen+rejected, under {words[2]}" in cli("show").out
    assert cli("verify", made.ref).rows == [[made.ref, "whole"]]

    store = Store.find(pipeline.store)
    assert {item.ref: item.why for item in gc.survey(store, gc.Keep(RESULTS, (), 14)).kept}[
        made.ref
    ] == "made in the last 14 days"
    gone = gc.survey(store, gc.Keep(RESULTS, (), 0)).removed
    assert made.ref in {item.ref for item in gone}
    assert ref not in {item.ref for item in gone}
    gc.collect(store, gc.survey(store, gc.Keep(RESULTS, (), 0)), gc.Keep(RESULTS, (), 0), "adpa gc")
    assert "start-logps" not in json.dumps(json.loads(cli("show", ref, "--json").out)["made_from"])
    assert "Nothing to do" in cli(*words, "--method", "dpo").err
    assert store.get(scored) is None, "nothing is built for what is there"
    Path("again.toml").write_text(cli("show", ref, "--recipe").out)
    assert cli("run", "again.toml").ref == ref
    cli(*words, "--method", "dpo", "--seed", "5")
    assert store.get(scored) == made or store.get(scored).files == made.files


def test_their_recipe_is_that_of_a_training_which_reads_them(
    pipeline: Pipeline, cli: Cli, words: Sequence[str]
) -> None:
    (of_teacher,) = of_stage(pipeline.store, "start-logps")
    text = cli("show", of_teacher.ref, "--recipe").out
    assert text.startswith(f"# makes {of_teacher.ref}, on the way to {pipeline.made('distill adpa')}: ")
    ref = cli(*words, "--method", "dpo", "--set", "start-logps.block_tokens=64").ref
    (made,) = (one for one in of_stage(pipeline.store, "start-logps") if one != of_teacher)
    Path("again.toml").write_text(cli("show", made.ref, "--recipe").out)
    assert f"on the way to {ref}" in Path("again.toml").read_text()
    shutil.rmtree(pipeline.store / made.ref)
    shutil.rmtree(pipeline.store / ref)
    assert cli("run", "again.toml").ref == ref
    assert Store.find(pipeline.store).get(made.id) is not None


def test_a_damaged_table_stops_a_training_with_what_to_do(pipeline: Pipeline, cli: Cli, words: Sequence[str]) -> None:
    cli(*words, "--method", "dpo")
    made = of_stage(pipeline.store, "start-logps")[0]
    table = pipeline.store / made.ref / "logps.parquet"
    table.write_bytes(table.read_bytes()[:-40])
    assert f"{made.ref}\tlogps.parquet" in cli.refused(5, "verify", made.ref)
    said = cli.refused(5, *words, "--method", "wpo")
    assert f"{made.ref}: logps.parquet cannot be read: " in said
    assert f"try: move the folder {table.parent} away and repeat the command: it is made again" in said
    shutil.move(table.parent, "away")
    assert cli(*words, "--method", "wpo").ref.startswith("distill/")
    assert Store.find(pipeline.store).get(made.id) is not None


def test_what_stands_against_a_training_is_told_once(cli: Cli, words: Sequence[str]) -> None:
    """The stage that scores its start has the same model, data and lengths."""
    said = cli.refused(1, *words, "--method", "dpo", "--set", "max_length=100000")
    assert said.startswith("distill: max_length=100000 is more than the ")
    assert "problems" not in said
