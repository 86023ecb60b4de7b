"""What a stage said, kept with its artifact in log.txt; how often progress is worth a line, and bytes in words."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

EVERY_SECONDS = 60.0
EVERY_SHARE = 0.05
LEAST_SECONDS = 5.0


def size_words(count: int) -> str:
    """Bytes for people: 16.1 GB, 24.0 MB."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


class Pace:
    """Lets a line of progress through every minute, or every 5 % where those take 5 s at least."""

    def __init__(self) -> None:
        self._at, self._share = time.monotonic(), 0.0

    def is_due(self, share: float) -> bool:
        """Whether to say that `share` (0 to 1) of the work is done."""
        waited = time.monotonic() - self._at
        if waited < EVERY_SECONDS and not (share - self._share >= EVERY_SHARE and waited >= LEAST_SECONDS):
            return False
        self._at, self._share = time.monotonic(), share
        return True


class Log:
    """Appends lines with their time to a file; a file that cannot be written is no reason to stop."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pace = Pace()

    def say(self, text: str) -> None:
        """Add lines."""
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        with contextlib.suppress(OSError), self.path.open("a", encoding="utf-8", errors="replace") as file:
            file.writelines(f"{now}  {line}\n" for line in text.splitlines())

    def progress(self, step: int, of: int, numbers: Mapping[str, float]) -> None:
        """Add a line of progress, when it is due and at the end."""
        if step == of or self._pace.is_due(step / max(of, 1)):
            self.say("  ".join([f"step {step} of {of}", *(f"{name} {value:.4g}" for name, value in numbers.items())]))
