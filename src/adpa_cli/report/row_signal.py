"""Rows of `cache-teacher` artifacts: what the teachers say about every token of one answer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from adpa_cli.report import text, tokens
from adpa_cli.report.lineage import source
from adpa_cli.report.row_answers import lines_of, parent
from adpa_cli.signal import AnswerKey, SignalReader, SignalRows, advantage
from adpa_cli.signal.rows import label_positions
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

SAMPLE = 200
"""Answers that the figures about the whole signal are taken from."""
TOKEN_WIDTH = 18


class Signals:
    """The answers of a signal, shard after shard. Raises Corrupt for what is damaged."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self._store, self._manifest = store, manifest
        folder = store.folder(manifest.ref)
        self._reader = SignalReader(folder)
        self._tokens = tokens.load(folder)

    def __len__(self) -> int:
        return len(self._reader)

    def record(self, place: int) -> dict[str, Any]:
        """One answer, each of its tokens, and the figures of the whole signal."""
        return {"signal": self._facts(), **self._answer(place), **self._source(place), "tokens": self._each(place)}

    def brief(self, place: int) -> dict[str, Any]:
        """One answer: its key, its length, its text and the mean log-prob of its tokens."""
        return self._answer(place)

    def tsv(self, place: int) -> str:
        """One line for each token."""
        return lines_of(self._each(place))

    def lines(self, place: int, width: int) -> list[str]:
        """The figures of the whole signal, then a table of the answer's tokens."""
        answer, found = self._answer(place), self._source(place)
        prompt = f"prompt {found['prompt_tokens']:,}, " if "prompt_tokens" in found else ""
        head = [f"{prompt}answer {answer['answer_tokens']:,} tokens", f"{answer['part']} of {answer['example_id']}"]
        head += [f"from {found['from']}"] if "from" in found else []
        return [
            *_head(self._manifest.ref, self._facts(), width),
            *text.wrap(f"row {place + 1:,} of {len(self):,}   ", head, width, "   "),
            *_table(self._each(place), self._reader.spec.has_reference, width),
        ]

    def _at(self, place: int) -> tuple[AnswerKey, SignalRows]:
        for shard in self._reader.shards:
            if place < len(shard):
                return shard.keys[place], shard.read(place)
            place -= len(shard)
        raise IndexError(place)

    def _answer(self, place: int) -> dict[str, Any]:
        key, rows = self._at(place)
        return {
            "example_id": key.example_id, "part": key.part, "tokens_hash": key.tokens, "answer_tokens": len(rows),
            "mean_logp": float(rows.label_logps.mean()) if len(rows) else None,
            "text": self._tokens.all(rows.label_ids.tolist()),
        }  # fmt: skip

    def _source(self, place: int) -> dict[str, Any]:
        """Where the answer comes from, as far as the store knows."""
        answers = parent(self._store, self._manifest)
        if answers is not None:
            at = answers.find(self._at(place)[0].example_id)
            if at is not None:
                return {"from": f"{answers.ref}#{at + 1}", "prompt_tokens": answers.record(at)["prompt_tokens"]}
        data = self._manifest.inputs.get("data")
        return {"from": self._name(data)} if isinstance(data, str) else {}

    def _name(self, content: str) -> str:
        kind, _, digest = content.rpartition(":")
        made = self._store.get(digest) if kind == "artifact" else None
        return made.ref if made else source(self._manifest.sources.get(content, {}), digest)

    def _each(self, place: int) -> list[dict[str, Any]]:
        return list(_describe(self._at(place)[1], self._tokens))

    def _facts(self) -> dict[str, Any]:
        """The header of the signal and the figures of a sample of it; errors in nats."""
        spec = self._reader.spec
        size = sum(shard.path.stat().st_size for shard in self._reader.shards)
        places = sample(len(self))
        rows = [self._at(place)[1] for place in places]
        pair = {"difference_step": spec.difference_step} if spec.has_reference else {}
        return {
            "k": spec.k, "vocabulary": spec.vocab_size, "step": spec.step, "greatest_error": spec.step / 2, **pair,
            "answers": len(self), "tokens": self._reader.tokens, "bytes": size,
            "teachers": {role: self._name(content) for role, content in spec.teachers.items()},
            "sampled_answers": len(places), **_figures(rows),
        }  # fmt: skip


def sample(count: int) -> list[int]:
    """At most SAMPLE places out of `count`, evenly spread: blocks are sorted by length."""
    size = min(count, SAMPLE)
    return [number * count // size for number in range(size)]


def _figures(answers: list[SignalRows]) -> dict[str, Any]:
    """Mass inside the top k per token (mean, 5 % quantile) and the share of taken tokens outside; None without any."""
    mass = np.concatenate([np.zeros(0), *(np.exp(rows.logps.astype(np.float64)).sum(axis=1) for rows in answers)])
    if not mass.size:
        return {"mean_mass": None, "mass_5_percent": None, "taken_outside": None}
    outside = sum(int(np.count_nonzero(~label_positions(rows)[1])) for rows in answers)
    low = float(np.quantile(mass, 0.05))
    return {"mean_mass": float(mass.mean()), "mass_5_percent": low, "taken_outside": outside / mass.size}


def _describe(rows: SignalRows, names: tokens.Tokens) -> Iterator[dict[str, Any]]:
    """One record for each token. The paper's advantage of a taken token outside the top k is 0."""
    column, inside = label_positions(rows)
    scores = None
    if rows.difference is not None:  # an id without mass has no advantage to speak of
        scores = np.where(np.isfinite(rows.logps), advantage(rows), np.float32(np.nan))
    for t, taken in enumerate(rows.label_ids.tolist()):
        found: dict[str, Any] = {"t": t, "id": taken, "taken": names.one(taken), "in_top_k": bool(inside[t])}
        found["logp"] = float(rows.label_logps[t])
        if scores is not None and rows.reference_label_logps is not None:
            found["reference_logp"] = float(rows.reference_label_logps[t])
            found["advantage"] = _finite(scores[t, column[t]]) if inside[t] else 0.0
            known = np.flatnonzero(np.isfinite(scores[t]))
            for name, pick in (("best", np.argmax), ("worst", np.argmin)):
                place = int(known[pick(scores[t, known])]) if known.size else None
                token_id = None if place is None else int(rows.ids[t, place])
                found[f"{name}_id"] = token_id
                found[name] = None if token_id is None else names.one(token_id)
                found[f"{name}_advantage"] = None if place is None else float(scores[t, place])
        found["rest"] = float(np.exp(rows.rest_logps[t]))
        yield found


def _finite(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _head(ref: str, facts: dict[str, Any], width: int) -> list[str]:
    k = facts["k"]
    step = f"step {_step(facts['step'])}"
    if facts["step"]:
        step += f", greatest error {facts['greatest_error']:.3g} ({facts['step']:.3g} once normalised)"
    items = [f"top {k} of {facts['vocabulary']:,}", step]
    items += [f"aligned - reference {_step(facts['difference_step'])}"] if "difference_step" in facts else []
    items += [f"{facts['answers']:,} answers, {facts['tokens']:,} tokens"]
    teachers = [f"{role} {name}" for role, name in facts["teachers"].items()]
    size = f"{facts['bytes'] / max(1, facts['tokens']):.0f} B/token"
    lines = text.wrap(f"{ref}   ", items, width, " · ")
    lines += text.wrap("teachers", [*teachers, size, text.human_size(facts["bytes"])], width, "   ")
    if facts["mean_mass"] is None:
        return lines
    about = [
        f"mean {facts['mean_mass']:.3f}", f"5 % of tokens below {facts['mass_5_percent']:.3g}",
        f"taken token outside top {k}: {100 * facts['taken_outside']:.1f} %",
    ]  # fmt: skip
    if facts["sampled_answers"] < facts["answers"]:
        about.append(f"(of {facts['sampled_answers']:,} answers, evenly spread)")
    return lines + text.wrap(f"mass in top {k}   ", about, width, "   ")


def _step(step: float) -> str:
    if not step:
        return "0 (exact)"
    return f"1/{round(1 / step)} nat" if step < 1 and (1 / step).is_integer() else f"{step:g} nat"


def _table(records: list[dict[str, Any]], pair: bool, width: int) -> list[str]:
    names = ("t", "taken", "log p", *(("log p_ref", "A(taken)", "best A", "worst A") if pair else ()), "rest")
    right = (0, 2, 3, 4, 7) if pair else (0, 2, 3)
    return text.table(names, [_cells(record, pair) for record in records], width, 1, right, (6, 7, 3) if pair else (3,))


def _cells(record: dict[str, Any], pair: bool) -> list[str]:
    cells = [str(record["t"]), record["taken"], f"{record['logp']:.2f}"]
    if pair:
        known = "–" if record["advantage"] is None else f"{record['advantage']:+.2f}"
        own = known if record["in_top_k"] else "outside"
        cells += [f"{record['reference_logp']:.2f}", own, _extreme(record, "best"), _extreme(record, "worst")]
    return [*cells, f"{record['rest']:.2f}"]


def _extreme(record: dict[str, Any], name: str) -> str:
    if record[f"{name}_id"] is None:
        return "–"
    token = "(taken)" if record[f"{name}_id"] == record["id"] else text.cut(record[name], TOKEN_WIDTH)
    return f"{token} {record[f'{name}_advantage']:+.2f}"
