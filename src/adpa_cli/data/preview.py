"""The first rows as a model will see them, with what is trained on between ⟦ and ⟧."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import IO

from adpa_cli.data.chat import Encoder, fit_dialogue
from adpa_cli.data.examples import Dialogue, Pair

MARKS = ("⟦", "⟧")
ASCII_MARKS = ("[[", "]]")


def marks_for(stream: IO[str]) -> tuple[str, str]:
    """The marks that a stream can encode."""
    try:
        "".join(MARKS).encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII_MARKS
    return MARKS


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
    shown = [item for _, item in zip(range(count), items, strict=False)]
    return "\n\n".join("\n".join(_lines(item, encoder, max_length, marks, markup)) for item in shown)


def _lines(
    item: Pair | Dialogue, encoder: Encoder, max_length: int, marks: tuple[str, str], markup: bool
) -> Iterable[str]:
    where = f"row {item.row}"
    if isinstance(item, Dialogue):
        views = [("", *encoder.dialogue(item.messages))]
    else:
        prompt = encoder.prompt(item.prompt)
        views = []
        for name, text in (("chosen", item.chosen), ("rejected", item.rejected)):
            answer = encoder.answer(text)
            views.append((name, prompt + answer, [False] * len(prompt) + [True] * len(answer)))
    for name, ids, mask in views:
        kept, seen, cut = fit_dialogue(ids, mask, max_length, bos_id=encoder.bos_id, where=where)
        lost = f", {cut} cut away" if cut else ""
        head = f"{where} · {item.id} · {name + ' · ' if name else ''}{len(kept)} tokens, {sum(seen)} trained{lost}"
        yield _escape(head) if markup else head
        yield marked(kept, seen, encoder, marks, markup)


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
