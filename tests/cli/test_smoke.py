"""`--smoke` rehearses every stage of a plan for real, small, under ids of its own that no list or `@latest` shows."""

from __future__ import annotations

import json

from adpa_cli.store.store import Store
from support.cli_samples import Cli

ADPA_PLUS = ("distill", "--method", "adpa+", "--student", "tiny")


def test_every_stage_is_rehearsed_on_64_rows_and_4_steps_and_kept_out_of_sight(cli: Cli) -> None:
    plan = cli(*ADPA_PLUS, "--smoke", "-n").rows
    ran = cli(*ADPA_PLUS, "--smoke")
    store = Store.find()
    made = store.artifacts()
    assert {row[4] for row in plan} == {manifest.ref for manifest in made}
    assert {row[2] for row in plan} >= {"student", "aligned teacher", "signal", "rollouts", "distill adpa", "eval"}
    assert all(manifest.made["smoke"] is True and manifest.spec["smoke"] is True for manifest in made)
    for manifest in made:
        if manifest.stage in ("sft", "dpo-teacher", "distill"):
            steps = (store.folder(manifest.ref) / "metrics.jsonl").read_text().splitlines()
            assert [json.loads(line)["step"] for line in steps if "step" in json.loads(line)][-1] == 4, manifest.ref
            assert manifest.metrics["examples"] == 64
        elif manifest.stage == "rollout":
            assert manifest.metrics["answers"] <= 64
        elif manifest.stage == "eval":
            assert {score["n"] for score in manifest.metrics["scores"].values()} <= set(range(65))
    assert "WIN RATE" in ran.err
    assert cli("show").out == ""
    assert ran.ref in cli("show", "--all").out
    cli.refused(3, "show", "distill@latest")
    assert cli("show", ran.ref).code == 0


def test_a_rehearsal_has_ids_of_its_own_and_moves_no_other(cli: Cli) -> None:
    real = {row[4] for row in cli(*ADPA_PLUS, "-n").rows}
    rehearsed = {row[4] for row in cli(*ADPA_PLUS, "--smoke", "-n").rows}
    assert len(rehearsed) == len(real)
    assert not rehearsed & real
    # What a rehearsal cuts away anyway does not tell two of them apart.
    words = (*ADPA_PLUS, "--smoke", "--limit", "1000", "--max-steps", "500", "-n")
    assert {row[4] for row in cli(*words).rows} == rehearsed
