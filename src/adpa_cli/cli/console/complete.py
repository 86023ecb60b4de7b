"""What the shell offers after TAB. Only names are read: folders of the store, tags, aliases, keys of settings.

An option says itself what completes its values: mostly its metavar does. An empty answer lets the shell complete file
names.
"""

from __future__ import annotations

import dataclasses
import os
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from adpa_cli.stages import Product
    from adpa_cli.store.store import Store

Completion = Callable[[typer.Context, str], list[str]]


def beginning(candidates: Callable[[typer.Context, str], Iterable[str]]) -> Completion:
    """A completion: the candidates that begin with what is typed."""
    return lambda ctx, incomplete: [name for name in candidates(ctx, incomplete) if name.startswith(incomplete)]


def words(*choices: str) -> Completion:
    """One of a few words."""
    return beginning(lambda ctx, incomplete: choices)


def artifacts(*products: Product) -> Completion:
    """Artifacts of some kinds, or of all, with the tags that name one."""
    return beginning(lambda ctx, incomplete: _stored(ctx, incomplete, products))


def models(product: Product = "model", pairs: bool = False) -> Completion:
    """Aliases, and the models of a kind with their tags; for a teacher the ready `pairs` too."""

    def candidates(ctx: typer.Context, incomplete: str) -> Iterable[str]:
        from adpa_cli.families import aliases, ready_pairs, reward_models

        own = reward_models() if product == "reward model" else ()
        return [*aliases(), *own, *(ready_pairs() if pairs else ()), *_stored(ctx, incomplete, (product,))]

    return beginning(candidates)


@beginning
def methods(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    """`--method`."""
    from adpa_cli import methods
    from adpa_cli.families import CHAINS

    return sorted([*CHAINS, *methods.names()])


@beginning
def suites(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    """`--suite`."""
    from adpa_cli import suites

    return suites.every()


@beginning
def tags(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    """Names in use."""
    store = _store(ctx)
    return store.tags() if store else ()


@beginning
def data(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    """Aliases of data sets and the data files here; a path is left to the shell."""
    from adpa_cli.data.files import EXTENSIONS
    from adpa_cli.families import DATA_ALIASES

    return [*DATA_ALIASES, *sorted(name for name in os.listdir() if name.lower().endswith(EXTENSIONS))]


@beginning
def commands(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    """The command that is to be planned; what follows it is completed as its own line (`Group.resolve_command`)."""
    from adpa_cli.cli.commands import makers

    return makers()


def settings(ctx: typer.Context, incomplete: str) -> list[str]:
    """`KEY=DEFAULT` of the method on the line, or `STAGE.KEY=DEFAULT`; of an only key all values that it may have."""
    from adpa_cli import stages

    command, typed = ctx.command.name or "", incomplete.partition("=")[0]
    stage, dot, _ = typed.rpartition(".")
    values = {} if dot else _values_by_key(command, ctx)
    begun = [name for name in stages.names() if (name == stage if dot else typed and name.startswith(typed))]
    values |= {f"{name}.{key}": items for name in begun for key, items in _values_by_key(name, ctx).items()}
    return _key_values(incomplete, values)


def knobs(ctx: typer.Context, incomplete: str) -> list[str]:
    """`KEY=DEFAULT` of `--runtime`; of an only key the other values too."""
    from adpa_cli.planning import settings
    from adpa_cli.spec import Runtime

    choices = {name: map(str, typing.get_args(kind)) for name, kind in typing.get_type_hints(Runtime).items()}
    return _key_values(incomplete, {f.name: [*_spelled(f.default), *choices[f.name]] for f in settings.knobs()})


def _key_values(incomplete: str, values: Mapping[str, list[str]]) -> list[str]:
    """The keys that begin so, each with its first value; of an only one all values."""
    typed = incomplete.partition("=")[0]
    fitting = {key: v for key, v in values.items() if (key == typed if "=" in incomplete else key.startswith(typed))}
    if len(fitting) != 1:
        return [f"{key}={items[0]}" for key, items in fitting.items()]
    # `key=` by itself comes first: shells set a space after an only candidate
    candidates = [f"{key}={value}" for key, items in fitting.items() for value in dict.fromkeys(["", *items])]
    return [candidate for candidate in candidates if candidate.startswith(incomplete)]


def _values_by_key(stage: str, ctx: typer.Context) -> dict[str, list[str]]:
    """The keys of a stage, those of its method too, each with its default and the other values it may have."""
    from adpa_cli import methods, stages
    from adpa_cli.families import GENERIC, aliases, chain_of
    from adpa_cli.planning.settings import family_defaults, methods_of

    method = ctx.params.get("method") or "" if stages.every()[stage].any_method else methods_of(stage)[0]
    chain = [name for name in chain_of(method) if name in methods.names()]
    named = (aliases().get(str(ctx.params.get(name))) for name in ("student", "model", "reference", "teacher"))
    family = next((alias.family for alias in named if alias), GENERIC)
    defaults = (family_defaults(stage, name, family) for name in chain or [""])
    values = {key: _spelled(value) for each in defaults for key, value in each.items()}
    for name in chain:
        for field in (*dataclasses.fields(methods.load(name).params), *dataclasses.fields(methods.Sources)):
            if field.name in values:
                values[field.name] = list(dict.fromkeys([*values[field.name], *map(str, field.metadata["choices"])]))
    return values


def _spelled(value: Any) -> list[str]:
    """A default as it would be typed, and its opposite if it has one; None is left open."""
    if isinstance(value, bool):
        return [str(value).lower(), str(not value).lower()]
    return ["" if value is None else str(value)]


def _stored(ctx: typer.Context, incomplete: str, products: tuple[Product, ...]) -> Iterator[str]:
    """Tags and `stage/12hex` of some kinds, or of all; bare digits once some are typed. None for a path."""
    from adpa_cli import stages

    store = None if incomplete.startswith((".", "/", "~")) else _store(ctx)
    if store is None:
        return
    names = {stage: _ids(store.root / stage) for stage in (stages.making(*products) if products else stages.names())}
    yield from (tag for tag, full in store.tags().items() if any(full[:12] in ids for ids in names.values()))
    for stage, ids in names.items():
        yield from (f"{stage}/{name}" for name in ids)
        if incomplete:
            yield from ids


def _ids(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if len(name) == 12) if folder.is_dir() else []


def _store(ctx: typer.Context) -> Store | None:
    """The store of the command line, or None."""
    from adpa_cli.errors import AdpaError
    from adpa_cli.store.store import Store

    folder = ctx.params.get("store") or ctx.find_root().params.get("store")
    try:
        return Store.find(Path(folder) if folder else None)
    except (AdpaError, OSError):
        return None


BY_METAVAR: dict[str, Completion] = {
    "SRC": data, "SRC…": data, "MODEL": models(), "REF": artifacts(), "REF…": artifacts(),
    "[STAGE.]KEY=VAL": settings, "KEY=VAL": knobs, "COMMAND…": commands, "SIDE": words("train", "test"),
}  # fmt: skip


def of_metavar(metavar: str) -> Completion | None:
    """What completes the values that a metavar stands for; of `last|best|STEP` the words that are meant literally."""
    choices = [word for word in metavar.split("|") if word.islower()]
    return BY_METAVAR.get(metavar) or (words(*choices) if choices else None)
