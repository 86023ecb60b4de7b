"""`adpa methods`."""

from __future__ import annotations

from typing import Annotated, Any

import typer


def methods(name: Annotated[str | None, typer.Argument(help="One method in full.", show_default=False)] = None) -> None:
    """List the training methods, or show one with its formula, needs and parameters.

    adpa methods · adpa methods adpa
    """
    from adpa_cli import methods as every
    from adpa_cli.cli.look import out, terminal_width
    from adpa_cli.report import text

    if name is None:
        found = [every.load(known) for known in every.names()]
        rows = [(m.name, m.summary, m.source) for m in found]
        rows.append(("adpa+", "dckd, then adpa from the student it makes", "Gao et al. 2025, Algorithm 2"))
        rows.sort()
        heads = ("METHOD", "WHAT", "SOURCE")
        record: Any = [dict(zip(("method", "what", "source"), row, strict=True)) for row in rows]
        out(
            lambda: "\n".join(text.table(heads, rows, terminal_width(), flexible=1, expendable=(2,))),
            lambda: text.tsv(rows),
            lambda: record,
        )
        return
    method = every.load(name)
    needs = [f"{n.part}" + (f" with {'+'.join(n.signal)} signal" if n.signal else "") for n in method.needs]
    params = parameters(method)
    lines = [
        f"{method.name}   {method.summary}", f"source    {method.source}", f"loss      {method.formula}",
        f"needs     {', '.join(needs)}", "",
    ]  # fmt: skip
    for p in params:
        limits = f" ({p['range']})" if p["range"] else ""
        lines.append(f"  {p['name']:<18} {p['default']!s:<10} [{p['origin']}]  {p['doc']}{limits}")
    for preset, values in method.presets.items():
        lines.append(f"  --set preset={preset}: {', '.join(f'{k}={v}' for k, v in values.items())}")
    full = {
        "method": method.name,
        "source": method.source,
        "formula": method.formula,
        "needs": needs,
        "parameters": params,
    }
    out(
        lambda: "\n".join(lines),
        lambda: text.tsv([(p["name"], p["default"], p["origin"], p["range"], p["doc"]) for p in params]),
        lambda: full,
    )


def parameters(method: Any) -> list[dict[str, Any]]:
    """The parameters of a method with default, origin, range and meaning."""
    import dataclasses

    found = []
    for f in dataclasses.fields(method.params):
        meta = f.metadata
        limits = " | ".join(map(str, meta["choices"])) if meta["choices"] else ""
        if meta["low"] is not None or meta["high"] is not None:
            limits = f"{meta['low']:g} … {meta['high']:g}"
        found.append(
            {"name": f.name, "default": f.default, "origin": meta["origin"], "range": limits, "doc": meta["doc"]}
        )
    return found
