"""`adpa path`: where the files of an artifact are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console import options as opt
from adpa_cli.cli.console.streams import GLOBALS, artifacts, out, say
from adpa_cli.errors import AdpaError

if TYPE_CHECKING:
    from adpa_cli.store.manifest import Manifest


def path(ref: Annotated[str, opt.argument("REF", "An artifact or a tag; - reads stdin [required].")]) -> None:
    """Print the folder of an artifact, for other tools.

    For an adapter, stderr says which base model it needs, and how to serve or merge the two.

    vllm serve $(adpa path best)
    """
    store, manifests = artifacts(ref)
    folders = [store.folder(manifest.ref) for manifest in manifests]
    for folder, manifest in zip(folders, manifests, strict=True):
        if not GLOBALS.quiet:
            say("".join(f"{line}\n" for line in remarks(folder, manifest)))
    paths = [str(folder) for folder in folders]
    out(lambda: "\n".join(paths), lambda: "\n".join(paths), lambda: paths)


def remarks(folder: Path, manifest: Manifest) -> Sequence[str]:
    """What is said of a folder that other programs may take for a whole model; how one is served only of language
    models."""
    from adpa_cli.report.adapter import usage
    from adpa_cli.stages import product_of

    try:
        said = usage(folder, manifest.ref)
        return said if product_of(manifest.stage) == "model" else (*said[:1], *said[2:])
    except AdpaError as error:
        return f"Warning: {error.message}", f"try: {error.hint}"


COMMAND = Command("path", "Use", 2, path, also=("serve", "where", "which"))
