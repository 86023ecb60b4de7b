"""`python -m adpa_cli` is `adpa`."""

from adpa_cli.cli.main import run

run()
