"""`adpa report`: a page that compares models, with figures, answers and where they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console import options as opt
from adpa_cli.cli.console.streams import artifacts, out
from adpa_cli.errors import UsageError


def report(
    refs: Annotated[list[str] | None, opt.argument("REF…", "Models, or evaluations of them; - reads stdin.")] = None,
    to: Annotated[
        str, opt.option("--to", help="Page, or folder for SVG and CSV too [report.html].", metavar="FILE.html|DIR")
    ] = "report.html",
) -> None:
    """Write a page about models: their scores, curves, answers and lineage.

    adpa report best
    adpa report best other --to report.html
    adpa run sweep.toml | adpa report - --to sweep/   also every figure as SVG, every table as CSV
    """
    store, manifests = artifacts(refs)
    if not manifests:
        raise UsageError(
            "a report is of models, and none is named", "adpa report REF…, or adpa run R.toml | adpa report -"
        )
    path = Path(to)
    if path.suffix.lower() in (".html", ".htm"):
        from adpa_cli.report.html import checked_path

        checked_path("--to", to)
    elif path.is_file() or (path.suffix and not path.is_dir()):
        raise UsageError(f"--to {to} is neither a page nor a folder", "name FILE.html, or a folder: report/")
    from adpa_cli.report.html.report import write

    written = [str(one) for one in write(store, manifests, path)]
    more = f" and {len(written) - 1} files of figures and numbers" if len(written) > 1 else ""
    out(lambda: f"written: {written[0]}{more}", lambda: written[0], lambda: {"written": written})


COMMAND = Command("report", "Look", 2, report)
