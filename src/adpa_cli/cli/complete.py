"""What the shell offers after TAB. Only names are read: folders of the store, tags, aliases, keys of settings.

An empty answer lets the shell complete file names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
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

    return _beginning(incomplete, sorted(["adpa+", *every.names()]))


def models(ctx: typer.Context, incomplete: str) -> list[str]:
    """A model to start from: aliases, tags and checkpoints."""
    from adpa_cli.families import aliases

    return _beginning(incomplete, [*aliases(), *_stored(ctx, incomplete, MODELS)])


def teachers(ctx: typer.Context, incomplete: str) -> list[str]:
    """A teacher: also the ready pairs."""
    from adpa_cli.families import aliases, ready_pairs

    return _beginning(incomplete, [*aliases(), *ready_pairs(), *_stored(ctx, incomplete, MODELS)])


def made_by(*stages: str) -> Answer:
    """Artifacts of some stages, or of all, with the tags that name one."""
    return lambda ctx, incomplete: _beginning(incomplete, _stored(ctx, incomplete, stages))


def tags(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names in use."""
    store = _store(ctx)
    return _beginning(incomplete, store.tags() if store else [])


def data(ctx: typer.Context, incomplete: str) -> list[str]:
    """Aliases of data sets and the data files here; a path is left to the shell."""
    from adpa_cli.data.readers import EXTENSIONS
    from adpa_cli.families import DATA_ALIASES

    here = sorted(name for name in os.listdir() if name.lower().endswith(EXTENSIONS))
    return _beginning(incomplete, [*DATA_ALIASES, *here])


def words(*known: str) -> Answer:
    """One of a few words."""
    return lambda ctx, incomplete: _beginning(incomplete, known)


def settings(ctx: typer.Context, incomplete: str) -> list[str]:
    """`KEY=` of the method on the line, or `STAGE.KEY=`, with the default. Of one key, its values."""
    from adpa_cli.spec import STAGE_VERSIONS
    from adpa_cli.stages.settings import settable

    stage = ctx.command.name or ""
    stage_typed, dot, _ = incomplete.partition("=")[0].rpartition(".")
    if dot:
        stages = [stage_typed] if stage_typed in STAGE_VERSIONS else []
        chosen = {f"{name}.{key}": value for name in stages for key, value in _keys(name, ctx).items()}
    else:
        chosen = _keys(stage, ctx) if stage in STAGE_VERSIONS else settable("distill")
        begun = [name for name in STAGE_VERSIONS if incomplete and name.startswith(incomplete)]
        chosen |= {f"{name}.{key}": value for name in begun for key, value in _keys(name, ctx).items()}
    return _assignments(chosen, incomplete)


def _assignments(chosen: dict[str, Any], incomplete: str) -> list[str]:
    """`key=default` of every key that fits; of the only one `key=` too, after which the shell sets no space."""
    fitting = {key: value for key, value in chosen.items() if f"{key}=".startswith(incomplete.partition("=")[0])}
    exact = incomplete.partition("=")[0]
    if "=" in incomplete:
        fitting = {key: value for key, value in fitting.items() if key == exact}
    shown = [f"{key}={_said(value)}" for key, value in fitting.items()]
    only = [f"{key}=" for key in fitting] if len(fitting) == 1 else []
    return _beginning(incomplete, dict.fromkeys([*only, *shown]))


def _keys(stage: str, ctx: typer.Context) -> dict[str, Any]:
    """The keys of a stage with their defaults, those of its method too."""
    from adpa_cli.errors import UsageError
    from adpa_cli.stages.settings import settable

    method = {"sft": "sft", "dpo-teacher": "dpo", "distill": ctx.params.get("method") or ""}.get(stage, "")
    found: dict[str, Any] = {}
    try:
        for name in ("dckd", "adpa") if method in ("adpa+", "adpa-plus") else (method,):
            found |= settable(stage, name)
    except UsageError:  # a method that does not exist
        return settable(stage)
    return found


def _said(value: Any) -> str:
    """A default as it would be typed; None is left open."""
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _stored(ctx: typer.Context, incomplete: str, stages: Iterable[str]) -> Iterator[str]:
    """Tags and `stage/12hex` of some stages, or of all; bare digits once some are typed. None for a path."""
    from adpa_cli.spec import STAGE_VERSIONS

    store = None if incomplete.startswith((".", "/", "~")) else _store(ctx)
    if store is None:
        return
    kept = {stage: _names(store.root / stage) for stage in stages or STAGE_VERSIONS}
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
    from adpa_cli.cli.main import PANELS

    return _beginning(incomplete, [name for name, _ in PANELS["Build"]])


ANSWERS: dict[str, Answer] = {
    "method": methods, "methods name": methods, "tag name": tags, "sets": settings, "plan words": commands,
    "student": models, "model": models, "models": models, "against": models,
    "teacher": teachers, "reference": teachers, "refs": made_by(), "ref": made_by(),
    "chat refs": made_by(*MODELS), "export ref": made_by(*MODELS), "to": words("hf", "ollama", "gguf"),
    "rollouts": made_by("rollout"), "cache": made_by("cache-teacher"), "tag": tags,
    "data": data, "sft_data": data, "sources": data,
    "suite": words("accuracy", "tiny", "reward-model", "implicit"), "split": words("train", "test"),
    "select": words("last", "best"), "keep": words("selected", "all"), "gpus": words("all"),
}  # fmt: skip
"""By the name of the parameter, or by command and parameter where the same name means two things."""
