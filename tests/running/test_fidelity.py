"""`adpa show SIGNAL --fidelity`: what a signal keeps of its teachers, against sums and softmaxes made here."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from adpa_cli.engine.layout.examples import read_rollouts
from adpa_cli.report import signal_rows as report
from adpa_cli.signal.shard import Shard, SignalReader, write_shard
from adpa_cli.signal.stored_frames import column_bytes
from support.cli_samples import Cli, Pipeline
from support.signal_samples import sample_answers, spec_of


@pytest.mark.parametrize("pair", [True, False])
@pytest.mark.parametrize("step", [1 / 32, 0.0])
def test_bytes_by_column_sum_to_the_file_and_follow_its_content(tmp_path: Path, pair: bool, step: float) -> None:
    answers = sample_answers((40, 7, 0, 23), 20, 500, pair=pair)
    path = tmp_path / "signal-00000.adpa"
    write_shard(path, spec_of(20, 500, pair=pair, step=step, pair_step=step / 4), answers)
    found = column_bytes(path)
    assert sum(found.values()) == pytest.approx(path.stat().st_size)
    assert found["framing"] >= path.stat().st_size - sum(Shard(path).sizes)
    assert (found["reference"] > 0) == pair
    # 70 tokens: float32 noise does not compress below 3 bytes, and no code says which 20 of 500 ids in fewer bits.
    assert found["aligned"] > 70 * 20 * (3 if step == 0 else 0.5)
    least = 70 * math.log2(math.comb(500, 20)) / 8
    assert least < found["ids"] < 1.5 * least


def test_the_histogram_counts_every_token_and_the_mass_is_that_of_the_rows(pipeline: Pipeline, cli: Cli) -> None:
    ref = pipeline.made("signal #2")
    found = json.loads(cli("show", ref, "--fidelity", "--json").out)
    reader = SignalReader(pipeline.store / ref)
    rows = [rows for shard in reader.shards for _, rows in shard]
    mass = np.concatenate([np.exp(r.logps.astype(np.float64)).sum(1) for r in rows])
    assert found["mean_mass"] == pytest.approx(mass.mean())
    assert sum(entry["tokens"] for entry in found["mass_histogram"]) == len(mass) == found["tokens"]
    for entry in found["mass_histogram"][:-1]:
        assert entry["tokens"] == np.count_nonzero((mass >= entry["from"]) & (mass < entry["to"]))
    outside = np.concatenate([(r.ids != r.label_ids[:, None]).all(1) for r in rows])
    assert found["taken_outside"] == pytest.approx(outside.mean())
    size = sum(shard.path.stat().st_size for shard in reader.shards)
    assert found["bytes_per_token"]["all"] == pytest.approx(size / len(mass))
    assert found["rms_advantage_steps"] == pytest.approx(found["rms_advantage"] * 128)
    named = dict(cli("show", ref, "--fidelity").rows)
    assert float(named["mean_mass"]) == pytest.approx(mass.mean())
    lines = report.screen(found, 80).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].startswith(ref)


def test_a_signal_against_its_recorded_teachers(pipeline: Pipeline, cli: Cli) -> None:
    ref = pipeline.made("signal #2")
    found = json.loads(cli("show", ref, "--fidelity", "--teacher", "recorded", "--rows", "40", "--json").out)
    measured = found["measured"]
    # Every answer at once, through transformers' own forward.
    model = AutoModelForCausalLM.from_pretrained(pipeline.store / pipeline.made("aligned teacher"))
    reader = SignalReader(pipeline.store / ref)
    stored = {key.example_id: rows for shard in reader.shards for key, rows in shard}
    kl, hits, tokens = 0.0, 0, 0
    for row in read_rollouts(pipeline.store / pipeline.made("rollouts")):
        if row.id not in stored:
            continue
        ids = torch.tensor([[*row.prompt_ids, *row.answer_ids][:-1]])
        with torch.no_grad():
            p = model(ids).logits[0, len(row.prompt_ids) - 1 :].double().log_softmax(-1).numpy()
        mine = stored[row.id]
        for t, label in enumerate(row.answer_ids):
            classes = dict(zip(mine.ids[t].tolist(), mine.logps[t].tolist(), strict=True))
            classes.setdefault(label, float(mine.label_logps[t]))
            rest = 1 - np.exp([p[t, i] for i in classes]).sum()
            kl += sum(np.exp(p[t, i]) * (p[t, i] - q) for i, q in classes.items())
            kl += rest * (np.log(rest) - float(mine.rest_logps[t])) if rest > 1e-12 else 0.0
            hits += max(classes, key=lambda i: classes[i]) == p[t].argmax()
            tokens += 1
    assert measured["tokens"] == tokens
    assert measured["kl_error"] == pytest.approx(kl / tokens, rel=0.02, abs=1e-7)
    assert measured["top1_agreement"] == pytest.approx(hits / tokens, abs=0.01)
    assert 0.9 < measured["adpa_gradient_cosine"] <= 1
    assert 0.9 < measured["dckd_gradient_cosine"] <= 1
    assert measured["student"] == "the reference teacher"


def test_one_teacher_an_own_choice_of_answers_and_what_is_refused(pipeline: Pipeline, cli: Cli) -> None:
    ref, teacher = pipeline.made("signal #1"), pipeline.made("aligned teacher")
    words = ("show", ref, "--fidelity", "--teacher", teacher, "--rows", "2")
    found = json.loads(cli(*words, "--json").out)["measured"]
    assert found == json.loads(cli(*words, "--json").out)["measured"]
    assert found["answers"] == 2
    assert "adpa_gradient_cosine" not in found
    assert found["dckd_gradient_cosine"] > 0.9
    assert "half its logits" in found["student"]
    student = pipeline.made("student")
    assert "is not the aligned teacher" in cli.refused(2, "show", ref, "--fidelity", "--teacher", student)
    assert "measures teacher signals" in cli.refused(2, "show", student, "--fidelity")
    assert "--fidelity --teacher recorded" in cli.refused(2, "show", ref, "--teacher", teacher)
    assert "--rows must be 1 or more; got 0" in cli.refused(
        2, "show", ref, "--fidelity", "--teacher", teacher, "--rows", "0"
    )
