"""`adpa models`: the aliases of models."""

from __future__ import annotations

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console.streams import out, terminal_width


def models() -> None:
    """List the aliases: each model with size, licence and card, its teacher and data; the ready pairs."""
    from adpa_cli.report import models as catalogue
    from adpa_cli.report import text

    every = list(catalogue.entries())
    out(
        lambda: catalogue.listed(every, terminal_width()),
        lambda: text.tsv(catalogue.tsv_rows(every)),
        lambda: [catalogue.record(one) for one in every],
    )


COMMAND = Command("models", "Look", 5, models)
