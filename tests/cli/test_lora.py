"""`--set lora=N` through the command line: every training stage, what it leaves in the store, and what it refuses."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from adpa_cli.engine.models import load
from adpa_cli.hub.adapter_folder import AdapterFolder
from adpa_cli.lab import world
from adpa_cli.report.text import number
from adpa_cli.store.store import Store
from support.cli_samples import Cli, write_pairs, write_rows

LORA = ["--set", "lora=4", "--set", "sft.lora=4", "--set", "dpo-teacher.lora=4"]
FEW = [
    "--set", "sft.max_steps=2", "--set", "sft.limit=64", "--set", "dpo-teacher.max_steps=2",
    "--set", "dpo-teacher.limit=24", "--limit", "24", "--max-steps", "2", "--set", "rollout.max_new_tokens=8",
    "--no-eval",
]  # fmt: skip
PATIENCE = 120.0


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pairs; the store of the tests of this module is beside them."""
    return write_pairs(tmp_path_factory.mktemp("lora"))


@pytest.fixture
def here(cli: Cli, place: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.chdir(place)
    return cli


def distil(here: Cli, method: str, *more: str) -> list[str]:
    return here(
        "distill", "--method", method, "--student", "tiny", "--data", "./pairs", *FEW, *LORA, *more
    ).out.splitlines()


def steps(store: Store, ref: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (store.folder(ref) / "metrics.jsonl").read_text().splitlines()]


def peft_logits(base: Path, folder: Path, kind: Any = AutoModelForCausalLM, **more: Any) -> torch.Tensor:
    from peft import PeftModel

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of names in transformers that peft still uses
        model = PeftModel.from_pretrained(kind.from_pretrained(base, **more), folder).eval()
        model.config.pad_token_id = 0
        found: torch.Tensor = model(input_ids=torch.arange(3, 20)[None]).logits
    return found


@pytest.mark.parametrize("method", ["dpo", "dckd", "adpa", "adpa+"])
def test_every_stage_of_a_pipeline_trains_an_adapter(method: str, here: Cli) -> None:
    refs = distil(here, method)
    store = Store.find()
    trained = [m for m in store.artifacts() if m.stage in ("sft", "dpo-teacher", "distill")]
    assert {ref.partition("/")[0] for ref in refs} == {"distill"}
    for manifest in trained:
        folder = store.folder(manifest.ref)
        adapter = AdapterFolder.of(folder)
        assert adapter is not None, manifest.ref
        assert not (folder / "model.safetensors").exists()
        assert (adapter.rank, adapter.alpha) == (4, 8)
        assert 0 < manifest.metrics["trained"] < manifest.metrics["parameters"] / 2
        assert set(manifest.metrics["update"]["seen"].values()) == {1.0}
        assert manifest.metrics["update"]["rms"] > 0
        page = here("show", manifest.ref)
        assert page.code == 0
        assert "adapter rank 4 · alpha 8" in " ".join(page.out.split())
        assert f"trained {number(manifest.metrics['trained'])}" in " ".join(page.out.split())
        assert not [text for text in manifest.metrics.get("watch", ()) if "bfloat16" in text]
        with torch.no_grad():
            ours: Any = load(folder)
            torch.testing.assert_close(
                ours(input_ids=torch.arange(3, 20)[None]).logits, peft_logits(adapter.base, folder), rtol=0, atol=1e-5
            )
    if method == "dpo":
        assert steps(store, refs[-1])[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
        start = store.get(str(store.get(refs[-1]).inputs["model"]))
        assert start is not None
        ours, theirs = (AdapterFolder.of(store.folder(ref)) for ref in (refs[-1], start.ref))
        assert ours.base == theirs.base, "it went on with the adapter that it started from"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_teacher_beside_whole_weights(dtype: str, here: Cli) -> None:
    few = ("--set", "sft.max_steps=2", "--set", "sft.limit=64", "--limit", "24", "--max-steps", "2")
    lora = ("--set", "lora=2", "--set", "lora_targets=q_proj,v_proj", "--set", "lora_alpha=3")
    ref = here("dpo-teacher", "--reference", "tiny", "--data", "./pairs", *few, *lora, "--set", f"dtype={dtype}").ref
    store = Store.find()
    folder, made = store.folder(ref), store.get(ref)
    assert made is not None
    adapter = AdapterFolder.of(folder)
    assert adapter is not None
    assert (adapter.rank, adapter.alpha, adapter.targets) == (2, 3, ("q_proj", "v_proj"))
    assert "peft" in made.made["versions"]
    assert "bitsandbytes" not in made.made["versions"]
    said = json.loads((folder / "adapter_config.json").read_text())
    base = store.get(str(made.inputs["model"]))
    assert base is not None
    assert said["base_model_name_or_path"] == f"../../{base.ref}"
    assert json.loads((folder / "adapter_base.json").read_text()) == {
        "content": made.inputs["model"], "quantise": None, "targets": "q_proj,v_proj",
    }  # fmt: skip
    start = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
    assert start["loss"] == pytest.approx(math.log(2), abs=1e-5 if dtype == "float32" else 2e-3)
    tensors = load_file(folder / "adapter_model.safetensors")
    assert sum(tensor.numel() for tensor in tensors.values()) == made.metrics["trained"]


def test_a_reward_model_is_an_adapter_with_its_head(here: Cli) -> None:
    ref = here("reward-model", "--model", "tiny", "--data", "./pairs", "--set", "sft.max_steps=2", "--set",
               "sft.limit=64", "--limit", "24", "--max-steps", "2", "--set", "lora=4").ref  # fmt: skip
    store = Store.find()
    folder, made = store.folder(ref), store.get(ref)
    adapter = AdapterFolder.of(folder)
    assert adapter is not None
    assert made is not None
    assert made.metrics["pairs"] == 8
    with torch.no_grad():
        ours: Any = load(folder, scalar=True)
        ours.config.pad_token_id = 0
        rewards = ours(input_ids=torch.arange(3, 20)[None]).logits
    assert bool(rewards.any())
    theirs = peft_logits(adapter.base, folder, AutoModelForSequenceClassification, num_labels=1)
    torch.testing.assert_close(rewards, theirs, rtol=0, atol=1e-5)
    judged = here("distill", "--method", "sft", "--student", "tiny", "--data", "./pairs", *FEW, "--select", "best",
                  "--set", "lora=4", "--reward-model", ref, "--set", "max_length=96")  # fmt: skip
    assert store.get(judged.ref).metrics["selection"]["points"][-1]["prompts"] > 0


def test_the_best_step_and_the_others_know_where_their_base_is(here: Cli) -> None:
    refs = distil(here, "dpo", "--select", "best", "--keep", "all", "--max-steps", "3", "--batch-size", "8")
    folder = Store.find().folder(refs[-1])
    points = sorted(path for path in folder.iterdir() if path.is_dir())
    assert len(points) > 1
    adapters = [AdapterFolder.of(path) for path in (folder, *points)]
    assert all(adapter is not None for adapter in adapters)
    assert len({adapter.base for adapter in adapters if adapter}) == 1
    best = Store.find().get(refs[-1]).metrics["selection"]["step"]
    weights = [(path / "adapter_model.safetensors").read_bytes() for path in (folder, folder / f"step-{best:06d}")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("quantise", ["none", "nf4"])
def test_without_lora_an_adapter_is_merged_and_trained_whole(quantise: str, here: Cli) -> None:
    few = ("--max-steps", "2", "--limit", "64", "--lr", "0.01")
    first = here("sft", "--model", "tiny", *few, "--set", "lora=4", "--set", f"quantise={quantise}").ref
    words = ("dpo-teacher", "--reference", first, "--data", "./pairs", "--limit", "24", "--max-steps", "1")
    store = Store.find()
    ref = here(*words, "--lr", "1e-12").ref
    whole, made = store.folder(ref), store.get(ref)
    assert AdapterFolder.of(whole) is None
    assert steps(store, ref)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6), "it is compared with what it starts as"
    assert made is not None
    assert made.metrics["update"]["rms"] < 1e-6, "what the adapter had learned is no part of what is learned now"
    merged: Any = load(store.folder(first), train=True)
    for name, tensor in load_file(whole / "model.safetensors").items():
        torch.testing.assert_close(tensor, merged.state_dict()[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "said", "to_do"),
    [
        (["lora=0"], "lora must be 1 or more; got 0", "leave lora out"),
        (["lora=-1"], "lora must be 1 or more; got -1", "leave lora out"),
        (["lora=4", "quantise=fp4"], "quantise must be one of nf4, int8; got fp4", "for example quantise=nf4"),
        (["lora=4", "lora_alpha=0"], "lora_alpha must be above 0; got 0", "leave lora_alpha out"),
        (["lora=4096"], "exceeds the rank of model.layers.0", "--set sft.lora=48"),
        (
            ["lora=4", "lora_targets=q"],
            "no linear layer in the body of the model is called 'q'",
            "lora_targets=down_proj",
        ),
        (["lora=4", "weights=bfloat16"], "weights=bfloat16 applies to training all weights", "--set sft.lora=none"),
        (["quantise=nf4"], "all weights are trained here", "--set sft.lora=16 --set sft.quantise=nf4"),
        (["lora_alpha=8"], "lora_alpha=8 applies to LoRA adapters only", "--set sft.lora=16 --set sft.lora_alpha=8"),
        (["lora_targets=q_proj"], "without lora all weights are trained", "--set sft.lora_targets=q_proj; or remove"),
        (["lora=none", "lora_alpha=8"], "without lora all weights are trained", "or remove lora_alpha=8"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(
    settings: list[str], said: str, to_do: str, cli: Cli, tmp_path: Path
) -> None:
    words = [word for setting in settings for word in ("--set", setting)]
    for more in (["-n"], []):
        refused = cli.refused(2, "sft", "--model", "tiny", "--limit", "16", *words, *more)
        assert said in refused
        assert to_do in refused
    assert not list((tmp_path / "adpa-store").glob("sft/*"))
    assert not [path for path in (tmp_path / "adpa-store").glob(".partial/*") if path.is_dir()]


def test_what_is_said_of_the_matrices_of_one_stage_leaves_the_others_alone(cli: Cli) -> None:
    keys = ("lora=4", "lora_alpha=3", "lora_targets=q_proj")
    own = tuple(word for key in keys for word in ("--set", f"dpo-teacher.{key}"))
    assert cli("distill", "--method", "dckd", "--student", "tiny", *own, "-n").code == 0
    said = cli.refused(2, "distill", "--method", "dckd", "--student", "tiny", "--set", "lora_alpha=3", *own, "-n")
    assert "--set distill.lora=16 --set distill.lora_alpha=3" in said


def scaled(base: Path) -> None:
    """Other weights in a folder."""
    weights = load_file(base / "model.safetensors")
    save_file({name: 1.5 * tensor for name, tensor in weights.items()}, base / "model.safetensors", {"format": "pt"})


def test_a_base_that_changed_is_refused(cli: Cli, tmp_path: Path) -> None:
    base, length = tmp_path / "base", ("--set", "max_length=96")
    shutil.copytree(Path(world.__file__).parent / "bases" / "student", base)
    scaled(base)  # or the one that is here would be found by its content
    data = write_rows(tmp_path / "few.jsonl", world.demonstrations("train")[:16])
    words = ("sft", "--model", "./base", "--data", data, "--template", "zephyr", "--max-steps", "1", *length)
    ref = cli(*words, "--set", "lora=2").ref
    scaled(base)
    pairs = write_rows(tmp_path / "pairs.jsonl", world.preferences("train")[:16])
    for asked in (("rollout", "--student", ref), ("dpo-teacher", "--reference", ref, "--set", "lora=2")):
        refused = cli.refused(1, *asked, "--data", pairs, *length)
        assert "has changed since the adapter was made" in refused
        assert "put back the base of that time, or train a new adapter" in refused
    assert {path.parent.name for path in (tmp_path / "adpa-store").glob("*/*/manifest.json")} == {ref[4:]}


def contents(store: Path) -> dict[str, dict[str, str]]:
    """The hash of every file of every artifact."""
    return {m.ref: {name: file["sha256"] for name, file in m.files.items()} for m in Store(store).artifacts()}


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--set", "quantise=nf4", "--set", "sft.quantise=nf4")])
def test_a_killed_training_ends_with_the_same_bytes(
    more: tuple[str, ...], cli: Cli, place: Path, tmp_path: Path
) -> None:
    words = ["distill", "--method", "dpo", "--student", "tiny", "--data", str(place / "pairs"), "--no-eval", *LORA,
             "--set", "sft.limit=40", "--set", "sft.batch_size=4", "--epochs", "3", "--batch-size", "4", "--select",
             "best", *more]  # fmt: skip
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    ref = cli("--store", killed, *words, "-n").rows[-1][4]
    child = subprocess.Popen(
        [sys.executable, "-m", "adpa_cli", "--store", str(killed), *words],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + PATIENCE
    try:
        while not list((killed / ".partial").glob(f"{ref.split('/')[1]}*/_resume.json")):
            assert child.poll() is None, child.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.001)
        child.send_signal(signal.SIGKILL)
    finally:
        child.kill()
        child.communicate()
    assert not (killed / ref).exists()
    for store in (killed, whole):
        assert cli("--store", store, *words).code == 0
    assert contents(killed) == contents(whole)
    assert "adapter_model.safetensors" in contents(whole)[ref]
