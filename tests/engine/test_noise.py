"""The noise of a sample beside float64, and a model that is read layer by layer beside the whole one."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from adpa_cli.engine.arithmetic import computing
from adpa_cli.engine.capture import aligned_pass
from adpa_cli.engine.layerwise import load_layerwise
from adpa_cli.engine.models import hidden_states, load
from adpa_cli.engine.noise import Sampled, Teacher, capture_noise, compared, first_by_hash
from adpa_cli.engine.overflow import overflow_named
from adpa_cli.errors import AdpaError
from adpa_cli.spec import Dtype
from support.light_update import answers, write_pair
from support.tiny_models import tiny_llama
from support.wild_models import KINDS, wild_folder

K, IDS = 20, torch.tensor([[5, 9, 7, 30, 11, 8]])
HOW = Sampled(K, None, 200, "cpu", "capture")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Teacher]:
    folders = write_pair(tmp_path_factory.mktemp("pair"))
    return {role: Teacher(folder, role) for role, folder in zip(("aligned", "reference"), folders, strict=True)}


def dense(folder: Path, dtype: Dtype) -> list[Any]:
    """[T, V] float64 log-probs of each answer: of float64 weights, or of the held ones in `dtype` by plain forwards."""
    model: Any = load(folder, dtype=dtype)
    model = model.double() if dtype == "float32" else model
    found = []
    for row in answers():
        ids = torch.tensor([[*row.prompt, *row.answer]])
        with torch.no_grad(), computing(dtype, torch.device("cpu")):
            logits = model(input_ids=ids).logits[0, len(row.prompt) - 1 : -1].double()
        found.append(logits.log_softmax(-1).numpy())
    return found


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "tf32"])
def test_the_figures_are_those_of_float64(pair: dict[str, Teacher], dtype: Dtype) -> None:
    found = capture_noise(pair, answers(), dtype, HOW)
    few = {role: dense(teacher.folder, dtype) for role, teacher in pair.items()}
    exact = {role: dense(teacher.folder, "float32") for role, teacher in pair.items()}
    rows = aligned_pass(load(pair["aligned"].folder, dtype=dtype), answers(), K, teacher="aligned", dtype=dtype)
    at = [row.ids.astype(int) for row in rows]
    taken = [np.array(row.answer)[:, None] for row in answers()]

    def difference(of: dict[str, list[Any]], where: list[Any]) -> list[Any]:
        both = zip(of["aligned"], of["reference"], where, strict=True)
        return [np.take_along_axis(a, ids, 1) - np.take_along_axis(r, ids, 1) for a, r, ids in both]

    stored, true = (np.concatenate(difference(of, at)).ravel() for of in (few, exact))
    assert found["advantage"]["rms"] == pytest.approx(np.sqrt((true**2).mean()), rel=1e-3)
    assert found["advantage"]["error"] == pytest.approx(np.sqrt(((stored - true) ** 2).mean()), rel=0.02)
    sums = [np.array([row.sum() for row in difference(of, taken)]) for of in (few, exact)]
    assert found["log_ratio"]["rms"] == pytest.approx(np.sqrt((sums[1] ** 2).mean()), rel=1e-3)
    assert found["log_ratio"]["error"] == pytest.approx(np.sqrt(((sums[0] - sums[1]) ** 2).mean()), rel=0.05)
    of_logps = [a - b for a, b in zip(few["aligned"], exact["aligned"], strict=True)]
    errors = [
        np.take_along_axis(e, np.concatenate([t, ids], 1), 1).ravel()
        for e, t, ids in zip(of_logps, taken, at, strict=True)
    ]
    assert found["logps"]["error"] == pytest.approx(np.sqrt((np.concatenate(errors) ** 2).mean()), rel=0.02)
    assert (found["answers"], found["tokens"]) == (12, 12 * 14)


def test_an_update_below_the_step_of_bfloat16_is_there_in_float16_alone(pair: dict[str, Teacher]) -> None:
    coarse, fine = (capture_noise(pair, answers(), dtype, HOW) for dtype in ("bfloat16", "float16"))
    assert coarse["advantage"]["error"] == pytest.approx(coarse["advantage"]["rms"], rel=1e-4)
    assert coarse["advantage"]["correlation"] is None  # all of it is gone
    assert fine["advantage"]["correlation"] > 0.98
    assert fine["advantage"]["error"] < fine["advantage"]["rms"] / 5


def test_one_teacher_has_the_error_of_its_log_probs(pair: dict[str, Teacher]) -> None:
    found = capture_noise({"aligned": pair["aligned"]}, answers(), "float16", HOW)
    assert set(found) == {"answers", "tokens", "logps"}
    assert 0 < found["logps"]["error"] < 0.05


def test_numbers_by_hand() -> None:
    found = compared(np.array([1.0, 2.0, 3.0, np.inf]), np.array([1.0, 2.0, 4.0, 1.0]))
    assert found["rms"] == pytest.approx(7**0.5)
    assert found["error"] == pytest.approx((1 / 3) ** 0.5)
    assert found["correlation"] == pytest.approx(3 / (2 * 14 / 3) ** 0.5)
    assert compared(np.zeros(3), np.arange(3.0))["correlation"] is None


def test_a_sample_does_not_hang_on_the_order() -> None:
    names = [str(n) for n in range(100)]
    first = first_by_hash(names, str, 10)
    assert first_by_hash(names[::-1], str, 10) == first
    assert len(set(first)) == 10
    assert first_by_hash(names, str, 1000) == first_by_hash(names, str, 100)


@pytest.mark.parametrize("kind", KINDS)
def test_layer_by_layer_the_states_are_those_of_the_whole_model(kind: str, tmp_path: Path) -> None:
    folder = wild_folder(tmp_path / "m", kind)
    model = load_layerwise(folder, "cpu")
    for _ in range(2):
        assert torch.equal(hidden_states(model, IDS, None), hidden_states(load(folder), IDS, None))


def test_layers_that_are_not_used_are_nowhere_in_memory(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    model: Any = load_layerwise(tmp_path, "cpu")
    hidden_states(model, IDS, None)
    away = {name for name, weight in model.named_parameters() if not weight.numel()}
    assert away == {name for name, _ in model.named_parameters() if ".layers." in name}


@pytest.mark.parametrize("layerwise", [True, False])
def test_a_model_that_is_no_longer_used_is_nowhere_in_memory(layerwise: bool, tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    gc.disable()  # which would come too late for the next model
    try:
        model = load_layerwise(tmp_path, "cpu") if layerwise else load(tmp_path, dtype="float16")
        hidden_states(model, IDS, None, dtype="float32" if layerwise else "float16")
        weights = [weakref.ref(weight) for weight in model.parameters()]
        del model
        assert not [weight for weight in weights if weight() is not None]
    finally:
        gc.enable()


def test_the_layer_that_leaves_the_range_of_float16_is_named(tmp_path: Path) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight.fill_(6e4)
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path, dtype="float16")
    with (
        pytest.raises(AdpaError, match=r"row '3'.*: layers\.1\.mlp\.up_proj exceeds 65,504") as raised,
        overflow_named(loaded, "float16", "cache-teacher"),
    ):
        aligned_pass(loaded, answers()[3:], K, teacher="it", dtype="float16")
    assert "--set cache-teacher.dtype=tf32" in raised.value.hint
    assert len(aligned_pass(load(tmp_path, dtype="tf32"), answers(), K, teacher="it", dtype="tf32")) == 12
