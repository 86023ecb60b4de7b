"""Digests of what comes from outside, and the cache that may vanish at any time."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from adpa_cli.errors import DataError, NotFound
from adpa_cli.store import identity as contents
from adpa_cli.store.identity import HashCache, file_digest, model_digest, model_files


def sha(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()


def old(path: Path, text: bytes) -> Path:
    """A file written an hour ago, so that the cache may trust its time."""
    path.write_bytes(text)
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns - 3600 * 10**9))
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in (
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "model.safetensors",
    ):
        (folder / name).write_bytes(name.encode())
    return folder


def test_second_look_reads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = old(tmp_path / "d.jsonl", b"rows")
    assert file_digest(path, HashCache(tmp_path / "cache")) == sha(b"rows")
    monkeypatch.setattr(contents, "sha256_file", lambda _: pytest.fail("read again"))
    assert file_digest(path, HashCache(tmp_path / "cache")) == sha(b"rows")


def test_changed_file_is_read_again(tmp_path: Path) -> None:
    cache = HashCache(tmp_path / "cache")
    path = old(tmp_path / "d", b"one")
    file_digest(path, cache)
    path.write_bytes(b"two")
    assert file_digest(path, cache) == sha(b"two")


def test_a_change_within_one_tick_of_the_clock_is_seen(tmp_path: Path) -> None:
    cache = HashCache(tmp_path / "cache")
    path = tmp_path / "d"
    path.write_bytes(b"one")
    stat = path.stat()
    file_digest(path, cache)
    path.write_bytes(b"two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file_digest(path, cache) == sha(b"two")


@pytest.mark.parametrize("garbage", [b"", b"{", b"[]", b'{"files": {"x": 1}, "folders": {}}', b"\xff\xfe", b"null"])
def test_a_torn_cache_is_an_empty_cache(tmp_path: Path, garbage: bytes) -> None:
    (tmp_path / "cache").write_bytes(garbage)
    cache = HashCache(tmp_path / "cache")
    assert file_digest(old(tmp_path / "d", b"x"), cache) == sha(b"x")
    assert HashCache(tmp_path / "cache").get(tmp_path / "d") == sha(b"x")


def test_two_processes_keep_what_each_learnt(tmp_path: Path) -> None:
    first, second = HashCache(tmp_path / "cache"), HashCache(tmp_path / "cache")
    file_digest(old(tmp_path / "a", b"a"), first)
    file_digest(old(tmp_path / "b", b"b"), second)
    both = HashCache(tmp_path / "cache")
    assert (both.get(tmp_path / "a"), both.get(tmp_path / "b")) == (sha(b"a"), sha(b"b"))


def test_locate_gives_only_what_still_has_the_content(tmp_path: Path) -> None:
    cache = HashCache(tmp_path / "cache")
    fresh, aged = tmp_path / "fresh", old(tmp_path / "aged", b"aged")
    fresh.write_bytes(b"fresh")
    for path in (fresh, aged):
        file_digest(path, cache)
    cache = HashCache(tmp_path / "cache")
    assert cache.locate(sha(b"fresh")) == fresh
    assert cache.locate(sha(b"aged")) == aged
    os.utime(aged)
    assert cache.locate(sha(b"aged")) == aged, "a touched file has the same content"
    aged.write_bytes(b"else")
    fresh.unlink()
    assert cache.locate(sha(b"aged")) is None
    assert cache.locate(sha(b"fresh")) is None
    assert cache.locate(sha(b"unknown")) is None


def test_locate_finds_a_model_folder_until_it_changes(tmp_path: Path, model: Path) -> None:
    digest = model_digest(model, HashCache(tmp_path / "cache"))
    cache = HashCache(tmp_path / "cache")
    assert cache.locate(digest) == model
    (model / "config.json").write_bytes(b"other")
    assert cache.locate(digest) is None


def test_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        file_digest(tmp_path / "none")


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "d"
    path.write_bytes(b"x")

    def grow(target: Path) -> str:
        target.write_bytes(b"longer")
        return "0" * 64

    monkeypatch.setattr(contents, "sha256_file", grow)
    with pytest.raises(DataError, match="changed while it was read"):
        file_digest(path)


def test_model_digest_is_over_names_and_hashes(model: Path) -> None:
    names = ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    text = "".join(f"{name}\0{sha(name.encode())}\n" for name in names)
    assert model_digest(model) == sha(text.encode())


@pytest.mark.parametrize(
    "name",
    ["config.json", "generation_config.json", "tokenizer_config.json", "model.safetensors", "chat_template.jinja"],
)
def test_what_determines_a_model_moves_its_digest(model: Path, name: str) -> None:
    before = model_digest(model)
    (model / name).write_bytes(b"changed")
    assert model_digest(model) != before


@pytest.mark.parametrize(
    "name", ["README.md", "optimizer.pt", "consolidated.safetensors", "pytorch_model.bin", "log.txt"]
)
def test_what_does_not_determine_it_does_not(model: Path, name: str) -> None:
    before = model_digest(model)
    (model / name).write_bytes(b"anything")
    assert model_digest(model) == before


def test_digest_is_the_same_wherever_the_folder_is(model: Path, tmp_path: Path) -> None:
    before = model_digest(model)
    assert model_digest(model.rename(tmp_path / "elsewhere")) == before


def test_shards_come_from_the_index(model: Path) -> None:
    (model / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-2.safetensors", "b": "model-1.safetensors", "c": "model-1.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    (model / "model-1.safetensors").write_bytes(b"1")
    with pytest.raises(DataError, match=r"lacks model-2\.safetensors"):
        model_digest(model)
    (model / "model-2.safetensors").write_bytes(b"2")
    weights = [name for name in model_files(model) if "safetensors" in name]
    assert weights == ["model-1.safetensors", "model-2.safetensors", "model.safetensors.index.json"]
    (model / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(DataError, match="does not list weight files"):
        model_digest(model)


def test_incomplete_models_say_what_is_missing(model: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no folder"):
        model_digest(tmp_path / "none")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"only pytorch_model.bin.*weights load from safetensors only"):
        model_digest(model)
    (model / "tokenizer.json").unlink()
    with pytest.raises(DataError, match="no tokenizer"):
        model_digest(model)
    (model / "config.json").unlink()
    with pytest.raises(DataError, match=r"no config\.json"):
        model_digest(model)
