"""Plans for a card of 24 GB: what fits there, and a torch that cannot compute on the card."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from adpa_cli import machine
from adpa_cli.data.templates import TEMPLATES
from adpa_cli.sizes import size_words
from adpa_cli.stages.cache_teacher import CACHE_TEACHER
from adpa_cli.stages.eval import EVAL
from adpa_cli.stages.rollout import ROLLOUT
from adpa_cli.stages.start_logps import START_LOGPS
from adpa_cli.stages.training import DISTILL, DPO_TEACHER, SFT
from adpa_cli.store.store import Store
from support.cards import CARD, MEBIBYTES, RESERVED, add_data, room, store_beside_card, write_driver, write_torch
from support.cli_samples import Cli, Ran, write_rows
from support.fake_hub import Hub, serve, use
from support.sparse_models import LLAMA_70B, remember_weights, weights_digest, write_sparse

PAGE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "24gb-card.md"
ROOM = room(24)
WORDS = "every answer of these rows is longer than what is read of it, so that all of them are cut "
ALIASES = {"llama-1b": "llama-3.2-1b", "llama-8b": "llama-3.1-8b", "tulu-dpo": "tulu-3-8b", "tulu-sft": "tulu-3-8b"}
QUESTION, ANSWER = WORDS * 20, WORDS * 50
PAIRS = [{"prompt": f"{n} {QUESTION}", "chosen": ANSWER, "rejected": f"no: {ANSWER}"} for n in range(64)]
DIALOGUES = [{"prompt": f"{n} {QUESTION}", "completion": ANSWER} for n in range(64)]
REPOSITORIES = {
    "llama-1b": "meta-llama/Llama-3.2-1B", "llama-8b": "meta-llama/Llama-3.1-8B",
    "tulu-dpo": "allenai/Llama-3.1-Tulu-3-8B-DPO", "tulu-sft": "allenai/Llama-3.1-Tulu-3-8B-SFT",
    "tulu-70b-dpo": "allenai/Llama-3.1-Tulu-3-70B-DPO", "tulu-70b-sft": "allenai/Llama-3.1-Tulu-3-70B-SFT",
}  # fmt: skip
MAKERS = (DISTILL.name, DPO_TEACHER.name)
TOLD = (DPO_TEACHER.name, START_LOGPS.name, CACHE_TEACHER.name)
"""Stages whose memory the page tells of models of one's own, or that are larger."""
READY = "tulu-3-8b"


def write_model(folder: Path) -> Path:
    """A model of the page."""
    template = TEMPLATES["tulu"].text if "tulu" in folder.name else ""
    return write_sparse(folder, ALIASES.get(folder.name, ""), template, LLAMA_70B if "70b" in folder.name else None)


@pytest.fixture
def store(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A store on a machine with a card of 24 GB, 24 GB beside it and a large disk."""
    return store_beside_card(tmp_path, monkeypatch)


@pytest.fixture
def folders(store: Store, tmp_path: Path) -> dict[str, Path]:
    """The models of the page's pair, as folders of their real shapes."""
    made = {name: write_model(tmp_path / name) for name in ("llama-1b", "tulu-dpo", "tulu-sft")}
    for folder in made.values():
        remember_weights(folder, store.hash_cache)
    return made


@pytest.fixture
def hub(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The page's pair and its data on the hub, of which only small files are ever read."""
    with serve() as served:
        use(served, tmp_path / "hf", monkeypatch)
        for name, repository in REPOSITORIES.items():
            folder = write_model(tmp_path / name)
            served.add(repository, folder, shas={"model.safetensors": weights_digest(folder)})
        add_data(served, tmp_path, PAIRS, DIALOGUES)
        yield served


def page_commands() -> list[list[str]]:
    """The words of every plan that the page shows, or that a command of it makes."""
    page = PAGE.read_text(encoding="utf-8").replace("\\\n", "")
    shown = [shlex.split(words) for words in re.findall(r"^\$ (?:\S+=\S+ )?adpa (.*)$", page, re.MULTILINE)]
    plans = [["plan", *(word for word in words if word not in ("plan", "--fetch"))] for words in shown]
    return [words for words in plans if words[1] in MAKERS]


def page_options() -> list[str]:
    """What the first command of the page says beside the pair."""
    first = page_commands()[0]
    return first[first.index(READY) + 1 :]


def planned_memory(ran: Ran) -> dict[str, int]:
    """Bytes on the device by stage: the most that any of that name needs."""
    assert ran.code == 0, ran.err
    most: dict[str, int] = {}
    for row in json.loads(ran.out)["rows"]:
        most[row["stage"]] = max(row["memory"], most.get(row["stage"], 0))
    return most


def test_every_stage_of_the_page_s_first_command_fits(cli: Cli, hub: Hub) -> None:
    first = page_commands()[0]
    assert first[:3] == ["plan", "distill", "--method"]
    needed = planned_memory(cli(*first, "--json"))
    assert needed.keys() == {SFT.name, CACHE_TEACHER.name, DISTILL.name, ROLLOUT.name, EVAL.name}
    assert max(needed.values()) <= ROOM, needed
    assert hub.bodies()
    assert not any(path.endswith(".safetensors") for path in hub.bodies())


def test_every_command_of_the_page_fits(cli: Cli, hub: Hub) -> None:
    commands = page_commands()
    assert len(commands) == 9
    page = PAGE.read_text(encoding="utf-8")
    for words in commands:
        needed = planned_memory(cli(*words, "--json"))
        assert max(needed.values()) <= ROOM, (words, needed)
        if words[1] == DPO_TEACHER.name or "70B" in " ".join(words):
            sizes = [f"{size / 1e9:.1f}" for stage, size in needed.items() if stage in TOLD]
            assert all(size in page for size in sizes), (words, needed)


def test_every_command_with_the_ready_pair_trains_as_the_first_does() -> None:
    options = " ".join(page_options())
    assert "weights=bfloat16" in options
    own = [" ".join(words) for words in page_commands() if READY in words]
    assert len(own) == 5
    assert [words for words in own if options not in words] == []


def test_the_pair_in_folders_fits_with_rows_of_full_length(cli: Cli, folders: dict[str, Path], tmp_path: Path) -> None:
    write_rows(tmp_path / "pairs.jsonl", PAIRS)
    write_rows(tmp_path / "dialogues.jsonl", DIALOGUES)
    plan = [
        "plan", "distill", "--method", "adpa+", "--student", "./llama-1b", "--sft-data", "dialogues.jsonl",
        "--teacher", "./tulu-dpo", "--reference", "./tulu-sft", "--data", "pairs.jsonl",
    ]  # fmt: skip
    needed = planned_memory(cli(*plan, *page_options(), "--json"))
    assert max(needed.values()) <= ROOM, needed
    page = PAGE.read_text(encoding="utf-8")
    for stage, size in needed.items():
        assert f"| {size / 1e9:.1f} |" in page, f"{stage} needs {size_words(size)}, and the page says otherwise"
    said = cli.refused(1, *plan)
    assert said.count(f"{CARD} has {size_words(ROOM)};\n") == 3, "the trainings, and no inference"
    assert "fits with --set distill.weights=bfloat16 --tokens-per-device 4096, which gives another result" in said


def test_an_older_driver_does_not_say_what_it_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = write_driver(tmp_path / "bin", monkeypatch)
    assert machine.first_card() == (CARD, ROOM)
    script = driver.read_text()
    driver.write_text(script.replace(f"'{RESERVED},", "'[N/A],"))
    assert machine.first_card() == (CARD, MEBIBYTES[24] * 2**20)
    driver.write_text(script.replace(f"echo '{RESERVED}, {MEBIBYTES[24]}, {CARD}'", "exit 2"))
    assert machine.first_card() == (CARD, MEBIBYTES[24] * 2**20)
    driver.write_text("#!/bin/sh\nexit 9\n")
    assert machine.first_card() is None


def test_a_torch_for_cpus_beside_a_card_is_refused_before_any_work(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_driver(tmp_path / "bin", monkeypatch)
    write_torch(tmp_path / "site", monkeypatch, "2.13.0+cpu", None)
    for words in (["sft", "--model", "tiny"], ["plan", "sft", "--model", "tiny"]):
        said = cli.refused(1, *words)
        assert said.startswith(f"{CARD} is here, and torch 2.13.0+cpu is built for CPUs only\n")
        assert "pip install --force-reinstall torch" in said
        assert "CUDA_VISIBLE_DEVICES= " in said
        assert "Traceback" not in said
    assert not list((tmp_path / "adpa-store").glob("sft/*"))
    facts = json.loads(cli("env", "--json").out)
    assert facts["devices.unused"].startswith(f"{CARD} is here, and torch 2.13.0+cpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert json.loads(cli("plan", "sft", "--model", "tiny", "--json").out)["totals"]["device"] == "cpu"
    assert json.loads(cli("env", "--json").out)["devices.unused"] is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="torch opens the card that is here")
@pytest.mark.parametrize("is_known", [False, True], ids=["never measured", "its speed is known"])
def test_a_card_that_torch_cannot_open_is_refused_before_any_work(
    is_known: bool, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As beside too old a driver: torch would compute on the CPU, or end in a traceback where its speed is measured."""
    if is_known:
        store_beside_card(tmp_path, monkeypatch)
    else:
        write_driver(tmp_path / "bin", monkeypatch)
        write_torch(tmp_path / "site", monkeypatch, "2.13.0", "13.0")
    said = cli.refused(1, "sft", "--model", "tiny", "--max-steps", "1")
    assert said.startswith(f"torch {torch.__version__} cannot use the GPU of this machine, {CARD}: ")
    assert "try: update the driver" in said
    assert "CUDA_VISIBLE_DEVICES= " in said


@pytest.mark.parametrize(
    ("lines", "is_of_cpu"),
    [
        ("__version__ = '2.13.0'\ncuda: Optional[str] = '13.0'\nhip: Optional[str] = None", False),
        ("__version__ = '2.13.0'\ncuda: Optional[str] = None\nhip: Optional[str] = '7.1'", False),
        ("__version__ = '2.13.0'\ncuda = None\nhip = None", True),
        ("__version__ = '2.13.0'", False),
    ],
    ids=["CUDA", "ROCm", "CPU", "says nothing"],
)
def test_what_torch_is_built_for_is_read_from_its_file(
    lines: str, is_of_cpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_torch(tmp_path / "site", monkeypatch, "2.13.0", None)
    (tmp_path / "site" / "torch" / "version.py").write_text(f"{lines}\n")
    assert machine.torch_without_gpu() == ("2.13.0" if is_of_cpu else None)


def test_a_torch_that_does_not_tell_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_torch(tmp_path / "site", monkeypatch, "2.13.0", None)
    (tmp_path / "site" / "torch" / "version.py").unlink()
    assert machine.torch_without_gpu() is None
