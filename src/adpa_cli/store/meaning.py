"""Which artifact a word means: an id or 4 or more of its first digits, `stage/digits`, a tag, or `STAGE@latest`."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING

from adpa_cli.errors import NotFound, UsageError
from adpa_cli.families import reserved_words
from adpa_cli.spec import STAGE_VERSIONS
from adpa_cli.store import manifest as manifests
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.tags import DIGITS

if TYPE_CHECKING:
    from adpa_cli.store.store import Store


def meaning(store: Store, text: str) -> Manifest:
    """The artifact that `text` means; rehearsals, whose `made` says `smoke`, are never the latest.

    Raises UsageError naming all meanings when there are several, NotFound with what comes close when there is none.
    """
    begun = _beginning_with(store, text)
    tagged = store.tags().get(text)
    if tagged is not None:
        return _of_tag(store, text, tagged, begun)
    if len(begun) > 1:
        both = ", ".join(sorted(manifest.ref for manifest in begun))
        raise UsageError(f"{text} could be any of {both}", "give more digits, or the stage before them")
    stage, _, latest = text.partition("@")
    if latest == "latest":
        newest_first = (manifest for manifest in store.artifacts() if manifest.stage == stage)
        begun = [manifest for manifest in newest_first if not manifest.made.get("smoke")]
    if not begun:
        raise _unknown(store, text)
    return begun[0]


def _of_tag(store: Store, tag: str, tagged: str, begun: list[Manifest]) -> Manifest:
    found = store.get(tagged)
    if begun:
        both = [f"the tag of {found.ref if found else tagged[:12]}", *(f"the id {other.ref}" for other in begun)]
        raise UsageError(f"{tag} could be {' or '.join(both)}", f"remove the tag: adpa tag --delete {tag}")
    if found is None:
        raise NotFound(f"the tag {tag} names {tagged[:12]}, which is gone", f"move it: adpa tag {tag} REF")
    return found


def _beginning_with(store: Store, text: str) -> list[Manifest]:
    """The artifacts whose id begins with `text`, which may have the stage before it; 4 digits at least."""
    stage, _, digits = text.removeprefix("artifact:").rpartition("/")
    digits = digits.lower()
    if not DIGITS.fullmatch(digits):
        return []
    folders = [folder for folder in store.folders(stage) if folder.name.startswith(digits[:12])]
    return [manifest for manifest in map(manifests.read, folders) if manifest.id.startswith(digits)]


def _unknown(store: Store, text: str) -> NotFound:
    for work in store.unfinished():
        if len(text) >= 4 and (work.ref.startswith(text) or work.recipe.id.startswith(text)):
            return NotFound(f"{work.ref} is unfinished", f"go on: {work.command}")
    stage, _, latest = text.partition("@")
    if latest == "latest" and stage in STAGE_VERSIONS:
        return NotFound(
            f"{text}: no {stage} is finished in {store.root} (rehearsals are never the latest)",
            "see what there is: adpa show --all",
        )
    if text in reserved_words():
        return NotFound(
            f"{text} is a built-in name, not an artifact of {store.root}", "see what there is: adpa show, adpa models"
        )
    refs = [f"{folder.parent.name}/{folder.name}" for folder in store.folders()]
    names = [*store.tags(), *refs, *(ref.split("/")[1] for ref in refs)]
    close = difflib.get_close_matches(text, names, n=3, cutoff=0.6)
    meant = f"did you mean {' or '.join(close)}? " if close else ""
    short = "an id takes 4 digits or more; " if re.fullmatch("[0-9a-f]{1,3}", text) else ""
    return NotFound(
        f"{text} is no tag, id or stage@latest in {store.root}", f"{meant}{short}see what there is: adpa show"
    )
