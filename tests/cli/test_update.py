"""What a training says of the part of its update that products see, and what a plan foresees of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adpa_cli.report.page import collect, screen
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store
from support.cli_samples import Cli, write_rows
from support.wild_models import wild_folder

ROWS = [{"prompt": f"What is {n}+{n}?", "chosen": f"It is {2 * n}.", "rejected": "No idea, none."} for n in range(12)]
LONGER = ("--max-steps", "9", "--batch-size", "4", "--epochs", "5", "--set", "max_length=200")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return write_rows(tmp_path / "pairs.jsonl", ROWS)


def base(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
    """A model whose weights are stored in a dtype."""
    wild_folder(folder, "gemma")
    path = folder / "model.safetensors"
    save_file({name: weight.to(dtype) for name, weight in load_file(path).items()}, path, {"format": "pt"})
    return folder


def trained(cli: Cli, model: Path, pairs: Path, *words: str) -> tuple[Manifest, str]:
    """What a DPO teacher became, and what was said meanwhile, on one line."""
    ran = cli("dpo-teacher", "--reference", model, "--data", pairs, *LONGER, *words)
    found = Store.find(Path("adpa-store")).get(ran.ref)
    assert found is not None
    return found, " ".join(ran.err.split())


def test_an_update_below_the_step_of_bfloat16(cli: Cli, tmp_path: Path, pairs: Path) -> None:
    made, said = trained(cli, base(tmp_path / "base"), pairs, "--lr", "1e-7", "--set", "dtype=bfloat16")
    update = made.metrics["update"]
    assert update["seen"]["computed"] == update["seen"]["bfloat16"] < 0.05
    assert update["differ"]["bfloat16"] < 0.05
    assert 0 < update["rms"] < 1e-4
    assert "At step 8, computing in bfloat16 sees only" in said
    assert "--set dpo-teacher.dtype=float32, or a higher learning rate (--lr)" in said
    assert f"saw {100 * update['seen']['computed']:.1f} % of what training changed" in said
    own, readers = made.metrics["watch"]
    assert own.endswith("; train it again with --set dpo-teacher.dtype=float32")
    assert "in float16 or float32 (--set STAGE.dtype=float16)" in readers
    assert " ".join(own.split()) in said
    page = " ".join(screen(collect(Store.find(Path("adpa-store")), made), 100, made.at).split())
    assert f"the forward pass saw {100 * update['seen']['computed']:.1f} % of the change" in page
    assert "rounding to bfloat16 keeps" in page
    assert json.loads(cli("show", made.ref, "--json").out)["metrics"]["update"] == update


def test_the_same_in_float32_and_what_reads_it(cli: Cli, tmp_path: Path, pairs: Path) -> None:
    made, said = trained(cli, base(tmp_path / "base"), pairs, "--lr", "1e-7", "--set", "dtype=float32")
    assert made.metrics["update"]["seen"]["computed"] == 1.0
    (readers,) = made.metrics["watch"]
    assert readers.startswith("rounding the weights to bfloat16 keeps only ")
    assert "computing in bfloat16 saw" not in said
    assert "of what training changed in the weights" not in said
    rollout = ("rollout", "--student", made.ref, "--data", pairs, "-n")
    in_bfloat16 = " ".join(cli(*rollout, "--set", "rollout.dtype=bfloat16").err.split())
    assert f"rollout reads {made.ref} in bfloat16, which keeps only " in in_bfloat16
    assert "of what training changed: --set rollout.dtype=float16" in in_bfloat16
    for finer in ("float16", "tf32", "float32"):
        assert "of what training changed" not in cli(*rollout, "--set", f"rollout.dtype={finer}").err
    again = ("dpo-teacher", "--reference", made.ref, "--data", pairs, "-n", *LONGER)
    in_bfloat16 = " ".join(cli(*again, "--set", "dtype=bfloat16").err.split())
    assert "of what training changed: --set dpo-teacher.dtype=float32" in in_bfloat16
    held = " ".join(cli(*again, "--set", "weights=bfloat16").err.split())
    assert "--set dpo-teacher.weights=float32 --set dpo-teacher.dtype=float32" in held


def test_an_update_that_bfloat16_sees_is_no_matter(cli: Cli, tmp_path: Path, pairs: Path) -> None:
    made, said = trained(cli, base(tmp_path / "base"), pairs, "--lr", "1e-3", "--set", "dtype=bfloat16")
    assert made.metrics["update"]["seen"]["bfloat16"] > 0.9
    assert "watch" not in made.metrics
    assert "of what training changed in the weights" not in said
    rollout = ("rollout", "--student", made.ref, "--data", pairs, "-n", "--set", "rollout.dtype=bfloat16")
    assert "of what training changed" not in cli(*rollout).err


def test_weights_kept_in_bfloat16_are_what_is_computed_with(cli: Cli, tmp_path: Path, pairs: Path) -> None:
    made, said = trained(cli, base(tmp_path / "base"), pairs, "--lr", "1e-5", "--set", "weights=bfloat16")
    assert made.metrics["update"]["seen"] == pytest.approx({"bfloat16": 1.0, "float16": 1.0, "computed": 1.0})
    assert made.metrics["update"]["rms"] > 0
    assert "watch" not in made.metrics
    assert "of what training changed in the weights" not in said


def test_the_selected_weights_are_those_that_are_measured(cli: Cli, tmp_path: Path, pairs: Path) -> None:
    words = ("--lr", "1e-3", "--set", "dtype=float32", "--set", "warmup_ratio=0")
    model = base(tmp_path / "base")
    (first, _), (last, _) = (trained(cli, model, pairs, *words, *more) for more in (("--select", "1"), ()))
    assert first.metrics["selection"]["step"] == 1
    assert 0 < first.metrics["update"]["rms"] < last.metrics["update"]["rms"] / 2


def test_float16_weights_that_are_read_in_bfloat16(cli: Cli, tmp_path: Path, pairs: Path) -> None:
    model = base(tmp_path / "half", torch.float16)
    rollout = ("rollout", "--student", model, "--data", pairs, "-n")
    said = " ".join(cli(*rollout, "--set", "rollout.dtype=bfloat16").err.split())
    assert "rollout reads half in bfloat16, but its weights are float16, which is more precise: " in said
    assert "precise: --set rollout.dtype=float16" in said
    assert "which is more precise" not in " ".join(cli(*rollout, "--set", "rollout.dtype=float16").err.split())
    _, said = trained(cli, model, pairs, "--lr", "1e-3", "--set", "dtype=bfloat16")
    assert "of the weights of half; to use them unrounded: --set dpo-teacher.dtype=float32" in said
    _, said = trained(cli, base(tmp_path / "base"), pairs, "--lr", "1e-3", "--set", "dtype=bfloat16")
    assert "in every product" not in said
