"""Columns that are read under other names: `--columns`, tab-separated files, and names that are nearly right."""

import re
from pathlib import Path

import pytest

from adpa_cli.data.preferences import check_unused, load_dialogues, load_pairs
from adpa_cli.data.sources import columns_in, columns_off, parse_source, with_columns
from adpa_cli.errors import DataError, UsageError
from adpa_cli.hub.externals import Externals
from adpa_cli.store.store import Store
from support.data_files import write

ROWS = [{"question": f"why {n} ?", "good": f"so {n} .", "bad": f"no {n} ."} for n in range(12)]
NAMED = "prompt=question,chosen=good,rejected=bad"


def named(path: Path, columns: str = NAMED) -> str:
    return with_columns(str(path), columns)


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.csv", "pairs.tsv", "pairs.tsv.gz"])
def test_columns_are_read_under_other_names(tmp_path, name):
    plain = [{"prompt": row["question"], "chosen": row["good"], "rejected": row["bad"]} for row in ROWS]
    expected = load_pairs([parse_source(str(write(tmp_path / "a" / name, plain)))], "all").items
    assert load_pairs([parse_source(named(write(tmp_path / "b" / name, ROWS)))], "all").items == expected
    assert len(expected) == len(ROWS)


def test_a_column_that_has_the_name_is_replaced_and_a_file_of_such_a_name_is_itself(tmp_path):
    rows = [{**row, "prompt": "an id"} for row in ROWS]
    pairs = load_pairs([parse_source(named(write(tmp_path / "pairs.jsonl", rows)))], "all").items
    assert pairs[0].prompt[-1].content == "why 0 ?"
    odd = write(tmp_path / "odd?prompt=question", ROWS)
    assert columns_off(str(odd)) == (str(odd), "")


def test_a_column_that_is_not_there_is_named_beside_those_that_are(tmp_path):
    path = write(tmp_path / "pairs.jsonl", ROWS)
    with pytest.raises(DataError, match="has no column 'questoin'; its columns are: ") as raised:
        load_pairs([parse_source(named(path, "prompt=questoin"))])
    assert raised.value.hint == "did you mean question? --columns prompt=question"


def test_a_column_that_is_not_there_is_not_replaced_by_one_of_the_name_that_is_read(tmp_path):
    rows = [{"prompt": f"why {n} ?", "chosen": "so .", "rejected": "no ."} for n in range(3)]
    path = write(tmp_path / "pairs.jsonl", rows)
    with pytest.raises(DataError, match="has no column 'q'; its columns are: chosen, prompt, rejected"):
        load_pairs([parse_source(named(path, "prompt=q"))])


@pytest.mark.parametrize(
    "columns", ["prompt", "prompt=", "=question", "prompt=a,prompt=b", "prompt=a,chosen=a", "a=b,"]
)
def test_what_is_no_mapping_is_refused(columns):
    with pytest.raises(UsageError, match=re.escape(f"--columns {columns} ")):
        columns_in(columns)


def test_the_mapping_is_part_of_the_data_and_found_again(tmp_path):
    externals = Externals(Store(tmp_path / "store"))
    path = write(tmp_path / "pairs.jsonl", ROWS)
    plain, mapped = externals.data([str(path)]), externals.data([named(path)])
    other_order = externals.data([named(path, "rejected=bad, chosen=good,prompt=question")])
    assert plain.content != mapped.content == other_order.content
    assert externals.data_of(mapped.facts, mapped.content) == mapped
    assert externals.data_of(plain.facts, plain.content) == plain


def test_a_prompt_that_is_misspelt_is_no_metadata(tmp_path):
    """Both answers begin alike, so their shared beginning would be taken for the prompt."""
    rows = [{"promt": f"why {n} ?", "chosen": f"well so {n} .", "rejected": f"well no {n} ."} for n in range(3)]
    loaded = load_pairs([parse_source(str(write(tmp_path / "pairs.jsonl", rows)))], "all")
    with pytest.raises(DataError, match="the column promt holds 'why 0 \\?', and it would not be used") as raised:
        check_unused(loaded, ())
    assert raised.value.hint.startswith("to read promt as prompt, add --columns prompt=promt; ")
    check_unused(loaded, {"promt"})
    for row in rows:
        row["chosen"] = "so ."
    with pytest.raises(DataError, match="if promt is the prompt, add --columns prompt=promt"):
        load_pairs([parse_source(str(write(tmp_path / "pairs.jsonl", rows)))], "all")


def test_dialogues_may_have_other_names_too(tmp_path):
    path = write(tmp_path / "said.jsonl", ROWS)
    loaded = load_dialogues([parse_source(named(path, "prompt=question,completion=good"))], "all")
    assert [turn.content for turn in loaded.items[0].messages] == ["why 0 ?", "so 0 ."]


def test_files_with_different_columns_have_their_names_behind_each(tmp_path):
    rows = [{"prompt": f"how {n} ?", "chosen": "so .", "rejected": "no ."} for n in range(3)]
    one, other = write(tmp_path / "a.jsonl", ROWS), write(tmp_path / "b.jsonl", rows)
    loaded = load_pairs([parse_source(f"{one}?{NAMED}"), parse_source(str(other))], "all")
    assert [pair.prompt[-1].content for pair in loaded.items] == [f"why {n} ?" for n in range(12)] + [
        f"how {n} ?" for n in range(3)
    ]
