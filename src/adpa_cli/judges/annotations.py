"""Judgements in the files of others: AlpacaEval's `annotations.json`, MT-Bench's judgments as FastChat writes them.

AlpacaEval's `preference` goes from 1, where the first output is better, to 2; 1.5 and 0 are ties. Its second output is
the measured model's, and each prompt is judged in one order. FastChat's `score` is a grade from 1 to 10, or -1 where
the judge's reply had none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from adpa_cli.data.examples import Message, make_prompt, prompt_key
from adpa_cli.data.questions import question_id
from adpa_cli.errors import DataError
from adpa_cli.judges.verdicts import HIGHEST, LOWEST
from adpa_cli.judges.win_rates import judged_prompts

Rows = Iterable[tuple[int, Mapping[str, Any]]]
"""(row number, row) of a file."""
MEND = "fix or remove the row"


def alpaca_eval_rows(name: str, rows: Rows) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """(rows of judgements, who judged and whose answers were compared) of the annotations in the file `name`.

    Raises DataError that names a row without `preference`, of another model or judge than the first, or of a prompt
    that was met before.
    """
    found: dict[str, dict[str, Any]] = {}
    about: dict[str, str] = {}
    for number, row in rows:
        where = f"{name} row {number}"
        texts = [row.get(key) for key in ("instruction", "output_1", "output_2")]
        if not all(isinstance(text, str) for text in texts):
            raise DataError(f"{where}: an annotation needs instruction, output_1 and output_2", MEND)
        who = {key: str(row.get(key) or "") for key in ("generator_1", "generator_2", "annotator")}
        about = about or who
        _check_same(where, who, about, "annotations")
        instruction, theirs, ours = (str(text) for text in texts)
        key = prompt_key(make_prompt([Message("user", instruction)]))[:16]
        if key in found:
            raise DataError(f"{where}: the instruction occurs a second time", "keep one annotation per instruction")
        kept = {k: v for k, v in row.items() if k not in ("raw_completion", "preference")}
        found[key] = {
            "id": key, "order": 2, "verdict": 2 - _preference(row.get("preference"), where), "logps": None,
            "reply": str(row.get("raw_completion") or ""), "chars": [len(ours), len(theirs)], "annotation": kept,
        }  # fmt: skip
    return list(found.values()), about


def _check_same(where: str, who: Mapping[str, str], first: Mapping[str, str], what: str) -> None:
    """Raise DataError for a row of another model or judge than the first."""
    for key, name in who.items():
        if name != first[key]:
            raise DataError(
                f"{where}: {key} is {name!r}, and {first[key]!r} in the first row",
                f"import the {what} of one model by one judge at a time",
            )


def _preference(value: Any, where: str) -> float:
    if not isinstance(value, int | float) or not (value == 0 or 1 <= value <= 2):
        raise DataError(f"{where}: preference must be a number from 1 to 2; it is {value!r}", MEND)
    return float(value) or 1.5


def annotations_of(rows: Sequence[Mapping[str, Any]], texts: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Judgements as annotations, one a prompt: 1 plus the mean of P(win) over its orders.

    `texts` are the other columns of each by the id of its prompt.
    """
    return [{**texts[one.id], "preference": 1 + one.win} for one in judged_prompts(rows)]


def mt_bench_rows(name: str, rows: Rows, categories: Mapping[str, str]) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """(rows of judgements, who judged and whose answers) of the single-answer judgments in the file `name`.

    `categories` are those of questions by their id; a question that is not among them has none. Raises DataError that
    names a row which is no such judgment, of another model or judge than the first, or of a turn that was met before.
    """
    found: dict[tuple[str, int], dict[str, Any]] = {}
    about: dict[str, str] = {}
    for number, row in rows:
        where = f"{name} row {number}"
        try:
            key, turn, score = question_id(row["question_id"]), int(row["turn"]), float(row["score"])
            judge = row["judge"]
            who = {"model": str(row["model"]), "judge": str(judge[0] if isinstance(judge, list) else judge)}
        except (KeyError, TypeError, ValueError, IndexError):
            raise DataError(f"{where}: a judgment needs question_id, model, judge, score and turn", MEND) from None
        about = about or who
        _check_same(where, who, about, "judgments")
        if (key, turn) in found:
            raise DataError(f"{where}: turn {turn} of the question {row['question_id']} occurs a second time", MEND)
        is_read = LOWEST <= score <= HIGHEST
        found[key, turn] = {
            "id": key, "turn": turn, "verdict": score if is_read else None, "logps": None,
            "question_id": row["question_id"], "category": categories.get(key, ""),
            "reply": str(row.get("judgment") or ""),
            **({} if is_read else {"why": "the reply holds no verdict"}),
        }  # fmt: skip
    return list(found.values()), about


def judgments(
    rows: Sequence[Mapping[str, Any]], model: str, judge: str, prompt: Callable[[Mapping[str, Any]], str]
) -> list[dict[str, Any]]:
    """Graded turns as FastChat's single-answer judgments; a turn without a grade has -1. `prompt` names the template of
    a row."""
    return [
        {
            "question_id": row["question_id"], "model": model, "judge": [judge, prompt(row)],
            "user_prompt": "", "judgment": row.get("reply", ""),
            "score": -1 if row["verdict"] is None else row["verdict"], "turn": row["turn"], "tstamp": 0,
        }
        for row in rows
    ]  # fmt: skip
