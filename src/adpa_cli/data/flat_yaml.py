"""The little of YAML that settings of a few keys need: `key: value`, and lists, of which each item is on a line."""

from __future__ import annotations

import json
import re
from typing import Any

_NUMBER = re.compile(r"[-+]?\d+(\.\d*)?([eE][-+]?\d+)?")
_WORDS = {"true": True, "false": False, "null": None, "~": None, "": None}


def parse(text: str) -> dict[str, Any]:
    """A table of scalars, lists of scalars and lists of flat tables. Raises ValueError naming the line for more."""
    if text.lstrip().startswith("{"):
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError("no table")
        return found
    table: dict[str, Any] = {}
    items: list[Any] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split("#")[0].rstrip()
        bare = words.lstrip()
        if not bare or bare == "---":
            continue
        key, colon, value = bare.removeprefix("- ").partition(":")
        if bare.startswith("- "):
            if items is None:
                raise ValueError(f"line {number}: a list without a name")
            items.append({key.strip(): scalar(value)} if colon else scalar(key))
        elif colon and words != bare and items and isinstance(items[-1], dict):
            items[-1][key.strip()] = scalar(value)
        elif colon and words == bare:
            items = None if value.strip() else []
            table[key.strip()] = scalar(value) if value.strip() else items
        else:
            raise ValueError(f"line {number}: {bare[:40]!r} is not `key: value`")
    return table


def scalar(text: str) -> Any:
    """A number, a word, or a list in brackets."""
    text = text.strip()
    if text.startswith("["):
        inside = text.removeprefix("[").removesuffix("]").strip()
        return [scalar(part) for part in inside.split(",")] if inside else []
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    if _NUMBER.fullmatch(text):
        return int(text) if re.fullmatch(r"[-+]?\d+", text) else float(text)
    return text.strip("\"'")
