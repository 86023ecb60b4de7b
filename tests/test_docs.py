"""Every shell block of README and docs does what it says.

```bash blocks are run, in order, page by page, in a real bash, and blocks with a file name are that file. ```console
blocks (lines after `$`) need a network, a GPU or hours; their commands are parsed (test_readme.py).
The models are those of `tiny`, trained for two steps.
"""

from __future__ import annotations

import re
import runpy
import shutil
from pathlib import Path

import pytest

from adpa_cli import families
from adpa_cli.lab import world
from support import docs_shell
from support.cli_samples import Pipeline, write_rows

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
INSTALLING = re.compile(r"^python3 -m venv .*pip install [^&\n]*(&& )?", re.MULTILINE)
"""What `nox -s quickstart` and .ci/run try from nothing."""
SHORT = {
    "sft": {"max_steps": 2, "limit": 64}, "dpo-teacher": {"max_steps": 2, "limit": 40},
    "cache-teacher": {"limit": 40}, "rollout": {"limit": 40, "max_new_tokens": 8},
    "distill": {"max_steps": 2, "limit": 40}, "eval": {"limit": 12}, "eval.rollout": {"max_new_tokens": 8},
}  # fmt: skip


def blocks(page: Path, kind: str) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{kind}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def script_of(page: Path) -> str:
    """The page as one script; blocks with a file name are written to it."""
    found = re.findall(
        r"^```(bash|toml)(?: (\S+))?\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    parts = [
        f"cat > {name} <<'END OF FILE'\n{block}END OF FILE" if name else INSTALLING.sub("", block)
        for kind, name, block in found
        if name or kind == "bash"
    ]
    return "\n".join(parts)


@pytest.fixture
def desk(tmp_path: Path, shared_pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the pages take for granted: some data, base models, and a teacher with its reference. Short settings."""
    for settings in (families.PAPER, families.TINY):
        for stage, values in SHORT.items():
            short = {**settings.get(stage, {}), "max_length": 128, **values}
            monkeypatch.setitem(settings, stage, short)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    folder = tmp_path / "desk"
    folder.mkdir()
    write_rows(folder / "pairs.jsonl", world.preferences("train")[:60])
    bases = Path(world.__file__).parent / "bases"
    shutil.copytree(bases / "student", folder / "small")
    shutil.copytree(bases / "teacher", folder / "large")
    for name, role in (("large-sft", "reference teacher"), ("large-dpo", "aligned teacher")):
        shutil.copytree(shared_pipeline.store / shared_pipeline.made(role), folder / name)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if script_of(p)], ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run_in_order(page: Path, desk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = docs_shell.run(script_of(page), desk, capfd)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr


def test_only_known_kinds_of_blocks_are_used() -> None:
    kinds = {kind for page in PAGES for kind in re.findall(r"^ *```(\S+)", page.read_text(encoding="utf-8"), re.M)}
    assert kinds <= {"bash", "console", "text", "toml", "python", "json", "mermaid"}
    for page in PAGES:
        for block in blocks(page, "console"):
            assert block.startswith("$ "), block


def test_a_block_that_fails_is_noticed(desk: Path, capfd: pytest.CaptureFixture[str]) -> None:
    done = docs_shell.run("x=$(adpa show nosuch); echo $x", desk, capfd)
    assert done.returncode == 3
    assert "error: there is no store" in done.stderr
    done = docs_shell.run("adpa models | cat | head -n 1; adpa methods | grep ^simpo", desk, capfd)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("tiny\t")


def test_the_diagrams_are_what_their_script_draws() -> None:
    images = ROOT / "docs" / "images"
    for name, diagram in runpy.run_path(str(images / "diagrams.py"))["DIAGRAMS"].items():
        assert (images / name).read_text(encoding="utf-8") == diagram().svg(), "run: python docs/images/diagrams.py"


def test_the_pictures_of_readme_are_small() -> None:
    pictures = re.findall(r"!\[[^]]+\]\((docs/images/\S+\.png)\)", PAGES[0].read_text(encoding="utf-8"))
    assert len(pictures) == 2
    assert all((ROOT / name).stat().st_size <= 300_000 for name in pictures)
