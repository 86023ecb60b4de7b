"""What README and CONTRIBUTING tell a reader to type exists, and so does every file they name."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from adpa_cli.cli.console.app import program
from adpa_cli.cli.console.streams import take_globals

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = PAGES[0].read_text(encoding="utf-8")


def commands(text: str) -> Iterator[list[str]]:
    """The words of every simple command in the shell blocks of a page, those within `$( )` and pipes included.

    Of a console block only what stands after `$` is typed; `NAME=VALUE` before a command is left out.
    """
    for kind, block in re.findall(r"^```(bash|console)[^\n]*\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        if kind == "console":
            block = re.sub(r"\\\n *", "", block)
            block = "".join(f"{line[2:]}\n" for line in block.splitlines() if line.startswith("$ "))
        block = re.sub(r"^(\w+=\S+ )+(?=adpa )", "", block, flags=re.MULTILINE)
        for line in re.sub(r"\\\n", " ", re.sub(r"\|\n", "| ", block)).splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;()")
            lexer.whitespace_split = True
            words: list[str] = []
            for word in [*lexer, ";"]:
                if word and set(word) <= set("|&;()"):
                    if words:
                        yield words
                    words = []
                else:
                    words.append(word)


WRITTEN = [words for page in PAGES for words in commands(page.read_text(encoding="utf-8"))]
OURS = [words[1:] for words in WRITTEN if words[0] == "adpa" and "" not in words]


def parse(words: list[str]) -> None:
    """Read the words as `adpa` does, without running the command; KeyError or TyperException when it has no such."""
    name, *rest = take_globals(words)
    group = program()
    above = group.context_class(group, info_name="adpa", **group.context_settings)
    group.commands[name].make_context(name, rest, parent=above)


@pytest.mark.parametrize("words", OURS, ids=" ".join)
def test_adpa_takes_the_commands(words: list[str]) -> None:
    parse(words)


def test_commands_are_found_in_pipes_and_substitutions_and_refused_when_wrong() -> None:
    page = "```bash\nx=$(adpa sft --model tiny)  # why\nadpa rollout --student $x |\n  adpa show -\n```\n"
    assert list(commands(page)) == [
        ["x=$"],
        ["adpa", "sft", "--model", "tiny"],
        ["adpa", "rollout", "--student", "$x"],
        ["adpa", "show", "-"],
    ]
    assert len(OURS) >= 10
    with pytest.raises(typer.TyperException, match="--modle"):
        parse(["sft", "--modle", "tiny"])


def test_first_command_installs_the_tested_set_and_runs_everything() -> None:
    first = re.search(r"```bash\n(.*?)\n```", README)
    assert first is not None
    *setup, last = first[1].split(" && ")
    assert setup == ["python3 -m venv .venv", ". .venv/bin/activate", "pip install -c constraints.txt ."]
    assert last == "adpa distill --method adpa+ --student tiny"


def test_sessions_exist_and_ci_runs_the_tests_as_readme_does() -> None:
    tree = ast.parse((ROOT / "noxfile.py").read_text(encoding="utf-8"))
    sessions = {node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.decorator_list}
    asked = {name for words in WRITTEN if words[0] == "nox" for name in words[words.index("-s") + 1 :]}
    asked = {name for name in asked if not name.startswith(("-", "tests/"))}
    assert {"tests", "lint", "types", "quickstart", "bench"} <= asked <= sessions
    assert ["nox", "-s", "tests"] in list(commands(README))
    assert "\nnox -s tests" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = {link.partition("#")[0] for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link}
    assert [link for link in sorted(links - {""}) if not (page.parent / link).exists()] == []
    named = re.findall(r"(?:tests|benchmarks|docs|examples|src)/[\w/.-]+\.(?:py|md|sh)", text)
    assert [name for name in named if "NAME" not in name and "test_method_NAME" not in name
            if not (ROOT / name).exists()] == []  # fmt: skip


def file_map() -> dict[str, str]:
    """The paths of README's file map with their captions."""
    block = re.search(r"```text\n\.\n(.*?)```", README, re.DOTALL)
    assert block is not None
    folders: dict[int, str] = {-1: ""}
    found: dict[str, str] = {}
    for line in block[1].splitlines():
        found_line = re.fullmatch(r"([│ ]*)[├└]── (\S+) *(.*)", line)
        assert found_line is not None
        indent, name, caption = found_line.groups()
        depth = len(indent) // 4
        path = folders[depth - 1] + name
        folders[depth] = path
        found[path] = caption
    return found


def test_file_map_names_what_exists_and_every_part_of_the_package() -> None:
    named = file_map()
    assert [path for path in named if not (ROOT / path).exists()] == []
    package = ROOT / "src" / "adpa_cli"
    folders = {f"src/adpa_cli/{path.parent.relative_to(package)}/" for path in package.glob("*/**/*.py")}
    assert folders <= set(named)
    assert [path for path in folders if not named[path]] == [], "every folder has a caption"


def test_the_rewards_in_readme_are_those_at_equal_steps() -> None:
    number = r"([\d.]+)"
    words = (
        rf"ADPA\+ reaches a mean reward of {number}, DCKD alone {number}, and ADPA without [a-z ]* {number}\. .*"
        rf"teacher \({number}\) leads the student \({number}\), .* reference \({number}\)"
    )
    rows = ("ADPA+", "DCKD", "ADPA without reference", "Teacher", "Student", "Reference of the teacher")
    said = re.search(words, " ".join(README.split()))
    assert said is not None
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8").partition("## Equal steps")[2]
    for row, value in zip(rows, said.groups(), strict=True):
        line = re.search(rf"^\| {re.escape(row)} \|[^|]*\| ([\d.]+) ±", page, re.MULTILINE)
        assert line is not None
        assert line[1] == value, row
