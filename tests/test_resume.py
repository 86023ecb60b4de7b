"""Whatever a killed or stopped command leaves behind, the same command ends with the same bytes.

One chain of real processes works on the pipeline of the tiny family; each is ended in the middle of another stage, and
in the end every file of every artifact is compared with a store in which nothing was interrupted.
"""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from adpa_cli.cli.main import main
from adpa_cli.lab import world
from adpa_cli.store.store import Store

SMALL = [
    "--method", "adpa", "--student", "tiny", "--limit", "48", "--epochs", "4", "--set", "batch_size=4",
    "--set", "sft.limit=40", "--set", "sft.batch_size=4", "--set", "sft.epochs=4",
    "--set", "dpo-teacher.limit=32", "--set", "dpo-teacher.batch_size=4",
    "--set", "rollout.max_new_tokens=16", "--set", "rollout.block_tokens=250", "--set", "cache-teacher.block_tokens=64",
    "--set", "start-logps.block_tokens=250", "--set", "eval.bootstrap=150000", "--select", "best", "--keep", "all",
    "--set", "sft.select=best",
]  # fmt: skip
PATIENCE = 120.0


@dataclass(frozen=True)
class Chain:
    """One command line over one store; `refs` names its artifacts by role, the first of each."""

    store: Path
    data: Path

    @property
    def words(self) -> list[str]:
        return ["--store", str(self.store), "distill", *SMALL, "--data", str(self.data)]

    def refs(self, capfd: pytest.CaptureFixture[str]) -> dict[str, str]:
        assert main([*self.words, "--dry-run"]) == 0
        rows = [line.split("\t") for line in capfd.readouterr().out.splitlines()]
        refs = {row[2]: row[4] for row in reversed(rows)}
        return refs | {"accuracy": next(row[4] for row in rows if row[3].startswith("accuracy of"))}

    def end_when(self, ref: str, pattern: str, how: signal.Signals) -> tuple[int, str, Path]:
        """Run until a file of the work on `ref` appears, then send a signal: exit status, stderr, work folder."""
        command = [sys.executable, "-m", "adpa_cli", *self.words]
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        folder = f"{ref.split('/')[1]}*"
        deadline = time.monotonic() + PATIENCE
        try:
            while not (met := list((self.store / ".partial").glob(f"{folder}/{pattern}"))):
                assert child.poll() is None, f"{pattern} of {ref} never came: {child.communicate()[1]}"
                assert time.monotonic() < deadline
                time.sleep(0.001)
            child.send_signal(how)
            said = child.communicate(timeout=PATIENCE)[1]
        finally:
            child.kill()
            child.wait()
        assert not (self.store / ref).exists(), f"{ref} was finished before the signal came"
        return child.returncode, said, met[0].parent


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Chain]:
    """Equal bytes are promised for one thread count, whichever process goes on."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = tmp_path / "pairs"
    folder.mkdir()
    for split, count in (("train", 48), ("test", 24)):
        lines = [json.dumps(row) for row in world.preferences(split)[:count]]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    return Chain(tmp_path / "killed", folder)


def unfinished(store: Path, capfd: pytest.CaptureFixture[str]) -> list[dict]:
    """What `adpa show` lists as unfinished."""
    capfd.readouterr()
    assert main(["--store", str(store), "--json", "show"]) == 0
    found: list[dict] = json.loads(capfd.readouterr().out)["unfinished"]
    return found


def contents(store: Path) -> dict[str, dict]:
    """The hash of every file of every artifact."""
    return {manifest.ref: {n: f["sha256"] for n, f in manifest.files.items()} for manifest in Store(store).artifacts()}


@pytest.mark.slow
def test_a_pipeline_killed_in_every_stage_ends_with_the_same_bytes(
    chain: Chain, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    refs = chain.refs(capfd)
    for role, pattern in (
        ("student", "_resume.json"),
        ("start log-probs", "_block-000000.parquet"),
        ("rollouts", "_block-000000.json"),
        ("signal", "_aligned-000000.block"),
        ("signal", "_reference-000000.block"),
    ):
        status, _, folder = chain.end_when(refs[role], pattern, signal.SIGKILL)
        assert status == -signal.SIGKILL
        assert not (folder / "manifest.json").exists()
        [left] = unfinished(chain.store, capfd)
        assert (left["ref"], left["holder"], left["stopped"]) == (refs[role], None, None)
        assert 0 < left["progress"]["step"] < left["progress"]["of"]

    status, said, folder = chain.end_when(refs["distill adpa"], "_resume.json", signal.SIGTERM)
    assert status == 143, said
    stopped = re.search(r"Stopped by SIGTERM at step (\d+) of 48; progress is saved", said)
    assert stopped, said
    step = int(stopped[1])
    assert 6 <= step < 48
    assert json.loads((folder / "_resume.json").read_text()) == {"step": step, "folder": f"_resume-{step:06d}"}
    [left] = unfinished(chain.store, capfd)
    assert (left["ref"], left["stopped"]) == (refs["distill adpa"], "SIGTERM")
    assert left["progress"] == {"step": step, "of": 48}
    assert left["command"] in said

    chain.end_when(refs["accuracy"], "_margins.json", signal.SIGKILL)
    assert main(chain.words) == 0
    assert unfinished(chain.store, capfd) == []

    whole = Chain(tmp_path / "whole", chain.data)
    assert main(whole.words) == 0
    assert contents(chain.store) == contents(whole.store)
    assert {name for files in contents(whole.store).values() for name in files} >= {
        "model.safetensors", "metrics.jsonl", "rows-00000.parquet", "signal-00000.adpa", "scores.json", "logps.parquet",
        "step-000006/model.safetensors", "step-000048/tokenizer.json",
    }  # fmt: skip
    assert not [path for path in chain.store.rglob("_*") if path.parent.name != ".partial"]
    assert not list((chain.store / ".partial").glob("*/"))
