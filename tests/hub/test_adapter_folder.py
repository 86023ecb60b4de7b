"""Adapter folders: what they say, where their base is found, what they are identified by, and what is refused."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from adpa_cli.disk import sha256_file
from adpa_cli.errors import AdpaError, DataError, NotFound
from adpa_cli.hub.adapter_folder import AdapterFolder, folder_digest
from adpa_cli.hub.externals import Externals
from adpa_cli.hub.model_folder import ModelFolder
from adpa_cli.hub.repository import cached_commit
from adpa_cli.store import identity
from adpa_cli.store.identity import MERGED, NEVER_MERGED, HashCache, NoModel, model_digest
from adpa_cli.store.store import Store
from support.fake_hub import Hub, serve, sha_of, use
from support.model_folders import CHATML, change, write_model
from support.peft_folders import write_adapter


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_model(tmp_path / "models" / "base")
    return tmp_path / "models" / "base"


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    return write_adapter(tmp_path / "adapters" / "mine", base)


def of(folder: Path) -> AdapterFolder:
    found = AdapterFolder.of(folder)
    assert found is not None
    return found


def test_what_an_adapter_says_of_itself(adapter: Path, base: Path) -> None:
    found = of(adapter)
    assert (found.rank, found.alpha, found.targets) == (4, 8.0, ("down_proj", "q_proj", "v_proj"))
    assert (found.base, found.quantise) == (base, None)
    assert found.content == f"model:{model_digest(base)}"
    assert AdapterFolder.of(base) is None


def test_a_base_that_is_known_by_content_is_hashed_once(
    adapter: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (adapter / "adapter_base.json").write_text(json.dumps({"content": f"model:{model_digest(base)}"}))
    hashed: list[Path] = []
    monkeypatch.setattr(identity, "sha256_file", lambda path: hashed.append(path) or sha256_file(path))
    assert all(ModelFolder.of(adapter).whole.path == base for _ in range(3))
    assert len(hashed) == len(set(hashed)) > 0
    change(base / "config.json", rope_theta=7.0)
    with pytest.raises(DataError, match="has changed since the adapter was made"):
        ModelFolder.of(adapter)


def test_a_step_of_an_artifact_knows_the_store(adapter: Path, base: Path, tmp_path: Path) -> None:
    store = Store.find(tmp_path / "store", create=True)
    step = tmp_path / "store" / "sft" / "0123456789ab" / "step-000003"
    shutil.copytree(adapter, step)
    (step / "adapter_base.json").write_text(json.dumps({"content": f"model:{model_digest(base, store.hash_cache)}"}))
    change(step / "adapter_config.json", base_model_name_or_path="../gone")
    assert of(step).base == base


def test_an_adapter_beside_whole_weights_is_none(adapter: Path, base: Path) -> None:
    shutil.copy(base / "model.safetensors", adapter)
    assert AdapterFolder.of(adapter) is None


@pytest.mark.parametrize("named", ["../../models/base", "models/base"])
def test_a_base_is_found_from_the_adapter_and_from_the_working_directory(
    adapter: Path, base: Path, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base.parent.parent)
    change(adapter / "adapter_config.json", base_model_name_or_path=named)
    assert of(adapter).base == base


def test_a_model_folder_says_of_an_adapter_what_its_base_says(adapter: Path, base: Path) -> None:
    change(base / "generation_config.json", eos_token_id=2)
    found, whole = ModelFolder.of(adapter), ModelFolder.of(base)
    assert (found.shapes, found.files, found.vocabulary) == (whole.shapes, whole.files, whole.vocabulary)
    assert (found.config, found.context, found.size.parameters) == (whole.config, whole.context, whole.size.parameters)
    assert (found.template, found.end_token, found.stop_ids) == (CHATML, "<|im_end|>", (2,))
    assert ModelFolder.of(adapter).texts.path == base


def test_tokenizer_template_and_generation_are_those_that_an_adapter_brings(adapter: Path, base: Path) -> None:
    template = CHATML.replace("assistant", "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, adapter)
    change(adapter / "tokenizer_config.json", eos_token="<|endoftext|>", chat_template=template)
    change(adapter / "generation_config.json", eos_token_id=3)
    found = ModelFolder.of(adapter)
    assert (found.template, found.end_token, found.stop_ids) == (template, "<|endoftext|>", (3,))
    assert ModelFolder.of(adapter).texts.path == adapter


def test_facts_of_an_adapter_follow_a_base_that_changes(adapter: Path, base: Path) -> None:
    before = ModelFolder.of(adapter).context
    change(base / "config.json", max_position_embeddings=2 * int(before or 0))
    assert ModelFolder.of(adapter).context == 2 * int(before or 0)


# What it is identified by.


def test_the_digest_does_not_depend_on_where_the_base_lies(tmp_path: Path, adapter: Path, base: Path) -> None:
    before = folder_digest(adapter)
    moved = Path(shutil.copytree(base, tmp_path / "elsewhere"))
    config = json.loads((adapter / "adapter_config.json").read_text())
    turned = list(reversed(config["target_modules"]))
    change(
        adapter / "adapter_config.json", base_model_name_or_path=str(moved), target_modules=turned, lora_dropout=0.1,
        peft_version="9", inference_mode=False, revision="main", a_new_option=False,
    )  # fmt: skip
    assert folder_digest(adapter) == before


@pytest.mark.parametrize(
    "alter",
    [
        lambda adapter, base: change(adapter / "adapter_config.json", lora_alpha=9),
        lambda adapter, base: change(adapter / "adapter_config.json", rank_pattern={"q_proj": 2}),
        lambda adapter, base: change(adapter / "adapter_base.json", quantise="nf4"),
        lambda adapter, base: shutil.copy(base / "tokenizer.json", adapter),
        lambda adapter, base: change(base / "config.json", rope_theta=7.0),
        lambda adapter, base: write_adapter(adapter, base, seed=1),
    ],
)
def test_what_changes_results_changes_the_digest(
    adapter: Path, base: Path, alter: Callable[[Path, Path], object]
) -> None:
    before = folder_digest(adapter)
    alter(adapter, base)
    assert folder_digest(adapter) != before


def test_a_folder_is_found_again_by_the_digest_of_its_adapter(tmp_path: Path, adapter: Path) -> None:
    cache = HashCache(tmp_path / "hashes", tmp_path)
    sha = folder_digest(adapter, cache)
    assert HashCache(tmp_path / "hashes", tmp_path).locate(sha, folder_digest) == adapter


# A base that is recorded by its content.


def test_a_base_that_changed_since_is_named_with_both_digests(adapter: Path, base: Path) -> None:
    before = model_digest(base)
    change(adapter / "adapter_base.json", content=f"model:{before}")
    assert of(adapter).base == base
    change(base / "config.json", rope_theta=7.0)
    with pytest.raises(DataError, match="has changed since") as caught:
        _ = of(adapter).base
    assert before[:12] in caught.value.message
    assert model_digest(base)[:12] in caught.value.message
    assert "--set lora=4" in caught.value.hint


def test_a_recorded_base_is_found_where_its_store_has_seen_it(tmp_path: Path, adapter: Path, base: Path) -> None:
    store = Store.find(tmp_path / "store", create=True)
    sha = model_digest(base, store.hash_cache)
    change(adapter / "adapter_base.json", content=f"model:{sha}")
    place = Path(shutil.copytree(adapter, store.root / "sft" / "0123456789ab"))
    change(place / "adapter_config.json", base_model_name_or_path="../../../gone/base")
    assert of(place).base == base
    shutil.rmtree(store.root / "sft")
    change(adapter / "adapter_config.json", base_model_name_or_path="../../../gone/base")
    with pytest.raises(NotFound, match=f"is not at {tmp_path.parent / 'gone' / 'base'}"):
        _ = of(adapter).base


def test_a_built_in_base_is_found_wherever_the_package_is(adapter: Path) -> None:
    from adpa_cli.lab import __file__ as lab

    tiny = Path(lab).parent / "bases" / "student"
    write_adapter(adapter, tiny, "/old/machine/adpa_cli/lab/bases/student")
    change(adapter / "adapter_base.json", content=f"model:{model_digest(tiny)}")
    assert of(adapter).base == tiny


# What is refused.


def no_name(adapter: Path, base: Path) -> None:
    change(adapter / "adapter_config.json", base_model_name_or_path=None)


def nowhere(adapter: Path, base: Path) -> None:
    change(adapter / "adapter_config.json", base_model_name_or_path="/data/models/base")


def on_no_machine(adapter: Path, base: Path) -> None:
    change(adapter / "adapter_config.json", base_model_name_or_path="org/base", revision="v2")


def no_artifact(adapter: Path, base: Path) -> None:
    change(adapter / "adapter_config.json", base_model_name_or_path="../../sft/0123456789ab")
    change(adapter / "adapter_base.json", content=f"artifact:{'0123456789ab' + 52 * '0'}")


def on_another_adapter(adapter: Path, base: Path) -> None:
    write_adapter(base.parent / "first", base)
    change(adapter / "adapter_config.json", base_model_name_or_path="../../models/first")


@pytest.mark.parametrize(
    ("make", "said", "to_do"),
    [
        (no_name, "does not name its base", "base_model_name_or_path"),
        (nowhere, "is not at /data/models/base", "mv FOLDER /data/models/base"),
        (on_no_machine, "org/base, is not on this machine", "hf download org/base --revision v2"),
        (no_artifact, "/sft/0123456789ab, is not there", "bring the whole store along"),
        (on_another_adapter, "is an adapter itself", "adpa export"),
    ],
)
def test_a_base_that_is_not_there_is_named_with_what_to_type(
    adapter: Path, base: Path, make: Callable[[Path, Path], None], said: str, to_do: str
) -> None:
    make(adapter, base)
    with pytest.raises(AdpaError) as caught:
        _ = of(adapter).base
    assert said in caught.value.message
    assert to_do in caught.value.hint


def of_another_kind(adapter: Path) -> None:
    change(adapter / "adapter_config.json", peft_type="IA3")


def another_way(adapter: Path) -> None:
    change(adapter / "adapter_config.json", trainable_token_indices=[5])


def another_start(adapter: Path) -> None:
    change(adapter / "adapter_config.json", init_lora_weights="pissa_niter_4")


def as_pickle(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")


def as_gguf(adapter: Path) -> None:
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter.gguf")


def without_rank(adapter: Path) -> None:
    change(adapter / "adapter_config.json", r=None)


def no_json(adapter: Path) -> None:
    (adapter / "adapter_config.json").write_text('{"r": 4')


def cut_off(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def other_rank(adapter: Path) -> None:
    change(adapter / "adapter_config.json", r=8)


def without_second(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(path).items() if "0.mlp.down_proj.lora_B" not in name}, path)


def other_shape(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    wide = {name: t[:, :-1].contiguous() if "q_proj.lora_A" in name else t for name, t in load_file(path).items()}
    save_file(wide, path)


def no_pattern(adapter: Path) -> None:
    change(adapter / "adapter_config.json", target_modules="(")


def other_layers(adapter: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file({name.replace(".layers.", ".blocks."): tensor for name, tensor in load_file(path).items()}, path)


@pytest.mark.parametrize(
    ("kind", "to_do"),
    [
        (
            "PREFIX_TUNING",
            "train a LoRA adapter of its base instead: adpa sft --model org/base",
        ),
        ("NEWEST", "where your peft knows NEWEST and has a way to merge it, merge it once"),
        ("VERA", "merge it once, in Python"),
    ],
)
def test_what_can_be_done_with_another_kind_is_said_of_that_kind(adapter: Path, kind: str, to_do: str) -> None:
    change(adapter / "adapter_config.json", peft_type=kind, base_model_name_or_path="org/base")
    with pytest.raises(AdpaError) as caught:
        AdapterFolder.of(adapter)
    assert to_do in caught.value.hint
    assert ("merge_and_unload" in caught.value.hint) == (kind != "PREFIX_TUNING")


@pytest.mark.parametrize("kind", sorted(MERGED | NEVER_MERGED))
def test_kinds_are_merged_where_peft_does(kind: str) -> None:
    tuners = importlib.import_module("peft.mapping").PEFT_TYPE_TO_TUNER_MAPPING
    if kind in ("POLY", "XLORA"):  # peft fails only when it is asked to
        return
    has_way = [hasattr(tuner, "merge_and_unload") for name, tuner in tuners.items() if name.value == kind]
    assert has_way in ([], [kind in MERGED])


@pytest.mark.parametrize(
    ("make", "said", "to_do"),
    [
        (of_another_kind, "of the kind IA3; only LoRA adapters can be read", "merge_and_unload"),
        (as_pickle, "adapter without adapter_model.safetensors (only adapter_model.bin)", "save_pretrained"),
        (as_gguf, "adapter without adapter_model.safetensors (only adapter.gguf)", "save_pretrained"),
        (no_pattern, "target_modules is '(', no pattern", "download or write"),
        (another_way, "uses trainable_token_indices, which is not read here", "merge_and_unload"),
        (another_start, "init_lora_weights=pissa_niter_4, which changes the base as well", "merge_and_unload"),
        (without_rank, "has no usable rank and scale: r is None", "again"),
        (no_json, "adapter_config.json is not valid JSON", "again"),
        (cut_off, "adapter_model.safetensors is incomplete", "again"),
        (other_rank, "says rank 8, and base_model.model.model.layers", "not of one adapter"),
        (without_second, "layers.0.mlp.down_proj.lora_A.weight is [4, 48] and its lora_B []", "again"),
        (other_shape, "is 32 × 32 there, and 32 × 31 in the adapter", "base_model_name_or_path"),
        (other_layers, "there is no blocks.0.", "base_model_name_or_path"),
    ],
)
def test_what_is_no_usable_adapter_is_named(
    tmp_path: Path, adapter: Path, make: Callable[[Path], None], said: str, to_do: str
) -> None:
    make(adapter)
    with pytest.raises(AdpaError) as caught:
        Externals(Store.find(tmp_path / "store", create=True)).folder(adapter)
    assert said in caught.value.message
    assert to_do in caught.value.hint
    assert isinstance(caught.value, NoModel) == (make in (of_another_kind, as_pickle, as_gguf))


def test_a_quantised_base_is_refused_as_it_is_by_itself(tmp_path: Path, adapter: Path, base: Path) -> None:
    change(base / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(DataError, match=r"the base of mine, is quantised \(bitsandbytes, 4 bits"):
        Externals(Store.find(tmp_path / "store", create=True)).folder(adapter)


# Adapters and bases of the hub.


@pytest.fixture
def served(tmp_path: Path, base: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    change(adapter / "adapter_config.json", base_model_name_or_path="org/base")
    with serve() as hub:
        use(hub, tmp_path / "hf", monkeypatch)
        hub.add("org/base", base)
        hub.add("org/adapter", adapter)
        yield hub


def test_a_hub_adapter_brings_its_base_along(served: Hub, tmp_path: Path, adapter: Path, base: Path) -> None:
    names = Externals(Store.find(tmp_path / "store", create=True))
    model = names.hub_model("org/adapter")
    weights = (adapter / "adapter_model.safetensors", base / "model.safetensors")
    assert model.download == sum(path.stat().st_size for path in weights)
    assert {file.repo for file in model.files} == {"org/adapter", "org/base"}
    assert model.facts["base"] == {"name": "org/base", "commit": served.repos["org/base"].commit}
    change(adapter / "adapter_config.json", base_model_name_or_path=str(base))
    assert model.content == f"model:{folder_digest(adapter)}"
    fetch(model, names)
    place = Path(model.where[0])
    assert of(place).base == Path(served_folder("org/base", served))
    assert f"model:{folder_digest(place)}" == model.content
    assert sha_of(of(place).base / "model.safetensors") == sha_of(base / "model.safetensors")


def test_a_base_of_the_hub_of_a_local_adapter_is_fetched_at_its_revision(
    served: Hub, tmp_path: Path, adapter: Path, base: Path
) -> None:
    older = Path(shutil.copytree(base, tmp_path / "older"))
    change(older / "config.json", rope_theta=7.0)
    commit = 40 * "a"
    served.add(f"org/base@{commit}", older).commit = commit
    change(adapter / "adapter_config.json", revision=commit)
    names = Externals(Store.find(tmp_path / "store", create=True))
    model = names.folder(adapter)
    fetch(model, names)
    assert ModelFolder.of(adapter).config["rope_theta"] == 7.0
    assert {file.commit for file in model.files} == {commit}


def test_a_base_without_a_revision_is_the_one_that_the_cache_has_for_main(
    served: Hub, tmp_path: Path, adapter: Path
) -> None:
    names = Externals(Store.find(tmp_path / "store", create=True))
    first = names.folder(adapter)
    fetch(first, names)
    commit = served.repos["org/base"].commit
    assert cached_commit("org/base", "main", "model") == commit
    old = served.repos["org/base"]
    served.repos |= {f"org/base@{commit}": old, "org/base": replace(old, commit=40 * "b")}
    again = Externals(Store.find(tmp_path / "store2", create=True)).folder(adapter)
    assert again.content == first.content
    assert {file.commit for file in again.files} == {commit}


def test_a_hub_base_of_which_only_small_files_are_here_is_missing(
    served: Hub, tmp_path: Path, adapter: Path, base: Path
) -> None:
    change(adapter / "adapter_base.json", content=f"model:{model_digest(base)}")
    names = Externals(Store.find(tmp_path / "store", create=True))
    names.hub_model("org/base")
    change(adapter / "adapter_config.json", revision=served.repos["org/base"].commit)
    with pytest.raises(NotFound, match="org/base, is not on this machine") as caught:
        _ = of(adapter).base
    assert f"hf download org/base --revision {served.repos['org/base'].commit}" in caught.value.hint


def fetch(model: Any, names: Externals) -> None:
    from adpa_cli.hub.repository import fetch

    fetch(model.files, names.store.hash_cache, lambda text: None)


def served_folder(name: str, hub: Hub) -> str:
    from adpa_cli.hub.repository import snapshot

    return str(snapshot(name, "model", hub.repos[name].commit))
