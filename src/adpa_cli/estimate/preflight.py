"""Whether a teacher's answers mean the same to a student: their id -> token maps, compared entry by entry."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from adpa_cli.errors import AdpaError, DataError
from adpa_cli.estimate.speed import KINDS
from adpa_cli.estimate.survey import Cost, Estimate, memory_of, models_of, planned_rows
from adpa_cli.hub import External
from adpa_cli.hub import repository as hub
from adpa_cli.hub.externals import dialogues_of, pairs_of
from adpa_cli.planning.lineage import folder_of
from adpa_cli.sizes import Where, size_words
from adpa_cli.spec import Runtime, TrainSpec
from adpa_cli.stages import ALONE, Artifact, Node
from adpa_cli.store.store import Store

SHOWN = 3


def compare(teacher: Any, student: Any) -> tuple[str, ...]:
    """Remarks on two tokenizers that agree on every id of the student.

    Embeddings may be padded beyond the vocabulary; only the maps are compared. Raises AdpaError that names the first
    ids that differ.
    """
    theirs, ours = ({id_: token for token, id_ in each.get_vocab().items()} for each in (teacher, student))
    different = [id_ for id_ in sorted(ours) if theirs.get(id_) != ours[id_]]
    if different:
        listed = "".join(
            f"\n  id {id_}: teacher {_token(theirs, id_)}, student {_token(ours, id_)}" for id_ in different[:SHOWN]
        )
        message = f"teacher and student differ in {len(different)} of {len(ours)} ids of the vocabulary{listed}"
        raise AdpaError(message, "choose a teacher of the student's family: adpa models")
    more = sorted(set(theirs) - set(ours))
    if not more:
        return (f"one vocabulary of {len(ours)} tokens",)
    named = ", ".join(repr(theirs[id_]) for id_ in more[:SHOWN]) + (", …" if len(more) > SHOWN else "")
    return (f"{len(more)} ids only the teacher has ({named}): their probability counts as mass outside",)


def _token(names: dict[int, str], id_: int) -> str:
    return repr(names[id_]) if id_ in names else "has none"


SAMPLE = "Hello, world! 12 3456\n\n  naïve 你好 <b>don't</b>"
Action = Callable[[], Sequence[str]]
"""A check: returns remarks, raises AdpaError."""
CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "n_ctx")


def check(nodes: Sequence[Node], store: Store, note: Callable[[str], None], known: Sequence[AdpaError] = ()) -> None:
    """Raise one error with every problem of the stages about to be built, `known` ones first; `note` hears remarks."""
    refuse([*known, *_failures((*_plain(nodes, store), *_deep(nodes, store)), note)])


def refuse(problems: Sequence[AdpaError]) -> None:
    """Raise all problems of a plan as one error; nothing without any."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        lines = "".join(f"\n  {error.message}" for error in problems)
        hints = "\n or: ".join(dict.fromkeys(error.hint for error in problems if error.hint))
        raise type(problems[0])(f"{len(problems)} problems (nothing was started){lines}", hints)


def problems_without_torch(nodes: Sequence[Node], store: Store) -> list[AdpaError]:
    """The problems that a plan can name without loading a model's libraries: of data that are here, and of lengths."""
    return _failures(_plain([node for node in nodes if _is_here(node)], store), lambda text: None)


def _is_here(node: Node) -> bool:
    externals = [item for _, item in node.flat_inputs() if isinstance(item, External)]
    return all(item.is_open and not (item.download and item.content.startswith("data:")) for item in externals)


def _failures(actions: Iterable[Action], note: Callable[[str], None]) -> list[AdpaError]:
    """What goes wrong in each of the checks, once; `note` hears what the others say, once."""
    problems: list[AdpaError] = []
    said: set[str] = set()
    for action in actions:
        try:
            for text in action():
                if text not in said:
                    said.add(text)
                    note(text)
        except AdpaError as error:
            if error.message not in {known.message for known in problems}:
                problems.append(error)
    return problems


def _own(nodes: Sequence[Node]) -> list[Node]:
    """Those that none of the others derives: what one does has the data, the model and the lengths of that other."""
    derived = {made.recipe.id for node in nodes for made in node.derived.values()}
    return [node for node in nodes if node.recipe.id not in derived]


def _plain(nodes: Sequence[Node], store: Store) -> Iterator[Action]:
    """Checks that need no torch."""
    seen: set[Any] = set()
    for node in _own(nodes):
        data = node.inputs.get("data")
        if isinstance(data, External):
            kind = "dialogues" if node.stage == "sft" else "pairs"
            split = "test" if node.stage == "eval" else getattr(node.spec, "split", "train")
            key = (data.where, kind, split, node.spec.limit, node.spec.skip_bad_rows)
            if key not in seen:
                seen.add(key)
                yield functools.partial(_data, data.label, *key)
            if isinstance(node.spec, TrainSpec) and node.spec.select != "last":
                yield functools.partial(_selects, data, kind, node.spec)
        for _, folder in _models(node, store):
            yield functools.partial(_context, folder, node)


def _models(node: Node, store: Store) -> list[tuple[str, Path]]:
    """The models that a stage reads, by role."""
    roles = ("model", "aligned", "reference")
    return [(role, folder_of(item, store)) for role, item in node.flat_inputs() if role in roles]


def _deep(nodes: Sequence[Node], store: Store) -> Iterator[Action]:
    """Checks that load tokenizers."""
    seen: set[Any] = set()
    for node in _own(nodes):
        folders = _models(node, store)
        for _, folder in folders:
            yield functools.partial(_end_token, folder, node)
        teachers = [f for role, f in folders if role != "model"] + _teachers_behind(node, store)
        students = [f for role, f in folders if role == "model"] or teachers[:1]
        for pair in {(t, s) for t in teachers for s in students if t != s} - seen:
            seen.add(pair)
            yield functools.partial(_vocabularies, *pair, node.spec)


BEHIND = {"cache": "aligned", "rollouts": "model"}
"""The input of an input of a training that must have the student's vocabulary."""


def _teachers_behind(node: Node, store: Store) -> list[Path]:
    """The models whose signal or whose answers a training reads."""
    found = []
    for role, item in node.flat_inputs() if isinstance(node.spec, TrainSpec) else ():
        if role in BEHIND and isinstance(item, Node):
            below = item.inputs[BEHIND[role]]
            if not isinstance(below, tuple):
                found.append(folder_of(below, store))
        elif role in BEHIND and isinstance(item, Artifact):
            given = item.manifest.inputs  # an imported signal has the model whose tokenizer it is of
            made = store.get(str(given.get(BEHIND[role], given.get("tokenizer"))))
            found += [store.folder(made.ref)] if made else []
    return found


def _data(
    name: str, where: tuple[str, ...], kind: str, split: str, limit: int | None, skip_bad_rows: bool
) -> Sequence[str]:
    """Read one side of a data set whole; how much of it is used, and what was said while reading."""

    read = dialogues_of if kind == "dialogues" else pairs_of
    found = read(where, split, limit, skip_bad_rows)
    used = f"{len(found.items):,} {kind}" + (f" (limit {limit:,})" if limit == len(found.items) else "")
    return [" · ".join([f"data {name}, {split}: {used}", *found.notes])]


def _selects(data: External, kind: str, spec: TrainSpec) -> Sequence[str]:
    """Whether there are rows for `--select best` to look at, or steps enough for `--select STEP`."""
    from adpa_cli.engine.training.schedule import steps_of

    read = dialogues_of if kind == "dialogues" else pairs_of
    if spec.select == "best":
        try:
            read(data.where, "test", spec.limit, spec.skip_bad_rows)
        except DataError as error:
            hint = "give data with a test split or more prompts, or leave out --select"
            raise DataError(f"--select best looks at held-out rows of {data.label}: {error.message}", hint) from error
        return ()
    rows = len(read(data.where, "train", spec.limit, spec.skip_bad_rows).items)
    spec.last_step(steps_of(rows, spec))
    return ()


@functools.lru_cache(maxsize=8)
def _tokenizer(folder: Path) -> Any:
    from adpa_cli.engine.models import load_tokenizer

    return load_tokenizer(folder)


def _vocabularies(teacher: Path, student: Path, spec: Any) -> Sequence[str]:
    """One id for every token the student has, and one way of cutting a text into tokens."""
    from adpa_cli.data.examples import Message
    from adpa_cli.engine.layout.examples import encoder_of

    notes = compare(_tokenizer(teacher), _tokenizer(student))
    both = [encoder_of(_tokenizer(folder), spec) for folder in (teacher, student)]
    ids = [(encoder.prompt((Message("user", SAMPLE),)), encoder.answer(SAMPLE)) for encoder in both]
    if ids[0] != ids[1]:
        raise DataError(
            f"the tokenizers in {hub.title(teacher)} and {hub.title(student)} have one vocabulary and cut a text "
            "differently (merges, normaliser or begin token)",
            "use models of one family, or copy the teacher's tokenizer files beside the student",
        )
    return notes


def _end_token(folder: Path, node: Node) -> Sequence[str]:
    """The end token is one id of the tokenizer."""
    from adpa_cli.engine.layout.examples import encoder_of

    encoder_of(_tokenizer(folder), node.spec)
    return ()


def _context(folder: Path, node: Node) -> Sequence[str]:
    """The context holds `max_length`."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    context = next((int(config[key]) for key in CONTEXT_KEYS if config.get(key)), None)
    if context is not None and node.spec.max_length > context:
        raise DataError(
            f"{node.stage}: max_length {node.spec.max_length} exceeds the context of {context} tokens "
            f"of {hub.title(folder)}",
            f"--set {node.stage}.max_length={context}",
        )
    return ()


SMALLEST = 256  # tokens: nobody is told to go below


def fit_problems(found: Estimate, store: Store, runtime: Runtime) -> list[AdpaError]:
    """One error for the disk, one for the downloads, one for each stage that does not fit in memory."""
    memories = (error for cost in found.building for error in _memory(cost, found, store, runtime))
    return [*_disks(found, store), *memories]


def _disks(found: Estimate, store: Store) -> Iterator[AdpaError]:
    most, at = found.fullest
    machine = found.machine
    together = most + (found.download if machine.cache is None else 0)
    if together > machine.disk:
        stage = f", while {at.node.role} is made" if at else ""
        yield AdpaError(
            f"the disk of {store.root} has {size_words(machine.disk)} free; "
            f"the plan needs {size_words(together)} there{stage}",
            "free some space (adpa gc), or keep the store on another disk: --store DIR",
        )
    if machine.cache is not None and found.download > machine.cache:
        yield AdpaError(
            f"the disk of the Hugging Face cache has {size_words(machine.cache)} free; "
            f"{size_words(found.download)} are to be downloaded",
            "free some space, or keep the cache on another disk: export HF_HOME=DIR",
        )


def _memory(cost: Cost, found: Estimate, store: Store, runtime: Runtime) -> Iterator[AdpaError]:
    machine = found.machine
    if cost.memory is None:
        return
    need = cost.memory.device
    node = cost.node
    where = Where(machine.kind, 1 if node.stage in ALONE else runtime.processes)
    if need > machine.memory:
        hint, halves = _smaller(node, store, runtime, where, machine.memory)
        if not (halves and machine.kind == "cuda"):  # training halves its micro-batches on a card by itself
            yield AdpaError(
                f"{node.role} ({node.label}) needs about {size_words(need)} of memory; "
                f"{_has(found)} {size_words(machine.memory)}",
                hint,
            )
    elif cost.memory.host > machine.host_memory:
        yield AdpaError(
            f"{node.role} ({node.label}) needs about {size_words(cost.memory.host)} of memory beside the GPU's; "
            f"{size_words(machine.host_memory)} are available",
            "fewer processes (--gpus 1), or a smaller model",
        )


def _has(found: Estimate) -> str:
    return f"{found.machine.name} has" if found.machine.kind == "cuda" else "this machine has available"


def _smaller(node: Node, store: Store, runtime: Runtime, where: Where, room: int) -> tuple[str, bool]:
    """What would make a stage fit, and whether a smaller micro-batch of training alone does."""
    rows, models = planned_rows(node, store, runtime)[0], models_of(node, store)

    def fits(stage: Node, run: Runtime, at: Where) -> bool:
        return memory_of(stage, rows, models, run, at).device <= room

    if KINDS[node.stage] == "training":
        if found := _leaner(node, runtime, lambda stage, run: fits(stage, run, where)):
            return found
    else:
        tokens = _halved(
            node.spec.block_tokens,
            lambda n: fits(replace(node, spec=replace(node.spec, block_tokens=n)), runtime, where),
        )
        if tokens:
            return f"--set {node.stage}.block_tokens={tokens}", False
    one = Where(where.kind)
    if where.kind == "cpu" and where.processes > 1 and fits(node, replace(runtime, processes=1), one):
        return "--gpus 1: on a CPU every process holds the whole model", False
    if node.stage == "dpo-teacher" or node.role == "reference teacher":
        return "a ready pair, which is not trained: --teacher tulu-3-8b or zephyr-7b; or a smaller teacher", False
    if KINDS[node.stage] == "training":
        return "a smaller student (adpa models), or a machine with more memory", False
    return "a smaller model (adpa models), or a machine with more memory", False


def _leaner(node: Node, runtime: Runtime, fits: Callable[[Node, Runtime], bool]) -> tuple[str, bool] | None:
    """What makes a training fit, what costs least first, and whether smaller micro-batches are all."""
    again = replace(runtime, recompute=True)
    small = replace(node, spec=replace(node.spec, weights="bfloat16"))
    recompute, weights = "--runtime recompute=true", f"--set {node.stage}.weights=bfloat16"
    ways = (
        (node, runtime, ""), (node, again, recompute), (small, runtime, weights),
        (small, again, f"{recompute} {weights}"),
    )  # fmt: skip
    for stage, run, words in ways:
        if words and fits(stage, run):
            return words, False

        def with_tokens(tokens: int, stage: Node = stage, run: Runtime = run) -> bool:
            return fits(stage, replace(run, tokens_per_device=tokens))

        if tokens := _halved(run.tokens_per_device, with_tokens):
            return f"{words} --tokens-per-device {tokens}".lstrip(), not words
    return None


def _halved(start: int, fits: Callable[[int], bool]) -> int | None:
    """`start` halved until it fits; None when not even the smallest does."""
    tokens = start // 2
    while tokens >= SMALLEST:
        if fits(tokens):
            return tokens
        tokens //= 2
    return None
