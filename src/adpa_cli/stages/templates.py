"""The chat template and the end token that a model folder brings along."""

from __future__ import annotations

import json
from pathlib import Path

from adpa_cli.errors import DataError


def folder_template(folder: Path) -> tuple[str, str] | None:
    """(chat template, end token) of a model folder, or None when it has no template."""
    config_path = folder / "tokenizer_config.json"
    config = json.loads(config_path.read_text(encoding="utf-8")) if config_path.exists() else {}
    separate = folder / "chat_template.jinja"
    template = separate.read_text(encoding="utf-8") if separate.exists() else config.get("chat_template")
    if isinstance(template, list):
        named = {entry["name"]: entry["template"] for entry in template}
        template = named.get("default")
    if not template:
        return None
    return str(template), end_token(folder)


def end_token(folder: Path) -> str:
    """The token that a folder's tokenizer names as the end of text. Raises DataError when it names none."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        path = folder / name
        token = json.loads(path.read_text(encoding="utf-8")).get("eos_token") if path.exists() else None
        if token:
            return str(token["content"] if isinstance(token, dict) else token)
    raise DataError(
        f"the tokenizer in {folder} names no end token (eos_token)", "add eos_token to tokenizer_config.json"
    )
