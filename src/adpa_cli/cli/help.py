"""docs/help.md: every help screen as a page of Markdown. `python -m adpa_cli.cli.help > docs/help.md` writes it."""

from __future__ import annotations

import sys

from adpa_cli.cli.console.app import program
from adpa_cli.cli.console.help_screens import document


def main() -> None:
    """Write docs/help.md to stdout."""
    sys.stdout.write(document(program(), "adpa"))


if __name__ == "__main__":
    main()
