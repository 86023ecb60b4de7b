"""What names of tasks stand for, and which files of a data set a task reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adpa_cli.data.layouts import split_files
from adpa_cli.errors import NotFound
from adpa_cli.hub import lm_tasks
from adpa_cli.hub.lm_tasks import described, task_folder
from adpa_cli.store.identity import HashCache
from support.lm_eval_tasks import write_task

GROUPS = """
group: all
num_fewshot: 3
task:
  - aa
  - {task: bb, num_fewshot: 1}
  - {group: inside, task: [cc], aggregate_metric_list: [{metric: acc, weight_by_size: false}]}
"""


@pytest.fixture
def cache(tmp_path: Path) -> HashCache:
    return HashCache(tmp_path / "hashes.json", tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three tasks, two of which have a tag, and a group of all with one inside."""
    place = tmp_path / "tasks"
    place.mkdir()
    for name, more in (("aa", "tag: some\n"), ("bb", "tag: some\n"), ("cc", "")):
        write_task(place, name, more=more)
    (place / "all.yaml").write_text(GROUPS)
    return place


def test_groups_and_tags_stand_for_their_tasks(folder: Path, cache: HashCache) -> None:
    """A setting that is said nearest to a task holds for it."""
    found = described({"all": {}}, task_folder(folder, cache), cache)
    assert {name: leaf["settings"]["num_fewshot"] for name, leaf in found.leaves.items()} == {"aa": 3, "bb": 1, "cc": 3}
    assert found.groups["all"]["children"] == ["aa", "bb", "all::inside"]
    assert found.groups["all::inside"] == {
        "children": ["cc"],
        "aggregate_metric_list": [{"metric": "acc", "weight_by_size": False}],
    }
    tagged = described({"some": {"num_fewshot": 2}}, task_folder(folder, cache), cache)
    assert {name: leaf["settings"] for name, leaf in tagged.leaves.items()} == {
        "aa": {"num_fewshot": 2},
        "bb": {"num_fewshot": 2},
    }
    assert {leaf["version"] for leaf in tagged.leaves.values()} == {"7"}


def test_what_names_mean_is_looked_up_once_for_a_content(
    folder: Path, cache: HashCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = described({"aa": {}}, task_folder(folder, cache), cache)

    def refused(*_: Any) -> None:
        raise AssertionError("looked up again")

    with monkeypatch.context() as patch:
        patch.setattr(lm_tasks, "task_manager", refused)
        assert described({"aa": {}}, task_folder(folder, cache), cache) == first
        (folder / "more.txt").write_text("more")
        with pytest.raises(AssertionError, match="looked up again"):
            described({"aa": {}}, task_folder(folder, cache), cache)


def test_the_leaderboard_is_there_and_a_slip_is_told_its_neighbours(cache: HashCache) -> None:
    """In the harness that is installed: MMLU has 57 subjects, and each task a data set of the hub."""
    found = described({"mmlu": {"num_fewshot": 5}, "arc_challenge": {"num_fewshot": 25}}, None, cache)
    assert len(found.leaves) == 58
    assert {leaf["path"] for leaf in found.leaves.values()} == {"cais/mmlu", "allenai/ai2_arc"}
    assert found.leaves["mmlu_anatomy"]["config"] == "anatomy"
    assert found.leaves["arc_challenge"]["settings"] == {"num_fewshot": 25}
    with pytest.raises(NotFound) as error:
        described({"arc_chalenge": {}}, None, cache)
    assert "did you mean arc_challenge" in error.value.hint


@pytest.mark.parametrize("described_by", ["readme", "names"])
def test_files_are_divided_as_the_datasets_library_divides_them(tmp_path: Path, described_by: str) -> None:
    """By the head of a README.md, and without one by the library's own rule, not by ours."""
    folder = tmp_path / "set"
    for config, splits in {"one": ("train", "validation"), "two": ("test",)}.items():
        for split in splits:
            path = folder / config / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.table({"said": [f"{config} {split}"]}), path)
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*.parquet"))]
    readme = ""
    if described_by == "readme":
        readme = ("---\nconfigs:\n- config_name: two\n  data_files:\n  - split: asked\n    path: two/test-*\n"
                  "- config_name: one\n  data_dir: one\n  default: true\n---\n")  # fmt: skip
        (folder / "README.md").write_text(readme)
    found = split_files(names, readme)
    for config, splits in found["configs"].items():
        theirs = datasets.load_dataset(str(folder), config, cache_dir=tmp_path / "cache")
        ours = {
            split: [pq.read_table(folder / name)["said"][0].as_py() for name in files]
            for split, files in splits.items()
        }
        assert ours == {str(split): list(rows["said"]) for split, rows in theirs.items()}
    assert set(found["configs"]) == ({"one", "two"} if readme else {"default"})
    assert split_files(names, readme, data_files={"x": "two/*"})["configs"] == {
        "default": {"x": ["two/test-00000-of-00001.parquet"]}
    }


def test_a_group_that_brings_code_is_refused(folder: Path, cache: HashCache) -> None:
    (folder / "code.yaml").write_text("group: code\ntask:\n  - {task: aa, process_results: !function utils.judge}\n")
    with pytest.raises(NotFound, match="the group code changes its tasks by code"):
        described({"code": {}}, task_folder(folder, cache), cache)
