"""Help screens: compact, complete, readable at any width; and what a mistyped option is answered with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.core import TyperCommand, TyperGroup

from adpa_cli.cli import commands
from adpa_cli.cli.console.app import Command, Group, declared, program
from adpa_cli.cli.console.help_screens import (
    EVERYWHERE,
    LINES,
    command_help,
    document,
    entry,
    first_sentence,
    group_help,
    split_default,
)
from support.cli_samples import Cli

GROUP: Any = program()
COMMANDS: dict[str, TyperCommand] = GROUP.commands


def make(function: Any) -> TyperCommand:
    """A function as a command of a program."""
    app = typer.Typer(cls=Group, rich_markup_mode=None)
    app.command("bake", cls=Command)(declared(function))
    app.command("other", cls=Command)(lambda: None)
    group: Any = typer.main.get_command(app)
    command: TyperCommand = group.commands["bake"]
    return command


def bake(
    what: Annotated[list[str], typer.Argument(metavar="CAKE…", help="Which ones.", show_default=False)],
    oven: Annotated[str | None, typer.Option("--oven", metavar="NAME", help="Where [required].")] = None,
    degrees: Annotated[int, typer.Option("--degrees", metavar="N", help="How hot.", rich_help_panel="How much")] = 180,
    fan: Annotated[bool, typer.Option("--fan", "-f", help="With [the] fan.", rich_help_panel="How much")] = False,
    secret: Annotated[bool, typer.Option("--secret", hidden=True)] = False,
) -> None:  # fmt: skip
    """Bake cakes, one after
    the other.

    Cakes rise.

    adpa bake apple --oven left     about an hour
    adpa bake - --oven x            in a pipe
    """


SCREEN = """\
Usage: adpa bake CAKE… --oven NAME [OPTIONS]
  Bake cakes, one after the other.
  Cakes rise.
  adpa bake apple --oven left   about an hour
  adpa bake - --oven x          in a pipe
What
  CAKE…        Which ones                         --oven NAME  Where [required]
How much
  --degrees N  How hot [180]                      -f --fan     With [the] fan
Everywhere:  --json  --store DIR  -q --quiet  -v --verbose  -h --help
Exit:  0 done  1 failed  2 usage  3 not found  4 busy  5 corrupt  75 run again  129/130/143 stopped"""

NARROW = """\
Usage: adpa bake CAKE… --oven NAME
       [OPTIONS]
  Bake cakes, one after the other.
  Cakes rise.
  adpa bake apple --oven left
  adpa bake - --oven x
What
  CAKE…
      Which ones
  --oven NAME
      Where [required]
How much
  --degrees N
      How hot [180]
  -f --fan
      With [the] fan
Everywhere:  --json  --store DIR
  -q --quiet  -v --verbose  -h --help
Exit:  0 done  1 failed  2 usage
  3 not found  4 busy  5 corrupt
  75 run again  129/130/143 stopped"""


def test_a_screen_is_what_was_drawn_by_hand() -> None:
    assert command_help(make(bake), "adpa bake", 100).splitlines() == SCREEN.splitlines()
    assert command_help(make(bake), "adpa bake", 40).splitlines() == NARROW.splitlines()


def test_more_than_a_screenful_names_the_obvious_without_a_word() -> None:
    def crowded(**values: Any) -> None:
        """Crowd."""

    names = [f"--option-{n}" for n in range(LINES)]
    crowded.__annotations__.clear()
    parameters = [
        Annotated[int | None, typer.Option(name, metavar="N", help=f"A long explanation of what {name} means. [7]",
                                                rich_help_panel="How much", show_default=False)]
        for name in names
    ]  # fmt: skip
    import inspect

    signature = inspect.Signature(
        [inspect.Parameter(f"o{n}", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=p)
         for n, p in enumerate(parameters)]
    )  # fmt: skip
    vars(crowded)["__signature__"] = signature
    screen = command_help(make(crowded), "adpa bake", 100)
    assert "explanation" not in screen
    assert all(f"{name} N [7]" in screen for name in names)
    assert len(screen.splitlines()) <= LINES


@pytest.mark.parametrize("width", [40, 80, 100, 200])
@pytest.mark.parametrize("name", COMMANDS)
def test_every_screen_names_every_option_within_the_width(name: str, width: int) -> None:
    command = COMMANDS[name]
    screen = command_help(command, f"adpa {name}", width)
    lines = screen.splitlines()
    assert lines[0].startswith(f"Usage: adpa {name} ")
    assert lines[-1].split()[-1] == "stopped"
    assert any(line.startswith(f"{EVERYWHERE}: ") for line in lines)
    words = screen.split()
    for param in command.params:
        assert param.param_type_name == "argument" or all(option in words for option in param.opts), param.opts
    assert [line for line in lines if len(line) > max(width, 40)] == []
    assert not any("<" in line and ">" in line for line in lines if line.startswith("  -"))
    if width >= 100:
        assert len(lines) <= LINES, f"adpa {name} --help has {len(lines)} lines"
        assert command_help(command, f"adpa {name}", 100) == screen


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_sentence_an_example_and_words_on_each_option(name: str) -> None:
    command = COMMANDS[name]
    sentence, _, examples = str(command.help).partition("\n\n")
    assert sentence.endswith(".")
    if command.params[0].name != "json":  # a command without anything of its own needs no example
        assert f"adpa {name}" in examples or f"$(adpa {name}" in examples
    told = [entry(param) for param in command.params]  # type: ignore[arg-type]  # which are Typer's own
    assert [e.names for e in told if not e.text and e.panel != EVERYWHERE] == []


@pytest.mark.parametrize("width", [40, 80, 100, 200])
def test_the_list_of_commands_has_four_panels_and_a_line_for_each(width: int) -> None:
    group: TyperGroup = GROUP
    lines = group_help(group, "adpa", width).splitlines()
    panels = [line for line in lines if line in commands.PANELS]
    assert panels == ["Build", "Look", "Use", "Keep"]
    listed = [line.split()[0] for line in lines if re.match(r"  \S", line) and line.split()[0] in COMMANDS]
    assert sorted(listed) == sorted(COMMANDS)
    assert max(map(len, lines)) <= max(width, 40)
    if width >= 100:
        assert len(lines) <= LINES


def test_help_goes_to_stdout_whatever_stands_around_it(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    screens = [cli("eval", "--help"), cli("eval", "-h"), cli("--json", "eval", "-q", "--help")]
    assert [(ran.code, ran.err) for ran in screens] == [(0, "")] * 3
    assert len({ran.out for ran in screens}) == 1
    assert "or lm-eval [the family's]" in screens[0].out
    assert cli().out == cli("--help").out == cli("-h").out


def test_brackets_at_the_end_are_the_default() -> None:
    assert split_default("Mass of the nucleus [1].") == ("Mass of the nucleus", "[1]")
    assert split_default("Step in nats [1/32]; 0 is exact.") == ("Step in nats [1/32]; 0 is exact", "")
    assert split_default("Plain.") == ("Plain", "")
    assert split_default("") == ("", "")
    assert first_sentence("Do this: or that.\n\nadpa x") == "Do this"
    assert first_sentence("Keep 1.5 of it, e.g. so.") == "Keep 1.5 of it, e.g. so"


def test_an_option_is_not_taken_for_the_value_of_another(cli: Cli) -> None:
    said = cli.refused(2, "distill", "--method", "adpa", "--student", "--teacher", "x")
    assert "--student has no value" in said
    assert "--student has no value" in cli.refused(2, "distill", "--method", "adpa", "--student")
    assert "adpa path --help" in cli.refused(2, "path")


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["distill", "--gamma", "3"], "--set gamma=3"),
        (["distill", "--gamma=0.5"], "--set gamma=0.5"),
        (["distill", "--gamma"], "--set gamma=…"),
        (["distill", "--length-norm", "true"], "--set length_norm=true"),
        (["distill", "--method", "adpa+", "--temperature", "1"], "--set rollout.temperature=1"),
        (["sft", "--warmup-ratio", "0.1"], "--set warmup_ratio=0.1"),
        (["sft", "--recompute", "true"], "--runtime recompute=true"),
        (["sft", "--modl", "x"], "--model"),
    ],
)
def test_a_setting_typed_as_an_option_is_told_how_to_be_set(cli: Cli, words: list[str], meant: str) -> None:
    assert f"did you mean {meant}" in cli.refused(2, *words)


def test_a_mistyped_command_is_told_the_nearest(cli: Cli) -> None:
    assert "did you mean adpa distill? " in cli.refused(2, "distil", "--method", "adpa")
    assert "did you mean" not in cli.refused(2, "xyzzy")
    assert "--set" not in cli.refused(2, "show", "--gamma", "3")


def test_docs_help_is_what_the_app_says() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "help.md").read_text(encoding="utf-8")
    assert page == document(GROUP, "adpa"), "run: python -m adpa_cli.cli.help > docs/help.md"
    assert all(f"\n## adpa {name}\n" in page for name in COMMANDS)
