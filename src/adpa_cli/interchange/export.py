"""A model or a signal as a folder for other tools: Hugging Face, Ollama, GGUF; Parquet, safetensors.

A folder appears whole or not at all, and every export has a README.md. For Ollama a chat template (Jinja) becomes a Go
template: it is rendered, and what stands around each turn is read off.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from adpa_cli.data.chat import Encoder
from adpa_cli.data.examples import Message
from adpa_cli.disk import explained, share, sync_folder
from adpa_cli.errors import AdpaError, DataError, NotFound, UsageError
from adpa_cli.hub.model_folder import ModelFolder
from adpa_cli.interchange.model_copies import copy_adapter, copy_model
from adpa_cli.interchange.narrowing import ROWS, Effect, Narrowing, narrowed
from adpa_cli.machine import expanded
from adpa_cli.planning.lineage import Trained
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.signal.rows import AnswerKey, SignalRows
from adpa_cli.signal.shard import Shard, SignalReader
from adpa_cli.store.identity import ADAPTER
from adpa_cli.store.manifest import Manifest

CONVERTER = "convert_hf_to_gguf.py"
GGUF_TYPES = {None: "auto", "float32": "f32", "bfloat16": "bf16", "float16": "f16"}
LONGEST = 8192  # tokens of context that Ollama is asked for at most: it reserves them
CARD, NOTICE = "README.md", "NOTICE"
EXPORTED = (
    "config.json",
    ADAPTER,
    "Modelfile",
    "signal-00000.parquet",
    "signal-00000.safetensors",
    "model_outputs.json",
    "annotations.json",
    "model_answer",
    "model_judgment",
)  # what an export leaves, by which it is known
SignalFormat = Literal["parquet", "safetensors"]
FORMATS: tuple[SignalFormat, ...] = ("parquet", "safetensors")
GROUP_TOKENS = 1 << 14


Papers = Callable[[Effect | None], Mapping[str, str]]
"""The texts that go with a model, by the names of their files, for what fewer bits do to it."""


@dataclass(frozen=True)
class Form:
    """What a model is written as: `to` hf, ollama or gguf, or as the `adapter` that it is; `narrowing` says what its
    weights become, None as they are; `converter` is where llama.cpp lies. `rows` is the most held-out rows to measure
    the merging of an adapter on that was trained beside quantised weights."""

    to: str = "hf"
    adapter: bool = False
    narrowing: Narrowing | None = None
    converter: str | None = None
    rows: int = ROWS


def export(
    names: Names, model: Trained, target: Path, form: Form, force: bool, papers: Papers,
    note: Callable[[str], None] = lambda text: None,
) -> Effect | None:  # fmt: skip
    """Write a model into the folder `target`, which appears whole or not at all; returns what fewer bits do to it.

    `papers` gives the README and what else is to be read beside the files, for that. Raises UsageError for a folder
    that holds other things, NotFound without a converter, Corrupt for damaged files, AdpaError for weights that the
    dtype cannot hold.
    """
    program = find_converter(form.converter) if form.to == "gguf" else []
    if form.to == "ollama" and (model.is_judge or not model.template.text):
        what = "is a reward model" if model.is_judge else "has no chat template"
        raise UsageError(
            f"--to ollama needs a model that writes answers, and {model.label} {what}", "leave out --to ollama"
        )
    whole = ModelFolder.of(model.folder)
    asked = form.narrowing or (Narrowing("float32", rows=form.rows) if whole.quantise else None)
    with explained(target.absolute().parent, f"{target} is not written"), fresh_folder(target, force) as folder:
        # llama.cpp rounds to the nearest, so it is given weights that need no rounding.
        is_copied = bool(asked or whole.adapter)
        place = folder if form.to != "gguf" else folder / name_of(model) if is_copied else model.folder
        effect = None
        if form.adapter:
            copy_adapter(model, folder)
        elif place != model.folder:
            place.mkdir(exist_ok=True)
            copy_model(model, place)
        if asked is not None and not form.adapter:
            effect = narrowed(names, model, place, asked, note)
        if form.to == "gguf":
            outtype = GGUF_TYPES[form.narrowing.dtype if form.narrowing else None]
            convert(program, place, folder / f"{name_of(model)}.gguf", outtype)
        if form.to == "gguf" and place != model.folder:
            shutil.rmtree(place)
        if form.to == "ollama":
            (folder / "Modelfile").write_text(modelfile(model), encoding="utf-8")
        for name, text in papers(effect).items():
            (folder / name).write_text(text, encoding="utf-8")
    return effect


def name_of(model: Trained) -> str:
    """A file name for a model."""
    return model.label.replace("/", "-").replace("@", "-")


@contextlib.contextmanager
def fresh_folder(target: Path, force: bool) -> Iterator[Path]:
    """A private folder beside `target` that takes its name at the end, or leaves nothing when that is not reached.

    With `force` an earlier export at `target` is replaced. Raises UsageError when something else is there.
    """
    check_target(target, force)
    target = target.absolute()
    target.parent.mkdir(parents=True, exist_ok=True)
    private = target.with_name(f".{target.name}.{os.getpid()}.{os.urandom(4).hex()}")
    private.mkdir()
    try:
        yield private
        old = target.with_name(f"{private.name}.old")
        if target.exists():
            os.rename(target, old)
        os.rename(private, target)
        sync_folder(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(private, ignore_errors=True)


def check_target(target: Path, force: bool) -> None:
    """Raise UsageError unless `target` is free, an empty folder, or with `force` an earlier export."""
    if not target.exists() and not target.is_symlink():
        return
    if target.is_symlink() or not target.is_dir():
        raise UsageError(f"{target} is a file, and a folder is needed", "name a folder that does not exist yet")
    names = [path.name for path in target.iterdir()]
    if not names:
        return
    earlier = CARD in names and (any(name in names for name in EXPORTED) or any(n.endswith(".gguf") for n in names))
    if not earlier:
        raise UsageError(f"{target} is not empty (it holds {names[0]}, …)", "name a folder that does not exist yet")
    if not force:
        raise UsageError(f"{target} already holds a model", "replace it with --force, or name another folder")


def modelfile(model: Trained) -> str:
    """What `ollama create` reads: the template in Go, the end token, the context."""
    from adpa_cli.engine.layout.examples import end_ids

    encoder = Encoder(ModelFolder.of(model.folder).tokenizer, model.template)
    # What adds a BOS by itself must not find another one in the template.
    bos = encoder.tokenizer.named.get("bos_token", "") if encoder.bos_id is not None else ""
    template, several = go_template(encoder.render, bos)
    if '"""' in template:
        raise AdpaError(
            "the chat template contains three double quotes in a row, which a Modelfile cannot hold",
            "export --to hf instead",
        )
    context = min(ModelFolder.of(model.folder).context or LONGEST, LONGEST)
    stops = (encoder.tokenizer.token_of(id_) for id_ in end_ids(encoder, model.folder))
    lines = [
        f"# {model.label}: ollama create NAME -f Modelfile",
        *(() if several else ("# The chat template takes one question at a time: earlier turns are not repeated.",)),
        "FROM .",
        f'TEMPLATE """{template}"""',
        *(f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops),
        f"PARAMETER num_ctx {context}",
    ]
    return "\n".join(lines) + "\n"


def find_converter(given: str | None) -> list[str]:
    """The command that runs llama.cpp's converter: `given`, $LLAMA_CPP, or on the PATH. Raises NotFound."""
    named = given or os.environ.get("LLAMA_CPP")
    place = expanded(named) if named else Path(shutil.which(CONVERTER) or "")
    if named and place.is_dir():
        place = place / CONVERTER
    if not place.is_file():
        raise NotFound(
            f"--to gguf needs {CONVERTER} of llama.cpp, which is not {'at ' + str(place) if named else 'on the PATH'}",
            "git clone https://github.com/ggml-org/llama.cpp && pip install -r "
            "llama.cpp/requirements/requirements-convert_hf_to_gguf.txt, then name it: --converter llama.cpp",
        )
    runs = os.access(place, os.X_OK) and place.suffix != ".py"
    return [str(place)] if runs else [sys.executable, str(place)]


def convert(program: list[str], model: Path, out: Path, outtype: str) -> None:
    """Run the converter; what it prints goes to stderr. Raises AdpaError when it fails or writes nothing."""
    words = [*program, str(model), "--outfile", str(out), "--outtype", outtype]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=sys.stderr.fileno(), check=False)
    if done.returncode != 0 or not out.is_file():
        raise AdpaError(
            f"{Path(program[-1]).name} failed on {model.name} (exit {done.returncode}); its own error is printed above",
            "llama.cpp may not support this architecture or tokenizer; export with --to hf instead",
        )


def export_signal(folder: Path, manifest: Manifest, target: Path, to: SignalFormat, force: bool) -> None:
    """Write each shard of a signal as one file of the folder `target`, which appears whole or not at all.

    The values are those that training reads (renormalised). Raises UsageError for a folder that holds other things,
    Corrupt for a damaged row. The columns are those of docs/signal.md.
    """
    reader = SignalReader(folder)
    place = target.absolute().parent
    with explained(place, f"{target} is not written"), fresh_folder(target, force) as private:
        for shard in reader.shards:
            path = private / f"{shard.path.stem}.{to}"
            (_parquet if to == "parquet" else _safetensors)(shard, path)
        (private / CARD).write_text(_card(reader, manifest, to), encoding="utf-8")


def _about(shard: Shard) -> dict[str, Any]:
    """What the header says of every row."""
    return {**asdict(shard.spec), "teachers": dict(shard.spec.teachers)}


def _columns(rows: SignalRows) -> dict[str, Any]:
    """The fields that the rows have, by name."""
    values = {field.name: getattr(rows, field.name) for field in fields(SignalRows)}
    return {name: value for name, value in values.items() if value is not None}


def _parquet(shard: Shard, path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer = None
    for group in _groups(shard):
        columns: dict[str, Any] = {
            "example_id": pa.array([key.example_id for key, _ in group]),
            "part": pa.array([key.part for key, _ in group]),
            "tokens_hash": pa.array([key.tokens for key, _ in group]),
        }
        for name in _columns(group[0][1]):
            columns[name] = _lists([getattr(rows, name) for _, rows in group])
        table = pa.table(columns).replace_schema_metadata({"adpa": json.dumps(_about(shard))})
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    if writer is not None:
        writer.close()


def _lists(arrays: list[Any]) -> Any:
    """A list per answer, of numbers [T] or of lists of K numbers [T, K]."""
    import numpy as np
    import pyarrow as pa

    ends = np.cumsum([0, *(len(array) for array in arrays)], dtype=np.int32)
    flat = np.concatenate(arrays)
    inner = pa.array(flat.reshape(-1))
    if flat.ndim == 2:
        starts = np.arange(0, flat.size + 1, flat.shape[1], dtype=np.int32)
        inner = pa.ListArray.from_arrays(pa.array(starts), inner)
    return pa.ListArray.from_arrays(pa.array(ends), inner)


def _groups(shard: Shard) -> Iterator[list[tuple[AnswerKey, SignalRows]]]:
    """The answers in runs of about GROUP_TOKENS tokens; one empty run would have no columns, so there is none."""
    group: list[tuple[AnswerKey, SignalRows]] = []
    for item in shard:
        group.append(item)
        if sum(len(rows) for _, rows in group) >= GROUP_TOKENS:
            yield group
            group = []
    if group:
        yield group


def _safetensors(shard: Shard, path: Path) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    answers = list(shard)
    names = list(_columns(answers[0][1])) if answers else []
    tensors = {name: np.concatenate([getattr(rows, name) for _, rows in answers]) for name in names}
    tensors["starts"] = np.cumsum([0, *(len(rows) for _, rows in answers)], dtype=np.int64)
    keys = [[key.example_id, key.part, key.tokens] for key, _ in answers]
    save_file(tensors, path, {"adpa": json.dumps({**_about(shard), "keys": keys})})
    share(path)


def _card(reader: SignalReader, manifest: Manifest, to: str) -> str:
    lines = [
        f"# Teacher signal {manifest.ref}", "",
        f"Top {reader.spec.k} of {reader.spec.vocab_size:,} ids, {len(reader):,} answers, {reader.tokens:,} tokens.",
        f"Exported by adpa to {to}; its columns are described in docs/signal.md of adpa-cli.", "",
        *(f"- {role} teacher: `{content}`" for role, content in reader.spec.teachers.items()),
        f"- id: `{manifest.id}`",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


Render = Callable[[Sequence[Message], bool], str]
"""Turns, and whether an answer is asked for, to the text of the prompt."""

S, U, A, V, B, W = (f"QZ{letter}QZ" for letter in "SUAVBW")  # texts that no template holds


@dataclass(frozen=True)
class Pieces:
    """What a template writes around the turns.

    `system` is the text before a system message and the text from it to the first user's words, None when the template
    takes no system message; `first` comes before the first user's words without one, `later` before those that follow.
    """

    system: tuple[str, str] | None
    first: str
    later: str
    after_user: str
    answer: tuple[str, str]
    ask: str


def go_template(render: Render, bos: str = "") -> tuple[str, bool]:
    """The Go template, and whether it takes conversations of several turns; a leading `bos` is left out.

    Raises DataError when the template cannot be written as texts around the turns.
    """
    pieces = _several(render)
    if pieces is not None and all(_compose(pieces, turns) == render(turns, True) for turns in _dialogues(pieces)):
        return _chat(pieces, bos), True
    pieces = _single(render)
    if pieces is None:
        raise DataError(
            "the chat template cannot be written as a Go template: it writes turns more than once, or changes them",
            "export --to hf, and write the TEMPLATE of the Modelfile by hand",
        )
    return _prompt(pieces, bos), False


def _several(render: Render) -> Pieces | None:
    """The pieces of a template that writes each turn on its own; None when it does not."""
    single = _single(render)
    long = [Message("user", U), Message("assistant", A), Message("user", V)]
    try:
        first, between, later, end = _around(render(long, True), U, A, V)
        _, _, closing = _around(render(long[:2], False), U, A)
    except (DataError, ValueError):
        return None
    if single is None or not end.endswith(single.ask):
        return None
    if not later.startswith(closing):
        closing = ""  # a text that ends with an answer has an end of its own
    after = end.removesuffix(single.ask)
    if not between.startswith(after):
        return None
    answer = between.removeprefix(after), closing
    return Pieces(single.system, first, later.removeprefix(closing), after, answer, single.ask)


def _single(render: Render) -> Pieces | None:
    """The pieces of one question, with or without a system message; None when there are none to be found."""
    try:
        first, after = _around(render([Message("user", U)], False), U)
        _, asking = _around(render([Message("user", U)], True), U)
    except (DataError, ValueError):
        return None
    if not asking.startswith(after):
        after = ""
    system = None
    try:
        before, between, end = _around(render([Message("system", S), Message("user", U)], True), S, U)
        system = (before, between) if end == asking else None
    except (DataError, ValueError):
        pass
    return Pieces(system, first, "", after, ("", ""), asking.removeprefix(after))


def _around(text: str, *words: str) -> list[str]:
    """The texts before, between and after some words, each of which stands there once. Raises ValueError."""
    pieces = []
    for word in words:
        before, _, text = text.partition(word)
        pieces.append(before)
    if not _ or any(word in part for part in (*pieces, text) for word in words):
        raise ValueError(f"{words} are not each there exactly once")
    return [*pieces, text]


def _dialogues(pieces: Pieces) -> Iterator[list[Message]]:
    turns = [
        Message(role, word)
        for role, word in (("user", U), ("assistant", A), ("user", V), ("assistant", B), ("user", W))
    ]
    for count in (1, 3, 5):
        yield turns[:count]
        if pieces.system is not None:
            yield [Message("system", S), *turns[:count]]


def _compose(pieces: Pieces, turns: Sequence[Message]) -> str:
    text, before = "", pieces.first
    for turn in turns:
        if turn.role == "system" and pieces.system is not None:
            before = pieces.system[0] + turn.content + pieces.system[1]
        elif turn.role == "user":
            text += before + turn.content + pieces.after_user
            before = pieces.later
        else:
            text += pieces.answer[0] + turn.content + pieces.answer[1]
    return text + pieces.ask


def _opening(pieces: Pieces, bos: str, system: str) -> str:
    """What stands before the first user's words, as a Go expression."""
    first = _literal(pieces.first.removeprefix(bos))
    if pieces.system is None:
        return first
    before, between = _literal(pieces.system[0].removeprefix(bos)), _literal(pieces.system[1])
    return f"{{{{ if {system} }}}}{before}{{{{ {system} }}}}{between}{{{{ else }}}}{first}{{{{ end }}}}"


def _chat(pieces: Pieces, bos: str) -> str:
    answer = f"{_literal(pieces.answer[0])}{{{{ .Content }}}}{_literal(pieces.answer[1])}"
    return (
        '{{ $first := true }}{{ range .Messages }}{{ if eq .Role "user" }}'
        f"{{{{ if $first }}}}{_opening(pieces, bos, '$.System')}{{{{ else }}}}{_literal(pieces.later)}{{{{ end }}}}"
        f"{{{{ $first = false }}}}{{{{ .Content }}}}{_literal(pieces.after_user)}"
        f'{{{{ else if eq .Role "assistant" }}}}{answer}{{{{ end }}}}{{{{ end }}}}{_literal(pieces.ask)}'
    )


def _prompt(pieces: Pieces, bos: str) -> str:
    after = _literal(pieces.after_user + pieces.ask)
    return f"{_opening(pieces, bos, '.System')}{{{{ .Prompt }}}}{after}{{{{ .Response }}}}"


def _literal(text: str) -> str:
    return text.replace("{{", '{{ "{{" }}')
