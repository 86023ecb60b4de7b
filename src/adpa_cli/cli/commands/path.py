"""`adpa path`: where the files of an artifact are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console import options as opt
from adpa_cli.cli.console.streams import GLOBALS, artifacts, out, say
from adpa_cli.errors import AdpaError


def path(ref: Annotated[str, opt.argument("REF", "An artifact or tag; - reads stdin.")]) -> None:
    """Print the folder of an artifact, for other tools.

    Of an adapter it says on stderr which model it belongs to, and how the two are served or merged.

    vllm serve $(adpa path best)
    """
    store, manifests = artifacts(ref)
    folders = [store.folder(manifest.ref) for manifest in manifests]
    for folder, manifest in zip(folders, manifests, strict=True):
        if not GLOBALS.quiet:
            say("".join(f"{line}\n" for line in remarks(folder, manifest.ref)))
    paths = [str(folder) for folder in folders]
    out(lambda: "\n".join(paths), lambda: "\n".join(paths), lambda: paths)


def remarks(folder: Path, name: str) -> Sequence[str]:
    """What is said of a folder that other programs may take for a whole model."""
    from adpa_cli.report.adapter import usage

    try:
        return usage(folder, name)
    except AdpaError as error:
        return f"watch  {error.message}", f"try: {error.hint}"


COMMAND = Command("path", "Use", 2, path)
