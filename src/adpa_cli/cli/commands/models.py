"""`adpa models`: the aliases of models, and what of them runs on a card."""

from __future__ import annotations

from typing import Annotated

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console import options as opt
from adpa_cli.cli.console.streams import out, terminal_width


def models(
    card: Annotated[
        str | None,
        opt.option(
            "--card",
            help="Show what can be trained on a GPU with this much memory, or on this machine.",
            metavar="GB|here",
        ),
    ] = None,
) -> None:
    """List the models that have an alias, with size, licence, teacher and data; ready pairs and reward models too.

    adpa models · adpa models --card 24
    """
    from adpa_cli.report import models as catalogue
    from adpa_cli.report import text

    if card is not None:
        from adpa_cli.report import on_card

        memory = on_card.card_bytes(card)
        fits = list(on_card.fits(memory))
        out(
            lambda: on_card.screen(fits, memory, terminal_width()),
            lambda: text.tsv(on_card.tsv_rows(fits)),
            lambda: [on_card.record(fit) for fit in fits],
        )
        return
    every = [*catalogue.entries(), *catalogue.reward_entries()]
    out(
        lambda: catalogue.listed(every, terminal_width()),
        lambda: text.tsv(catalogue.tsv_rows(every)),
        lambda: [catalogue.record(one) for one in every],
    )


COMMAND = Command("models", "Look", 5, models, also=("aliases",))
