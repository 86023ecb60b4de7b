"""`adpa tag`: the names of artifacts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console import complete
from adpa_cli.cli.console import options as opt
from adpa_cli.cli.console.streams import GLOBALS, one_value, out, say
from adpa_cli.errors import NotFound, UsageError

if TYPE_CHECKING:
    from adpa_cli.store.store import Store


def tag(
    words: Annotated[
        list[str] | None,
        opt.argument("NAME REF", "The tag and the artifact; without both, all tags are listed.", complete.artifacts()),
    ] = None,
    delete: Annotated[bool, opt.option("--delete", help="Remove the named tags. The artifacts stay.")] = False,
    force: Annotated[bool, opt.option("--force", help="Move a tag that already names another artifact.")] = False,
) -> None:
    """Give an artifact a name, list the names, or remove some.

    adpa tag best distill/9a1b2c3d4e5f
    adpa tag best distill/51c0de77aa02 --force   move the name
    adpa tag --delete best older                 remove two names
    """
    from adpa_cli.store.store import Store

    store = Store.find(GLOBALS.store)
    names = list(words or ())
    if delete:
        remove(store, names)
    elif not names:
        refs = {tag: manifest.ref for tag, artifact in store.tags().items() if (manifest := store.get(artifact))}
        lines = "".join(f"{tag}\t{ref}\n" for tag, ref in refs.items())
        out(lambda: lines.expandtabs(24), lambda: lines, lambda: refs)
    elif len(names) != 2:
        asked = "no artifact is named" if len(names) == 1 else f"{len(names)} words are given, but it takes two"
        raise UsageError(f"adpa tag {names[0]}: {asked}", f"adpa tag {names[0]} REF")
    else:
        give(store, names[0], one_value("REF", names[1]), force)


def give(store: Store, name: str, ref: str, force: bool) -> None:
    """Name the artifact that `ref` means. Raises UsageError where the name is taken and nobody said to move it."""
    from adpa_cli.families import reserved_words
    from adpa_cli.store.store import check_tag

    check_tag(name, reserved_words())
    manifest = store.resolve(ref)
    before = store.tags().get(name)
    if before is not None and before != manifest.id:
        earlier = store.get(before)
        named = earlier.ref if earlier else before[:12]
        if earlier and not force:
            raise UsageError(f"the tag {name} already names {named}", f"adpa tag {name} {ref} --force")
        if not GLOBALS.quiet:
            say(f"The tag {name} moved here from {named}.\n")
    store.tag(name, manifest.id, reserved_words())


def remove(store: Store, names: Sequence[str]) -> None:
    """Remove tags, all of them or none. Raises UsageError without a name, NotFound where one is no tag."""
    if not names:
        raise UsageError(
            "--delete needs the names of the tags to remove", "adpa tag --delete NAME…; all tags: adpa tag"
        )
    known = store.tags()
    if unknown := [name for name in names if name not in known]:
        raise NotFound(
            f"there is no tag {' or '.join(unknown)}; nothing was removed",
            f"name one of these: {', '.join(known)}" if known else "adpa show lists what is in the store",
        )
    for name in names:
        store.untag(name)


COMMAND = Command("tag", "Keep", 1, tag, also=("rename", "name", "mv", "alias", "untag"))
