"""What a mistyped command line is answered with: what was typed, what is allowed, and the nearest thing that works.

An answer is only given where it fits: the same word in another spelling, what other tools call the thing, the option
that has the same role here, or a word that differs by a letter or two. Else the help screen is named.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from itertools import pairwise
from typing import Any

from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption
from typer.exceptions import TyperException

from adpa_cli.cli import commands
from adpa_cli.cli.console.help_screens import entry
from adpa_cli.cli.console.options import FETCH, SHARED
from adpa_cli.cli.console.streams import command_line
from adpa_cli.errors import UsageError

NEAR = 0.75
"""The least likeness of a word that is suggested for another: a letter or two of a usual word."""
ELSEWHERE: Mapping[str, Sequence[str]] = {
    "--lr": ("--learning-rate", "--learningrate"),
    "--epochs": ("--num-train-epochs", "--num-epochs", "--n-epochs"),
    "--batch-size": ("--bs", "--batchsize", "--train-batch-size", "--per-device-train-batch-size"),
    "--max-steps": ("--steps", "--num-steps", "--max-train-steps", "--num-train-steps"),
    "--limit": ("--max-samples", "--num-samples", "--max-train-samples", "--n-rows"),
    "--seed": ("--random-seed", "--random-state"),
    "--data": ("--dataset", "--dataset-name", "--datasets", "--train-data", "--train-file", "--input", "--prompts"),
    "--gpus": ("--gpu", "--num-gpus", "--num-processes", "--nproc-per-node", "--devices", "--device", "--n-gpus"),
    "--tag": ("--name", "--run-name", "--label"),
    "--method": ("--loss", "--loss-type", "--algorithm", "--objective"),
    "--top-k": ("--topk", "--k"),
    "--temperature": ("--temp",),
    "--max-new-tokens": ("--max-tokens", "--max-gen-tokens"),
    "--judge-url": ("--api-base", "--endpoint"),
    "--base-url": ("--vllm-url", "--server", "--vllm-server-base-url"),
    "--dry-run": ("--preview", "--plan", "--just-print"),
    "--yes": ("--assume-yes", "--no-confirm"),
    "--suite": ("--benchmark", "--benchmarks", "--metric"),
    "--against": ("--baseline", "--versus", "--vs"),
    "--to": ("--output", "--output-dir", "--out", "-o", "--output-file"),
    "--store": ("--output", "--output-dir", "--out", "-o", "--save-dir", "--cache-dir"),
    "--template": ("--chat-template",),
    "--student": ("--student-model",),
    "--teacher": ("--teacher-model",),
    "--reference": ("--ref-model", "--ref", "--reference-model", "--ref-model-name-or-path"),
    "--rows": ("--head", "--n", "--num-rows"),
    "--verbose": ("--debug",),
    "--quiet": ("--silent",),
    "--force": ("--overwrite",),
}
"""What other tools call an option of ours."""
MODELS = ("model", "student", "teacher", "reference", "base", "pretrained", "checkpoint")
"""Words in the name of an option that asks for a model."""
SETTINGS: Mapping[str, str] = {
    "--bf16": "dtype=bfloat16", "--fp16": "dtype=float16", "--fp32": "dtype=float32", "--use-peft": "lora=16",
    "--lora-r": "lora=16", "--lora-rank": "lora=16", "--load-in-4bit": "quantise=nf4",
    "--load-in-8bit": "quantise=int8", "--qlora": "quantise=nf4", "--max-grad-norm": "clip=1.0",
    "--warmup": "warmup_ratio=0.1",
}  # fmt: skip
"""What other tools call a setting of ours, as it is written here."""
RESUMING = ("--resume", "--continue", "--resume-from-checkpoint", "--resume-from")


def unknown_command(word: str, rest: Sequence[str], program: TyperGroup) -> UsageError:
    """The error for a word that is no command, with the command that does what was meant."""
    meant = _command_for(word, rest, program.commands)
    return UsageError(f"adpa has no command {word!r}", _hint(meant, "adpa"))


def _hint(meant: str, path: str) -> str:
    """What was probably meant, and where everything is listed."""
    return f"did you mean {meant}? Otherwise see {path} --help" if meant else f"{path} --help"


def _command_for(word: str, rest: Sequence[str], known: Mapping[str, Any]) -> str:
    """The command line that a word stands for, or ""."""
    from adpa_cli import methods, suites
    from adpa_cli.families import CHAINS
    from adpa_cli.stages.training import DISTILL

    plain = word.lower().replace("_", "-")
    if plain == "help":
        return command_line([*[name for name in rest if name in known][:1], "--help"])
    if plain == "version":
        return "adpa --version"
    if plain in known:
        return f"adpa {plain}"
    if named := next((name for name, one in commands.every().items() if plain in one.also), ""):
        return f"adpa {named}"
    if plain in (*methods.names(), *CHAINS):
        return f"adpa {DISTILL.name} --method {plain} --student MODEL"
    if plain in suites.every():
        return f"adpa eval REF --suite {plain}"
    if plain.endswith(".toml"):
        return command_line(["run", word])
    return " or ".join(f"adpa {name}" for name in get_close_matches(plain, known, n=2, cutoff=NEAR))


def usage_error(error: TyperException, words: Sequence[str], program: TyperGroup) -> UsageError:
    """An error of the command line's parser in our words: the option, the value given, what is allowed."""
    command = _command_of(error, words, program)
    path = f"adpa {command.name}" if isinstance(command, TyperCommand) else "adpa"
    all_of = f"all options: {path} --help"
    typed, message = str(getattr(error, "option_name", "") or ""), str(error)
    if typed:
        if "does not take a value" in message:
            return UsageError(f"{typed} takes no value", f"write {typed} alone")
        if typed in _options(command):
            return UsageError(f"{typed} has no value", f"write {_options(command)[typed]}; {all_of}")
        others = [name for name, one in program.commands.items() if one is not command and typed in _options_of(one)]
        return _unknown_option(command, path, _as_typed(typed, words), words, others)
    parameter = getattr(error, "param", None)
    if isinstance(parameter, TyperOption | TyperArgument):
        return _wrong_value(parameter, message, path, words)
    if extra := re.search(r"unexpected extra argument\S* \((.*)\)", message):
        before = words[: words.index(first)] if (first := extra[1].split()[0]) in words else words
        repeat = "an option takes one value, so repeat it for each (--data A --data B); "
        has_option = any(word.startswith("-") for word in before)
        return UsageError(f"{path} does not take {extra[1]!r}", repeat * has_option + all_of)
    return UsageError(message, all_of)


def _command_of(error: TyperException, words: Sequence[str], program: TyperGroup) -> TyperCommand | TyperGroup:
    """The command whose line could not be read; the parser does not always say it."""
    if (ctx := getattr(error, "ctx", None)) is not None:
        found: TyperCommand | TyperGroup = ctx.command
        return found
    every: Mapping[str, Any] = program.commands
    return next((every[word] for word in words if word in every), program)


def _options(command: TyperCommand | TyperGroup) -> dict[str, str]:
    """Every option of a command, by each of its names, with its metavar as a usage line has it."""
    options = (param for param in command.params if isinstance(param, TyperOption))
    return {name: _with_metavar(name, param) for param in options for name in param.opts}


def _with_metavar(name: str, param: TyperOption) -> str:
    return name if param.is_flag else f"{name} {entry(param).names.split()[-1]}"


def _as_typed(option: str, words: Sequence[str]) -> str:
    """The word that was typed where the parser names the first letter of it, as of `-method`."""
    is_letter = len(option) == 2 and option.startswith("-")
    return next((word for word in words if is_letter and re.match(r"-[A-Za-z][\w-]+$", word)), option)


def _wrong_value(
    parameter: TyperOption | TyperArgument, message: str, path: str, words: Sequence[str]
) -> UsageError:  # fmt: skip
    """A value that is missing, no number, or none of those that are allowed."""
    told = entry(parameter)
    name = told.usage if isinstance(parameter, TyperArgument) else parameter.opts[0]
    value = _value(parameter, words)
    choices = re.findall(r"'([^']*)'", message.partition("is not one of")[2])
    if message.startswith("Missing") or not message:
        meaning = f": {told.text[0].lower()}{told.text[1:]}" if told.text else ""
        return UsageError(f"{path} needs {told.usage}{meaning}", f"all options: {path} --help")
    if choices:
        close = near(value, choices)
        return UsageError(
            f"{name} must be one of {', '.join(choices)}; got {value}", _hint(f"{name} {close}" if close else "", path)
        )
    kind = {"integer": "a whole number", "number": "a number"}
    allowed = next((text for word, text in kind.items() if f"valid {word}" in message), "")
    if bound := re.search(r"greater than or equal to (\S+)", message):
        allowed = f"{bound[1]} or more"
    return UsageError(f"{name} must be {allowed or 'another value'}; got {value}", f"{path} {told.usage}")


def _value(parameter: TyperOption | TyperArgument, words: Sequence[str]) -> str:
    """What was typed for a parameter: the last value where it is repeated."""
    found = [after for word, after in pairwise([*words, ""]) if word in parameter.opts]
    joined = [word.partition("=")[2] for word in words if word.partition("=")[0] in parameter.opts and "=" in word]
    return (found + joined or [""])[-1]


def _unknown_option(
    command: TyperCommand | TyperGroup, path: str, typed: str, words: Sequence[str], others: Sequence[str]
) -> UsageError:  # fmt: skip
    """The error for an option that a command does not have, but `others` may; `--gamma 3` is answered with how
    parameters are set."""
    meant = _option_for(command, typed, words, bool(others))
    if typed.lower() in RESUMING:
        hint = "type the same command again: it continues where it stopped"
    elif meant:
        hint = _hint(meant, path)
    elif typed == FETCH:
        hint = command_line(["plan", *words])
    elif others:
        named = [f"adpa {name}" for name in others]
        those = " and ".join(named) if len(named) < 3 else f"{', '.join(named[:2])} and others"
        hint = f"{those} {'has' if len(others) == 1 else 'have'} this option; {path} --help lists what {path} has"
    else:
        hint = f"{path} --help"
    return UsageError(f"{path} has no option {typed}", hint)


def _option_for(
    command: TyperCommand | TyperGroup, typed: str, words: Sequence[str], is_elsewhere: bool
) -> str:  # fmt: skip
    """The option, with the value that was typed, that stands for one that a command lacks; "" for none.

    One that `is_elsewhere` is no slip of another.
    """
    own = _options(command)
    value = _value_after(typed, words)
    plain = "--" + typed.lower().lstrip("-").replace("_", "-")
    takes = [name for name, others in ELSEWHERE.items() if plain in others or typed in others]
    alike = next((name for name in (plain, *takes) if name in own), "")
    if not alike and command.name:
        parameters = {str(param.name) for param in command.params}
        if plain in SETTINGS and "sets" in parameters:
            return f"--set {SETTINGS[plain]}"
        if setting := _as_setting(str(command.name), plain, value, parameters):
            return setting
    if not alike and any(word in MODELS for word in plain.strip("-").split("-")):
        alike = _model_parameter(command)
    if not alike and not is_elsewhere:
        alike = near(plain, own)
    if not alike.startswith("-"):
        return alike.replace("REF…", value or "REF…")
    return own[alike] if not value or own[alike] == alike else command_line([alike, value]).removeprefix("adpa ")


def _model_parameter(command: TyperCommand | TyperGroup) -> str:
    """What names the model that a command is about: its first option that must be there, or its arguments."""
    told = [entry(param) for param in command.params if isinstance(param, TyperOption | TyperArgument)]
    needed = [one for one in told if one.default == "[required]"]
    options = [one.usage.split()[0] for one in needed if one.names.endswith(" MODEL")]
    arguments = [f"adpa {command.name} {one.usage}" for one in needed if one.usage.startswith("REF")]
    return next(iter([*options, *arguments]), "")


def _options_of(command: Any) -> set[str]:
    return {name for param in command.params for name in param.opts}


def near(word: str, known: Iterable[str]) -> str:
    """The known word that another is a slip of, whatever its case; "" where none is near."""
    by_plain = {name.lower(): name for name in known}
    close = get_close_matches(word.lower(), by_plain, n=1, cutoff=NEAR)
    return by_plain[close[0]] if close else ""


def _value_after(option: str, words: Sequence[str]) -> str:
    """The value that was typed behind an option, or ""."""
    at = next((n for n, word in enumerate(words) if word.partition("=")[0] == option), len(words))
    typed, _, value = words[at].partition("=") if at < len(words) else (option, "", "")
    if typed == option and not value and at + 1 < len(words) and not words[at + 1].startswith("-"):
        value = words[at + 1]
    return value


def _as_setting(command: str, option: str, value: str, parameters: set[str]) -> str:
    """`--gamma 3` as `--set gamma=3` or `--runtime gamma=3`, where a command with those parameters takes one of these;
    "" when nothing has such a key."""
    from adpa_cli import stages
    from adpa_cli.cli.console.streams import GLOBALS
    from adpa_cli.planning.settings import knobs, settable

    before, dot, key = option.lstrip("-").rpartition(".")
    key = key.replace("-", "_")
    own = [command] if command in stages.names() else []
    builds_all = any(stages.every()[stage].any_method for stage in own)
    among = (
        [before] if dot and before in stages.names() else [*own, *(stages.names() if builds_all and not dot else ())]
    )
    for stage in dict.fromkeys(among) if "sets" in parameters else ():
        of = _methods_of(GLOBALS.words) if stages.every()[stage].any_method else ("",)
        if any(key in settable(stage, method) for method in of):
            return f"--set {'' if stage == command else stage + '.'}{key}={value or '…'}"
    fits = key != SHARED or "/" not in value  # I/N is a part, as other commands have it
    is_knob = "knobs" in parameters and fits and key in {field.name for field in knobs()}
    return f"--runtime {key}={value or '…'}" if is_knob else ""


def _methods_of(words: Sequence[str]) -> Sequence[str]:
    """The methods that a command line runs; all when it names none that exists."""
    from adpa_cli import methods
    from adpa_cli.families import chain_of

    spelled = " ".join(words).replace("--method=", "--method ").split()
    typed = [after for word, after in pairwise(spelled) if word == "--method"]
    return [name for word in typed for name in chain_of(word) if name in methods.names()] or methods.names()
