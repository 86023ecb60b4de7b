"""Layers that wait on the disk: the same bits as when they are there, none of them in memory, and nothing is left."""

from __future__ import annotations

import gc
import multiprocessing
import os
import resource
import shutil
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from adpa_cli.engine.adapters import Base, adapter_weights, add_adapter, write_adapter
from adpa_cli.engine.capture import aligned_pass, reference_pass
from adpa_cli.engine.generation.generate import generate_block
from adpa_cli.engine.generation.sampling import Decoding, Sampling
from adpa_cli.engine.models import body_of, hidden_states, load, load_checked
from adpa_cli.engine.offload import layers_wait
from adpa_cli.errors import AdpaError
from adpa_cli.sizes import ModelSize
from adpa_cli.spec import Dtype, Quantise
from support.light_update import answers, write_pair
from support.offloaded import IDS, memory_of
from support.sparse_models import shapes_of, write_weights
from support.tiny_models import END, PAD, VOCABULARY, tiny_llama
from support.tuned_models import spec
from support.wild_models import KINDS, wild_folder

DTYPES: list[Dtype] = ["float32", "tf32", "float16", "bfloat16"]
WAYS: list[Quantise | None] = [None, "nf4", "int8"]
MEGABYTE = 2**20


def on_disk(folder: Path, place: Path, **settings: Any) -> Any:
    """The model in a folder with its layers in the filesystem of a place."""
    with layers_wait("disk", place):
        return load_checked(folder, **settings)


@pytest.mark.parametrize("quantise", WAYS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_capture_has_the_same_bits(dtype: Dtype, quantise: Quantise | None, tmp_path: Path) -> None:
    aligned, reference = write_pair(tmp_path / "pair")
    settings: dict[str, Any] = {"dtype": dtype, "quantise": quantise}

    def captured(loaded: Any) -> list[Any]:
        more: dict[str, Any] = {"teacher": "teacher", "dtype": dtype}
        rows = aligned_pass(loaded(aligned), answers(), 20, **more)
        return reference_pass(loaded(reference), answers(), rows, **more)

    here = captured(lambda folder: load_checked(folder, **settings))
    away = captured(lambda folder: on_disk(folder, tmp_path, **settings))
    for ours, theirs in zip(away, here, strict=True):
        for name, values in vars(theirs).items():
            assert np.array_equal(getattr(ours, name), values), name


@pytest.mark.parametrize("kind", KINDS)
def test_models_of_many_kinds_have_the_same_states(kind: str, tmp_path: Path) -> None:
    folder = wild_folder(tmp_path / "m", kind)
    model = on_disk(folder, tmp_path, dtype="float16")
    expected = hidden_states(load(folder, dtype="float16"), IDS, None, dtype="float16")
    for _ in range(2):
        assert torch.equal(hidden_states(model, IDS, None, dtype="float16"), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_answers_are_the_same(dtype: Dtype, tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    decoding = Decoding(Sampling(1.0, 0.9, 12, 3), (END,), PAD, 48, dtype)
    prompts, names = [[5, 9, 7], [8, 30]], ["a", "b"]
    made = [
        generate_block(model, prompts, names, decoding)
        for model in (load(tmp_path, dtype=dtype), on_disk(tmp_path, tmp_path, dtype=dtype))
    ]
    assert made[0] == made[1]


@pytest.mark.parametrize("quantise", [None, "nf4"])
def test_an_adapter_beside_them_has_the_same_bits(quantise: Quantise | None, tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path / "base")
    adapted = load_checked(tmp_path / "base")
    add_adapter(adapted, body_of(adapted), spec(lora=4))
    for weight in adapter_weights(adapted).values():
        torch.nn.init.normal_(weight, std=0.2)
    write_adapter(adapted, tmp_path / "adapter", Base(tmp_path / "base", ""))
    settings: dict[str, Any] = {"dtype": "float16", "quantise": quantise}
    here = load_checked(tmp_path / "adapter", **settings)
    away = on_disk(tmp_path / "adapter", tmp_path, **settings)
    found, expected, base = (
        hidden_states(model, IDS, None, dtype="float16")
        for model in (away, here, load(tmp_path / "base", **settings))
    )  # fmt: skip
    assert torch.equal(found, expected)
    assert not torch.equal(found, base)


def run_out(*_: Any) -> None:
    raise RuntimeError("out of memory")


def test_a_layer_that_breaks_off_leaves_its_tensors_where_they_wait(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    model = on_disk(tmp_path, tmp_path, dtype="float16")
    expected = hidden_states(model, IDS, None, dtype="float16")
    breaking = model.model.layers[1].mlp.down_proj.register_forward_hook(run_out)
    with pytest.raises(RuntimeError, match="out of memory"):
        hidden_states(model, IDS, None, dtype="float16")
    breaking.remove()
    assert {weight.untyped_storage().nbytes() for weight in model.model.layers.parameters()} == {1}
    assert torch.equal(hidden_states(model, IDS, None, dtype="float16"), expected)


def test_on_a_cpu_the_memory_of_the_machine_is_no_other_place(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    with layers_wait("cpu", tmp_path):
        model: Any = load(tmp_path, dtype="float16")
    assert model.model.layers[0].mlp.up_proj.weight.dtype == torch.float16


def test_what_waits_on_the_disk_is_not_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mapped pages do not count: they are the kernel's, which takes them as it needs."""
    size = ModelSize(0, hidden=1024, layers=4, inner=2048, keys=1024, width=1024, vocabulary=VOCABULARY, tied=False)
    folder, place = tmp_path / "large", tmp_path / "work"
    folder.mkdir()
    config = tiny_llama().config
    config.hidden_size, config.intermediate_size, config.num_hidden_layers = 1024, 2048, 4
    config.num_attention_heads = config.num_key_value_heads = 16
    config.head_dim = 64
    config.save_pretrained(folder)
    shapes = shapes_of(size)
    write_weights(folder / "model.safetensors", shapes)
    layers = 2 * sum(np.prod(shape) for name, shape in shapes.items() if ".layers." in name)
    assert layers > 80 * MEGABYTE
    place.mkdir()
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # what is freed is given back
    context = multiprocessing.get_context("spawn")
    report = context.Queue()
    child = context.Process(target=memory_of, args=(folder, place, report))
    child.start()
    (*disk, left), (*here, _) = report.get(timeout=120), report.get(timeout=120)
    child.join()
    assert left == ["tiny"]
    assert min(here) > 0.9 * layers
    assert max(disk) < 0.2 * layers, "a tensor at a time while loading, and none of them afterwards"


def test_a_model_that_is_no_longer_used_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    tiny_llama().save_pretrained(tmp_path / "m")
    open_before = len(os.listdir("/proc/self/fd"))
    gc.disable()  # which would come too late for the next model
    try:
        model = on_disk(tmp_path / "m", tmp_path, dtype="float16")
        hidden_states(model, IDS, None, dtype="float16")
        there = [weakref.ref(module) for module in model.modules()]
        assert {path.name for path in tmp_path.iterdir()} == {"m"}
        del model
        assert not [module for module in there if module() is not None]
    finally:
        gc.enable()
    assert len(os.listdir("/proc/self/fd")) == open_before


def test_a_disk_without_room_is_an_error_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_llama(hidden_size=64).save_pretrained(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=4096))  # a full disk cannot be had
    with pytest.raises(AdpaError, match=r"writes 0.1 MB of weights into .*, whose disk has 0.0 MB left") as caught:
        on_disk(tmp_path, tmp_path, dtype="float16")
    assert "--runtime offload=cpu" in caught.value.hint
    assert "--store DIR" in caught.value.hint


def test_a_folder_that_takes_no_file_is_an_error(tmp_path: Path) -> None:
    tiny_llama().save_pretrained(tmp_path)
    with pytest.raises(AdpaError, match=r"cannot write weights into .*: No such file or directory") as caught:
        on_disk(tmp_path, tmp_path / "nowhere", dtype="float16")
    assert "--store DIR" in caught.value.hint


def test_a_write_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    tiny_llama(hidden_size=64).save_pretrained(tmp_path / "m")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(AdpaError, match=r"cannot write weights into .*: File too large"):
            on_disk(tmp_path / "m", tmp_path, dtype="float16")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert {path.name for path in tmp_path.iterdir()} == {"m"}
