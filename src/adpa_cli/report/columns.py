"""Texts that grow at the same time, side by side, line by line: no cursor is moved, so any terminal can show it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from adpa_cli.report.text import pad, width_of

GAP = " │ "
LEAST = 24
"""Columns below which two texts are shown one after the other."""


def column_width(count: int, width: int) -> int:
    """Columns for each of `count` texts in a terminal; 0 when they do not fit side by side."""
    each = (width - len(GAP) * (count - 1)) // count
    return each if count > 1 and each >= LEAST else 0


def side_by_side(streams: Sequence[Iterator[str]], heard: list[str], each: int) -> Iterator[str]:
    """Lines of texts of `each` columns, as soon as all of them know theirs; `heard` is the texts so far."""
    running = set(range(len(streams)))
    printed = 0
    while True:
        for place in sorted(running):
            piece = next(streams[place], None)
            if piece is None:
                running.discard(place)
            else:
                heard[place] += piece
        lines = [wrapped(text, each) for text in heard]
        # The last line of a text that goes on may still change.
        ready = min((len(lines[place]) - 1 for place in running), default=max(map(len, lines)))
        while printed < ready:
            cells = [pad(line[printed] if printed < len(line) else "", each) for line in lines]
            yield GAP.join(cells).rstrip()
            printed += 1
        if not running:
            return


def wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns; adding to the text changes the last of them only."""
    lines: list[str] = []
    for paragraph in text.expandtabs(4).split("\n"):
        line = ""
        for word in paragraph.split(" "):
            if line and width_of(line) + 1 + width_of(word) > width:
                lines.append(line)
                line = ""
            elif line:
                line += " "
            for letter in word:
                if width_of(line) + width_of(letter) > width:
                    lines.append(line)
                    line = ""
                line += letter
        lines.append(line)
    return lines
