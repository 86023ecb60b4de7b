"""`adpa log`: what a stage said while it worked, or says now."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console import options as opt
from adpa_cli.cli.console.streams import GLOBALS, one_value, out
from adpa_cli.errors import NotFound
from adpa_cli.report.text import for_encoding, printable

if TYPE_CHECKING:
    from adpa_cli.store.store import Store

SECONDS = 0.3
"""Between two looks at a file that grows."""


def log(
    ref: Annotated[str, opt.argument("REF", "An artifact, or unfinished work; - reads stdin.")],
    follow: Annotated[bool, opt.option("-f", "--follow", help="Keep printing until the work ends.")] = False,
) -> None:
    """Print the log of an artifact, or of unfinished work.

    adpa log best
    adpa log distill/9a1b2c3d4e5f -f   until it is finished or stops
    """
    from adpa_cli.store.store import Store

    store = Store.find(GLOBALS.store)
    name, path, is_running = _log_of(store, one_value("REF", ref))
    if follow and not GLOBALS.json:
        for part in _growing(path, is_running):
            sys.stdout.write(for_encoding(part, sys.stdout.encoding))
            sys.stdout.flush()
        return
    text = _shown(path.read_bytes())
    out(lambda: text, lambda: text, lambda: {**name, "lines": text.splitlines()})


def _log_of(store: Store, ref: str) -> tuple[Mapping[str, str], Path, Callable[[], bool]]:
    """The id and ref of an artifact or of work that was begun, its log file, and whether somebody is at it now."""
    from adpa_cli.store import build

    works = [w for w in store.unfinished() if len(ref) >= 4 and (w.ref.startswith(ref) or w.recipe.id.startswith(ref))]
    if len({work.recipe.id for work in works}) == 1:
        folder = build.attempts(store.root, works[0].recipe.id)[0]
        if not (folder / build.LOG).is_file():
            raise NotFound(f"{works[0].ref} has no log yet", f"continue it with: {works[0].command}")
        name = {"id": works[0].recipe.id, "ref": works[0].ref}
        return name, folder / build.LOG, lambda: bool(build.at_work(folder)) and folder.is_dir()
    manifest = store.resolve(ref)
    path = store.folder(manifest.ref) / build.LOG
    if not path.is_file():
        raise NotFound(
            f"{manifest.ref} has no log; it was imported, or copied without one", f"adpa show {manifest.ref}"
        )
    return {"id": manifest.id, "ref": manifest.ref}, path, lambda: False


def _growing(path: Path, is_running: Callable[[], bool]) -> Iterator[str]:
    """The lines of a file as they come, until nobody works on it; an open file is read to its end wherever it moves."""
    with path.open("rb") as file:
        rest = b""
        while True:
            last = not is_running()
            rest += file.read()
            whole, mark, rest = rest.rpartition(b"\n")
            if mark:
                yield _shown(whole + mark)
            if last:
                if rest:
                    yield _shown(rest + b"\n")
                return
            time.sleep(SECONDS)


def _shown(data: bytes) -> str:
    """Bytes of a log as text that cannot move a cursor."""
    return printable(data.decode("utf-8", "replace").replace("\r", "").replace("\t", "    "))


COMMAND = Command("log", "Look", 2, log, also=("logs", "tail"))
