"""Writes docs/results.md and its figures from a store in which the recipes of this folder were run, or checks them.

    python examples/recipes/protocol-tiny/results.py --store DIR [--check]

Nothing is trained. Every number is read from the evaluations of the store, and every sentence that depends on numbers
is made from them. With --check nothing is written, and the exit code is 1 where a file would be another one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from measured import (
    FACTS,
    GREEDY,
    LESS,
    MORE,
    NOISE,
    PULL,
    RMS,
    SAMPLED,
    UNDECIDED,
    Gap,
    Group,
    Mean,
    Measured,
    differences,
)
from words import BEYOND, CONDITIONS, FLOPS, INTRODUCTION, KEEP, LEAD, METHODS, REAL

from adpa_cli.cli.recipes.grid import read_recipe
from adpa_cli.report.html.figures import Figure, Series, as_csv, lines, points
from adpa_cli.report.scores import REWARD
from adpa_cli.store.store import Store

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[2] / "docs" / "results.md"
EQUAL = ", equal FLOPs"
GIVEN = ("Student", "Reference of the teacher", "Teacher")
HALF = "DCKD, first half of ADPA+"
ORDER = (
    ("SFT", "DPO"), ("DPO", "DCKD"), ("DCKD", "ADPA"), ("ADPA", "ADPA+"), ("DCKD", "ADPA+"),
    ("ADPA without reference", "ADPA"),
)  # fmt: skip
"""The order of the paper, the worse one first."""
STATES = (("ADPA on chosen answers", "ADPA"), ("ADPA on the teacher's answers", "ADPA"))
"""That a student's own answers are the best ones to train on."""
CLAMPED, DIVIDED = "ADPA, A clamped to [0, 1]", "ADPA, A divided by its RMS"
CHANGES = (("ADPA", CLAMPED), ("ADPA", DIVIDED), ("DCKD", DIVIDED))
"""What the changes of the advantage that are not in the paper do to ADPA."""
CLAIMS = {LESS: "as in the paper", MORE: "the opposite of the paper", UNDECIDED: "undecided"}
COMPARED = {LESS: "better", MORE: "worse", UNDECIDED: "undecided"}
KINDS = {
    "rate": "the rate of the teacher's DPO", "steps": "epochs of the teacher's DPO", "γ": "γ",
    "dtype": "dtype of the capture",
}  # fmt: skip
BARS = "Means over the seeds; bars are one standard deviation"
Curve = list[tuple[float, float, float]]
"""(x, mean, standard deviation) of each point."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(each) + " |" for each in (head, ["---"] * len(head), *rows)) + "\n"


def by_decoding(groups: dict[str, Group], pairs: Sequence[tuple[str, str]]) -> dict[str, list[Gap]]:
    """The differences of some pairs for each decoding that they were measured with."""
    return {way: gaps for way in (SAMPLED, GREEDY) if (gaps := differences(groups, pairs, way))}


def verdicts(found: dict[str, list[Gap]], words: dict[str, str]) -> Iterator[str]:
    """What follows from differences in a sentence for each decoding, and their table."""
    for way, gaps in found.items():
        for sign, said in words.items():
            names = [_found(gap) if words is CLAIMS else gap.second for gap in gaps if gap.sign == sign]
            if names:
                yield f"- {way.capitalize()}, {said}: {'; '.join(names)}."
    rows = []
    for gaps in zip(*found.values(), strict=True):
        for way, gap in zip(found, gaps, strict=True):
            size = f"{gap.value:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})"
            p = "< 0.001" if gap.p < 0.001 else f"{gap.p:.3f}"
            name = f"{gap.second} less {gap.first}"
            rows.append((name, way, size, f"{gap.seeds} of {gap.of}", p, words[gap.sign]))
    if rows:
        yield "\n" + table(("", "answers", "difference (95 % interval)", "seeds with this sign", "p", "found"), rows)


def _found(gap: Gap) -> str:
    first, second = (gap.second, gap.first) if gap.sign == MORE else (gap.first, gap.second)
    return f"{first} < {second}"


def score_table(measured: Measured, groups: dict[str, Group]) -> str:
    """A line for each row, the best by sampled reward first."""
    against = measured.against
    order = sorted(groups, key=lambda row: -(measured.mean(groups[row], REWARD, SAMPLED) or (0.0, 0.0))[0])
    rows = []
    for row in order:
        group = groups[row]
        chosen = ", ".join(f"{key} {value}" for key, value in next(iter(group.values())).chosen.items())
        rewards = [measured.words(group, REWARD, decoding) for decoding in (SAMPLED, GREEDY)]
        wins = "–" if row == against else measured.words(group, "win_rate", SAMPLED, 100, 1)
        rows.append((row, chosen, *rewards, wins, measured.words(group, "reward_accuracy", "", 100, 1)))
    head = ["row", "chosen", "reward, sampled", "reward, greedy", f"win rate against {against}", "reward accuracy"]
    if not any(row[1] for row in rows):
        return table([head[0], *head[2:]], [(row[0], *row[2:]) for row in rows])
    return table(head, rows)


def rewards_figure(measured: Measured, groups: dict[str, Group], name: str, title: str) -> Figure:
    """Greedy over sampled reward, a point for each row."""
    ways = [measured.mean(groups[row], REWARD, decoding) for row in groups for decoding in (SAMPLED, GREEDY)]
    caption = f"{BARS} of the greedy reward."
    series = _dots(list(groups), ways[::2], ways[1::2])
    return points(name, title, series, "mean reward, sampled", "mean reward, greedy", caption)


def _dots(names: Sequence[str], xs: Sequence[Mean | None], ys: Sequence[Mean | None]) -> list[Series]:
    """A dot for each name that has both, with the spread of the second over the seeds."""
    there = [(name, x[0], y) for name, x, y in zip(names, xs, ys, strict=True) if x and y]
    return [Series(name, [x], [y[0]], [(y[0] - y[1], y[0] + y[1])], n) for n, (name, x, y) in enumerate(there)]


def main_section(measured: Measured) -> Iterator[str | Figure]:
    """The table at equal steps and the one at equal FLOPs, each with its verdicts and a figure."""
    every = measured.by_row
    given = {row: every[row] for row in GIVEN if row in every}
    steps = {row: group for row, group in every.items() if row not in given and not row.endswith(EQUAL)}
    flops = {row.removesuffix(EQUAL): group for row, group in every.items() if row.endswith(EQUAL)}
    yield "## Equal steps\n"
    yield score_table(measured, {**given, **steps})
    yield rewards_figure(measured, {**given, **steps}, "main-steps", "Equal steps")
    yield from _lead(measured, given)
    yield from _order(steps)
    if flops:
        flops["ADPA+"] = every["ADPA+"]
        yield "## Equal FLOPs\n"
        yield FLOPS
        yield score_table(measured, flops)
        yield rewards_figure(measured, flops, "main-flops", "Equal FLOPs")
        yield from _order(flops)


def _order(rows: dict[str, Group]) -> Iterator[str]:
    """What is found of the order of the paper, and whether ADPA+ leads."""
    yield "**The order of the paper.**\n"
    yield from verdicts(by_decoding(rows, (*ORDER, (HALF, "ADPA+"))), CLAIMS)
    yield "**Beside ADPA+.**\n"
    yield from verdicts(by_decoding(rows, [("ADPA+", row) for row in rows if row not in ("ADPA+", HALF)]), COMPARED)


def _lead(measured: Measured, given: dict[str, Group]) -> Iterator[str]:
    """How much of the teacher's lead over the student is alignment, and how much its reference has already."""
    found = [[measured.mean(group, REWARD, decoding) for group in given.values()] for decoding in (SAMPLED, GREEDY)]
    if len(given) < len(GIVEN) or not all(all(means) for means in found):
        return
    for decoding, means in zip((SAMPLED, GREEDY), found, strict=True):
        student, reference, teacher = (mean[0] for mean in means if mean)
        yield (
            f"- With {decoding} answers, the teacher leads the student by {teacher - student:.3f}: its reference has "
            f"{reference - student:.3f} of this already, and alignment adds {teacher - reference:+.3f}."
        )
    yield "\n" + LEAD


def methods_section(measured: Measured) -> Iterator[str | Figure]:
    """The other methods, each against ADPA+, and the ablation of DCKD."""
    groups = measured.by_row
    yield METHODS
    yield score_table(measured, groups)
    yield rewards_figure(measured, groups, "methods", "The other methods")
    others = [row for row in groups if row not in ("Student", "ADPA+") and not row.startswith("DCKD ")]
    yield "**Beside ADPA+.**\n"
    yield from verdicts(by_decoding(groups, [("ADPA+", row) for row in others]), COMPARED)
    yield "**Beside DCKD.**\n"
    ablations = [("DCKD", row) for row in groups if row.startswith("DCKD ")]
    yield from verdicts(by_decoding(groups, ablations), COMPARED)


Places = dict[str, dict[str, Group]]
"""The rows at each point of a condition."""


def conditions_section(measured: Measured) -> Iterator[str | Figure]:
    """What the order depends on: for each condition the order at each point, what is measured there, and a figure."""
    yield CONDITIONS
    plain = {row: group for (row, point), group in measured.groups.items() if not point and ", by " not in row}
    yield score_table(measured, plain)
    fixed = {row: plain[row] for row in ("SFT", "DPO", "DCKD") if row in plain}
    conditions = {kind: _places(measured, kind) for kind in KINDS}
    found = {kind: {place: _gaps(groups, fixed) for place, groups in at.items()} for kind, at in conditions.items()}
    always = differences(fixed, ORDER, SAMPLED)
    every = [[*always, *gaps] for at in found.values() for gaps in at.values()]
    orders = [[gap for gap in gaps if (gap.first, gap.second) in ORDER] for gaps in every]
    complete = [gaps for gaps in orders if {(gap.first, gap.second) for gap in gaps} == {*ORDER}]
    if complete:
        whole = sum(all(gap.sign == LESS for gap in gaps) for gaps in complete)
        yield f"The whole order of the paper holds at {whole} of the {len(complete)} points that have all systems.\n"
    for kind, at in conditions.items():
        if at:
            yield f"### By {KINDS[kind]}\n"
            yield from _signs(found[kind])
            yield _facts_table(measured, at, KINDS[kind])
            yield from (_noise(measured, at) if kind == "dtype" else _curves(measured, at, kind))
    yield from _pull(measured)


def _places(measured: Measured, kind: str) -> Places:
    """The rows of one condition at its points; a place is a point, after what distinguishes rows of one system."""
    at: Places = {}
    for (name, point), group in measured.groups.items():
        row, is_own, more = name.partition(f", by {kind}")
        if is_own:
            at.setdefault(f"{more.lstrip(', ')} {point}".strip(), {})[row] = group
    return at


def _gaps(groups: dict[str, Group], fixed: dict[str, Group]) -> list[Gap]:
    """The differences at a point of all pairs of which one row depends on the point."""
    claims = [pair for pair in (*ORDER, *STATES) if set(pair) & set(groups)]
    return [*differences({**fixed, **groups}, claims, SAMPLED), *differences(groups, CHANGES, SAMPLED)]


def _signs(found: dict[str, list[Gap]]) -> Iterator[str]:
    """The differences at each point, those bold that are decided."""
    cells: dict[str, dict[str, str]] = {}
    for place, gaps in found.items():
        for gap in gaps:
            mark = "" if gap.sign == UNDECIDED else "**"
            cells.setdefault(f"{gap.second} less {gap.first}", {})[place] = f"{mark}{gap.value:+.3f}{mark}"
    if cells:
        yield table(("difference", *found), [(name, *(row.get(p, "") for p in found)) for name, row in cells.items()])


def _facts_table(measured: Measured, at: Places, what: str) -> str:
    """The reward of each row at each point, and what differs there of the signal and the training of ADPA."""
    ranks = {row: n for n, row in enumerate(["Teacher", *(row for pair in ORDER for row in pair)])}
    rows = sorted({row for groups in at.values() for row in groups}, key=lambda row: (ranks.get(row, 99), row))
    body = [
        (row, *(measured.words(groups[row], REWARD, SAMPLED) if row in groups else "" for groups in at.values()))
        for row in rows
    ]
    facts = [measured.signal(groups.get("ADPA", next(iter(groups.values())))) for groups in at.values()]
    for name in FACTS:
        values = [f"{each[name]:.3f}" if name in each else "" for each in facts]
        if len(set(values)) > 1:
            body.append((name, *values))
    return table((what, *at), body)


def _curves(measured: Measured, at: Places, kind: str) -> Iterator[Figure]:
    """The reward of the teacher and of each row of the order over the points."""
    curves: dict[str, Curve] = {}
    for place, groups in at.items():
        for row, group in groups.items():
            found = measured.mean(group, REWARD, SAMPLED)
            if found and (row == "Teacher" or any(row in pair for pair in ORDER)):
                curves.setdefault(row, []).append((float(place), *found))
    yield _lines(dict(sorted(curves.items())), f"by-{'gamma' if kind == 'γ' else kind}", KINDS[kind])


def _noise(measured: Measured, at: Places) -> Iterator[str | Figure]:
    """What the noise of few bits changes, and the reward over the noise."""
    ones = {place: next(iter(groups.values())) for place, groups in at.items()}
    pairs = [(place.replace("bfloat16", "float32"), place) for place in at if place.endswith("bfloat16")]
    sizes = {place: measured.signal(group) for place, group in ones.items()}
    shares = {few: sizes[few].get(NOISE, 0.0) / sizes[exact][RMS] for exact, few in pairs if RMS in sizes[exact]}
    for gap in differences(ones, pairs, SAMPLED):
        yield (
            f"- {gap.second}: noise of {shares[gap.second]:.2f} × RMS(A) changes the reward by {gap.value:+.3f} "
            f"({gap.low:+.3f} to {gap.high:+.3f})."
        )
    yield ""
    xs = [(shares.get(place, 0.0), 0.0) for place in ones]
    dots = _dots(list(ones), xs, [measured.mean(group, REWARD, SAMPLED) for group in ones.values()])
    yield points("by-noise", "Reward by the noise of the advantage", dots, "noise / RMS(A)", "mean reward", f"{BARS}.")


def _pull(measured: Measured) -> Iterator[str | Figure]:
    """The reward of ADPA over γ × RMS(A), at all points of all conditions."""
    curves: dict[str, Curve] = {}
    for (name, _), group in measured.groups.items():
        row, is_own, _ = name.partition(", by ")
        found, pull = measured.mean(group, REWARD, SAMPLED), measured.signal(group).get(PULL)
        if row in ("ADPA", "ADPA+") and is_own and found and pull:
            curves.setdefault(row, []).append((pull, *found))
    if curves:
        yield f"### By {PULL}, at all these points\n"
        yield _lines({row: list(set(curve)) for row, curve in curves.items()}, "by-pull", PULL)


def _lines(curves: dict[str, Curve], name: str, what: str) -> Figure:
    series = []
    for n, (row, curve) in enumerate(curves.items()):
        xs, ys, spread = zip(*sorted(curve), strict=True)
        bounds = [(y - s, y + s) for y, s in zip(ys, spread, strict=True)]
        series.append(Series(row, xs, ys, bounds, n))
    caption = "Means over the seeds, sampled; bands are one standard deviation."
    return lines(name, f"Reward by {what}", series, what, "mean reward", caption=caption, marks=True, log=True)


def beyond_section(measured: Measured) -> Iterator[str | Figure]:
    """The changes that are not in the paper, against ADPA+."""
    groups = measured.by_row
    yield BEYOND
    yield score_table(measured, groups)
    yield rewards_figure(measured, groups, "beyond", "Beyond the paper")
    found = by_decoding(groups, [("ADPA+", row) for row in groups if row.startswith("ADPA+,")])
    yield "**Beside ADPA+.**\n"
    yield from verdicts(found, COMPARED)
    both = sorted(set.intersection(*({gap.second for gap in found[way] if gap.sign == LESS} for way in found)))
    yield f"Better than ADPA+ both sampled and greedy: {', '.join(both) if both else 'none of them'}.\n"


def real_section(measured: Measured) -> Iterator[str | Figure]:
    """The real pair: implicit reward, length and repetition."""
    yield REAL
    groups = measured.by_row
    decoding = next((d for g in groups.values() for m in g.values() for _, d in m.scores if d), GREEDY)
    rewards, tokens = (
        [measured.mean(group, metric, decoding) for group in groups.values()] for metric in (REWARD, "answer_tokens")
    )
    rows = []
    for (row, group), reward, length in zip(groups.items(), rewards, tokens, strict=True):
        rate = f"{1000 * reward[0] / length[0]:.1f}" if reward and length else ""
        shares = [measured.words(group, metric, decoding, 100, 1) for metric in ("repeated_share", "cut_share")]
        words = [
            measured.words(group, REWARD, decoding),
            rate,
            measured.words(group, "answer_tokens", decoding, digits=1),
        ]
        rows.append((row, *words, *shares))
    yield table(("row", "implicit reward", "in 1,000 tokens", "tokens", "repeated, %", "cut, %"), rows)
    dots = _dots(list(groups), tokens, rewards)
    yield points("real", "A real pair", dots, "tokens of an answer", "implicit reward", f"{BARS}.")
    yield "**The order of the paper.**\n"
    yield from verdicts(by_decoding(groups, ORDER), CLAIMS)


SECTIONS = (
    ("main", "", main_section),
    ("methods", "## The other methods", methods_section),
    ("conditions", "## What the order depends on", conditions_section),
    ("beyond", "## Beyond the paper", beyond_section),
    ("real", "## A real pair", real_section),
)


def page(store: Store, recipes: Path, name: str) -> dict[str, str]:
    """The text of every file by its name: the page, and each figure with its numbers."""
    text, files = [INTRODUCTION], dict[str, str]()
    for stem, head, section in SECTIONS:
        path = recipes / f"{stem}.toml"
        measured = Measured(path, store) if path.exists() and _can_plan(path) else None
        text += [head + "\n"] if head else []
        if measured is None or measured.missing:
            left = "" if measured is None else f" {measured.missing} of {measured.lines} lines are missing."
            text.append(f"`{stem}.toml` was not run to its end in this store.{left}\n")
            continue
        for part in section(measured):
            if isinstance(part, str):
                text.append(part)
                continue
            files |= {f"{name}/{part.name}.svg": part.svg, f"{name}/{part.name}.csv": as_csv(part.numbers)}
            text.append(
                f"![{part.title}]({name}/{part.name}.svg)\n\n{part.caption} [Numbers]({name}/{part.name}.csv)\n"
            )
    return {f"{name}.md": "\n".join([*text, KEEP]), **files}


def _can_plan(path: Path) -> bool:
    """Whether what a recipe names in the working directory is there."""
    values = read_recipe(str(path)).values
    return all(Path(str(v)).exists() for v in values.values() if str(v).startswith("./"))


def main(words: Sequence[str] | None = None) -> int:
    """Write the page, or check it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--store", type=Path, default=Path("adpa-store"))
    parser.add_argument("--recipes", type=Path, default=HERE)
    parser.add_argument("--to", type=Path, default=PAGE)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args(words)
    files = page(Store.find(options.store), options.recipes, options.to.stem)
    places = {options.to.parent / name: text for name, text in files.items()}
    differing = [path for path, text in places.items() if not path.exists() or path.read_text(encoding="utf-8") != text]
    for path in differing:
        if not options.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(places[path], encoding="utf-8")
        sys.stdout.write(f"{'differs' if options.check else 'written'}: {path}\n")
    return 1 if options.check and differing else 0


if __name__ == "__main__":
    raise SystemExit(main())
