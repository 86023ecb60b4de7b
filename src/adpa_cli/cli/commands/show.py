"""`adpa show`: the store, one artifact, what differs between several, single rows, or a recipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from adpa_cli.cli.commands import Command
from adpa_cli.cli.console import complete
from adpa_cli.cli.console import options as opt
from adpa_cli.cli.console.streams import GLOBALS, artifacts, is_coloured, needed, out, say, terminal_width
from adpa_cli.errors import UsageError

if TYPE_CHECKING:
    from adpa_cli.report.closure import Listing
    from adpa_cli.signal.rows import AnswerKey
    from adpa_cli.store.manifest import Manifest
    from adpa_cli.store.store import Store


def show(
    refs: Annotated[
        list[str] | None, opt.argument("REF…", "Artifacts or tags; without any, the store is listed; - reads stdin.")
    ] = None,
    row: Annotated[
        int | None,
        opt.option("--row", help="Show one row, counted from 1, of rollouts, signals or evaluations.", metavar="N"),
    ] = None,
    plot: Annotated[
        str | None,
        opt.option(
            "--plot", help="Plot the course of a training, for example loss,reward [the usual].", metavar="[NAME,…]"
        ),
    ] = None,
    recipe: Annotated[bool, opt.option("--recipe", help="Print the recipe that makes it again, for adpa run.")] = False,
    everything: Annotated[
        bool, opt.option("--all", help="List everything, evaluations and old work included.")
    ] = False,
    html: Annotated[
        str | None, opt.option("--html", help="With --row: write the row of a signal as a web page.", metavar="FILE")
    ] = None,
    student: Annotated[
        str | None, opt.teacher("--student", help="With --html: add the log-probabilities of this model.")
    ] = None,
    fidelity: Annotated[bool, opt.option("--fidelity", help="Report a signal's accuracy and size per token.")] = False,
    teacher: Annotated[
        str | None,
        opt.teacher("--teacher", help="With --fidelity: measure against this teacher, or against the `recorded` one."),
    ] = None,
    count: Annotated[
        int | None, opt.option("--rows", help="Show the first N rows; with --teacher, compare N answers.", metavar="N")
    ] = None,
    closure: Annotated[
        bool, opt.option("--closure", help="List artifacts [all] and what they were made from, to copy them.")
    ] = False,
    listing: Annotated[
        Literal["ids", "files", "manifests"] | None,
        opt.option(
            "--list",
            help="With --closure: folders, all files but the manifests, or what is copied last [ids].",
            metavar="ids|files|manifests",
            completion=complete.words("ids", "files", "manifests"),
        ),
    ] = None,
) -> None:
    """Show the store, one artifact, the differences between several, or one row.

    adpa show · adpa show best · adpa show best other --plot · adpa show cache-teacher/0d9e --row 17
    """
    store, manifests = artifacts(refs)
    for name, value, other, is_given, example in (
        ("--teacher", teacher, "--fidelity", fidelity, "--fidelity --teacher recorded"),
        ("--html", html, "--row", row is not None, "--row 1 --html row.html"),
        ("--student", student, "--html", html is not None, "--row 1 --html row.html --student MODEL"),
        ("--list", listing, "--closure", closure, f"--closure --list {listing}"),
    ):
        if value is not None and not is_given:
            raise UsageError(f"{name} needs {other}", f"adpa show REF {example}")
    first_rows = count is not None and teacher is None
    views = {"--fidelity": fidelity, "--recipe": recipe, "--row N": row is not None, "--rows N": first_rows}
    of_several = {"--plot": plot is not None, "--closure": closure}
    options = [name for name, given in {**views, **of_several}.items() if given]
    if len(options) > 1:
        raise UsageError(f"{' and '.join(options)} cannot be shown together", f"adpa show REF {options[0]}")
    takes_several = options and options[0] in of_several
    if options and not closure and (not manifests if takes_several else len(manifests) != 1):
        what = "trainings" if takes_several else "one artifact"
        raise UsageError(f"{options[0]} needs the name of {what}", f"adpa show REF {options[0]}")
    if fidelity:
        show_fidelity(store, manifests[0], teacher, count)
    elif recipe:
        show_recipe(store, manifests[0])
    elif closure:
        whole = [manifest for manifest in store.artifacts() if not manifest.made.get("smoke")]
        show_closure(store, manifests if refs else whole, listing or "ids")
    elif plot is not None:
        show_plots(store, manifests, plot)
    elif row is not None:
        show_row(store, manifests[0], row, html, student)
    elif count is not None:
        show_rows(store, manifests[0], count)
    elif len(manifests) > 1:
        show_several(store, manifests)
    elif manifests:
        show_one(store, manifests[0])
    else:
        show_all(store, everything)


def show_all(store: Store, whole: bool) -> None:
    """The list of the store; the `whole` of it has rehearsals, evaluations and old work too."""
    from adpa_cli.report import listing

    listed = listing.collect(store)
    out(
        lambda: listing.screen(listed, terminal_width(), time.time(), whole, is_coloured=is_coloured(sys.stdout)),
        lambda: listing.tsv(listed, whole),
        lambda: listing.record(listed),
    )


def show_one(store: Store, manifest: Manifest) -> None:
    """The page of an artifact."""
    from adpa_cli.report import page

    facts = page.collect(store, manifest)
    width, colour = terminal_width(), is_coloured(sys.stdout)
    out(lambda: page.screen(facts, width, time.time(), colour), None, lambda: page.record(facts))


def show_several(store: Store, manifests: Sequence[Manifest]) -> None:
    """What differs between artifacts."""
    from adpa_cli.report import compare

    found = compare.collect(store, manifests)
    out(
        lambda: compare.screen(found, terminal_width(), is_coloured(sys.stdout)),
        lambda: compare.tsv(found),
        lambda: compare.record(found),
    )


def show_closure(store: Store, manifests: Sequence[Manifest], listing: Listing) -> None:
    """All that artifacts need: a table, or a line for each folder or file, which other programs copy."""
    from adpa_cli.report import closure as report
    from adpa_cli.store.closure import closure

    found = closure(store, manifests)

    def lines() -> str:
        remarks = report.said(found) if listing == "ids" else []
        if not GLOBALS.quiet:
            say("".join(f"{remark}\n" for remark in remarks))
        return "".join(f"{line}\n" for line in report.lines(found, listing))

    is_table = listing == "ids"
    out(lambda: report.screen(found, terminal_width()) if is_table else lines(), lines, lambda: report.record(found))


def show_plots(store: Store, manifests: Sequence[Manifest], asked: str) -> None:
    """The curves of trainings, over each other where there are several; `asked` names numbers, "" the usual ones."""
    from adpa_cli.report import plots
    from adpa_cli.report.curves import curves_of, names_in
    from adpa_cli.report.lineage import what

    tags = {artifact: tag for tag, artifact in store.tags().items()}
    trainings = {manifest.ref: curves_of(store, manifest) for manifest in manifests}
    labels = [f"{tags.get(manifest.id, manifest.ref)}  {what(manifest)}" for manifest in manifests]
    names = names_in(list(trainings.values()), asked)
    colour = is_coloured(sys.stdout)
    braille = (sys.stdout.encoding or "").lower().startswith("utf")
    out(
        lambda: plots.screen(trainings, names, labels, terminal_width(), colour, braille),
        lambda: plots.tsv(trainings, names),
        lambda: plots.record(trainings, names),
    )


def show_row(store: Store, asked: Manifest, index: int, html: str | None, student: str | None) -> None:
    """Row `index` of an artifact, from 1, of a model that of its signal; on a page where `html` names one."""
    from adpa_cli.report import rows

    manifest = rows.with_rows(store, asked)
    if manifest is not asked and not GLOBALS.quiet:
        say(f"{asked.ref} was trained on {manifest.ref}; this is its row {index}.\n")
    if html is not None:
        write_tokens(store, manifest, index, html, student)
        return
    out(
        lambda: rows.row_screen(store, manifest, index, terminal_width()),
        None,
        lambda: rows.row_record(store, manifest, index),
    )


def write_tokens(store: Store, manifest: Manifest, index: int, file: str, student: str | None) -> None:
    """Write the page of row `index` of a signal, from 1, with the log-probs of a `student` where one is named."""
    from adpa_cli.report.html import checked_path, save, tokens
    from adpa_cli.report.rows import signal_row
    from adpa_cli.report.signal_prompts import prompt_of

    path = checked_path("--html", file)
    signals, place = signal_row(store, manifest, index)
    key, _ = signals.answer(place)
    logps = None if student is None else _student_logps(store, manifest, key, needed("--student", student))
    facts = [*signals.facts(place), *([("student", student)] if student else [])]
    shown = tokens.block(signals, place, prompt_of(store, manifest, key), facts, logps)
    save(path, tokens.page(f"{manifest.ref}, row {index:,}", shown))
    out(lambda: f"written: {path}", lambda: str(path), lambda: {"written": str(path)})


def _student_logps(store: Store, manifest: Manifest, key: AnswerKey, student: str) -> list[float]:
    from adpa_cli.cli.console.make import computing
    from adpa_cli.planning.resolve_inputs import Names
    from adpa_cli.running.student_logps import student_logps

    with computing(store) as monitor:
        return student_logps(Names(store), manifest, key, student, monitor)


def show_rows(store: Store, manifest: Manifest, count: int) -> None:
    """The first `count` rows of an artifact, a line each."""
    from adpa_cli.report import rows

    out(
        lambda: rows.first_screen(store, manifest, count, terminal_width()),
        lambda: rows.first_tsv(store, manifest, count),
        lambda: rows.first_records(store, manifest, count),
    )


def show_recipe(store: Store, manifest: Manifest) -> None:
    """The TOML that makes an artifact again."""
    from adpa_cli.cli.recipes import recorded

    recipe = recorded.recipe_of(store, manifest)
    text = recorded.toml(recipe, manifest)
    out(lambda: text, lambda: text, lambda: recorded.record(recipe, manifest))


def show_fidelity(store: Store, manifest: Manifest, teacher: str | None, count: int | None) -> None:
    """What a signal keeps; with a `teacher` also how far it is from it on `count` answers."""
    from adpa_cli.report import signal_rows
    from adpa_cli.store.build import plain

    facts = signal_rows.collect(store, manifest)
    if teacher is not None:
        facts["measured"] = _measured(store, manifest, needed("--teacher", teacher), count)
    width = terminal_width()
    out(lambda: signal_rows.screen(facts, width), lambda: signal_rows.tsv(facts), lambda: plain(facts))


def _measured(store: Store, manifest: Manifest, teacher: str, count: int | None) -> dict[str, Any]:
    import tempfile

    from adpa_cli.cli.console.make import computing
    from adpa_cli.planning.resolve_inputs import Names
    from adpa_cli.running.fidelity import ANSWERS, measure

    with computing(store) as monitor, tempfile.TemporaryDirectory(prefix="adpa-fidelity-") as work:
        number = ANSWERS if count is None else count
        return measure(Names(store), manifest, {"aligned": teacher}, number, Path(work), monitor)


COMMAND = Command("show", "Look", 1, show, also=("list", "ls", "ps", "status", "inspect", "info", "runs", "get"))
