"""Numbers, ages, tables and curves as text, against values worked by hand."""

from __future__ import annotations

import pytest

from adpa_cli.report import text


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (304_000_000, "304 MB"), (2_500_000_000, "2.5 GB"),
     (61_249_000_000, "61.2 GB"),
     (812 * 10**9, "812 GB"), (999_600_000, "1.0 GB"), (99_960_000, "100 MB"), (10**18, "1000 PB")],
)  # fmt: skip
def test_sizes(size: int, shown: str) -> None:
    assert text.human_size(size) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-5, "0 s"), (59.9, "59 s"), (60, "1 min"), (3599, "59 min"), (3600, "1 h"),
     (47.9 * 3600, "47 h"), (48 * 3600, "2 d"),
     (6.5 * 86400, "6 d"), (59 * 86400, "59 d"), (92 * 86400, "3 mo"), (731 * 86400, "2 y")],
)  # fmt: skip
def test_ages(seconds: float, shown: str) -> None:
    assert text.human_age(seconds) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.4, "0 s"), (99, "99 s"), (2880, "48 min"), (3960, "66 min"), (7200, "2.0 h"), (276480, "3.2 d")],
)
def test_durations(seconds: float, shown: str) -> None:
    assert text.human_time(seconds) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (True, "true"), (2001882, "2,001,882"), (1e-5, "1e-5"), (0.015625, "0.01562"),
     (3.0, "3"), ("kth", "kth"), (2.5e12, "2.5e+12")],
)  # fmt: skip
def test_numbers(value: object, shown: str) -> None:
    assert text.number(value) == shown


@pytest.mark.parametrize(
    ("values", "width", "curve"),
    [
        ([0, 1, 2, 3, 4, 5, 6, 7], 8, "▁▂▃▄▅▆▇█"),
        ([0, 1, 2, 3, 4, 5, 6, 7], 4, "▁▃▆█"),  # means 0.5 2.5 4.5 6.5: 0, 2.33, 4.67 and 7 eighths
        ([5.0, 5.0, 5.0], 14, "▄▄▄"),
        ([1.0, None, float("nan"), 2.0], 4, "▁  █"),
        ([None], 4, " "),
        ([], 4, ""),
        ([3.0, float("inf"), 1.0], 3, "█ ▁"),
    ],
)
def test_curves(values: list[float | None], width: int, curve: str) -> None:
    assert text.sparkline(values, width) == curve


def test_wide_letters_and_accents_are_measured_in_columns() -> None:
    assert text.width_of("日本") == 4
    assert text.width_of("e\u0301") == 1
    assert text.cut("日本語", 5) == "日本…"
    assert text.cut("abc", 3) == "abc"
    assert text.cut("abcd", 3) == "ab…"
    assert text.pad("日", 4) == "日  "


def test_a_table_shortens_one_column_then_leaves_out_the_expendable() -> None:
    header = ("ID", "WHAT", "SIZE", "AGE")
    rows = [("sft/1", "a student of many words", "2.5 GB", "6 d"), ("x", "y", "1 B", "3 mo")]
    assert text.table(header, rows, 80, flexible=1, right=(2,)) == [
        "ID     WHAT                       SIZE  AGE",
        "sft/1  a student of many words  2.5 GB  6 d",
        "x      y                           1 B  3 mo",
    ]
    assert text.table(header, rows, 36, flexible=1, expendable=(2, 3)) == [
        "ID     WHAT             SIZE    AGE",
        "sft/1  a student of m…  2.5 GB  6 d",
        "x      y                1 B     3 mo",
    ]
    assert text.table(header, rows, 30, flexible=1, expendable=(2, 3)) == [
        "ID     WHAT               AGE",
        "sft/1  a student of man…  6 d",
        "x      y                  3 mo",
        "(no room for: SIZE)",
    ]
    for width in range(1, 60):
        assert max(map(text.width_of, text.table(header, rows, width, flexible=1, expendable=(2,)))) <= width


def test_tabs_and_line_ends_do_not_break_a_row() -> None:
    assert text.tsv([("a\tb", "c\nd", 1), ("", None, "x")]) == "a b\tc d\t1\n\tNone\tx\n"


def test_items_wrap_under_the_first() -> None:
    assert text.wrap("spec", ["aaaa", "bbbb", "cccc"], 20) == ["spec      aaaa  bbbb", "          cccc"]
    assert text.wrap("made by", ["a command that is longer than the line"], 20) == [
        "made by   a command that is longer than the line"
    ]


def test_blocks_stand_side_by_side_where_they_fit() -> None:
    left, right = ["made from", "  a"], ["used by", "  b", "  c"]
    assert text.beside(left, right, 19) == ["made from   used by", "  a           b", "              c"]
    assert text.beside(left, right, 18) == [*left, *right]
    assert text.beside([], right, 80) == right


def test_streams_that_cannot_show_our_signs_get_plain_ones() -> None:
    assert text.for_encoding("1.2 ±0.1 … ▁▇ ├ └ – γ", "utf-8") == "1.2 ±0.1 … ▁▇ ├ └ – γ"
    assert text.for_encoding("1.2 ±0.1 … ▁█ ├ └ –", "ascii").isascii()
    assert text.for_encoding("±", "latin-1") == "±"
    assert text.for_encoding("±", None) == "+-"
