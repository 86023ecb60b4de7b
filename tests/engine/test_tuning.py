"""What --runtime asks for changes how a model computes, not what; it touches that model alone, and leaves no trace."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adpa_cli.engine.models import save
from adpa_cli.engine.training.optimizer import tune
from adpa_cli.errors import AdpaError, UsageError
from adpa_cli.spec import Runtime
from support.tiny_models import TEMPLATE, VOCABULARY, tiny_llama, tiny_tokenizer
from support.tuned_models import ARCHITECTURES, check_equal, computed, made, spec


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_recomputing_keeps_less_and_changes_nothing(name: str) -> None:
    model = made(name)
    assert tune(model, spec(), Runtime(recompute=True)) == {"recompute": True}
    ours, theirs = computed(model), computed(made(name))
    check_equal(ours, theirs)
    assert ours[2] < 0.4 * theirs[2]


def test_attention_by_name() -> None:
    model = made()
    assert tune(model, spec(), Runtime(attention="eager")) == {"attention": "eager"}
    assert model.config._attn_implementation == "eager"
    check_equal(computed(model), computed(made()))
    with pytest.raises(UsageError, match="attention=flashy") as caught:
        tune(model, spec(), Runtime(attention="flashy"))
    assert "sdpa" in caught.value.hint


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch's compiler uses what torch warns of
def test_compiled_layers_compute_the_same_recomputed_or_not() -> None:
    theirs = computed(made())
    for recompute, facts in ((False, {"compile": True}), (True, {"recompute": True, "compile": True})):
        model = made()
        assert tune(model, spec(), Runtime(compile=True, recompute=recompute)) == facts
        names = list(model.state_dict())
        ours = computed(model)
        check_equal(ours, theirs)
        assert ours[2] < (0.4 if recompute else 1.0) * theirs[2]
        assert list(model.state_dict()) == names == list(made().state_dict())


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AdpaError, match="compile needs") as caught:
        tune(made(), spec(), Runtime(compile=True))
    assert caught.value.hint == "--runtime compile=false"


def test_fused_layers_are_for_gpus() -> None:
    assert tune(made(), spec(), Runtime(liger="auto")) == {} == tune(made(), spec(), Runtime(liger="off"))
    with pytest.raises(AdpaError, match="liger=on: liger-kernel runs on GPUs") as caught:
        tune(made(), spec(), Runtime(liger="on"))
    assert caught.value.hint == "--runtime liger=auto"


def test_bfloat16_weights_and_float32_tables() -> None:
    model = made()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    assert tune(model, spec(weights="bfloat16"), Runtime()) == {}
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert before
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())
    assert model.get_output_embeddings().weight.shape == (VOCABULARY, 16)
    assert spec(weights="bfloat16", dtype="float32").dtype == "bfloat16"


def test_tied_weights_stay_tied_in_bfloat16() -> None:
    model = tiny_llama(tie_word_embeddings=True)
    tune(model, spec(weights="bfloat16"), Runtime())
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_a_folder_tells_nothing_of_how_its_model_was_trained(tmp_path: Path) -> None:
    usual, tuned = made(), made()
    tune(tuned, spec(), Runtime(recompute=True, attention="eager", fused=False))
    for name, model in (("usual", usual), ("tuned", tuned)):
        save(model, tiny_tokenizer(), tmp_path / name, TEMPLATE, "<end>")
    ours, theirs = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("tuned", "usual"))
    assert ours == theirs
    tune(tuned, spec(weights="bfloat16"), Runtime())
    save(tuned, tiny_tokenizer(), tmp_path / "half", TEMPLATE, "<end>")
    assert (tmp_path / "half" / "config.json").read_bytes() == theirs["config.json"], "whose dtype is float32"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_norms_that_round_change_no_output_and_keep_less(name: str) -> None:
    model, other = made(name), made(name)
    assert tune(model, spec(dtype="bfloat16"), Runtime()) == {}
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = computed(model), computed(other)
    assert torch.equal(ours[0], theirs[0]), "the products round what they read in any case"
    assert ours[2] <= theirs[2]
    for key, gradient in theirs[1].items():
        torch.testing.assert_close(ours[1][key], gradient, rtol=5e-2, atol=5e-2 * float(gradient.abs().max()))
    computed_in_float32 = computed(model)[0]
    assert torch.equal(computed_in_float32, computed(other)[0])
