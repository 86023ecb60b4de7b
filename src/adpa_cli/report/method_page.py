"""docs/methods.md, written from the method files: `python -m adpa_cli.report.method_page > docs/methods.md`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from adpa_cli.report import catalogue
from adpa_cli.report.catalogue import Entry, settings

COMMAND = "python -m adpa_cli.report.method_page > docs/methods.md"
HEAD = f"""\
# Training methods

Made from the files in `src/adpa_cli/methods` by `{COMMAND}`.
`adpa methods NAME` shows a section of this page at the terminal.

Symbols: y_w is the chosen answer of a pair, y_l the rejected one, ŷ an answer that a model wrote; π is the student,
π_start the model that training starts from, π_aligned and π_reference the teachers; s_t is the prompt with the answer
before token t; mean_t runs over the tokens of an answer, the end token included; L_SFT(y) is mean_t of -log π(y_t).
Every loss is then averaged over the examples of a batch.

A parameter is set by `--set KEY=VALUE`. Its default comes from the paper ([paper]: Gao et al. 2025 for its own methods,
the cited source for the others), from released code ([release]), or was chosen here ([ours]). `--set preset=NAME` sets
several. The column `tiny` has what the built-in family sets otherwise.
"""


def document() -> str:
    """The whole page."""
    entries = catalogue.every()
    links = [[f"[{one.name}](#{_anchor(one.name)})", *one.columns] for one in entries]
    differing = [[f"`{one.name}`", f"`{key}`", words] for one in entries for key, words in one.readings.items()]
    parts = [
        HEAD,
        "## What each method needs\n",
        *_table(("method", "answers", "cached signal", "besides"), links),
        "\n## Where paper and code, or two sources, differ\n",
        "The default follows the paper unless the section of the method says otherwise.\n",
        *_table(("method", "option", "what differs"), differing),
        *(line for one in entries for line in section(one)),
    ]
    return "\n".join(parts) + "\n"


def section(one: Entry) -> Iterator[str]:
    """One method."""
    yield f"\n## {one.name}\n"
    yield f"{one.summary[0].upper()}{one.summary[1:]}. Source: {one.source}.\n"
    yield f"```text\n{one.formula}\n```\n"
    yield from _table(("answers", "with"), one.needs)
    yield from (f"\n`{words.replace(' ', '` ', 1)}." for words in one.variants)
    if one.parameters:
        yield ""
        heads = ("parameter", "default", "tiny", "range", "from", "meaning")
        tiny = {key: catalogue.value(value) for key, value in one.family.items()}
        yield from _table(heads, [
            (f"`{p.name}`", p.default, tiny.get(p.name, ""), p.limits, f"[{p.origin}]", p.doc) for p in one.parameters
        ])  # fmt: skip
    others = [words for words in settings(one.family) if words.split("=")[0] not in {p.name for p in one.parameters}]
    if others:
        yield f"\nThe family `tiny` sets {', '.join(f'`{words}`' for words in others)}."
    for name, values in one.presets.items():
        yield f"\n`preset={name}` sets {', '.join(f'`{words}`' for words in settings(values))}."
    yield from _points(one)
    builds = ", ".join(f"{stage} ({what})" for stage, what in one.stages)
    yield f"\nBuilds {builds}, and then evaluates.\n"
    yield f"```console\n$ {one.example}\n```"


def _anchor(name: str) -> str:
    """What a heading is linked by: signs are dropped, and the second of two that are then equal gets a number."""
    return name.replace("+", "-1")


def _points(one: Entry) -> Iterator[str]:
    if one.readings or one.notes:
        yield ""
    yield from (f"- `{key}`: {words}" for key, words in one.readings.items())
    yield from (f"- {words}" for words in one.notes)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A Markdown table."""
    yield f"| {' | '.join(heads)} |"
    yield "|" + "---|" * len(heads)
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"


def main() -> None:
    """Write the page to stdout."""
    import sys

    sys.stdout.write(document())


if __name__ == "__main__":
    main()
