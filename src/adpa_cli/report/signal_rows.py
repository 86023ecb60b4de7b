"""What a signal holds: single answers token by token, and the figures of the whole."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adpa_cli.errors import Corrupt, UsageError
from adpa_cli.report import text
from adpa_cli.report.answer_rows import parent_answers
from adpa_cli.report.lineage import content_name
from adpa_cli.report.signal_prompts import prompt_of
from adpa_cli.signal.rows import AnswerKey, SignalRows, advantage, label_positions, rms_advantage
from adpa_cli.signal.shard import SignalReader
from adpa_cli.signal.stored_frames import COLUMNS, column_bytes
from adpa_cli.sizes import spread
from adpa_cli.stages import making, product_of
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

FILE_NAME = "tokenizer.json.zst"
MAX_BYTES = 1 << 28
"""A tokenizer that would unpack to more than this is damaged, or a trap."""
SAMPLE = 200
"""Answers that the figures beside a single row are taken from."""
TOKEN_WIDTH = 18
MOST_PARTS = 4
"""Tokens that one character is cut into at most: the bytes of UTF-8."""
UNREADABLE = "\ufffd"
"""What stands for bytes that are no whole character."""
EDGES = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 1.0)
"""Bounds of the histogram of the mass inside the ids."""
BAR = 30
ERROR, PAIR_ERROR = "max_abs_error_nats", "max_abs_error_nats_pair"
"""The greatest errors of a log-prob and of a difference as stored; with `_read` behind them those of what is read."""
DISTANCES = {
    "kl_error": ("{:.2g} nat", "mean KL(teacher ‖ signal) over the stored classes"),
    "top1_agreement": ("{:.2%}", "top-1 token is the teacher's"),
}
COSINE = "_gradient_cosine"
"""A distance whose name ends so is of the gradient of the method that the name begins with."""


@dataclass(frozen=True)
class Tokens:
    """Decodes token ids; without a tokenizer they are shown as numbers."""

    inner: Any = None
    special: frozenset[int] = frozenset()

    def one(self, token_id: int) -> str:
        """One token for reading: `"Sure"` quoted as in JSON, special tokens bare, unknown ids as `[7]`."""
        raw = self.inner.id_to_token(token_id) if self.inner is not None else None
        if raw is None:
            return f"[{token_id}]"
        if token_id in self.special:
            return text.printable(raw)
        decoded = self.inner.decode([token_id], skip_special_tokens=False)
        if UNREADABLE in decoded:  # part of a character: only the tokenizer's own spelling tells which
            decoded = raw
        elif raw.startswith("▁") and not decoded.startswith(" "):  # decoders drop the space that begins a text
            decoded = f" {decoded}"
        return text.printable(json.dumps(decoded, ensure_ascii=False))

    def all(self, token_ids: Sequence[int]) -> str:
        """The text of some ids, special tokens included."""
        if self.inner is None:
            return " ".join(map(self.one, token_ids))
        return str(self.inner.decode(list(token_ids), skip_special_tokens=False))

    def pieces(self, token_ids: Sequence[int]) -> list[str]:
        """What each token adds to a text. Of tokens that are parts of one character the last has all of it."""
        pieces: list[str] = []
        start, read = 0, 0  # what is read again says whether a space stands between two tokens
        for end, token_id in enumerate(token_ids, 1):
            whole = self.all(token_ids[start:end]) if self.inner is not None else ""
            is_part = whole.endswith(UNREADABLE) and end - read < MOST_PARTS
            added = whole[len(self.all(token_ids[start:read])) :] if whole and not is_part else ""
            is_unknown = self.inner is None or self.inner.id_to_token(token_id) is None
            pieces.append(self.one(token_id) if is_unknown else added)
            if not is_part:
                start, read = read, end
        return pieces


def load_tokens(folder: Path) -> Tokens:
    """The tokenizer of a signal's folder; one that shows numbers when there is none. Raises Corrupt."""
    from tokenizers import Tokenizer
    from zstandard import ZstdDecompressor, ZstdError, get_frame_parameters

    path = folder / FILE_NAME
    if not path.exists():
        return Tokens()
    try:
        packed = path.read_bytes()
        if get_frame_parameters(packed).content_size > MAX_BYTES:
            raise ValueError("an impossible size")
        inner = Tokenizer.from_buffer(ZstdDecompressor().decompress(packed))
    except (ZstdError, ValueError) as error:
        raise Corrupt(f"{path} is no tokenizer: {error}", "adpa verify names what is damaged") from error
    special = (token_id for token_id, token in inner.get_added_tokens_decoder().items() if token.special)
    return Tokens(inner, frozenset(special))


class Signals:
    """The answers of a signal, shard after shard. Raises Corrupt for what is damaged."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self._store, self._manifest = store, manifest
        folder = store.folder(manifest.ref)
        self._reader = SignalReader(folder)
        self.names = load_tokens(folder)

    def __len__(self) -> int:
        return len(self._reader)

    def record(self, place: int) -> dict[str, Any]:
        """One answer, each of its tokens, and the figures of the whole signal."""
        return {"signal": self._facts(), **self.brief(place), **self._source(place), "tokens": self.records(place)}

    def brief(self, place: int) -> dict[str, Any]:
        """One answer: its key, its length, its text and the mean log-prob of its tokens."""
        key, rows = self.answer(place)
        return {
            "example_id": key.example_id, "part": key.part, "tokens_hash": key.tokens, "answer_tokens": len(rows),
            "mean_logp": float(rows.label_logps.mean()) if len(rows) else None,
            "text": self.names.all(rows.label_ids.tolist()),
        }  # fmt: skip

    def records(self, place: int) -> list[dict[str, Any]]:
        """Each token of one answer."""
        return list(_token_records(self.answer(place)[1], self.names))

    def lines(self, place: int, width: int) -> list[str]:
        """The prompt and the answer, a table of the answer's tokens, and the figures of the whole signal."""
        answer, source = self.brief(place), self._source(place)
        prompt = f"prompt {source['prompt_tokens']:,}, " if "prompt_tokens" in source else ""
        head = [f"{prompt}answer {answer['answer_tokens']:,} tokens", f"{answer['part']} of {answer['example_id']}"]
        head += [f"from {source['from']}"] if "from" in source else []
        turns = prompt_of(self._store, self._manifest, self.answer(place)[0])
        asked = [line for turn in turns or () for line in (turn["role"], *text.fold(turn["content"], width))]
        return [
            *text.wrap(f"row {place + 1:,} of {len(self):,}   ", head, width, "   "),
            *(asked or ["The prompt is not shown: neither its rollouts nor its data are where they were."]),
            "answer", *text.fold(answer["text"], width), "",
            *_table(self.records(place), self._reader.spec.has_reference, width), "",
            *_head(self._manifest.ref, self._facts(), width),
        ]  # fmt: skip

    def answer(self, place: int) -> tuple[AnswerKey, SignalRows]:
        """What names one answer, and what the signal holds of it."""
        shard, i = self._reader.at(place)
        return shard.keys[i], shard.read(i)

    def facts(self, place: int) -> list[tuple[str, str]]:
        """What to know of the signal and of where one answer comes from, as (term, words)."""
        spec, source = self._reader.spec, self._source(place)
        said = [("from", source["from"])] if "from" in source else []
        said += [(f"{role} teacher", self._name(content)) for role, content in spec.teachers.items()]
        what = f"{self._manifest.ref}, top {spec.k} of {spec.vocab_size:,} ids"
        return [*said, ("signal", f"{what}, row {place + 1:,} of {len(self):,}")]

    def _source(self, place: int) -> dict[str, Any]:
        """Where the answer comes from, as far as the store knows."""
        answers = parent_answers(self._store, self._manifest)
        if answers is not None:
            at = answers.find(self.answer(place)[0].example_id)
            if at is not None:
                return {"from": f"{answers.ref}#{at + 1}", "prompt_tokens": answers.record(at)["prompt_tokens"]}
        data = self._manifest.inputs.get("data")
        return {"from": self._name(data)} if isinstance(data, str) else {}

    def _name(self, content: str) -> str:
        return content_name(content, self._manifest.sources, self._store.get)

    def _facts(self) -> dict[str, Any]:
        """The header of the signal and the figures of a sample of it; errors in nats."""
        spec = self._reader.spec
        places = spread(len(self), SAMPLE)  # blocks are sorted by length
        pair = {"difference_step": spec.difference_step} if spec.has_reference else {}
        return {
            "k": spec.k, "vocabulary": spec.vocab_size, "step": spec.step, **pair, **spec.greatest_errors,
            "answers": len(self), "tokens": self._reader.tokens,
            "bytes": sum(path.stat().st_size for path in self._reader.shards.paths),
            "teachers": {role: self._name(content) for role, content in spec.teachers.items()},
            "sampled_answers": len(places), **_figures([self.answer(place)[1] for place in places]),
        }  # fmt: skip


def _mass(rows: SignalRows) -> NDArray[np.float64]:
    """[T] mass inside the ids of every token."""
    mass: NDArray[np.float64] = np.exp(rows.logps.astype(np.float64)).sum(axis=1)
    return mass


def _outside(rows: SignalRows) -> int:
    """How many taken tokens are none of the ids."""
    return int(np.count_nonzero(~label_positions(rows)[1]))


def _figures(answers: list[SignalRows]) -> dict[str, float | None]:
    """Mass inside the top k per token (mean, 5 % quantile) and the share of taken tokens outside; None without any."""
    mass = np.concatenate([np.zeros(0), *map(_mass, answers)])
    if not mass.size:
        return {"mean_mass": None, "mass_5_percent": None, "taken_outside": None}
    low, outside = float(np.quantile(mass, 0.05)), sum(map(_outside, answers))
    return {"mean_mass": float(mass.mean()), "mass_5_percent": low, "taken_outside": outside / mass.size}


def _token_records(rows: SignalRows, names: Tokens) -> Iterator[dict[str, Any]]:
    """One record for each token. The paper's advantage of a taken token outside the top k is 0."""
    column, inside = label_positions(rows)
    scores = None
    if rows.difference is not None:  # an id without mass has no advantage to speak of
        scores = np.where(np.isfinite(rows.logps), advantage(rows), np.float32(np.nan))
    for t, taken in enumerate(rows.label_ids.tolist()):
        token: dict[str, Any] = {"t": t, "id": taken, "taken": names.one(taken), "in_top_k": bool(inside[t])}
        token["logp"] = float(rows.label_logps[t])
        if scores is not None and rows.reference_label_logps is not None:
            token["reference_logp"] = float(rows.reference_label_logps[t])
            score = float(scores[t, column[t]]) if inside[t] else 0.0
            token["advantage"] = score if np.isfinite(score) else None
            finite = np.flatnonzero(np.isfinite(scores[t]))
            for name, pick in (("best", np.argmax), ("worst", np.argmin)):
                place = int(finite[pick(scores[t, finite])]) if finite.size else None
                token_id = None if place is None else int(rows.ids[t, place])
                token[f"{name}_id"] = token_id
                token[name] = None if token_id is None else names.one(token_id)
                token[f"{name}_advantage"] = None if place is None else float(scores[t, place])
        token["rest"] = float(np.exp(rows.rest_logps[t]))
        yield token


def _head(ref: str, facts: dict[str, Any], width: int) -> list[str]:
    k = facts["k"]
    items = [f"top {k} of {facts['vocabulary']:,}", f"step {_step(facts['step'])}"]
    items += [f"greatest error {error}"] if (error := _greatest(facts, ERROR)) else []
    if "difference_step" in facts:
        items.append(f"aligned - reference {_step(facts['difference_step'])}")
        items += [f"greatest error {error}"] if (error := _greatest(facts, PAIR_ERROR)) else []
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


def _greatest(facts: dict[str, Any], name: str) -> str:
    """The greatest errors of what is stored and of what is read, in words; nothing where both are exact."""
    stored, read = facts[name], facts[f"{name}_read"]
    return f"{stored:.3g} as stored, {read:.3g} as read" if read else ""


def _step(step: float) -> str:
    if not step:
        return "0 (exact)"
    return f"1/{round(1 / step)} nat" if step < 1 and (1 / step).is_integer() else f"{step:g} nat"


def _table(records: list[dict[str, Any]], pair: bool, width: int) -> list[str]:
    names = ("t", "taken", "log p", *(("log p_ref", "A(taken)", "best A", "worst A") if pair else ()), "rest")
    right, expendable = ((0, 2, 3, 4, 7), (6, 7, 3)) if pair else ((0, 2, 3), (3,))
    rows = [
        (str(r["t"]), r["taken"], f"{r['logp']:.2f}", *(_pair_cells(r) if pair else ()), f"{r['rest']:.2f}")
        for r in records
    ]
    return text.table(names, rows, width, 1, right, expendable)


def _pair_cells(record: dict[str, Any]) -> tuple[str, ...]:
    advantage = "–" if record["advantage"] is None else f"{record['advantage']:+.2f}"
    taken = advantage if record["in_top_k"] else "outside"
    return f"{record['reference_logp']:.2f}", taken, _extreme(record, "best"), _extreme(record, "worst")


def _extreme(record: dict[str, Any], name: str) -> str:
    if record[f"{name}_id"] is None:
        return "–"
    token = "(taken)" if record[f"{name}_id"] == record["id"] else text.cut(record[name], TOKEN_WIDTH)
    return f"{token} {record[f'{name}_advantage']:+.2f}"


def collect(store: Store, manifest: Manifest) -> dict[str, Any]:
    """The figures of a whole signal, every answer read once. Raises UsageError for another artifact, Corrupt."""
    if product_of(manifest.stage) != "signal":
        raise UsageError(
            f"--fidelity measures teacher signals, and {manifest.ref} is not one",
            f"name a signal ({' or '.join(making('signal'))}): adpa show lists them",
        )
    reader = SignalReader(store.folder(manifest.ref))
    spec, counts = reader.spec, np.zeros(len(EDGES) - 1, dtype=np.int64)
    total, outside, squares = 0.0, 0, 0.0
    for shard in reader.shards:
        for _, rows in shard:
            mass = _mass(rows)
            counts += np.histogram(np.clip(mass, 0, 1), EDGES)[0]
            total += float(mass.sum())
            outside += _outside(rows)
            if spec.has_reference:
                squares += rms_advantage([rows]) ** 2 * len(rows)
    tokens = max(1, reader.tokens)
    figures: dict[str, Any] = {
        "ref": manifest.ref, "k": spec.k, "vocabulary": spec.vocab_size, "answers": len(reader),
        "tokens": reader.tokens, "step": spec.step, "mean_mass": total / tokens, "taken_outside": outside / tokens,
        "mass_histogram": [
            {"from": low, "to": high, "tokens": int(count)}
            for low, high, count in zip(EDGES, EDGES[1:], counts, strict=False)
        ],
        "bytes_per_token": _bytes_per_token(reader), **spec.greatest_errors,
    }  # fmt: skip
    if spec.has_reference:
        rms = (squares / tokens) ** 0.5
        steps = rms / spec.difference_step if spec.difference_step else None
        figures |= {"difference_step": spec.difference_step, "rms_advantage": rms, "rms_advantage_steps": steps}
    return figures


def _bytes_per_token(reader: SignalReader) -> dict[str, float]:
    """Stored bytes per token by column, and of all of them."""
    sizes = dict.fromkeys(COLUMNS, 0.0)
    for path in reader.shards.paths:
        for name, size in column_bytes(path).items():
            sizes[name] += size / max(1, reader.tokens)
    return {**sizes, "all": sum(sizes.values())}


def screen(figures: dict[str, Any], width: int) -> str:
    """The figures for a terminal of `width` columns."""
    k, answers, tokens = (figures[name] for name in ("k", "answers", "tokens"))
    head = [f"top {k} of {figures['vocabulary']:,}", f"{answers:,} answers, {tokens:,} tokens"]
    lines = text.wrap(f"{figures['ref']}   ", head, width, " · ")
    lines.append(f"mass in top {k}   mean {figures['mean_mass']:.4f}")
    most = max(1, *(entry["tokens"] for entry in figures["mass_histogram"]))
    for entry in figures["mass_histogram"]:
        share = entry["tokens"] / max(1, tokens)
        bar = "#" * round(BAR * entry["tokens"] / most)
        lines.append(f"  {entry['from']:5.3f} to {entry['to']:5.3f}  {100 * share:5.1f} %  {bar}")
    lines.append(f"tokens of the answers outside the top {k}: {100 * figures['taken_outside']:.2f} %")
    if "rms_advantage" in figures:
        steps = figures["rms_advantage_steps"]
        stored = "stored exactly" if steps is None else f"{steps:.3g} times the storage resolution"
        lines.append(f"RMS of the advantage {figures['rms_advantage']:.3g} nat, {stored}")
    for name, what in ((ERROR, "a log-prob"), (PAIR_ERROR, "a difference")):
        if name in figures and (error := _greatest(figures, name)):
            lines.append(f"greatest error of {what}: {error} (nats)")
    sizes = figures["bytes_per_token"]
    costs = [f"{name} {size:.1f}" for name, size in sizes.items() if name != "all" and size]
    lines += text.wrap("bytes per token   ", [f"{sizes['all']:.1f}:", *costs], width, "  ")
    if "measured" in figures:
        lines += _measured(figures["measured"], width)
    return "\n".join(text.cut(line.rstrip(), width) for line in lines) + "\n"


def _measured(distances: dict[str, Any], width: int) -> list[str]:
    """How far the signal is from its teacher, and what to do where that is far."""
    size = f"{distances['answers']} answers, {distances['tokens']:,} tokens"
    rows = [(distances.get(name), form, words) for name, (form, words) in DISTANCES.items()]
    for name, value in distances.items():
        method, end, _ = name.partition(COSINE)
        rows += [(value, "{:.6f}", f"cosine of {method.upper()}'s gradient with the full vocabulary's")] if end else []
    lines = [f"  {form.format(value):>12}  {words}" for value, form, words in rows if value is not None]
    whole = (
        f" with unquantised weights (the signal was made with {distances['stored']} weights)"
        if "stored" in distances
        else ""
    )
    watch = text.wrap("warning  ", distances["watch"].split(" "), width, " ") if "watch" in distances else []
    return [f"against the teacher{whole}, {size}; student: {distances['student']}", *lines, *watch]


def tsv(figures: dict[str, Any]) -> str:
    """The figures as uncut lines of name and value."""
    flat = text.flat({key: value for key, value in figures.items() if key != "mass_histogram"})
    rows = [(key, "" if value is None else str(value)) for key, value in flat.items()]
    rows += [(f"mass.{e['from']:g}-{e['to']:g}", str(e["tokens"])) for e in figures["mass_histogram"]]
    return text.tsv(rows)
