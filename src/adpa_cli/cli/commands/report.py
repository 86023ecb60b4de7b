"""`adpa report`: a page that compares models, with figures, answers and where they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console import options as opt
from adpa_cli.cli.console.streams import artifacts, out
from adpa_cli.errors import UsageError


def report(
    refs: Annotated[list[str] | None, opt.argument("REF…", "Models or evaluations; - reads stdin [required].")] = None,
    to: Annotated[
        str,
        opt.option(
            "--to",
            help="The page, or a folder that also gets the figures as SVG and CSV [report.html].",
            metavar="FILE.html|DIR",
        ),
    ] = "report.html",
) -> None:
    """Write a web page about models: scores, curves, sample answers and lineage.

    adpa report best
    adpa report best other --to report.html
    adpa run sweep.toml | adpa report - --to sweep/   also every figure as SVG, every table as CSV
    """
    store, manifests = artifacts(refs)
    if not manifests:
        raise UsageError(
            "adpa report needs the models to report on", "adpa report REF…, or adpa run sweep.toml | adpa report -"
        )
    path = Path(to)
    if path.suffix.lower() in (".html", ".htm"):
        from adpa_cli.report.html import checked_path

        checked_path("--to", to)
    elif path.is_file() or (path.suffix and not path.is_dir()):
        raise UsageError(
            f"--to must be a file that ends in .html, or a folder; got {to}", "for example --to report.html"
        )
    from adpa_cli.report.html.report import write

    written = [str(one) for one in write(store, manifests, path)]
    more = f" and {len(written) - 1} files of figures and numbers" if len(written) > 1 else ""
    out(lambda: f"written: {written[0]}{more}", lambda: written[0], lambda: {"written": written})


COMMAND = Command("report", "Look", 2, report)
