"""Operations of a step against a count by hand, peaks by the names of devices, and sums over the pieces of a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, LlamaForSequenceClassification, MambaConfig, MixtralConfig

from adpa_cli.engine.costs import training_flops
from adpa_cli.engine.ranks import Ranks
from adpa_cli.engine.training.loop import train
from adpa_cli.engine.training.step_report import METRICS, SPEED, Speed, peak_flops, size_of
from adpa_cli.engine.training.student import Student
from adpa_cli.errors import Stopped
from adpa_cli.sizes import ModelSize, Row
from adpa_cli.spec import Runtime
from support.tiny_models import tiny_llama
from support.train_samples import examples, make_run


def test_operations_by_hand() -> None:
    """10 body and 7 head parameters, 2 layers of width 3; 4 tokens, the last 2 of them of the answer."""
    model = ModelSize(parameters=17, hidden=1, layers=2, inner=0, keys=0, width=3, vocabulary=7)
    assert (model.body, model.head) == (10, 7)
    once = 6 * 10 * 4 + 6 * 7 * 2 + 12 * 2 * 3 * 4 * 4
    assert training_flops(model, {"chosen": [Row(2, 2)]}, 1) == once
    assert training_flops(model, {"chosen": [Row(2, 2)], "rejected": [Row(2, 2)]}, 1) == 2 * once


@pytest.mark.parametrize("tied", [False, True])
def test_the_shape_of_a_model_counts_every_weight_once(tied: bool) -> None:
    model = tiny_llama(0, tie_word_embeddings=tied)
    size = size_of(model)
    assert size is not None
    config = model.config
    assert size.layers == config.num_hidden_layers
    assert size.width == config.hidden_size
    assert size.head == config.vocab_size * config.hidden_size
    every = sum(p.numel() for p in model.parameters())
    assert size.body == every - size.head * (1 if tied else 2)
    ranking = size_of(LlamaForSequenceClassification(config))
    assert ranking is not None
    assert (ranking.body, ranking.head) == (size.body, 0), "its head has one row"


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA H200", 989), ("NVIDIA L4", 121),
        ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA L40S", 362), ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA A10G", 70), ("NVIDIA A10", 125),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("NVIDIA GeForce RTX 3090 Ti", None), ("Tesla T4", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None), ("cpu", None),
    ],
)  # fmt: skip
def test_the_peak_of_known_devices(name: str, teraflops: float | None) -> None:
    assert peak_flops(name, "bfloat16") == (None if teraflops is None else pytest.approx(teraflops * 1e12))
    assert peak_flops(name, "float32") is None


def test_the_rates_of_a_speed() -> None:
    one = Speed(seconds=2.0, waited=0.5, tokens=1000, flops=4e12, peak_flops=8e12, memory=5)
    assert one.summary() == {"tokens_per_s": 500, "wait": 0.25, "mfu": 0.25}
    assert (one + Speed(2.0, 0.0, 3000, 0.0, 8e12, 3)).summary() == {"tokens_per_s": 1000, "wait": 0.125, "mfu": 0.125}
    assert (one + Speed(memory=7)).memory == 7
    assert Speed().summary() == {}
    assert "mfu" not in Speed(1.0, 0.0, 1).summary()


def test_a_run_in_pieces_adds_up_what_they_took(tmp_path: Path) -> None:
    """The steps that a killed piece had not saved are done again, and counted once."""
    rows = examples(9)
    seen: list[int] = []

    class Killed(Exception):
        pass

    def go(stop: int = 0, die: int = 0) -> None:
        def progress(step: int, of: int, numbers: dict[str, float]) -> None:
            assert numbers["tokens_per_s"] > 0
            assert 0 <= numbers["wait"] <= 1
            assert "mfu" not in numbers
            seen.append(step)
            if step == die:
                raise Killed

        run = make_run(
            "sft", rows, None, tmp_path, epochs=2.0, batch_size=3, runtime=Runtime(checkpoint_steps=2),
            progress=progress, stop=lambda: "SIGTERM" if stop and len(seen) >= stop - 1 else None,
        )  # fmt: skip
        train(Student(tiny_llama(0).requires_grad_(), "float32"), run, Ranks.here())

    with pytest.raises(Stopped):
        go(stop=3)
    first = Speed.load(tmp_path)
    assert first.seconds > 0
    with pytest.raises(Killed):
        go(die=5)
    go()
    assert seen == [1, 2, 3, 4, 5, 5, 6]
    lines = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    whole = Speed.load(tmp_path)
    assert whole.tokens == sum(line["tokens"] for line in lines) == 2 * sum(len(e.parts["chosen"]) for e in rows)
    assert whole.seconds > first.seconds
    assert whole.memory >= first.memory > 0
    assert (tmp_path / SPEED).name.startswith("_"), "it is no part of an artifact"


def test_models_that_the_formula_does_not_fit_have_no_size() -> None:
    sizes = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1}
    mamba = AutoModelForCausalLM.from_config(MambaConfig(**sizes))
    mixtral = MixtralConfig(**sizes, intermediate_size=8, num_attention_heads=2, num_key_value_heads=2)
    assert size_of(mamba) is None
    assert size_of(AutoModelForCausalLM.from_config(mixtral)) is None, "a token passes two of eight experts"
