"""Fixtures that several test files share."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from adpa_cli.errors import Stopped
from support.cli_samples import Cli, Pipeline, build_pipeline


def pytest_configure() -> None:
    """Heed the signals that tests send to commands, also where `nohup` or `&` started the tests without them."""
    for name in {*Stopped.CODES} - {*Stopped.heeded()}:
        signal.signal(getattr(signal, name), signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Tables of rows are kept in the folder of the test run, for all of its processes."""
    base = tmp_path_factory.getbasetemp()
    os.environ["ADPA_CACHE"] = str((base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """A folder `shared/data` beside the repository or beside one of its parents; tests that need it skip without."""
    root = Path(__file__).resolve().parents[1]
    for folder in root.parents:
        if (folder / "shared" / "data").is_dir():
            return folder / "shared" / "data"
    pytest.skip("no shared/data beside the repository")


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """`adpa` in this process, in an empty working directory, one thread."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ADPA_STORE", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return Cli(capfd, monkeypatch)


@pytest.fixture(scope="session")
def shared_pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    """The small pipeline, made once for all processes of a test run; nothing may be written there."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "pipeline"
    folder.mkdir(exist_ok=True)
    return build_pipeline(folder)


@pytest.fixture
def pipeline(shared_pipeline: Pipeline, cli: Cli, tmp_path: Path) -> Pipeline:
    """A copy of the small pipeline whose store is the one of the working directory."""
    shutil.copytree(shared_pipeline.store, tmp_path / "adpa-store")
    return Pipeline(tmp_path / "adpa-store", shared_pipeline.data)
