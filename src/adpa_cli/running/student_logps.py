"""The log-probs of one answer of a signal under a model that has learned from it, or is to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from adpa_cli.errors import NotFound, UsageError
from adpa_cli.planning.lineage import locate
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.running.recorded_inputs import one_model
from adpa_cli.spec import make
from adpa_cli.stages import Monitor
from adpa_cli.stages.cache_teacher import CaptureSpec
from adpa_cli.store.manifest import Manifest

if TYPE_CHECKING:
    from adpa_cli.engine.layout.examples import Answer
    from adpa_cli.signal.rows import AnswerKey


def student_logps(names: Names, manifest: Manifest, key: AnswerKey, student: str, monitor: Monitor) -> list[float]:
    """[T] float32 log-probs in nats of the tokens of an answer of a signal under the model that `student` names.

    The token ids are those of the signal, so that the vocabularies must be one. Raises UsageError for an alias, and
    NotFound where the answers that the signal was made of are gone.
    """
    from adpa_cli.engine.device import device
    from adpa_cli.engine.layout.examples import Example
    from adpa_cli.engine.models import load_checked
    from adpa_cli.engine.scoring import halving_logps
    from adpa_cli.engine.training.student import Student

    model = one_model(names, student, "--student")
    folder = locate(model, names.store).path
    answer = _answer(names, manifest, key, folder)
    loaded: Any = load_checked(folder, device=device())
    if len(loaded.get_input_embeddings().weight) <= max((*answer.prompt, *answer.answer)):
        raise UsageError(
            f"--student {student} has a smaller vocabulary than {manifest.ref}", "name a model of the same family"
        )
    monitor.note(f"scoring {len(answer.answer):,} tokens under {model.label}")
    part: Any = key.part
    example = Example(key.example_id, {part: answer.sequence()})
    scored = halving_logps(Student(loaded, "float32"), [example], [part], example.size, device())
    return [float(value) for value in scored[key.example_id, part]]


def _answer(names: Names, manifest: Manifest, key: AnswerKey, folder: Path) -> Answer:
    """The answer with its prompt, as token ids; of pairs it is made again with the tokenizer in `folder`."""
    from adpa_cli.engine.layout.examples import answers_for, read_rollouts, rollout_answers

    if "imported" in manifest.spec:
        raise UsageError(f"{manifest.ref} was imported without its prompts", "leave out --student")
    spec = make(CaptureSpec, manifest.spec)
    found: Any
    if "rollouts" in manifest.inputs:
        made = names.store.folder(str(manifest.inputs["rollouts"]))
        found = rollout_answers(read_rollouts(made)[: spec.limit])
    else:
        content = str(manifest.inputs["data"])
        data = locate(names.data_of(manifest.sources[content], content), names.store)
        found = answers_for(spec, data, "train", folder).of(key.part)
    alike = (n for n in range(len(found)) if found.name(n) == (key.example_id, key.part))
    answer: Answer | None = next((found[n] for n in alike if found[n].key == key), None)
    if answer is None:
        raise NotFound(
            f"{key.label} of {manifest.ref} cannot be rebuilt: the tokens differ from those that were stored",
            "name a student that has the teachers' tokenizer",
        )
    return answer
