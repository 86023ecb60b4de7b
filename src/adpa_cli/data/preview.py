"""The first rows as a model will see them, with what is trained on between ⟦ and ⟧."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
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
    if isinstance(item, Dialogue):
        sequences = [("", *encoder.dialogue(item.messages))]
    else:
        prompt = encoder.prompt(item.prompt)
        sequences = []
        for name, text in (("chosen", item.chosen), ("rejected", item.rejected)):
            answer = encoder.answer(text)
            sequences.append((name, prompt + answer, [False] * len(prompt) + [True] * len(answer)))
    for name, ids, mask in sequences:
        kept, seen, cut = fit_dialogue(ids, mask, max_length, bos_id=encoder.bos_id, where=f"row {item.row}")
        yield View(item.row, item.id, name, kept, seen, cut)


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
