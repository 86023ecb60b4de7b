"""`adpa export --dtype`: what rounding keeps of a training that two bytes hardly hold, and what is said of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from adpa_cli.cli.main import main
from adpa_cli.store.store import Store
from support.cli_samples import Cli, Pipeline
from support.model_folders import write_model

FLOAT32 = ("--set", "eval.dtype=float32", "--set", "eval.max_length=256")
ANSWERS = (*FLOAT32, "--set", "rollout.max_new_tokens=8", "--set", "rollout.max_length=256")
SMALL = ("--set", "dtype=float32", "--set", "dpo-teacher.max_length=256")


@dataclass(frozen=True)
class Light:
    """A teacher of three light DPO steps, the folder with weights in bfloat16 that it started from, and its store."""

    ref: str
    start: Path
    folder: Path
    data: Path


@pytest.fixture(scope="module")
def trained_lightly(shared_pipeline: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the start and the store; nothing may be written there."""
    folder = tmp_path_factory.mktemp("light")
    shutil.copytree(shared_pipeline.store, folder / "adpa-store")
    whole = ("--store", str(folder / "adpa-store"), "-q")
    start = str(folder / "start")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        assert main(["export", shared_pipeline.made("student"), start, "--dtype", "bfloat16", *whole]) == 0
        words = ("--data", str(shared_pipeline.data), "--max-steps", "3", "--batch-size", "8", "--lr", "2e-6", *SMALL)
        assert main(["dpo-teacher", "--reference", start, *words, "--tag", "light", *whole]) == 0
    return folder


@pytest.fixture
def light(trained_lightly: Path, shared_pipeline: Pipeline, cli: Cli, tmp_path: Path) -> Light:
    """The teacher in a store of the working directory."""
    shutil.copytree(trained_lightly / "adpa-store", tmp_path / "adpa-store")
    ref = Store.find(tmp_path / "adpa-store").resolve("light").ref
    return Light(ref, trained_lightly / "start", tmp_path / "adpa-store" / ref, shared_pipeline.data)


def kept(light: Light, exported: Path) -> float:
    """The part of the update of the layers' matrices that exported weights hold: its projection on the true one."""
    before, after, written = (load_file(f / "model.safetensors") for f in (light.start, light.folder, exported))
    names = [name for name, value in after.items() if value.dim() == 2 and ".layers." in name]
    true, left = (
        torch.cat([(of[name].double() - before[name].double()).flatten() for name in names]) for of in (after, written)
    )
    return float(left @ true / (true @ true))


def test_what_nearest_would_lose_is_rounded_at_random(light: Light, cli: Cli, tmp_path: Path) -> None:
    ran = cli("export", light.ref, "half", "--dtype", "bfloat16", "--json")
    weights = json.loads(ran.out)["weights"]
    assert (weights["dtype"], weights["rounding"], weights["watch"]) == ("bfloat16", "stochastic", [])
    seen = weights["update"]["seen"]
    assert seen["nearest"] < 0.5
    assert seen["stochastic"] > 0.9
    assert kept(light, tmp_path / "half") == pytest.approx(seen["stochastic"], abs=1e-6)
    assert weights["update"]["from"] == "start"
    assert "bfloat16 by nearest would keep" in ran.err
    assert "rounded stochastically" in ran.err
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "half").dtype == torch.bfloat16
    cli("export", light.ref, "again", "--dtype", "bfloat16", "--rows", "0", "--rounding", "stochastic")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("half", "again")]
    assert files[0] == files[1]


def test_nearest_is_done_when_it_is_asked_for_with_a_warning(light: Light, cli: Cli, tmp_path: Path) -> None:
    ran = cli("export", light.ref, "half", "--dtype", "bfloat16", "--rounding", "nearest", "--rows", "0", "-q")
    assert ran.rows == [["half"]]
    assert ran.err.startswith("Warning: most of what training changed is lost")
    assert "--rounding stochastic" in ran.err
    assert kept(light, tmp_path / "half") < 0.5
    before, after = (load_file(folder / "model.safetensors") for folder in (light.folder, tmp_path / "half"))
    assert all(torch.equal(after[name], before[name].bfloat16()) for name in before)
    ran = cli("export", light.ref, "measured", "--dtype", "bfloat16", "--rounding", "nearest", "--json")
    assert json.loads(ran.out)["weights"]["held_out"]["after"]["kept"] < 0.7
    assert "held-out" not in (tmp_path / "half" / "README.md").read_text()


def test_figures_are_those_of_the_evaluation_and_on_the_card(light: Light, cli: Cli, tmp_path: Path) -> None:
    ran = cli("export", light.ref, "half", "--dtype", "bfloat16", "--json")
    measured = json.loads(ran.out)["weights"]["held_out"]
    assert (measured["data"], measured["rows"]) == ("pairs", 12)
    store = Store.find(tmp_path / "adpa-store")
    for place, model in (("before", light.ref), ("after", "./half")):
        made = cli("eval", model, "--suite", "accuracy", "--data", light.data, *FLOAT32).ref
        scores = store.resolve(made).metrics["scores"]
        assert measured[place]["reward_accuracy"] == pytest.approx(scores["reward_accuracy"]["value"])
    card = (tmp_path / "half" / "README.md").read_text()
    assert "## Weights" in card
    assert "| on 12 held-out rows of pairs, computed in float32 | as trained | in bfloat16 |\n|---|---|---|\n" in card
    for name, figures in (
        ("reward accuracy", "reward_accuracy"),
        ("implicit reward ranks the pair right", "agreement"),
    ):
        row = f"| {name} | {100 * measured['before'][figures]:.1f} % | {100 * measured['after'][figures]:.1f} % |"
        assert row in card
    assert str(tmp_path) not in card
    assert "training had changed it by" in ran.err
    assert measured["before"]["kept"] == pytest.approx(1)
    assert measured["after"]["kept"] == pytest.approx(1, abs=0.3)


def test_log_probs_are_those_of_transformers(light: Light, cli: Cli, tmp_path: Path) -> None:
    """The mean over the tokens of the chosen answers, computed from the logits of the folder that was written."""
    from adpa_cli.engine.layout.examples import pair_examples
    from adpa_cli.hub import Located
    from adpa_cli.spec import TrainSpec, make

    measured = json.loads(cli("export", light.ref, "half", "--dtype", "float16", "--json").out)["weights"]["held_out"]
    spec = make(TrainSpec, Store.find(tmp_path / "adpa-store").resolve(light.ref).spec)
    data = Located("data", "", "pairs", (str(light.data),))
    examples = pair_examples(spec, data, "test", light.folder)
    for place, folder in (("before", light.folder), ("after", tmp_path / "half")):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        values: list[float] = []
        for example in examples:
            ids = torch.tensor(example.parts["chosen"].ids[None].astype(np.int64))
            with torch.no_grad():
                logps = model(ids).logits[0].double().log_softmax(-1)
            values += [float(logps[i - 1, ids[0, i]]) for i in np.flatnonzero(example.parts["chosen"].answer)]
        assert measured[place]["logp_chosen"] == pytest.approx(np.mean(values), abs=1e-5)


def test_half_the_update_is_enough_for_nearest(pipeline: Pipeline, cli: Cli, tmp_path: Path) -> None:
    student = pipeline.made("student")
    ran = cli("export", student, "half", "--dtype", "float16", "--json")
    weights = json.loads(ran.out)["weights"]
    assert (weights["rounding"], weights["watch"]) == ("nearest", [])
    assert weights["update"]["seen"]["nearest"] > 0.5
    assert "float16 by nearest keeps" in ran.err
    assert weights["held_out"]["before"].keys() == weights["held_out"]["after"].keys() == {"logp"}
    assert "mean log-prob of a token of the answers, in nats: -" in ran.err
    before, after = (load_file(f / "model.safetensors") for f in (pipeline.store / student, tmp_path / "half"))
    assert all(torch.equal(after[name], before[name].half()) for name in before)


def test_what_is_not_known_is_said(light: Light, cli: Cli, tmp_path: Path) -> None:
    away = light.start.with_name("away")
    light.start.rename(away)
    try:
        ran = cli("export", light.ref, "half", "--dtype", "bfloat16", "--rows", "2")
    finally:
        away.rename(light.start)
    assert ran.code == 0
    assert "what bfloat16 keeps of the training is not known" in ran.err
    assert "to the nearest" in ran.err
    assert "implicit reward" not in ran.err
    assert "2 held-out rows of pairs" in ran.err
    write_model(tmp_path / "mine")
    ran = cli("export", "./mine", "other", "--dtype", "float16", "--rounding", "stochastic")
    assert "adpa did not train mine" in ran.err
    assert "rounded stochastically" in ran.err
    assert "held-out rows were not measured" in ran.err
    again = cli("export", "./other", "third", "--dtype", "float16")
    assert "all weights fit float16 exactly, so none is rounded" in again.err


def test_float32_is_the_same_model(light: Light, cli: Cli, tmp_path: Path) -> None:
    ran = cli("export", light.ref, "whole", "--dtype", "float32", "--json")
    assert "weights" not in json.loads(ran.out)
    before, after = (load_file(folder / "model.safetensors") for folder in (light.folder, tmp_path / "whole"))
    assert all(torch.equal(before[name], after[name]) for name in before)
    words = ("--data", light.data, "--suite", "tiny", *ANSWERS)
    store = Store.find(tmp_path / "adpa-store")
    scores = [store.resolve(cli("eval", model, *words).ref).metrics["scores"] for model in (light.ref, "./whole")]
    assert scores[0] == scores[1]
    asked = "2+2?\nhello\n"
    assert cli("chat", light.ref, "-", stdin=asked).out == cli("chat", "./whole", "-", stdin=asked).out != ""


def test_an_export_is_compared_with_what_it_was_made_from(light: Light, cli: Cli, tmp_path: Path) -> None:
    cli("export", light.ref, "half", "--dtype", "bfloat16", "--rows", "0")
    words = ("--against", light.ref, "--data", light.data, "--suite", "tiny", *ANSWERS)
    made = cli("eval", "./half", *words).ref
    scores: dict[str, Any] = Store.find(tmp_path / "adpa-store").resolve(made).metrics["scores"]
    assert scores["win_rate"]["against"] == light.ref
    assert 0 <= scores["win_rate"]["value"] <= 1


def test_the_weights_of_a_gguf_file_are_rounded_before_they_are_converted(
    light: Light, cli: Cli, tmp_path: Path
) -> None:
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text(
        "import pathlib, sys\n"
        "model, _, out, _, kind = sys.argv[1:]\n"
        "pathlib.Path(out).write_bytes(pathlib.Path(model, 'model.safetensors').read_bytes() + kind.encode())\n"
    )
    cli("export", light.ref, "plain", "--dtype", "float16", "--rounding", "stochastic", "--rows", "0")
    words = ("--to", "gguf", "--converter", script, "--dtype", "float16", "--rounding", "stochastic", "--rows", "0")
    assert cli("export", light.ref, "file", *words).code == 0
    made = sorted((tmp_path / "file").iterdir())
    assert [path.suffix for path in made] == [".md", ".gguf"]
    assert made[1].read_bytes() == (tmp_path / "plain" / "model.safetensors").read_bytes() + b"f16"


def test_options_without_meaning_are_refused(pipeline: Pipeline, cli: Cli, tmp_path: Path) -> None:
    ref = pipeline.made("student")
    assert "weights as they are" in cli.refused(2, "export", ref, "out", "--rounding", "nearest")
    assert "--dtype float32" in cli.refused(2, "export", ref, "out", "--dtype", "float32", "--rounding", "stochastic")
    assert "--rows has no effect with weights as they are" in cli.refused(2, "export", ref, "out", "--rows", "3")
    refused = cli.refused(2, "export", ref, "out", "--dtype", "float16", "--rows", "-1")
    assert "--rows must be 0 or more; got -1" in refused
    model = write_model(tmp_path / "huge")
    with torch.no_grad():
        model.get_parameter("model.layers.0.mlp.up_proj.weight")[0, 0] = 1e5
    model.save_pretrained(tmp_path / "huge")
    refused = cli.refused(1, "export", "./huge", "out", "--dtype", "float16")
    assert "model.layers.0.mlp.up_proj.weight" in refused
    assert "--dtype bfloat16" in refused
    assert not (tmp_path / "out").exists()
