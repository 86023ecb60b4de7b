"""Models and data of the hub while a plan is made and carried out, against a server that stands in for the hub."""

from __future__ import annotations

import errno
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers import LlamaConfig, LlamaForSequenceClassification

from adpa_cli.errors import Corrupt, DataError
from adpa_cli.hub import repository as hubs
from adpa_cli.hub.externals import open_sources
from adpa_cli.hub.repository import Closed, closed
from adpa_cli.lab import BASES, TEMPLATE, world
from adpa_cli.planning.lineage import trained
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.store.store import Store
from support.cli_samples import SMALL, Cli, Pipeline, by_metric, write_rows
from support.fake_hub import Hub, serve, sha_of, use

STEPS = ("--max-steps", 1, "--limit", 8, "--set", "max_length=128")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serve() as served:
        use(served, tmp_path / "hf", monkeypatch)
        yield served


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.find(tmp_path / "adpa-store", create=True)


def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def unplug(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody answers any more."""
    dead = "http://127.0.0.1:9"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", dead)
    monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", dead)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", dead + "/{repo_id}/resolve/{revision}/{filename}"
    )


def sharded(folder: Path) -> Path:
    """The student's base with its weights in two files."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(BASES / "student", folder)
    weights = load_file(folder / "model.safetensors")
    names = sorted(weights)
    parts = {"a.safetensors": names[:3], "b.safetensors": names[3:]}
    for part, own in parts.items():
        save_file({name: weights[name] for name in own}, folder / part)
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {name: part for part, own in parts.items() for name in own}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def pairs(folder: Path, rows: int = 40) -> Path:
    """A data set with two splits, one of them in a kind of file that the hub keeps as LFS."""
    import pyarrow
    import pyarrow.parquet

    (folder / "data").mkdir(parents=True)
    write_rows(folder / "data" / "train.jsonl", world.preferences("train")[:rows])
    table = pyarrow.Table.from_pylist(list(world.preferences("test")[:12]))
    pyarrow.parquet.write_table(table, folder / "data" / "test-00000-of-00001.parquet")
    (folder / "README.md").write_text("words")
    return folder


@pytest.mark.parametrize("shards", [False, True])
def test_a_hub_model_is_the_folder_with_the_same_bytes_and_no_weight_is_asked_for(
    hub: Hub, store: Store, tmp_path: Path, shards: bool
) -> None:
    folder = sharded(tmp_path / "m") if shards else BASES / "student"
    repo = hub.add("org/m", folder)
    found = Names(store).hub_model("org/m")
    local = Names(store).folder(folder)
    assert (found.content, found.size) == (local.content, local.size)
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert (found.download, local.download) == (weights, 0)
    assert found.facts == {"name": "org/m", "commit": repo.commit}
    assert not [path for path in hub.asked if path.endswith(".safetensors")]


def test_a_second_plan_needs_no_network_with_and_without_the_weights(
    hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/m", BASES / "student")
    first = Names(store).hub_model("org/m")
    hub.asked.clear()
    offline(monkeypatch)
    assert Names(Store.find(store.root)).hub_model("org/m") == first
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    hubs.fetch(first.files, store.hash_cache, lambda text: None)
    hub.asked.clear()
    again = Names(Store.find(store.root)).hub_model("org/m")
    assert (again.content, again.download) == (first.content, 0)
    assert hub.asked == []


def test_what_is_in_the_hugging_face_cache_serves_when_nobody_answers(
    hub: Hub, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import hf_hub_download

    hub.add("org/m", BASES / "student")
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        hf_hub_download("org/m", name)
    unplug(hub, monkeypatch)
    with pytest.raises(Closed, match="not on this machine"):
        Names(store).hub_model("org/m")
    use(hub, tmp_path / "hf", monkeypatch)
    hf_hub_download("org/m", "model.safetensors")
    unplug(hub, monkeypatch)
    assert Names(store).hub_model("org/m").content == Names(store).builtin_model("student").content


def test_a_hub_data_set_is_the_folder_with_the_same_files(hub: Hub, store: Store, tmp_path: Path) -> None:
    folder = pairs(tmp_path / "pairs")
    repo = hub.add("datasets/org/pairs", folder)
    found = Names(store).data(["org/pairs"])
    local = Names(store).data([str(folder)])
    assert (found.content, found.size) == (local.content, local.size)
    assert found.download == (folder / "data" / "test-00000-of-00001.parquet").stat().st_size
    assert Names(store).data_of(found.facts, found.content) == found
    hubs.fetch(found.files, store.hash_cache, lambda text: None)
    from adpa_cli.data.preferences import load_pairs

    hub.asked.clear()
    sources = open_sources(Names(store).data(["org/pairs"]).where)
    theirs, ours = (load_pairs(s, "test").items for s in (sources, open_sources([str(folder)])))
    assert [item.id for item in theirs] == [item.id for item in ours]
    assert hub.asked == []
    assert repo.commit in str(sources[0].path)


def test_a_download_that_broke_off_goes_on_and_is_told_about(
    hub: Hub, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(BASES / "student", tmp_path / "m"))
    with (folder / "model.safetensors").open("ab") as file:
        file.write(bytes(25_000_000))
    hub.add("org/m", folder)
    model = Names(store).hub_model("org/m")
    monkeypatch.setattr(hubs, "EVERY_SECONDS", 0.0)
    hub.cut["model.safetensors"] = 12_000_000
    said: list[str] = []
    hub.asked.clear()
    hubs.fetch(model.files, store.hash_cache, said.append)
    assert sha_of(Path(model.where[0]) / "model.safetensors") == sha_of(folder / "model.safetensors")
    resumed = re.fullmatch(r"GET \(from (\d+)\) .*/model\.safetensors", hub.asked[-1])
    assert resumed is not None
    assert int(resumed[1]) > 10_000_000, "whole pieces of what had come are kept"
    assert said[0] == f"download {model.label}: 25.1 MB in 1 file"
    assert re.fullmatch(r"  model\.safetensors: \d+\.\d MB of 25\.1 MB", said[1])
    assert said[-1] == "  model.safetensors is here"


def test_bytes_that_the_hub_did_not_announce_are_refused(hub: Hub, store: Store, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(BASES / "student", tmp_path / "m"))
    hub.add("org/m", folder)
    model = Names(store).hub_model("org/m")
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(Corrupt, match=r"model\.safetensors of org/m@"):
        hubs.fetch(model.files, store.hash_cache, lambda text: None)


def words(*more: object) -> tuple[object, ...]:
    return ("distill", "--method", "dckd", "--no-eval", *more)


def test_everything_that_is_closed_is_told_at_once(
    hub: Hub, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("meta-llama/Llama-3.2-1B", BASES / "student", gated=True)
    hub.add("meta-llama/Llama-3.1-8B", BASES / "teacher", gated=True)
    hub.add("datasets/org/pairs", pairs(tmp_path / "pairs"))
    asked = words("--student", "llama-3.2-1b", "--data", "org/pairs", "--sft-data", "tiny-sft")
    said = cli.refused(1, *asked)
    assert said == (
        "2 of 3 downloads are not possible, and nothing was started\n"
        "  meta-llama/Llama-3.1-8B   gated, and there is no token on this machine\n"
        "  meta-llama/Llama-3.2-1B   gated, and there is no token on this machine\n"
        "try: hf auth login, then accept the licence on the model's page\n"
        " or: adpa distill --method dckd --no-eval --data org/pairs --sft-data tiny-sft --student danube2-1.8b "
        "--teacher zephyr-7b\n"
    )
    use(hub, tmp_path / "hf", monkeypatch, token="hf_x")
    said = cli.refused(1, *asked, "--dry-run")
    assert "  meta-llama/Llama-3.2-1B   gated, and the owner of this token has not accepted its licence\n" in said
    assert "accept it on https://huggingface.co/meta-llama/Llama-3.2-1B" in said


def test_no_such_name_revision_and_hub_are_told_apart(hub: Hub, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/m", BASES / "student")
    said = cli.refused(3, "rollout", "--student", "org/none", "--data", "org/nodata", "--dry-run")
    assert "2 of 2 downloads are not possible" in said
    assert re.search(r"org/none +there is no such model on the hub", said)
    assert re.search(r"org/nodata +there is no such data set on the hub", said)
    said = cli.refused(3, "rollout", "--student", "org/m@v9", "--data", "tiny-pairs")
    assert "org/m   there is no revision v9" in said
    assert "leave the revision out: org/m" in said
    unplug(hub, monkeypatch)
    said = cli.refused(1, "rollout", "--student", "org/other", "--data", "tiny-pairs")
    assert "1 of 1 download is not possible, and nothing was started" in said
    assert "the hub cannot be reached (ConnectError)" in said


def test_offline_nothing_is_asked_and_what_is_not_here_is_listed(
    hub: Hub, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/m", BASES / "student")
    offline(monkeypatch)
    said = cli.refused(1, "plan", "rollout", "--student", "org/m", "--data", "tiny-pairs")
    assert "org/m   not on this machine, and HF_HUB_OFFLINE is set" in said
    want = "adpa plan rollout --student org/m --data tiny-pairs --fetch"
    assert f"try: on a machine with network: {want}\n" in said
    assert hub.asked == []


def test_fetch_prepares_a_machine_without_network(
    hub: Hub, pipeline: Pipeline, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ready model of the hub answers prompts of a hub data set, first planned, then fetched, then made offline."""
    hub.add("org/ready", pipeline.store / pipeline.made("aligned teacher"))
    hub.add("datasets/org/pairs", pairs(tmp_path / "own"))
    asked = ("rollout", "--student", "org/ready", "--data", "org/pairs", *SMALL[-4:], "--set", "max_length=256")
    planned = cli(*asked, "--dry-run").rows
    assert not [path for path in hub.bodies() if path.endswith((".safetensors", ".parquet"))]
    assert cli("plan", *asked).rows == planned
    fetched = cli("plan", *asked, "--fetch")
    (row,) = fetched.rows
    assert row[:5] == planned[0][:5]
    assert (planned[0][5], row[5].isdigit()) == ("?", True), "the rows to answer can be counted now"
    assert "Downloaded org/ready, org/pairs" in fetched.err
    assert len([path for path in hub.bodies() if path.endswith(".safetensors")]) == 1
    assert json.loads(cli("plan", *asked, "--json").out)["rows"][0]["ref"] == planned[0][4]
    hub.asked.clear()
    offline(monkeypatch)
    long = (*asked[:-1], "max_length=999")
    assert "is more than the 256 tokens that org/ready can read" in cli.refused(1, *long)
    assert cli(*asked).ref == planned[0][4]
    assert hub.asked == []
    assert "Nothing to download" in cli("plan", *asked, "--fetch").err


def test_an_evaluation_is_fetched_with_its_prompts_and_its_reward_model(
    hub: Hub, pipeline: Pipeline, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Afterwards it works without a network; prompts that are not here yet are not taken for pairs."""
    ready = pipeline.store / pipeline.made("aligned teacher")
    hub.add("org/ready", ready)
    judge = shutil.copytree(ready, tmp_path / "judge")
    config = json.loads((judge / "config.json").read_text())
    model = LlamaForSequenceClassification(LlamaConfig(**{**config, "num_labels": 1, "pad_token_id": 0}))
    model.save_pretrained(judge)
    hub.add("org/judge", judge)
    prompts = [{"instruction": pair["prompt"][-1]["content"]} for pair in world.preferences("test")[:4]]
    (tmp_path / "prompts").mkdir()
    hub.add("datasets/org/prompts", write_rows(tmp_path / "prompts" / "train.jsonl", prompts).parent)
    asked = ("eval", "org/ready", "--reward-model", "org/judge", "--data", "org/prompts", "--set", "max_length=256")
    asked = (*asked, "--set", "rollout.max_new_tokens=8")
    planned = [row[4] for row in cli(*asked, "-n").rows]
    fetched = cli("plan", *asked, "--fetch")
    assert [row[4] for row in fetched.rows] == planned
    assert "Downloaded org/ready, org/judge, org/prompts" in fetched.err
    hub.asked.clear()
    offline(monkeypatch)
    unplug(hub, monkeypatch)
    ran = cli(*asked, "--json")
    assert ran.code == 0, ran.err
    assert by_metric(json.loads(ran.out))["mean_reward"]["n"] == 4
    assert hub.asked == []


def test_weights_come_right_before_the_stage_that_reads_them(hub: Hub, cli: Cli, tmp_path: Path) -> None:
    hub.add("org/base", BASES / "student")
    ran = cli("sft", "--model", "org/base", "--data", "tiny-sft", *STEPS)
    assert ran.ref.startswith("sft/")
    started, loaded = ran.err.index("[1/1]"), ran.err.index("download org/base@")
    assert started < loaded
    local = cli("sft", "--model", BASES / "student", "--data", "tiny-sft", *STEPS)
    assert local.ref == ran.ref, "the same bytes from a folder are the same model"


def test_a_model_of_the_hub_to_talk_to_is_fetched(hub: Hub, store: Store, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(BASES / "teacher", tmp_path / "m"))
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    hub.add("org/m", folder)
    said: list[str] = []
    found = trained(Names(store), "org/m", said.append)
    assert sha_of(found.folder / "model.safetensors") == sha_of(folder / "model.safetensors")
    assert said[-1] == "  model.safetensors is here"


def test_what_is_no_model_is_named_on_the_hub_without_its_weights(hub: Hub, cli: Cli, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    shutil.copy(BASES / "student" / "tokenizer.json", folder)
    (folder / "adapter_model.safetensors").write_bytes(b"")
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base", "peft_type": "IA3"}')
    hub.add("org/adapter", folder)
    quantised = Path(shutil.copytree(BASES / "student", tmp_path / "quantised"))
    config = json.loads((quantised / "config.json").read_text())
    (quantised / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq"}}))
    hub.add("org/quantised", quantised)
    for _ in ("asked", "remembered"):
        assert "is an adapter of org/base of the kind IA3" in cli.refused(
            1, "sft", "--model", "org/adapter", "--data", "tiny-sft", "-n"
        )
        assert "is quantised (AWQ" in cli.refused(1, "sft", "--model", "org/quantised", "--data", "tiny-sft", "-n")
    assert not [path for path in hub.bodies() if path.endswith(".safetensors")]


def test_only_making_commands_are_planned(cli: Cli) -> None:
    assert "adpa plan cannot plan 'show'" in cli.refused(2, "plan", "show")
    assert "adpa plan needs the command" in cli.refused(2, "plan", "--fetch")
    assert "--methd" in cli.refused(2, "plan", "distill", "--methd", "dckd")


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk of the Hugging Face cache is full"),
        (RuntimeError("Data processing error: No space left on device (os error 28)"), "Hugging Face cache is full"),
        (PermissionError(errno.EACCES, "Permission denied", "/cache/hub"), "cannot be written (/cache/hub)"),
        (OSError(errno.EROFS, "Read-only file system", "/cache/hub"), "cannot be written (/cache/hub)"),
        (NotADirectoryError(errno.ENOTDIR, "Not a directory", "/cache/hub"), "cannot be written (/cache/hub)"),
        (RuntimeError("Could not determine home directory."), "this user has no home folder"),
    ],
)
def test_a_cache_that_takes_nothing_is_not_a_hub_that_cannot_be_reached(error: Exception, reason: str) -> None:
    found = closed(error, "org/model", None, "model")
    assert reason in found.reason
    assert "HF_HOME" in found.hint
    assert not found.away


def test_a_hub_data_set_follows_its_readme_and_the_store_remembers_what_it_says(
    hub: Hub, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two configurations, of which one is named; neither needs its data to be described, nor datasets a second time."""
    from adpa_cli.data import sources

    folder = tmp_path / "two"
    for name in ("easy/a.jsonl", "easy/b.jsonl", "hard/a.jsonl"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_rows(folder / name, world.preferences("train")[: len(name)])
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: hard\n  data_files: hard/*\n- config_name: easy\n  data_files:\n"
        "  - split: train\n    path: easy/b.jsonl\n  - split: test\n    path: easy/a.jsonl\n---\n"
    )
    write_rows(folder / "unnamed.jsonl", world.preferences("train")[:3])
    hub.add("datasets/org/two", folder)
    with pytest.raises(DataError, match=r"org/two has several configurations and no default: #hard, #easy") as caught:
        Names(store).data(["org/two"])
    assert caught.value.hint == "name one: org/two#hard"
    easy = Names(store).data(["org/two#easy"])
    assert easy.content == Names(store).data([f"{folder}#easy"]).content
    assert [split for source in easy.facts["sources"] for split in source["splits"]] == ["test", "train"]
    assert Names(store).data_of(easy.facts, easy.content) == easy
    assert [source["left_out"] for source in easy.facts["sources"]] == [["unnamed.jsonl"]]
    assert Names(store).data(["org/two:easy"]) == easy
    assert Names(store).data([f"{folder}:easy"]).where == Names(store).data([f"{folder}#easy"]).where
    hubs.fetch(easy.files, store.hash_cache, lambda text: None)
    (source,) = open_sources(easy.where)
    assert [part.text for part in sources.parts(source, "test")] == ["easy/a.jsonl"]
    monkeypatch.setattr(hubs, "ask_datasets", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    again = Names(Store.find(store.root))
    assert again.data(["org/two#easy"]) == easy
    assert again.data(["org/two#hard"]).content != easy.content
