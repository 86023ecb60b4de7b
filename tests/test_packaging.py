"""The tested set of versions covers what is installed, on every platform, and comes from public indexes only."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
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
