"""The tested set of versions covers what is installed, on every platform, and comes from public indexes only."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT, TOOL = SETTINGS["project"], SETTINGS["tool"]
PINS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]


def test_every_direct_dependency_is_pinned_within_its_bounds() -> None:
    pinned = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in PINS}
    extras = [entry for extra in PROJECT["optional-dependencies"].values() for entry in extra]
    for entry in map(Requirement, [*PROJECT["dependencies"], *extras]):
        version = pinned.get(canonicalize_name(entry.name))
        assert version is not None, f"constraints.txt does not pin {entry.name}"
        assert entry.specifier.contains(version), f"{entry} refuses {version}"


def test_pins_are_exact_and_fit_every_build_of_torch() -> None:
    for pin in PINS:
        assert re.fullmatch(r"==[\w.]+", str(pin.specifier)), f"{pin} names a build or a range"
        assert not pin.name.startswith(("nvidia", "triton", "cuda")), f"{pin} exists on some platforms only"
    torch = next(pin for pin in PINS if pin.name == "torch")
    assert torch.specifier.contains("2.13.0+cpu")


def test_the_only_index_named_is_pytorch_s_own() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    texts = [path.read_text(encoding="utf-8") for path in [*pages, ROOT / "noxfile.py", ROOT / ".ci" / "run"]]
    urls = {url for text in texts for url in re.findall(r"(?i)index[-_]url[ =]+([^\s`\"]+)", text)}
    assert {url.rstrip(".") for url in urls} == {"https://download.pytorch.org/whl/cpu"}


def test_every_file_that_is_read_at_work_is_in_the_wheel() -> None:
    package = ROOT / "src" / "adpa_cli"
    named = TOOL["setuptools"]["package-data"]["adpa_cli"]
    taken = {path for pattern in named for path in package.glob(pattern)}
    there = {path for path in package.rglob("*.*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert {path.name for path in there} >= {"model.safetensors", "py.typed"}
    assert there == taken


def test_nobody_is_told_to_install_a_name_that_nobody_owns() -> None:
    """The project is not on the index: what is installed of it is a folder, with its extras by their own names."""
    places = [*ROOT.glob("*.md"), *ROOT.glob("*.toml"), *ROOT.glob("*.py"), ROOT / ".ci" / "run"]
    places += [
        path for folder in ("src/adpa_cli", "docs", "examples", "benchmarks") for path in ROOT.glob(f"{folder}/**/*.*")
    ]
    texts = [path.read_text(encoding="utf-8") for path in places if path.suffix in ("", ".py", ".md", ".toml")]
    installed = [words for text in texts for words in re.findall(r"pip install([^\n`&]*)", text)]
    assert len(installed) > 5
    assert [words for words in installed if "adpa" in words] == []
    extras = {name for words in installed for name in re.findall(r"\.\[([\w,-]+)\]", words)}
    assert extras <= {*PROJECT["optional-dependencies"]}
    assert "kernels" in extras
