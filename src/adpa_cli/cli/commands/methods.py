"""`adpa methods`."""

from __future__ import annotations

from typing import Annotated

import typer

from adpa_cli.cli.commands import Command


def methods(name: Annotated[str | None, typer.Argument(help="One method in full.", show_default=False)] = None) -> None:
    """List the training methods, or show one with its formula, needs and parameters.

    adpa methods · adpa methods adpa
    """
    from adpa_cli.cli.console.streams import out, terminal_width
    from adpa_cli.report import catalogue, text
    from adpa_cli.report import catalogue as screens

    if name is None:
        every = catalogue.every()
        out(
            lambda: screens.listed(every, terminal_width()),
            lambda: text.tsv(screens.list_rows(every)),
            lambda: [screens.record(one) for one in every],
        )
    else:
        one = catalogue.entry(name)
        out(
            lambda: screens.page(one, terminal_width()),
            lambda: text.tsv(screens.page_rows(one)),
            lambda: screens.record(one),
        )


COMMAND = Command("methods", "Look", 4, methods)
