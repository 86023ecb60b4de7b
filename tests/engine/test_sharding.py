"""Two and three processes that share out a model end with the weights of one, whoever began the run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from adpa_cli.engine.costs import check_shared_out, is_shared_out
from adpa_cli.engine.ranks import Ranks
from adpa_cli.engine.training import loop
from adpa_cli.errors import AdpaError
from adpa_cli.spec import Runtime
from support import sharded
from support.processes import together
from support.tuned_models import spec

COUNTS = (2, 3)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What one process, two and three have made, in a folder each; they have gone on with what others began."""
    root = tmp_path_factory.mktemp("sharded")
    torch.set_num_threads(1)
    sharded.resumed(root / "left-1", 7)
    for count in COUNTS:
        own = root / str(count)
        begun = root / "left-1" if count == 2 else root / "2" / "left-2"
        shutil.copytree(begun, own / f"begun-{count - 1}")
        together(sharded.main, own, count)
    return root


def far(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """The greatest relative distance of two tensors of one name."""
    assert set(ours) == set(theirs)
    return max(float((ours[n] - theirs[n]).norm() / theirs[n].norm().clamp_min(1e-30)) for n in theirs)


@pytest.fixture(scope="module", params=sharded.CASES)
def alone(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, dict[str, Any]]:
    """A case, and what one process makes of it."""
    name = str(request.param)
    return name, sharded.case(name, tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("count", COUNTS)
def test_the_weights_are_those_of_one_process(count: int, alone: tuple[str, dict[str, Any]], folder: Path) -> None:
    name, theirs = alone
    assert far(load_file(folder / str(count) / f"{name}.safetensors"), theirs) < 1e-5


@pytest.mark.parametrize(("count", "begun"), [(2, "begun-1"), (3, "begun-2"), (1, "begun-2")])
def test_another_number_of_processes_goes_on(count: int, begun: str, folder: Path, tmp_path: Path) -> None:
    whole = sharded.resumed(tmp_path / "whole", None)
    if count == 1:
        left = next((folder / "2" / "left-2").glob("_resume-*"))
        assert (left / ".metadata").exists()
        shutil.copytree(folder / "2" / "left-2", tmp_path / begun)
        ours = sharded.resumed(tmp_path / begun, None)
    else:
        ours = load_file(folder / str(count) / f"{begun}.safetensors")
    assert far(ours, whole) < 1e-5


@pytest.mark.parametrize(
    ("settings", "draws", "words"),
    [
        ({"weights": "bfloat16"}, False, "weights=bfloat16"),
        ({"quantise": "nf4", "lora": 4}, False, "stored as nf4"),
        ({}, True, "draws answers"),
    ],
)
def test_what_cannot_be_shared_out_is_whole_unless_it_was_asked_for(
    settings: dict[str, Any], draws: bool, words: str
) -> None:
    assert is_shared_out(spec(), Runtime(), 2)
    assert not is_shared_out(spec(), Runtime(), 1)
    assert not is_shared_out(spec(), Runtime(shard="none"), 2)
    assert not is_shared_out(spec(**settings), Runtime(), 2, draws)
    check_shared_out(spec(**settings), Runtime(), draws)
    check_shared_out(spec(), Runtime(shard="all"))
    with pytest.raises(AdpaError, match=words) as caught:
        check_shared_out(spec(**settings), Runtime(shard="all"), draws)
    assert caught.value.hint == "--runtime shard=none"


def test_after_memory_ran_out_in_one_of_several_the_next_start_takes_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, real = loop._gradients, loop.is_sharded
    monkeypatch.setattr(loop, "is_sharded", lambda student: True)
    monkeypatch.setattr(loop, "fitting", lambda action: None)
    with pytest.raises(AdpaError, match="memory of process 0 of 1") as caught:
        sharded.resumed(tmp_path, None)
    fewer = int((tmp_path / loop.FEWER).read_text())
    assert caught.value.hint.endswith(f"--tokens-per-device {fewer}")
    assert 1 <= fewer <= 30
    monkeypatch.undo()
    assert (whole, real) == (loop._gradients, loop.is_sharded)
    sharded.resumed(tmp_path, None)
    assert f'"tokens_per_device": {fewer}' in (tmp_path / "metrics.jsonl").read_text()
    assert Ranks.here().count == 1
