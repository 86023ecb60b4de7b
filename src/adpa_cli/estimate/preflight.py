"""What is checked for a whole plan before any work: data, vocabularies, templates, lengths, memory, disk."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from adpa_cli import stages
from adpa_cli.data.chat import Encoder
from adpa_cli.data.examples import Dialogue, Message, Pair, dialogue_of
from adpa_cli.data.items import Items
from adpa_cli.data.preferences import Loaded, check_unused, ignored_words, left_out_words
from adpa_cli.data.rendering import DAY, REASONING, answer_end, thinking_words
from adpa_cli.data.tables import CacheFull, code_digest, record_batch, table, watched
from adpa_cli.data.templates import Template
from adpa_cli.data.tokenizer import VARIED, Tokenizer, compare, different_cut
from adpa_cli.errors import AdpaError, DataError, named_row
from adpa_cli.estimate.cost import Cost, fullest
from adpa_cli.estimate.row_lengths import cut_words
from adpa_cli.hub import External, usable
from adpa_cli.hub import repository as hub
from adpa_cli.hub.externals import dialogues_of, has_pairs, pairs_of, prompts_of
from adpa_cli.hub.model_folder import ModelFolder
from adpa_cli.machine import OTHER_TORCH, Machine, card_words, torch_without_gpu
from adpa_cli.planning.adapters import check_adapters
from adpa_cli.planning.frozen_models import check_stored
from adpa_cli.planning.given import check_given
from adpa_cli.planning.lineage import folder_of
from adpa_cli.sizes import size_words
from adpa_cli.spec import TrainSpec
from adpa_cli.stages import DECODER_ROLES, MODEL_ROLES, Node
from adpa_cli.stages._update import finer, unseen
from adpa_cli.stages.rewards import RewardsSpec
from adpa_cli.stages.training import needs_of
from adpa_cli.store.store import Store
from adpa_cli.suites import EvalSpec

FIRST_ROWS = 8
"""Rows on which it is seen before any work that what is fed is what the template writes."""


READERS: Mapping[str, Callable[..., Loaded[Any]]] = {
    "pairs": pairs_of, "dialogues": dialogues_of, "prompts": prompts_of,
}  # fmt: skip
"""What reads one side of some data, by what a stage wants of them."""
SAMPLE = VARIED[0]
Check = Callable[[], Sequence[str]]
"""Returns remarks, raises AdpaError."""


def refuse(problems: Sequence[AdpaError], command: str = "") -> None:
    """Raise all problems of a plan as one error; nothing without any. `command` is one that has none of them."""
    if len(problems) == 1 and not command:
        raise problems[0]
    if problems:
        lines = [error.message for error in problems]
        said = (
            lines[0]
            if len(lines) == 1
            else "\n  ".join((f"{len(lines)} problems were found, and nothing was started:", *lines))
        )
        hints = "\nand: ".join(dict.fromkeys(error.hint for error in problems if error.hint))
        raise type(problems[0])(said, command or hints)


def is_here(node: Node) -> bool:
    """Whether the data that a stage reads are on this machine."""
    externals = [item for _, item in node.flat_inputs() if isinstance(item, External)]
    return all(item.is_open and not (item.download and item.content.startswith("data:")) for item in externals)


def run_checks(checks: Iterable[Check]) -> tuple[list[AdpaError], list[str]]:
    """(what goes wrong in some checks, what the others say), each once."""
    problems: dict[str, AdpaError] = {}
    remarks: dict[str, None] = {}
    for check in checks:
        try:
            remarks.update(dict.fromkeys(check()))
        except AdpaError as error:
            problems.setdefault(error.message, error)
            if isinstance(error, CacheFull):  # no fault of the plan, and other checks would read in vain too
                break
    return list(problems.values()), list(remarks)


def _lost_digits(node: Node, store: Store) -> list[str]:
    """Where a stage is to read models in bfloat16: those whose training it loses, those with weights in float16."""
    said = []
    read = node.flat_inputs() if getattr(node.spec, "dtype", "") == "bfloat16" else ()
    for item in [item for role, item in read if role in MODEL_ROLES]:
        if isinstance(item, External):
            is_finer = item.is_open and ModelFolder.of(Path(item.where[0])).stored == {"F16"}
            why = "but its weights are float16, which is more precise" if is_finer else ""
        else:
            manifest = store.get(item.label)
            seen = unseen(manifest.metrics.get("update", {}), "bfloat16") if manifest else None
            why = "" if seen is None else f"which keeps only {100 * seen:.1f} % of what training changed"
        if why:
            said.append(f"{node.stage} reads {item.label} in bfloat16, {why}: {finer(node.stage, node.spec)}")
    return said


def _underived(nodes: Sequence[Node]) -> list[Node]:
    """Those that none of the others derives: what one does has the data, the model and the lengths of that other."""
    derived = {made.recipe.id for node in nodes for made in node.derived.values()}
    return [node for node in nodes if node.recipe.id not in derived]


def plain_checks(nodes: Sequence[Node], store: Store, ignored: frozenset[str] = frozenset()) -> Iterator[Check]:
    """Every check: none needs torch or transformers, so a plan that is only shown is checked too."""
    seen: set[Any] = set()
    read: dict[Any, str] = {}

    def first(*key: Any) -> bool:
        is_new = key not in seen
        seen.add(key)
        return is_new

    for node in _underived(nodes):
        data, folders = node.inputs.get("data"), _models(node, store)
        if isinstance(data, External):
            split = node.declared.split(node.spec)
            kind = "pairs" if node.declared.reads == "prompts" and has_pairs(data) else node.declared.reads
            key = (data.where, kind, split, node.spec.limit, node.spec.skip_bad_rows, node.spec.template)
            if first("data", *key):
                yield functools.partial(_data, data, ignored, *key)
                read[key] = data.label
            if isinstance(node.spec, TrainSpec) and node.spec.select != "last":
                yield functools.partial(_selects, data, kind, node.spec, node.stage)
            if isinstance(node.spec, EvalSpec) and node.spec.measure_on != "all" and first("half", *key):
                yield functools.partial(_measures, data, node.spec)
            if any(role in MODEL_ROLES for role in node.inputs) and first("cut", *key, node.spec.max_length):
                yield functools.partial(_cut, node, store)
            for _, folder in folders:
                if first("rows", folder, key):
                    yield functools.partial(_first_rows, data.label, folder, node.spec.end, *key, first("words", key))
        for _, folder in folders:
            yield functools.partial(_context, folder, node)
            if first("template", folder, node.spec.template, node.spec.end):
                yield functools.partial(_template, folder, node)
        yield functools.partial(check_adapters, node, store)
        yield functools.partial(check_given, node)
        yield functools.partial(check_stored, node, store)
        yield functools.partial(_lost_digits, node, store)
        teachers = [f for role, f in folders if role != "model"] + _teachers_behind(node, store)
        students = [f for role, f in folders if role == "model"] or teachers[:1]
        for pair in ((t, s) for t in teachers for s in students if t != s):
            if first(*pair):
                yield functools.partial(_vocabularies, *pair, node.spec)

    if ignored and read:
        yield functools.partial(_ignored, ignored, read)


def saved_checks(nodes: Sequence[Node], store: Store) -> Iterator[Check]:
    """Whether what is trained can be saved with the ids that it was trained on; these load transformers."""
    seen: set[Any] = set()
    for node in _underived(nodes):
        for role, folder in _models(node, store) if isinstance(node.spec, TrainSpec) else ():
            key = folder, node.spec.template, node.spec.end
            if role == "model" and key not in seen:
                seen.add(key)
                yield functools.partial(_saved, *key)


def _saved(folder: Path, template: str, end: str) -> Sequence[str]:
    from adpa_cli.engine.tokenizer_files import check_saved_tokenizer

    check_saved_tokenizer(folder, template, end)
    return ()


def _models(node: Node, store: Store) -> list[tuple[str, Path]]:
    """The models that a stage reads, by role."""
    return [(role, folder_of(item, store)) for role, item in node.flat_inputs() if role in DECODER_ROLES]


def _teachers_behind(node: Node, store: Store) -> list[Path]:
    """The models whose signal a training reads, or the answers it is of: they must have the student's vocabulary."""
    folders: list[Path] = []
    if node.declared.kind != "training" or not any(need.signal for need in needs_of(node.spec)):
        return folders
    for _, item in node.flat_inputs():
        if isinstance(item, External) or not (role := stages.every()[item.stage].vocabulary_of):
            continue
        if isinstance(item, Node):
            below = item.inputs[role]
            if not isinstance(below, tuple):
                folders.append(folder_of(below, store))
        else:
            given = item.manifest.inputs  # an imported signal has the model whose tokenizer it is of
            made = store.get(str(given.get(role, given.get("tokenizer"))))
            folders += [store.folder(made.ref)] if made else []
    return folders


def _data(
    data: External, ignored: frozenset[str], where: tuple[str, ...], kind: str, split: str, limit: int | None,
    skip_bad_rows: bool, template: str,
) -> Sequence[str]:  # fmt: skip
    """Read one side of a data set whole; how much of it is used, and what was said while reading."""
    loaded = READERS[kind](where, split, limit, skip_bad_rows, template)
    if kind != "prompts":  # whose answers nobody asks for
        check_unused(loaded, ignored)
    of_hub = [name for source in data.facts.get("sources", ()) for name in source.get("left_out", ())]
    unnamed = left_out_words([name for name in of_hub if name not in loaded.left_out])  # they are not fetched
    used = f"{len(loaded.items):,} {kind}" + (f" (limit {limit:,})" if limit == len(loaded.items) else "")
    return [" · ".join([f"data {data.label}, {split}: {used}", *loaded.notes, *unnamed])]


def is_ordinary(remark: str) -> bool:
    """Whether a remark only says that all is as it should be: how many rows there are, or that vocabularies agree."""
    return remark.startswith("both models have the same vocabulary") or (
        remark.startswith("data ") and " · " not in remark
    )


def _ignored(ignored: frozenset[str], read: Mapping[Any, str]) -> Sequence[str]:
    """The columns that were to be ignored and cannot be, in all data of a plan."""
    data = [READERS[kind](where, *rest) for where, kind, *rest in read]
    return ignored_words(data, ignored, " + ".join(dict.fromkeys(read.values())))


def _selects(data: External, kind: str, spec: TrainSpec, stage: str) -> Sequence[str]:
    """Whether there are rows for `--select best` to look at, or steps enough for `--select STEP`."""
    from adpa_cli.engine.training.schedule import steps_of

    read = READERS[kind]
    rest = (spec.limit, spec.skip_bad_rows, spec.template)
    if spec.select == "best":
        try:
            items = read(data.where, "test", *rest).items
        except DataError as error:
            hint = "use data with a test split or with more prompts, or leave out --select"
            raise DataError(f"--select best needs held-out rows of {data.label}: {error.message}", hint) from error
        items.of_half(spec.select_on, data.label, f"{stage}.select_on")
        return ()
    spec.last_step(steps_of(len(read(data.where, "train", *rest).items), spec))
    return ()


def _measures(data: External, spec: EvalSpec) -> Sequence[str]:
    """Whether there are held-out prompts of the half that is measured."""
    held = pairs_of(data.where, "test", spec.limit, spec.skip_bad_rows, spec.template).items
    held.of_half(spec.measure_on, data.label, "eval.measure_on")
    return ()


@functools.lru_cache(maxsize=8)
def _tokenizer(folder: Path) -> Tokenizer:
    return ModelFolder.of(folder).tokenizer


def _vocabularies(teacher: Path, student: Path, spec: Any) -> Sequence[str]:
    """One id for every token the student has, and one way of cutting a text into tokens."""
    notes = compare(_tokenizer(teacher), _tokenizer(student))
    prompt = (Message("user", SAMPLE),)
    both = [_encoder(folder, spec.template, spec.end) for folder in (teacher, student)]
    ids = [encoder.answered(prompt, SAMPLE) for encoder in both]
    other = SAMPLE if ids[0] != ids[1] else different_cut(_tokenizer(teacher), _tokenizer(student))
    if other is not None:
        raise DataError(
            f"the tokenizers of {hub.title(teacher)} and {hub.title(student)} have the same vocabulary but split this "
            f"text differently (their merges, normaliser or first token differ): {other!r}",
            "use models of one family, or copy the teacher's tokenizer files beside the student",
        )
    return notes


def _encoder(folder: Path, template: str, end: str) -> Encoder:
    return Encoder(_tokenizer(folder), Template(template, end))


def _template(folder: Path, node: Node) -> Sequence[str]:
    """The end token is one id of the tokenizer, and the model has every id that is fed; what is worth knowing of the
    template and of the folder."""
    encoder = _encoder(folder, node.spec.template, node.spec.end)
    inside, name = ModelFolder.of(folder), hub.title(folder)
    prompt, (answer,) = encoder.answered((Message("user", SAMPLE),), SAMPLE)
    if (last := max([*prompt, *answer])) >= inside.rows:
        raise usable.beyond_rows(name, last, encoder.tokenizer.token_of(last), inside.rows)
    return [*usable.remarks(inside, name), *template_words(encoder, inside.stop_ids)]


def template_words(encoder: Encoder, stop_ids: Sequence[int]) -> list[str]:
    """What is worth knowing of a chat template: an end that the tokenizer calls otherwise, thinking, a date."""
    said, tokenizer, template = [], encoder.tokenizer, encoder.template
    own = tokenizer.named.get("eos_token", "")
    written = answer_end(template.text, {**tokenizer.named, "eos_token": template.end}, tokenizer.added)
    if written not in ("", template.end):
        said.append(
            f"answers end with {template.end}, as in the version that made this model, although the chat template "
            f"writes {written}; to change that, train again from the base model"
        )
    elif own != template.end:
        stops = dict.fromkeys([template.end, *(str(tokenizer.token_of(id_)) for id_ in stop_ids)])
        said.append(
            f"answers end with {template.end}, which the chat template writes; "
            + (f"the tokenizer's eos_token is {own}" if own else "the tokenizer has no eos_token")
            + f"; models made here stop at {' and '.join(stops)}"
        )
    if rule := thinking_words(template.text):
        said.append(rule)
    if "strftime_now" in template.text:
        said.append(f"the chat template writes today's date; here, and in saved models, it is always {DAY}")
    return said


def _cut(node: Node, store: Store) -> Sequence[str]:
    """How much of the data seems not to fit. Raises DataError where nothing is left; what cannot be measured is
    nobody's problem here."""
    try:
        return cut_words(node, store) if node.declared.makes not in ("answers", "rewards") else ()
    except DataError:
        raise
    except (AdpaError, OSError, KeyError):
        return ()


def _first_rows(
    name: str, folder: Path, end: str, where: tuple[str, ...], kind: str, split: str, limit: int | None,
    skip_bad_rows: bool, template: str, is_first: bool,
) -> Sequence[str]:  # fmt: skip
    """What is fed of the first rows is what the template writes for them. Raises DataError where it is not."""
    encoder = _encoder(folder, template, end)
    items: Items[Any] = READERS[kind](where, split, limit, skip_bad_rows, template).items
    for item in items[:FIRST_ROWS]:
        with named_row(f"{name} row {item.row}"):
            encoder.prompt(item.prompt) if kind == "prompts" else encoder.dialogue(dialogue_of(item))
    return control_words(name, items, encoder) if is_first else ()


def control_words(name: str, items: Items[Any], encoder: Encoder) -> list[str]:
    """What is said of rows with names of special tokens in what people wrote, and with reasoning that is not read.

    The rows are looked through once for a template and its special tokens.
    """
    import pyarrow as pa

    schema = pa.schema([("place", pa.int64())])

    def fill(add: Callable[[Any], None]) -> dict[str, Any]:
        places, first, lost = list[int](), "", 0
        for place, item in enumerate(watched(items, f"looking for special tokens in {name}", len(items))):
            lost += encoder.unwritten_reasoning(_turns(item))
            if names := encoder.controls_in(_turns(item)):
                places.append(place)
                first = first or names[0]
        add(record_batch([places], schema))
        return {"first": first, "lost": lost}

    made_from = [items.digest, encoder.template.text, encoder.controls, code_digest()]
    found = table("words", made_from, schema, fill)
    count, first, lost = len(found), found.about["first"], found.about["lost"]
    having = f"1 row of {name} has" if lost == 1 else f"{lost:,} rows of {name} have"
    reasoning = [f"{having} {REASONING}, which the chat template leaves out"] if lost else []
    if not count:
        return reasoning
    rows = f"{count:,} row{'s' * (count != 1)} of {name} contain{'s' * (count == 1)}"
    rendered = (
        "; if a template was already applied to these texts, give their turns instead" if 2 * count > len(items) else ""
    )
    return [f"{rows} the model's special tokens, such as {first}, which are read as plain text{rendered}"]


def _turns(item: Pair | Dialogue) -> Sequence[Message]:
    """All that is said in an item."""
    rejected = (Message("assistant", item.rejected),) if isinstance(item, Pair) else ()
    return (*dialogue_of(item), *rejected)


def _context(folder: Path, node: Node) -> Sequence[str]:
    """The context holds `max_length`, where the stage has a use for it."""
    if isinstance(node.spec, EvalSpec | RewardsSpec) and "max_length" in node.spec.without_effect():
        return ()
    context = ModelFolder.of(folder).context
    if context is not None and (node.spec.max_length or 0) > context:
        raise DataError(
            f"{node.stage}: max_length={node.spec.max_length} is more than the {context} tokens that "
            f"{hub.title(folder)} can read",
            f"--set {node.stage}.max_length={context}",
        )
    return ()


def check_torch(machine: Machine) -> None:
    """Raise AdpaError for a machine with a card that the installed torch cannot compute on.

    A CPU would take months for what a card was meant for, so nobody is sent there without having asked for it.
    """
    if machine.kind == "cuda" and (version := torch_without_gpu()):
        raise AdpaError(card_words(machine.name, version), OTHER_TORCH)


def disk_problems(costs: Sequence[Cost], machine: Machine, download: int, store: Store) -> Iterator[AdpaError]:
    """What of some stages to be built, and of what they download, cannot fit on a machine's disks."""
    most, at = fullest(costs)
    needed = most + (download if machine.cache is None else 0)
    if needed > machine.disk:
        stage = f", most of it for {at.node.role}" if at else ""
        yield AdpaError(
            f"the disk of {store.root} has {size_words(machine.disk)} free; the plan needs {size_words(needed)}{stage}",
            "free some space (adpa gc), or keep the store on another disk: --store DIR",
        )
    if machine.cache is not None and download > machine.cache:
        yield AdpaError(
            f"the disk of the Hugging Face cache has {size_words(machine.cache)} free; "
            f"the plan downloads {size_words(download)}",
            "free some space, or keep the cache on another disk: export HF_HOME=DIR",
        )
