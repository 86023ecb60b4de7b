"""`adpa import`: from the words of the command line to an artifact."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from adpa_cli.data import distillkit, flat_yaml, top_logprobs
from adpa_cli.data.captured import Captured
from adpa_cli.data.chat import Encoder, Template
from adpa_cli.errors import DataError, NotFound, UsageError
from adpa_cli.families import Alias, ReadyPair
from adpa_cli.signal import SignalSpec
from adpa_cli.spec import STAGE_VERSIONS, CaptureSpec
from adpa_cli.stages import hub, import_signal, lineage
from adpa_cli.stages.execute import locate, versions
from adpa_cli.stages.graph import Artifact, External
from adpa_cli.stages.job import Monitor, vocabulary
from adpa_cli.stages.names import Names
from adpa_cli.store.identity import Recipe
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

SETTINGS = "compression_config.yaml"
PARTS = ("chosen", "rejected")


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
    content, facts = import_signal.content_of(files, store.hash_cache)
    template = (lineage.template_of(model) or ("", "")) if model is not None else ("", "")
    encoder = _encoder(folder, template) if folder is not None else None
    known = _known(data, encoder, asked) if data is not None and encoder is not None else None
    prompt_ids = encoder.prompt if encoder is not None else None
    items = list(import_signal.keyed(_rows(asked, files, settings, folder), known, asked.skip_bad_rows, prompt_ids))
    least = max(settings.d if settings else 0, vocabulary(folder) if folder is not None else 0)
    k, size = import_signal.vocabulary_of(items, least)
    spec = {
        "imported": asked.format, "settings": json.loads(json.dumps(asdict(settings))) if settings else {},
        "parts": sorted({key.part for key, *_ in items}), "template": template[0], "end": template[1], "top_k": k,
        "precision": float(asked.precision), "pair_precision": None, "support": "topk",
        "skip_bad_rows": asked.skip_bad_rows, **({"max_length": asked.max_length} if data else {}),
    }  # fmt: skip
    inputs = {"captured": content}
    inputs |= {"tokenizer": model.content} if model is not None else {}
    inputs |= {"data": data.content} if data is not None else {}
    sources = {content: facts} | {i.content: dict(i.facts) for i in (model, data) if isinstance(i, External)}
    recipe = Recipe("cache-teacher", STAGE_VERSIONS["cache-teacher"], spec, inputs)
    environment = {"versions": versions()}
    with store.build(recipe, command=command, environment=environment, announce=monitor.note) as work:
        if work.hit is not None:
            return work.hit
        signal = SignalSpec(k, size, float(asked.precision), 0.0, {"aligned": content}, "float32")
        metrics = import_signal.write(work.dir, signal, items)
        if folder is not None and (folder / "tokenizer.json").exists():
            _keep_tokenizer(folder, work.dir)
        on = data.label if data is not None else "its own tokens"
        return work.commit({**metrics, "what": f"{asked.format}, on {on}"}, sources, {"role": "signal"})


def _files(asked: Asked) -> list[Path]:
    """The files to read; of a folder all of the format, in the order of their names."""
    found: list[Path] = []
    ending = ".parquet" if asked.format == "distillkit" else ".jsonl"
    for word in asked.files:
        path = Path(word).expanduser()
        inside = sorted(path.glob(f"*{ending}"), key=lambda p: (len(p.name), p.name)) if path.is_dir() else [path]
        if not inside or not inside[0].is_file():
            raise NotFound(f"{word}: no {ending.removeprefix('.')} file is there", "name the files, or their folder")
        found += inside
    return found


def _settings(asked: Asked, first: Path) -> distillkit.Settings:
    """The settings of DistillKit's compressor: the file that is named, else the one beside the capture."""
    path = Path(asked.settings).expanduser() if asked.settings else first.parent / SETTINGS
    if not path.is_file():
        raise NotFound(f"{path} is not there: what the capture was compressed with", "name it: --settings FILE")
    try:
        raw = flat_yaml.parse(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(
            f"{path.name}: {error}", "give DistillKit's compression_config.yaml, or the same as JSON"
        ) from None
    return distillkit.settings_of(raw, path.name)


def _model(names: Names, asked: Asked, monitor: Monitor) -> Artifact | External | None:
    """The model whose tokenizer the tokens are of."""
    if asked.model is None:
        if asked.data or asked.format == "top-logprobs":
            raise UsageError("--model is missing: whose tokenizer and template", "give it: --model MODEL")
        return None
    found = names.model(asked.model, "--model")
    if isinstance(found, Alias | ReadyPair):
        raise UsageError(f"--model {asked.model} stands for several models", "name an artifact, a folder or org/name")
    if isinstance(found, External):
        hub.fetch(found.files, names.store.hash_cache, monitor.note)
    if asked.data and lineage.template_of(found) is None:
        raise UsageError(
            f"--model {found.label} has no chat template", "name the model that was captured, or its student"
        )
    return found


def _encoder(folder: Path, template: tuple[str, str]) -> Encoder | None:
    from adpa_cli.engine.models import load_tokenizer

    return Encoder(load_tokenizer(folder), Template(*template)) if template[0] else None


def _known(data: External, encoder: Encoder, asked: Asked) -> import_signal.Known:
    """The chosen and rejected answers of the data."""
    from adpa_cli.stages import examples as ex

    answers = []
    pairs = ex.pairs_of(data.where, "train", None, asked.skip_bad_rows).items
    for part in PARTS:
        answers += ex.pair_answers(pairs, part, encoder, asked.max_length, data.label)
    return import_signal.Known(answers, data.label)


def _rows(asked: Asked, files: Sequence[Path], settings: Any, folder: Path | None) -> Iterator[Captured]:
    if settings is not None:
        for path in files:
            yield from distillkit.read(path, settings)
    elif folder is not None:
        words = _spelling(folder)
        for path in files:
            yield from top_logprobs.read(path, words)


def _spelling(folder: Path) -> top_logprobs.Spelling:
    from adpa_cli.engine.models import load_tokenizer

    tokenizer = load_tokenizer(folder)
    path = folder / "tokenizer.json"
    decoder = json.loads(path.read_bytes()).get("decoder") if path.exists() else None
    added = {str(text): int(number) for text, number in tokenizer.get_added_vocab().items()}
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    return top_logprobs.spelling(pieces, added, "ByteLevel" in json.dumps(decoder))


def _keep_tokenizer(folder: Path, work: Path) -> None:
    import zstandard

    packed = zstandard.ZstdCompressor(level=19).compress((folder / "tokenizer.json").read_bytes())
    (work / "tokenizer.json.zst").write_bytes(packed)
