"""What the shell offers after TAB: names of folders of the store, tags, aliases, keys of settings.

An option says itself what completes its values: mostly its metavar does. Zsh and fish also show what an artifact is;
only the manifests of those that are offered are read for it. An empty answer lets the shell complete file names.
"""

from __future__ import annotations

import dataclasses
import os
import textwrap
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

if TYPE_CHECKING:
    from adpa_cli.stages import Product
    from adpa_cli.store.store import Store

COLUMNS = 78
"""Of a help, or a summary, beside a completion."""
Completion = Callable[[typer.Context, str], list[str] | list[tuple[str, str]]]


def join_words() -> None:
    """Undo in the environment that bash splits `sft@latest` into three words."""
    words, at = os.environ.get("COMP_WORDS", "").split("\n"), int(os.environ.get("COMP_CWORD", 0))
    joined: list[str] = []
    for n, word in enumerate(words):
        if n and "@" in (word, words[n - 1]):
            joined[-1] += word
            at -= n <= int(os.environ["COMP_CWORD"])
        else:
            joined.append(word)
    if len(joined) < len(words):
        os.environ |= {"COMP_WORDS": "\n".join(joined), "COMP_CWORD": str(at)}


def mend_scripts() -> None:
    """Mend the scripts that Typer installs; remove this once they do both themselves.

    Bash puts a completion in the place of the @ and what follows it, so that what stands before it must be left out.
    Zsh loads the script with the first Tab, which must complete the line already.
    """
    from typer import _completion_shared as shared

    scripts = shared._completion_scripts
    cut = '    [[ $2 != @* ]] || COMPREPLY=( "${COMPREPLY[@]/#*@/@}" )\n'
    scripts["bash"] = scripts["bash"].replace("    return 0", f"{cut}    return 0")
    scripts["zsh"] += '[ "$funcstack[1]" != _%(prog_name)s ] || %(complete_func)s "$@"\n'


def printable(text: str) -> str:
    """A text as shells can show it beside a completion: rich breaks its lines on the way, and zsh drops apostrophes."""
    return textwrap.shorten(text.replace("'", "’"), COLUMNS, placeholder=" …")


class Stored(NamedTuple):
    """A name, the folder of the artifact that it is for, if of one, and what is said before the summary of that."""

    name: str
    folder: Path | None = None
    before: str = ""

    def summary(self) -> str:
        """What the artifact is, in a line; only `before` where its manifest cannot be read."""
        from adpa_cli.errors import AdpaError
        from adpa_cli.store.manifest import read

        try:
            what = str(read(self.folder).metrics.get("what", "")) if self.folder else ""
        except AdpaError:
            what = ""
        return ": ".join(filter(None, (self.before, what)))


def beginning(candidates: Callable[[typer.Context, str], Iterable[str]]) -> Completion:
    """A completion: the candidates that begin with what is typed."""
    return lambda ctx, incomplete: [name for name in candidates(ctx, incomplete) if name.startswith(incomplete)]


def summarised(candidates: Callable[[typer.Context, str], Iterable[str | Stored]]) -> Completion:
    """A completion by names of which some are those of artifacts, each with its summary."""

    def found(ctx: typer.Context, incomplete: str) -> list[tuple[str, str]]:
        named = [Stored(each) if isinstance(each, str) else each for each in candidates(ctx, incomplete)]
        fitting = [each for each in named if each.name.startswith(incomplete)]
        return [(each.name, printable(each.summary())) for each in fitting]

    return found


def words(*choices: str) -> Completion:
    """One of a few words."""
    return beginning(lambda ctx, incomplete: choices)


def artifacts(*products: Product) -> Completion:
    """Artifacts of some kinds, or of all, with the tags that name one."""
    return summarised(lambda ctx, incomplete: _stored(ctx, incomplete, products))


def models(product: Product = "model", pairs: bool = False) -> Completion:
    """Aliases, and the models of a kind with their tags; for a teacher the ready `pairs` too."""

    def candidates(ctx: typer.Context, incomplete: str) -> Iterable[str | Stored]:
        from adpa_cli.families import aliases, ready_pairs, reward_models

        own = reward_models() if product == "reward model" else ()
        return [*aliases(), *own, *(ready_pairs() if pairs else ()), *_stored(ctx, incomplete, (product,))]

    return summarised(candidates)


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
    # Before the `=` the key by itself comes first: shells set a space after an only candidate.
    alone = [] if "=" in incomplete else [""]
    candidates = [f"{key}={value}" for key, items in fitting.items() for value in dict.fromkeys([*alone, *items])]
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


def _stored(ctx: typer.Context, incomplete: str, products: tuple[Product, ...]) -> Iterator[Stored]:
    """Tags, `stage@latest` and `stage/12hex` of some kinds, or of all; bare digits once some are typed.

    There are none for a path.
    """
    from adpa_cli import stages

    store = None if incomplete.startswith((".", "/", "~")) else _store(ctx)
    if store is None:
        return
    names = {stage: _ids(store.root / stage) for stage in (stages.making(*products) if products else stages.names())}
    for tag, full in store.tags().items():
        stage = next((stage for stage, ids in names.items() if full[:12] in ids), "")
        if stage:
            yield Stored(tag, store.root / stage / full[:12], f"{stage}/{full[:12]}")
    for stage, ids in names.items():
        if ids:
            yield Stored(f"{stage}@latest", before=f"the newest of {len(ids)}")
        yield from (Stored(f"{stage}/{name}", store.root / stage / name) for name in ids)
        if incomplete:
            yield from (Stored(name, store.root / stage / name) for name in ids)


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
