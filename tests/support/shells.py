"""Real shells at a terminal: a line is typed, the Tab key is pressed, and the shell prints the line as it is then."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

SECONDS = 60.0
SHOW = {"bash": "bind -x '\"\\C-xs\": printf \"\\n<%s>\\n\" \"$READLINE_LINE\"'\n",
        "zsh": "_say() { print -r -- $'\\n'\"<$BUFFER>\" }; zle -N _say; bindkey '^Xs' _say\n"}  # fmt: skip
"""Binds Ctrl-X s to a print of the line as it is."""
LINE = r"\n<([^\n]*)>\r?\n"


class Shell:
    """An interactive bash or zsh that has read its own start-up files in a home directory."""

    def __init__(self, name: str, folder: Path, environment: Mapping[str, str]) -> None:
        self._terminal, theirs = pty.openpty()
        self._process = subprocess.Popen(
            [name, "-i"], cwd=folder, env={**environment, "TERM": "dumb", "PS1": "> "}, stdin=theirs, stdout=theirs,
            stderr=theirs, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.type(SHOW[name] + "echo rea''dy\n")
        self.until("ready")

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._terminal, text.encode())

    def until(self, pattern: str) -> str:
        """What the shell writes up to what a pattern describes, and that."""
        seen, end = "", time.monotonic() + SECONDS
        while not re.search(pattern, seen):
            assert time.monotonic() < end, seen
            if select.select([self._terminal], [], [], 0.1)[0]:
                seen += os.read(self._terminal, 1 << 16).decode(errors="replace")
        return seen

    def completed(self, line: str) -> str:
        """The line after it was typed and Tab was pressed."""
        self.type(f"\x15{line}\t\x18s")
        found = re.search(LINE, self.until(LINE))
        assert found is not None
        return found[1]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._terminal)
