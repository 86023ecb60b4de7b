"""A command plans once and surveys once, and opens each model folder and data source once."""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from adpa_cli.cli.console import make
from adpa_cli.cli.console.options import Request
from adpa_cli.data.preferences import DataSet
from adpa_cli.estimate import cost, row_lengths
from adpa_cli.estimate import survey as surveys
from adpa_cli.hub import externals, model_folder
from adpa_cli.hub.model_folder import ModelFolder
from support.cli_samples import SMALL, Cli, Pipeline


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, Any]]:
    """How often a plan and a survey are made, a stage is priced, and a folder or data source is opened."""
    times: Counter[tuple[str, Any]] = Counter()

    def count(owner: Any, name: str, what: str, key: Any = lambda *args: "") -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def counting(*args: Any, **kwargs: Any) -> Any:
            times[what, key(*args)] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, counting)

    for cached in (model_folder._folder, externals._data_set, row_lengths.pair_rows, row_lengths.dialogue_rows):
        cached.cache_clear()
    count(Request, "plan", "plan")
    count(make, "survey", "survey")
    count(surveys, "cost_of", "cost", lambda node, *rest: node.label)
    count(cost, "planned_rows", "rows", lambda node, *rest: node.label)
    count(ModelFolder, "__init__", "folder", lambda self, path, *rest: path)
    count(DataSet, "__init__", "data", lambda self, sources, purpose, *rest: (str(sources), purpose))
    return times


@pytest.mark.parametrize("dry", [True, False], ids=["a dry run", "a build"])
def test_a_command_looks_once(
    counted: Counter[tuple[str, Any]], cli: Cli, shared_pipeline: Pipeline, dry: bool
) -> None:
    words = ("distill", "--method", "dckd", "--student", "tiny", "--data", shared_pipeline.data, "--no-eval", *SMALL)
    ran = cli(*words, *(["-n"] if dry else []))
    assert ran.code == 0, ran.err
    assert {what for what, _ in counted} == {"plan", "survey", "cost", "rows", "folder", "data"}
    assert counted["plan", ""] == counted["survey", ""] == 1
    again = {key: times for key, times in counted.items() if times > 1}
    assert again == {}
    assert dry is not Path("adpa-store").exists()
