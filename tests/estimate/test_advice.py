"""What a plan advises where stages do not fit: typed, it makes them fit, and it keeps bits where that is possible."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adpa_cli import machine
from adpa_cli.cli.console.app import run_words
from adpa_cli.cli.console.options import Request
from adpa_cli.cli.console.streams import take_globals
from adpa_cli.data.templates import TEMPLATES
from adpa_cli.estimate.advice import Change, Room, owners_of
from adpa_cli.families import FAMILIES, Family, published
from adpa_cli.sizes import ModelSize, Where
from adpa_cli.spec import Runtime
from adpa_cli.stages import Load, Node, every, in_order
from adpa_cli.store.store import Store
from support.cards import MEBIBYTES, add_data, store_beside_card, write_driver
from support.cli_samples import Cli, write_rows
from support.fake_hub import Hub, serve, use
from support.sparse_models import (
    LLAMA_70B,
    remember_weights,
    shapes_of,
    weights_digest,
    write_sparse,
    write_weights,
)

WORDS = "every answer of these rows is longer than what is read of it, so that all of them are cut "
QUESTION = ANSWER = WORDS * 15
PAIRS = [{"prompt": f"{n} {QUESTION}", "chosen": ANSWER, "rejected": f"no: {ANSWER}"} for n in range(16)]
DIALOGUES = [{"prompt": f"{n} {QUESTION}", "completion": ANSWER} for n in range(16)]
BASES = {f.alias: f for f in FAMILIES if not f.instruct and not f.student.startswith("builtin:")}
PAPER = ("llama-3.2-1b", "danube3-500m", "danube2-1.8b", "llama-2-7b")
RECIPE = "another result, under another id"
LEAN = [
    "--runtime", "recompute=true", "--runtime", "offload=disk", "--tokens-per-device", "256",
    *(word for name, stage in every().items() if stage.kind != "training" and hasattr(stage.spec, "block_tokens")
      for word in ("--set", f"{name}.block_tokens=256")),
]  # fmt: skip
"""All that takes less memory and keeps what results are."""


@pytest.fixture
def store(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store on a machine with a card, 200 GB beside it and a large disk."""
    return store_beside_card(tmp_path, monkeypatch, host=200 * 10**9)


@pytest.fixture
def hub(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Every base model that has an alias, and the families' data."""
    with serve() as served:
        use(served, tmp_path / "hf", monkeypatch)
        for family in BASES.values():
            template = "" if family.template else TEMPLATES["chatml"].text
            for name, alias in ((family.student, family.alias), (family.teacher, family.teacher_alias)):
                if name not in served.repos:
                    folder = write_sparse(tmp_path / alias, alias, template)
                    served.add(name, folder, shas={"model.safetensors": weights_digest(folder)})
        add_data(served, tmp_path, PAIRS, DIALOGUES)
        yield served


def plan_of(family: Family) -> list[str]:
    return ["plan", "distill", "--method", "adpa+", "--student", family.alias]


def lacking(said: str) -> set[str]:
    """The roles of the stages that a plan names because they do not fit."""
    return set(re.findall(r"^(?:error:)?\s*(\S.*?) \(\S+/\w+\) needs about", said, re.MULTILINE))


def advised(said: str) -> dict[str, tuple[list[str], bool]]:
    """What to type for a stage and whether that makes another recipe, by its role."""
    pattern = r"^(?:error:)?\s*(\S.*?) \(\S+/\w+\) needs about .*\n +it fits with (.*), which (.*)$"
    found = re.findall(pattern, said, re.MULTILINE)
    return {role: (shlex.split(words), RECIPE in what) for role, words, what in found}


def whole(said: str) -> list[str] | None:
    """The words after `adpa` of the command under which all would fit."""
    found = re.search(r"^try: adpa (.*)$", said, re.MULTILINE)
    return shlex.split(found[1]) if found else None


def check_advice(cli: Cli, plan: list[str]) -> bool:
    """Type what a plan advises; whether there is a command under which all of it fits."""
    ran = cli(*plan)
    if ran.code == 0:
        return True
    hopeless = lacking(ran.err) - advised(ran.err).keys()
    others = {role for role, (_, is_other) in advised(ran.err).items() if is_other}
    assert others | hopeless == lacking(cli(*plan, *LEAN).err), "nothing that keeps bits is enough"
    command = whole(ran.err)
    assert (command is None) == bool(hopeless)
    if command is not None:
        again = cli(*command)
        assert again.code == 0, again.err
    return command is not None


@pytest.mark.parametrize("card", MEBIBYTES)
def test_the_command_of_a_plan_fits_and_keeps_bits_where_that_is_possible(
    card: int, cli: Cli, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_driver(tmp_path / "bin", monkeypatch, card)
    tried = [*PAPER, "smollm2-360m"]
    fitting = [alias for alias in tried if check_advice(cli, plan_of(BASES[alias]))]
    assert fitting == (["smollm2-360m"] if card == 8 else tried)


def test_every_family_trains_on_24_gb_by_one_command(cli: Cli, hub: Hub) -> None:
    for alias in BASES.keys() - set(PAPER):
        ran = cli(*plan_of(BASES[alias]))
        command = whole(ran.err)
        assert ran.code == 0 or command, ran.err
        assert command is None or cli(*command).code == 0, command


@pytest.mark.parametrize("alias", PAPER)
def test_each_stage_fits_under_its_own_advice(alias: str, cli: Cli, hub: Hub) -> None:
    plan = plan_of(BASES[alias])
    said = cli(*plan).err
    assert lacking(said) == advised(said).keys()
    roles: dict[tuple[str, ...], set[str]] = {}
    for role, (words, _) in advised(said).items():
        roles.setdefault(tuple(words), set()).add(role)
    for typed, helped in roles.items():
        assert not helped & lacking(cli(*plan, *typed).err), f"{helped} with {typed}"


def test_a_teacher_of_70_b_trains_on_80_gb_with_four_bits_and_on_24_gb_not_at_all(
    cli: Cli, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember_weights(write_sparse(tmp_path / "llama-70b", "", TEMPLATES["llama-3"].text, LLAMA_70B), store.hash_cache)
    write_rows(tmp_path / "pairs.jsonl", PAIRS)
    plan = ["plan", "dpo-teacher", "--reference", "./llama-70b", "--data", "pairs.jsonl"]
    write_driver(tmp_path / "bin", monkeypatch, 80)
    said = cli.refused(1, *plan)
    words, is_other = advised(said)["aligned teacher"]
    assert is_other
    assert words[:4] == ["--set", "dpo-teacher.lora=16", "--set", "dpo-teacher.quantise=nf4"]
    assert check_advice(cli, plan)
    write_driver(tmp_path / "bin", monkeypatch, 24)
    said = cli.refused(1, *plan)
    least = re.search(r"it would need at least (\d+)\.\d GB, with (--set .*)\n", said)
    assert least
    assert 55 < int(least[1]) < 75
    assert "dpo-teacher.quantise=nf4" in least[2]
    assert "\ntry: use a ready pair of teachers, which need no training (adpa distill --teacher tulu-3-8b" in said, (
        "first, for only that helps"
    )
    assert "or more GPUs, each of which then holds a part of it" in said
    assert not check_advice(cli, plan)


def test_the_layers_of_a_teacher_of_70_b_wait_where_there_is_room(
    cli: Cli, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember_weights(write_sparse(tmp_path / "llama-70b", "", TEMPLATES["llama-3"].text, LLAMA_70B), store.hash_cache)
    write_rows(tmp_path / "pairs.jsonl", PAIRS)
    plan = ["plan", "cache-teacher", "--teacher", "./llama-70b", "--data", "pairs.jsonl"]
    write_driver(tmp_path / "bin", monkeypatch, 24)
    assert advised(cli.refused(1, *plan))["signal"] == (["--runtime", "offload=cpu"], False)
    ran = cli(*plan, "--runtime", "offload=cpu", "--json")
    assert ran.code == 0, ran.err
    assert "with offload=cpu, moving layers to the device takes" in ran.out
    monkeypatch.setattr(machine, "available_memory", lambda: 24 * 10**9)
    assert advised(cli.refused(1, *plan))["signal"] == (["--runtime", "offload=disk"], False)
    monkeypatch.setattr(machine, "free_bytes", lambda folder: 10**11)
    words, is_other = advised(cli.refused(1, *plan))["signal"]
    assert is_other, "the disk has no room for two bytes a weight"
    assert words == ["--set", "cache-teacher.quantise=int8", "--runtime", "offload=disk"]
    assert cli(*plan, *words).code == 0


def test_a_teacher_of_70_b_is_shared_out_where_one_card_is_too_small(
    cli: Cli, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_own(store, tmp_path, "llama-70b", size=LLAMA_70B)
    write_own(store, tmp_path, "llama-1b", "llama-3.2-1b")
    write_driver(tmp_path / "bin", monkeypatch, 80)
    plan = ["plan", *CAPTURE, "./llama-70b", "--gpus", "8"]
    ran = cli(*plan)
    assert ran.code == 0, ran.err
    assert "signal: 8 processes share out each model that it reads" in ran.out + ran.err
    asked = cli(*plan, "--runtime", "shard=all")
    assert asked.code == 0
    assert "share out" not in asked.out + asked.err
    assert advised(cli.refused(1, *plan, "--runtime", "shard=none"))["signal"][0][2:] == ["--runtime", "offload=cpu"]
    assert "share out" not in cli("plan", *CAPTURE, "./llama-1b", "--gpus", "8").err
    assert advised(cli.refused(1, *plan[:-2]))["signal"] == (["--runtime", "offload=cpu"], False)
    write_driver(tmp_path / "bin", monkeypatch, 8)
    monkeypatch.setattr(machine, "available_memory", lambda: 24 * 10**9)
    monkeypatch.setattr(machine, "free_bytes", lambda folder: 10**10)
    assert "or more GPUs, each of which then holds a part of it: --gpus N" in cli.refused(1, *plan)


def write_own(store: Store, tmp_path: Path, name: str, alias: str = "", size: ModelSize | None = None) -> None:
    """A model of one's own in a folder of that name, and pairs beside it."""
    remember_weights(write_sparse(tmp_path / name, alias, TEMPLATES["llama-3"].text, size), store.hash_cache)
    write_rows(tmp_path / "pairs.jsonl", PAIRS)


DPO = ["dpo-teacher", "--data", "pairs.jsonl", "--reference"]
CAPTURE = ["cache-teacher", "--data", "pairs.jsonl", "--teacher"]


def test_the_command_keeps_a_rank_and_has_no_more_than_it_needs(
    cli: Cli, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_own(store, tmp_path, "llama-70b", size=LLAMA_70B)
    write_driver(tmp_path / "bin", monkeypatch, 80)
    plan = ["plan", *DPO, "./llama-70b", "--set", "lora=8"]
    said = cli.refused(1, *plan)
    assert advised(said)["start log-probs"] == (["--runtime", "offload=cpu"], False), "alone, it needs that"
    assert whole(said) == [*plan, "--set", "dpo-teacher.quantise=nf4", "--runtime", "recompute=true"]
    assert "dpo-teacher.lora=16" in (whole(cli.refused(1, *plan[:-1], "lora=64")) or [])


def test_a_full_disk_is_no_want_of_memory(
    cli: Cli, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_own(store, tmp_path, "llama-1b", "llama-3.2-1b")
    monkeypatch.setattr(machine, "free_bytes", lambda folder: 2 * 10**6)
    for more in ([], ["--runtime", "offload=disk"]):
        said = cli.refused(1, "plan", *CAPTURE, "./llama-1b", *more)
        assert "has 2.0 MB free; the plan needs" in said
        assert "of memory" not in said


def test_no_layers_wait_on_a_disk_that_downloads_fill(cli: Cli, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "available_memory", lambda: 12 * 10**9)
    plan = [
        "plan",
        "cache-teacher",
        "--teacher",
        "meta-llama/Llama-2-13b-hf",
        "--data",
        "argilla/dpo-mix-7k",
        "--template",
        "chatml",
    ]
    monkeypatch.setattr(machine, "free_bytes", lambda folder: 60 * 10**9)
    assert advised(cli.refused(1, *plan))["signal"] == (["--runtime", "offload=disk"], False)
    monkeypatch.setattr(machine, "free_bytes", lambda folder: 40 * 10**9)
    command = whole(cli.refused(1, *plan))
    assert command
    assert "offload=disk" not in command
    assert cli(*command).code == 0


def test_each_process_has_its_own_layers_on_the_disk(cli: Cli, store: Store, tmp_path: Path) -> None:
    write_own(store, tmp_path, "llama-8b", "llama-3.1-8b")
    plan = ["plan", *CAPTURE, "./llama-8b", "--json"]
    runs = (["--gpus", "2"], ["--runtime", "offload=disk"], ["--gpus", "2", "--runtime", "offload=disk"])
    none, one, two = (json.loads(cli(*plan, *words).out)["rows"][0]["extra"] for words in runs)
    assert 13e9 < one - none < 15e9
    assert two - none == 2 * (one - none)


@pytest.mark.parametrize("words", [["cache-teacher", "--teacher", "llama-3.1-8b"], ["eval", "llama-3.2-1b"]])
def test_commands_that_train_a_model_first_take_the_advice(words: list[str], cli: Cli, hub: Hub) -> None:
    plan = ["plan", *words, "--data", "argilla/dpo-mix-7k"]
    command = whole(cli.refused(1, *plan))
    assert command
    assert "--tokens-per-device" in command
    assert cli(*command).code == 0


def test_what_to_write_into_a_recipe(cli: Cli, store: Store, tmp_path: Path) -> None:
    write_own(store, tmp_path, "llama-8b", "llama-3.1-8b")
    lines = ['command = "dpo-teacher"', 'reference = "./llama-8b"', 'data = "pairs.jsonl"']
    recipe = tmp_path / "one.toml"
    recipe.write_text("\n".join(lines))
    runs = ["--tokens-per-device", "4096", "--runtime", "recompute=true"]
    for dry in ([], ["--dry-run"]):
        words = " ".join(["adpa run one.toml", *dry, *runs])
        assert f"\ntry: write dpo-teacher.lora = 16 into the recipe, then {words}\n" in cli.refused(
            1, "run", recipe.name, *dry
        )
    recipe.write_text("\n".join([*lines, "dpo-teacher.lora = 16"]))
    assert cli("run", recipe.name, "--dry-run", *runs).code == 0


def test_what_must_be_installed_first_is_said(
    cli: Cli, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_own(store, tmp_path, "llama-8b", "llama-3.1-8b")
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "peft" else found(name, *rest))
    said = cli.refused(1, "plan", *DPO, "./llama-8b")
    assert "gives another result, under another id, and needs pip install peft bitsandbytes\n" in said
    assert "\ntry: pip install peft bitsandbytes && adpa plan dpo-teacher" in said


def test_what_is_refused_for_another_reason_has_no_command_that_fits(cli: Cli, store: Store, tmp_path: Path) -> None:
    """Of several problems each says what to do, for the command would be refused again."""
    write_own(store, tmp_path, "llama-8b", "llama-3.1-8b")
    said = cli.refused(1, "plan", *DPO, "./llama-8b", "--set", "max_length=200000")
    assert whole(said) is None
    assert re.search(r"^(try|and): --set dpo-teacher\.lora=16", said, re.MULTILINE)
    assert "--set dpo-teacher.max_length=131072" in said


def test_experts_in_one_tensor_are_not_quantised_and_that_is_said(cli: Cli, store: Store, tmp_path: Path) -> None:
    write_own(store, tmp_path, "llama-1b", "llama-3.2-1b")
    plan = ["plan", *CAPTURE, "./llama-1b", "--set", "quantise=nf4", "--json"]
    dense = json.loads(cli(*plan).out)
    assert "experts" not in str(dense["notes"])
    layer = {f"model.layers.{n}.mlp.experts.down_proj": (8, 2048, 4096) for n in range(16)}
    write_weights(tmp_path / "llama-1b" / "model.safetensors", shapes_of(published()["llama-3.2-1b"].size) | layer)
    remember_weights(tmp_path / "llama-1b", store.hash_cache)
    mixed = json.loads(cli(*plan).out)
    assert mixed["rows"][0]["memory"] - dense["rows"][0]["memory"] == 2 * 16 * 8 * 2048 * 4096
    said = "cache-teacher quantises only the linear layers of llama-1b; 46 % of its weights are experts, which are not"
    assert said in str(mixed["notes"])


def test_experts_of_a_model_that_is_not_here_are_known_from_its_configuration(
    cli: Cli, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_driver(tmp_path / "bin", monkeypatch, 80)
    memory = {}
    for name, more in (("dense", {}), ("mixed", {"num_local_experts": 8})):
        folder = write_sparse(tmp_path / name, "llama-3.1-8b", TEMPLATES["llama-3"].text)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | more))
        hub.add(f"org/{name}", folder, shas={"model.safetensors": weights_digest(folder)})
        plan = ["plan", "cache-teacher", "--teacher", f"org/{name}", "--data", "argilla/dpo-mix-7k", "--json"]
        for how in ("none", "nf4"):
            memory[name, how] = json.loads(cli(*plan, "--set", f"quantise={how}").out)["rows"][0]["memory"]
    assert memory["dense", "nf4"] < 0.6 * memory["dense", "none"]
    assert memory["mixed", "nf4"] >= memory["mixed", "none"] == memory["dense", "none"]


CHANGES = [
    {("sft", "lora"): 16, ("dpo-teacher", "lora"): 8, ("dpo-teacher", "quantise"): "nf4"},
    {("sft", "weights"): "bfloat16", ("distill", "weights"): "bfloat16"},
    {("cache-teacher", "quantise"): "int8", ("cache-teacher", "block_tokens"): 4096, ("rollout", "quantise"): "nf4"},
    {("distill", "lora"): 16, ("distill", "quantise"): "nf4", ("start-logps", "block_tokens"): 512},
]  # fmt: skip


@pytest.mark.parametrize("settings", CHANGES, ids=lambda settings: " ".join(key for _, key in settings))
def test_what_is_planned_with_a_change_is_what_is_planned_when_it_is_typed(
    settings: dict[tuple[str, str], Any], cli: Cli
) -> None:
    def planned(*more: str) -> list[Node]:
        words = ["distill", "--method", "adpa+", "--student", "tiny", *more]
        request = run_words(take_globals(words))
        assert isinstance(request, Request)
        plan = request.plan(Store.find_or_empty(None))
        return in_order((*plan.targets, *plan.evals), lambda node: False)

    change = Change(Runtime(), settings)
    room = Room(machine.Machine("cpu", "", "", 0, 0, 0), Store(Path()), owners_of(planned()))
    load = Load({}, (), Runtime(), Where())
    found = {room.load_of(node, load, change)[0].label for node in planned()}
    assert found == {node.label for node in planned(*shlex.split(change.words(Runtime())))}
    assert found != {node.label for node in planned()}
