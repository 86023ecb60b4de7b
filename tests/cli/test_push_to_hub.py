"""`adpa export --push-to-hub`: what arrives on the hub, what its card says of licences, and every refusal before it."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from adpa_cli.cli.commands import export as command
from adpa_cli.families import published
from adpa_cli.hub.licences import TERMS
from adpa_cli.report import licences
from adpa_cli.report.licences import Parent
from support import fake_hub
from support.cli_samples import Cli, Pipeline

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of httpx, that huggingface_hub causes


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[fake_hub.Hub]:
    """A hub that knows the token of this machine."""
    with fake_hub.serve() as served:
        served.uploads = tmp_path / "uploads"
        served.uploads.mkdir()
        fake_hub.use(served, tmp_path / "cache", monkeypatch, token=fake_hub.TOKEN)
        yield served


def written(hub: fake_hub.Hub) -> list[str]:
    """What was changed on the hub."""
    return [line for line in hub.asked if line.startswith(("POST", "PUT"))]


def test_what_was_exported_is_on_the_hub_and_only_for_its_owner(
    pipeline: Pipeline, cli: Cli, hub: fake_hub.Hub
) -> None:
    ref = pipeline.made("distill adpa")
    ran = cli("export", ref, "out", "--push-to-hub", "me/tiny-adpa")
    assert ran.rows == [["out"]]
    assert f"uploaded (private): {hub.url}/me/tiny-adpa" in ran.err
    repo = hub.repos["me/tiny-adpa"]
    assert repo.private
    sent = {path.name: path.read_bytes() for path in repo.folder.iterdir() if path.name != ".gitattributes"}
    assert sent == {path.name: path.read_bytes() for path in Path("out").iterdir()}
    assert sent["model.safetensors"] == (pipeline.store / ref / "model.safetensors").read_bytes()
    _, front, body = sent["README.md"].decode().split("---\n", 2)
    assert "license" not in yaml.safe_load(front), "it is for the user to choose"
    assert "# tiny-adpa\n" in body
    assert "| the tiny student | base model | apache-2.0 |" in body
    assert "| the tiny teacher | teacher | apache-2.0 |" in body
    assert "| pairs | data | unknown |" in body
    assert "Nothing states the licence of pairs:" in body
    assert "  unknown        pairs (data)" in ran.err


def test_a_second_upload_needs_force_and_leaves_no_old_weights(pipeline: Pipeline, cli: Cli, hub: fake_hub.Hub) -> None:
    ref = pipeline.made("student")
    assert cli("export", ref, "out", "--push-to-hub", "lab/m").code == 0
    folder, before = hub.repos["lab/m"].folder, written(hub)
    (folder / "model-00001-of-00002.safetensors").write_text("old")
    (folder / "picture.png").write_text("mine")
    said = cli.refused(2, "export", ref, "other", "--push-to-hub", "lab/m")
    assert "lab/m is on the hub already, with " in said
    assert "--force, which adds a commit" in said
    assert (written(hub), Path("other").exists()) == (before, False)
    record = json.loads(cli("export", ref, "out", "--force", "--push-to-hub", "lab/m", "--json").out)
    assert record["url"] == f"{hub.url}/lab/m"
    assert not (folder / "model-00001-of-00002.safetensors").exists()
    assert {"picture.png", "model.safetensors"} <= {path.name for path in folder.iterdir()}


def test_an_empty_repository_is_taken_as_it_is(pipeline: Pipeline, cli: Cli, hub: fake_hub.Hub, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    (tmp_path / "made" / ".gitattributes").write_text("")
    hub.add("me/m", tmp_path / "made", private=True)
    assert cli("export", pipeline.made("student"), "out", "--push-to-hub", "me/m").code == 0
    assert not any("/repos/create" in line for line in hub.asked)


def test_what_everybody_can_see_is_asked_for(
    pipeline: Pipeline, cli: Cli, hub: fake_hub.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("export", pipeline.made("student"), "out", "--push-to-hub", "me/m")
    assert "add --yes, or leave out --public" in cli.refused(2, *words, "--public")
    monkeypatch.setattr(command, "can_ask", lambda: True)
    asked: list[str] = []
    monkeypatch.setattr(command, "confirm", lambda question, default: bool(asked.append(question)))
    assert "nothing was exported" in cli.refused(1, *words, "--public")
    assert asked == ["Let everybody see it as me/m?"]
    assert (written(hub), Path("out").exists()) == ([], False)
    assert cli(*words, "--public", "--yes").code == 0
    assert not hub.repos["me/m"].private
    monkeypatch.setattr(command, "can_ask", lambda: False)
    said = cli.refused(2, *words, "--force")
    assert "make it private on the hub" in said, "it keeps its visibility"


def test_every_refusal_comes_before_the_work(
    pipeline: Pipeline, cli: Cli, hub: fake_hub.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("export", pipeline.made("student"), "out", "--push-to-hub")
    assert "--push-to-hub ORG/mine;" in cli.refused(2, *words, "mine")
    assert "of letters, digits" in cli.refused(2, *words, "me/a b")
    assert "of letters, digits" in cli.refused(2, *words, "me/a@main")
    assert "add --push-to-hub ORG/NAME" in cli.refused(2, "export", pipeline.made("student"), "out", "--public")
    assert "no member of other" in (said := cli.refused(1, *words, "other/mine"))
    assert "try: --push-to-hub me/mine" in said
    hub.role = "read"
    assert "may only read" in cli.refused(1, *words, "me/mine")
    hub.role = "write"
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "is not valid" in (said := cli.refused(1, *words, "me/mine"))
    assert "try: hf auth login" in said
    monkeypatch.delenv("HF_TOKEN")
    assert "this machine has none\ntry: make a token" in cli.refused(1, *words, "me/mine")
    signal = ("export", pipeline.made("signal #1"), "out", "--push-to-hub", "me/mine")
    assert "--push-to-hub is for models" in cli.refused(2, *signal)
    assert (written(hub), Path("out").exists()) == ([], False)


def test_without_a_hub_nothing_is_exported(
    pipeline: Pipeline, cli: Cli, hub: fake_hub.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("export", pipeline.made("student"), "out", "--push-to-hub", "me/m")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set" in cli.refused(1, *words)
    assert not Path("out").exists()


def test_an_upload_that_is_refused_keeps_the_export(pipeline: Pipeline, cli: Cli, hub: fake_hub.Hub) -> None:
    hub.refusing = "/api/repos/create"
    said = cli.refused(1, "export", pipeline.made("student"), "out", "--push-to-hub", "lab/m")
    assert "may not write to lab/m; the export is kept in out" in said
    assert (Path("out") / "model.safetensors").is_file()


def test_a_llama_is_called_one_and_says_so(pipeline: Pipeline, cli: Cli, hub: fake_hub.Hub, tmp_path: Path) -> None:
    """A student of another family that had a Llama for its teacher: the terms name models trained on outputs."""
    shutil.copytree(pipeline.store / pipeline.made("aligned teacher"), tmp_path / "served")
    hub.add("some/teacher", tmp_path / "served", licence="llama3.2")
    made = cli(
        "cache-teacher", "--teacher", "some/teacher", "--data", pipeline.data, "--limit", "6", "--set", "max_length=128"
    ).ref
    words = ("distill", "--method", "dckd", "--student", pipeline.made("student"), "--cache", made, "--data",
             pipeline.data, "--limit", "6", "--max-steps", "1", "--no-eval")  # fmt: skip
    ref = cli(*words).ref
    said = cli.refused(2, "export", ref, "out", "--push-to-hub", "me/small-one")
    assert "the Llama 3.2 Community License of some/teacher (teacher) asks that the name" in said
    assert "try: --push-to-hub me/Llama-small-one " in said
    assert (written(hub), Path("out").exists()) == ([], False)
    assert cli("export", ref, "out", "--push-to-hub", "me/Llama-small-one").code == 0
    sent = hub.repos["me/Llama-small-one"].folder
    _, front, body = (sent / "README.md").read_text().split("---\n", 2)
    assert yaml.safe_load(front)["license"] == "llama3.2"
    assert "**Built with Llama**" in body
    assert "| [some/teacher](https://huggingface.co/some/teacher) | teacher | llama3.2 |" in body
    notice = (sent / "NOTICE").read_text()
    assert notice.startswith("Llama 3.2 is licensed under the Llama 3.2 Community License, Copyright © Meta Platforms")
    assert "some/teacher: they were made by training" in notice


def test_a_folder_from_elsewhere_says_its_licence_in_its_own_card(cli: Cli, pipeline: Pipeline, tmp_path: Path) -> None:
    shutil.copytree(pipeline.store / pipeline.made("student"), tmp_path / "mine")
    (tmp_path / "mine" / "manifest.json").unlink()
    (tmp_path / "mine" / "README.md").write_text("---\nlicense: gemma\n---\n# mine\n")
    assert cli("export", "./mine", "out").code == 0
    text = (tmp_path / "out" / "README.md").read_text()
    assert "| mine | base model | gemma |" in text
    assert "license: gemma\n" in text
    assert "Gemma is provided under and subject to the Gemma Terms of Use" in (tmp_path / "out" / "NOTICE").read_text()


def test_terms_are_known_of_every_licence_of_the_models_with_an_alias_that_asks_for_something() -> None:
    named = {model.licence for model in published().values()}
    assert {licence for licence in named if re.match("llama|gemma", licence)} <= set(TERMS)


@pytest.mark.parametrize(
    ("licence", "good", "bad"),
    [("llama3.1", ["Llama-x", "llama_x"], ["x-Llama"]), ("llama3", ["Llama-3-x", "llama_3"], ["Llama-x"]),
     ("llama2", ["x"], []), ("gemma", ["x"], [])],
)  # fmt: skip
def test_names_that_licences_allow(licence: str, good: list[str], bad: list[str]) -> None:
    assert all(TERMS[licence].takes(name) for name in good)
    assert not any(TERMS[licence].takes(name) for name in bad)


def test_two_licences_that_bind_leave_the_choice_and_both_notices() -> None:
    both = [Parent("base model", "google/gemma", "gemma"), Parent("teacher", "meta/x", "llama3.1")]
    (line,) = licences.front_matter(both, "choose one")
    assert line == "# license: choose one; gemma and llama3.1 both apply"
    text = licences.notice(both, "m")
    assert "Gemma Terms of Use" in text
    assert "Llama 3.1 Community License" in text
    assert licences.notice([Parent("data", "d", "mit")], "m") == ""
