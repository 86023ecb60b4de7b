"""What the shell offers after TAB. Only names are read: folders of the store, tags, aliases, keys of settings.

An empty answer lets the shell complete file names.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

Answer = Callable[[typer.Context, str], list[str]]
MODELS = ("sft", "dpo-teacher", "distill")


def of(command: str, parameter: str) -> Answer | None:
    """What completes the values of a parameter: an option has one meaning in every command."""
    return ANSWERS.get(f"{command} {parameter}") or ANSWERS.get(parameter)


def methods(ctx: typer.Context, incomplete: str) -> list[str]:
    """`--method`."""
    from adpa_cli import methods as every
    from adpa_cli.families import CHAINS

    return _beginning(incomplete, sorted([*CHAINS, *every.names()]))


def models(ctx: typer.Context, incomplete: str) -> list[str]:
    """A model to start from: aliases, tags and checkpoints."""
    from adpa_cli.families import aliases

    return _beginning(incomplete, [*aliases(), *_stored(ctx, incomplete, MODELS)])


def teachers(ctx: typer.Context, incomplete: str) -> list[str]:
    """A teacher: also the ready pairs."""
    from adpa_cli.families import aliases, ready_pairs

    return _beginning(incomplete, [*aliases(), *ready_pairs(), *_stored(ctx, incomplete, MODELS)])


def rankers(ctx: typer.Context, incomplete: str) -> list[str]:
    """A reward model: that of a family, or one of the store."""
    from adpa_cli.families import aliases

    return _beginning(incomplete, [*aliases(), *_stored(ctx, incomplete, ("reward-model",))])


def made_by(*stages: str) -> Answer:
    """Artifacts of some stages, or of all, with the tags that name one."""
    return lambda ctx, incomplete: _beginning(incomplete, _stored(ctx, incomplete, stages))


def tags(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names in use."""
    store = _store(ctx)
    return _beginning(incomplete, store.tags() if store else [])


def data(ctx: typer.Context, incomplete: str) -> list[str]:
    """Aliases of data sets and the data files here; a path is left to the shell."""
    from adpa_cli.data.files import EXTENSIONS
    from adpa_cli.families import DATA_ALIASES

    here = sorted(name for name in os.listdir() if name.lower().endswith(EXTENSIONS))
    return _beginning(incomplete, [*DATA_ALIASES, *here])


def words(*known: str) -> Answer:
    """One of a few words."""
    return lambda ctx, incomplete: _beginning(incomplete, known)


def settings(ctx: typer.Context, incomplete: str) -> list[str]:
    """`KEY=DEFAULT` of the method on the line, or `STAGE.KEY=DEFAULT`; of an only key all known values."""
    from adpa_cli import stages as every

    stage, typed = ctx.command.name or "", incomplete.partition("=")[0]
    named, dot, _ = typed.rpartition(".")
    chosen = {} if dot else _keys(stage, ctx)
    begun = [name for name in every.names() if (name == named if dot else typed and name.startswith(typed))]
    chosen |= {f"{name}.{key}": values for name in begun for key, values in _keys(name, ctx).items()}
    return _key_values(incomplete, chosen)


def knobs(ctx: typer.Context, incomplete: str) -> list[str]:
    """`KEY=DEFAULT` of `--runtime`; of an only key the other values too."""
    import typing

    from adpa_cli.planning import settings
    from adpa_cli.spec import Runtime

    kinds = typing.get_type_hints(Runtime)
    every = {f.name: [*_said(f.default), *map(str, typing.get_args(kinds[f.name]))] for f in settings.knobs()}
    return _key_values(incomplete, every)


def _key_values(incomplete: str, chosen: Mapping[str, list[str]]) -> list[str]:
    """The keys that begin so, each with its first value; of an only one all values."""
    typed = incomplete.partition("=")[0]
    fitting = {key: v for key, v in chosen.items() if (key == typed if "=" in incomplete else key.startswith(typed))}
    if len(fitting) == 1:
        # `key=` by itself comes first: shells set a space after an only candidate
        return _beginning(
            incomplete, [f"{key}={value}" for key, v in fitting.items() for value in dict.fromkeys(["", *v])]
        )
    return [f"{key}={values[0]}" for key, values in fitting.items()]


def _keys(stage: str, ctx: typer.Context) -> dict[str, list[str]]:
    """The keys of a stage, those of its method too, each with its default and the other values it may have."""
    from adpa_cli import methods as every
    from adpa_cli.families import chain_of
    from adpa_cli.planning.settings import methods_of, settable

    method = ctx.params.get("method") or "" if stage == "distill" else methods_of(stage)[0]
    known = [name for name in chain_of(method) if name in every.names()]
    found = {key: _said(value) for name in known or [""] for key, value in settable(stage, name).items()}
    for name in known:
        for field in (*dataclasses.fields(every.load(name).params), *dataclasses.fields(every.Sources)):
            if field.name in found:
                found[field.name] = list(dict.fromkeys([*found[field.name], *map(str, field.metadata["choices"])]))
    return found


def _said(value: Any) -> list[str]:
    """A default as it would be typed, and its opposite if it has one; None is left open."""
    if isinstance(value, bool):
        return [str(value).lower(), str(not value).lower()]
    return ["" if value is None else str(value)]


def _stored(ctx: typer.Context, incomplete: str, stages: Iterable[str]) -> Iterator[str]:
    """Tags and `stage/12hex` of some stages, or of all; bare digits once some are typed. None for a path."""
    from adpa_cli import stages as every

    store = None if incomplete.startswith((".", "/", "~")) else _store(ctx)
    if store is None:
        return
    kept = {stage: _names(store.root / stage) for stage in stages or every.names()}
    yield from (tag for tag, full in store.tags().items() if any(full[:12] in names for names in kept.values()))
    for stage, names in kept.items():
        yield from (f"{stage}/{name}" for name in names)
        if incomplete:
            yield from names


def _names(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if len(name) == 12) if folder.is_dir() else []


def _store(ctx: typer.Context) -> Any:
    """The store of the command line, or None."""
    from adpa_cli.errors import AdpaError
    from adpa_cli.store.store import Store

    asked = ctx.params.get("store") or ctx.find_root().params.get("store")
    try:
        return Store.find(Path(asked) if asked else None)
    except (AdpaError, OSError):
        return None


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]


def commands(ctx: typer.Context, incomplete: str) -> list[str]:
    """The command that is to be planned; what follows it is completed as its own line (`Group.resolve_command`)."""
    from adpa_cli.cli.commands import makers

    return _beginning(incomplete, makers())


ANSWERS: dict[str, Answer] = {
    "method": methods, "methods name": methods, "tag name": tags, "plan words": commands,
    "sets": settings, "knobs": knobs,
    "student": models, "model": models, "models": models, "against": models,
    "teacher": teachers, "reference": teachers, "reward_model": rankers, "refs": made_by(), "ref": made_by(),
    "chat refs": made_by(*MODELS), "export ref": made_by(*MODELS), "to": words("hf", "ollama", "gguf"),
    "rollouts": made_by("rollout"), "cache": made_by("cache-teacher"), "tag": tags,
    "data": data, "sft_data": data, "sources": data,
    "suite": words("accuracy", "tiny", "reward-model", "implicit"), "split": words("train", "test"),
    "states": words("student", "chosen", "rejected", "teacher"),
    "select": words("last", "best"), "keep": words("selected", "all"), "gpus": words("all"),
}  # fmt: skip
"""By the name of the parameter, or by command and parameter where the same name means two things."""
