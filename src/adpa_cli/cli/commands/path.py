"""`adpa path`: where the files of an artifact are."""

from __future__ import annotations

from typing import Annotated

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console import options as opt
from adpa_cli.cli.console.streams import artifacts, out


def path(ref: Annotated[str, opt.argument("REF", "An artifact or tag; - reads stdin.")]) -> None:
    """Print the folder of an artifact, for other tools.

    vllm serve $(adpa path best)
    """
    store, manifests = artifacts(ref)
    folders = [str(store.folder(manifest.ref)) for manifest in manifests]
    out(lambda: "\n".join(folders), lambda: "\n".join(folders), lambda: folders)


COMMAND = Command("path", "Use", 2, path)
