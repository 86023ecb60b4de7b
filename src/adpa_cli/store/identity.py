"""What an artifact is made from, as one number: the sha256 of its recipe."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from adpa_cli.errors import UsageError
from adpa_cli.store.contents import HashCache, file_digest, model_digest

__all__ = ["SCHEME", "HashCache", "Recipe", "canonical", "file_digest", "model_digest"]

SCHEME = 1
"""Number of this way of hashing. A new number gives every artifact a new id."""

STAGE_NAME = re.compile(r"[a-z][a-z0-9-]*")
_INPUT = re.compile(r"(artifact|model|data):[0-9a-f]{64}")


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


def _check(value: object, where: str) -> None:
    # Exact types: a subclass (an enum, a numpy float) may print differently in another version of its library.
    if value is None or type(value) in (bool, int, str):
        return
    if type(value) is float:
        if not math.isfinite(value):
            raise UsageError(f"{where} is {value}", "give a finite number")
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
