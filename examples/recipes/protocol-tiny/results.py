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

from measured import GREEDY, SAMPLED, Gap, Group, Mean, Measured, differences

from adpa_cli.cli.recipes.grid import read_recipe
from adpa_cli.report.html.figures import Figure, Series, as_csv, lines, points
from adpa_cli.report.scores import REWARD
from adpa_cli.store.store import Store

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[2] / "docs" / "results.md"
EQUAL = ", equal FLOPs"
ORDER = (
    ("SFT", "DPO"), ("DPO", "DCKD"), ("DCKD", "ADPA"), ("ADPA", "ADPA+"), ("ADPA without reference", "ADPA"),
)  # fmt: skip
"""The order of the paper, the worse one first."""
STATES = (("ADPA on chosen answers", "ADPA"), ("ADPA on the teacher's answers", "ADPA"))
"""That a student's own answers are the best ones to train on."""
CLAMPED, DIVIDED = "ADPA, A clamped to [0, 1]", "ADPA, A divided by its RMS"
CHANGES = (("ADPA", CLAMPED), ("ADPA", DIVIDED), ("DCKD", DIVIDED))
"""What the changes of the advantage that are not in the paper would have to do."""


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return ["| " + " | ".join(each) + " |" for each in (head, ["---"] * len(head), *rows)]


def gap_table(gaps: Sequence[Gap]) -> list[str]:
    """The differences with their intervals, and what follows."""
    said = {"<": "holds", ">": "the reverse holds", "≈": "not decided"}
    rows = [
        (f"{g.worse} < {g.better}", f"{g.value:+.3f} ({g.low:+.3f} to {g.high:+.3f})", f"{g.seeds} of {g.of}",
         f"{g.p:.2g}", said[g.verdict])
        for g in gaps
    ]  # fmt: skip
    return table(("claim", "difference (95 % interval)", "seeds with this sign", "p (Holm)", "verdict"), rows)


def order_words(gaps: Sequence[Gap]) -> str:
    """One sentence on which of the claims hold."""
    by: dict[str, list[str]] = {"<": [], ">": [], "≈": []}
    for gap in gaps:
        by[gap.verdict].append(f"{gap.worse} < {gap.better}")
    parts = [
        f"{words}: {'; '.join(by[sign])}"
        for sign, words in (("<", "**Holds**"), (">", "**The reverse holds**"), ("≈", "**Not decided**")) if by[sign]
    ]  # fmt: skip
    return ". ".join(parts) + "." if parts else "Nothing can be compared."


def verdicts(what: str, gaps: Sequence[Gap], decoding: str) -> str:
    """What follows from the differences in one sentence, and their table."""
    return "\n".join([f"{what}, {decoding}. {order_words(gaps)}\n", *gap_table(gaps)]) + "\n"


def leader_words(measured: Measured, rows: Sequence[str], decoding: str, groups: dict[str, Group]) -> str:
    """Which row leads, and whether ADPA+ is behind it by more than chance."""
    means = {row: found[0] for row in rows if (found := measured.mean(groups[row], REWARD, decoding))}
    best = max(means, key=lambda row: means[row])
    plus = "ADPA+"
    if plus not in means:
        return f"With {decoding} answers, {best} has the highest mean reward ({means[best]:.3f})."
    gaps = {gap.better: gap for gap in differences(groups, [(plus, row) for row in means if row != plus], decoding)}
    if best == plus:
        beaten = [row for row, gap in gaps.items() if gap.verdict == ">"]
        tail = f", and is better than {', '.join(beaten)} by more than chance" if beaten else ""
        return f"With {decoding} answers, ADPA+ has the highest mean reward ({means[plus]:.3f}){tail}."
    chance = "more than chance" if gaps[best].verdict == "<" else "no more than chance"
    return (
        f"With {decoding} answers, **ADPA+ does not lead**: {best} has {means[best]:.3f}, and ADPA+ {means[plus]:.3f}; "
        f"the difference of {gaps[best].value:.3f} is {chance}."
    )


def main_section(measured: Measured) -> Iterator[str | Figure]:
    """The table at equal steps and the one at equal FLOPs, each with its verdicts and a figure."""
    every = measured.by_row
    models = {row: group for row, group in every.items() if row in GIVEN}
    steps = {row: group for row, group in every.items() if row not in models and not row.endswith(EQUAL)}
    flops = {row.removesuffix(EQUAL): group for row, group in every.items() if row.endswith(EQUAL)}
    flops |= {"ADPA+": every["ADPA+"]} if flops and "ADPA+" in every else {}
    for title, name, rows in (("Equal steps", "steps", steps), ("Equal FLOPs", "flops", flops)):
        if not rows:
            continue
        yield f"## {title}\n"
        yield "\n".join(_score_table(measured, {**models, **rows})) + "\n"
        yield figure_of(measured, {**models, **rows}, f"main-{name}", title)
        if name == "steps":
            yield from _lead(measured, models)
        for decoding in (SAMPLED, GREEDY):
            gaps = differences(rows, ORDER, decoding)
            if gaps:
                yield verdicts("The order of the paper", gaps, decoding)
                yield leader_words(measured, list(rows), decoding, rows) + "\n"


GIVEN = ("Student", "Reference of the teacher", "Teacher")


LEAD = """The advantage is the teacher less its reference, so beside its fine-tuning term ADPA can learn only what
alignment added. Systems without a reference (SeqKD, ATKD, DCKD, ADPA without reference) learn what the reference knows,
too.
"""


def _lead(measured: Measured, models: dict[str, Group]) -> Iterator[str]:
    """How much of the teacher's lead over the student is alignment, and how much its reference has already."""
    if len(models) < len(GIVEN):
        return
    for decoding in (SAMPLED, GREEDY):
        found = [measured.mean(models[row], REWARD, decoding) for row in GIVEN]
        student, reference, teacher = (mean[0] for mean in found if mean)
        yield (
            f"With {decoding} answers, the teacher leads the student by {teacher - student:.3f}: its reference has "
            f"{reference - student:.3f} of this already, and alignment adds {teacher - reference:+.3f}."
        )
    yield LEAD


def _score_table(measured: Measured, groups: dict[str, Group]) -> list[str]:
    """A line for each row, the best by sampled reward first."""
    order = sorted(groups, key=lambda row: -(measured.mean(groups[row], REWARD, SAMPLED) or (0.0, 0.0))[0])
    rows = []
    for row in order:
        group = groups[row]
        chosen = next(iter(group.values())).chosen
        settings = ", ".join(f"{key} {value}" for key, value in chosen.items())
        cells = [measured.words(group, REWARD, decoding) for decoding in (SAMPLED, GREEDY)]
        cells += [measured.words(group, "win_rate", SAMPLED, 100), measured.words(group, "reward_accuracy", "", 100)]
        rows.append((row, settings, *cells, str(len(group))))
    head = ("row", "chosen", "reward, sampled", "reward, greedy", "win rate, sampled", "reward accuracy", "seeds")
    return table(head, rows)


def figure_of(measured: Measured, groups: dict[str, Group], name: str, title: str) -> Figure:
    """Greedy over sampled reward, a point for each row with its spread over the seeds."""
    ways = [measured.mean(groups[row], REWARD, decoding) for row in groups for decoding in (SAMPLED, GREEDY)]
    series = _dots(list(groups), ways[::2], ways[1::2])
    return points(name, title, series, "mean reward, sampled", "mean reward, greedy", BARS)


BARS = "Means over the seeds; bars are one standard deviation."


def _dots(names: Sequence[str], xs: Sequence[Mean | None], ys: Sequence[Mean | None]) -> list[Series]:
    """A dot for each name that has both, with the spread of the second over the seeds."""
    there = [(name, x[0], y) for name, x, y in zip(names, xs, ys, strict=True) if x and y]
    return [Series(name, [x], [y[0]], [(y[0] - y[1], y[0] + y[1])], n) for n, (name, x, y) in enumerate(there)]


def methods_section(measured: Measured) -> Iterator[str | Figure]:
    """The other methods, each against ADPA+, and the ablation of DCKD."""
    groups = measured.by_row
    yield "\n".join(_score_table(measured, groups)) + "\n"
    yield figure_of(measured, groups, "methods", "The other methods")
    others = [row for row in groups if row not in ("Student", "ADPA+") and not row.startswith("DCKD")]
    pairs = [(row, "ADPA+") for row in others] + [(row, "DCKD") for row in groups if row.startswith("DCKD ")]
    for decoding in (SAMPLED, GREEDY):
        if gaps := differences(groups, pairs, decoding):
            yield verdicts("Against ADPA+ and DCKD", gaps, decoding)


CONDITIONS = """Rewards are those of sampled answers. RMS(A) is taken over the tokens and ids of a signal. The noise of
A is the RMS of what the dtype of the capture adds to it; float32 adds none. The student's entropy is in nats for each
token, a mean over the whole training.

The objective of ADPA is linear in the student's probabilities. Only the fine-tuning term keeps the student from putting
all of them on the id with the greatest advantage, and γ × RMS says how strong the pull is beside it.
"""
KINDS = {
    "rate": "the rate of the teacher's DPO", "steps": "epochs of the teacher's DPO", "γ": "γ",
    "dtype": "dtype of the capture",
}  # fmt: skip


def conditions_section(measured: Measured) -> Iterator[str | Figure]:
    """What the order depends on: for each condition a table of its points, the order at each, and a figure."""
    yield CONDITIONS
    plain = {row: group for (row, point), group in measured.groups.items() if not point and ", by " not in row}
    yield "\n".join(_score_table(measured, plain)) + "\n"
    fixed = {row: plain[row] for row in ("SFT", "DPO", "DCKD") if row in plain}
    for kind, what in KINDS.items():
        marker = f", by {kind}"
        at: dict[str, dict[str, Group]] = {}
        for (name, point), group in measured.groups.items():
            row, is_own, more = name.partition(marker)
            if is_own:
                at.setdefault(f"{more.lstrip(', ')} {point}".strip(), {})[row] = group
        if at:
            yield f"### By {what}\n"
            yield from _verdicts_at(at, fixed)
            yield from _tables_at(measured, at, what)
            yield from _noise(measured, at) if any(FEW_BITS in place for place in at) else _why(measured, at)
            curves = _curves_of(measured, at)
            if any(len(curve) > 1 for curve in curves.values()):
                yield _curves(curves, kind, what)
    yield f"### By {PULL}\n"
    yield from _pull(measured)


def _pull(measured: Measured) -> Iterator[str | Figure]:
    """The reward of ADPA over γ × RMS, at all points of all conditions."""
    curves: dict[str, list[tuple[float, float, float]]] = {}
    for (name, _), group in measured.groups.items():
        row, is_own, _ = name.partition(", by ")
        found, pull = measured.mean(group, REWARD, SAMPLED), measured.signal(group).get(PULL)
        if row in ("ADPA", "ADPA+") and is_own and found and pull:
            curves.setdefault(row, []).append((pull, *found))
    for row, curve in curves.items():
        low, high = ([mean for pull, mean, _ in curve if (pull > 1) == is_high] for is_high in (False, True))
        if low and high:
            yield (
                f"Over all points, the reward of {row} is {min(low):.3f} to {max(low):.3f} where {PULL} is at most 1, "
                f"and {min(high):.3f} to {max(high):.3f} where it is more.\n"
            )
    if curves:
        each = {row: sorted(set(curve)) for row, curve in curves.items()}
        yield _curves(each, "pull", PULL)


def _verdicts_at(at: dict[str, dict[str, Group]], fixed: dict[str, Group]) -> Iterator[str]:
    """The order of the paper at each point, where all of it holds, and what changes of the advantage do."""
    whole, changes = [], []
    for place, groups in at.items():
        claims = [pair for pair in (*ORDER, *STATES) if set(pair) & set(groups)]
        gaps = differences({**fixed, **groups}, claims, SAMPLED)
        if gaps:
            yield f"- **{place}**: " + "; ".join(f"{g.worse} {g.verdict} {g.better}" for g in gaps) + "."
        whole += [place] if len(gaps) >= len(ORDER) - 1 and all(g.verdict == "<" for g in gaps) else []
        if gaps := differences(groups, CHANGES, SAMPLED):
            changes.append(
                f"- **{place}**: " + "; ".join(f"{g.worse} {g.verdict} {g.better} ({g.value:+.3f})" for g in gaps) + "."
            )
    yield ""
    if set(fixed) | {row for groups in at.values() for row in groups} >= {row for pair in ORDER for row in pair}:
        yield f"All of these claims together hold at {', '.join(whole) if whole else 'none of these'}.\n"
    if changes:
        yield "\n".join(["What changes of the advantage do, beside ADPA and DCKD as they are:\n", *changes]) + "\n"


def _tables_at(measured: Measured, at: dict[str, dict[str, Group]], what: str) -> Iterator[str]:
    """The reward of each row at each point; and what was measured there of the signal and the training of ADPA."""
    rows = sorted({row for groups in at.values() for row in groups})
    means = [
        (place, *(measured.words(groups[row], REWARD, SAMPLED) if row in groups else "" for row in rows))
        for place, groups in at.items()
    ]
    yield "\n".join(table((what, *rows), means)) + "\n"
    facts = {place: measured.signal(groups.get("ADPA", next(iter(groups.values())))) for place, groups in at.items()}
    names = [name for name in FACTS if any(name in found for found in facts.values())]
    sizes = [
        (place, *(f"{found[name]:.3g}" if name in found else "" for name in names)) for place, found in facts.items()
    ]
    yield "\n".join(table((what, *names), sizes)) + "\n"


def _curves_of(measured: Measured, at: dict[str, dict[str, Group]]) -> dict[str, list[tuple[float, float, float]]]:
    """(point, mean, standard deviation) of the teacher and each row of the order, where points are numbers."""
    curves: dict[str, list[tuple[float, float, float]]] = {}
    for place, groups in at.items():
        for row, group in groups.items():
            found, number = measured.mean(group, REWARD, SAMPLED), _number(place)
            if found and number is not None and (row == "Teacher" or any(row in pair for pair in ORDER)):
                curves.setdefault(row, []).append((number, *found))
    return dict(sorted(curves.items()))


def _noise(measured: Measured, at: dict[str, dict[str, Group]]) -> Iterator[str | Figure]:
    """What a capture in few bits changes, and the reward over the noise."""
    ones = {place: next(iter(groups.values())) for place, groups in at.items()}
    few = [place for place in at if place.endswith(FEW_BITS)]
    if gaps := differences(ones, [(place, place.removesuffix(FEW_BITS) + EXACT) for place in few], SAMPLED):
        yield "\n".join(gap_table(gaps)) + "\n"
    yield _by_noise(measured, ones)


FEW_BITS, EXACT = "bfloat16", "float32"
PULL = "γ × RMS"
FACTS = ("RMS(A)", "noise of A", "A < 0", "RMS(A) clamped", PULL, "teacher entropy", "student entropy")
"""What is measured of the signal and the training of ADPA at each point."""


def _number(place: str) -> float | None:
    try:
        return float(place)
    except ValueError:
        return None


def _why(measured: Measured, at: dict[str, dict[str, Group]]) -> Iterator[str]:
    """Where ADPA gains most over DCKD and where least, or where it is best and worst, with what is measured there."""
    gains = {}
    for place, groups in at.items():
        ours = measured.mean(groups["ADPA"], REWARD, SAMPLED) if "ADPA" in groups else None
        theirs = measured.mean(groups["DCKD"], REWARD, SAMPLED) if "DCKD" in groups else None
        if ours:
            gains[place] = ours[0] - (theirs[0] if theirs else 0.0)
    if len(gains) < 2:
        return
    best, worst = max(gains, key=lambda p: gains[p]), min(gains, key=lambda p: gains[p])
    facts = {place: measured.signal(at[place]["ADPA"]) for place in (best, worst)}
    sizes = [
        f"{name} is {facts[best][name]:.3g} at the first and {facts[worst][name]:.3g} at the second"
        for name in FACTS
        if name in facts[best] and name in facts[worst]
        and abs(facts[best][name] - facts[worst][name]) > 0.01 * abs(facts[best][name])
    ]  # fmt: skip
    subject, form = ("What ADPA gains over DCKD", "+.3f") if "DCKD" in at[best] else ("The reward of ADPA", ".3f")
    tail = f": {'; '.join(sizes)}" if sizes else ""
    most, least = (f"{place} ({gains[place]:{form}})" for place in (best, worst))
    yield f"{subject} is greatest at {most} and least at {least}{tail}.\n"


def _curves(curves: dict[str, list[tuple[float, float, float]]], kind: str, what: str) -> Figure:
    series = []
    for n, (row, curve) in enumerate(curves.items()):
        xs, ys, spread = zip(*sorted(curve), strict=True)
        bounds = [(y - s, y + s) for y, s in zip(ys, spread, strict=True)]
        series.append(Series(row, xs, ys, bounds, n))
    name = {"γ": "gamma"}.get(kind, kind)
    caption = "Means over the seeds, sampled; bands are one standard deviation."
    return lines(f"by-{name}", f"Reward by {what}", series, what, "mean reward", caption=caption, marks=True, log=True)


def _by_noise(measured: Measured, groups: dict[str, Group]) -> Figure:
    """Reward over the noise of the advantage, as a share of its RMS; a capture in float32 has none."""
    facts = [measured.signal(group) for group in groups.values()]
    shares = [(each.get("noise of A", 0.0) / each["RMS(A)"], 0.0) for each in facts]
    series = _dots(list(groups), shares, [measured.mean(group, REWARD, SAMPLED) for group in groups.values()])
    caption = f"{BARS} Answers are sampled. A capture in float32 is at 0."
    return points("by-noise", "Reward by the noise of the advantage", series, "noise / RMS(A)", "mean reward", caption)


def beyond_section(measured: Measured) -> Iterator[str | Figure]:
    """The changes that are not in the paper, against ADPA+."""
    groups = measured.by_row
    yield "\n".join(_score_table(measured, groups)) + "\n"
    yield figure_of(measured, groups, "beyond", "Beyond the paper")
    pairs = [("ADPA+", row) for row in groups if row.startswith("ADPA+,")]
    wins: list[set[str]] = []
    for decoding in (SAMPLED, GREEDY):
        gaps = differences(groups, pairs, decoding)
        wins.append({gap.better for gap in gaps if gap.verdict == "<"})
        if gaps:
            yield verdicts("Against ADPA+", gaps, decoding)
    both = sorted(set.intersection(*wins)) if wins else []
    yield (
        f"Better than ADPA+ both sampled and greedy: {', '.join(both)}.\n" if both
        else "None of them is better than ADPA+ both sampled and greedy.\n"
    )  # fmt: skip


REAL = """The model is SmolLM2-135M-Instruct, on pairs of short answers from AlpacaEval's annotations. Its teacher is
the same model after 16 steps of DPO, so nothing here is distilled from a larger model. Each training has 10 steps
(ADPA+ 10 + 10) with fixed settings, and the seeds are those of the training alone. The reward is the implicit one of
the teacher against its reference, in nats of a whole answer to a held-out prompt. ADPA is trained on this very
quantity, so it shows that the signal arrives, and not that answers are better. No reward model judges them.
"""


def real_section(measured: Measured) -> Iterator[str | Figure]:
    """The real pair: implicit reward, length and repetition."""
    yield REAL
    metrics = (REWARD, "answer_tokens", "repeated_share", "cut_share")
    groups = measured.by_row
    decoding = next((d for g in groups.values() for m in g.values() for _, d in m.scores if d), GREEDY)
    rows = [(row, *(measured.words(group, m, decoding) for m in metrics), str(len(group)))
            for row, group in groups.items()]  # fmt: skip
    yield "\n".join(table(("row", "implicit reward", "tokens", "repeated", "cut", "seeds"), rows)) + "\n"
    ways = [[measured.mean(group, metric, decoding) for group in groups.values()] for metric in metrics[:2]]
    series = _dots(list(groups), ways[1], ways[0])
    yield points("real", "A real pair", series, "tokens of an answer", "implicit reward", BARS)
    gaps = differences(groups, ORDER, decoding)
    yield verdicts("The order of the paper", gaps, decoding)


SECTIONS = (
    ("main", "", main_section),
    ("methods", "## The other methods", methods_section),
    ("conditions", "## Where the order holds", conditions_section),
    ("beyond", "## Beyond the paper", beyond_section),
    ("real", "## A real pair", real_section),
)
INTRODUCTION = """# Results

This page is made from a store by one command, and so is every sentence on it that depends on numbers:

```console
$ python examples/recipes/protocol-tiny/results.py --store DIR
```

The world is the built-in one of 232 words, with a teacher of 0.39 M parameters and a student of 0.06 M; only the last
section has a real model. Settings were chosen on one half of the held-out prompts by seeds of their own, as many
settings for each system, and what is shown is measured on the other half. Rewards lie between 0 and 1 and are
computed by a program. A row shows the mean ± standard deviation over the seeds; every stage is retrained for each.
Differences are paired by seed and prompt. Their intervals hold for other seeds and prompts, and p values (prompts
change sides together) are corrected for the number of claims in a table or line. A claim holds where p is below 0.05
and the interval excludes 0.
"""
KEEP = """## What to keep in mind

- A miniature shows how methods behave there. It does not show that the same holds for large models.
- The teacher has the student's task and vocabulary, so imitating it is easier than with models of people's language.
- Settings were chosen for the table at equal steps, and taken over for the one at equal FLOPs.
- Conditions have three seeds and fixed settings, those chosen for ADPA+ and not tuned at each point: they show regions,
  not exact borders.
"""


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
