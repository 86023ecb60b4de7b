"""Rows in files of every kind."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

ROWS = [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "d\u2028e", "chosen": "é", "rejected": "g"}]


def write(path: Path, rows=ROWS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    if path.name.endswith((".jsonl", ".ndjson")):
        path.write_bytes(lines)
    elif path.name.endswith(".jsonl.gz"):
        path.write_bytes(gzip.compress(lines))
    elif path.name.endswith(".jsonl.zst"):
        half = len(lines) // 2
        path.write_bytes(zstandard.compress(lines[:half]) + zstandard.compress(lines[half:]))
    elif path.name.endswith((".json", ".json.gz", ".json.zst")):
        path.write_bytes(packed(path, json.dumps(rows).encode()))
    elif path.name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        file = io.StringIO(newline="")
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if ".tsv" in path.name else ",")
        writer.writeheader()
        writer.writerows(rows)
        path.write_bytes(packed(path, file.getvalue().encode()))
    return path


def packed(path: Path, content: bytes) -> bytes:
    pack = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix)
    return pack(content) if pack else content
