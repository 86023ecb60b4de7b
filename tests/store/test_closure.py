"""What artifacts need, each once and before what needs it, and the order in which a copy becomes visible."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from adpa_cli.report import closure as report
from adpa_cli.store.closure import Closure, Outside, closure
from adpa_cli.store.store import Store
from support.cli_samples import Cli, Pipeline


def of(pipeline: Pipeline, *roles: str) -> Closure:
    store = Store.find(pipeline.store)
    return closure(store, [store.resolve(pipeline.made(role)) for role in roles])


def test_all_that_a_result_needs_stands_before_it_and_nothing_else(pipeline: Pipeline) -> None:
    """Ancestors are counted here by following every id in the raw JSON of the manifests."""
    found = of(pipeline, "distill adpa")
    raw = {path.parent: json.loads(path.read_text()) for path in pipeline.store.glob("*/*/manifest.json")}
    by_id = {record["id"]: record for record in raw.values()}
    needed, todo = set(), [found.artifacts[-1].id]
    while todo:
        one = todo.pop()
        needed.add(one)
        record = by_id[one]
        text = json.dumps(record["inputs"]) + json.dumps(record["made"].get("derived", {}))
        todo += [other for other in by_id if other in text and other not in needed]
    ids = [manifest.id for manifest in found.artifacts]
    assert len(ids) == len(set(ids)) < len(by_id), "evaluations are not needed"
    assert set(ids) == needed
    assert found.artifacts[-1].ref == pipeline.made("distill adpa")
    for place, manifest in enumerate(found.artifacts):
        assert {parent for _, parent in (*manifest.parents(), *manifest.derived())} <= set(ids[:place])
    assert of(pipeline, "distill adpa", "student", "distill dckd").artifacts == found.artifacts


def test_files_are_all_that_lies_there_with_the_manifests_last(pipeline: Pipeline, cli: Cli) -> None:
    ref = pipeline.made("distill dckd")
    cli("tag", "best", ref)
    cli("tag", "other", pipeline.made("distill adpa"))
    (pipeline.store / "pins.json").write_text("{}")
    (pipeline.store / ref / "more").mkdir()
    (pipeline.store / ref / "more" / "notes.txt").write_text("x")
    refs, files, last = (
        cli("show", "best", "--closure", "--list", listing).out.splitlines()
        for listing in ("ids", "files", "manifests")
    )
    assert last == [*(f"{one}/manifest.json" for one in refs), "tags/best", "pins.json", "adpa.json"]
    walked = {str(path.relative_to(pipeline.store)) for one in refs for path in (pipeline.store / one).rglob("*")
              if path.is_file()}  # fmt: skip
    assert {*files, *last[: len(refs)]} == walked
    assert len(files) + len(refs) == len(walked)
    assert f"{ref}/more/notes.txt" in files


def test_a_list_is_what_tar_takes_and_what_is_outside_is_said(pipeline: Pipeline, cli: Cli, tmp_path: Path) -> None:
    ran = cli("show", pipeline.made("distill adpa"), "--closure")
    assert ran.rows[-1] == [pipeline.made("distill adpa")]
    assert "not in the store, and not copied with it:\n  data: pairs, 2 files on the machine that made it" in ran.err
    assert "builtin" not in ran.err
    assert cli("show", pipeline.made("distill adpa"), "--closure", "-q").err == ""
    (tmp_path / "list").write_text(ran.out)
    subprocess.run(["tar", "-C", pipeline.store, "-cf", "all.tar", "-T", "list"], check=True, cwd=tmp_path)
    listed = subprocess.run(["tar", "-tf", "all.tar"], check=True, cwd=tmp_path, capture_output=True, text=True).stdout
    assert {os.path.dirname(line) for line in listed.splitlines() if line.endswith("/manifest.json")} == set(
        ran.out.split()
    )
    record = json.loads(cli("show", pipeline.made("distill adpa"), "--closure", "--json").out)
    assert [one["id"] for one in record["artifacts"]] == ran.out.split()
    one = record["artifacts"][0]
    folder = pipeline.store / one["id"]
    assert one["bytes"] == sum(path.stat().st_size for path in folder.iterdir())
    assert {item["role"] for item in record["outside"]} == {"data", "model"}
    assert record["missing"] == []


def test_without_names_it_is_all_but_rehearsals(pipeline: Pipeline, cli: Cli) -> None:
    every = set(cli("show", "--closure").out.split())
    assert every == {manifest.ref for manifest in Store.find(pipeline.store).artifacts()}
    smoke = cli("sft", "--model", "tiny", "--smoke", "--set", "max_steps=1").ref
    assert smoke not in cli("show", "--closure").out.split() != []


def test_an_input_that_is_gone_is_said(pipeline: Pipeline, cli: Cli) -> None:
    signal = pipeline.made("signal #2")
    (pipeline.store / signal).rename(pipeline.store / "gone")
    ran = cli("show", pipeline.made("distill adpa"), "--closure")
    name = signal.split("/")[1]
    assert f"missing: {name} (cache of {pipeline.made('distill adpa')}) is no longer in the store" in ran.err
    assert signal not in ran.out


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"name": "org/base", "commit": "0123456789abcdef"}, "org/base@01234567, a model of the Hugging Face hub"),
        ({"name": "mine"}, "mine, a folder on the machine that made it (sha256 cccccccccccc…)"),
    ],
)
def test_where_a_model_from_outside_comes_from(facts: dict[str, str], words: str) -> None:
    assert report.origins(Outside("model", "model:" + "c" * 64, facts)) == [words]


def test_the_table_has_names_sizes_and_their_sum(pipeline: Pipeline, cli: Cli) -> None:
    cli("tag", "best", pipeline.made("student"))
    found = of(pipeline, "student")
    head, row, _, total, *rest = report.screen(found, 120).splitlines()
    assert head.split() == ["ID", "WHAT", "TAG", "SIZE"]
    assert row.startswith(pipeline.made("student"))
    assert " best " in row
    assert total == f"1 artifact, {row.rpartition('  ')[2].strip()}"
    assert rest == []


def test_what_has_no_meaning_is_refused(pipeline: Pipeline, cli: Cli) -> None:
    assert "adpa show REF --closure --list files" in cli.refused(2, "show", "--list", "files")
    assert "cannot be shown together" in cli.refused(2, "show", pipeline.made("student"), "--closure", "--recipe")


def test_torch_is_not_needed_for_a_closure(pipeline: Pipeline) -> None:
    script = (
        "import sys; from adpa_cli.cli.main import main; code = main(sys.argv[1:]); assert 'torch' not in sys.modules"
    )
    words = [sys.executable, "-c", script, "show", pipeline.made("student"), "--closure", "--store", pipeline.store]
    subprocess.run(words, check=True, capture_output=True)
