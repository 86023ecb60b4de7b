"""`adpa env`: what it says about this machine, and what it must never say."""

from __future__ import annotations

import json
import os
import platform
from importlib import metadata
from pathlib import Path

import pytest

from adpa_cli.cli.commands import env
from support.cli_samples import Cli
from support.store_samples import make, new_store


def test_env_names_versions_store_and_cache_but_never_the_token(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN_PATH", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    before = json.loads(cli("env", "--json").out)
    assert before["store"] is None
    assert list(tmp_path.iterdir()) == []
    make(new_store(tmp_path))
    said = {row[0]: row[1:] for row in cli("env").rows}
    assert said["torch"] == [metadata.version("torch")]
    assert said["python"] == [platform.python_version()]
    assert said["store"] == [str(tmp_path / "adpa-store")]
    assert said["store.artifacts"] == ["1"]
    assert said["hub.cache"] == [str(tmp_path / "hf" / "hub")]
    assert said["hub.token"] == ["true"]
    assert said["HF_HUB_OFFLINE"] == ["1"]
    assert said["OMP_NUM_THREADS"] == ["1"]
    assert said["cores"] == [str(len(os.sched_getaffinity(0)))]
    assert "hf_secret" not in cli("env").out + cli("env", "--json").out
    monkeypatch.delenv("HF_TOKEN")
    assert json.loads(cli("env", "--json").out)["hub.token"] is False


def test_a_container_may_have_less_memory_than_its_machine(tmp_path: Path) -> None:
    whole = env.memory(tmp_path / "none")
    assert whole is not None
    (tmp_path / "limit").write_text("1000000\n")
    assert env.memory(tmp_path / "limit") == 1_000_000
    (tmp_path / "limit").write_text("max\n")
    assert env.memory(tmp_path / "limit") == whole


def test_gpus_are_those_that_the_driver_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    program.write_text("#!/bin/sh\necho 'NVIDIA L4, 23034 MiB, 550.54'\n")
    program.chmod(0o755)
    assert env.devices() == ["NVIDIA L4, 23034 MiB, 550.54"]
    program.write_text("#!/bin/sh\nexit 9\n")
    (broken,) = env.devices()
    assert "nvidia-smi fails" in broken
    monkeypatch.setenv("PATH", str(tmp_path / "none"))
    assert env.devices() == []


def test_a_screen_says_what_is_missing_in_words() -> None:
    assert env.fact_text("memory", 16_000_000_000) == "16.0 GB"
    assert env.fact_text("devices", []) == "no GPU; the CPU is used"
    assert env.fact_text("peft", None) == "–"
    assert env.fact_text("hub.token", False) == "no"
    assert env.fact_plain(None) == ""
