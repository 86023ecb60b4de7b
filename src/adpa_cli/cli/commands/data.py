"""`adpa data`: a check of all rows of the data, and the first ones as a model sees them, what is trained on marked."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice
from typing import IO, TYPE_CHECKING, Annotated, Any

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console import options as opt
from adpa_cli.cli.console.streams import GLOBALS, out, say
from adpa_cli.errors import DataError, UsageError
from adpa_cli.report.text import tsv

if TYPE_CHECKING:
    from adpa_cli.data.chat import Encoder
    from adpa_cli.data.examples import Dialogue, Message, Pair
    from adpa_cli.planning.chat_templates import TemplateChoice

HEADER = ("row", "id", "side", "tokens", "trained", "text")
MARKS = ("⟦", "⟧")
ASCII_MARKS = ("[[", "]]")


def data(
    sources: Annotated[list[str], opt.argument("SRC…", "Files, folders, hub data sets or aliases.")],
    model: Annotated[
        str | None, opt.option("--model", help="Whose tokenizer and template to use.", metavar="MODEL")
    ] = None,
    dialogues: Annotated[bool, opt.option("--sft", help="Read as dialogues of an SFT stage.")] = False,
    count: Annotated[int, opt.option("--rows", help="Rows to show.", metavar="N")] = 3,
    split: Annotated[str, opt.option("--split", help="Which side: train or test.", metavar="SIDE")] = "train",
    max_length: Annotated[int, opt.option("--max-length", help="Tokens of a row at most.", metavar="N")] = 2048,
    template: opt.ChatTemplate = None,
    end: opt.End = None,
    thinking: opt.Thinking = None,
    skip_bad_rows: opt.SkipBadRows = False,
    ignore_columns: opt.IgnoreColumns = None,
    refresh: opt.Refresh = False,
) -> None:
    """Show the first rows as the model sees them, with the trained tokens marked; check all rows.

    adpa data pairs.jsonl --model ./small · adpa data tiny-pairs
    """
    from adpa_cli.cli.console.progress import Screen
    from adpa_cli.data.preferences import check_unused, ignored_words, load_dialogues, load_pairs
    from adpa_cli.data.tables import watching
    from adpa_cli.estimate.preflight import control_words
    from adpa_cli.families import DATA_ALIASES
    from adpa_cli.hub.externals import BUILTIN, open_sources
    from adpa_cli.planning.chat_templates import TemplateChoice

    _check_options(split, count, max_length)
    names = [DATA_ALIASES.get(source, source) for source in sources]
    load: Any = load_dialogues if dialogues or "builtin:tiny-sft" in names else load_pairs
    if model is None and all(name.startswith(BUILTIN) for name in names):
        model = "tiny"
    choice = TemplateChoice.of(template, end, thinking)
    if model is None and choice:
        raise UsageError("--template, --end and --thinking say how a model reads", "name one: --model MODEL")
    reader = _reader(model, choice, refresh) if model is not None else None
    encoder = reader.encoder if reader else None
    screen = Screen(GLOBALS.quiet)
    opened, label = open_sources(names), " + ".join(sources)
    if split == "train" and all(source.names_test for source in opened):
        raise DataError(f"{label}: only test splits, nothing to train on", "look at the other side: --split test")
    with watching(screen.reading, screen.say):
        loaded = load(opened, split, None, skip_bad_rows, encoder.template.text if encoder else "")
    ignored = opt.column_names(ignore_columns)
    check_unused(loaded, ignored)
    loaded = replace(loaded, notes=(*loaded.notes, *ignored_words([loaded], ignored, label)))
    head = [_summary(label, split, loaded), *loaded.notes]
    if reader is None:
        head.append("no --model: turns as text; name one to see its template and tokens")
    else:
        reader.words.extend(control_words(label, loaded.items, reader.encoder))
        head += reader.words
    _show(loaded, head, reader, count, max_length)


def _check_options(split: str, count: int, max_length: int) -> None:
    """Raise UsageError for a value that means nothing."""
    if split not in ("train", "test"):
        raise UsageError(f"--split {split} is no side of the data", "it is train or test")
    if count < 0:
        raise UsageError(f"--rows is {count}", "give 0 or more")
    if max_length < 1:
        raise UsageError(f"--max-length is {max_length}", "give 1 or more")


def _summary(label: str, split: str, loaded: Any) -> str:
    count = len(loaded.items)
    return f"{label}: {count} row{'s' * (count != 1)} ({split}), read as {loaded.shape}"


def _show(loaded: Any, head: list[str], reader: Reader | None, count: int, max_length: int) -> None:
    """Print the first rows: as text, in colour on a terminal, as TSV in a pipe, as JSON."""
    marks, encoder = marks_for(sys.stdout), reader.encoder if reader else None
    if encoder is None:
        body = "\n\n".join(_plain(item, marks) for item in loaded.items[:count])
    else:
        body = preview(loaded.items, encoder, count=count, max_length=max_length, marks=marks)
        if sys.stdout.isatty() and not GLOBALS.json:
            coloured = preview(loaded.items, encoder, count=count, max_length=max_length, marks=marks, markup=True)
            _print_markup(head, coloured)
            return
    if not (sys.stdout.isatty() or GLOBALS.json or GLOBALS.quiet):
        say("\n".join([*head, ""]))
    shown = [row for item in islice(loaded.items, count) for row in _rows(item, encoder, max_length, marks)]
    record = {
        "rows": len(loaded.items), "shape": loaded.shape, "notes": [*loaded.notes, *(reader.words if reader else ())],
        "preview": body, **({"template": reader.record} if reader else {}), "shown": shown,
    }  # fmt: skip
    out(
        lambda: "\n".join([*head, "", body]),
        lambda: tsv([HEADER, *([row[name] for name in HEADER] for row in shown)]),
        lambda: record,
    )


def _print_markup(head: list[str], body: str) -> None:
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    console.print("\n".join([*head, ""]), markup=False)
    console.print(body)


def _rows(item: Any, encoder: Any, max_length: int, marks: tuple[str, str]) -> Iterator[dict[str, Any]]:
    """One example as what HEADER names, with the ids as they are fed and the place of the first that is trained.

    Without an encoder its turns, not counted.
    """
    if encoder is None:
        text = _plain(item, marks).partition("\n")[2]
        yield dict(zip(HEADER, (item.row, item.id, "", "", "", text), strict=True))
        return
    for view in views(item, encoder, max_length):
        text = marked(view.ids, view.mask, encoder, marks, False)
        values = (view.row, view.id, view.side, len(view.ids), sum(view.mask), text)
        named = dict(zip(HEADER, values, strict=True))
        yield {**named, "ids": list(view.ids), "trained_from": list(view.mask).index(True), "cut": view.cut}


@dataclass(frozen=True)
class Reader:
    """A tokenizer under a template, where that comes from, and what is worth knowing of it."""

    encoder: Encoder
    source: str
    words: list[str]

    @property
    def record(self) -> dict[str, Any]:
        """As JSON."""
        template = self.encoder.template
        return {"from": self.source, "end": template.end, "end_id": self.encoder.end_id, "text": template.text}


def _reader(model: str, choice: TemplateChoice, refresh: bool) -> Reader:
    """How a model reads turns: under its own template, its family's, or the one that was named."""
    from adpa_cli.data.chat import Encoder
    from adpa_cli.estimate.preflight import template_words
    from adpa_cli.families import GENERIC, Alias, ReadyPair
    from adpa_cli.hub import External
    from adpa_cli.hub.model_folder import ModelFolder
    from adpa_cli.planning import lineage
    from adpa_cli.planning.planner import Planner
    from adpa_cli.planning.resolve_inputs import Names
    from adpa_cli.planning.settings import UserSettings
    from adpa_cli.store.store import Store

    store = Store.find_or_empty(GLOBALS.store)
    names = Names(store, refresh)
    named = names.model(model, "--model")
    if isinstance(named, ReadyPair):
        raise UsageError(f"--model {model} is a pair", f"name one: {named.aligned}")
    family = named.family if isinstance(named, Alias) else GENERIC
    item = names.base(named.model) if isinstance(named, Alias) else named
    template = Planner(names, UserSettings(templates=choice), "").template(family, item)
    folder = lineage.folder_of(item, store)
    file = "" if choice.template else ModelFolder.of(folder).template_file[0]
    source = f"{item.label} ({file})" if file else f"the family ({family.template})"
    source = source if isinstance(item, External) else item.label
    source = "--template" if choice.template else source
    encoder = Encoder(ModelFolder.of(folder).tokenizer, template)
    by = "--end says" if choice.end else "it writes"
    words = [f"template of {source}; answers end with {encoder.template.end} (id {encoder.end_id}), as {by}"]
    return Reader(encoder, source, words + template_words(encoder, ModelFolder.of(folder).stop_ids))


def _plain(item: Any, marks: tuple[str, str]) -> str:
    """An example as text, with what is trained on between marks."""
    from adpa_cli.data.examples import Dialogue

    def marked(text: str) -> str:
        return f"{marks[0]}{text}{marks[1]}"

    def said(turn: Message) -> str:
        return " ".join(text for text in (turn.content, turn.more) if text)

    if isinstance(item, Dialogue):
        turns = [(t.role, marked(said(t)) if t.role == "assistant" else said(t)) for t in item.messages]
    else:
        turns = [(turn.role, said(turn)) for turn in item.prompt]
        turns += [("chosen", marked(item.chosen)), ("rejected", marked(item.rejected))]
    return "\n".join([f"row {item.row} · {item.id}", *(f"{role}: {text}" for role, text in turns)])


def marks_for(stream: IO[str]) -> tuple[str, str]:
    """The marks that a stream can encode."""
    try:
        "".join(MARKS).encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII_MARKS
    return MARKS


@dataclass(frozen=True)
class View:
    """One sequence that a model sees: `side` is chosen, rejected, or empty for a dialogue; `mask` is what is trained.

    `cut` counts the tokens that the maximum length took away.
    """

    row: int
    id: str
    side: str
    ids: Sequence[int]
    mask: Sequence[bool]
    cut: int

    @property
    def head(self) -> str:
        """One line about it."""
        lost = f", {self.cut} cut away" if self.cut else ""
        side = f"{self.side} · " if self.side else ""
        return f"row {self.row} · {self.id} · {side}{len(self.ids)} tokens, {sum(self.mask)} trained{lost}"


def preview(
    items: Iterable[Pair | Dialogue],
    encoder: Encoder,
    *,
    count: int = 3,
    max_length: int = 2048,
    marks: tuple[str, str] = MARKS,
    markup: bool = False,
) -> str:
    """Text of the first `count` items, special tokens shown; `markup` colours what is trained on (rich markup)."""
    return "\n\n".join(
        "\n".join(
            f"{_escape(view.head) if markup else view.head}\n{marked(view.ids, view.mask, encoder, marks, markup)}"
            for view in views(item, encoder, max_length)
        )
        for item in islice(items, count)
    )


def views(item: Pair | Dialogue, encoder: Encoder, max_length: int) -> Iterator[View]:
    """What a model sees of one example."""
    from adpa_cli.data.chat import fit_answers, fit_dialogue
    from adpa_cli.data.examples import Dialogue
    from adpa_cli.errors import named_row

    if isinstance(item, Dialogue):
        with named_row(f"row {item.row}"):
            ids, mask = encoder.dialogue(item.messages)
        fitted = fit_dialogue(ids, mask, max_length, bos_id=encoder.bos_id)
        if fitted is not None:
            yield View(item.row, item.id, "", *fitted)
        return
    with named_row(f"row {item.row}"):
        prompt, answers = encoder.answered(item.prompt, item.chosen, item.rejected)
    both = fit_answers(prompt, answers, max_length, bos_id=encoder.bos_id) or ()
    for name, each in zip(("chosen", "rejected"), both, strict=False):
        whole = [False] * len(each.prompt) + [True] * len(each.answer)
        yield View(item.row, item.id, name, (*each.prompt, *each.answer), whole, each.cut_prompt + each.cut_answer)


def marked(ids: Sequence[int], mask: Sequence[bool], encoder: Encoder, marks: tuple[str, str], markup: bool) -> str:
    """The text of some ids, each run that is trained on between marks."""
    text = ""
    for trained, run in groupby(zip(ids, mask, strict=True), key=lambda each: each[1]):
        piece = encoder.decode([id_ for id_, _ in run], special=True)
        if trained:
            piece = marks[0] + piece + marks[1]
        if markup:
            piece = f"[green]{_escape(piece)}[/green]" if trained else _escape(piece)
        text += piece
    return text


def _escape(text: str) -> str:
    """Text that rich prints as it is."""
    from rich.markup import escape

    return escape(text)


COMMAND = Command("data", "Look", 3, data)
