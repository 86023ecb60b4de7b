"""Options that several commands share, each declared once."""

from __future__ import annotations

from typing import Annotated

import typer

WHAT, MUCH, WHERE, AFTER, FIRST = "What", "How much", "Where and when (noise at most)", "After", "Look first"


def option(*names: str, help: str, panel: str, metavar: str | None = None) -> typer.models.OptionInfo:
    found: typer.models.OptionInfo = typer.Option(
        *names, help=help, rich_help_panel=panel, metavar=metavar, show_default=False
    )
    return found


Data = Annotated[
    list[str] | None, option("--data", help="Preference data; several are concatenated.", panel=WHAT, metavar="SRC")
]
SftData = Annotated[list[str] | None, option("--sft-data", help="Data of the SFT stages.", panel=WHAT, metavar="SRC")]
Teacher = Annotated[
    str | None, option("--teacher", help="The aligned teacher, or a ready pair.", panel=WHAT, metavar="MODEL")
]
Reference = Annotated[
    str | None, option("--reference", help="The model the teacher was aligned from.", panel=WHAT, metavar="MODEL")
]
Sets = Annotated[
    list[str] | None,
    option("--set", help="Parameter, e.g. gamma=2, sft.lr=1e-5.", panel=WHAT, metavar="[STAGE.]KEY=VAL"),
]
Seed = Annotated[int | None, option("--seed", help="Seed of what comes after the student's SFT [0].", panel=MUCH)]
SeedAll = Annotated[int | None, option("--seed-all", help="Seed of every stage.", panel=MUCH)]
Limit = Annotated[int | None, option("--limit", help="Use the first N rows of the data.", panel=MUCH, metavar="N")]
MaxSteps = Annotated[int | None, option("--max-steps", help="Stop training after N steps.", panel=MUCH, metavar="N")]
Lr = Annotated[float | None, option("--lr", help="Peak learning rate.", panel=MUCH, metavar="X")]
Epochs = Annotated[float | None, option("--epochs", help="Passes over the data.", panel=MUCH, metavar="X")]
BatchSize = Annotated[
    int | None, option("--batch-size", help="Rows of an optimizer step, over all processes.", panel=MUCH, metavar="N")
]
SkipBadRows = Annotated[bool, option("--skip-bad-rows", help="Leave out rows that cannot be used.", panel=WHAT)]
Gpus = Annotated[
    str | None, option("--gpus", help="Processes: one per GPU, or sharing the CPU.", panel=WHERE, metavar="N|all")
]
Tokens = Annotated[
    int | None, option("--tokens-per-device", help="Padded tokens of a micro-batch.", panel=WHERE, metavar="N")
]
NoWait = Annotated[bool, option("--no-wait", help="Exit 4 if another process builds the same.", panel=WHERE)]
Refresh = Annotated[bool, option("--refresh", help="Ask the hub again what its names mean now.", panel=WHERE)]
Tag = Annotated[str | None, option("--tag", help="Name what is made.", panel=AFTER, metavar="NAME")]
DryRun = Annotated[bool, option("--dry-run", "-n", help="Show the plan only.", panel=FIRST)]
