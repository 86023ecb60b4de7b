"""`adpa data`: rows as a model sees them, and what was said while reading them all."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console import options as opt
from adpa_cli.cli.console.streams import GLOBALS, out, say
from adpa_cli.errors import UsageError

HEADER = ("row", "id", "side", "tokens", "trained", "text")


def show_data(
    texts: Sequence[str],
    model: str | None,
    dialogues: bool,
    count: int,
    split: str,
    max_length: int,
    skip_bad_rows: bool,
    refresh: bool,
) -> None:
    """Read everything, then print the first rows; without a model the turns with the answers marked."""
    from adpa_cli.data.preferences import load_dialogues, load_pairs
    from adpa_cli.data.preview import marks_for, preview
    from adpa_cli.families import DATA_ALIASES
    from adpa_cli.hub.externals import BUILTIN, open_sources
    from adpa_cli.report.text import tsv

    where = [DATA_ALIASES.get(text, text) for text in texts]
    load: Any = load_dialogues if dialogues or "builtin:tiny-sft" in where else load_pairs
    loaded = load(open_sources(where), split, None, skip_bad_rows)
    if model is None and all(name.startswith(BUILTIN) for name in where):
        model = "tiny"
    marks = marks_for(sys.stdout)
    head = [f"{' + '.join(texts)}: {len(loaded.items)} rows ({split}), read as {loaded.shape}", *loaded.notes]
    encoder = None
    if model is None:
        head.append("no --model: turns as text; name one to see its template and tokens")
        body = "\n\n".join(_plain(item, marks) for item in loaded.items[:count])
    else:
        encoder = _encoder(model, refresh)
        body = preview(loaded.items, encoder, count=count, max_length=max_length, marks=marks)
        if sys.stdout.isatty() and not GLOBALS.json:
            from rich.console import Console

            coloured = preview(loaded.items, encoder, count=count, max_length=max_length, marks=marks, markup=True)
            console = Console(highlight=False, soft_wrap=True)
            console.print("\n".join([*head, ""]), markup=False)
            console.print(coloured)
            return
    if not (sys.stdout.isatty() or GLOBALS.json or GLOBALS.quiet):
        say("\n".join([*head, ""]))
    shown = [line for item in islice(loaded.items, count) for line in _rows(item, encoder, max_length, marks)]
    record = {
        "rows": len(loaded.items), "shape": loaded.shape, "notes": list(loaded.notes), "preview": body,
        "shown": [dict(zip(HEADER, line, strict=True)) for line in shown],
    }  # fmt: skip
    out(lambda: "\n".join([*head, "", body]), lambda: tsv([HEADER, *shown]), lambda: record)


def _rows(item: Any, encoder: Any, max_length: int, marks: tuple[str, str]) -> Iterator[tuple[Any, ...]]:
    """One example as lines under HEADER; without an encoder its turns, not counted."""
    from adpa_cli.data.preview import marked, views

    if encoder is None:
        yield item.row, item.id, "", "", "", _plain(item, marks).partition("\n")[2]
        return
    for view in views(item, encoder, max_length):
        text = marked(view.ids, view.mask, encoder, marks, False)
        yield view.row, view.id, view.side, len(view.ids), sum(view.mask), text


def _encoder(model: str, refresh: bool) -> Any:
    """The tokenizer of a model under its template, its family's or the default one."""
    from adpa_cli.data.chat import DEFAULT_TEMPLATES, Encoder, Template
    from adpa_cli.engine.models import load_tokenizer
    from adpa_cli.families import GENERIC, Alias, ReadyPair, aliases
    from adpa_cli.hub import External
    from adpa_cli.lab import BASES, END, TEMPLATE
    from adpa_cli.planning import lineage
    from adpa_cli.planning.resolve_inputs import Names
    from adpa_cli.store.store import Store

    if model in aliases() and aliases()[model].family.template == "tiny":
        return Encoder(load_tokenizer(BASES / aliases()[model].side), Template(TEMPLATE, END))
    store = Store.find(GLOBALS.store, create=not model.startswith((".", "/", "~")))
    names = Names(store, refresh)
    found = names.model(model, "--model")
    if isinstance(found, ReadyPair):
        raise UsageError(f"--model {model} is a pair", f"name one: {found.aligned}")
    family = found.family if isinstance(found, Alias) else GENERIC
    item = names.base(found.model) if isinstance(found, Alias) else found
    folder = Path(item.where[0]) if isinstance(item, External) else store.folder(item.label)
    own = lineage.template_of(item)
    template = Template(*own) if own else DEFAULT_TEMPLATES[family.template]
    return Encoder(load_tokenizer(folder), template)


def _plain(item: Any, marks: tuple[str, str]) -> str:
    from adpa_cli.data.examples import Dialogue

    turns = item.messages if isinstance(item, Dialogue) else item.prompt
    lines = [f"row {item.row} · {item.id}"]
    for turn in turns:
        content = (
            f"{marks[0]}{turn.content}{marks[1]}"
            if turn.role == "assistant" and isinstance(item, Dialogue)
            else turn.content
        )
        lines.append(f"{turn.role}: {content}")
    if not isinstance(item, Dialogue):
        lines += [
            f"{name}: {marks[0]}{text}{marks[1]}"
            for name, text in (("chosen", item.chosen), ("rejected", item.rejected))
        ]
    return "\n".join(lines)


def data(
    sources: Annotated[
        list[str], typer.Argument(metavar="SRC…", help="Files, folders, hub data sets or aliases.", show_default=False)
    ],
    model: Annotated[
        str | None,
        typer.Option("--model", help="Whose tokenizer and template to use.", metavar="MODEL", show_default=False),
    ] = None,
    dialogues: Annotated[bool, typer.Option("--sft", help="Read as dialogues of an SFT stage.")] = False,
    count: Annotated[int, typer.Option("--rows", help="Rows to show.", metavar="N")] = 3,
    split: Annotated[str, typer.Option("--split", help="Which side: train or test.", metavar="SIDE")] = "train",
    max_length: Annotated[int, typer.Option("--max-length", help="Tokens of a row at most.", metavar="N")] = 2048,
    skip_bad_rows: opt.SkipBadRows = False,
    refresh: opt.Refresh = False,
) -> None:
    """Show the first rows as the model sees them, with the trained tokens marked; check all rows.

    adpa data pairs.jsonl --model ./small · adpa data tiny-pairs
    """
    if split not in ("train", "test"):
        raise UsageError(f"--split {split}", "it is train or test")
    show_data(sources, model, dialogues, count, split, max_length, skip_bad_rows, refresh)


COMMAND = Command("data", "Look", 3, data)
