"""What a training reads: its examples with every part that the method needs, and the way to their signal."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adpa_cli import methods
from adpa_cli.data.items import Items
from adpa_cli.data.preferences import Pair
from adpa_cli.errors import DataError
from adpa_cli.hub.adapter_folder import AdapterFolder
from adpa_cli.hub.externals import dialogues_of, pairs_of
from adpa_cli.hub.model_folder import ModelFolder
from adpa_cli.methods import Method, Need
from adpa_cli.signal.rows import AnswerKey, SignalRows
from adpa_cli.signal.shard import SignalReader
from adpa_cli.spec import TrainSpec
from adpa_cli.stages import Job, Monitor, every
from adpa_cli.stages._logps_table import StartLogps
from adpa_cli.stages.rewards import Rewards

if TYPE_CHECKING:
    from adpa_cli.engine.layout.examples import Answers, Cut, Examples

SCORERS = {"start": "model", "aligned": "aligned", "reference": "reference"}
"""The input that gives each score of an answer which is drawn online."""


@dataclass(frozen=True)
class Data:
    """`reward_of` is what a reward model gave to (example id, part), `start_of` the log-probs [T] of that answer under
    the start model, if the method asks. `online` says where answers come from that are drawn while the student trains;
    None where none are.
    """

    examples: Examples
    signal_of: Any
    notes: tuple[str, ...]
    online: Any = None
    reward_of: Mapping[tuple[str, str], float] = field(default_factory=dict)
    start_of: Mapping[tuple[str, str], Any] = field(default_factory=dict)
    truncation: Mapping[str, Any] = field(default_factory=dict)
    """What a manifest keeps of what did not fit."""


def gather(job: Job, spec: TrainSpec, method: Method, params: Any, encoder: Any, monitor: Monitor) -> Data:
    """Examples with every part that the method reads, and the way to their signal."""
    from adpa_cli.engine.layout import examples as ex
    from adpa_cli.engine.layout.token_rows import rows_of

    source = job.one("data")
    if every()[job.stage].reads == "dialogues":
        return _dialogues(job, spec, monitor)
    pairs = pairs_of(source.where, "train", spec.limit, spec.skip_bad_rows, spec.template)
    wanted = method.needs_for(params)
    needs = [need for need in wanted if not need.online]
    ids, prompts = (pairs.items.values(name) for name in ("id", "key"))
    answers: dict[str, ex.Answers] = {}
    places: dict[str, Any] = {}
    cut = ex.Cut()
    for need in needs:
        part = spec.source(need.part)
        if part != "rollout":
            both = ex.answers_for(spec, source, "train", job.one("model").path)
            answers[need.part], cut = both.of(part), both.cut
        else:
            answers[need.part] = _rollouts(job, spec, need, encoder)
        places[need.part] = rows_of(prompts if part == "rollout" else ids, answers[need.part].ids)
    kept = np.flatnonzero(np.all([own >= 0 for own in places.values()], axis=0)) if needs else np.arange(len(ids))
    said = cut.words("pairs", spec.max_length)
    lacking = len(pairs.items) - len(kept) - cut.left_out
    if lacking > 0:
        said.append(f"{lacking} of {len(pairs.items)} pairs have no rollout and are left out")
    for text in said:
        monitor.note(text)
    if not len(kept):
        raise _nothing_left(job, spec, cut)
    examples = ex.Examples({part: own.at(places[part][kept]) for part, own in answers.items()}, ids[kept])

    def keys(asks: Callable[[Need], object]) -> dict[str, Iterable[AnswerKey]]:
        return {spec.source(need.part): examples.parts[need.part].answer_keys() for need in needs if asks(need)}

    online = _online(job, spec, params, encoder, pairs.items.at(kept)) if len(needs) < len(wanted) else None
    rewards = Rewards(job.one("rewards").path) if any(need.reward for need in needs) else {}
    signal_of = _signals(job, keys(lambda need: need.signal), method)
    start_of = _start_of(job, keys(lambda need: need.start))
    return Data(examples, signal_of, (*pairs.notes, *said), online, rewards, start_of, cut.numbers())


def _dialogues(job: Job, spec: TrainSpec, monitor: Monitor) -> Data:
    """Dialogues, for a stage that reads these."""
    from adpa_cli.engine.layout.examples import Cut, dialogues_for
    from adpa_cli.engine.layout.packed_dialogues import packed_examples

    source, folder, every_token = job.one("data"), job.one("model").path, spec.train_on == "all"
    loaded = dialogues_of(source.where, "train", spec.limit, spec.skip_bad_rows, spec.template)
    if spec.packed:
        rows = packed_examples(spec, source, folder, every_token)
        if not len(rows):
            raise _nothing_left(job, spec, Cut(rows=len(loaded.items), left_out=len(loaded.items)))
        return Data(rows, _no_signal, loaded.notes)
    examples, cut = dialogues_for(spec, source, "train", folder, every_token=every_token)
    said = cut.words("dialogues", spec.max_length)
    for text in said:
        monitor.note(text)
    if not len(examples):
        raise _nothing_left(job, spec, cut)
    return Data(examples, _no_signal, (*loaded.notes, *said), truncation=cut.numbers())


def _nothing_left(job: Job, spec: TrainSpec, cut: Cut) -> DataError:
    """The error for data of which no row can be trained on."""
    data = job.one("data").label
    if cut.left_out < cut.rows or not cut.rows:
        return DataError(
            f"none of the pairs of {data} has an answer in {job.one('rollouts').label}",
            "generate answers to these prompts: adpa rollout --data SRC",
        )
    return cut.nothing_left(data, every()[job.stage].reads, spec.max_length, job.stage)


def _online(job: Job, spec: TrainSpec, params: Any, encoder: Any, pairs: Items[Pair]) -> Any:
    """The prompts of `pairs`, and the models that judge the answers which the student draws for them."""
    from adpa_cli.engine.generation.sampling import Decoding, Sampling
    from adpa_cli.engine.layout.examples import end_ids, prompts_for
    from adpa_cli.engine.training.online import Scorer, Sources

    label = job.one("data").label
    prompts = prompts_for(pairs, pairs.values("id"), encoder, spec, params.max_new_tokens, label, job.stage)
    taught = spec.teachers_dtype or spec.dtype
    start = job.one("model").path
    is_merged = AdapterFolder.of(start) is not None and not spec.lora
    scorers = {name: Scorer(job.one(role).path, taught) for name, role in SCORERS.items()}
    scorers["start"] = Scorer(start, spec.dtype, spec.quantise, is_merged)  # as the student that is compared with it
    sampling = Sampling(params.temperature, 1.0, params.max_new_tokens, spec.seed)
    ends = end_ids(encoder, start)
    return Sources(prompts, scorers, Decoding(sampling, ends, encoder.pad_id, spec.max_length, spec.dtype))


def _rollouts(job: Job, spec: TrainSpec, need: Need, encoder: Any) -> Answers:
    """The generated answers that a method reads. Where it learns to write them, one of an end token only is none."""
    from adpa_cli.engine.layout import examples as ex

    source = job.one("rollouts")
    rollouts = ex.read_rollouts(source.path)
    if not need.signal and ex.are_foreign(rollouts, encoder):
        return ex.answers_as_text(rollouts, encoder, spec.max_length, source.label)
    answers = ex.rollout_answers(rollouts)
    ids = ModelFolder.of(job.one("model").path).vocabulary
    most = max((int(batch.items("rollout").max(initial=0)) for batch in answers.table.batches()), default=0)
    if most >= ids:
        raise DataError(
            f"the rollouts {source.label} use the token id {most}, and the student's vocabulary has {ids} ids",
            "use a teacher with the student's vocabulary, or train on the student's own answers: --states student",
        )
    if need.signal:
        return answers
    ends = set(ex.end_ids(encoder, job.one("model").path))
    short = np.flatnonzero(answers.tokens == 1).tolist()
    return answers.at(np.delete(np.arange(len(answers)), [n for n in short if answers[n].answer[0] in ends]))


def scaled_params(job: Job, spec: TrainSpec, method: Method) -> Any:
    """The parameters of a training; where they count the advantage in its RMS, those that mean the same in nats.

    Raises DataError where the signal does not say how large the advantage is.
    """
    params = method.params(**spec.params)
    if spec.params.get("unit") != "rms" or method.in_nats is None:
        return params
    rms = next((rms for cache in job.inputs["cache"] if (rms := rms_advantage(cache.path))), None)
    if not rms:
        raise DataError(
            f"{job.ref}: the signal does not record the RMS of the advantage, which unit=rms needs",
            "use nats instead: --set unit=nat",
        )
    return method.in_nats(params, rms)


def rms_advantage(folder: Path) -> float | None:
    """The size of the advantage that a signal artifact recorded; None for the signal of one teacher."""
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    rms: float | None = manifest["metrics"].get("rms_advantage")
    return rms


def _no_signal(example_id: str, part: str) -> SignalRows:
    raise DataError(f"example {example_id} ({part}) was asked for signal that its method does not need")


def _start_of(job: Job, keys: Mapping[str, Iterable[AnswerKey]]) -> Mapping[tuple[str, str], Any]:
    """Log-probs [T] under the start model of some answers, given by part; all are checked at once."""
    if not keys:
        return {}
    table = StartLogps(job.one("start-logps"))
    for own in keys.values():
        table.check(own)
    return table


def _signals(job: Job, keys: Mapping[str, Iterable[AnswerKey]], method: Method) -> Any:
    """Reads the signal of an answer from whichever of the given caches covers its part; all, given by part, are checked
    at once."""
    if not keys:
        return _no_signal
    readers: dict[str, SignalReader] = {}
    for cache in job.inputs.get("cache", ()):
        reader = SignalReader(Path(cache.path))
        readers.update(dict.fromkeys(reader.parts, reader))
    for part in keys.keys() - readers.keys():
        raise DataError(
            f"{job.ref}: none of the given teacher signals covers the {part} answers",
            f"make it: adpa cache-teacher --teacher T {'--rollouts R' if part == 'rollout' else '--data SRC'}",
        )
    for part, own in keys.items():
        readers[part].check(own)

    ids = ModelFolder.of(job.one("model").path).vocabulary
    needs_labels = any(need.labels for need in method.needs if need.signal)

    def signal_of(example_id: str, part: str) -> SignalRows:
        reader = readers[part]
        rows = reader.named(example_id, part)
        if rows.ids.size and int(rows.ids.max()) >= ids:
            raise DataError(
                f"the signal in {reader.folder.name} has the id {int(rows.ids.max())}, and the student has {ids} ids",
                f"make it for this student: adpa cache-teacher … --set student_vocab={ids}",
            )
        if needs_labels and np.isneginf(rows.label_logps).any():
            raise DataError(
                f"{method.name} needs the teacher's log-prob of every token; the signal in {reader.folder.name} lacks "
                f"some of example {example_id} ({part})",
                f"make it with adpa cache-teacher, or train with {' or '.join(_without_labels())}",
            )
        return rows

    return signal_of


def _without_labels() -> list[str]:
    """The methods that read the taken token and the rest as one class: imported signal may not tell them apart."""
    every_method = (methods.load(name) for name in methods.names())
    return [m.name for m in every_method if any(n.signal for n in m.needs) and not any(n.labels for n in m.needs)]
