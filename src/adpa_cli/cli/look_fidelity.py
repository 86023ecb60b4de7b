"""`adpa show SIGNAL --fidelity`."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from adpa_cli.cli.look import out, terminal_width
from adpa_cli.cli.streams import needed
from adpa_cli.report import fidelity as report
from adpa_cli.store.build import plain
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store


def fidelity(store: Store, manifest: Manifest, teacher: str | None, count: int | None) -> None:
    """Print what a signal keeps; with a `teacher` also how far it is from it on `count` answers."""
    found = report.collect(store, manifest)
    if teacher is not None:
        found["measured"] = _measured(store, manifest, needed("--teacher", teacher), count)
    width = terminal_width()
    out(lambda: report.screen(found, width), lambda: report.tsv(found), lambda: plain(found))


def _measured(store: Store, manifest: Manifest, teacher: str, count: int | None) -> dict[str, Any]:
    from adpa_cli.cli.make import computing
    from adpa_cli.stages.fidelity import ANSWERS, measure
    from adpa_cli.stages.names import Names

    with computing(store) as monitor, tempfile.TemporaryDirectory(prefix="adpa-fidelity-") as work:
        number = ANSWERS if count is None else count
        return measure(Names(store), manifest, {"aligned": teacher}, number, Path(work), monitor)
