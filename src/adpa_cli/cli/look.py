"""Printing for the reading commands: a screen at a terminal, tab-separated text in a pipe, JSON when asked."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from typing import Any

from adpa_cli.cli.streams import GLOBALS


def out(screen: Callable[[], str], tsv: Callable[[], str], record: Callable[[], Any]) -> None:
    """Write whichever of the three forms stdout asks for; only that one is made."""
    from adpa_cli.report.text import for_encoding

    if GLOBALS.json:
        text = json.dumps(record(), ensure_ascii=False, indent=1)
    else:
        text = screen() if sys.stdout.isatty() else tsv()
    sys.stdout.write(for_encoding(text.rstrip("\n"), sys.stdout.encoding) + "\n" if text else "")
    sys.stdout.flush()


def terminal_width() -> int:
    """Columns of the terminal, 120 without one."""
    return shutil.get_terminal_size((120, 24)).columns
