"""How a plan is carried out, as a person sees it: a line for every finished stage, a bar for the one at work."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence

from adpa_cli.cli.console import streams
from adpa_cli.report import text
from adpa_cli.running.execute import Pace
from adpa_cli.stages import Node
from adpa_cli.store.manifest import Manifest

REDRAW_SECONDS = 0.1
TURN_SECONDS, SILENT_SECONDS = 0.5, 60.0
"""How often the sign of life turns, and after what silence a stage is said to be at work where no bar is drawn."""
TURNING = "|/-\\"
WORTH_DRAWING = 5.0
"""Seconds after which one is told of the data that are read."""
WAIT_WORTH_SAYING = 0.05
CALM = "You can interrupt this at any time; the same command continues where it stopped."
_ASIDE = {"grad_norm", "critic_grad_norm", "tokens", "padding", "tokens_per_s", "mfu", "wait"}


class Screen:
    """Shows a plan being carried out: a line per finished stage, and where it is `live` one bar for the current one.

    The bar is drawn with carriage returns only, by a command in the foreground of a terminal whose ids go to no other
    program: that one may share the terminal, and two bars would be drawn over each other. While a stage is at work a
    thread turns a sign of life, for loading a model and a block of a large one take minutes in which nothing is told.
    """

    def __init__(self, quiet: bool, into_a_pipe: bool = False) -> None:
        self.quiet = quiet
        self.live = not quiet and not into_a_pipe and _can_draw()
        self.stage = ""
        """The stage that was begun last."""
        self._head = ""
        self._pace = Pace()
        self._began, self._share_before = 0.0, -1.0
        self._drawn_at, self._drawn = 0.0, False
        self._seconds: dict[str, float] = {}
        self._reading, self._reading_pace, self._reading_began = "", Pace(), 0.0
        self._line, self._turns, self._told_at = "", 0, 0.0
        self._idle = threading.Event()
        self._idle.set()
        self._lock = threading.RLock()

    def expect(self, seconds: Mapping[str, float]) -> None:
        """How long the stages that are still to be made may take, by label: the bar then shows the whole time left."""
        self._seconds = dict(seconds)

    def say(self, line: str) -> None:
        """One line, above the bar."""
        if not self.quiet:
            with self._lock:
                self._wipe()
                streams.say(line + "\n")
                self._told_at = time.monotonic()

    def start(self, node: Node, n: int, of: int) -> None:
        """A stage begins; before the first it is said that nothing is lost where one is stopped."""
        if not self.stage:
            self.say(CALM)
        self.stage, self._head = node.label, f"[{n}/{of}] {node.role}"
        self._pace, self._began, self._share_before = Pace(), time.monotonic(), -1.0
        self._seconds.pop(node.label, None)
        if self.live:
            self._draw(f"{self._head}: {node.what}")
        else:
            self.say(f"{self._head}: {node.what}  {node.label}")
        self._line = f"{self._head}: {node.what}"
        if not self.quiet and self._idle.is_set():
            self._idle = threading.Event()
            threading.Thread(target=self._turn, args=(self._idle,), daemon=True).start()

    def _turn(self, idle: threading.Event) -> None:
        """Show that a stage is at work until the screen is closed."""
        while not idle.wait(TURN_SECONDS):
            with self._lock:
                now = time.monotonic()
                silent = now - max(self._drawn_at, self._told_at)
                if idle.is_set() or not self._line or silent < (TURN_SECONDS if self.live else SILENT_SECONDS):
                    continue
                begun = "" if self._share_before >= 0 else f"  {text.human_time(now - self._began)} so far"
                if self.live:
                    self._turns += 1
                    self._draw(f"{self._line}{begun}", TURNING[self._turns % len(TURNING)])
                else:
                    self.say(f"  {self._head}  at work{begun}")

    def progress(self, step: int, of: int, numbers: Mapping[str, float]) -> None:
        """A stage has done `step` of `of`."""
        share, now = step / max(of, 1), time.monotonic()
        if self._share_before < 0:  # loading, and the work of an earlier command, say nothing of the pace
            self._share_before, self._began = share, now
        done = share - self._share_before
        left = (now - self._began) / done * (1 - share) if done > 0 else None
        words = [f"{step}/{of}", self._time(left), *_number_words(numbers)]
        self._line = "  ".join([f"{self._head} {_bar(share, _columns())}", *words])
        if self.live:
            if now - self._drawn_at >= REDRAW_SECONDS or step == of:
                self._draw(self._line)
        elif self._pace.is_due(share):
            self.say("  ".join([f"  {self._head}", *words]))

    def reading(self, what: str, done: int, of: int) -> None:
        """So many rows of the data are read or tokenised, of how many (0 where nobody knows); said where it takes a
        while."""
        now = time.monotonic()
        if what != self._reading:
            self._reading, self._reading_pace, self._reading_began = what, Pace(), now
        share, waited = done / of if of else 0.0, now - self._reading_began
        if (self.live and waited < WORTH_DRAWING) or (not self.live and not self._reading_pace.is_due(share)):
            return
        left = [f"{text.human_time(waited / share * (1 - share))} left"] if share else []
        counted = [f"{done:,}/{of:,} rows" if of else f"{done:,} rows", *left]
        if not self.live:
            self.say("  ".join([f"  {what}", *counted]))
        elif done == of:
            self._wipe()
            self._line = self._head
        elif now - self._drawn_at >= REDRAW_SECONDS:
            self._line = "  ".join([f"{what} {_bar(share, _columns())}" if of else what, *counted])
            self._draw(self._line)

    def _time(self, left: float | None) -> str:
        """The time that this stage still takes, and all of them together where their times are estimated."""
        here = f"{text.human_time(left)} left" if left is not None else "? left"
        if left is None or not self._seconds:
            return here
        return f"{here}, {text.human_time(left + sum(self._seconds.values()))} in all"

    def done(self, node: Node, manifest: Manifest, fresh: bool) -> None:
        """A stage is finished, or was there."""
        self._line = ""
        self._seconds.pop(node.label, None)
        if fresh:
            seconds = text.human_time(float(manifest.made["seconds"]))
            said = "; ".join(manifest.metrics.get("say", ()))
            line = f"done   {node.label:<27} {node.role:<17} {seconds:>6}  {text.human_size(manifest.size):>8}  {said}"
            self.say(line.rstrip())
            for warning in manifest.metrics.get("watch", ()):
                self.say(f"{streams.in_colour('Warning:', text.WARNING)} {warning}")

    def _draw(self, line: str, sign: str = "") -> None:
        width = _columns() - 1
        shown = _fitted(text.for_encoding(line, sys.stderr.encoding), width - 2)
        with self._lock:
            streams.say("\r" + text.pad(f"{shown} {sign}", width))
            self._drawn_at, self._drawn = time.monotonic(), True

    def _wipe(self) -> None:
        with self._lock:
            if self._drawn:
                streams.say("\r" + " " * (_columns() - 1) + "\r")
                self._drawn = False

    def close(self) -> None:
        """Leave a clean line; nothing is drawn until a stage begins."""
        self._idle.set()
        self._line = ""
        self._wipe()


def _can_draw() -> bool:
    """Whether stderr is a terminal that moves its cursor, and this command is in its foreground."""
    if not sys.stderr.isatty() or os.environ.get("TERM", "dumb") in ("dumb", "unknown", ""):
        return False
    try:
        return os.tcgetpgrp(sys.stderr.fileno()) == os.getpgrp()
    except OSError:
        return True


def _columns() -> int:
    return shutil.get_terminal_size().columns


def _bar(share: float, columns: int) -> str:
    room = 20 if columns >= 80 else 8
    filled = int(room * share)
    return "█" * filled + "░" * (room - filled)


def _fitted(line: str, width: int) -> str:
    """As many of the parts of a line as fit."""
    while "  " in line and text.width_of(line) > width:
        line = line.rpartition("  ")[0].rstrip()
    return line if text.width_of(line) <= width else line[: max(width, 0)]


def _number_words(numbers: Mapping[str, float]) -> Sequence[str]:
    """The loss and the first other numbers; how fast a training goes, and whether it waits."""
    plain = {name: value for name, value in numbers.items() if "/" not in name and name not in _ASIDE}
    words = [f"{name} {plain[name]:.4g}" for name in sorted(plain, key=lambda name: name != "loss")[:3]]
    if "tokens_per_s" in numbers:
        words.append(f"{text.number(round(numbers['tokens_per_s']))} tokens/s")
    if numbers.get("wait", 0.0) >= WAIT_WORTH_SAYING:
        words.append(f"{100 * numbers['wait']:.0f} % waiting for data")
    return words
