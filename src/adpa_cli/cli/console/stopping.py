"""The first signal asks for a clean stop, the second leaves at once; `--stop-after` is a signal that time sends."""

from __future__ import annotations

import contextlib
import os
import re
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from adpa_cli.cli.console.streams import GLOBALS, fail, say
from adpa_cli.errors import Stopped, UsageError

GRACE_SECONDS = 3.0  # what may pass outside of stage work until a library that does not let go is left behind
_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_TIME = re.compile(r"(?:\d+(?:\.\d+)?[dhms])+")


def seconds_of(text: str) -> float:
    """`3h50m`, `90s`, `1.5h` in seconds. Raises UsageError for anything else, and for no time at all."""
    parts = re.findall(r"(\d+(?:\.\d+)?)([dhms])", text) if _TIME.fullmatch(text) else []
    seconds = sum(float(number) * _UNITS[unit] for number, unit in parts)
    if not 0 < seconds < 1e8:
        raise UsageError(
            f"--stop-after must be a time with its unit; got {text}", "write, for example, 3h50m, 90s or 2h"
        )
    return seconds


class _Leave(BaseException):
    """A signal outside of stage work. No Exception: libraries that catch those must not swallow it."""


class Stopping:
    """`asked` is the name of the first signal that came, or None. While `working`, a stage looks at it itself."""

    def __init__(self, again: Callable[[], str], is_ending: Callable[[], bool]) -> None:
        self.asked: str | None = None
        self.working = False
        self.again = again
        self.is_ending = is_ending

    def is_working(self, busy: bool) -> None:
        """A stage begins or ends to compute."""
        self.working = busy

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note the first signal; outside of stage work unwind at once."""
        if self.asked is not None or self.is_ending():
            return
        self.asked = signal.Signals(number).name
        if not self.working:
            raise _Leave
        if GLOBALS.json and not sys.stderr.isatty():  # who reads errors as JSON is told nothing else
            return
        again = "Press Ctrl-C" if self.asked == "SIGINT" else "Send the signal"
        say(f"\nStopping after this step and saving the progress. {again} again to quit immediately.\n")

    def stopped(self) -> Stopped:
        """What to raise when nothing had to be saved."""
        name = self.asked or "SIGINT"
        return Stopped(name, f"{Stopped.opening(name)}; everything that was finished is saved", self.again())

    def watch(self, wakeup: int) -> None:
        """Leave at the second signal, whatever the main thread is doing; ends when the pipe `wakeup` is closed."""
        numbers = {getattr(signal, name): name for name in Stopped.CODES if hasattr(signal, name)}
        patience: float | None = None
        came = 0
        poll = select.poll()  # unlike select, it takes any descriptor
        poll.register(wakeup, select.POLLIN)
        while True:
            ready = poll.poll(patience and 1000 * patience)
            if not ready and not self.working:
                os._exit(fail(self.stopped()))
            read = os.read(wakeup, 64) if ready else b""
            if ready and not read:
                return os.close(wakeup)
            patience = None
            for name in (numbers[number] for number in read if number in numbers):
                came += name != "SIGALRM"  # the time is over: nobody has asked in person yet
                if came > 1:
                    os._exit(Stopped.CODES[name])
                patience = GRACE_SECONDS


@contextlib.contextmanager
def stoppable(
    again: Callable[[], str], after: float | None = None, is_ending: Callable[[], bool] = lambda: False
) -> Iterator[Stopping]:
    """Catch the stopping signals for the time of a command, and stop it `after` seconds from its start.

    `again` is the command that goes on. Signals that are ignored already stay so, as `nohup` and shells want it, but
    for the alarm that `after` asks for; where the command `is_ending` anyway, none is heeded any more. Raises Stopped
    for a signal that comes outside of stage work.
    """
    stopping = Stopping(again, is_ending)
    names = {*Stopped.heeded(), *(["SIGALRM"] if after is not None else [])}
    before = {name: signal.getsignal(getattr(signal, name)) for name in names}
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    threading.Thread(target=stopping.watch, args=(reading,), daemon=True).start()
    try:
        for name in before:
            signal.signal(getattr(signal, name), stopping.handle)
        if after is not None:
            signal.setitimer(signal.ITIMER_REAL, max(after - (time.monotonic() - GLOBALS.begun), 1e-3))
        yield stopping
    except _Leave:
        raise stopping.stopped() from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for name, handler in before.items():
            signal.signal(getattr(signal, name), signal.SIG_DFL if handler is None else handler)
        signal.set_wakeup_fd(wakeup)
        os.close(writing)
