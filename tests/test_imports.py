"""Who may import whom, what the package depends on, and which commands must answer without the slow libraries."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from adpa_cli.cli import commands
from support.cli_samples import Pipeline
from support.store_samples import new_store, place, recipe

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src"
PACKAGE = SRC / "adpa_cli"
MODULES = sorted(PACKAGE.rglob("*.py"))

GROUND = ("errors", "coerce", "machine", "families", "spec", "sizes", "disk", "statistics", "endpoint")
# Imports go strictly down; units on one floor do not know each other. The longest name that fits a module counts.
FLOORS = {
    **dict.fromkeys(("adpa_cli", *(f"adpa_cli.{name}" for name in GROUND)), 0),
    "adpa_cli.tensors": 1, "adpa_cli.signal": 1, "adpa_cli.data": 1, "adpa_cli.store": 1,
    "adpa_cli.lab": 1, "adpa_cli.hub": 2, "adpa_cli.methods": 2, "adpa_cli.judges": 2,
    "adpa_cli.engine": 3, "adpa_cli.lab.pretrain": 4,
    "adpa_cli.suites": 4, "adpa_cli.stages": 5,
    "adpa_cli.planning": 6, "adpa_cli.estimate": 7,
    "adpa_cli.running": 8, "adpa_cli.interchange": 8, "adpa_cli.report": 8,
    "adpa_cli.cli": 9, "adpa_cli.__main__": 10,
}  # fmt: skip
SLOW = ["torch", "transformers", "datasets", "accelerate"]
WITHOUT_TORCH = (
    *(f"{name}.py" for name in GROUND), "store", "signal", "report", "methods/__init__.py",
)  # fmt: skip
DISTRIBUTIONS = {"huggingface_hub": "huggingface-hub", "yaml": "pyyaml"}  # where the import has another name
WITH_TORCH = {"triton"}  # what PyTorch brings along on some machines, and the package does without on others


def name_of(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, full name) of everything a file imports, in function bodies and for type checkers too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: imports are absolute"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def unit(name: str) -> str:
    """The entry of the floor table that a module, or a name in it, belongs to."""
    known = [entry for entry in FLOORS if f"{name}.".startswith(f"{entry}.")]
    return max(known, key=len)


def allowed(importer: str, imported: str) -> bool:
    if importer == imported or FLOORS[imported] == FLOORS[importer] == 0:
        return True
    if importer == "adpa_cli.methods" and FLOORS[imported] == 1:
        return imported == "adpa_cli.tensors"
    return FLOORS[imported] < FLOORS[importer]


def test_every_folder_has_its_floor() -> None:
    homeless = [name_of(path) for path in MODULES if unit(name_of(path)) == "adpa_cli" != name_of(path)]
    assert homeless == []


def test_imports_go_strictly_down() -> None:
    upward = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in MODULES
        for line, name in imports(path)
        if name.startswith("adpa_cli.") and not allowed(unit(name_of(path)), unit(name))
    ]
    assert upward == []


def test_no_module_imports_one_that_imports_it() -> None:
    """Directly or through others, in function bodies too; what a folder lists is not imported by name."""
    modules = {name_of(path) for path in MODULES}
    beneath = {
        name_of(path): {
            module
            for _, name in imports(path)
            if (module := name if name in modules else name.rpartition(".")[0]) in modules - {name_of(path)}
        }
        for path in MODULES
    }
    assert beneath["adpa_cli.cli.main"]
    assert cycle_in(beneath) == []
    assert cycle_in({**beneath, "adpa_cli.errors": {"adpa_cli.cli.main"}})[0] in beneath


def cycle_in(beneath: Mapping[str, set[str]]) -> list[str]:
    """Modules that lead to each other; empty where none do."""
    left = {name: set(others) for name, others in beneath.items()}
    while ends := {name for name, others in left.items() if not others & left.keys()}:
        left = {name: others for name, others in left.items() if name not in ends}
    return sorted(left)


def test_the_floor_rule_itself() -> None:
    assert allowed("adpa_cli.stages", "adpa_cli.store")
    assert allowed("adpa_cli.methods", "adpa_cli.tensors")
    assert not allowed("adpa_cli.methods", "adpa_cli.signal")
    assert not allowed("adpa_cli.store", "adpa_cli.signal")
    assert allowed("adpa_cli.report", "adpa_cli.stages")
    assert not allowed("adpa_cli.report", "adpa_cli.running")
    assert not allowed("adpa_cli.tensors", "adpa_cli.engine")
    assert unit("adpa_cli.lab.pretrain.main") == "adpa_cli.lab.pretrain"
    assert unit("adpa_cli.lab.world") == "adpa_cli.lab"


def test_the_lower_floors_never_import_torch() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for path in MODULES
        if path.relative_to(PACKAGE).as_posix().startswith(WITHOUT_TORCH)
        for line, name in imports(path)
        if name.partition(".")[0] in SLOW and not _for_types(path, line)
    ]
    assert found == []


def _for_types(path: Path, line: int) -> bool:
    """Whether a line stands below `if TYPE_CHECKING:`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING"]
    return any(block.lineno <= line <= (block.end_lineno or 0) for block in blocks)


def test_dependencies_are_what_the_package_imports() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = {re.split(r"[\s<>=!~;\[]", entry)[0] for entry in project["dependencies"]}
    tops = {name.partition(".")[0] for path in MODULES for _, name in imports(path)}
    outside = tops - set(sys.stdlib_module_names) - WITH_TORCH - {"adpa_cli"}
    assert {DISTRIBUTIONS.get(name, name) for name in outside} == declared


PROGRAM = """
import json, sys
blocked, commands = json.loads(sys.argv[1])
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in blocked:
            raise ImportError(f"{name} is imported")
sys.meta_path.insert(0, Block())
from adpa_cli.cli.main import main
for words in commands:
    if code := main(words):
        sys.exit(f"{words} exits with {code}")
"""


def run_without(blocked: Sequence[str], commands: Sequence[Sequence[str]], folder: Path) -> str:
    """The stdout of some commands in one new process, in which importing a blocked library fails."""
    argv = [sys.executable, "-c", PROGRAM, json.dumps([blocked, commands])]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_help_and_every_look_at_500_artifacts_does_without_slow_libraries(tmp_path: Path) -> None:
    store = new_store(tmp_path)
    for n in range(500):
        last = place(store, recipe(n=n), float(n))
    names = list(commands.every())
    helps = [["--help"], *([name, "--help"] for name in names)]
    looks = [
        ["show", "--all"],
        ["show", "--json"],
        ["show", last.ref],
        ["path", last.ref],
        ["tag"],
        ["gc", "-n"],
        ["env"],
        ["methods"],
        ["models"],
    ]
    out = run_without([*SLOW, "pyarrow", "numpy"], [*helps, *looks], tmp_path)
    assert all(f"Usage: adpa {name} " in out for name in names)
    assert out.count("\nsft/") >= 500


def test_a_plan_is_made_without_slow_libraries(tmp_path: Path) -> None:
    plan = run_without(SLOW, [["distill", "--method", "adpa+", "--student", "tiny", "--dry-run"]], tmp_path)
    assert [line.split("\t")[1] for line in plan.splitlines()] == ["build"] * len(plan.splitlines())
    assert "dpo-teacher/" in plan


def test_a_report_and_the_page_of_a_row_are_made_without_slow_libraries(pipeline: Pipeline, tmp_path: Path) -> None:
    model, signal = pipeline.made("distill adpa"), pipeline.made("signal #1")
    run_without(SLOW, [["report", model], ["show", signal, "--row", "1", "--html", "row.html"]], tmp_path)
    assert (tmp_path / "report.html").is_file()


def test_a_blocked_library_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="typer is imported"):
        run_without(["typer"], [["--help"]], tmp_path)
