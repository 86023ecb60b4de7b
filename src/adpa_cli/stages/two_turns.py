"""The `two-turns` stage: a model's answers to questions of two turns, the second asked after the first answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adpa_cli.data.examples import Message
from adpa_cli.data.questions import TEMPERATURES, Question, questions_of
from adpa_cli.disk import write_atomic, write_json
from adpa_cli.sizes import Row, Rows
from adpa_cli.spec import Dtype, Quantise, make, quantise
from adpa_cli.stages import Job, Lengths, Monitor, Node, Stage, stop_if_asked, stored_words
from adpa_cli.stages.rollout import disk, drawing_memory

TURNS = (1, 2)
FILE = "dialogues.jsonl"
"""In the artifact: a row a question, with both answers."""
QUESTIONS = "questions"
"""The role of what is asked."""
TYPICAL = 60
"""Tokens of a question, for estimates."""


@dataclass(frozen=True)
class TwoTurnsSpec:
    """One `two-turns` stage: how both answers to each question are drawn."""

    template: str
    end: str
    temperature: float | None = None
    """None for that of each question's category."""
    top_p: float = 1.0
    max_new_tokens: int = 1024
    """Of each answer."""
    max_length: int = 4096
    seed: int = 0
    dtype: Dtype = "bfloat16"
    block_tokens: int = 65536
    limit: int | None = None
    skip_bad_rows: bool = field(default=False, metadata={"neutral": False})
    smoke: bool = field(default=False, metadata={"neutral": False})
    quantise: Quantise | None = quantise()

    def without_effect(self) -> set[str]:
        """Greedy answers are drawn without a seed, and a question that cannot be used is never skipped."""
        return {"skip_bad_rows", *({"seed", "top_p"} if self.temperature == 0 else ())}


def compute(job: Job, monitor: Monitor, rank: int = 0, processes: int = 1) -> None:
    """Leave a file with the answers to each turn in the work folder; what is there is kept. Run by one process only."""
    from adpa_cli.engine.device import device
    from adpa_cli.engine.layout.examples import encoder_of, end_ids
    from adpa_cli.engine.models import load_to_generate
    from adpa_cli.hub.model_folder import ModelFolder

    spec, folder = make(TwoTurnsSpec, job.spec), job.one("model").path
    if all(_path(job, turn).exists() for turn in TURNS):
        return
    encoder = encoder_of(ModelFolder.of(folder).tokenizer, spec)
    model = load_to_generate(folder, spec.dtype, device(), spec.quantise)
    asked = _questions(job, spec)
    before: dict[str, list[dict[str, Any]]] = {question.id: [] for question in asked}
    for turn in TURNS:
        if not _path(job, turn).exists():
            dialogues = {q.id: _turns(q, before[q.id]) for q in asked}
            write_json(_path(job, turn), _answers(model, encoder, end_ids(encoder, folder), asked, dialogues, spec))
        for name, answer in json.loads(_path(job, turn).read_text(encoding="utf-8")).items():
            before[name].append(answer)
        monitor.progress(turn, len(TURNS), {})
        if turn < len(TURNS):
            stop_if_asked(monitor, turn, len(TURNS))


def _questions(job: Job, spec: TwoTurnsSpec) -> list[Question]:
    from adpa_cli.hub.externals import open_sources

    return questions_of(open_sources(job.one(QUESTIONS).where), spec.limit)


def _turns(question: Question, before: Sequence[Mapping[str, Any]]) -> list[Message]:
    """What was said before the answer to the next turn."""
    turns = [Message("user", question.turns[0])]
    for text, answer in zip(question.turns[1:], before, strict=False):
        turns += [Message("assistant", answer["text"]), Message("user", text)]
    return turns


def _answers(
    model: Any, encoder: Any, ends: tuple[int, ...], asked: Sequence[Question],
    dialogues: Mapping[str, Sequence[Message]], spec: TwoTurnsSpec,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """The answer to each dialogue by the id of its question; what one temperature is drawn at goes together.

    A dialogue that leaves too little room is cut from the left, to half of the context at least.
    """
    from adpa_cli.engine.generation.generate import generate_block
    from adpa_cli.engine.generation.sampling import Decoding, Sampling
    from adpa_cli.engine.overflow import overflow_named

    most = max(spec.max_length - spec.max_new_tokens, spec.max_length // 2)
    answers = {}
    for temperature, questions in _by_temperature(asked, spec).items():
        sampling = Sampling(temperature, spec.top_p, spec.max_new_tokens, spec.seed)
        decoding = Decoding(sampling, ends, encoder.pad_id, spec.max_length, spec.dtype)
        prompts = [encoder.prompt(dialogues[question.id])[-most:] for question in questions]
        names = [f"{question.id} {len(dialogues[question.id])}" for question in questions]
        with overflow_named(model, spec.dtype, "STAGE"):
            made = generate_block(model, prompts, names, decoding, spec.block_tokens)
        for question, answer in zip(questions, made, strict=True):
            text = encoder.decode(answer.ids)
            answers[question.id] = {"text": text, "tokens": len(answer.ids), "cut": answer.cut}
    return answers


def _by_temperature(asked: Sequence[Question], spec: TwoTurnsSpec) -> dict[float, list[Question]]:
    """The questions by the temperature that their answers are drawn at."""
    groups: dict[float, list[Question]] = {}
    for question in asked:
        own = TEMPERATURES.get(question.category, 0.0) if spec.temperature is None else spec.temperature
        groups.setdefault(own, []).append(question)
    return groups


def _path(job: Job, turn: int) -> Path:
    return job.folder / f"_turn-{turn}.json"


def finish(job: Job) -> dict[str, Any]:
    """Put both turns together, in the order of the questions."""
    spec = make(TwoTurnsSpec, job.spec)
    by_turn = [json.loads(_path(job, turn).read_text(encoding="utf-8")) for turn in TURNS]
    rows: list[dict[str, Any]] = [
        {
            "id": q.id, "question_id": q.number, "category": q.category, "questions": q.turns,
            **{key: [answers[q.id][key] for answers in by_turn] for key in ("text", "tokens", "cut")},
        }
        for q in _questions(job, spec)
    ]  # fmt: skip
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_atomic(job.folder / FILE, "".join(lines).encode())
    tokens = [count for row in rows for count in row["tokens"]]
    cut = [is_cut for row in rows for is_cut in row["cut"]]
    return {"answers": len(tokens), "tokens": sum(tokens), "mean_tokens": sum(tokens) / len(tokens),
            "cut": sum(cut) / len(cut)}  # fmt: skip


def read_dialogues(folder: Path) -> list[dict[str, Any]]:
    """The rows of an artifact."""
    with (folder / FILE).open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def rows(node: Node, lengths: Lengths) -> Rows:
    """Two answers to each of eighty questions, as most such data have them, within the model's context."""
    most = float(min(node.spec.max_new_tokens, node.spec.max_length - TYPICAL))
    count = 80 if node.spec.limit is None else min(80, node.spec.limit)
    return {
        "rollout": [Row(TYPICAL, most)] * count + [Row(2 * TYPICAL + most, most).fitted(node.spec.max_length)] * count
    }


def what(node: Node) -> str:
    """Whose answers they are, and to which questions."""
    how = "by category" if node.spec.temperature is None else f"{node.spec.temperature:g}"
    return f"by {node.label_of('model')}{stored_words(node.spec)}, temperature {how}, of {node.label_of(QUESTIONS)}"


TWO_TURNS = Stage(
    "two-turns", 10, 1, TwoTurnsSpec, "generating", "dialogues", compute, finish, rows, disk, drawing_memory, what=what,
    parts=lambda spec: ("rollout",), one_process=True, vocabulary_of="model", set_by="rollout",
)  # fmt: skip
STAGES = (TWO_TURNS,)
