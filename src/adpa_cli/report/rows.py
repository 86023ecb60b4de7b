"""`adpa show REF --row N` and `--rows N`: single rows of an artifact, counted from 1 in its own order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from adpa_cli.errors import NotFound, UsageError
from adpa_cli.report import text
from adpa_cli.report.answer_rows import Answers, Evaluated
from adpa_cli.report.judged_rows import JsonRows
from adpa_cli.report.signal_rows import Signals
from adpa_cli.stages import Product, making, product_of
from adpa_cli.store.build import plain
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

Rows = Answers | Evaluated | JsonRows | Signals
"""The rows of one artifact by place, from 0: whole, in brief, and as lines for a terminal."""
_ROWS: Mapping[Product, type[Rows]] = {
    "signal": Signals, "answers": Answers, "scores": Evaluated, "judgements": JsonRows, "dialogues": JsonRows,
}  # fmt: skip


def row_screen(store: Store, manifest: Manifest, index: int, width: int) -> str:
    """One row for a terminal of `width` columns. Raises NotFound outside 1 … n, UsageError for a stage without rows."""
    rows, place = _row(store, manifest, index)
    lines = rows.lines(place, width)
    return "\n".join(text.cut(line.rstrip(), width) for line in lines) + "\n"


def row_record(store: Store, manifest: Manifest, index: int) -> dict[str, Any]:
    """One row as JSON (null for what is not finite); raises like `row_screen`."""
    rows, place = _row(store, manifest, index)
    return plain({"ref": manifest.ref, "row": index, "rows": len(rows), **rows.record(place)})


def first_records(store: Store, manifest: Manifest, count: int) -> list[dict[str, Any]]:
    """The first `count` rows as JSON, each flat and in short; raises UsageError unless `count` is at least 1."""
    if count < 1:
        raise UsageError(f"--rows must be 1 or more; got {count}", f"adpa show {manifest.ref} --rows 10")
    rows = _open(store, manifest)
    return [plain({"row": place + 1, **rows.brief(place)}) for place in range(min(count, len(rows)))]


def first_tsv(store: Store, manifest: Manifest, count: int) -> str:
    """The first `count` rows as tab-separated lines under a header."""
    return text.records_tsv(first_records(store, manifest, count))


def first_screen(store: Store, manifest: Manifest, count: int, width: int) -> str:
    """The first `count` rows as a table of `width` columns: texts are cut, a prompt is its last turn."""
    records = first_records(store, manifest, count)
    names = list(dict.fromkeys(name for record in records for name in record))
    wide = "text" if "text" in names else "id"
    cells = [
        [text.cut(_in_line(record.get(name)), 200 if name == wide else 20) for name in names] for record in records
    ]
    lines = text.table(names, cells, width, names.index(wide), (0,)) if cells else ["There are no rows."]
    return "\n".join(lines) + "\n"


def _in_line(value: Any) -> str:
    shown = value[-1]["content"] if isinstance(value, list) and value else value
    shown = f"{shown:.4g}" if isinstance(shown, float) else text.cell(shown)
    return text.printable(" ".join(shown.split()))


def with_rows(store: Store, manifest: Manifest) -> Manifest:
    """The artifact whose rows are meant: of a model the signal that it learned from last, while the store has it."""
    if product_of(manifest.stage) in _ROWS:
        return manifest
    parents = [store.get(digest) for _, digest in manifest.parents()]
    signals = [parent for parent in parents if parent is not None and product_of(parent.stage) == "signal"]
    return max(signals, key=lambda parent: parent.at, default=manifest)


def signal_row(store: Store, manifest: Manifest, index: int) -> tuple[Signals, int]:
    """A signal, and the place of its row `index`, from 1. Raises UsageError for another artifact, NotFound."""
    rows, place = _row(store, manifest, index)
    if not isinstance(rows, Signals):
        raise UsageError(
            f"--html shows the tokens of a teacher signal, and {manifest.ref} is not one",
            f"name a signal ({' or '.join(making('signal'))}): adpa show lists them",
        )
    return rows, place


def _open(store: Store, manifest: Manifest) -> Rows:
    product = product_of(manifest.stage)
    if product is None or product not in _ROWS:
        raise UsageError(
            f"{manifest.ref} has no rows to show; rows are kept by {', '.join(making(*_ROWS))}",
            f"adpa show {manifest.ref}",
        )
    return _ROWS[product](store, manifest)


def _row(store: Store, manifest: Manifest, index: int) -> tuple[Rows, int]:
    """The rows of an artifact, and the place of one of them."""
    rows = _open(store, manifest)
    if not 1 <= index <= len(rows):
        valid = f"rows are numbered 1 to {len(rows)}" if len(rows) else "it has no rows"
        hint = f"adpa show {manifest.ref} --row {min(max(index, 1), len(rows))}" if len(rows) else ""
        raise NotFound(f"{manifest.ref} has no row {index}: {valid}", hint)
    return rows, index - 1
