"""What a judge is asked: both orders of two answers to a prompt, or each turn of a dialogue."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from adpa_cli.data.answers import Answered, answers_of
from adpa_cli.data.questions import NEED_REFERENCE, Reference, references_of
from adpa_cli.judges.calls import Call
from adpa_cli.judges.prompts import Template, chosen, question_words, read_templates
from adpa_cli.stages import Job
from adpa_cli.stages.two_turns import TURNS, read_dialogues
from adpa_cli.suites import AGAINST, ROLLOUTS, common_prompts

PAIRS, REFERENCES = "pairs", "references"
"""The roles of pairs whose chosen answers are compared with the rejected ones, and of reference answers."""
ORDERS = (1, 2)

Planned = Call | dict[str, Any]
"""A call, or the row of two answers that are one text, of which nobody is asked."""


def planned(job: Job, spec: Any, note: Callable[[str], None] = lambda text: None) -> Iterator[Planned]:
    """All calls of a job in the order of its prompts; `note` hears what is worth knowing of its inputs."""
    templates = read_templates(spec.prompts)
    if spec.judged == "turns":
        yield from _turns(read_dialogues(job.one(ROLLOUTS).path), _references(job, note), templates)
    elif spec.judged == "pairs":
        from adpa_cli.hub.externals import pairs_of

        for pair in pairs_of(job.one(PAIRS).where, spec.split, spec.limit, spec.skip_bad_rows).items:
            yield from _orders(pair.id, pair.prompt, pair.chosen, pair.rejected, templates[0])
    else:
        ours, theirs = (_by_prompt(job, role) for role in (ROLLOUTS, AGAINST))
        shared, words = common_prompts(ours, theirs, job.one(ROLLOUTS), job.one(AGAINST))
        for text in words:
            note(text)
        kept = set(shared)
        for name, one in ours.items():
            if name in kept:
                yield from _orders(name, one.prompt, one.text, theirs[name].text, templates[0])


def _by_prompt(job: Job, role: str) -> Mapping[str, Answered]:
    return {answer.id: answer for answer in answers_of(job.one(role).path)}


def _orders(name: str, prompt: Sequence[Any], ours: str, theirs: str, template: Template) -> Iterator[Planned]:
    """Both orders of two answers, the measured model's, or the chosen one, first in the first."""
    chars = [len(ours), len(theirs)]
    if ours == theirs:
        yield {"id": name, "order": 0, "identical": True, "chars": chars}
        return
    question = question_words(prompt)
    for order, (first, second) in zip(ORDERS, ((ours, theirs), (theirs, ours)), strict=True):
        messages = template.filled({"question": question, "answer_a": first, "answer_b": second})
        yield Call(name, "order", order, messages, {"chars": chars})


def _turns(
    dialogues: Sequence[Mapping[str, Any]], references: Mapping[str, Reference], templates: Sequence[Template]
) -> Iterator[Planned]:
    """The first answer to each question, and the second with what was said before; both beside the reference answer
    where the category needs one and there is one."""
    for row in dialogues:
        reference = references.get(row["id"]) if row["category"] in NEED_REFERENCE else None
        values = {f"{kind}_{n}": text for kind, texts in (("question", row["questions"]), ("answer", row["text"]))
                  for n, text in enumerate(texts, 1)}  # fmt: skip
        if reference is not None:
            values |= {f"ref_answer_{n}": text for n, text in enumerate(reference.turns, 1)}
        about = {"question_id": row["question_id"], "category": row["category"]}
        for turn in TURNS:
            template = chosen(templates, "single", turn == 2, reference is not None)
            own = {"question": values["question_1"], "answer": values["answer_1"]} if turn == 1 else {}
            yield Call(row["id"], "turn", turn, template.filled({**values, **own}), about)


def _references(job: Job, note: Callable[[str], None]) -> dict[str, Reference]:
    """The reference answers of a job; none without a file."""
    if not job.inputs.get(REFERENCES):
        note(
            "Math, reasoning and coding questions are graded without reference answers; to add some: --references FILE"
        )
        return {}
    from adpa_cli.hub.externals import open_sources

    found = references_of(open_sources(job.one(REFERENCES).where))
    authors = sorted({reference.author for reference in found.values()})
    if "gpt-4" in authors:
        note(
            "The reference answers are by gpt-4; 13 of FastChat's 30 are wrong (its pull request 3158): "
            "correct them, or use others"
        )
    return found
