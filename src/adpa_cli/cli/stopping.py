"""The first signal asks for a clean stop, the second leaves at once."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

from adpa_cli.errors import Stopped


class Stopping:
    """`asked` is the name of the first signal that came, or None. While `working`, a stage looks at it itself."""

    def __init__(self) -> None:
        self.asked: str | None = None
        self.working = False

    def is_working(self, busy: bool) -> None:
        """A stage begins or ends to compute."""
        self.working = busy

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note the signal; outside of stage work stop at once."""
        name = signal.Signals(number).name
        if self.asked is not None:
            os._exit(Stopped.CODES[name])
        self.asked = name
        if not self.working:
            raise Stopped(name, f"stopped by {name}; nothing was lost")
        sys.stderr.write(f"\n{name}: finishing this step and saving; once more leaves at once\n")


@contextlib.contextmanager
def stoppable() -> Iterator[Stopping]:
    """Catch the four stopping signals for the time of a command."""
    stopping = Stopping()
    names = [name for name in Stopped.CODES if hasattr(signal, name)]
    before = {name: signal.getsignal(getattr(signal, name)) for name in names}
    for name in names:
        signal.signal(getattr(signal, name), stopping.handle)
    try:
        yield stopping
    finally:
        for name, handler in before.items():
            signal.signal(getattr(signal, name), handler)
