"""What another tool captured as a `cache-teacher` artifact, keyed by the data it belongs to or by its tokens."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adpa_cli.data.captured import Captured
from adpa_cli.errors import DataError
from adpa_cli.signal import AnswerKey, SignalRows, SignalSpec, token_hash, write_shard
from adpa_cli.stages.spool import SHARD_TOKENS, shard_path
from adpa_cli.store.contents import HashCache, file_digest
from adpa_cli.store.identity import canonical

FEW = 5
OWN = "text"
"""The part of what is keyed by its own tokens."""
BEHIND = 8
"""Tokens of a text that may follow an answer: a line break of the template, an end of text, padding."""


@dataclass(frozen=True)
class Known:
    """The answers of preference data, which captures are matched with."""

    answers: Sequence[Any]
    name: str

    def by_text(self) -> dict[tuple[int, ...], list[Any]]:
        """Answers by the ids of their prompt and of themselves."""
        found = defaultdict(list)
        for answer in self.answers:
            found[(*answer.prompt, *answer.answer)].append(answer)
        return found

    def by_answer(self) -> dict[tuple[int, ...], list[Any]]:
        """Answers by their own ids."""
        found = defaultdict(list)
        for answer in self.answers:
            found[answer.answer].append(answer)
        return found


Keyed = tuple[AnswerKey, Captured, int, int]
"""Whose answer the tokens from one number up to another of a capture are."""


def keyed(rows: Iterable[Captured], known: Known | None, skip: bool, prompt_ids: Any = None) -> Iterator[Keyed]:
    """The answers of some captures. Rows that are no answer of the data are refused, the first ones named, or skipped.

    `prompt_ids` gives the ids of the turns of a prompt.
    """
    texts, answers = (known.by_text(), known.by_answer()) if known else ({}, {})
    problems: list[str] = []
    seen: set[tuple[str, str]] = set()
    count = 0
    for row in rows:
        count += 1
        try:
            found = list(_own(row, prompt_ids) if known is None else _matched(row, texts, answers, known, prompt_ids))
        except ValueError as problem:
            problems.append(f"{row.where}: {problem}")
            continue
        for item in found:
            if (name := (item[0].example_id, item[0].part)) not in seen:
                seen.add(name)
                yield item
    if problems and (not skip or not seen):
        more = [f"… {len(problems) - FEW} more"] if len(problems) > FEW else []
        raise DataError(
            "\n  ".join([f"{len(problems)} of {count} rows are no answers of {known.name if known else 'their own'}",
                         *problems[:FEW], *more]),
            "name the data and the tokenizer that it was captured with, or leave them out: --skip-bad-rows",
        )  # fmt: skip
    if not seen:
        raise DataError("there is nothing to import: no row", "name a file with rows")


def _own(row: Captured, prompt_ids: Any) -> Iterator[Keyed]:
    """The whole of a capture under a hash of its ids; a prompt that is known comes before."""
    before = row.before if row.before is not None else ()
    if row.prompt is not None and prompt_ids is not None:
        before = tuple(prompt_ids(row.prompt))
    digest = token_hash(before, row.tokens)
    yield AnswerKey(digest[:16], OWN, digest), row, 0, len(row.tokens)


def _matched(row: Captured, texts: Any, answers: Any, known: Known, prompt_ids: Any) -> Iterator[Keyed]:
    if row.before is not None:
        whole = (*row.before, *row.tokens)
        for size in range(len(whole), max(0, len(whole) - BEHIND - 1), -1):
            for answer in texts.get(whole[:size], ()):
                start = len(answer.prompt) - len(row.before)
                yield answer.key, row, start, start + len(answer.answer)
            if whole[:size] in texts:
                return
        raise ValueError(_nearest(whole, known))
    found = answers.get(row.tokens, [])
    if row.prompt is not None:
        before = tuple(prompt_ids(row.prompt))
        found = [answer for answer in found if answer.prompt == before]
    if len({answer.prompt for answer in found}) > 1:
        raise ValueError(f"{len(found)} prompts of {known.name} have this answer: give the `messages` with it")
    if not found:
        raise ValueError(_nearest(row.tokens, known, answers_only=True))
    for answer in found:
        yield answer.key, row, 0, len(row.tokens)


def _nearest(ids: tuple[int, ...], known: Known, answers_only: bool = False) -> str:
    """What differs from the answer of the data that agrees for longest."""
    best, at = None, -1
    for answer in known.answers:
        own = answer.answer if answers_only else (*answer.prompt, *answer.answer)
        same = next((n for n, (a, b) in enumerate(zip(ids, own, strict=False)) if a != b), min(len(ids), len(own)))
        if same > at:
            best, at = answer, same
    if best is None:
        return "the data have no answers"
    own = best.answer if answers_only else (*best.prompt, *best.answer)
    here, there = (f"id {x[at]}" if at < len(x) else "the end" for x in (ids, own))
    return f"differs from {best.key.example_id} {best.key.part} at token {at}: {here}, the data have {there}"


def rows_of(item: Keyed, k: int) -> SignalRows:
    """One answer as signal: what is not listed is in the rest; missing places of the k hold ids without mass."""
    _, row, start, end = item
    ids, logps = row.ids[start:end], row.logps[start:end]
    labels, label_logps = np.array(row.tokens[start:end], dtype=np.int32), row.label_logps[start:end]
    at = ids == labels[:, None]
    inside = at.any(axis=1)
    label = np.where(inside, np.where(at, logps, -np.inf).max(axis=1), label_logps)
    with np.errstate(divide="ignore"):
        mass = np.exp(logps).sum(axis=1) + np.where(inside, 0.0, np.exp(label))
        rest = np.log1p(-np.minimum(mass, 1.0))
    ids, logps = _filled(ids, logps, labels, k)
    return SignalRows(
        ids, logps.astype(np.float32), labels, label.astype(np.float32), np.asarray(rest, dtype=np.float32)
    )


def _filled(ids: Any, logps: Any, labels: Any, k: int) -> tuple[Any, Any]:
    """[T, k]: places that no token was listed for get the least ids that are free."""
    wide = np.full((len(ids), k), -1, dtype=np.int32)
    values = np.full((len(ids), k), -np.inf)
    wide[:, : ids.shape[1]], values[:, : ids.shape[1]] = ids, logps
    for t in np.flatnonzero((wide < 0).any(axis=1)):
        taken, empty = {*wide[t].tolist(), int(labels[t])}, np.flatnonzero(wide[t] < 0)
        wide[t, empty] = [number for number in range(k + len(taken)) if number not in taken][: len(empty)]
    return wide, values


def write(folder: Path, spec: SignalSpec, items: Sequence[Keyed]) -> dict[str, Any]:
    """Write the shards; what is reported of them."""
    from adpa_cli.stages.capture_facts import Facts

    facts, group, tokens, number = Facts(), [], 0, 0
    for n, item in enumerate(items):
        group.append((item[0], rows_of(item, spec.k)))
        facts.add(group[-1:])
        tokens += item[3] - item[2]
        if tokens >= SHARD_TOKENS or n == len(items) - 1:
            write_shard(shard_path(folder, number), spec, group)
            group, tokens, number = [], 0, number + 1
    unknown = sum(int(np.isneginf(row.label_logps[a:b]).sum()) for _, row, a, b in items)
    said = {"unknown_labels": unknown / facts.tokens}
    size = sum(path.stat().st_size for path in folder.glob("signal-*.adpa"))
    return {**facts.metrics(spec), **said, "bytes_per_token": size / facts.tokens}


def content_of(files: Sequence[Path], cache: HashCache) -> tuple[str, dict[str, Any]]:
    """(content id, provenance) of the imported files."""
    shas = [file_digest(path, cache) for path in files]
    digest = hashlib.sha256(canonical(shas)).hexdigest()
    return f"data:{digest}", {"name": " + ".join(path.name for path in files), "files": shas}


def vocabulary_of(items: Sequence[Keyed], least: int) -> tuple[int, int]:
    """(ids per token, size of the vocabulary) that hold all of them. Raises DataError for an id beyond `least`."""
    k = max(row.ids.shape[1] for _, row, _, _ in items)
    for _, row, _, _ in items:
        most = max(int(row.ids.max()), max(row.tokens))
        if most >= least:
            raise DataError(
                f"{row.where}: the id {most}; the vocabulary has {least}", "give the tokenizer it was made with"
            )
    return min(k, least), least
