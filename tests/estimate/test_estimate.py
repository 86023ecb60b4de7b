"""What a plan says in numbers: each formula by hand, and the whole against what stages then took."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from adpa_cli.data.templates import Template
from adpa_cli.engine import costs as disk
from adpa_cli.engine import costs as memory
from adpa_cli.estimate import cost as times
from adpa_cli.estimate import survey as surveys
from adpa_cli.estimate.cost import Clock, Cost, cost_of
from adpa_cli.estimate.preflight import disk_problems
from adpa_cli.estimate.row_lengths import ruler_for
from adpa_cli.estimate.survey import Survey, survey
from adpa_cli.hub import External
from adpa_cli.lab import BASES, END, TEMPLATE
from adpa_cli.machine import Machine, available_memory, limit_of
from adpa_cli.planning.distill_builder import Distill, plan_distill
from adpa_cli.planning.lineage import model_size
from adpa_cli.planning.planner import Plan
from adpa_cli.planning.requests import plan_sft
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.planning.settings import UserSettings
from adpa_cli.sizes import (
    CUDA,
    PYTHON,
    Disk,
    Memory,
    ModelSize,
    Row,
    Rows,
    RowTable,
    Totals,
    Where,
    forward_flops,
    joined,
    longest_examples,
    room_of,
    totals,
)
from adpa_cli.spec import Runtime, TrainSpec
from adpa_cli.stages import Load, Node, every, training
from adpa_cli.store.store import Store
from support.cli_samples import Cli, Pipeline, write_rows
from support.tiny_models import pretrained_tokenizer

SIDES = {"hidden": 10, "layers": 2, "inner": 30, "keys": 5, "width": 10, "vocabulary": 40}
SMALL = ModelSize(parameters=1000, **SIDES, tensors=3, beside=700)
MACHINE = Machine("cpu", "cpu", "here", memory=64 * 10**9, host_memory=64 * 10**9, disk=10**12)
FLOAT32 = "float32"


def spec_of(batch: int = 1, dtype: str = FLOAT32, weights: str = FLOAT32, **more: Any) -> Any:
    """What of a training's spec its memory depends on."""
    rest = {"lora": None, "lora_targets": "all-linear", "quantise": None, **more}
    return SimpleNamespace(batch_size=batch, dtype=dtype, weights=weights, **rest)


# Disk.


def test_a_training_keeps_a_checkpoint_and_needs_two_resume_points_beside_it() -> None:
    kept = 4 * 1000 + 3 * 120 + 700 + 9 * disk.LOG_LINE
    assert disk.training_disk(SMALL, steps=9, every=10) == Disk(kept, 0)
    assert disk.training_disk(SMALL, steps=9, every=5) == Disk(kept, 12_000), "one point while the model is written"
    assert disk.training_disk(SMALL, steps=9, every=2) == Disk(kept, 24_000 - kept), "a new point beside the old"


def test_points_that_are_kept_and_points_that_are_looked_at() -> None:
    last = SMALL.checkpoint + 9 * disk.LOG_LINE
    assert disk.training_disk(SMALL, 9, 10, points=3, keep_all=True) == Disk(last + 3 * SMALL.checkpoint, 0)
    best = disk.training_disk(SMALL, 9, 10, points=3)
    assert best == Disk(last, SMALL.checkpoint), "the best is copied"


def test_a_capture_spools_eight_or_thirteen_bytes_an_id() -> None:
    rows = [Row(5, 10), Row(5, 30)]
    found = disk.signal_disk(rows, 92.0, 50, False, 1000)
    assert found.keeps == 92 * 40 + 2 * disk.ANSWER_HEAD + 300
    assert found.extra == (8 * 50 + 12) * 40 + 2 * disk.ROW_JSON
    assert disk.signal_disk(rows, 92.0, 50, True, 1000).extra == (13 * 50 + 24) * 40 + 2 * disk.ROW_JSON


def test_start_log_probs_take_their_measured_size_twice_while_they_are_put_together() -> None:
    """Of 4,000 pairs of the tiny family; floats of real models compress as little."""
    found = disk.start_logps_disk([Row(20, 108_106 / 8000)] * 8000)
    assert found.keeps == pytest.approx(541_071, rel=0.1)
    assert found.extra == found.keeps


def test_the_signal_of_a_large_vocabulary_has_its_measured_size() -> None:
    """docs/benchmarks.md, answers of 256 tokens."""
    for pair_step, measured in ((None, 92.3), (1 / 128, 141.2)):
        per_token = disk.signal_bytes_per_token(128_256, 50, 1 / 32, pair_step) + disk.ANSWER_HEAD / 256
        assert per_token == pytest.approx(measured, rel=0.02)


def test_subsets_are_counted_in_bits() -> None:
    assert disk.log2_subsets(5, 2) == pytest.approx(3.321928)  # 10 of them
    assert disk.log2_subsets(5, 5) == pytest.approx(0)


# Memory.


def test_a_training_holds_weights_gradients_and_two_moments() -> None:
    rows = {"chosen": [Row(2, 2)]}
    by_layer = 4 * (8.5 * 10 + 2 * 5) + 4 * 4 * 30
    activations = 4 * (2 * by_layer + 120)
    head = 8 * 2 * 40 + 2 * (12 * 10 + 24 * 3) + 4 * 400
    row = memory.ROW_BYTES
    expected = PYTHON + 16_000 + 1.4 * (activations + head) + row
    assert memory.training_memory(SMALL, rows, spec_of(), Runtime(), 3, Where()).device == pytest.approx(
        expected, abs=1
    )


def test_processes_share_the_memory_of_a_cpu_and_not_that_of_cards() -> None:
    rows = {"chosen": [Row(2, 2)]}
    one = memory.training_memory(SMALL, rows, spec_of(), Runtime(), 1, Where("cpu", 1))
    two = memory.training_memory(SMALL, rows, spec_of(), Runtime(shard="none"), 1, Where("cpu", 2))
    assert two.device == pytest.approx(2 * (one.device + 4 * 1000), abs=2), "and the gradients' buckets"
    card = memory.training_memory(SMALL, rows, spec_of(), Runtime(), 1, Where("cuda", 2))
    assert CUDA < card.device < CUDA + 10**6
    assert card.host > 2 * PYTHON


def test_weights_that_are_shared_out_take_less_of_each_card() -> None:
    rows, model = {"chosen": [Row(2, 2)]}, replace(SMALL, parameters=10**9, layers=20)
    one = memory.training_memory(model, rows, spec_of(), Runtime(), 1, Where("cuda", 1)).device
    each = [memory.training_memory(model, rows, spec_of(), Runtime(), 1, Where("cuda", n)).device for n in (2, 8)]
    # weights and moments and the part of the gradient by the number of cards; a gradient and two layers whole
    assert each == pytest.approx([one - 8e9 + 4e9 + 4e8, one - 14e9 + 4e9 + 4e8], rel=1e-3)
    whole = memory.training_memory(model, rows, spec_of(), Runtime(shard="none"), 1, Where("cuda", 8)).device
    assert whole == pytest.approx(one + 4e9, rel=1e-3)


def test_weights_in_bfloat16_take_eight_bytes_instead_of_eighteen() -> None:
    usual, small = spec_of(dtype="bfloat16"), spec_of(dtype="bfloat16", weights="bfloat16")
    assert memory.trained(SMALL, usual, Where()) == 18 * 1000, "and copies of them for products"
    assert memory.trained(SMALL, small, Where()) == 8 * 1000
    assert memory.trained(SMALL, small, Where("cpu", 2)) == 10 * 1000
    tied = memory.head_training(SMALL, 2, 1, usual, "cpu") - memory.head_training(SMALL, 2, 1, small, "cpu")
    assert tied == 2 * 400, "the second gradient"


def test_low_rank_matrices_take_eighteen_bytes_beside_frozen_weights() -> None:
    """By hand, of q_proj and v_proj (10 + 10 and 10 + 5 for each of two layers) and of all seven of a Llama's."""
    asked = spec_of(dtype="bfloat16", lora=3, lora_targets="q_proj, self_attn.v_proj")
    card = Where("cuda")
    assert memory.trained_part(SMALL, asked).parameters == 3 * 2 * (20 + 15)
    assert memory.low_rank(SMALL, 3) == 3 * 2 * (20 + 15 + 15 + 20 + 3 * 40)
    held = 2 * 600 + 4 * 400
    assert memory.trained(SMALL, asked, card) == held + 18 * 210
    assert memory.trained(replace(SMALL, adapter=99), asked, card) == held + 18 * 210, "its training goes on"
    seen = replace(SMALL, linear=(("q_proj", 7), ("w1", 5)))
    assert memory.trained_part(seen, asked).parameters == 3 * 7
    assert memory.low_rank(seen, 3) == 3 * 12
    whole, small = (memory.training_disk(memory.trained_part(SMALL, s), 9, 5) for s in (spec_of(), asked))
    assert small.keeps == whole.keeps - 4 * 790 + 5 * 120, "eight matrices instead of three"
    untied = replace(SMALL, tied=False, parameters=1400)
    usual, frozen = (memory.head_training(untied, 100, 0, spec, "cpu") for spec in (spec_of(), asked))
    assert usual - frozen == memory.kept_logits(untied, 100) - 4 * 100 * 10, "a mean of its rows at each position"


def test_frozen_weights_take_the_bytes_in_which_they_are_held() -> None:
    untied = replace(SMALL, tied=False, parameters=1400, stored=2)
    card, cpu, largest = Where("cuda"), Where(), 10 * 30

    def of(dtype: str, quantise: str | None = None, where: Where = card, model: ModelSize = untied) -> float:
        return memory.frozen(model, memory.Held(dtype, quantise), where)

    ends = (4 + 2) * 400
    assert of(FLOAT32) == 4 * 1400
    assert of("float16") == of("bfloat16") == 2 * 600 + ends
    assert of("tf32") == of("float16", where=cpu) == 2 * 600 + ends + 4 * largest, "expanded for float32 products"
    assert of("bfloat16", where=cpu) == of("bfloat16")
    assert of("float16", "nf4") == 0.5625 * 600 + ends + 2 * largest, "one weight is read at a time"
    assert of("float16", "int8") == pytest.approx(600 + ends + 6 * largest, abs=2)
    assert of(FLOAT32, "nf4") == 0.5625 * 600 + ends + 4 * largest
    assert of("float16", model=replace(untied, adapter=50)) == of("float16") + 4 * 50
    assert of("float16", model=replace(untied, quantise="nf4")) == of("float16", "nf4"), "as the adapter was trained"


def test_layers_that_wait_are_on_the_device_one_at_a_time() -> None:
    held = {place: memory.Held("float16", offload=place) for place in ("none", "cpu", "disk")}
    card, cpu, ends = Where("cuda"), Where(), 4 * 400
    on_card = {place: memory.frozen(SMALL, how, card) for place, how in held.items()}
    assert on_card == {"none": 1200 + ends, "cpu": 600 + ends, "disk": 600 + ends}
    assert memory.frozen(SMALL, held["cpu"], cpu) == memory.frozen(SMALL, held["none"], cpu), "where they are anyway"
    pinned = 1200 * 1024 / 600
    assert memory.beside(SMALL, held["cpu"]) - memory.beside(SMALL, held["disk"]) == pytest.approx(pinned)
    assert memory.waiting_disk([SMALL, replace(SMALL, parameters=700)], held["disk"]) == 1200, "one after the other"
    assert memory.waiting_disk([SMALL], held["cpu"]) == 0
    rows = {"chosen": [Row(6, 4)] * 8}
    assert memory.layer_passes(rows, 40, False) == 2
    assert memory.layer_passes(rows, 40, True) == 8, "once for each of the four tokens of a block's answers"
    assert memory.waiting_seconds([SMALL, SMALL], held["cpu"], card, 3) == pytest.approx(3 * 2400 / 25e9)
    assert memory.waiting_seconds([SMALL], held["cpu"], cpu, 3) == 0
    fused = replace(SMALL, is_fused=True)
    assert memory.frozen(fused, held["disk"], card) == on_card["none"], "which is refused: all are read at once"
    assert memory.beside(fused, held["none"]) == 4 * 1000
    assert memory.frozen(fused, held["none"], cpu) == 4 * 1000, "until they are held in two bytes"
    quantised = memory.Held("bfloat16", "nf4")
    experts = replace(SMALL, unpacked=500)
    assert memory.products(SMALL, quantised) == 600 * 0.5625
    assert memory.products(experts, quantised) == 100 * 0.5625 + 500 * 2, "experts are not quantised"
    assert memory.products(experts, memory.Held("float32", "int8")) == 100 * 1.002 + 500 * 4


def test_recomputing_keeps_what_enters_a_layer_and_one_layer() -> None:
    usual, small = spec_of(dtype="bfloat16"), spec_of(dtype="bfloat16", weights="bfloat16")
    of_layer = 3.4 * (6.75 * 10 + 2 * 5) + 2 * 4 * 30
    assert memory.activations(SMALL, 7, usual, True) == pytest.approx(7 * (2 * 4 * 10 + of_layer + 120))
    of_layer = 2.4 * (8.5 * 10 + 2 * 5) + 2 * 4 * 30
    assert memory.activations(SMALL, 7, small, True) == pytest.approx(7 * (2 * 2 * 10 + of_layer + 120))
    rows = {"chosen": [Row(500, 500)] * 4}
    runs = [
        memory.training_memory(SMALL, rows, usual, Runtime(recompute=again), 1, Where()).device
        for again in (False, True)
    ]
    assert runs[1] < runs[0]


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    "settings",
    [
        {}, {"weights": "bfloat16"}, {"lora": 4}, {"lora": 8, "dtype": FLOAT32}, {"lora": 4, "quantise": "nf4"},
        {"lora": 4, "quantise": "int8"},
    ],
    ids=lambda settings: ", ".join(map(str, settings.values())) or "all weights",
)  # fmt: skip
def test_activations_are_those_that_a_llama_saves(settings: dict[str, Any], recompute: bool) -> None:
    """Bytes a token, of two layers more and of the rest; what several operations save counts once."""
    import torch

    from adpa_cli.engine.adapters import add_adapter, train_adapter
    from adpa_cli.engine.frozen import hold
    from adpa_cli.engine.models import body_of, hidden_states
    from adpa_cli.engine.quantised import quantise_layers
    from adpa_cli.engine.training.optimizer import tune
    from adpa_cli.spec import Dtype, TrainSpec, make
    from support.tiny_models import tiny_llama

    fixed = {"method": "sft", "method_version": 1, "params": {}, "template": "", "end": "", "dtype": "bfloat16"}
    spec = make(TrainSpec, {**fixed, **settings})
    dtype: Dtype = spec.dtype

    def saved(layers: int, tokens: int) -> int:
        model = tiny_llama(hidden_size=64, intermediate_size=160, num_hidden_layers=layers, num_attention_heads=4,
                           num_key_value_heads=2, max_position_embeddings=256).train()  # fmt: skip
        if spec.lora:
            model.requires_grad_(False)
            if spec.quantise:
                quantise_layers(body_of(model), model.config, spec.quantise, dtype)
            elif dtype == "bfloat16":
                hold(body_of(model), dtype)
            add_adapter(model, body_of(model), spec)
            train_adapter(model)
        tune(model, spec, Runtime(recompute=recompute))
        kept: dict[int, torch.Tensor] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            hidden_states(model, torch.full((3, tokens), 5), None, dtype=dtype)
        return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())

    shape = replace(SMALL, hidden=64, inner=160, keys=32)
    found = [(saved(layers, 128) - saved(layers, 64)) / (3 * 64) for layers in (1, 3)]
    told = [memory.activations(replace(shape, layers=layers), 1, spec, recompute) for layers in (1, 3)]
    assert told[1] - told[0] == pytest.approx(found[1] - found[0], rel=0.02)
    if not recompute:
        assert told[1] == pytest.approx(found[1], rel=0.08)


@pytest.mark.parametrize(
    ("tokens", "batch", "expected"),
    [(1000, 1, 60), (1000, 3, 120), (50, 3, 60), (80, 3, 80)],
    ids=["a short step", "a whole step", "the longest row alone", "the budget"],
)
def test_the_largest_micro_batch(tokens: int, batch: int, expected: float) -> None:
    rows = {"chosen": [Row(5, 5), Row(10, 10), Row(10, 20)], "rejected": [Row(5, 4), Row(10, 8), Row(10, 18)]}
    assert memory.largest_micro_batch(rows, tokens, batch) == expected


def test_the_logits_of_a_tile_are_bounded_and_kept_where_they_fit() -> None:
    large = replace(SMALL, vocabulary=128_256, hidden=100, parameters=10**8, tied=False)
    assert memory.tiles(large, 10**6, Where()) == pytest.approx(4 * 2.3 * 2**23)
    assert memory.tiles(large, 10**6, Where("cuda")) == pytest.approx(4 * 2.3 * 2**26), "a card takes more at a time"
    assert memory.head_tile(large, 10**6, "cpu") == 8 * 4096 * 2048
    assert memory.head_tile(large, 10**6, "cuda") == 4 * 2**26 + 6 * 8192 * 100
    assert memory.head_tile(large, 50, "cuda") == 4 * 50 * 128_256, "the gradient has room for the rounded weight"
    few = memory.head_training(large, 100, 0, spec_of(), "cpu")
    assert few == 8 * 2**21 + 100 * 1200, "the gradient has room for all"
    assert memory.kept_logits(large, 101) == 4 * 101 * 128_256
    assert memory.kept_logits(large, 200) == 2**26, "200 rows of logits would take more than 64 MiB"
    assert memory.kept_logits(large, 2000) == 1000 * 128_256


def test_scoring_holds_one_layer_of_one_block() -> None:
    rows = {"chosen": [Row(2, 2)] * 10}
    work = 8 * (4 * 3 * 30 + 16 * 10) + 5 * 8 * 4 + 4 * 2.3 * 4 * 40 + 4 * (80 + 24)
    expected = PYTHON + 4000 + 1.4 * work + 10 * memory.ROW_BYTES
    found = memory.scoring_memory(SMALL, rows, memory.Held(FLOAT32), 8, 1, Where())
    assert found.device == pytest.approx(expected, abs=1)


def test_generating_holds_keys_and_values_of_the_rows_that_are_answered_at_once() -> None:
    rows = [Row(4, 2)] * 2
    token = 2 * 2 * 5 * 4
    cache = token * 2 * (4 + 6 + 32)
    work = cache + cache / 2 + max(token * 8 + 8 * (4 * 3 * 30 + 160), 2 * 40 * 40)
    expected = PYTHON + 4000 + 1.4 * work + 2 * memory.ROW_BYTES
    plain = memory.Held(FLOAT32)
    assert memory.generating_memory(SMALL, rows, plain, 100, 6, 50, Where()).device == pytest.approx(expected, abs=1)
    many = [memory.block_of_answers(SMALL, rows * n, plain, 100, 6, 50, Where()) for n in (5, 50, 500)]
    assert many[0] == many[1] == many[2], "ten rows at once, however many there are"
    whole, half, wide = (
        memory.generating_memory(SMALL, [], memory.Held(dtype), 100, 6, 50, Where("cuda"))
        for dtype in (FLOAT32, "float16", "tf32")
    )
    assert whole.device - half.device == 2 * SMALL.body, "two bytes a weight of the body"
    assert wide.device == whole.device, "units for tf32 read weights of four bytes, which are made once"


# Time.


def test_operations_of_a_forward_pass() -> None:
    body = 1000 - 40 * 10
    assert forward_flops(SMALL, [Row(3, 2)]) == 5 * (2 * body + 4 * 2 * 10 * 5) + 2 * 400 * 2
    rows = {"chosen": [Row(3, 2)], "rejected": [Row(3, 2)]}
    once = 2 * forward_flops(SMALL, [Row(3, 2)])
    assert memory.training_flops(SMALL, rows, 2.5) == 7.5 * once


def test_passes_over_the_rows() -> None:
    rows = {"chosen": [Row(3, 2)] * 10}
    load = Load(rows, (SMALL,), Runtime(), Where())
    once = 3 * 10 * forward_flops(SMALL, [Row(3, 2)])
    params: dict[str, Any] = {}
    spec = TrainSpec("sft", 1, params, "", "", epochs=3.0, batch_size=4, select="last")
    for given, passes in ((spec, 3.0), (replace(spec, max_steps=5), 2.0)):
        assert training.flops(Node("sft", given, {}, "r", "w"), load) == passes * once


def test_a_product_is_remembered_in_the_store(tmp_path: Path) -> None:
    store = Store.find(tmp_path / "s", create=True)
    speed = times.product_speed(store, MACHINE)
    assert speed > 1e8
    assert times.product_speed(store, MACHINE) == speed
    assert len(remembered(store)) == 1
    assert times.product_speed(store, MACHINE, "float16") == speed, "a CPU makes its roundings around float32 products"
    assert times.product_speed(store, replace(MACHINE, host="there")) > 1e8
    assert len(remembered(store)) == 2
    (store.root / times.REMEMBERED).write_text("{ torn")
    assert times.product_speed(store, MACHINE) > 1e8
    nowhere = Store(tmp_path / "none")
    assert times.product_speed(nowhere, MACHINE) > 1e8
    assert not nowhere.root.exists()


def remembered(store: Store) -> dict[str, dict[str, float]]:
    """What a store remembers of products, by machine, arithmetic and threads."""
    return dict(json.loads((store.root / times.REMEMBERED).read_text()))


def as_if_worked(store: Store, seconds: float, more: float = 0.0) -> None:
    """As if every stage had been in its steps or its blocks for so many seconds, each one for `more`, and hours in all:
    reading and tokenising, which grow with other sizes."""
    for n, path in enumerate(sorted(store.root.glob("*/*/manifest.json"))):
        record = json.loads(path.read_text())
        record["made"] |= {"seconds": 9999.0, "worked": seconds + more * n}
        if "speed" in record["metrics"]:
            record["metrics"]["speed"]["seconds"] = record["made"].pop("worked")
        path.write_text(json.dumps(record))


def worked(manifest: Any) -> float:
    return float(manifest.metrics["speed"]["seconds"])


def remember(store: Store, speed: float, measured: int, ago: float) -> None:
    """As if the only product had this speed, measured so often, the last time so many seconds ago."""
    (key,) = remembered(store)
    entry = {"speed": speed, "measured": measured, "at": time.time() - ago}
    (store.root / times.REMEMBERED).write_text(json.dumps({key: entry}))


MINUTE, DAY = 60.0, 86400.0


@pytest.mark.parametrize(
    ("measured", "ago", "is_due"),
    [(1, 1.0, False), (1, 2 * MINUTE, True), (4, 2 * MINUTE, True), (5, 2 * MINUTE, False), (5, 8 * DAY, True)],
    ids=["a moment ago", "once", "four times", "often enough", "long ago"],
)
def test_a_product_that_was_slow_is_measured_again(tmp_path: Path, measured: int, ago: float, is_due: bool) -> None:
    """A machine that was busy at first must not be slow for ever: what is measured next is better than 1 a second."""
    store = Store.find(tmp_path / "s", create=True)
    times.product_speed(store, MACHINE)
    remember(store, 1.0, measured, ago)
    assert (times.product_speed(store, MACHINE) > 1e8) == is_due
    (entry,) = remembered(store).values()
    assert entry["measured"] == measured + is_due
    if is_due:
        assert times.product_speed(store, MACHINE) == entry["speed"], "and that is not due again"


def test_the_best_measurement_is_kept(tmp_path: Path) -> None:
    store = Store.find(tmp_path / "s", create=True)
    times.product_speed(store, MACHINE)
    remember(store, 1e30, 2, 2 * MINUTE)
    assert times.product_speed(store, MACHINE) == 1e30, "this moment is busier than the best one was"
    (entry,) = remembered(store).values()
    assert (entry["speed"], entry["measured"]) == (1e30, 3)
    (key,) = remembered(store)
    (store.root / times.REMEMBERED).write_text(json.dumps({key: 7.0, "x": {"speed": -1, "measured": 1, "at": 0}}))
    assert times.product_speed(store, MACHINE) > 1e8, "an older version remembered numbers alone"


def test_a_stage_that_was_much_faster_has_the_product_measured_again(pipeline: Pipeline, cli: Cli) -> None:
    store = Store.find(pipeline.store)
    about = store.artifacts()[0].made
    same = replace(MACHINE, host=about["host"], name=about["device"])
    as_if_worked(store, 10.0)
    made = store.artifacts()

    def shown(since: float) -> float:
        return times.shown_speed(store, same, made, 0.5, FLOAT32, since)

    trained = [m for m in made if every()[m.stage].kind == "training"]
    assert shown(0.0) >= times._flops_of(trained[0], every()["distill"], store, 0.5) / 10 / memory.REACHED["training"]
    assert shown(time.time() + 1) == 0, "none was finished since"
    times.product_speed(store, same)
    for factor, is_due in ((2.5, True), (1.5, False)):
        slow = shown(0.0) / factor
        remember(store, slow, times.MEASUREMENTS, DAY)
        before = remembered(store)
        assert (times.product_speed(store, same, shown=shown) > slow) == is_due
        assert (remembered(store) != before) == is_due
    remember(store, 1.0, times.MEASUREMENTS, -1.0)
    assert times.product_speed(store, same, shown=shown) == 1.0, "measured since the last stage, and as slow"


@pytest.mark.parametrize(
    ("one", "other", "kind", "alike"),
    [
        ("float16", "float32", "cpu", True), ("tf32", "float32", "cpu", True), ("bfloat16", "float32", "cpu", False),
        ("float16", "bfloat16", "cuda", True), ("float32", "tf32", "cuda", False), ("tf32", "float16", "cuda", False),
    ],
)  # fmt: skip
def test_which_dtypes_share_a_speed(one: str, other: str, kind: str, alike: bool) -> None:
    assert (times.products_of(one, kind) == times.products_of(other, kind)) == alike


def test_what_this_machine_did_comes_before_a_guess(pipeline: Pipeline, cli: Cli) -> None:
    store = Store.find(pipeline.store)
    plan = plan_sft(Names(store), UserSettings(bare={"max_steps": 3}, limit=64), "tiny", ())
    about = store.artifacts()[0].made
    same = replace(MACHINE, host=about["host"], name=about["device"])
    assert survey(plan, store, Runtime(), same).basis == times.GUESSED, "a stage of a second tells no speed"
    as_if_worked(store, 10.0, 1.0)
    known, other = survey(plan, store, Runtime(), same), survey(plan, store, Runtime(), MACHINE)
    assert (known.basis, other.basis) == (times.DID, times.GUESSED)
    past = [m for m in store.artifacts() if every()[m.stage].kind == "training"][:3]
    speeds = sorted(times._flops_of(m, every()[m.stage], store, 0.5) / worked(m) for m in past)
    assert times.past_speed(store, "training", same, store.artifacts(), 0.5, FLOAT32) == pytest.approx(speeds[1])
    assert times.past_speed(store, "training", same, store.artifacts(), 0.5, "bfloat16") is None


def test_a_stage_says_how_long_its_steps_and_blocks_took_by_themselves(pipeline: Pipeline) -> None:
    """A short run over large data reads and tokenises for hours: that tells nothing of how fast it computes."""
    models = [m for m in Store.find(pipeline.store).artifacts() if "model" in m.inputs or "aligned" in m.inputs]
    computed = [m for m in models if "rewards" not in m.inputs]  # which are figures of what others have computed
    for manifest in computed:
        assert 0 < times._worked(manifest) < manifest.made["seconds"], manifest.ref
    assert {"sft", "distill", "start-logps", "cache-teacher", "rollout", "eval"} <= {m.stage for m in computed}


# Models, rows, machine.


def test_a_model_is_counted_from_the_headers_of_its_weights(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    for side in ("teacher", "student"):
        item = External("model:0", side, (str(BASES / side),))
        weights: dict[str, torch.Tensor] = load_file(BASES / side / "model.safetensors")
        found = model_size(item, Store(tmp_path))
        assert found.parameters == sum(w.numel() for w in weights.values())
        assert (found.vocabulary, found.tied) == (238, True)


def test_a_hub_model_without_weights_here_is_as_large_as_its_files_say(tmp_path: Path) -> None:
    config = json.loads((BASES / "student" / "config.json").read_text()) | {"dtype": "bfloat16"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    beside = (tmp_path / "config.json").stat().st_size
    item = External("model:0", "m", (str(tmp_path),), size=2 * 10**9 + beside, download=10**9)
    assert model_size(item, Store(tmp_path)).parameters == 10**9


def test_a_ruler_counts_the_tokens_of_texts_and_of_the_template(tmp_path: Path) -> None:
    ruler = ruler_for(BASES / "student", (TEMPLATE, END), ["the answer is"], ["the"])
    assert (ruler.asked, ruler.said) == (3 / 13, 1 / 3), "and the padding that tokenizer.json asks for is not counted"
    assert (ruler.turn, ruler.ask) == (2, 2), "a turn has its role and its end, a prompt a first and a last token"
    guess = ruler_for(tmp_path, (TEMPLATE, END), ["x"], ["x"])
    assert guess.answers(40, 1) == 11


def test_rows_in_a_table_take_what_the_same_rows_take_in_a_list() -> None:
    draw = np.random.default_rng(0)
    parts = {part: draw.integers(1, 90, (2, 30)).astype(np.float32) for part in ("chosen", "rejected")}
    tables: Rows = {part: RowTable(*columns) for part, columns in parts.items()}
    lists: Rows = {part: list(table) for part, table in tables.items()}
    for part, rows in lists.items():
        assert totals(tables[part]) == totals(rows)
        assert list(RowTable(*parts[part]).fitted(60)) == [row.fitted(60) for row in rows]
        assert room_of(tables[part], 20, 64) == room_of(rows, 20, 64)
        assert tables[part][3:9][1] == rows[4]
    assert list(joined(tables)) == joined(lists)
    for count in (1, 7, 40):
        assert longest_examples(tables, count) == longest_examples(lists, count)
    empty: Rows = {"chosen": RowTable(np.zeros(0), np.zeros(0))}
    assert (longest_examples(empty, 4), room_of(empty["chosen"], 1, 2), totals(empty["chosen"])) == (
        [],
        (0, 0),
        Totals(),
    )


def test_a_row_is_fitted_like_the_data() -> None:
    assert Row(10, 10).fitted(30) == Row(10, 10)
    assert Row(25, 10).fitted(30) == Row(20, 10), "the prompt first"
    assert Row(25, 40).fitted(30) == Row(15, 15), "down to half"


def test_a_container_may_have_less_than_the_machine(tmp_path: Path) -> None:
    most, used = tmp_path / "max", tmp_path / "current"
    assert limit_of(most, used) > 10**17
    most.write_text("1000\n")
    used.write_text("400\n")
    assert limit_of(most, used) == 600
    most.write_text("max\n")
    assert limit_of(most, used) > 10**17
    assert 10**6 < available_memory() < 10**17


# What does not fit, and what is asked about.


def survey_of(store: Store, runtime: Runtime, machine: Machine, method: str = "dckd") -> Survey:
    plan = plan_distill(Names(store), UserSettings(limit=40), Distill(method, "tiny", evaluate=False))
    return survey(plan, store, runtime, machine)


def survey_with(store: Store, machine: Machine, *costs: Cost) -> Survey:
    plan: Any = None
    return Survey(plan, store, Runtime(), machine, costs)


def node_with(*inputs: External) -> Any:
    """What of a node its survey reads."""
    return SimpleNamespace(role="r", label="l", stage="sft", flat_inputs=lambda: [("model", item) for item in inputs])


def test_a_plan_that_does_not_fit_says_all_that_would(tmp_path: Path) -> None:
    store, runtime = Store(tmp_path / "s"), Runtime()
    assert survey_of(store, runtime, MACHINE).problems == ()
    poor = replace(MACHINE, disk=10**6, memory=10**6)
    found = survey_of(store, runtime, poor)
    said = found.problems
    assert "the disk of" in said[0].message
    assert "1.0 MB free" in said[0].message
    assert "--store DIR" in said[0].hint
    roles = {cost.node.role for cost in found.building}
    assert all(any(error.message.startswith(role) for error in said) for role in roles), "each stage is named"
    assert any("ready pair" in error.hint for error in said)


def test_the_hint_is_the_largest_half_that_fits(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    runtime = Runtime(tokens_per_device=8192)
    found = survey_of(store, runtime, MACHINE)
    cost = max(found.building, key=lambda c: c.memory.device if c.memory and c.trained else 0)
    room = cost.memory.device - 10**6 if cost.memory else 0
    tight = replace(MACHINE, memory=room)
    said = survey_of(store, runtime, tight).problems
    error = next(e for e in said if cost.node.label in e.message)
    assert error.hint.startswith("--tokens-per-device ")
    smaller = replace(runtime, tokens_per_device=int(error.hint.split()[1]))
    assert not [e for e in survey_of(store, smaller, tight).problems if cost.node.label in e.message]


def test_what_saves_memory_is_told_in_the_order_of_what_it_costs(tmp_path: Path) -> None:
    store = Store(tmp_path / "s")
    plan = plan_sft(Names(store), UserSettings({"dtype": "bfloat16"}, limit=40), "tiny", ())
    (node,) = plan.targets

    def hint(room: int, runtime: Runtime) -> str:
        said = [error.hint for error in survey(plan, store, runtime, replace(MACHINE, memory=room)).problems]
        return said[0] if said else ""

    def needs(runtime: Runtime, **settings: Any) -> int:
        small: Any = replace(node, spec=replace(node.spec, **settings))
        found = cost_of(small, store, runtime, MACHINE, Clock(store, MACHINE)).memory
        assert found
        return found.device

    least = Runtime(tokens_per_device=memory.DRAW_TOKENS // 2**7)  # of which no half is worth telling
    again = replace(least, recompute=True)
    assert hint(needs(least), least) == ""
    assert hint(needs(least) - 1, least) == "--runtime recompute=true"
    assert hint(needs(again) - 1, least) == "--set sft.weights=bfloat16"
    both = needs(again, weights="bfloat16")
    assert hint(both, least) == "--set sft.weights=bfloat16 --runtime recompute=true"
    assert "smaller student" in hint(both - 1, least), "low-rank matrices would be larger than this model"


def test_downloads_count_on_the_disk_they_go_to(tmp_path: Path) -> None:
    item = External("model:0", "m", ("x",), {}, size=5000, download=5000)
    cost = Cost(node_with(item), None, Disk(1000, 500), Memory(1), 1.0)
    store = Store(tmp_path)
    for machine, count in (
        (replace(MACHINE, disk=6000), 1), (replace(MACHINE, disk=6500), 0),
        (replace(MACHINE, disk=1500, cache=5000), 0), (replace(MACHINE, disk=1400, cache=4000), 2),
    ):  # fmt: skip
        found = survey_with(store, machine, cost)
        assert len(list(disk_problems(found.building, machine, found.download, store))) == count


def test_the_fullest_moment_is_the_one_with_most_kept_and_at_work() -> None:
    node = node_with()
    costs = [Cost(node, None, Disk(keeps, extra), Memory(need), 10.0)
             for keeps, extra, need in ((10, 100, 7), (20, 60, 9), (40, 45, 8))]  # fmt: skip
    found = survey_with(Store(Path("s")), MACHINE, *costs)
    assert (found.keeps, found.peak, found.memory, found.seconds) == (70, 115, 9, 30.0)
    unknown = survey_with(Store(Path("s")), MACHINE, *costs, Cost(node))
    assert (unknown.keeps, unknown.peak, unknown.memory, unknown.seconds) == (None, None, None, None)


@pytest.mark.parametrize(
    ("cost", "download", "large"),
    [
        ({"disk": Disk(10**10)}, 0, False), ({"disk": Disk(10**10)}, 1, True), ({"seconds": 1800.0}, 0, False),
        ({"seconds": 1801.0}, 0, True), ({"trained": 10**9}, 0, False), ({"trained": 10**9 + 1}, 0, True),
    ],
)  # fmt: skip
def test_large_is_10_gb_half_an_hour_or_a_billion_parameters(cost: dict[str, Any], download: int, large: bool) -> None:
    item = External("model:0", "m", ("x",), {}, download, download)
    whole = {"disk": Disk(0), "seconds": 0.0, **cost}
    assert survey_with(Store(Path("s")), MACHINE, Cost(node_with(item), None, **whole)).is_large is large


def test_a_plan_that_is_found_is_not_looked_into(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.find(pipeline.store)
    names = Names(store)
    made = next(m for m in store.artifacts() if m.made.get("role") == "student")
    from adpa_cli.spec import TrainSpec, make

    base = names.builtin_model("student")
    node = Node("sft", make(TrainSpec, made.spec), {"model": base, "data": names.data(("tiny-sft",))}, "student", "w")
    monkeypatch.setattr(surveys, "cost_of", None)
    found = survey(Plan((node,), Template(TEMPLATE, END)), store, Runtime(), MACHINE)
    assert (found.building, found.keeps, found.seconds, found.is_large) == ((), 0, 0, False)


# Against what stages then took.


def test_the_disk_of_the_tiny_pipeline(pipeline: Pipeline, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every finished stage again as if it were to be built, its inputs as they are."""
    store = Store.find(pipeline.store)
    ran = json.loads(cli(*pipeline.words, "-n", "--json").out)
    assert {row["state"] for row in ran["rows"]} == {"found"}
    given = replace(_given(), limit=40)
    plan = plan_distill(Names(store), given, Distill("adpa+", "tiny", data=(str(pipeline.data),)))
    nodes = _all_nodes(plan)
    clock = Clock(store, MACHINE)
    total = kept = 0
    for node in nodes:
        manifest = store.get(node.label)
        assert manifest is not None
        cost = cost_of(node, store, Runtime(), MACHINE, clock)
        assert cost.disk is not None
        if node.declared.kind == "training":
            assert cost.disk.keeps == pytest.approx(manifest.size, rel=0.1), node.label
        if node.stage == "cache-teacher":  # how well a signal packs depends on the teacher
            assert cost.disk.keeps == pytest.approx(manifest.size, rel=0.25), node.label
        total, kept = total + cost.disk.keeps, kept + manifest.size
    assert total == pytest.approx(kept, rel=0.1)


def _given() -> UserSettings:
    from adpa_cli.planning.settings import parse_sets
    from support.cli_samples import SMALL as words

    sets = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
    own, by_stage = parse_sets(sets)
    return UserSettings({**own, "max_steps": 2}, by_stage)


def _all_nodes(plan: Plan) -> list[Node]:
    from adpa_cli.stages import in_order

    return in_order((*plan.targets, *plan.evals), lambda node: False)


def model_of_12m(folder: Path) -> Path:
    """A Llama of 12 M parameters that knows nothing."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16_384, hidden_size=320, intermediate_size=960, num_hidden_layers=5, num_attention_heads=10,
        max_position_embeddings=1024, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    pretrained_tokenizer().save_pretrained(folder)
    return folder


LIBRARY_PAGES = 150_000_000
"""Of the files of libraries, what is mapped where the kernel maps small pieces of them."""


def library_pages(process: int) -> int:
    """Bytes that are resident of a process and are those of libraries' files.

    Files that were just written lie in the kernel's cache in large pieces, which newer kernels map whole: the same
    libraries then show 120 MB more as resident than they do once they were read anew.
    """
    shared, is_library = 0, False
    for line in Path(f"/proc/{process}/smaps").read_text().splitlines():
        name, *words = line.split()
        if not name.endswith(":"):
            is_library = ".so" in line.rpartition("/")[2]
        elif is_library and name in ("Rss:", "Anonymous:"):
            shared += 1024 * int(words[0]) * (1 if name == "Rss:" else -1)
    return shared


def bytes_below(root: Path) -> int:
    """Bytes of the files below a folder that another process is writing to."""
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            with contextlib.suppress(OSError):  # it was renamed meanwhile
                total += os.stat(f"{folder}/{name}").st_size
    return total


def watched(words: list[str], root: Path) -> tuple[int, int]:
    """(most bytes resident, most bytes below `root`) while a command runs in a process of its own."""
    resident, libraries, fullest = 0, 0, 0
    seen = 0  # bytes resident when the libraries' pages were read
    child = subprocess.Popen([sys.executable, "-m", "adpa_cli", *words, "-q"], stdout=subprocess.DEVNULL)
    # WNOWAIT: it has ended then, and is still to be read in /proc.
    while os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        # What wait4 tells would include this process, of which the child is a fork.
        status = Path(f"/proc/{child.pid}/status").read_text()
        most = [int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")]
        resident = max(resident, 1024 * sum(most))
        if resident > 1.04 * seen:  # reading them takes long, and short peaks on the disk are missed meanwhile
            seen, libraries = resident, max(libraries, library_pages(child.pid))
        fullest = max(fullest, bytes_below(root))
        time.sleep(0.003)
    assert child.wait() == 0
    return resident - libraries + LIBRARY_PAGES, fullest


@pytest.mark.slow
@pytest.mark.parametrize("which", ["tiny", "12M", "12M lora"])
def test_disk_and_memory_of_a_training(which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    words = ["--model", "tiny", "--limit", "300"]
    given = UserSettings({"max_steps": 3, "batch_size": 4}, limit=300)
    model = "tiny"
    data: tuple[str, ...] = ()
    if which != "tiny":
        model = str(model_of_12m(tmp_path / "model"))
        text = " ".join(f"w{n % 32}" for n in range(200))
        rows = [{"prompt": f"{text} w{i}", "chosen": f"w{i} {text}", "rejected": "w1"} for i in range(9)]
        data = (str(write_rows(tmp_path / "rows.jsonl", rows)),)
        words = ["--model", model, "--data", *data, "--set", "max_length=512", "--set", "dtype=float32"]
        settings = {"max_steps": 3, "batch_size": 4, "max_length": 512, "dtype": FLOAT32}
        if which == "12M lora":
            words += ["--set", "lora=8"]
            settings["lora"] = 8
        given = UserSettings(settings)
    store = Store.find(tmp_path / "s", create=True)
    plan = plan_sft(Names(store), given, model, data)
    found = survey(plan, store, Runtime(), MACHINE)
    assert found.keeps
    assert found.peak
    before = sum(path.stat().st_size for path in store.root.rglob("*") if path.is_file())
    words += ["--max-steps", "3", "--batch-size", "4"]
    resident, fullest = watched(["sft", *words, "--store", str(store.root)], store.root)
    for again in range(2):  # a short peak on the disk can be missed on a busy machine, never seen too large
        if fullest - before < 0.9 * found.peak:
            other = Store.find(tmp_path / f"again-{again}", create=True)
            fullest = max(fullest, watched(["sft", *words, "--store", str(other.root)], other.root)[1])
    manifest = store.get(plan.targets[0].label)
    assert manifest is not None
    assert found.keeps == pytest.approx(manifest.size, rel=0.1)
    assert found.memory == pytest.approx(resident, rel=0.25)
    if which != "tiny":
        assert found.peak == pytest.approx(fullest - before, rel=0.1)
