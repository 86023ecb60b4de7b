"""What a plan advises where stages do not fit: typed, it makes them fit, and it keeps bits where that is possible."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from adpa_cli import machine
from adpa_cli.data.templates import TEMPLATES
from adpa_cli.families import FAMILIES, Family
from adpa_cli.stages import every
from adpa_cli.store.store import Store
from support.cards import MEBIBYTES, store_beside_card, write_driver
from support.cli_samples import Cli, write_rows
from support.fake_hub import Hub, serve, use
from support.sparse_models import LLAMA_70B, remember_weights, weights_digest, write_sparse

WORDS = "every answer of these rows is longer than what is read of it, so that all of them are cut "
QUESTION, ANSWER = WORDS * 20, WORDS * 50
PAIRS = [{"prompt": f"{n} {QUESTION}", "chosen": ANSWER, "rejected": f"no: {ANSWER}"} for n in range(16)]
DIALOGUES = [{"prompt": f"{n} {QUESTION}", "completion": ANSWER} for n in range(16)]
BASES = {f.alias: f for f in FAMILIES if not f.instruct and not f.student.startswith("builtin:")}
PAPER = ("llama-3.2-1b", "danube3-500m", "danube2-1.8b", "llama-2-7b")
RECIPE = "another recipe"
LEAN = [
    "--runtime", "recompute=true", "--runtime", "offload=disk", "--tokens-per-device", "256",
    *(word for name, stage in every().items() if stage.kind != "training"
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
        for name, rows in (("argilla/dpo-mix-7k", PAIRS), ("HuggingFaceH4/deita-10k-v0-sft", DIALOGUES)):
            folder = tmp_path / name.rpartition("/")[2]
            folder.mkdir()
            write_rows(folder / "train.jsonl", rows)
            served.add(f"datasets/{name}", folder)
        yield served


def plan_of(family: Family) -> list[str]:
    return ["plan", "distill", "--method", "adpa+", "--student", family.alias]


def lacking(said: str) -> set[str]:
    """The roles of the stages that a plan names because they do not fit."""
    return set(re.findall(r"^(?:error:)?\s*(\S.*?) \(\S+/\w+\) needs about", said, re.MULTILINE))


def advised(said: str) -> dict[str, tuple[list[str], bool]]:
    """What to type for a stage and whether that makes another recipe, by its role."""
    found = re.findall(r"^(?:try|and): (--.*?)     \((.*?): (.*)\)$", said, re.MULTILINE)
    return {role: (shlex.split(words), RECIPE in what) for words, role, what in found}


def whole(said: str) -> list[str] | None:
    """The words after `adpa` of the command under which all would fit."""
    found = re.search(r"^all: adpa (.*)$", said, re.MULTILINE)
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
    for role, (words, _) in advised(said).items():
        assert role not in lacking(cli(*plan, *words).err), f"{role} with {words}"


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
    least = re.search(r"it would take (\d+)\.\d GB at least, with (--set .*)\n", said)
    assert least
    assert 55 < int(least[1]) < 75
    assert "dpo-teacher.quantise=nf4" in least[2]
    assert "a ready pair, which is not trained: --teacher tulu-3-8b" in said
    assert "more GPUs are no help" in said
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
    assert "layers wait with offload=cpu; at 25 GB a second, which is guessed" in ran.out
    monkeypatch.setattr(machine, "available_memory", lambda: 24 * 10**9)
    assert advised(cli.refused(1, *plan))["signal"] == (["--runtime", "offload=disk"], False)
    monkeypatch.setattr(machine, "free_bytes", lambda folder: 10**11)
    words, is_other = advised(cli.refused(1, *plan))["signal"]
    assert is_other, "the disk has no room for two bytes a weight"
    assert words == ["--set", "cache-teacher.quantise=int8", "--runtime", "offload=disk"]
    assert cli(*plan, *words).code == 0
