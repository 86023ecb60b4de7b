"""`adpa env`."""

from __future__ import annotations


def env() -> None:
    """Show what this machine offers: versions, devices, cores, memory, the store, the Hugging Face cache.

    adpa env · adpa env --json > env.json
    """
    from adpa_cli.cli.look import out
    from adpa_cli.cli.streams import GLOBALS
    from adpa_cli.report import env as report
    from adpa_cli.report import text
    from adpa_cli.store.store import Store

    facts = report.facts(Store.find_or_empty(GLOBALS.store))
    out(
        lambda: "".join(f"{text.pad(name, 21)} {report.shown(name, value)}\n" for name, value in facts.items()),
        lambda: text.tsv((name, report.plain(value)) for name, value in facts.items()),
        lambda: facts,
    )
