"""What names an artifact: the hash of its recipe; and the digests of files and model folders that go into it."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import json
import math
import os
import re
import shlex
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from adpa_cli.disk import sha256_file, write_atomic
from adpa_cli.errors import DataError, NotFound, UsageError

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
ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_BASE = "adapter_base.json"
"""What adpa writes beside an adapter: the content of its base, and how its weights were stored in training."""
ADAPTER_SETTINGS = (
    "r", "lora_alpha", "target_modules", "exclude_modules", "fan_in_fan_out", "use_rslora", "rank_pattern",
    "alpha_pattern", "layers_to_transform", "layers_pattern", "use_dora", "lora_bias",
)  # fmt: skip
"""What adapter_config.json says of how an adapter computes; where its base lies and how it was trained is no part."""
MERGED = frozenset((
    "ADALORA", "BOFT", "BONE", "C3A", "DELORA", "FOURIERFT", "GRALORA", "HRA", "IA3", "LN_TUNING", "LOHA", "LOKR",
    "MISS", "OFT", "OSF", "RANDLORA", "ROAD", "SHIRA", "TRAINABLE_TOKENS", "VBLORA", "VERA", "WAVEFT",
))  # fmt: skip
"""Kinds of adapters of peft that change weights of their base, and are merged into these."""
NEVER_MERGED = frozenset((
    "ADAPTION_PROMPT", "CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "POLY", "PREFIX_TUNING", "PROMPT_TUNING",
    "P_TUNING", "XLORA",
))  # fmt: skip
"""Those that put vectors before what a model reads, or choose among matrices for each input."""
FROM_GGUF = (
    "name the folder that it was made from, or convert it once, in Python: "
    "transformers.AutoModelForCausalLM.from_pretrained(FOLDER, gguf_file=NAME).save_pretrained('CONVERTED')"
)
_RACY_NS = 1_000_000_000  # a file this young when it was hashed may change again within one tick of its clock
Stat = tuple[int, int, int]  # size in bytes, mtime in ns, inode
SCHEME = 1
"""Number of this way of hashing. A new number gives every artifact a new id."""
STAGE_NAME = re.compile(r"[a-z][a-z0-9-]*")
_INPUT = re.compile(r"(artifact|model|data):[0-9a-f]{64}")


class NoModel(DataError):
    """What was named holds something else than a model: an adapter, or weights in a form that cannot be trained."""


class HashCache:
    """Remembers the sha256 of files by path, size, mtime and inode, in one JSON file that may be deleted at any time.

    It also keeps records of what others said that never changes: a hub of a repository at a commit, for one.

    A missing, torn or foreign file is an empty cache; a cache that cannot be written is not kept.
    """

    def __init__(self, path: Path, beside: Path | None = None) -> None:
        self.path = path
        self.beside = beside or path.parent
        self._files, self._folders, self._records = self._load()

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

    def recall(self, key: str) -> Any:
        """The record that is remembered under a key, or None."""
        return self._records.get(key)

    def remember(self, key: str, record: Any) -> None:
        """Keep a record (JSON) of what is so for ever."""
        self._records[key] = record
        self.save()

    def locate(self, sha: str, digest: Callable[[Path, HashCache], str] | None = None) -> Path | None:
        """A file or model folder that has this digest now (looked up, then checked), or None.

        `digest` is that of a model folder, `model_digest` unless said.
        """
        for name in [name for name, known in self._files.items() if known[2] == sha]:
            with contextlib.suppress(OSError, NotFound, DataError):
                if file_digest(Path(name), self) == sha:
                    return Path(name)
        if sha in self._folders:
            folder = Path(self._folders[sha])
            with contextlib.suppress(OSError, NotFound, DataError):
                if (digest or model_digest)(folder, self) == sha:
                    return folder
        return None

    def save(self) -> None:
        """Write the cache, if what it belongs to (`beside`, else its folder) exists."""
        files, folders, records = self._load()  # another process may have written since: keep what it learnt
        self._files, self._folders = {**files, **self._files}, {**folders, **self._folders}
        self._records = {**records, **self._records}
        flat = {name: [*stat, hashed, sha] for name, (stat, hashed, sha) in self._files.items()}
        with contextlib.suppress(OSError):
            if self.beside.exists():
                kept = {"files": flat, "folders": self._folders, "repos": self._records}
                write_atomic(self.path, json.dumps(kept).encode())


def file_digest(path: Path, cache: HashCache | None = None) -> str:
    """Hex sha256 of a file's content. Raises NotFound without the file, DataError when it changes meanwhile."""
    before = _stat(path)
    if before is None or not path.is_file():
        raise NotFound(f"{path} is not a file", "check the path")
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
    that lacks one of them, and for an adapter, whose digest takes that of its base (`adapter_digest`).
    """
    names = model_files(folder)
    if ADAPTER in names:
        raise DataError(f"{folder} is an adapter, not a whole model", "name the model that it was trained on")
    sha = digest_of({name: file_digest(folder / name, cache) for name in names})
    if cache is not None:
        cache.put_folder(folder, sha)
    return sha


def adapter_digest(
    shas: Mapping[str, str], config: Mapping[str, Any], made_on: Mapping[str, Any], base: str
) -> str:  # fmt: skip
    """Hex sha256 of an adapter: over the digests of its files and that of the whole model that is its `base`.

    Where the base lies moves nothing, and neither does the order in which peft wrote a set down: of adapter_config.json
    counts what says how the matrices are applied, of adapter_base.json (`made_on`) how the base is stored.
    """
    said = {"quantise": made_on.get("quantise"), **{key: config.get(key) for key in ADAPTER_SETTINGS}}
    kept = {key: _unordered(value) for key, value in said.items() if value}
    files = {name: sha for name, sha in shas.items() if name != ADAPTER_BASE}
    return digest_of({**files, ADAPTER: hashlib.sha256(canonical(kept)).hexdigest(), "base": base})


def _unordered(value: Any) -> Any:
    """A list of names or numbers in one order; anything else as it is."""
    plain = isinstance(value, list) and {type(item) for item in value} in ({str}, {int})
    return sorted(value) if plain else value


def digest_of(shas: Mapping[str, str]) -> str:
    """Hex sha256 over the sorted (name, sha256) of some files."""
    lines = (f"{name}\0{sha}\n" for name, sha in sorted(shas.items()))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def model_files(folder: Path) -> list[str]:
    """Sorted names of the files that determine a model folder; errors as in `model_digest`."""
    if folder.is_file() and folder.suffix == ".gguf":
        raise NoModel(f"{folder} is a GGUF file, whose weights cannot be trained", FROM_GGUF)
    if not folder.is_dir():
        raise NotFound(f"there is no folder {folder}", "give a model folder, a hub name (org/name) or an artifact")
    names = sorted(item.name for item in folder.iterdir() if item.is_file())
    return determining(names, str(folder), lambda name: (folder / name).read_bytes())


def determining(names: list[str], where: str, read: Callable[[str], bytes]) -> list[str]:
    """Those of the sorted file names of a model, in a folder or on a hub, that determine what it computes.

    `where` is said in errors; `read` reads one of the files. Raises DataError.
    """
    if is_adapter(names):
        adapter_config(read(ADAPTER), where)
        return _of_adapter(names, where)
    if "config.json" not in names and (quantised := _matching(names, ["*.gguf"])):
        raise NoModel(
            f"{where} holds only GGUF files ({', '.join(quantised[:3])}), whose weights cannot be trained", FROM_GGUF
        )
    if "config.json" not in names:
        raise DataError(
            f"{where} is not a model folder: it has no config.json", "name the folder that holds config.json"
        )
    if not has_tokenizer(names):
        raise DataError(
            f"{where} has a model but no tokenizer (tokenizer.json is missing)",
            "copy the model's tokenizer files into that folder",
        )
    return sorted({*_matching(names, _DETERMINING), *_weights(where, names, read)})


def is_adapter(names: Collection[str]) -> bool:
    """Whether a folder with files of these names holds an adapter and no whole weights."""
    return ADAPTER in names and not _whole_weights(names)


def has_tokenizer(names: Collection[str]) -> bool:
    """Whether one of some file names is that of a tokenizer."""
    return bool(_matching(names, _TOKENIZER))


def adapter_config(content: bytes, where: str) -> dict[str, Any]:
    """adapter_config.json of an adapter in `where`. Raises DataError for a damaged one, NoModel for one of no LoRA."""
    config = json_object(content, f"{where}/{ADAPTER}")
    base, kind = str(config.get("base_model_name_or_path") or ""), str(config.get("peft_type") or "LORA")
    if kind != "LORA":
        of = base or "a model that it does not name"
        raise NoModel(
            f"{where} is an adapter of {of} of the kind {kind}; only LoRA adapters can be read",
            _instead(kind, where, base),
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1 or type(alpha) not in (int, float):
        raise DataError(
            f"{where}/{ADAPTER} has no usable rank and scale: r is {rank!r} and lora_alpha is {alpha!r}",
            "fetch or write the folder again",
        )
    return config


def _instead(kind: str, where: str, base: str) -> str:
    """What to do with an adapter of another kind than LoRA."""
    merge = (
        f"merge it once, in Python: peft.AutoPeftModelForCausalLM.from_pretrained({where!r}).merge_and_unload()"
        ".save_pretrained('MERGED'), copy the tokenizer's files there, and name ./MERGED"
    )
    named = shlex.quote(base) if base else "BASE"
    train = f"train a LoRA adapter of its base instead: adpa sft --model {named} --set lora=16"
    if kind in MERGED:
        return merge
    if kind in NEVER_MERGED:
        return f"an adapter of this kind cannot be merged into the weights; {train}"
    return f"where your peft knows {kind} and has a way to merge it, {merge}\n or {train}"


def json_object(content: bytes, where: str) -> dict[str, Any]:
    """The JSON object in a file. Raises DataError, which names it, where there is none."""
    try:
        value = json.loads(content)
    except ValueError as error:
        raise DataError(f"{where} is not valid JSON: {error}", "fetch or write the folder again") from error
    if not isinstance(value, dict):
        raise DataError(f"{where} does not hold a JSON object", "fetch or write the folder again")
    return value


def canonical(value: object) -> bytes:
    """The one JSON text of a value: sorted keys, compact, UTF-8.

    Tuples are written as lists. `1` and `1.0` are different texts: a spec coerces its fields to their declared types
    before they come here. Raises UsageError for NaN, infinity and text that is not UTF-8 (all of which a user can
    type), TypeError for anything that JSON does not have.
    """
    _check(value, "recipe")
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise UsageError(f"a value in the recipe is not UTF-8 text: {error.object!r}") from error


@dataclass(frozen=True)
class Recipe:
    """Everything that determines an artifact's content.

    `inputs` maps a role to `artifact:<id>`, or to external content as `model:<sha256>` or `data:<sha256>`, or to a list
    of these (in which order matters). Identical recipes have identical ids on every machine.
    """

    stage: str
    version: int
    spec: Mapping[str, Any]
    inputs: Mapping[str, str | list[str]]

    def __post_init__(self) -> None:
        if not STAGE_NAME.fullmatch(self.stage) or self.stage == "tags":
            raise ValueError(f"{self.stage!r} cannot name a stage")
        for role, value in self.inputs.items():
            for item in [value] if isinstance(value, str) else value:
                if not _INPUT.fullmatch(item):
                    raise ValueError(f"input {role} is {item!r}, not artifact:, model: or data: and 64 hex digits")
        # A private copy in plain JSON: the caller's dicts may change, the recipe may not.
        object.__setattr__(self, "spec", json.loads(canonical(dict(self.spec))))
        object.__setattr__(self, "inputs", json.loads(canonical(dict(self.inputs))))

    @cached_property
    def id(self) -> str:
        """64 hex digits: sha256 of the canonical JSON of scheme, stage, version, spec and inputs."""
        return hashlib.sha256(canonical({"scheme": SCHEME, **self.to_json()})).hexdigest()

    @property
    def ref(self) -> str:
        """`stage/12hex`: the artifact's path inside the store, and its short name everywhere."""
        return f"{self.stage}/{self.id[:12]}"

    def to_json(self) -> dict[str, Any]:
        """The recipe as a JSON object, without the scheme."""
        return {"stage": self.stage, "version": self.version, "spec": self.spec, "inputs": self.inputs}


def _stat(path: Path) -> Stat | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    return [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def _whole_weights(names: Collection[str]) -> list[str]:
    """The safetensors files that are not those of an adapter."""
    adapters = _matching(names, ["adapter_model*"])
    return [name for name in _matching(names, ["*.safetensors"]) if name not in adapters]


def _of_adapter(names: list[str], where: str) -> list[str]:
    if ADAPTER_WEIGHTS in names:
        wanted = _matching(names, _DETERMINING)
        beside = {ADAPTER, ADAPTER_WEIGHTS, ADAPTER_BASE} & set(names)
        return sorted({*beside, *(name for name in wanted if name != "config.json")})
    others = _matching(names, ["adapter_model*", "*.gguf"])
    held = f"only {', '.join(others[:3])}" if others else "no weights"
    raise NoModel(
        f"{where} is an adapter without {ADAPTER_WEIGHTS} ({held})",
        "save it again with peft, from its base: PeftModel.from_pretrained(BASE, FOLDER).save_pretrained('ADAPTER')",
    )


def _weights(where: str, names: list[str], read: Callable[[str], bytes]) -> list[str]:
    # The order in which transformers looks; a second copy of the weights beside them is never read.
    if "model.safetensors" in names:
        return ["model.safetensors"]
    if INDEX in names:
        return [INDEX, *_shards(where, names, read)]
    if single_files := _whole_weights(names):
        return single_files
    others = _matching(names, ["*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack"])
    held = f"only {', '.join(others[:3])}" if others else "none"
    hint = (
        f"convert them once, in Python: transformers.AutoModelForCausalLM.from_pretrained({where!r}, dtype='auto')"
        ".save_pretrained('CONVERTED'), copy the tokenizer's files there, and name ./CONVERTED"
    )
    if others and all(name.endswith(".gguf") for name in others):
        hint = FROM_GGUF
    raise DataError(
        f"{where} has no safetensors weights ({held}); weights load from safetensors only",
        hint if others else "fetch the folder again, with its *.safetensors",
    )


def _shards(where: str, names: list[str], read: Callable[[str], bytes]) -> list[str]:
    try:
        shards = sorted({str(name) for name in json.loads(read(INDEX))["weight_map"].values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{where}/{INDEX} does not list weight files: {error}", "download the model again") from error
    if missing := [name for name in shards if name not in names]:
        raise DataError(f"{where} lacks {', '.join(missing[:3])}, which its index names", "download the model again")
    return shards


def _check(value: object, where: str) -> None:
    # Exact types: a subclass (an enum, a numpy float) may print differently in another version of its library.
    if value is None or type(value) in (bool, int, str):
        return
    if type(value) is float:
        if not math.isfinite(value):
            raise UsageError(f"{where} is {value}, which is not a finite number", "give a finite number")
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if type(key) is not str:
                raise TypeError(f"{where} has the key {key!r}; keys are text")
            _check(item, f"{where}.{key}")
    elif isinstance(value, list | tuple) and type(value) in (list, tuple):
        for index, item in enumerate(value):
            _check(item, f"{where}[{index}]")
    else:
        raise TypeError(f"{where} is a {type(value).__name__}, which JSON does not have")
