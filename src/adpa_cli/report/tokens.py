"""Token ids as text, from the tokenizer that a signal keeps; and text that a terminal may show."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adpa_cli.errors import Corrupt
from adpa_cli.report.text import width_of

FILE_NAME = "tokenizer.json.zst"
MAX_BYTES = 1 << 28
"""A tokenizer that would unpack to more than this is damaged, or a trap."""


@dataclass(frozen=True)
class Tokens:
    """Decodes token ids; without a tokenizer they are shown as numbers."""

    inner: Any = None
    special: frozenset[int] = frozenset()

    def one(self, token_id: int) -> str:
        """One token for reading: `"Sure"` quoted as in JSON, special tokens bare, unknown ids as `[7]`."""
        raw = self.inner.id_to_token(token_id) if self.inner is not None else None
        if raw is None:
            return f"[{token_id}]"
        if token_id in self.special:
            return printable(raw)
        decoded = self.inner.decode([token_id], skip_special_tokens=False)
        if "\ufffd" in decoded:  # part of a character: only the tokenizer's own spelling tells which
            decoded = raw
        elif raw.startswith("▁") and not decoded.startswith(" "):  # decoders drop the space that begins a text
            decoded = f" {decoded}"
        return printable(json.dumps(decoded, ensure_ascii=False))

    def all(self, token_ids: Sequence[int]) -> str:
        """The text of some ids, special tokens included."""
        if self.inner is None:
            return " ".join(map(self.one, token_ids))
        return str(self.inner.decode(list(token_ids), skip_special_tokens=False))


def load(folder: Path) -> Tokens:
    """The tokenizer of a signal's folder; one that shows numbers when there is none. Raises Corrupt."""
    from tokenizers import Tokenizer
    from zstandard import ZstdDecompressor, ZstdError, get_frame_parameters

    path = folder / FILE_NAME
    if not path.exists():
        return Tokens()
    try:
        packed = path.read_bytes()
        if get_frame_parameters(packed).content_size > MAX_BYTES:
            raise ValueError("an impossible size")
        inner = Tokenizer.from_buffer(ZstdDecompressor().decompress(packed))
    except (ZstdError, ValueError) as error:
        raise Corrupt(f"{path} is no tokenizer: {error}", "adpa verify names what is damaged") from error
    special = (token_id for token_id, token in inner.get_added_tokens_decoder().items() if token.special)
    return Tokens(inner, frozenset(special))


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
