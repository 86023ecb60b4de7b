"""Adapters as models: those that adpa trains and those of others, from a plan to an export."""

from __future__ import annotations

import json
import shlex
import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, pipeline

from adpa_cli.cli.main import main
from adpa_cli.engine.models import load
from adpa_cli.engine.rewards.reward_model import sequence_rewards
from adpa_cli.engine.update import adapter_update
from adpa_cli.lab import BASES, world
from adpa_cli.store.identity import model_digest
from adpa_cli.store.store import Store
from support.cli_samples import Cli, write_rows
from support.fake_hub import Hub, serve, use
from support.model_folders import change
from support.peft_folders import write_adapter

LENGTH = ("--set", "max_length=128")
TRAIN = ("--max-steps", "2", *LENGTH, "--lr", "0.001", "-y")
CONVERTER = """
import pathlib, sys
folder, _, out, _, outtype = sys.argv[1:]
names = {"config.json", "model.safetensors", "adapter_config.json"} & {p.name for p in pathlib.Path(folder).iterdir()}
pathlib.Path(out).write_text(f"{sorted(names)} {outtype}")
"""
FEW = ("--set", "sft.max_steps=1", "--set", "sft.max_length=128")
IDS = list(range(3, 19))
TARGETS = "down_proj,q_proj,v_proj"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a store with the adapters `sft` and `dpo` (which goes on with it), the whole model that `sft`
    is when it is merged, and an adapter of that by peft; nothing may be written there."""
    folder = tmp_path_factory.mktemp("adapters")
    write_rows(folder / "few.jsonl", world.demonstrations("train")[:16])
    write_rows(folder / "pairs.jsonl", world.preferences("train")[:16])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.chdir(folder)
        lora = ("--set", "lora=4", *TRAIN, "-q")
        assert main(["sft", "--model", "tiny", "--data", "few.jsonl", *lora, "--tag", "sft"]) == 0
        assert main(["dpo-teacher", "--reference", "sft", "--data", "pairs.jsonl", *lora, "--tag", "dpo"]) == 0
        assert main(["export", "sft", "whole", "-q"]) == 0
    write_adapter(folder / "foreign", folder / "whole", "../whole")
    return folder


@pytest.fixture
def here(made: Path, cli: Cli, tmp_path: Path) -> Cli:
    """Commands in a copy of it."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    return cli


def folder(ref: str) -> Path:
    store = Store.find()
    return store.folder(store.resolve(ref).ref)


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(input_ids=torch.arange(3, 19)[None]).logits
    return out


def by_peft(base: Path, adapter: Path) -> Tensor:
    """The logits that a user of peft gets."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers 5 by an older name
        model: Any = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype="float32"), adapter)
    return logits(model.eval())


def near(first: Tensor, second: Tensor) -> bool:
    return float((first - second).abs().max()) <= 1e-4 * float(second.abs().max())


# As models of commands.


def reads(name: str) -> Iterator[tuple[str, ...]]:
    """Commands that read a model as what they ask for, and one that goes on with an adapter."""
    pairs = ("--data", "pairs.jsonl", *LENGTH, "-y")
    targets = TARGETS if name == "./foreign" else "all-linear"
    yield "cache-teacher", "--teacher", name, "--reference", "sft", *pairs
    yield "rollout", "--student", name, "--limit", "2", *pairs
    yield "eval", name, "--reference", "sft", "--teacher", "dpo", "--suite", "implicit", *pairs
    yield "sft", "--model", name, "--data", "few.jsonl", *TRAIN
    lora = ("--set", "lora=4", "--set", f"lora_targets={targets}")
    yield "reward-model", "--model", name, "--data", "pairs.jsonl", *lora, *TRAIN


@pytest.mark.parametrize("name", ["./foreign", "dpo"])
def test_an_adapter_is_a_model_wherever_one_is_asked_for(here: Cli, name: str) -> None:
    for words in reads(name):
        ran = here(*words)
        assert ran.code == 0, (words, ran.err)
    said = here("chat", name, "-", stdin="copy a b")
    assert said.code == 0, said.err


def test_an_adapter_answers_as_its_merged_model_does(here: Cli) -> None:
    assert here("export", "dpo", "merged").code == 0
    prompts = "copy a b\nreverse the letters b o m a .\n"
    assert here("chat", "dpo", "-", stdin=prompts).out == here("chat", "./merged", "-", stdin=prompts).out


def test_the_reference_of_an_adapter_is_found_by_its_lineage(here: Cli) -> None:
    words = ("distill", "--method", "adpa", "--student", "sft", "--teacher", "dpo", "--data", "pairs.jsonl", *TRAIN)
    planned = here(*words, "-n").out
    signal = next(line for line in planned.splitlines() if "\tsignal\t" in line)
    assert "aligned+reference" in signal
    assert here(*words, "--set", "lora=4").code == 0


def test_what_was_learned_is_that_of_the_step_that_is_kept(here: Cli) -> None:
    few = ("--model", "sft", "--data", "few.jsonl", "--set", "lora=4", *LENGTH)
    few = (*few, "--max-steps", "3", "--batch-size", "8", "--lr", "0.1", "--select", "best")
    assert "or use all of them: --set sft.select_on=all" in here.refused(1, "sft", *few), "one prompt is held out"
    ref = here("sft", *few, "--set", "sft.select_on=all").ref
    metrics = Store.find().resolve(ref).metrics
    points = [point["step"] for point in metrics["selection"]["points"]]
    assert metrics["selection"]["step"] < points[-1], "such a rate leads away again"
    kept = adapter_update(load(folder(ref)), folder("sft"), folder(ref))
    assert metrics["update"]["rms"] == pytest.approx(kept["rms"], rel=1e-5)


def test_ids_do_not_depend_on_where_a_base_lies(here: Cli, tmp_path: Path) -> None:
    words = ("rollout", "--student", "./foreign", "--data", "pairs.jsonl", *LENGTH, "-n")
    before = here(*words).out
    assert "rollout/" in before
    shutil.copytree(tmp_path / "whole", tmp_path / "elsewhere" / "base")
    for place in (tmp_path / "whole", tmp_path / "elsewhere" / "base", "../elsewhere/base", "whole"):
        change(tmp_path / "foreign" / "adapter_config.json", base_model_name_or_path=str(place))
        assert here(*words).out == before
    change(tmp_path / "elsewhere" / "base" / "config.json", rope_theta=7.0)
    change(tmp_path / "foreign" / "adapter_config.json", base_model_name_or_path="../elsewhere/base")
    assert here(*words).out != before


def test_a_foreign_adapter_is_found_again_by_a_recipe(here: Cli, tmp_path: Path) -> None:
    ref = here("sft", "--model", "./foreign", "--data", "few.jsonl", *TRAIN).ref
    (tmp_path / "again.toml").write_text(here("show", ref, "--recipe").out)
    assert ref in here("run", "again.toml").out


# What is refused before any work.


@pytest.mark.parametrize(
    ("words", "said", "to_do"),
    [
        (("--reference", "sft", "--set", "lora=8"), "its training cannot continue with lora=8", "dpo-teacher.lora=4"),
        (("--reference", "sft", "--set", "lora=4", "--set", "lora_alpha=3"), "lora_alpha=8", "teacher.lora_alpha=8"),
        (
            ("--reference", "./foreign", "--set", "lora=4"),
            f"is an adapter with lora_targets={TARGETS}", f"dpo-teacher.lora_targets={TARGETS}",
        ),
        (
            ("--reference", "tiny", "--sft-data", "few.jsonl", "--set", "lora=4", "--set", "sft.lora=2"),
            "is an adapter with lora=2", "dpo-teacher.lora=2",
        ),
        (("--reference", "sft", "--set", "lora=4", "--set", "lora_targets=q_proj"), "lora_targets=", "leave lora out"),
    ],
)  # fmt: skip
def test_another_adapter_than_the_one_that_goes_on_is_refused(
    here: Cli, words: tuple[str, ...], said: str, to_do: str
) -> None:
    before = len(Store.find().artifacts())
    answer = here.refused(2, "dpo-teacher", *words, "--data", "pairs.jsonl", *LENGTH, "-y")
    assert said in answer
    assert to_do in answer
    assert len(Store.find().artifacts()) == before


def test_an_adapter_without_its_base_is_refused(here: Cli, tmp_path: Path) -> None:
    change(tmp_path / "foreign" / "adapter_config.json", base_model_name_or_path="/models/gone")
    answer = here.refused(3, "rollout", "--student", "./foreign", "--data", "pairs.jsonl", "-n")
    assert "foreign is not at /models/gone" in answer
    assert "base_model_name_or_path" in answer


def test_other_storage_of_a_base_than_in_training_is_refused(here: Cli, tmp_path: Path) -> None:
    change(tmp_path / "foreign" / "adapter_base.json", quantise="nf4")
    words = ("rollout", "--student", "./foreign", "--data", "pairs.jsonl", "--set", "quantise=int8", *LENGTH)
    answer = here.refused(2, *words, "-y")
    assert "foreign is an adapter that was trained with nf4 weights, and int8 weights were requested" in answer
    assert "--set rollout.quantise=nf4" in answer
    for key in ("quantise", "rollout.quantise"):
        answer = here.refused(2, *words[:5], "--set", f"{key}=none", *LENGTH, "-n")
        assert "was trained with nf4 weights, and whole weights were requested" in answer
        assert "--set rollout.quantise=nf4" in answer
    assert here(*words[:5], "--set", "eval.quantise=none", *LENGTH, "-n").code == 0, "it is about another stage"


def test_layers_of_a_pattern_are_named_as_a_shell_takes_them(here: Cli, tmp_path: Path) -> None:
    pattern = r".*(self_attn|mlp)\.[a-z]{1,4}_proj"
    write_adapter(tmp_path / "pattern", tmp_path / "whole", "../whole", target_modules=pattern, lora_dropout=0.1,
                  modules_to_save=["norm"])  # fmt: skip
    words = ("sft", "--model", "./pattern", "--data", "few.jsonl", "--set", "lora=4", *TRAIN)
    hint = here.refused(2, *words).partition("try:")[2].partition(", or merge")[0]
    said = here(*words, *shlex.split(hint))
    assert said.code == 0, said.err
    told = " ".join(said.err.split())
    assert "pattern was trained with lora_dropout=0.1, and its training goes on without dropout" in told
    assert "pattern brings norm whole, which stay as they are: only its matrices are trained" in told
    before, after = (load_file(path / "adapter_model.safetensors") for path in (tmp_path / "pattern", folder(said.ref)))
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {name for name in before if ".lora_" in name}


def test_a_broken_pattern_is_named_before_any_work(here: Cli, tmp_path: Path) -> None:
    change(tmp_path / "foreign" / "adapter_config.json", target_modules="(q_proj")
    for words in reads("./foreign"):
        assert "target_modules is '(q_proj', no pattern" in here(*words, "-n").err


# On the hub.


@pytest.fixture
def hub(here: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve() as served:
        use(served, tmp_path / "hf", monkeypatch)
        served.add("org/base", tmp_path / "whole")
        served.add("org/adapter", tmp_path / "foreign")
        change(tmp_path / "foreign" / "adapter_config.json", base_model_name_or_path="org/base")
        yield served


@pytest.mark.parametrize("name", ["org/adapter", "./foreign"])
def test_an_adapter_of_a_hub_model_is_planned_with_the_download_of_both(
    here: Cli, hub: Hub, tmp_path: Path, name: str
) -> None:
    words = ("rollout", "--student", name, "--data", "pairs.jsonl", "--limit", "2", *LENGTH)
    planned = json.loads(here(*words, "-n", "--json").out)
    files = [tmp_path / "whole" / "model.safetensors"]
    files += [tmp_path / "foreign" / "adapter_model.safetensors"] if name == "org/adapter" else []
    assert planned["totals"]["download"] == sum(path.stat().st_size for path in files)
    assert not [path for path in hub.bodies() if path.endswith(".safetensors")]
    ran = here(*words, "-y")
    assert ran.code == 0, ran.err
    assert len([path for path in hub.bodies() if path.endswith(".safetensors")]) == len(files)


def test_a_base_that_is_closed_is_named(here: Cli, hub: Hub) -> None:
    hub.repos["org/base"].gated = True
    answer = here.refused(1, "rollout", "--student", "org/adapter", "--data", "pairs.jsonl", "-n")
    assert "org/base" in answer
    assert "gated" in answer


@pytest.mark.parametrize("name", ["org/base", "org/adapter"])
def test_what_is_trained_on_a_hub_base_names_it_by_its_commit(here: Cli, hub: Hub, tmp_path: Path, name: str) -> None:
    targets = f"lora_targets={TARGETS}"
    words = ("sft", "--model", name, "--data", "few.jsonl", "--set", "lora=4", "--set", targets, *TRAIN)
    ref = here(*words).ref
    said = json.loads((folder(ref) / "adapter_config.json").read_text())
    assert said["base_model_name_or_path"] == "org/base"
    assert said["revision"] == hub.repos["org/base"].commit
    assert here("export", ref, "out", "--adapter").code == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "library_name: peft" in card
    assert "- org/base" in card


# What it is exported as, and what is said of it.


@pytest.mark.parametrize("name", ["sft", "dpo", "./foreign"])
def test_merged_and_adapter_say_the_same(here: Cli, tmp_path: Path, name: str) -> None:
    assert here("export", name, "merged").code == 0
    assert here("export", name, "adapter", "--adapter").code == 0
    place = tmp_path / "foreign" if name == "./foreign" else folder(name)
    expected = logits(load(place))
    assert near(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()), expected)
    named = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert near(by_peft(Path(named), tmp_path / "adapter"), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        whole: Any = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert near(logits(whole.eval()), expected)
    assert not (tmp_path / "adapter" / "adapter_base.json").exists()
    answer = pipeline("text-generation", str(tmp_path / "merged"), max_new_tokens=2)([{"role": "user", "content": "a"}])
    assert answer[0]["generated_text"][-1]["role"] == "assistant"


@pytest.mark.parametrize("start", ["tiny", "sft"])
def test_a_reward_model_is_exported_with_its_head(here: Cli, tmp_path: Path, start: str) -> None:
    words = ("reward-model", "--model", start, "--data", "pairs.jsonl", "--sft-data", "few.jsonl", *FEW)
    ref = here(*words, "--set", "lora=4", *TRAIN).ref
    for name, *options in (("merged",), ("adapter", "--adapter"), ("half", "--dtype", "bfloat16")):
        ran = here("export", ref, name, *options)
        assert ran.code == 0, ran.err
        assert "pipeline_tag: text-classification" in (tmp_path / name / "README.md").read_text()
    expected = sequence_rewards(folder(ref), [IDS, IDS[:-4]], "float32", "cpu", 64)
    whole: Any = AutoModelForSequenceClassification.from_pretrained(tmp_path / "merged").eval()
    padded = torch.tensor([IDS, [*IDS[:-4], *4 * [whole.config.pad_token_id]]])
    with torch.no_grad():
        rewards = whole(input_ids=padded, attention_mask=(padded != whole.config.pad_token_id).long()).logits[:, 0]
    assert rewards.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert len(set(expected)) == 2
    judge = pipeline("text-classification", str(tmp_path / "merged"), function_to_apply="none")
    texts = ["copy a b", "a"]
    scores = judge(texts, batch_size=2)
    assert [row["score"] for row in scores] == pytest.approx([judge(text)[0]["score"] for text in texts], rel=1e-4)
    said = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (said["task_type"], said["modules_to_save"]) == ("SEQ_CLS", ["score"])
    for name in ("merged", "adapter"):
        ran = here("eval", f"./{name}", "--data", "pairs.jsonl", "--suite", "accuracy", "-n")
        assert f"{name} is a reward model, which cannot write answers" in ran.err
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        alone: Any = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter", num_labels=1).eval()
    with torch.no_grad():
        (reward,) = alone(input_ids=torch.tensor([IDS])).logits[:, 0].tolist()
    assert reward == pytest.approx(expected[0], rel=1e-4, abs=1e-6)
    for name in ("./merged", "./adapter"):
        ran = here("eval", "sft", "--reward-model", name, "--data", "pairs.jsonl", "--limit", "2", *LENGTH, "-y")
        assert ran.code == 0, ran.err
    assert "--to ollama needs a model that writes answers" in here.refused(2, "export", ref, "out", "--to", "ollama")
    assert f"adpa export {ref} DIR" in here("path", ref).err


def test_an_adapter_of_a_model_that_never_answered_is_merged_with_a_warning(here: Cli, tmp_path: Path) -> None:
    base = Path(shutil.copytree(BASES / "student", tmp_path / "bare"))
    write_adapter(tmp_path / "mine", base, "../bare")
    for name in ("./mine", "./bare"):
        out = tmp_path / f"{Path(name).name}-out"
        ran = here("export", name, out)
        assert ran.code == 0, ran.err
        assert "has no chat template, and programs that chat" in ran.err
        assert not (out / "chat_template.jinja").exists()
        assert "It has no chat template." in (out / "README.md").read_text()
        expected = logits(load(tmp_path / name))
        assert near(logits(AutoModelForCausalLM.from_pretrained(out).eval()), expected)
    assert here("export", "./mine", "alone", "--adapter").code == 0
    assert "has no chat template" in here.refused(2, "export", "./mine", "x", "--to", "ollama")


def test_a_merged_export_takes_every_dtype_and_says_what_it_keeps(here: Cli, tmp_path: Path) -> None:
    ran = here("export", "dpo", "half", "--dtype", "bfloat16", "--json")
    assert ran.code == 0, ran.err
    weights = json.loads(ran.out)["weights"]
    assert "of what training changed in the weights of sft/" in weights["said"][0]
    assert weights["held_out"]["rows"] >= 1
    kinds = {tensor.dtype for tensor in AutoModelForCausalLM.from_pretrained(tmp_path / "half").parameters()}
    assert kinds == {torch.bfloat16}
    card = (tmp_path / "half" / "README.md").read_text()
    assert "merged into those weights" in card
    assert "rank 4" in card
    assert here("export", "dpo", "ollama", "--to", "ollama").code == 0
    assert (tmp_path / "ollama" / "model.safetensors").exists()
    (tmp_path / "convert.py").write_text(CONVERTER)
    assert here("export", "dpo", "gguf", "--to", "gguf", "--converter", "convert.py").code == 0
    (made,) = (tmp_path / "gguf").glob("*.gguf")
    assert made.read_text() == "['config.json', 'model.safetensors'] auto"


def test_merging_into_the_weights_that_were_quantised_is_measured(here: Cli, tmp_path: Path) -> None:
    words = ("sft", "--model", "./whole", "--data", "few.jsonl", "--set", "lora=4", "--set", "quantise=nf4", *TRAIN)
    ref = here(*words).ref
    ran = here("export", ref, "merged", "--rows", "4", "--json")
    assert ran.code == 0, ran.err
    weights = json.loads(ran.out)["weights"]
    assert "trained beside nf4 weights of its base" in weights["said"][0]
    assert "merging changes the log-prob of a token by" in weights["said"][-1]
    assert weights["held_out"]["before"] != weights["held_out"]["after"]
    assert "trained beside nf4 weights" in (tmp_path / "merged" / "README.md").read_text()
    assert here("export", ref, "adapter", "--adapter").code == 0
    assert json.loads((tmp_path / "adapter" / "adapter_base.json").read_text()) == {"quantise": "nf4"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("./whole", "--adapter"), "--adapter works for adapters only, and whole has whole weights"),
        (("sft", "--adapter", "--dtype", "bfloat16"), "--dtype bfloat16 and --adapter cannot be combined"),
        (("sft", "--adapter", "--to", "ollama"), "--to ollama and --adapter cannot be combined"),
        (("sft", "--adapter", "--rows", "2"), "--rows 2 and --adapter cannot be combined"),
    ],
)
def test_what_cannot_be_exported_as_an_adapter_is_named(here: Cli, words: tuple[str, ...], said: str) -> None:
    name, *options = words
    assert said in here.refused(2, "export", name, "out", *options)


def test_an_export_of_damaged_matrices_is_refused(here: Cli, tmp_path: Path) -> None:
    path = folder("sft") / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    assert "adapter_model.safetensors of sft/" in here.refused(5, "export", "sft", "out")
    assert not (tmp_path / "out").exists()


def test_path_says_that_a_folder_is_an_adapter(here: Cli) -> None:
    ran = here("path", "dpo")
    assert ran.ref == str(folder("dpo"))
    assert "is an adapter of student: the folder has no whole weights" in ran.err
    assert "--enable-lora --lora-modules dpo-teacher-" in ran.err
    assert "adpa export dpo-teacher/" in ran.err
    assert here("path", "dpo", "-q").err == ""


def test_show_says_what_an_adapter_is(here: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    record = json.loads(here("show", "dpo", "--json").out)["adapter"]
    assert (record["rank"], record["alpha"], record["quantise"], record["base"]) == (4, 8.0, None, "student")
    assert "q_proj" in record["targets"]


def test_verify_notices_a_base_that_is_gone_or_has_changed(here: Cli, tmp_path: Path) -> None:
    ref = here("sft", "--model", "./whole", "--data", "few.jsonl", "--set", "lora=4", *TRAIN).ref
    assert here("verify", ref).code == 0
    before = model_digest(tmp_path / "whole")
    change(tmp_path / "whole" / "config.json", rope_theta=7.0)
    said = here.refused(5, "verify", ref)
    assert "has changed since the adapter was made" in said
    assert before[:12] in said
    assert "changed" in here.refused(1, "rollout", "--student", ref, "--data", "pairs.jsonl", "-n")
    shutil.move(tmp_path / "whole", tmp_path / "away")
    gone = here.refused(5, "verify", ref)
    assert f"is not at {tmp_path / 'whole'}" in gone
    assert f"mv FOLDER {tmp_path / 'whole'}\n" in gone


def test_a_base_that_moved_is_found_by_its_content(here: Cli, tmp_path: Path) -> None:
    ref = here("sft", "--model", "./whole", "--data", "few.jsonl", "--set", "lora=4", *TRAIN).ref
    shutil.move(tmp_path / "whole", tmp_path / "moved")
    assert "let this store see once where it lies" in here.refused(5, "verify", ref)
    assert here("sft", "--model", "./moved", "--data", "few.jsonl", *LENGTH, "-n").code == 0
    assert here("verify", ref).code == 0


def test_a_store_that_moves_keeps_its_adapters(here: Cli, tmp_path: Path) -> None:
    whole = here("sft", "--model", "tiny", "--data", "few.jsonl", *TRAIN).ref
    words = ("dpo-teacher", "--reference", whole, "--data", "pairs.jsonl", "--set", "lora=4", *TRAIN)
    adapter = here(*words).ref
    expected = logits(load(folder(adapter)))
    alone = Path(shutil.copytree(folder(adapter), tmp_path / "somewhere" / "alone"))
    (tmp_path / "adpa-store").rename(tmp_path / "moved")
    (tmp_path / "moved").rename(tmp_path / "a-store")
    store = ("--store", "a-store")
    assert here("verify", *store).code == 0
    moved = Store.find(tmp_path / "a-store").folder(adapter)
    assert torch.equal(logits(load(moved)), expected)
    answer = here.refused(3, "rollout", "--student", f"./{alone.relative_to(tmp_path)}", "--data", "pairs.jsonl", "-n")
    assert f"artifact {whole.rpartition('/')[2]}" in answer
    assert "the base is in it" in answer


def test_gc_keeps_the_base_of_an_adapter_that_stays(here: Cli) -> None:
    whole = here("sft", "--model", "tiny", "--data", "few.jsonl", *TRAIN).ref
    words = ("dpo-teacher", "--reference", whole, "--data", "pairs.jsonl", "--set", "lora=4", *TRAIN, "--tag", "kept")
    assert here(*words).code == 0
    for tag in ("sft", "dpo"):
        assert here("tag", "--delete", tag).code == 0
    assert here("gc", "--days", "0", "-y").code == 0
    left = {manifest.ref for manifest in Store.find().artifacts()}
    assert whole in left
    assert here("verify").code == 0
