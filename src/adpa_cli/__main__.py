"""`python -m adpa_cli` is `adpa`."""

from __future__ import annotations

from adpa_cli.cli.main import run

run()
