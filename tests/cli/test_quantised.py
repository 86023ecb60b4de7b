"""`quantise` and `offload` through the command line: what they leave in a store, what is said and what is refused."""

from __future__ import annotations

import json
import math
import shutil
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from adpa_cli.engine.quantised import library
from adpa_cli.lab import BASES
from adpa_cli.signal.shard import SignalReader
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store
from support.cli_samples import Cli, Pipeline, write_pairs, write_rows
from support.light_update import write_pair
from support.tiny_models import TEMPLATE

NF4 = ("--set", "quantise=nf4")
LORA = ("--set", "lora=4", *NF4)
FEW = ("--limit", "24", "--batch-size", "8")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pairs; the store of the tests of this module is beside them."""
    return write_pairs(tmp_path_factory.mktemp("quantised"))


@pytest.fixture
def here(cli: Cli, place: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.chdir(place)
    return cli


def manifest(ref: str, store: str = "adpa-store") -> Manifest:
    found = Store.find(Path(store)).get(ref)
    assert found is not None
    return found


def files(ref: str, store: str | Path) -> dict[str, str]:
    """The digests of the files of an artifact but for its log."""
    return {name: facts["sha256"] for name, facts in manifest(ref, str(store)).files.items() if name != "log.txt"}


def captured(pipeline: Pipeline) -> list[str]:
    teachers = ("--teacher", pipeline.made("aligned teacher"), "--reference", pipeline.made("reference teacher"))
    return ["cache-teacher", *teachers, "--data", str(pipeline.data), "--limit", "12"]


def said(ran: Any) -> str:
    return " ".join(ran.err.split())


@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_a_capture_an_answer_and_a_score_of_a_quantised_model(how: str, pipeline: Pipeline, cli: Cli) -> None:
    quantise = ("--set", f"quantise={how}")
    ran = cli(*captured(pipeline), *quantise)
    made = manifest(ran.ref)
    assert made.spec["quantise"] == how
    assert made.metrics["stored"] == {"aligned": how, "reference": how}
    assert made.metrics["what"] == f"aligned+reference in {how}, on chosen+rejected"
    assert f"weights of its teachers stored as {how}" in said(ran)
    assert f"to {how} separately, which may lose much of their difference" in said(ran)
    shown = " ".join(cli("show", ran.ref).out.split())
    assert f"aligned+reference in {how}" in shown
    assert SignalReader(pipeline.store / ran.ref).spec.dtype == f"float32, weights in {how}"
    whole = cli(*captured(pipeline)).ref
    assert SignalReader(pipeline.store / whole).spec.dtype == "float32"
    assert files(whole, pipeline.store) != files(ran.ref, pipeline.store)

    student, data = pipeline.made("student"), str(pipeline.data)
    short = ("--limit", 6, "--set", "max_new_tokens=8")
    plain, few = (cli("rollout", "--student", student, "--data", data, *short, *own).ref for own in ((), quantise))
    assert manifest(few).metrics["what"].startswith(f"by {student} in {how}, ")
    assert plain != few
    scored = manifest(cli("eval", student, "--data", data, "--suite", "accuracy", *quantise).ref)
    assert scored.spec["quantise"] == how
    assert scored.metrics["scores"]["reward_accuracy"]["n"]


def test_a_signal_of_a_quantised_teacher_beside_the_whole_one(pipeline: Pipeline, cli: Cli) -> None:
    half = ("--set", "dtype=float16", "--precision", "0", "--pair-precision", "0")
    ran = cli(*captured(pipeline), *NF4, *half)
    line = "answers of the same nf4 weights were computed in float32 too: difference to the reference"
    asked = ("show", ran.ref, "--fidelity", "--teacher", "recorded", "--rows", 4)
    for told in (said(ran), " ".join(cli("show", ran.ref).out.split())):
        assert line in told
        assert "adpa show SIGNAL --fidelity --teacher recorded compares with whole weights" in told
    measured = json.loads(cli(*asked, "--json").out)["measured"]
    worst = min(value for name, value in measured.items() if name.endswith("_gradient_cosine"))
    assert (worst < 0.95) == ("watch" in measured)
    assert measured["stored"] == "nf4"
    assert measured["kl_error"] > 1e-4, "what nf4 loses, for the signal is stored whole"


def test_a_signal_that_few_bits_have_lost_is_warned_of(cli: Cli, tmp_path: Path) -> None:
    teacher, reference = write_pair(tmp_path / "pair", template=TEMPLATE)
    rows = [{"prompt": f"w{n} w{n + 1}", "chosen": f"w{n} w2 w{n} w4", "rejected": f"w{n + 1} w3 w5"} for n in range(8)]
    data = ("--data", write_rows(tmp_path / "pairs.jsonl", rows), "--set", "max_length=32")
    words = ("cache-teacher", "--teacher", teacher, "--reference", reference, *data)
    ref = cli(*words, *NF4).ref
    measured = json.loads(cli("show", ref, "--fidelity", "--teacher", "recorded", "--json").out)["measured"]
    assert measured["adpa_gradient_cosine"] < 0.95
    assert "store the signal again with whole weights, without --set cache-teacher.quantise=nf4" in measured["watch"]


@pytest.mark.parametrize(("dtype", "quantise"), [("float32", "none"), ("float16", "nf4"), ("bfloat16", "none")])
def test_where_layers_wait_changes_no_byte(dtype: str, quantise: str, pipeline: Pipeline, cli: Cli) -> None:
    words = [
        *captured(pipeline),
        "--set",
        f"dtype={dtype}",
        "--set",
        f"quantise={quantise}",
        "--set",
        "noise_answers=8",
    ]
    digests = []
    for where in ("none", "cpu", "disk"):
        store = shutil.copytree(pipeline.store, Path(f"store-{where}"))
        ran = cli(*words, "--runtime", f"offload={where}", "--runtime", "noise=accept", "--store", store)
        digests.append((ran.ref, files(ran.ref, store)))
    assert digests[0] == digests[1] == digests[2]


def test_scores_and_answers_where_layers_wait_on_the_disk(pipeline: Pipeline, cli: Cli) -> None:
    student, data = pipeline.made("student"), str(pipeline.data)
    for words in (("eval", student, "--data", data), ("rollout", "--student", student, "--data", data, "--limit", 6)):
        own = (*words, "--set", "max_length=64")
        stores = {where: shutil.copytree(pipeline.store, Path(f"{words[0]}-{where}")) for where in ("none", "disk")}
        here, away = (
            files(cli(*own, "--runtime", f"offload={where}", "--store", store).ref, store)
            for where, store in stores.items()
        )  # fmt: skip
        assert here == away


@pytest.mark.slow
def test_two_processes_give_the_bytes_of_one(pipeline: Pipeline, cli: Cli) -> None:
    words = [*captured(pipeline), *NF4, "--set", "block_tokens=256", "--runtime", "offload=disk"]
    stores = {count: shutil.copytree(pipeline.store, Path(f"store-{count}")) for count in (1, 2)}
    one, two = (
        files(cli(*words, "--gpus", count, "--store", store).ref, store) for count, store in stores.items()
    )  # fmt: skip
    assert one == two


def test_an_adapter_on_four_bits_learns_and_dpo_begins_at_log_2(here: Cli, place: Path) -> None:
    sft = here("sft", "--model", "tiny", *LORA, *FEW, "--max-steps", 12, "--set", "lr=1e-2").ref
    losses = [row["loss"] for row in steps(place, sft)]
    assert sum(losses[-3:]) < sum(losses[:3])
    dpo = ("dpo-teacher", "--reference", sft, "--data", "./pairs", *LORA, *FEW, "--max-steps", 8, "--set", "lr=1e-2")
    teacher = here(*dpo).ref
    losses = [row["loss"] for row in steps(place, teacher)]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6)
    assert min(losses) < 0.9 * losses[0]
    told = [m for m in Store.find(Path("adpa-store")).artifacts() if m.stage == "start-logps"]
    assert [m.spec.get("quantise") for m in told] == ["nf4"]

    words = ["cache-teacher", "--teacher", teacher, "--data", "./pairs", "--limit", 8]
    signal = manifest(here(*words, "--reference", sft).ref)
    assert signal.metrics["stored"] == {"aligned": "nf4", "reference": "nf4"}, "both are adapters on four bits"
    assert signal.metrics["rms_advantage"] > 0
    assert all(version(name) == signal.made["versions"][name] for name in ("peft", "bitsandbytes"))
    whole = here("sft", "--model", "tiny", *FEW, "--max-steps", 2).ref
    assert not {"peft", "bitsandbytes"} & manifest(whole).made["versions"].keys()
    refused = " ".join(here.refused(2, *words, "--reference", whole).split())
    assert f"would read {teacher} with nf4 weights but {whole} with whole weights" in refused
    assert "--set cache-teacher.quantise=nf4" in refused
    assert here(*words, "--reference", whole, *NF4).ref
    refused = here.refused(2, *words, "--reference", sft, "--set", "quantise=int8")
    assert "was trained with nf4 weights, and int8 weights were requested" in refused


def steps(place: Path, ref: str) -> list[dict[str, Any]]:
    path = place / "adpa-store" / ref / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_what_cannot_be_is_refused_before_any_work(
    pipeline: Pipeline, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, before = captured(pipeline), len(Store.find(pipeline.store).artifacts())
    sft = ("sft", "--model", "tiny", "--limit", 8)
    assert "nf4" in cli.refused(2, *words, "--set", "quantise=nf3")
    refused = cli.refused(2, *sft, *NF4)
    assert "--set sft.lora=16 --set sft.quantise=nf4" in refused
    refused = " ".join(cli.refused(2, *sft, "--runtime", "offload=disk").split())
    assert "offload=disk works for models that are only read, and sft trains one" in refused
    assert "--set lora=16" in refused
    assert "offload" in cli.refused(2, *words, "--runtime", "offload=tape")
    packed = shutil.copytree(BASES / "teacher", Path("packed"))
    config = json.loads((packed / "config.json").read_text())
    config["quantization_config"] = {"load_in_4bit": True, "quant_method": "bitsandbytes"}
    (packed / "config.json").write_text(json.dumps(config))
    refused = cli.refused(1, "rollout", "--student", "./packed", "--data", str(pipeline.data), *NF4)
    assert "is quantised (bitsandbytes, 4 bits" in refused
    assert "--set STAGE.quantise=nf4" in refused

    library.cache_clear()
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    for asked in ((*words, *NF4), (*sft, *LORA)):
        refused = cli.refused(1, *asked)
        assert "need the package bitsandbytes, which is not installed" in refused
        assert "pip install peft bitsandbytes" in refused
    assert len(Store.find(pipeline.store).artifacts()) == before
