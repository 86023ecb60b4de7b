"""The commands of docs/howto/object-store.md: a store is copied, the copy is killed, repeated, and proved whole."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from adpa_cli.errors import AdpaError
from adpa_cli.store.store import Store
from support import docs_shell
from support.cli_samples import Cli, Pipeline

PAGE = Path(__file__).resolve().parents[1] / "docs" / "howto" / "object-store.md"
KILLED = """
{command} & copying=$!
until [ "$(find {place} -type f | wc -l)" -ge {files} ]; do sleep 0.02; done
kill -9 "$(cat {pid})"
if wait $copying; then echo "it was killed too late" >&2; exit 9; fi
"""


def commands(program: str) -> list[str]:
    """The lines of the page's shell blocks in which a program is called."""
    blocks = re.findall(r"^```(?:bash|console)\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    lines = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    return [line for line in lines if re.search(rf"(^|\| ){program} ", line)]


@pytest.fixture
def best(pipeline: Pipeline, cli: Cli) -> Pipeline:
    """The small pipeline, whose result has the tag that the page names."""
    cli("tag", "best", pipeline.made("distill adpa"))
    return pipeline


def shell(script: str, store: Path, capfd: pytest.CaptureFixture[str]) -> str:
    """What a script says that must succeed, with `store` as the usual one."""
    folder = store.parent / "desk"
    folder.mkdir(exist_ok=True)
    done = docs_shell.run(f"export ADPA_STORE={store}\n{script}", folder, capfd)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


def assert_nothing_is_visible(store: Path) -> None:
    assert [*store.rglob("manifest.json")] == []
    with pytest.raises(AdpaError, match="is not a store"):
        Store.find(store)


def assert_arrived(store: Path, made: Pipeline, cli: Cli) -> None:
    """Every artifact of the closure is whole in a store, with its tag, and the command that made it finds it there."""
    needed = set(cli("show", "best", "--closure", "--store", made.store).out.split())
    checked = dict(cli("verify", "--store", store).rows)
    assert checked == dict.fromkeys(needed, "whole")
    assert Store.find(store).tags() == Store.find(made.store).tags()
    again = cli(*made.words, "--no-eval", "--store", store)
    assert again.ref == made.made("distill adpa")
    assert again.err.startswith("Nothing to do: ")


@contextlib.contextmanager
def bucket(served: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """rclone's own S3 server over a folder, known to rclone as the remote of the page; `rclone` notes its process."""
    program = shutil.which("rclone")
    if program is None:
        pytest.skip("rclone is not installed")
    (served / "adpa").mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    own = served.parent / "own"
    own.mkdir()
    wrapper = own / "rclone"
    wrapper.write_text(f'#!/bin/bash\necho $$ > {own}/pid\nexec {program} "$@"\n', encoding="utf-8")
    wrapper.chmod(0o755)
    facts = {"type": "s3", "provider": "Rclone", "endpoint": f"http://{address}", "access_key_id": "name",
             "secret_access_key": "secret", "force_path_style": "true"}  # fmt: skip
    for key, value in facts.items():
        patch.setenv(f"RCLONE_CONFIG_BUCKET_{key.upper()}", value)
    patch.setenv("RCLONE_CONFIG", str(own / "rclone.conf"))
    patch.setenv("RCLONE_TRANSFERS", "1")
    patch.setenv("PATH", f"{own}:{os.environ['PATH']}")
    words = [program, "serve", "s3", str(served), "--addr", address, "--auth-key", "name,secret"]
    with subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            _until_it_answers(address)
            yield
        finally:
            server.kill()


def _until_it_answers(address: str) -> None:
    host, _, port = address.partition(":")
    end = time.monotonic() + 30
    while True:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port))):
            return
        assert time.monotonic() < end, "rclone serve s3 does not answer"
        time.sleep(0.05)


def killed(command: str, place: Path, own: Path) -> str:
    """A script in which a copy into `place` is made slow and killed when some files are there."""
    place.mkdir(parents=True, exist_ok=True)
    slow = "export RCLONE_BWLIMIT=300k"
    return f"{slow}\n{KILLED.format(command=command, place=place, files=4, pid=own / 'pid')}"


def test_a_bucket_and_back_with_a_kill_on_each_way(
    best: Pipeline, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    served, other = tmp_path / "served", tmp_path / "other" / "adpa-store"
    files, manifests, back, rest = commands("rclone")
    with bucket(served, monkeypatch):
        shell(killed(files, served / "adpa", tmp_path / "own"), best.store, capfd)
        assert_nothing_is_visible(served / "adpa" / "store")
        shell(f"{files}\n{manifests}", best.store, capfd)
        other.parent.mkdir()
        shell(killed(back, other, tmp_path / "own"), other, capfd)
        assert_nothing_is_visible(other)
        said = shell(f"{back}\n{rest}\nadpa verify", other, capfd)
    assert said.count("\twhole\n") == len(cli("show", "best", "--closure").out.split())
    assert_arrived(other, best, cli)
    sent = {str(path.relative_to(served / "adpa" / "store")) for path in (served / "adpa").rglob("*") if path.is_file()}
    listed = (cli("show", "best", "--closure", "--list", part).out.split() for part in ("files", "manifests"))
    assert sent == {name for names in listed for name in names}


def test_rsync_takes_the_lists(best: Pipeline, cli: Cli, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    if shutil.which("rsync") is None:
        pytest.skip("rsync is not installed")
    files, manifests = commands("rsync")
    shell(files, best.store, capfd)
    assert_nothing_is_visible(tmp_path / "desk" / "elsewhere")
    shell(f"{files}\n{manifests}", best.store, capfd)
    assert_arrived(tmp_path / "desk" / "elsewhere", best, cli)


def test_tar_takes_the_lists_and_leaves_what_another_store_has(
    best: Pipeline, cli: Cli, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    files, manifests = commands("tar")
    shell(f"mkdir -p unpacked\n{files}", best.store, capfd)
    unpacked = tmp_path / "desk" / "unpacked"
    assert_nothing_is_visible(unpacked)
    shell(f"{files}\n{manifests}", best.store, capfd)
    assert_arrived(unpacked, best, cli)
    (unpacked / "pins.json").write_text('{"org/name": "theirs"}')
    (best.store / "pins.json").write_text('{"org/name": "ours"}')
    shell(f"{files}\n{manifests}", best.store, capfd)
    assert "theirs" in (unpacked / "pins.json").read_text()


def test_a_damaged_copy_is_named(best: Pipeline, cli: Cli, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shell("mkdir -p unpacked\n" + "\n".join(commands("tar")), best.store, capfd)
    unpacked = tmp_path / "desk" / "unpacked"
    (unpacked / best.made("distill adpa") / "model.safetensors").write_bytes(b"torn")
    said = cli.refused(5, "verify", "--store", unpacked)
    assert "1 of " in said
    assert best.made("distill adpa") in said
