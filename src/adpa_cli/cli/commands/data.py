"""`adpa data`: a check of all rows of the data, and the first of them as a model sees them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Any

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console import options as opt
from adpa_cli.cli.console.streams import GLOBALS, out, say
from adpa_cli.errors import UsageError
from adpa_cli.report.text import tsv

HEADER = ("row", "id", "side", "tokens", "trained", "text")


def data(
    sources: Annotated[list[str], opt.argument("SRC…", "Files, folders, hub data sets or aliases.")],
    model: Annotated[
        str | None, opt.option("--model", help="Whose tokenizer and template to use.", metavar="MODEL")
    ] = None,
    dialogues: Annotated[bool, opt.option("--sft", help="Read as dialogues of an SFT stage.")] = False,
    count: Annotated[int, opt.option("--rows", help="Rows to show.", metavar="N")] = 3,
    split: Annotated[str, opt.option("--split", help="Which side: train or test.", metavar="SIDE")] = "train",
    max_length: Annotated[int, opt.option("--max-length", help="Tokens of a row at most.", metavar="N")] = 2048,
    skip_bad_rows: opt.SkipBadRows = False,
    refresh: opt.Refresh = False,
) -> None:
    """Show the first rows as the model sees them, with the trained tokens marked; check all rows.

    adpa data pairs.jsonl --model ./small · adpa data tiny-pairs
    """
    from adpa_cli.data.preferences import load_dialogues, load_pairs
    from adpa_cli.data.preview import marks_for, preview
    from adpa_cli.families import DATA_ALIASES
    from adpa_cli.hub.externals import BUILTIN, open_sources

    if split not in ("train", "test"):
        raise UsageError(f"--split {split}", "it is train or test")
    names = [DATA_ALIASES.get(source, source) for source in sources]
    load: Any = load_dialogues if dialogues or "builtin:tiny-sft" in names else load_pairs
    loaded = load(open_sources(names), split, None, skip_bad_rows)
    if model is None and all(name.startswith(BUILTIN) for name in names):
        model = "tiny"
    marks = marks_for(sys.stdout)
    head = [f"{' + '.join(sources)}: {len(loaded.items)} rows ({split}), read as {loaded.shape}", *loaded.notes]
    encoder = None
    if model is None:
        head.append("no --model: turns as text; name one to see its template and tokens")
        body = "\n\n".join(_plain(item, marks) for item in loaded.items[:count])
    else:
        encoder = _encoder(model, refresh)
        body = preview(loaded.items, encoder, count=count, max_length=max_length, marks=marks)
        if sys.stdout.isatty() and not GLOBALS.json:
            coloured = preview(loaded.items, encoder, count=count, max_length=max_length, marks=marks, markup=True)
            _print_markup(head, coloured)
            return
    if not (sys.stdout.isatty() or GLOBALS.json or GLOBALS.quiet):
        say("\n".join([*head, ""]))
    rows = [row for item in islice(loaded.items, count) for row in _rows(item, encoder, max_length, marks)]
    record = {
        "rows": len(loaded.items), "shape": loaded.shape, "notes": list(loaded.notes), "preview": body,
        "shown": [dict(zip(HEADER, row, strict=True)) for row in rows],
    }  # fmt: skip
    out(lambda: "\n".join([*head, "", body]), lambda: tsv([HEADER, *rows]), lambda: record)


def _print_markup(head: list[str], body: str) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.print("\n".join([*head, ""]), markup=False)
    console.print(body)


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
    from adpa_cli.lab import BASES, END, TEMPLATE
    from adpa_cli.planning import lineage
    from adpa_cli.planning.resolve_inputs import Names
    from adpa_cli.store.store import Store

    if model in aliases() and aliases()[model].family.template == "tiny":
        return Encoder(load_tokenizer(BASES / aliases()[model].side), Template(TEMPLATE, END))
    store = Store.find(GLOBALS.store, create=not model.startswith((".", "/", "~")))
    names = Names(store, refresh)
    named = names.model(model, "--model")
    if isinstance(named, ReadyPair):
        raise UsageError(f"--model {model} is a pair", f"name one: {named.aligned}")
    family = named.family if isinstance(named, Alias) else GENERIC
    item = names.base(named.model) if isinstance(named, Alias) else named
    template = lineage.template_of(item) or DEFAULT_TEMPLATES[family.template]
    return Encoder(load_tokenizer(lineage.folder_of(item, store)), template)


def _plain(item: Any, marks: tuple[str, str]) -> str:
    """An example as text, with what is trained on between marks."""
    from adpa_cli.data.examples import Dialogue

    def marked(text: str) -> str:
        return f"{marks[0]}{text}{marks[1]}"

    if isinstance(item, Dialogue):
        turns = [(t.role, marked(t.content) if t.role == "assistant" else t.content) for t in item.messages]
    else:
        turns = [(turn.role, turn.content) for turn in item.prompt]
        turns += [("chosen", marked(item.chosen)), ("rejected", marked(item.rejected))]
    return "\n".join([f"row {item.row} · {item.id}", *(f"{role}: {text}" for role, text in turns)])


COMMAND = Command("data", "Look", 3, data)
