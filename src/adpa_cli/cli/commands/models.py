"""`adpa models`: the aliases of models."""

from __future__ import annotations

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console.streams import out, terminal_width
from adpa_cli.report import text


def models() -> None:
    """List the aliases: each student with its teacher and data, and the ready pairs of teachers."""
    from adpa_cli.families import FAMILIES, READY_PAIRS

    rows = [(f.alias, f.student, f"{f.teacher_alias} ({f.teacher})", f"{f.sft_data}, {f.data}") for f in FAMILIES]
    rows += [(p.alias, f"teachers {p.aligned}", p.reference, "") for p in READY_PAIRS]
    heads = ("ALIAS", "MODEL", "TEACHER", "DATA")
    out(
        lambda: "\n".join(text.table(heads, rows, terminal_width(), flexible=1, expendable=(3,))),
        lambda: text.tsv(rows),
        lambda: [dict(zip(("alias", "model", "teacher", "data"), row, strict=True)) for row in rows],
    )


COMMAND = Command("models", "Look", 5, models)
