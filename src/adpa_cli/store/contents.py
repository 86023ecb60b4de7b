"""Content digests of files and model folders from outside the store, and a cache of them."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from adpa_cli.errors import Corrupt, DataError, NotFound
from adpa_cli.store.disk import sha256_file, write_atomic

_TOKENIZER = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.*",
    "spiece.model",
    "sentencepiece*",
    "*.tiktoken",
    "tekken.json",
)
_DETERMINING = (
    "config.json", "generation_config.json", "tokenizer*", "special_tokens_map*", "added_tokens*",
    "merges.txt", "chat_template*", *_TOKENIZER,
)  # fmt: skip
INDEX = "model.safetensors.index.json"
_RACY_NS = 1_000_000_000  # a file this young when it was hashed may change again within one tick of its clock

Stat = tuple[int, int, int]  # size in bytes, mtime in ns, inode


class HashCache:
    """Remembers the sha256 of files by path, size, mtime and inode, in one JSON file that may be deleted at any time.

    It also keeps what a hub said of a repository at a commit, which never changes.

    A missing, torn or foreign file is an empty cache; a cache that cannot be written is not kept.
    """

    def __init__(self, path: Path, beside: Path | None = None) -> None:
        self.path = path
        self.beside = beside or path.parent
        self._files, self._folders, self._repos = self._load()

    def _load(self) -> tuple[dict[str, tuple[Stat, int, str]], dict[str, str], dict[str, Any]]:
        try:
            raw = json.loads(self.path.read_bytes())
            files = {
                str(name): ((int(size), int(mtime), int(inode)), int(hashed), str(sha))
                for name, (size, mtime, inode, hashed, sha) in raw["files"].items()
            }
            folders = {str(sha): str(folder) for sha, folder in raw["folders"].items()}
            return files, folders, dict(raw.get("repos", {}))
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}, {}, {}

    def get(self, path: Path) -> str | None:
        """The remembered sha256 of a file, or None when it is unknown or may have changed since."""
        known = self._files.get(os.path.abspath(path))
        if known is None:
            return None
        stat, hashed_ns, sha = known
        return sha if stat == _stat(path) and hashed_ns - stat[1] > _RACY_NS else None

    def put(self, path: Path, stat: Stat, sha: str) -> None:
        """Remember that the file with this stat has this sha256."""
        self._files[os.path.abspath(path)] = (stat, time.time_ns(), sha)
        self.save()

    def put_folder(self, folder: Path, sha: str) -> None:
        """Remember where a model folder with this digest was seen."""
        where = os.path.abspath(folder)
        if self._folders.get(sha) != where:
            self._folders[sha] = where
            self.save()

    def repo(self, key: str) -> Any:
        """What is remembered of a repository at a commit, or None."""
        return self._repos.get(key)

    def put_repo(self, key: str, record: Any) -> None:
        """Remember what a hub said of a repository at a commit (JSON)."""
        self._repos[key] = record
        self.save()

    def locate(self, sha: str) -> Path | None:
        """A file or model folder that has this digest now (looked up, then checked), or None."""
        for name in [name for name, known in self._files.items() if known[2] == sha]:
            with contextlib.suppress(OSError, NotFound, DataError):
                if file_digest(Path(name), self) == sha:
                    return Path(name)
        if sha in self._folders:
            folder = Path(self._folders[sha])
            with contextlib.suppress(OSError, NotFound, DataError, Corrupt):
                if model_digest(folder, self) == sha:
                    return folder
        return None

    def save(self) -> None:
        """Write the cache, if what it belongs to (`beside`, else its folder) exists."""
        files, folders, repos = self._load()  # another process may have written since: keep what it learnt
        self._files, self._folders = {**files, **self._files}, {**folders, **self._folders}
        self._repos = {**repos, **self._repos}
        flat = {name: [*stat, hashed, sha] for name, (stat, hashed, sha) in self._files.items()}
        with contextlib.suppress(OSError):
            if self.beside.exists():
                kept = {"files": flat, "folders": self._folders, "repos": self._repos}
                write_atomic(self.path, json.dumps(kept).encode())


def _stat(path: Path) -> Stat | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino


def file_digest(path: Path, cache: HashCache | None = None) -> str:
    """Hex sha256 of a file's content. Raises NotFound without the file, DataError when it changes meanwhile."""
    before = _stat(path)
    if before is None or not path.is_file():
        raise NotFound(f"{path} is no file", "check the path")
    if cache is not None and (known := cache.get(path)):
        return known
    sha = sha256_file(path)
    if _stat(path) != before:
        raise DataError(f"{path} changed while it was read", "wait until it is written, then repeat the command")
    if cache is not None:
        cache.put(path, before, sha)
    return sha


def model_digest(folder: Path, cache: HashCache | None = None) -> str:
    """Hex sha256 of a model folder: over the sorted (name, sha256) of the files that determine what it computes.

    These are the configuration, generation configuration, tokenizer, chat template and safetensors weights; a README,
    a training state or weights in other formats are not. Raises NotFound without the folder, DataError for a folder
    that lacks one of them.
    """
    sha = digest_of({name: file_digest(folder / name, cache) for name in model_files(folder)})
    if cache is not None:
        cache.put_folder(folder, sha)
    return sha


def digest_of(shas: Mapping[str, str]) -> str:
    """Hex sha256 over the sorted (name, sha256) of some files."""
    lines = (f"{name}\0{sha}\n" for name, sha in sorted(shas.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def model_files(folder: Path) -> list[str]:
    """Sorted names of the files that determine a model folder; errors as in `model_digest`."""
    if not folder.is_dir():
        raise NotFound(f"{folder} is no folder", "give a model folder, a hub name (org/name) or an artifact")
    names = sorted(item.name for item in folder.iterdir() if item.is_file())
    return determining(names, str(folder), lambda: (folder / INDEX).read_bytes())


def determining(names: list[str], where: str, index: Callable[[], bytes]) -> list[str]:
    """Those of the sorted file names of a model, in a folder or on a hub, that determine what it computes.

    `where` is said in errors; `index` reads the list of shards, if there is one. Raises DataError, Corrupt.
    """
    if "config.json" not in names:
        raise DataError(f"{where} has no config.json, so it is no model", "name the folder that holds config.json")
    if not _matching(names, _TOKENIZER):
        raise DataError(
            f"{where} has a model but no tokenizer (tokenizer.json)",
            "copy the tokenizer files there: adpa never guesses which tokenizer a model was trained with",
        )
    return sorted({*_matching(names, _DETERMINING), *_weights(where, names, index)})


def _matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def _weights(where: str, names: list[str], index: Callable[[], bytes]) -> list[str]:
    # The order in which transformers looks; a second copy of the weights beside them is never read.
    if "model.safetensors" in names:
        return ["model.safetensors"]
    if INDEX in names:
        return [INDEX, *_shards(where, names, index)]
    if found := _matching(names, ["*.safetensors"]):
        return found
    others = _matching(names, ["*.bin", "*.pt", "*.pth", "*.gguf", "*.h5"])
    held = f"only {', '.join(others[:3])}" if others else "none"
    raise DataError(
        f"{where} has no safetensors weights ({held}); weights load from safetensors only",
        "convert them once: model.save_pretrained(FOLDER) writes safetensors",
    )


def _shards(where: str, names: list[str], index: Callable[[], bytes]) -> list[str]:
    try:
        shards = sorted({str(name) for name in json.loads(index())["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Corrupt(f"{where}/{INDEX} is no list of weight files: {error}", "download the model again") from error
    if missing := [name for name in shards if name not in names]:
        raise DataError(f"{where} lacks {', '.join(missing[:3])}, which its index names", "download the model again")
    return shards
