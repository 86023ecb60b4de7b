"""Sources: what a name means, every kind of file, splits of folders, and damaged input."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from adpa_cli.data import sources
from adpa_cli.data.sources import (
    Source,
    download,
    has_test,
    left_out,
    not_chosen,
    parse_source,
    parts,
    read_rows,
    source_files,
)
from adpa_cli.errors import AdpaError, DataError, NotFound, UsageError
from support.data_files import ROWS, write


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("d/x.jsonl.zst", Source("d/x.jsonl.zst", "file", Path("d/x.jsonl.zst"))),
        ("x.csv", Source("x.csv", "file", Path("x.csv"))),
        ("./d", Source("./d", "folder", Path("d"))),
        ("../d#test", Source("../d#test", "folder", Path("../d"), "test")),
        ("org/name", Source("org/name", "hub")),
        ("org/name@9f1c#test_prefs", Source("org/name#test_prefs", "hub", None, "test_prefs", "9f1c")),
        ("org/na.me-2@refs/pr/1", Source("org/na.me-2", "hub", None, None, "refs/pr/1")),
    ],
)
def test_a_name_means_one_thing(text, expected):
    assert parse_source(text) == expected


def test_home_is_expanded():
    assert parse_source("~/x.jsonl").path == Path.home() / "x.jsonl"
    assert parse_source("~/d#train") == Source("~/d#train", "folder", Path.home() / "d", "train")


@pytest.mark.parametrize(
    ("text", "error"), [("", UsageError), ("word", NotFound), ("a/b/c", NotFound), ("x.jsonl#test", UsageError)]
)
def test_what_means_nothing_is_refused_with_a_hint(text, error):
    with pytest.raises(error) as caught:
        parse_source(text)
    assert caught.value.hint


def test_a_file_of_an_unknown_kind_lists_the_known(tmp_path):
    (tmp_path / "rows.txt").write_text("x")
    with pytest.raises(DataError, match=r"rows\.txt is not a kind of file") as caught:
        parse_source(str(tmp_path / "rows.txt"))
    assert ".jsonl .ndjson .json .csv .tsv (also .gz, .zst) .parquet" in caught.value.hint


def test_rows_in_memory():
    source = Source("tiny", "rows", rows=tuple(ROWS))
    assert list(read_rows(source)) == [(1, ROWS[0]), (2, ROWS[1])]
    with pytest.raises(DataError, match="tiny has no rows"):
        list(read_rows(Source("tiny", "rows")))


def test_missing_files_and_folders_are_not_found(tmp_path):
    for text in (str(tmp_path / "r.jsonl"), str(tmp_path / "nowhere")):
        with pytest.raises(NotFound, match="does not exist"):
            list(read_rows(parse_source(text)))
    with pytest.raises(DataError, match="no data files"):
        list(read_rows(parse_source(str(tmp_path))))


def names(found):
    return [part.text for part in found]


def test_splits_of_a_downloaded_data_set(tmp_path):
    for split in ("train_prefs", "train_sft", "test_prefs", "test_sft", "train_gen"):
        write(tmp_path / "data" / f"{split}-00000-of-00001.parquet")
    (tmp_path / "dataset_infos.json").write_text("{}")
    write(tmp_path / ".cache" / "train.jsonl")
    write(tmp_path / "extra.jsonl")
    source = parse_source(str(tmp_path))
    assert has_test(source)
    assert names(parts(source, "train", "pairs")) == ["data/train_prefs-00000-of-00001.parquet"]
    assert names(parts(source, "test", "pairs")) == ["data/test_prefs-00000-of-00001.parquet"]
    assert names(parts(source, "train", "dialogues")) == ["data/train_sft-00000-of-00001.parquet"]
    assert source_files(source)[0] == ("data/test_prefs-00000-of-00001.parquet", "test_prefs")
    assert len(source_files(source)) == 5
    named = parse_source(f"{tmp_path}#train_sft")
    assert names(parts(named, "train", "pairs")) == ["data/train_sft-00000-of-00001.parquet"]
    assert names(parts(named, "test", "pairs")) == ["data/test_sft-00000-of-00001.parquet"]
    with pytest.raises(NotFound, match="no split called 'dev'") as caught:
        parts(parse_source(f"{tmp_path}#dev"))
    assert "#train_prefs" in caught.value.hint


def test_splits_by_folder_and_validation_as_test(tmp_path):
    write(tmp_path / "default" / "train" / "0000.parquet")
    write(tmp_path / "default" / "train" / "0001.parquet", ROWS[:1])
    write(tmp_path / "validation.jsonl.gz")
    source = parse_source(str(tmp_path))
    assert len(list(read_rows(source))) == 3
    assert names(parts(source, "test")) == ["validation.jsonl.gz"]


def test_files_without_split_names_all_belong(tmp_path):
    write(tmp_path / "b.jsonl")
    write(tmp_path / "a.jsonl")
    source = parse_source(str(tmp_path))
    assert not has_test(source)
    assert names(parts(source)) == ["a.jsonl", "b.jsonl"]


def test_splits_that_leave_a_choice_are_listed(tmp_path):
    for split in ("train_easy", "train_hard"):
        write(tmp_path / f"{split}.jsonl")
    with pytest.raises(DataError, match="its splits are: #train_easy, #train_hard"):
        parts(parse_source(str(tmp_path)))


def test_folders_written_by_the_datasets_library(tmp_path):
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list(ROWS)
    rows.save_to_disk(tmp_path / "one")
    DatasetDict({"train": rows, "test": rows.select([1])}).save_to_disk(tmp_path / "both")
    assert list(read_rows(parse_source(str(tmp_path / "one")))) == [(1, ROWS[0]), (2, ROWS[1])]
    both = parse_source(str(tmp_path / "both"))
    assert has_test(both)
    assert list(read_rows(both)) == [(1, ROWS[0]), (2, ROWS[1])]
    assert list(read_rows(parse_source(f"{tmp_path}/both#test"))) == [(1, ROWS[1])]


def test_a_hub_data_set_is_read_from_where_it_was_downloaded(tmp_path, monkeypatch):
    write(tmp_path / "train.jsonl")
    asked = []
    monkeypatch.setattr(sources, "download", lambda source, revision: asked.append((source.text, revision)) or tmp_path)
    assert len(list(read_rows(parse_source("org/name@9f1c")))) == 2
    assert asked == [("org/name", "9f1c")]


@pytest.mark.parametrize(
    ("kind", "error", "said"),
    [
        ("GatedRepoError", AdpaError, "gated"),
        ("RepositoryNotFoundError", NotFound, "the hub has no data set"),
        ("RevisionNotFoundError", NotFound, "no revision '9f1c'"),
        ("HfHubHTTPError", AdpaError, "the download of"),
    ],
)
def test_reasons_why_a_download_fails_are_told_apart(monkeypatch, kind, error, said):
    import huggingface_hub
    from huggingface_hub import errors

    def fail(*args, **options):
        refusal = getattr(errors, kind)
        raise refusal.__new__(refusal, "no")  # its __init__ wants a response of whichever HTTP library is in use

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(error, match=said) as caught:
        download(parse_source("org/name#train"), "9f1c")
    assert caught.value.hint
    assert type(caught.value) is error


def test_offline_a_data_set_that_was_never_fetched_says_so(tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(AdpaError, match="org/name is not on this machine, and the hub cannot be reached") as caught:
        list(read_rows(parse_source("org/name")))
    assert "tiny" in caught.value.hint


# Several configurations, one of them with splits whose names stand in no file.
TWO = """---
license: mit
configs:
- config_name: easy
  data_files:
  - split: train
    path: easy/a.jsonl
  - split: test
    path: "easy/b*.jsonl"
- config_name: hard
  data_files: hard/*.parquet
---
words
"""


def readme(folder: Path, text: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "README.md").write_text(text, encoding="utf-8")
    return folder


def configured(default: str, files: dict[str, str]) -> str:
    """The README.md of one configuration: split -> pattern."""
    listed = "".join(f"  - split: {split}\n    path: '{pattern}'\n" for split, pattern in files.items())
    return f"---\nconfigs:\n- config_name: {default}\n  data_files:\n{listed}---\n"


def two_configurations(folder: Path) -> Path:
    for name in ("easy/a.jsonl", "easy/b1.jsonl", "easy/b2.jsonl", "hard/train_1.parquet", "hard/2.parquet", "c.jsonl"):
        write(folder / name)
    return readme(folder, TWO)


def test_a_readme_says_which_files_are_which_split(tmp_path):
    for name in ("a.jsonl", "b.parquet", "left_out.jsonl"):
        write(tmp_path / name)
    readme(tmp_path, configured("default", {"train": "a.jsonl", "Held_out_test": "b.*"}))
    source = parse_source(str(tmp_path))
    assert source_files(source) == [("a.jsonl", "train"), ("b.parquet", "held_out_test")]
    assert names(parts(source)) == ["a.jsonl"]
    assert names(parts(parse_source(f"{tmp_path}#held_out_test"))) == ["b.parquet"]


def test_several_configurations_are_listed_unless_one_is_named_or_is_the_default(tmp_path):
    folder = two_configurations(tmp_path / "d")
    with pytest.raises(DataError, match=r"d has several configurations and no default: #easy, #hard$") as caught:
        parts(parse_source(str(folder)))
    assert caught.value.hint == f"name one: {folder}#easy"
    easy = parse_source(f"{folder}#easy")
    assert has_test(easy)
    assert names(parts(easy)) == ["easy/a.jsonl"]
    assert names(parts(easy, "test")) == ["easy/b1.jsonl", "easy/b2.jsonl"]
    test = parse_source(f"{folder}#easy/test")
    assert test.names_test
    assert len(list(read_rows(test))) == 4
    hard = parse_source(f"{folder}#hard")
    assert source_files(hard) == [("hard/2.parquet", "train"), ("hard/train_1.parquet", "train")]
    assert len(list(read_rows(hard))) == 4
    with pytest.raises(NotFound, match="no configuration called 'soft'") as missing:
        parts(parse_source(f"{folder}#soft/train"))
    assert "#easy, #hard" in missing.value.hint
    with pytest.raises(NotFound, match="no split called 'dev'") as missing:
        parts(parse_source(f"{folder}#easy/dev"))
    assert missing.value.hint == "its splits are: #easy/train, #easy/test"
    readme(folder, TWO.replace("config_name: hard", "config_name: hard\n  default: true"))
    assert source_files(parse_source(str(folder))) == source_files(hard)
    assert names(parts(parse_source(f"{folder}#easy"))) == ["easy/a.jsonl"]


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
         {"train": "data/train-*", "test": "data/test-*"}),
        (("train_prefs.jsonl", "train_sft.jsonl", "test_prefs.jsonl"), {"train": "train_*", "test": "test_*"}),
        (("train.jsonl", "dev.jsonl"), {"train": "train.jsonl", "validation": "dev.jsonl"}),
        (("a.jsonl", "b.jsonl"), {"train": "*.jsonl"}),
        (("x.parquet",), {"test": "x.parquet"}),
    ],
)  # fmt: skip
def test_a_readme_that_says_what_names_say_changes_nothing(tmp_path, files, splits):
    for name in files:
        write(tmp_path / name)
    plain = source_files(parse_source(str(tmp_path)))
    readme(tmp_path, configured("default", splits))
    assert source_files(parse_source(str(tmp_path))) == plain


@pytest.mark.parametrize(
    ("head", "said"),
    [
        ("configs: 3", "Expected configs to be a list"),
        ("configs:\n- data_files: a.jsonl", "config_name"),
        ("configs:\n- config_name: a\n  data_files: https://example.org/a.jsonl", "files that are elsewhere"),
        ("configs: [", "expected the node content"),
        ("configs:\n- config_name: a\n  data_files: none.jsonl", "the configuration a of .* has no data files"),
    ],
)
def test_a_readme_that_cannot_be_followed_is_named(tmp_path, head, said):
    write(tmp_path / "a.jsonl")
    readme(tmp_path, f"---\n{head}\n---\n")
    with pytest.raises(DataError, match=said) as caught:
        parts(parse_source(str(tmp_path)))
    assert str(tmp_path) in caught.value.message
    assert caught.value.hint


def test_a_readme_without_configurations_is_not_asked(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    write(tmp_path / "train.jsonl")
    readme(tmp_path, "---\nlicense: mit\n---\n# configs:\n\nconfigs: none\n")
    assert source_files(parse_source(str(tmp_path))) == [("train.jsonl", "train")]


def test_a_readme_may_name_the_files_of_one_split_whatever_they_are_called(tmp_path):
    for name in ("data/train.jsonl", "data/more_pairs.jsonl"):
        write(tmp_path / name)
    every = [("data/more_pairs.jsonl", "train"), ("data/train.jsonl", "train")]
    readme(tmp_path, configured("default", {"train": "data/*.jsonl"}))
    assert source_files(parse_source(str(tmp_path))) == every
    readme(tmp_path, "\ufeff---\nlicense: mit\ndata_files: data/*.jsonl\n---\nwords\n")
    assert source_files(parse_source(str(tmp_path))) == every
    readme(tmp_path, "---\ndata_files:\n- split: train\n  path: data/t*\n- split: test\n  path: data/m*\n---\n")
    assert source_files(parse_source(str(tmp_path))) == [(every[0][0], "test"), (every[1][0], "train")]
    assert left_out(parse_source(str(tmp_path))) == []


def test_a_configuration_may_be_a_folder(tmp_path):
    for name in ("en/a.jsonl", "fr/train.jsonl", "fr/test.jsonl"):
        write(tmp_path / name)
    readme(tmp_path, "---\nconfigs:\n- config_name: en\n  data_dir: en\n- config_name: fr\n  data_dir: fr\n---\n")
    assert names(parts(parse_source(f"{tmp_path}:en"))) == ["en/a.jsonl"]
    assert source_files(parse_source(f"{tmp_path}:fr")) == [("fr/test.jsonl", "test"), ("fr/train.jsonl", "train")]


def test_a_configuration_may_follow_a_colon(tmp_path):
    folder = two_configurations(tmp_path / "d")
    for typed, meant in (("easy", "easy"), ("easy#test", "easy/test"), ("hard", "hard")):
        assert parse_source(f"{folder}:{typed}") == parse_source(f"{folder}#{meant}")
    assert parse_source("org/name@9f1c:easy#test") == parse_source("org/name@9f1c#easy/test")
    assert parse_source("org/name:easy").text == "org/name#easy"
    with pytest.raises(NotFound, match="no configuration called 'soft'"):
        parts(parse_source(f"{folder}:soft/train".replace("/train", "#train")))
    with pytest.raises(UsageError, match="names a split, and a single file has none"):
        parse_source("rows.jsonl:easy")
    named = two_configurations(tmp_path / "d:easy")
    assert parse_source(str(named)).path == named
    write(tmp_path / "a:b.jsonl")
    assert parse_source(f"{tmp_path}/a:b.jsonl").kind == "file"


def test_files_that_no_split_names_are_said(tmp_path):
    from adpa_cli.data.preferences import load_pairs

    write(tmp_path / "data" / "train.jsonl")
    write(tmp_path / "data" / "more_pairs.jsonl")
    source = parse_source(str(tmp_path))
    assert left_out(source) == ["data/more_pairs.jsonl"]
    loaded = load_pairs([source])
    assert loaded.left_out == ("data/more_pairs.jsonl",)
    assert loaded.notes[-1] == "left out: files data/more_pairs.jsonl (no split is named after them)"
    folder = two_configurations(tmp_path / "two")
    assert left_out(parse_source(f"{folder}#easy")) == left_out(parse_source(f"{folder}#hard")) == ["c.jsonl"]
    for name in ("rows.jsonl", "data/train.jsonl"):
        assert left_out(parse_source(str(write(tmp_path / "plain" / name)))) == []


@pytest.mark.parametrize("name", ["more.jsonl.xz", "rows.txt", "data/x.xlsx", "old.zip", "train.feather"])
def test_files_of_kinds_that_are_not_read_are_said(tmp_path, name):
    from adpa_cli.data.preferences import load_pairs

    with_nothing = [tmp_path / other for other in ("README.txt", "LICENSE.txt", ".hidden.txt", "loader.py", "notes.md")]
    write(tmp_path / "rows.jsonl")
    write(tmp_path / name)
    for path in (*with_nothing, tmp_path / "dataset_infos.json"):
        path.write_text("{}")
    loaded = load_pairs([parse_source(str(tmp_path))])
    assert loaded.left_out == (name,)
    assert loaded.notes[-1].startswith(f"left out: files {name} (of no kind that is read: .jsonl .ndjson")
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(DataError, match=rf"no data files that can be read \(there is {name}\)"):
        parts(parse_source(str(tmp_path)))


def test_splits_and_configurations_that_are_not_chosen_are_said(tmp_path):
    from adpa_cli.data.preferences import load_pairs

    for split in ("train_prefs", "test_prefs", "train_sft", "test_sft"):
        write(tmp_path / "d" / f"{split}.jsonl")
    found = str(tmp_path / "d")
    assert not_chosen(parse_source(found), "pairs") == ["#test_sft", "#train_sft"]
    assert not_chosen(parse_source(found), "dialogues") == ["#test_prefs", "#train_prefs"]
    assert not_chosen(parse_source(f"{found}#train_sft"), "pairs") == []
    said = "not chosen: #test_sft, #train_sft (name one to use it)"
    assert load_pairs([parse_source(found)]).notes[-1] == said
    folder = two_configurations(tmp_path / "two")
    assert not_chosen(parse_source(f"{folder}#easy"), "pairs") == []


def test_a_folder_that_is_called_as_a_data_set_of_the_hub_is_told(tmp_path, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "d" / "plain" / "r.jsonl")
    with pytest.raises(AdpaError) as caught:
        list(read_rows(parse_source("d/plain")))
    assert caught.value.hint.startswith("write ./d/plain for the folder")
