"""A model as lm-evaluation-harness asks one: equal to the harness's own in float32, by hand in fewer bits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from adpa_cli.data.templates import Template
from adpa_cli.engine.arithmetic import computing
from adpa_cli.engine.lm_eval_model import harness_model, measured, seeded
from adpa_cli.engine.models import load_checked
from adpa_cli.hub.lm_tasks import harness, task_manager
from adpa_cli.lab import BASES
from adpa_cli.spec import Dtype, Quantise
from support.lm_eval_tasks import write_leaderboard
from support.peft_folders import write_adapter

MODEL = BASES / "student"
BATCH = 3


@pytest.fixture(scope="module")
def manager(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The index of the six small tasks; what the datasets library makes of their rows stays in a folder of the test."""
    folder = tmp_path_factory.mktemp("lm-eval")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "datasets")
        yield task_manager(str(write_leaderboard(folder / "tasks")), "", with_own=False)


def task(manager: Any, name: str, shots: int = 2) -> Any:
    seed = seeded()
    loaded = manager.load([name])["tasks"][name]
    loaded.set_config("num_fewshot", shots)
    loaded.set_fewshot_seed(seed)
    return loaded


def replies(found: Mapping[str, Any], name: str) -> list[Any]:
    """What the model said to each request, in the order of the documents."""
    return [(sample["doc_id"], sample["filter"], sample["resps"]) for sample in found["samples"][name]]


def reference(manager: Any, name: str, shots: int, **model: Any) -> dict[str, Any]:
    """What the harness itself finds with a model that it loads."""
    arguments = {"dtype": "float32", **model}
    found: dict[str, Any] = harness("evaluator").simple_evaluate(
        model="hf", model_args=arguments, tasks=[name], num_fewshot=shots, batch_size=BATCH, device="cpu",
        task_manager=manager, bootstrap_iters=0,
    )  # fmt: skip
    return found


def found_here(asked: Any, manager: Any, name: str, place: Path, shots: int = 2, **how: Any) -> dict[str, Any]:
    requests = place / f"requests-{len(list(place.iterdir()))}.db"
    found, _ = measured(asked, task(manager, name, shots), requests, lambda done, of: None, **how)
    return found


@pytest.mark.parametrize(("name", "shots"), [("hellaswag", 4), ("gsm8k", 2)])
def test_replies_in_float32_are_those_of_the_harness(manager: Any, tmp_path: Path, name: str, shots: int) -> None:
    theirs = reference(manager, name, shots, pretrained=str(MODEL))
    ours = found_here(harness_model(MODEL, "float32", "cpu", batch_size=BATCH), manager, name, tmp_path, shots)
    assert replies(ours, name) == replies(theirs, name)
    kept = {key: value for key, value in theirs["results"][name].items() if "stderr" not in key}
    assert {key: ours["results"][name][key] for key in kept} == kept


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # which peft asks for
def test_an_adapter_answers_as_peft_has_it(manager: Any, tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "adapter", MODEL)
    theirs = reference(manager, "winogrande", 1, pretrained=str(MODEL), peft=str(adapter))
    ours = found_here(harness_model(adapter, "float32", "cpu", batch_size=BATCH), manager, "winogrande", tmp_path, 1)
    assert _logps(ours, "winogrande") == pytest.approx(_logps(theirs, "winogrande"), abs=1e-4)
    base = found_here(harness_model(MODEL, "float32", "cpu"), manager, "winogrande", tmp_path, 1)
    assert _logps(ours, "winogrande") != pytest.approx(_logps(base, "winogrande"), abs=1e-2)


def _logps(found: Mapping[str, Any], name: str) -> list[float]:
    return [reply[0] for sample in found["samples"][name] for (reply,) in sample["resps"]]


@pytest.mark.parametrize(
    ("dtype", "stored"), [("bfloat16", None), ("float16", None), ("tf32", None), ("float32", "nf4")]
)
def test_log_probs_in_fewer_bits_by_hand(manager: Any, tmp_path: Path, dtype: Dtype, stored: Quantise | None) -> None:
    """Of each request alone: its text cut into tokens, the log-softmax, the sum over what is continued."""
    asked = harness_model(MODEL, dtype, "cpu", stored, batch_size=1)
    found = found_here(asked, manager, "hellaswag", tmp_path)
    model: Any = load_checked(MODEL, dtype=dtype, quantise=stored)
    tokenizer, sample = asked.tokenizer, found["samples"]["hellaswag"][0]
    for (context, continuation), reply in zip(sample["arguments"], sample["resps"], strict=True):
        whole, begun = tokenizer.encode(context + continuation), tokenizer.encode(context)
        with torch.no_grad(), computing(dtype, torch.device("cpu")):
            logits = model(torch.tensor([whole[:-1]])).logits.float()[0]
        logps = logits.log_softmax(-1)[len(begun) - 1 :].gather(1, torch.tensor(whole[len(begun) :])[:, None])
        assert reply[0][0] == pytest.approx(float(logps.sum()), abs=1e-4)
    exact = found_here(harness_model(MODEL, "float32", "cpu"), manager, "hellaswag", tmp_path)
    assert _logps(found, "hellaswag") != _logps(exact, "hellaswag")


def test_a_chat_template_writes_examples_as_turns(manager: Any, tmp_path: Path) -> None:
    template = Template("{% for m in messages %}[{{ m.role }}]{{ m.content }}{{ eos_token }}{% endfor %}"
                        "{% if add_generation_prompt %}[assistant]{% endif %}", "<|end|>")  # fmt: skip
    asked = harness_model(MODEL, "float32", "cpu", chat=template)
    found = found_here(asked, manager, "gsm8k", tmp_path, shots=1, with_chat=True)
    context = found["samples"]["gsm8k"][0]["arguments"][0][0]
    assert context.count("[user]Question: ") == 2
    assert context.endswith("\nAnswer:<|end|>[assistant]")
    assert asked.eot_token_id == asked.tokenizer.convert_tokens_to_ids("<|end|>")


def test_work_that_was_cut_off_goes_on(manager: Any, tmp_path: Path) -> None:
    """No request that was answered is asked again, and what is found is what one pass finds."""
    asked = harness_model(MODEL, "float32", "cpu", batch_size=1)
    whole = found_here(asked, manager, "hellaswag", tmp_path)
    seen: list[Sequence[int]] = []
    call = asked._model_call
    asked._model_call = lambda inps, **more: (seen.append(inps.tolist()), call(inps, **more))[1]
    place = tmp_path / "again"
    place.mkdir()

    def stop(done: int, of: int) -> None:
        if 2 * done >= of:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        measured(asked, task(manager, "hellaswag"), place / "requests.db", stop)
    first = len(seen)
    again, rows = measured(asked, task(manager, "hellaswag"), place / "requests.db", lambda done, of: None)
    assert 0 < first < len(seen)
    assert len({str(inputs) for inputs in seen}) == len(seen)
    assert replies(again, "hellaswag") == replies(whole, "hellaswag")
    assert rows["acc,none"] == [float(sample["acc"]) for sample in whole["samples"]["hellaswag"]]
