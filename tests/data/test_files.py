"""Every kind of data file gives the same rows, and damaged ones are named."""

from __future__ import annotations

import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adpa_cli.data.examples import Problem
from adpa_cli.data.sources import parse_source, read_part, read_rows
from adpa_cli.errors import DataError
from support.data_files import ROWS, write

NESTED = [
    {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": None}], "n": 1, "s": "007",
     "deep": {"lists": [[1, 2], []], "none": None}},
    {"messages": [], "n": None, "s": "2020-01-01", "deep": None},
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "first"),
    [("r.jsonl", 1), ("r.jsonl.gz", 1), ("r.jsonl.zst", 1), ("r.ndjson", 1), ("r.json", 1), ("r.json.gz", 1),
     ("r.json.zst", 1), ("r.parquet", 1), ("r.csv", 2), ("r.csv.gz", 2), ("r.csv.zst", 2)],
)  # fmt: skip
def test_every_kind_of_file_gives_the_same_rows(tmp_path, name, first):
    source = parse_source(str(write(tmp_path / name)))
    assert list(read_rows(source)) == [(first, ROWS[0]), (first + 1, ROWS[1])]


def test_lines_are_counted_as_an_editor_counts_them(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'\xef\xbb\xbf\n{"a": 1}\r\n\n  \n{"a": 2}')
    assert list(read_rows(parse_source(str(path)))) == [(2, {"a": 1}), (5, {"a": 2})]


def test_json_lines_under_the_name_of_json(tmp_path):
    path = tmp_path / "r.json"
    path.write_text('{"a": 1}\n{"a": 2}\n')
    assert list(read_rows(parse_source(str(path)))) == [(1, {"a": 1}), (2, {"a": 2})]


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "a.jsonl row 2: the JSON is broken"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', "a.jsonl row 2: the row is not a JSON object but of type list"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', "a.jsonl row 2: the text is not UTF-8"),
        ("a.jsonl", b"\n\n", "a.jsonl has no rows"),
        ("a.json", b"[]", "a.json has no rows"),
        ("a.json", b'[{"a": 1},\n{"a"]', "a.json row 2: the JSON is broken"),
        ("a.json", b"3", "a.json holds a value of type int"),
        ("a.json", b'[{"a": 1}, 2]', "a.json row 2: the row is not a JSON object but of type int"),
        ("a.csv", b"a,b\n1,2\n3\n", "a.csv row 3: the number of cells is 1, and the header has 2"),
        ("a.csv", b"a,b\n1,\xff\n", "a.csv row 2: not UTF-8"),
        ("a.csv", b"a,b\n", "a.csv has no rows"),
        ("a.csv", b"a,\xff\n1,2\n", "the column names of .*a.csv are not UTF-8"),
        ("a.csv", b'a,b\n1,2\n3,"4\n5,6\n', "a.csv row 3: a quote is opened and never closed"),
        ("a.csv", b'a,b\n1,"2', "a.csv row 2: a quote is opened and never closed"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl row 1: the JSON is broken"),
        ("a.parquet", b"no parquet", "a.parquet cannot be read as Parquet"),
        ("a.csv", b"prompt;chosen;rejected\na,b;c;d\n", "a.csv has a single column, called 'prompt;chosen;rejected'"),
        ("a.csv", b"prompt\tchosen\na\tb\n", "a.csv has a single column"),
        ("a.jsonl.gz", b"no gzip", "a.jsonl.gz row 1"),
        ("a.jsonl.zst", b"no zstandard", "a.jsonl.zst row 1"),
    ],
)
def test_damaged_files_name_file_and_row(tmp_path, name, content, found):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=found) as caught:
        list(read_rows(parse_source(str(tmp_path / name))))
    assert caught.value.hint


@pytest.mark.parametrize(
    "name", [f"r.{kind}.{packed}" for kind in ("jsonl", "json", "csv") for packed in ("gz", "zst")]
)
def test_a_compressed_file_that_was_cut_short_is_not_read_as_whole(tmp_path, name):
    path = write(tmp_path / name, ROWS * 50)
    path.write_bytes(path.read_bytes()[:-6])
    with pytest.raises(DataError, match=r"ended|end-of-stream"):
        list(read_rows(parse_source(str(path))))


def test_a_compressed_file_that_is_damaged_inside_is_named(tmp_path):
    path = write(tmp_path / "r.jsonl.gz", [{"prompt": os.urandom(50).hex()} for _ in range(3000)])
    torn = bytearray(path.read_bytes())
    torn[len(torn) // 2 : len(torn) // 2 + 40] = b"\xff" * 40
    path.write_bytes(torn)
    with pytest.raises(DataError, match=r"r\.jsonl\.gz row \d+: ") as caught:
        list(read_part(parse_source(str(path))))
    assert "the file is damaged" in caught.value.hint


@pytest.mark.parametrize(
    ("name", "content", "numbers", "kinds"),
    [
        ("a.jsonl", b'{"a": "1"}\n{"a"\n\n[2]\n{"a": "\xff"}\n{"a": "2"}', (1, 6),
         {2: "broken JSON", 4: "not an object", 5: "not UTF-8"}),
        ("a.csv", b'a,b\n1,"1\n"\n\n2\n3,\xff\n4,"a ""b"" c"', (2, 6),
         {4: "more or fewer cells than the header", 5: "not UTF-8"}),
        ("a.json", b'[{"a": 1}, 2, {"a": 2}]', (1, 3), {2: "not an object"}),
    ],
)  # fmt: skip
def test_what_follows_a_row_that_is_broken_is_read(tmp_path, name, content, numbers, kinds):
    (tmp_path / name).write_bytes(content)
    rows = dict(read_part(parse_source(str(tmp_path / name))))
    assert {number: row.kind for number, row in rows.items() if isinstance(row, Problem)} == kinds
    assert tuple(number for number, row in rows.items() if isinstance(row, dict)) == numbers


def test_nested_values_come_out_as_they_were_written(tmp_path):
    from datasets import Dataset

    pq.write_table(pa.Table.from_pylist(NESTED), tmp_path / "r.parquet")
    Dataset.from_list(NESTED).save_to_disk(tmp_path / "saved")
    Dataset.from_list(NESTED).to_parquet(tmp_path / "theirs.parquet")
    for source in ("r.parquet", "saved", "theirs.parquet"):
        assert list(read_rows(parse_source(str(tmp_path / source)))) == list(enumerate(NESTED, 1))


def test_a_path_with_signs_of_a_pattern_is_one_file(tmp_path):
    write(tmp_path / "a[1]*" / "train?.parquet")
    write(tmp_path / "a1" / "train0.parquet", ROWS[:1])
    assert len(list(read_rows(parse_source(str(tmp_path / "a[1]*"))))) == 2


def test_a_parquet_file_is_read_in_batches_and_may_be_empty(tmp_path):
    write(tmp_path / "many.parquet", [{"n": n} for n in range(3000)])
    rows = list(read_rows(parse_source(str(tmp_path / "many.parquet"))))
    assert rows == [(n + 1, {"n": n}) for n in range(3000)]
    pq.write_table(pa.table({"n": pa.array([], pa.int64())}), tmp_path / "none.parquet")
    with pytest.raises(DataError, match=r"none\.parquet has no rows"):
        list(read_rows(parse_source(str(tmp_path / "none.parquet"))))


def test_damage_inside_a_file_of_columns_names_it(tmp_path, capfd):
    from datasets import Dataset

    write(tmp_path / "r.parquet", [{"n": "x" * 100 + str(n)} for n in range(5000)])
    torn = bytearray((tmp_path / "r.parquet").read_bytes())
    torn[1000:3000] = bytes(2000)
    (tmp_path / "r.parquet").write_bytes(torn)
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    arrow.write_bytes(arrow.read_bytes()[:-300])
    for source, said in (
        ("r.parquet", r"r\.parquet cannot be read as Parquet"),
        ("saved", r"\.arrow cannot be read as Arrow"),
    ):
        with pytest.raises(DataError, match=said) as caught:
            list(read_rows(parse_source(str(tmp_path / source))))
        assert "damaged" in caught.value.hint
    assert capfd.readouterr() == ("", "")


def test_a_sheet_with_two_columns_of_one_name_is_refused(tmp_path):
    (tmp_path / "rows.csv").write_text(",prompt,prompt,chosen,rejected,\n1,a,b,c,d,\n")
    with pytest.raises(DataError, match=r"rows\.csv has two columns called prompt"):
        list(read_rows(parse_source(str(tmp_path / "rows.csv"))))


def test_a_large_file_that_is_compressed_comes_out_whole(tmp_path):
    rows = [{"prompt": f"{number} " * 5000, "chosen": "b", "rejected": "c"} for number in range(200)]
    assert [row for _, row in read_rows(parse_source(str(write(tmp_path / "r.jsonl.zst", rows))))] == rows


def test_maps_of_parquet_are_read(tmp_path):
    columns = {name: [row[name] for row in ROWS] for name in ROWS[0]}
    scores = pa.array([[("help", 1)], []], type=pa.map_(pa.string(), pa.int64()))
    pq.write_table(pa.table({**columns, "scores": scores}), tmp_path / "r.parquet")
    found = [row for _, row in read_rows(parse_source(str(tmp_path / "r.parquet")))]
    assert found == [{**ROWS[0], "scores": {"help": 1}}, {**ROWS[1], "scores": {}}]
