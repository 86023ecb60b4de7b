"""The job files of examples/: every job of an array computes its own part, and comes again where it is told to."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest
import yaml

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PROGRAM = '#!/bin/bash\necho "$(basename "$0") $*" >> calls\n'
VARIABLES = {"ADPA_STORE": "/shared/store", "TEACHER": "org/a teacher", "DATA": "pairs.jsonl"}


def calls(folder: Path, words: list[str], code: int, **variables: str) -> tuple[int, list[str]]:
    """The exit code of a script, and the programs that it called; `adpa` exits with `code`."""
    for name, end in (("adpa", f"exit {code}\n"), ("scontrol", "")):
        (folder / name).write_text(PROGRAM + end, encoding="utf-8")
        (folder / name).chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", **VARIABLES, **variables}
    done = subprocess.run(words, cwd=folder, env=environment, check=False)
    return done.returncode, (folder / "calls").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("code", [0, 75, 1])
def test_a_job_of_slurm_takes_its_part_and_is_requeued_by_75_alone(tmp_path: Path, code: int) -> None:
    script = EXAMPLES / "slurm" / "capture.sbatch"
    slurm = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "1"}  # sent again
    ended, made = calls(tmp_path, ["bash", str(script)], code, **slurm)
    assert ended == code
    assert made[0].startswith("adpa cache-teacher --teacher org/a teacher --data pairs.jsonl --shard 3/8 ")
    assert made[1:] == (["scontrol requeue 7_3"] if code == 75 else [])
    assert re.search(r"#SBATCH .*--array=1-8 ", script.read_text(encoding="utf-8"))


def test_a_pod_takes_the_part_of_its_index(tmp_path: Path) -> None:
    job = yaml.safe_load((EXAMPLES / "kubernetes" / "capture.yaml").read_text(encoding="utf-8"))
    spec = job["spec"]
    assert (job["apiVersion"], job["kind"], spec["completionMode"]) == ("batch/v1", "Job", "Indexed")
    (container,) = spec["template"]["spec"]["containers"]
    parts = []
    for index in range(spec["completions"]):
        (tmp_path / "calls").unlink(missing_ok=True)
        words = [*container["command"], *container["args"]]
        _, (made,) = calls(tmp_path, words, 0, JOB_COMPLETION_INDEX=str(index))
        parts.append(made.rpartition("--shard ")[2])
    assert parts == [f"{index}/{spec['completions']}" for index in range(1, spec["completions"] + 1)]
    assert spec["template"]["spec"]["restartPolicy"] == "Never", "backoffLimitPerIndex allows nothing else"
