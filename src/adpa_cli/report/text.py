"""Numbers, times, tables and curves as text, for a terminal or a pipe. Pure functions; nothing here prints."""

from __future__ import annotations

import itertools
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

BLOCKS = "▁▂▃▄▅▆▇█"
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")
_DAY = 86400
BEST, BETTER, WORSE, WARNING = "1;32", "32", "31", "33"
"""What is shown in colour, and how a terminal is told so: bold green, green, red, yellow."""
_STYLES = re.compile(r"\x1b\[[\d;]*m")
_AGES = (
    (60, 1, "s"), (3600, 60, "min"), (2 * _DAY, 3600, "h"), (60 * _DAY, _DAY, "d"), (730 * _DAY, 30.44 * _DAY, "mo")
)  # fmt: skip
_ASCII = str.maketrans({
    "·": "|", "–": "-", "−": "-", "±": "+-", "…": "...", "→": "->", "├": "|", "└": "`", "│": "|", "×": "x", "†": "*",
    "⟦": "[[", "⟧": "]]", "α": "alpha", "β": "beta", "γ": "gamma", "░": ".",
    "δ": "delta", "λ": "lambda", "π": "pi", "ρ": "rho", "σ": "sigma", "ω": "omega", "Δ": "Delta ", "Σ": "sum ",
    "ŷ": "y^", "Â": "A^", "‖": "||", "²": "^2", "½": "1/2 ", "∇": "grad ", "≥": ">=", "≤": "<=",
    **dict(zip(BLOCKS, "_.,-=+*#", strict=True)),
})  # fmt: skip


def human_size(size: int) -> str:
    """Bytes in decimal units, three digits at most or one decimal: 512 B, 2.5 GB, 304 MB."""
    value, unit = float(size), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    return f"{value:.0f} B" if unit == 0 else f"{value:.{1 if value < 99.95 else 0}f} {_UNITS[unit]}"


def human_age(seconds: float) -> str:
    """How long ago, rounded down: 12 s, 48 min, 30 h, 6 d, 3 mo, 2 y."""
    value = max(0.0, seconds)  # clocks of two machines may disagree
    for limit, size, unit in _AGES:
        if value < limit:
            return f"{int(value / size)} {unit}"
    return f"{int(value / (365.25 * _DAY))} y"


def human_time(seconds: float) -> str:
    """A duration of work: 12 s, 48 min, 1.1 h, 3.2 d."""
    for limit, size, digits, unit in ((99.5, 1, 0, "s"), (5970, 60, 0, "min"), (172800, 3600, 1, "h")):
        if seconds < limit:
            return f"{seconds / size:.{digits}f} {unit}"
    return f"{seconds / 86400:.1f} d"


def number(value: Any) -> str:
    """JSON scalars, or a list of them, for reading: thousands grouped, else four digits; a dash for None."""
    if isinstance(value, list):
        return ", ".join(map(number, value))
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}".replace("e-0", "e-").replace("e+0", "e+")
    return str(value)


def flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested objects as one level with dotted names; lists stay values."""
    level: dict[str, Any] = {}
    for key, item in value.items():
        level |= flat(item, f"{prefix}{key}.") if isinstance(item, Mapping) else {f"{prefix}{key}": item}
    return level


def styled(text: str, style: str, is_coloured: bool) -> str:
    """The text in a style where a stream shows colours; what it says must not depend on that."""
    return f"\x1b[{style}m{text}\x1b[0m" if is_coloured and style and text else text


def width_of(text: str) -> int:
    """Terminal columns: East Asian wide characters take two, combining marks and styles none."""
    text = _STYLES.sub("", text) if "\x1b" in text else text
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in "WF" else 1
        for letter in text
    )


def cut(text: str, width: int) -> str:
    """At most `width` columns; what is cut off is marked by an ellipsis, and has no style."""
    if width_of(text) <= width:
        return text
    text = _STYLES.sub("", text)
    while text and width_of(text) > width - 1:
        text = text[:-1]
    return f"{text.rstrip()}…" if width > 0 else ""


def pad(text: str, width: int, right: bool = False) -> str:
    """Exactly `width` columns, if the text is no longer."""
    space = " " * (width - width_of(text))
    return space + text if right else text + space


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int,
    flexible: int = 0,
    right: Sequence[int] = (),
    expendable: Sequence[int] = (),
    floor: int = 14,
) -> list[str]:
    """Lines of aligned columns, two spaces apart, no longer than `width`.

    Only the column `flexible` is shortened, down to `floor`; then the `expendable` columns are left out in that order,
    which a last line says, and what is still too long is cut.
    """
    lines = [list(header), *map(list, rows)]
    kept = list(range(len(header)))
    widths = [max(width_of(line[column]) for line in lines) for column in kept]
    natural, widths[flexible] = widths[flexible], min(floor, widths[flexible])
    for column in expendable:
        if sum(widths[c] + 2 for c in kept) - 2 > width:
            kept.remove(column)
    spare = width + 2 - sum(widths[c] + 2 for c in kept)
    widths[flexible] = min(natural, widths[flexible] + max(0, spare))
    shown = [
        cut("  ".join(pad(cut(line[c], widths[c]), widths[c], c in right) for c in kept).rstrip(), width)
        for line in lines
    ]
    dropped = [header[c] for c in range(len(header)) if c not in kept]
    return [*shown, cut(f"(no room for: {', '.join(dropped)})", width)] if dropped else shown


def tsv(rows: Iterable[Sequence[Any]]) -> str:
    """Tab-separated lines, uncut; tabs and line ends inside a value become spaces."""
    return "".join("\t".join(" ".join(str(value).split()) for value in row) + "\n" for row in rows)


def records_tsv(records: Sequence[Mapping[str, Any]]) -> str:
    """Flat records as tab-separated lines under a header; nested values as JSON, None as nothing."""
    names = list(dict.fromkeys(name for record in records for name in record))
    return tsv([names, *([cell(record.get(name)) for name in names] for record in records)])


def cell(value: Any) -> str:
    """A value in a tab-separated line."""
    if value is None or isinstance(value, str):
        return value or ""
    return json.dumps(value, ensure_ascii=False)


def wrap(label: str, items: Sequence[str], width: int, gap: str = "  ") -> list[str]:
    """`label` and items side by side in lines no longer than `width`, continued under the first item."""
    lines = [pad(label, 10)]
    empty = True
    for item in items:
        if not empty and width_of(lines[-1]) + len(gap) + width_of(item) > width:
            lines.append(" " * 10)
            empty = True
        lines[-1] += item if empty else gap + item
        empty = False
    return lines


def sparkline(values: Sequence[float | None], width: int = 14) -> str:
    """A curve in one line: means of up to `width` equal parts; a part without finite values is blank."""
    count = min(width, len(values))
    means = [mean(values[len(values) * i // count : len(values) * (i + 1) // count]) for i in range(count)]
    finite = [value for value in means if value is not None]
    low = min(finite, default=0.0)
    span = max(finite, default=0.0) - low
    return "".join(" " if m is None else BLOCKS[round((m - low) / span * 7) if span else 3] for m in means)


def mean(values: Sequence[float | None]) -> float | None:
    """The mean of the finite values, or None without any."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None


def for_encoding(text: str, encoding: str | None) -> str:
    """The text as a stream of this encoding can show it: plain ASCII signs where it has not got ours, else `?`."""
    try:
        text.encode(encoding or "ascii")
        return text
    except (UnicodeEncodeError, LookupError):
        return text.translate(_ASCII).encode("ascii", "replace").decode("ascii")


def is_text(line: str) -> bool:
    """Whether a line could be read whole: bytes that are no text come as lone surrogates."""
    return not any("\ud800" <= letter <= "\udfff" for letter in line)


def beside(left: Sequence[str], right: Sequence[str], width: int, gap: int = 3) -> list[str]:
    """Two blocks side by side where both fit `width` uncut, else one below the other, cut."""
    column = max(map(width_of, left), default=0) + gap
    if left and right and column + max(map(width_of, right)) <= width:
        pairs = itertools.zip_longest(left, right, fillvalue="")
        return [(pad(one, column) + other).rstrip() for one, other in pairs]
    return [cut(line, width) for line in (*left, *right)]


def printable(text: str) -> str:
    """The text with what could move a cursor or hide (control and format characters) escaped; line ends stay."""
    return "".join(
        letter if letter.isprintable() or letter == "\n" else letter.encode("unicode_escape").decode()
        for letter in text
    )


def fold(text: str, width: int, indent: str = "  ") -> list[str]:
    """Printable lines no wider than `width`, broken after a space where there is one."""
    room = max(1, width - width_of(indent))
    return [indent + piece for line in printable(text.expandtabs(4)).split("\n") for piece in _pieces(line, room)]


def _pieces(line: str, room: int) -> list[str]:
    pieces, start, space, used = [], 0, 0, 0
    for place, letter in enumerate(line):
        used += width_of(letter)
        if letter == " ":  # may hang over the edge, where it is not seen
            space = place + 1
        elif used > room and place > start:
            end = space if space > start else place
            pieces.append(line[start:end].rstrip())
            start, used = end, width_of(line[end : place + 1])
    return [*pieces, line[start:].rstrip()]
