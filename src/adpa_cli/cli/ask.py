"""Questions to a person at a terminal: asked on stderr, answered on stdin, never on stdout, which belongs to ids."""

from __future__ import annotations

import os
import sys

ANSWERS = {"y": True, "yes": True, "n": False, "no": False}


def can_ask() -> bool:
    """Whether stdin and stderr are terminals, and this process is not in the background of one (reading stops it)."""
    streams = (sys.stdin, sys.stderr)
    if any(stream is None or stream.closed or not stream.isatty() for stream in streams):
        return False
    try:
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    except OSError:  # a terminal that controls no job, or no descriptor at all
        return True


def confirm(question: str, default: bool) -> bool:
    """Ask until the answer is yes or no; an empty line is `default`, the end of the input (Ctrl-D) is no.

    Without somebody to ask the answer is `default`: what needs an explicit yes has False there, and looks at `can_ask`
    to say which option stands for it. A signal that comes meanwhile raises what its handler raises.
    """
    if not can_ask():
        return default
    while True:
        sys.stderr.write(f"{question} {'[Y/n]' if default else '[y/N]'} ")
        sys.stderr.flush()
        line = sys.stdin.readline()
        if not line:
            sys.stderr.write("\n")
            return False
        answer = line.strip().lower()
        if not answer:
            return default
        if answer in ANSWERS:
            return ANSWERS[answer]
