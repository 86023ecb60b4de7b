"""Where a store, data and models may lie, and who may use them: odd names, moved stores, no home, other users."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adpa_cli.errors import AdpaError
from adpa_cli.lab import BASES, world
from adpa_cli.machine import expanded, home, hub_cache, shown
from adpa_cli.store.store import Store
from support.cli_samples import Cli, Pipeline, write_rows
from support.fake_hub import serve, use
from support.store_samples import make, recipe

ODD = "a b#c%d 😀 'q\" é"
SFT = ("sft", "--model", "tiny", "--smoke")
NOBODY = 12345


@pytest.fixture
def odd(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory whose name has everything that a path may have."""
    folder = tmp_path / ODD
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def homeless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user id without a line in passwd, and no HOME."""

    def unknown(user: object) -> Any:
        raise KeyError(user)

    for name in ("HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(pwd, "getpwnam", unknown)


def test_a_store_with_an_odd_path_builds_answers_and_exports(cli: Cli, odd: Path, tmp_path: Path) -> None:
    made = cli(*SFT, "--tag", "x")
    assert made.code == 0, made.err
    assert cli("path", "x").ref == str(odd / "adpa-store" / made.ref)
    assert cli("chat", "x", "-", stdin="héllo 😀\n").rows != []
    assert cli("export", "x", "out 😀#1%").code == 0
    pairs = write_rows(odd / "p 😀#1 %.jsonl", world.preferences("train")[:12])
    (odd / "sets#1").mkdir()
    for split in ("train", "test"):
        shutil.copy(pairs, odd / "sets#1" / f"{split}.jsonl")
    for data in (pairs.name, "./sets#1#train", "sets#1/train.jsonl"):
        assert cli("data", data).code == 0
    assert "sets#1/none.jsonl" in cli.refused(3, "data", "sets#1/none.jsonl")
    words = ("distill", "--method", "dpo", "--student", "./out 😀#1%", "--smoke", "--no-eval", "--max-steps", "1")
    for data in (pairs.name, "./sets#1#train"):
        aligned = cli(*words, "--set", "distill.max_length=128", "--data", data)
        assert aligned.code == 0, aligned.err
        manifest = Store.find().resolve(aligned.ref)
        assert {facts["name"] for facts in manifest.sources.values()} >= {Path(data.removesuffix("#train")).name}
        again = cli("show", aligned.ref, "--recipe").out
        assert 'student = "./out 😀#1%"' in again


def test_a_store_goes_on_where_it_was_moved_to_and_through_a_link(
    cli: Cli, odd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adpa_cli.cli.console.stopping import Stopping

    words = ("sft", "--model", "tiny", "--limit", "16", "--max-steps", "6", "--set", "batch_size=4")
    whole = cli(*words, "--store", tmp_path / "whole").ref

    def stop_at_once(self: Stopping, busy: bool) -> None:
        self.working, self.asked = busy, "SIGTERM"

    with monkeypatch.context() as patch:
        patch.setattr(Stopping, "is_working", stop_at_once)
        assert cli(*words).code == 143
    moved = tmp_path / "mo ved#%"
    shutil.move(odd / "adpa-store", moved)
    (odd / "the link").symlink_to(moved)
    listed = json.loads(cli("show", "--json", "--store", "the link").out)["unfinished"]
    assert [(item["ref"], item["stopped"]) for item in listed] == [(whole, "SIGTERM")]
    assert cli(*words, "--store", "the link").ref == whole
    monkeypatch.setenv("ADPA_STORE", str(moved))
    assert cli(*words).ref == whole
    files = [Store.find(place).resolve(whole).files for place in (moved, tmp_path / "whole")]
    assert {name: file["sha256"] for name, file in files[0].items() if name.endswith("safetensors")} == {
        name: file["sha256"] for name, file in files[1].items() if name.endswith("safetensors")
    }
    assert list(odd.iterdir()) == [odd / "the link"]


def test_a_user_without_a_home_folder_can_do_everything(cli: Cli, homeless: None, tmp_path: Path) -> None:
    assert home() is None
    made = cli(*SFT)
    assert made.code == 0, made.err
    assert f"store {str(tmp_path)[:40]}" in " ".join(made.err.split())  # which a narrow screen cuts
    for words in (("show",), ("env",), ("models",), ("verify",), ("show", made.ref), ("data", "tiny-pairs")):
        ran = cli(*words)
        assert ran.code == 0, ran.err
    assert "~/x.jsonl: this user has no home folder" in cli.refused(2, "data", "~/x.jsonl")
    assert "there is no user nobody-here" in cli.refused(2, "sft", "--model", "~nobody-here/model")
    assert "no home folder" in cli.refused(2, "show", "--store", "~/store")
    assert [path.name for path in tmp_path.iterdir()] == ["adpa-store"]


def test_paths_below_the_home_folder_are_shown_short_unless_all_are(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert (home(), shown(tmp_path / "a"), shown(Path("/x"))) == (tmp_path, "~/a", "/x")
    assert expanded("~/a") == tmp_path / "a"
    assert "store ~/adpa-store (0 artifacts)" in " ".join(cli(*SFT).err.split())
    monkeypatch.setenv("HOME", "/")
    assert (home(), shown(tmp_path)) == (None, str(tmp_path))
    assert f"store {str(tmp_path)[:40]}" in " ".join(cli(*SFT, "--seed", "2").err.split())
    assert hub_cache({"XDG_CACHE_HOME": "/x"}) == Path("/x/huggingface/hub")


def test_names_that_are_no_text_are_refused(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = os.fsdecode(b"caf\xe9")
    (tmp_path / name).mkdir()
    assert "is not UTF-8 text" in cli.refused(2, "data", f"./{name}/x.jsonl")
    monkeypatch.chdir(tmp_path / name)
    assert "a folder in its path has a name that is not UTF-8 text" in cli.refused(2, *SFT)
    assert list(Path.cwd().iterdir()) == []


def test_a_working_folder_that_is_gone_is_refused(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for words in (("show",), SFT):
        assert "the working folder no longer exists" in cli.refused(3, *words)


LOCALE = {
    "LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii",
    "OMP_NUM_THREADS": "1",
}  # fmt: skip


def test_a_locale_that_knows_ascii_only_can_do_everything(pipeline: Pipeline, tmp_path: Path) -> None:
    """Two real programs: the encoding of file names is settled before Python runs a line of ours."""
    folder = tmp_path / ODD
    folder.mkdir()
    shutil.move(pipeline.store, folder / "adpa-store")
    adpa = f"{sys.executable} -m adpa_cli"
    script = (
        f"printf 'h\\303\\251llo \\360\\237\\230\\200\\n' | {adpa} chat sft@latest - && "
        f"{adpa} show sft@latest | head -1; echo ${{PIPESTATUS[0]}}"
    )
    ran = subprocess.run(
        ["bash", "-c", script], cwd=folder, env={**os.environ, **LOCALE}, capture_output=True, text=True, check=False
    )
    _, line, status = ran.stdout.splitlines()
    assert line.startswith("sft/")
    assert status in ("0", "141")
    assert ran.stderr == ""


def as_nobody(function: Callable[[], object], umask: int = 0o022, group: int = NOBODY) -> object:
    """What a function returns, or what its AdpaError says, where another user calls it in a process of its own."""
    if os.geteuid() != 0:
        pytest.skip("needs the right to become another user")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([group])
            os.setresgid(group, group, group)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            os.umask(umask)
            said: object = function()
        except AdpaError as error:
            said = f"{error.message}\n{error.hint}"
        except BaseException as error:
            said = repr(error)
        os.write(writing, json.dumps(said).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text)


@pytest.fixture
def common(tmp_path: Path) -> Path:
    """A folder of a group, reachable from above."""
    for folder in (tmp_path, *tmp_path.parents):
        if folder.name.startswith(("pytest-", "test_", "popen-")):
            folder.chmod(0o755)
    place = tmp_path / "common"
    place.mkdir()
    if os.geteuid() == 0:
        os.chown(place, 0, NOBODY)
    place.chmod(0o2775)
    return place


def private_file(store: Store, finish: bool) -> None:
    """A build that saves a file as safetensors does: for its owner alone."""
    with store.build(recipe(n=2), command="adpa sft") as work:
        handle = os.open(work.dir / "model.safetensors", os.O_WRONLY | os.O_CREAT, 0o600)
        os.write(handle, b"weights")
        os.close(handle)
        work.save_state({"step": 1, "of": 2})
        if finish:
            work.commit()


def test_a_group_works_in_one_store(common: Path) -> None:
    before = os.umask(0o002)
    try:
        store = Store.find(common / "adpa-store", create=True)
        private_file(store, finish=False)
        store.tag("first", make(store, n=1).id)
    finally:
        os.umask(before)

    def goes_on() -> object:
        with store.build(recipe(n=2), command="adpa sft") as work:
            (work.dir / "model.safetensors").unlink()
            (work.dir / "model.safetensors").write_bytes(b"theirs")
            work.commit()
        store.tag("first", recipe(n=2).id)
        return [store.tags()["first"] == recipe(n=2).id, len(store.artifacts()), work.progress["step"]]

    assert as_nobody(goes_on, umask=0o002) == [True, 2, 1]
    manifest = store.resolve("first")
    assert (store.folder(manifest.id) / "model.safetensors").read_bytes() == b"theirs"
    narrow = [path for path in common.rglob("*") if not path.stat().st_mode & 0o020]
    assert narrow == []


def test_what_another_user_kept_for_himself_is_refused_by_name(common: Path) -> None:
    store = Store.find(common / "adpa-store", create=True)
    made = make(store, n=1)
    private_file(store, finish=False)
    folder = store.folder(made.id)

    def reads() -> object:
        from adpa_cli.disk import readable

        with store.build(recipe(n=1), command="adpa sft") as work:
            return [work.hit is not None, readable(folder).name]

    assert as_nobody(reads) == [True, folder.name]
    refused: tuple[Callable[[], object], ...] = (
        lambda: private_file(store, True), lambda: make(store, n=3), lambda: store.tag("x", made.id),
    )  # fmt: skip
    for attempt in refused:
        said = as_nobody(attempt)
        assert isinstance(said, str)
        assert f"{store.root}/.partial cannot be written (Permission denied; it belongs to {_name(0)})" in said
        assert "umask 002" in said
    (folder / "model.safetensors").chmod(0o600)
    assert f"model.safetensors cannot be opened (Permission denied; it belongs to {_name(0)})" in str(as_nobody(reads))
    assert [work.progress for work in store.unfinished()] == [{"step": 1, "of": 2}]


def _name(user: int) -> str:
    return pwd.getpwuid(user).pw_name


def test_what_is_made_is_for_everybody_whom_the_umask_lets(pipeline: Pipeline, cli: Cli) -> None:
    before = os.umask(0o027)
    try:
        model = cli(*SFT, "--seed", "5").ref
        answers = cli("rollout", "--student", model, "--limit", 4, "--max-new-tokens", 4).ref
        signal = cli("cache-teacher", "--teacher", model, "--rollouts", answers).ref
        assert cli("export", model, "model").code == 0
        assert cli("export", signal, "signal", "--to", "safetensors").code == 0
    finally:
        os.umask(before)
    places = [*(pipeline.store / ref for ref in (model, answers, signal)), Path("model"), Path("signal")]
    for path in (path for place in places for path in (place, *place.rglob("*"))):
        assert path.stat().st_mode & 0o777 == (0o750 if path.is_dir() else 0o640), path


def test_a_cache_of_hashes_that_cannot_be_written_is_not_kept(common: Path) -> None:
    store = Store.find(common / "adpa-store", create=True)
    (common / "data.jsonl").write_text("{}\n")

    def hashes() -> object:
        from adpa_cli.store.identity import file_digest

        return file_digest(common / "data.jsonl", store.hash_cache)

    assert as_nobody(hashes) == "ca3d163bab055381827226140568f3bef7eaac187cebd76878e0b63e9e442356"
    assert not (store.root / ".hashes.json").exists()


def test_a_cache_of_downloads_that_cannot_be_written_serves_what_it_has(
    common: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from adpa_cli.hub import repository as hub
    from adpa_cli.store.identity import HashCache

    def model(name: str) -> object:
        commit = hub.commit_of(name, None, "model")
        external = hub.model(name, commit, HashCache(common / "none" / "hashes.json"))
        hub.fetch(external.files, HashCache(common / "none" / "hashes.json"), lambda text: None)
        return external.content

    with serve() as server:
        use(server, common / "cache", monkeypatch)
        for name in ("org/here", "org/new"):
            server.add(name, BASES / "student")
        content = model("org/here")
        for path in [common / "cache", *(common / "cache").rglob("*")]:
            path.chmod(path.stat().st_mode & ~0o222 | 0o444)
        assert as_nobody(lambda: model("org/here")) == content
        said = as_nobody(lambda: model("org/new"))
    assert f"the Hugging Face cache cannot be written ({common}/cache" in str(said)
    assert "export HF_HOME=DIR" in str(said)


def test_files_that_others_may_not_read_are_named(common: Path) -> None:
    from adpa_cli.data.sources import parse_source, read_rows

    path = write_rows(common / "pairs.jsonl", world.preferences("train")[:2])
    path.chmod(0o600)
    said = as_nobody(lambda: len(list(read_rows(parse_source(str(path))))))
    assert f"{path} cannot be opened (Permission denied; it belongs to {_name(0)})" in str(said)


def test_a_machine_without_a_folder_for_temporary_files_says_so(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", None)
        patch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "none")])
        assert "export TMPDIR=DIR" in cli.refused(1, "sft", "--model", "tiny", "--smoke", "--gpus", "2")
