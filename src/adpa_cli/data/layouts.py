"""Which files of a folder, or of a data set of the hub, serve which split and configuration.

Both may have a README.md that lists configurations. It says which files are which split, and the datasets library reads
it. Without one, the names of files and folders tell the splits. That rule is our own: the library's would leave
`data/train.jsonl` out beside `data/test-00000-of-00001.parquet`, and would put `train_prefs` and `train_sft` into one
split.
"""

from __future__ import annotations

import functools
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from adpa_cli.data.files import EXTENSIONS, KNOWN, OTHER_DATA, quiet_datasets
from adpa_cli.errors import DataError

SPLIT_NAME = re.compile(r"(?:^|[_.\-])(train|test|validation|valid|val|eval|dev)(_[a-z]+)?(?=$|[_.\-])", re.IGNORECASE)
README = "README.md"
CONFIGURED = re.compile(r"\A\ufeff?---\s*\n(?:(?!---).*\n)*?(configs|data_files):")
"""The head of a README.md that lists configurations, or the files of the only one."""
ABOUT_DATA = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
"""What the datasets library writes beside data, which holds none. Named here so that a plan need not import it."""
NO_DATA = {"readme", "license", "licence", "notice", "requirements", "changelog", "citation", "authors", "copying"}
"""What texts beside data are called that hold none."""
SHOWN_FILES = 5
Layout = Mapping[str, Any]
"""{"default": configuration or None, "configs": {configuration: {split: names of files}}}, as JSON. A folder without
configurations has one that is called ""; files that no split is named after are in the split "". `look` adds
"left_out", the names of data files that are in no split, or of a kind that is not read."""
Ask = Callable[[tuple[str, ...], str], Layout]


def layout_of(folder: Path, ask: Ask | None = None) -> Layout:
    """The layout of a folder. Raises DataError where it has no data files, or its README.md cannot be followed."""
    paths = (path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())
    return look(paths, readme_in(folder), str(folder), ask)


def readme_in(folder: Path) -> str:
    """The text of the README.md of a folder; "" without one."""
    path = folder / README
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def look(names: Iterable[PurePath], readme: str, where: str, ask: Ask | None = None) -> Layout:
    """The layout of files that are called `names`, under a README.md of that text.

    `ask` is how the datasets library is asked, which takes time: an answer depends on the two arguments only. Raises as
    `layout_of`; `where` is said in errors.
    """
    listed = sorted(names)
    data = [name for name in listed if holds_data(name)]
    others = [name.as_posix() for name in listed if may_hold_data(name)]
    if not data:
        there = f" that can be read (there is {', '.join(others[:SHOWN_FILES])})" if others else ""
        raise DataError(f"{where} has no data files{there}", f"use one of these kinds: {KNOWN} .arrow")
    every = tuple(name.as_posix() for name in data)
    if CONFIGURED.match(readme) is None:
        return _with_left_out({"default": "", "configs": {"": _by_name(data)}}, (*every, *others))
    try:
        return _with_left_out((ask or ask_datasets)(every, readme), (*every, *others))
    except (ValueError, TypeError, AttributeError, OSError) as error:
        hint = "mend the configs in its head, or name files instead of the folder"
        raise DataError(f"{where}/{README}: {' '.join(str(error).split())}", hint) from error


def _with_left_out(layout: Layout, names: Iterable[str]) -> Layout:
    named = {name for splits in layout["configs"].values() for files in splits.values() for name in files}
    return {**layout, "left_out": [name for name in names if name not in named]}


def split_name(path: PurePath) -> str:
    """`data/train_prefs-00000-of-00001.parquet` and `train_prefs/0.parquet` -> "train_prefs"; "" when none."""
    for part in reversed(path.parts):
        if match := SPLIT_NAME.search(part.split(".")[0]):
            return match[0].lstrip("_.-").lower()
    return ""


def holds_data(path: PurePath) -> bool:
    """Whether a file inside a folder or a data set is one of data, by its name."""
    visible = not path.is_absolute() and not any(part.startswith(".") for part in path.parts)
    return visible and path.name.lower().endswith((*EXTENSIONS, ".arrow")) and path.name not in ABOUT_DATA


def may_hold_data(path: PurePath) -> bool:
    """Whether a visible file looks like one of data by its ending, though it is of a kind that is not read."""
    is_visible = not path.is_absolute() and not any(part.startswith(".") for part in path.parts)
    ending = path.name.lower().endswith(OTHER_DATA) and not path.name.lower().endswith(EXTENSIONS)
    return is_visible and ending and path.name.partition(".")[0].lower() not in NO_DATA


def is_test(split: str) -> bool:
    """Whether a split's name says that nothing is trained on it."""
    return not split.startswith("train") and SPLIT_NAME.match(split) is not None


@functools.lru_cache(maxsize=32)
def ask_datasets(names: tuple[str, ...], readme: str) -> Layout:
    """The layout that the head of a README.md gives to files of these names. Raises ValueError, TypeError, OSError."""
    default, entries = _configurations(readme)
    given = _divided(names, entries)
    layouts = {
        config: _named({split: [path for path in paths if holds_data(path)] for split, paths in splits.items()})
        for config, splits in given.items()
    }
    return {"default": default, "configs": layouts}


def split_files(names: Sequence[str], readme: str, data_files: Any = None, data_dir: str = "") -> Layout:
    """The layout that the datasets library itself gives to files of these names: by the head of a README.md, by the
    patterns `data_files`, or by its own rule. Raises as `ask_datasets`.
    """
    default, entries = _configurations(readme) if data_files is None and not data_dir else (None, {})
    if not entries:
        chosen = {} if data_files is None else {"data_files": data_files}
        default, entries = "default", {"default": {**chosen, "data_dir": data_dir}}
    layouts = {
        config: {split: [path.as_posix() for path in paths] for split, paths in splits.items()}
        for config, splits in _divided(names, entries).items()
    }
    return {"default": default, "configs": layouts}


def _configurations(readme: str) -> tuple[str | None, Mapping[str, Mapping[str, Any]]]:
    """(the default one, what is said of each) of the configurations in the head of a README.md."""
    quiet_datasets()
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCard
    from yaml import YAMLError

    try:
        card = DatasetCard(readme.removeprefix("\ufeff")).data
        if (files := card.get("data_files")) and not card.get("configs"):
            card["configs"] = [{"config_name": "default", "data_files": files}]
        configs = MetadataConfigs.from_dataset_card_data(card)
    except YAMLError as error:
        raise ValueError(str(error)) from error
    return configs.get_default_config_name(), configs


def _divided(
    names: Sequence[str], configs: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, list[Path]]]:  # fmt: skip
    """The files of each split of each configuration.

    The library looks for files on a disk, and those of a hub are not here yet: an empty file stands for each.
    """
    quiet_datasets()
    from datasets.data_files import DataFilesDict, get_data_patterns, sanitize_patterns

    layouts: dict[str, dict[str, list[Path]]] = {}
    with tempfile.TemporaryDirectory() as place:
        root = Path(place).resolve()
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).touch()
        for config, entry in configs.items():
            base = str(root / entry.get("data_dir", ""))
            try:
                wanted = sanitize_patterns(entry["data_files"]) if "data_files" in entry else get_data_patterns(base)
                if any("://" in str(pattern) for patterns in wanted.values() for pattern in patterns):
                    raise ValueError(f"the configuration {config} has files that are elsewhere")
                given = DataFilesDict.from_patterns(wanted, base_path=base)
            except FileNotFoundError:  # as when another configuration is here only
                given = {}
            layouts[config] = {str(s): [Path(path).relative_to(root) for path in paths] for s, paths in given.items()}
    return layouts


def _by_name(paths: Iterable[PurePath]) -> dict[str, list[str]]:
    """Names by the split that they tell; where some tell one, files that do not are left out."""
    splits: dict[str, list[str]] = {}
    for path in paths:
        splits.setdefault(split_name(path), []).append(path.as_posix())
    if len(splits) > 1:
        splits.pop("", None)
    return splits


def _named(given: Mapping[str, Sequence[PurePath]]) -> dict[str, list[str]]:
    """The splits of a README.md under the names that files have by themselves, as far as both divide them alike.

    So data that are described keep the ids that they have by the names of their files, and a split `train` of files
    called train_prefs and train_sft is still two.
    """
    names_of = {split: {split_name(path) for path in paths} for split, paths in given.items() if paths}
    if list(names_of.values()) == [{""}]:
        return _by_name(sorted(path for paths in given.values() for path in paths))
    splits: dict[str, list[str]] = {}
    for split, names in names_of.items():
        others = set().union(*(other for key, other in names_of.items() if key != split))
        alike = "" not in names and not names & others and all(is_test(name) == is_test(split) for name in names)
        for path in sorted(given[split]):
            splits.setdefault(split_name(path) if alike else split.lower(), []).append(path.as_posix())
    return splits
