"""What another tool captured as an artifact of `cache-teacher`, keyed by the data it belongs to or by its tokens.

A capture is matched with the answers of preference data by token ids, brought into the form of a signal, and stored as
if the stage had made it. Without data its own tokens are its key.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from adpa_cli.data.chat import Encoder
from adpa_cli.data.templates import Template
from adpa_cli.errors import DataError, NotFound, UsageError
from adpa_cli.families import GENERIC, Alias, ReadyPair
from adpa_cli.hub import External
from adpa_cli.hub import repository as hub
from adpa_cli.hub.externals import pairs_of
from adpa_cli.hub.model_folder import ModelFolder
from adpa_cli.interchange.captured import (
    Captured,
    Settings,
    Spelling,
    read_distillkit,
    read_top_logprobs,
    settings_of,
    spelling,
)
from adpa_cli.machine import expanded, versions
from adpa_cli.planning import lineage
from adpa_cli.planning.lineage import locate
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.signal.block_files import SHARD_TOKENS, shard_path
from adpa_cli.signal.rows import AnswerKey, SignalRows, SignalSpec, token_hash
from adpa_cli.signal.shard import write_shard
from adpa_cli.spec import Truncation
from adpa_cli.stages import Artifact, Monitor
from adpa_cli.stages.cache_teacher import CACHE_TEACHER, CaptureSpec
from adpa_cli.store.identity import HashCache, Recipe, canonical, file_digest
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

FEW = 5
OWN = "text"
"""The part of what is keyed by its own tokens."""
BEHIND = 8
"""Tokens of a text that may follow an answer: a line break of the template, an end of text, padding."""
Keyed = tuple[AnswerKey, Captured, int, int]
"""Whose answer the tokens from one number up to another of a capture are."""
SETTINGS = "compression_config.yaml"
OF_OTHERS = "name the data and the tokenizer that it was captured with"
PARTS = ("chosen", "rejected")


@dataclass(frozen=True)
class Known:
    """The answers of preference data, which captures are matched with, and the token that ends them."""

    answers: Sequence[Any]
    name: str
    end_id: int

    @functools.cached_property
    def by_text(self) -> dict[tuple[int, ...], list[Any]]:
        """Answers by the ids of their prompt and of themselves."""
        by_ids = defaultdict(list)
        for answer in self.answers:
            by_ids[(*answer.prompt, *answer.answer)].append(answer)
        return by_ids

    @functools.cached_property
    def by_answer(self) -> dict[tuple[int, ...], list[Any]]:
        """Answers by their own ids."""
        by_ids = defaultdict(list)
        for answer in self.answers:
            by_ids[answer.answer].append(answer)
        return by_ids

    @functools.cached_property
    def by_unended_answer(self) -> dict[tuple[int, ...], list[Any]]:
        """Answers by their own ids without the end token: no server gives a position for it."""
        by_ids = defaultdict(list)
        for answer in self.answers:
            if answer.answer[-1:] == (self.end_id,):
                by_ids[answer.answer[:-1]].append(answer)
        return by_ids


def keyed(
    rows: Iterable[Captured | DataError], known: Known | None, skip: bool, prompt_ids: Any = None
) -> Iterator[Keyed]:
    """The answers of some captures. Rows that cannot be read, or are no answer of the data, are refused, the first ones
    named, or skipped.

    `prompt_ids` gives the ids of the turns of a prompt.
    """
    problems: list[str] = []
    hints: list[str] = []
    seen: set[tuple[str, str]] = set()
    count = 0
    for row in rows:
        count += 1
        if isinstance(row, DataError):
            problems.append(row.message)
            hints.append(row.hint)
            continue
        try:
            items = list(_own(row, prompt_ids) if known is None else _matched(row, known, prompt_ids))
        except ValueError as problem:
            problems.append(f"{row.where}: {problem}")
            continue
        for item in items:
            if (name := (item[0].example_id, item[0].part)) not in seen:
                seen.add(name)
                yield item
    if problems and (not skip or not seen):
        more = [f"… {len(problems) - FEW} more"] if len(problems) > FEW else []
        fault = f"are not answers of {known.name}" if known and not hints else "cannot be used"
        raise DataError(
            "\n  ".join([f"{len(problems)} of {count} rows {fault}", *problems[:FEW], *more]),
            f"{hints[0] if hints else OF_OTHERS}, or leave them out: --skip-bad-rows",
        )  # fmt: skip
    if not seen:
        raise DataError("there is nothing to import: the files have no rows", "name a file with rows")


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


def write_signal(folder: Path, spec: SignalSpec, items: Sequence[Keyed]) -> dict[str, Any]:
    """Write the shards; what is reported of them."""
    from adpa_cli.stages._signal_shards import Facts

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
    uncovered = sum(int((row.ids[a:b] < 0).all(axis=1).sum()) for _, row, a, b in items)
    said |= {"uncovered": uncovered} if uncovered else {}
    size = sum(path.stat().st_size for path in folder.glob("signal-*.adpa"))
    return {**facts.metrics(spec, CACHE_TEACHER.name), **said, "bytes_per_token": size / facts.tokens}


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
                f"{row.where}: the token id {most} is outside the vocabulary of {least} tokens",
                "name the model that was captured: --model MODEL",
            )
    return min(k, least), least


@dataclass(frozen=True)
class Asked:
    """What the command line says."""

    files: tuple[str, ...]
    format: str
    settings: str | None = None
    model: str | None = None
    data: tuple[str, ...] = ()
    precision: float = 1 / 32
    max_length: int = CaptureSpec.max_length
    skip_bad_rows: bool = False


def import_signal_of(names: Names, store: Store, asked: Asked, command: str, monitor: Monitor) -> Manifest:
    """Read, match and store what was captured elsewhere; an import of the same is a hit."""
    files = _files(asked)
    model = _model(names, asked, monitor)
    folder = Path(locate(model, store).path) if model is not None else None
    settings = _settings(asked, files[0]) if asked.format == "distillkit" else None
    data = names.data(asked.data) if asked.data else None
    content, facts = content_of(files, store.hash_cache)
    template = (lineage.template_of(model) if model is not None else None) or lineage.UNKNOWN
    encoder = _encoder(folder, template) if folder is not None else None
    truncation: Truncation = (lineage.family_of(model, store) if model is not None else GENERIC).truncation
    known = _known(data, encoder, asked, truncation) if data is not None and encoder is not None else None
    prompt_ids = encoder.prompt if encoder is not None else None
    items = list(keyed(_rows(asked, files, settings, folder), known, asked.skip_bad_rows, prompt_ids))
    least = max(settings.d if settings else 0, ModelFolder.of(folder).vocabulary if folder is not None else 0)
    k, size = vocabulary_of(items, least)
    spec = {
        "imported": asked.format, "settings": json.loads(json.dumps(asdict(settings))) if settings else {},
        "parts": sorted({key.part for key, *_ in items}), "template": template.text, "end": template.end, "top_k": k,
        "precision": float(asked.precision), "pair_precision": None, "support": "topk",
        "skip_bad_rows": asked.skip_bad_rows, **({"max_length": asked.max_length} if data else {}),
        **({"truncation": truncation} if data and truncation != CaptureSpec.truncation else {}),
    }  # fmt: skip
    inputs = {"captured": content}
    inputs |= {"tokenizer": model.content} if model is not None else {}
    inputs |= {"data": data.content} if data is not None else {}
    sources = {content: facts} | {i.content: dict(i.facts) for i in (model, data) if isinstance(i, External)}
    recipe = Recipe(CACHE_TEACHER.name, CACHE_TEACHER.version, spec, inputs)
    environment = {"versions": versions()}
    with store.build(recipe, command=command, environment=environment, announce=monitor.note) as work:
        if work.hit is not None:
            return work.hit
        signal = SignalSpec(k, size, float(asked.precision), 0.0, {"aligned": content}, "float32")
        metrics = write_signal(work.dir, signal, items)
        if folder is not None and (file := ModelFolder.of(folder).texts.path / "tokenizer.json").exists():
            _keep_tokenizer(file, work.dir)
        on = data.label if data is not None else "its own tokens"
        return work.commit({**metrics, "what": f"{asked.format}, on {on}"}, sources, {"role": "signal"})


def _own(row: Captured, prompt_ids: Any) -> Iterator[Keyed]:
    """The whole of a capture under a hash of its ids; a prompt that is known comes before."""
    before = row.before if row.before is not None else ()
    if row.prompt is not None and prompt_ids is not None:
        before = tuple(prompt_ids(row.prompt))
    digest = token_hash(before, row.tokens)
    yield AnswerKey(digest[:16], OWN, digest), row, 0, len(row.tokens)


def _matched(row: Captured, known: Known, prompt_ids: Any) -> Iterator[Keyed]:
    """The answers of the data that a capture is of. One that lacks the end token's position gets it, not covered."""
    if row.before is not None:
        whole = (*row.before, *row.tokens)
        for size in range(len(whole), max(0, len(whole) - BEHIND - 1), -1):
            for answer in known.by_text.get(whole[:size], ()):
                start = len(answer.prompt) - len(row.before)
                yield answer.key, row, start, start + len(answer.answer)
            if whole[:size] in known.by_text:
                return
        raise ValueError(_nearest(whole, known))
    before = None if row.prompt is None else tuple(prompt_ids(row.prompt))
    matches = _of_prompt(known.by_answer.get(row.tokens, ()), before)
    if not matches and (matches := _of_prompt(known.by_unended_answer.get(row.tokens, ()), before)):
        row = row.with_end(known.end_id)
    if len({answer.prompt for answer in matches}) > 1:
        raise ValueError(f"{len(matches)} prompts of {known.name} have this answer: give the `messages` with it")
    if not matches:
        raise ValueError(_nearest(row.tokens, known, answers_only=True))
    for answer in matches:
        yield answer.key, row, 0, len(row.tokens)


def _of_prompt(answers: Iterable[Any], before: tuple[int, ...] | None) -> list[Any]:
    return [answer for answer in answers if before is None or answer.prompt == before]


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


def _filled(ids: Any, logps: Any, labels: Any, k: int) -> tuple[Any, Any]:
    """[T, k]: places that no token was listed for get the least ids that are free."""
    wide = np.full((len(ids), k), -1, dtype=np.int32)
    values = np.full((len(ids), k), -np.inf)
    wide[:, : ids.shape[1]], values[:, : ids.shape[1]] = ids, logps
    for t in np.flatnonzero((wide < 0).any(axis=1)):
        taken, empty = {*wide[t].tolist(), int(labels[t])}, np.flatnonzero(wide[t] < 0)
        wide[t, empty] = [number for number in range(k + len(taken)) if number not in taken][: len(empty)]
    return wide, values


def _files(asked: Asked) -> list[Path]:
    """The files to read; of a folder all of the format, in the order of their names."""
    files: list[Path] = []
    ending = ".parquet" if asked.format == "distillkit" else ".jsonl"
    for word in asked.files:
        path = expanded(word)
        inside = sorted(path.glob(f"*{ending}"), key=lambda p: (len(p.name), p.name)) if path.is_dir() else [path]
        if not inside or not inside[0].is_file():
            raise NotFound(f"{word} holds no {ending.removeprefix('.')} file", "name the files, or their folder")
        files += inside
    return files


def _settings(asked: Asked, first: Path) -> Settings:
    """The settings of DistillKit's compressor: the file that is named, else the one beside the capture."""
    path = expanded(asked.settings) if asked.settings else first.parent / SETTINGS
    if not path.is_file():
        raise NotFound(f"{path} is missing; it says how the capture was compressed", "name it: --settings FILE")
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise ValueError("the file holds no settings")
    except (ValueError, yaml.YAMLError) as error:
        message = f"{path.name}: {' '.join(str(error).split())}"
        raise DataError(message, "give DistillKit's compression_config.yaml, or the same as JSON") from None
    return settings_of(settings, path.name)


def _model(names: Names, asked: Asked, monitor: Monitor) -> Artifact | External | None:
    """The model whose tokenizer the tokens are of."""
    if asked.model is None:
        if asked.data or asked.format == "top-logprobs":
            raise UsageError("--model is missing; it says whose tokenizer and chat template were used", "--model MODEL")
        return None
    model = names.model(asked.model, "--model")
    if isinstance(model, Alias | ReadyPair):
        raise UsageError(
            f"--model {asked.model} is an alias for several models", "name one: an artifact, ./folder or org/name"
        )
    if isinstance(model, External):
        hub.fetch(model.files, names.store.hash_cache, monitor.note)
    if asked.data and lineage.template_of(model) is None:
        hint = "name the model that was captured, or its student"
        raise lineage.missing_template(f"--model {model.label}", hint)
    return model


def _encoder(folder: Path, template: Template) -> Encoder | None:
    return Encoder(ModelFolder.of(folder).tokenizer, template) if template.text else None


def _known(data: External, encoder: Encoder, asked: Asked, truncation: Truncation) -> Known:
    """The chosen and rejected answers of the data."""
    from adpa_cli.engine.layout import examples as ex

    pairs = pairs_of(data.where, "train", None, asked.skip_bad_rows, encoder.template.text).items
    both = ex.pair_answers(pairs, encoder, asked.max_length, truncation, data.label)
    return Known([answer for part in PARTS for answer in both.of(part)], data.label, encoder.end_id)


def _rows(asked: Asked, files: Sequence[Path], settings: Any, folder: Path | None) -> Iterator[Captured | DataError]:
    if settings is not None:
        for path in files:
            yield from read_distillkit(path, settings)
    elif folder is not None:
        words = _spelling(folder)
        for path in files:
            yield from read_top_logprobs(path, words)


def _spelling(folder: Path) -> Spelling:
    tokenizer = ModelFolder.of(folder).tokenizer
    decoder = json.loads(tokenizer.core.to_str()).get("decoder")
    added = {text: tokenizer.vocabulary[text] for text in tokenizer.added}
    pieces = [tokenizer.token_of(number) for number in range(1 + max(tokenizer.vocabulary.values()))]
    return spelling(pieces, added, "ByteLevel" in json.dumps(decoder))


def _keep_tokenizer(file: Path, work: Path) -> None:
    import zstandard

    packed = zstandard.ZstdCompressor(level=19).compress(file.read_bytes())
    (work / "tokenizer.json.zst").write_bytes(packed)
