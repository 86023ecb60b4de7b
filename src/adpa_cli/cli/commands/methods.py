"""`adpa methods`: the training methods, or one of them with its formula, needs and parameters."""

from __future__ import annotations

from typing import Annotated

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console import complete
from adpa_cli.cli.console import options as opt
from adpa_cli.cli.console.streams import out, terminal_width
from adpa_cli.report import text


def methods(
    name: Annotated[str | None, opt.argument("NAME", "Show this method in full.", complete.methods)] = None,
) -> None:
    """List the training methods, or show one with its formula, inputs and parameters.

    adpa methods · adpa methods adpa
    """
    from adpa_cli.report import catalogue

    if name is None:
        every = catalogue.every()
        out(
            lambda: catalogue.listed(every, terminal_width()),
            lambda: text.tsv(catalogue.list_rows(every)),
            lambda: [catalogue.record(one) for one in every],
        )
    else:
        one = catalogue.entry(name)
        out(
            lambda: catalogue.page(one, terminal_width()),
            lambda: text.tsv(catalogue.page_rows(one)),
            lambda: catalogue.record(one),
        )


COMMAND = Command("methods", "Look", 4, methods, also=("losses", "algorithms"))
