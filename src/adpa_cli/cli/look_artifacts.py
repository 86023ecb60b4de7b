"""What `adpa show` prints: the store, one artifact, what differs between several, single rows, or a recipe."""

from __future__ import annotations

import time
from collections.abc import Sequence

from adpa_cli.cli.look import out, terminal_width
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store


def everything(store: Store, whole: bool) -> None:
    """The list of the store; the `whole` of it has rehearsals, evaluations and old work too."""
    from adpa_cli.report import listing

    seen = listing.collect(store)
    out(
        lambda: listing.screen(seen, terminal_width(), time.time(), whole),
        lambda: listing.tsv(seen, whole),
        lambda: listing.record(seen),
    )


def one(store: Store, manifest: Manifest) -> None:
    """The page of an artifact."""
    from adpa_cli.report import page

    seen = page.collect(store, manifest)
    out(lambda: page.screen(seen, terminal_width(), time.time()), lambda: page.tsv(seen), lambda: page.record(seen))


def several(store: Store, manifests: Sequence[Manifest]) -> None:
    """What differs between artifacts."""
    from adpa_cli.report import compare

    refs = [manifest.ref for manifest in manifests]
    seen = compare.collect(store, manifests)
    out(
        lambda: compare.screen(seen, refs, terminal_width()),
        lambda: compare.tsv(seen, refs),
        lambda: compare.record(seen, refs),
    )


def row(store: Store, manifest: Manifest, index: int) -> None:
    """Row `index` of an artifact, from 1."""
    from adpa_cli.report import rows as found

    out(
        lambda: found.row_screen(store, manifest, index, terminal_width()),
        lambda: found.row_tsv(store, manifest, index),
        lambda: found.row_record(store, manifest, index),
    )


def rows(store: Store, manifest: Manifest, count: int) -> None:
    """The first `count` rows of an artifact, a line each."""
    from adpa_cli.report import rows as found

    out(
        lambda: found.first_screen(store, manifest, count, terminal_width()),
        lambda: found.first_tsv(store, manifest, count),
        lambda: found.first_records(store, manifest, count),
    )


def recipe(store: Store, manifest: Manifest) -> None:
    """The TOML that makes an artifact again."""
    from adpa_cli.cli import remade

    found = remade.recipe_of(store, manifest)
    text = remade.toml(found, manifest)
    out(lambda: text, lambda: text, lambda: remade.record(found, manifest))
