"""zstandard frames: pieces with their own statistics on the way in, bounded sizes on the way out."""

from __future__ import annotations

import zstandard

from adpa_cli.errors import Corrupt

LEVEL = 9
MAX_RATIO = 4096
"""No frame may decompress to more than this times its size, plus `FREE`: what refuses a zip bomb."""
FREE = 1 << 20
_LEAST = 256
"""Pieces shorter than this share the block of the next: a block of its own would cost them more than it saves."""
_SLICE = 8192
"""A block costs at least 4 bytes, so blocks of this size keep any content within MAX_RATIO."""


class Compressor:
    """Compresses many frames, reusing one context."""

    def __init__(self) -> None:
        parameters = zstandard.ZstdCompressionParameters.from_level(
            LEVEL, write_checksum=True, write_content_size=True, threads=0
        )
        self._zstd = zstandard.ZstdCompressor(compression_params=parameters)

    def frame(self, pieces: list[bytes]) -> bytes:
        """One frame with content size and checksum, a new block after each piece that is not short."""
        size = sum(map(len, pieces))
        frame = self._blocks(pieces, size)
        if size > FREE + MAX_RATIO * len(frame):
            content = b"".join(pieces)
            frame = self._blocks([content[i : i + _SLICE] for i in range(0, size, _SLICE)], size)
        return frame

    def _blocks(self, pieces: list[bytes], size: int) -> bytes:
        stream = self._zstd.compressobj(size=size)
        parts, waiting = [], 0
        for piece in pieces:
            parts.append(stream.compress(piece))
            waiting += len(piece)
            if waiting >= _LEAST:
                parts.append(stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
                waiting = 0
        return b"".join([*parts, stream.flush()])


class Decompressor:
    """Decompresses many frames, reusing one context."""

    def __init__(self) -> None:
        self._zstd = zstandard.ZstdDecompressor()

    def content(self, frame: bytes | memoryview, most: int | None = None) -> bytes:
        """The content of exactly one frame, at most `most` bytes.

        Raises Corrupt on damage, a missing size or checksum, or a zip bomb; before anything is allocated for it.
        """
        bound = FREE + MAX_RATIO * len(frame)
        bound = bound if most is None else min(bound, most)
        try:
            facts = zstandard.get_frame_parameters(frame)
            if not facts.has_checksum or facts.dict_id or facts.content_size > bound:
                raise Corrupt("a frame has no checksum, or an impossible size")
            return self._zstd.decompress(frame, read_across_frames=False, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise Corrupt(f"a frame does not decompress ({error})") from None
