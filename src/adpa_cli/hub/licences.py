"""What the licences of some models ask of models that are made with them, and what a README says of a licence.

Each entry was written from the agreement at its `page`. What it asks holds for a teacher too: these agreements name
models that were trained on a model's outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adpa_cli.data.layouts import readme_in


@dataclass(frozen=True)
class Terms:
    """What a licence asks of whoever gives a derived model to others.

    The name of the model has to begin with `beginning`, its page has to show the words `shown`, and a file NOTICE goes
    with it that says `notice`; what is "" is not asked for. `limit` is what the outputs may not be used for.
    """

    title: str
    page: str
    notice: str
    beginning: str = ""
    shown: str = ""
    limit: str = ""

    def takes(self, name: str) -> bool:
        """Whether a model may have this name (without its owner); the hub has no spaces, so that a - stands for one."""
        return name.lower().replace("_", "-").startswith(self.beginning.lower())


def _llama(version: str) -> Terms:
    return Terms(
        f"Llama {version} Community License",
        f"https://www.llama.com/llama{version.replace('.', '_')}/license",
        f"Llama {version} is licensed under the Llama {version} Community License, Copyright © Meta Platforms, Inc. "
        "All Rights Reserved.",
        beginning="Llama",
        shown="Built with Llama",
    )


TERMS: Mapping[str, Terms] = {
    "llama2": Terms(
        "LLAMA 2 Community License",
        "https://ai.meta.com/llama/license",
        "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, Inc. "
        "All Rights Reserved.",
        limit="It does not allow the outputs of Llama 2 to improve other language models than those of Llama 2.",
    ),
    "llama3": Terms(
        "Meta Llama 3 Community License",
        "https://www.llama.com/llama3/license",
        "Meta Llama 3 is licensed under the Meta Llama 3 Community License, Copyright © Meta Platforms, Inc. "
        "All Rights Reserved.",
        beginning="Llama-3",
        shown="Built with Meta Llama 3",
        limit="It does not allow the outputs of Llama 3 to improve other language models than those of Llama 3.",
    ),
    **{f"llama{version}": _llama(version) for version in ("3.1", "3.2", "3.3", "4")},
    "gemma": Terms(
        "Gemma Terms of Use",
        "https://ai.google.dev/gemma/terms",
        "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
    ),
}
"""By the names that the hub has for these licences."""


def licence_in(folder: Path) -> str:
    """The licence that the README.md of a folder states in its front matter, as the hub calls it; "" without one."""
    import yaml

    _, mark, rest = readme_in(folder).partition("---\n")
    front, end, _ = rest.partition("\n---")
    if not (mark and end):
        return ""
    try:
        about = yaml.safe_load(front)
    except yaml.YAMLError:
        return ""
    return stated(about.get("license"), about.get("license_name")) if isinstance(about, dict) else ""


def stated(licence: object, name: object = None) -> str:
    """A licence as a card states it, which may be a list, or `other` with a name of its own; "" for none."""
    if isinstance(licence, list):
        return ", ".join(map(str, licence))
    if licence == "other" and name:
        return str(name)
    return "" if licence in (None, "unknown") else str(licence)
