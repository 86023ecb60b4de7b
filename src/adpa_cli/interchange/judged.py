"""Answers and judgements as the files of AlpacaEval and of FastChat's MT-Bench, and judgements from such files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from adpa_cli.data.answers import Answered, answers_of
from adpa_cli.data.files import whole_rows
from adpa_cli.data.questions import NEED_REFERENCE, questions_of
from adpa_cli.disk import explained
from adpa_cli.errors import UsageError
from adpa_cli.hub.externals import open_sources
from adpa_cli.interchange.export import CARD, fresh_folder
from adpa_cli.interchange.import_signal import content_of
from adpa_cli.judges.annotations import alpaca_eval_rows, annotations_of, judgments, mt_bench_rows
from adpa_cli.judges.calls import call_facts, read_rows, write_rows
from adpa_cli.judges.prompts import chosen, question_words, read_templates
from adpa_cli.machine import expanded
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.stages import Monitor, product_of
from adpa_cli.stages._judge_calls import REFERENCES
from adpa_cli.stages.judge import JUDGEMENTS
from adpa_cli.stages.two_turns import read_dialogues
from adpa_cli.store.identity import Recipe
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store
from adpa_cli.suites import AGAINST, ROLLOUTS

Format = Literal["alpaca-eval", "mt-bench"]
FORMATS: tuple[Format, ...] = ("alpaca-eval", "mt-bench")
NO_PROMPTS = "[]"
"""The templates of judgements that were made elsewhere: nobody tells them."""
HOW = {
    "alpaca-eval": "In an environment of its own, `pip install alpaca-eval`, then\n"
    "`alpaca_eval --model_outputs model_outputs.json` judges these answers with the official tool; "
    "`--reference_outputs reference_outputs.json` compares them with the same opponent.\n",
    "mt-bench": "Copy the folders into FastChat's `fastchat/llm_judge/data/mt_bench`; "
    "`python show_result.py --judge-model NAME` reads the judgments.\n",
}


def import_judgements(
    names: Names, store: Store, words: Sequence[str], form: Format, data: Sequence[str], command: str, monitor: Monitor
) -> Manifest:
    """Keep the annotations, or the judgments, of a file as judgements; an import of the same is a hit.

    `data` are the questions whose categories judgments do not tell. Raises NotFound and DataError as their readers do.
    """
    if len(words) != 1:
        raise UsageError(
            f"{len(words)} files are named, but one is imported at a time", f"adpa import FILE --format {form}"
        )
    path = expanded(words[0])
    inputs, sources = {}, {}
    if form == "mt-bench":
        asked = names.data(data) if data else None
        questions = questions_of(open_sources(asked.where)) if asked else []
        if asked is not None:
            inputs["questions"], sources[asked.content] = asked.content, dict(asked.facts)
        rows, about = mt_bench_rows(path.name, whole_rows(path), {each.id: each.category for each in questions})
        judge, model, more = about["judge"], about["model"], {"judged": "turns"}
    else:
        rows, about = alpaca_eval_rows(path.name, whole_rows(path))
        judge, model = about["annotator"] or "unknown", about["generator_2"]
        more = {"judged": "answers", "opponent": about["generator_1"]}
    content, facts = content_of([path], store.hash_cache)
    spec = {"imported": form, "judge": judge, "prompts": NO_PROMPTS, **more}
    recipe = Recipe(JUDGEMENTS.name, JUDGEMENTS.version, spec, {"annotations": content, **inputs})
    with store.build(recipe, command=command, environment={}, announce=monitor.note) as work:
        if work.hit is not None:
            return work.hit
        write_rows(work.dir, rows)
        what = f"{form} of {model or path.name}, by {judge}"
        metrics = {"judge": judge, "model": model, **call_facts(rows), "what": what}
        return work.commit(metrics, {content: facts, **sources}, {"role": JUDGEMENTS.name})


def export_judged(names: Names, manifest: Manifest, target: Path, form: Format, force: bool) -> None:
    """Write answers, or judgements with the answers that they are of, into the folder `target`, as `form` has them.

    Raises UsageError for an artifact that has no such form, and for a folder that holds other things.
    """
    kind = product_of(manifest.stage)
    folder = names.store.folder(manifest.ref)
    files: dict[str, Any] = {}
    if form == "alpaca-eval" and kind == "answers":
        files["model_outputs.json"] = _outputs(answers_of(folder), _author(names, manifest))
    elif form == "alpaca-eval" and kind == "judgements" and manifest.spec.get("judged", "answers") == "answers":
        files |= _of_comparisons(names, manifest, read_rows(folder))
    elif form == "mt-bench" and kind == "dialogues":
        files |= _model_answers(folder, _author(names, manifest))
    elif form == "mt-bench" and kind == "judgements" and manifest.spec.get("judged") == "turns":
        files |= _of_grades(names, manifest, read_rows(folder))
    else:
        answers, verdicts = ("answers", "comparisons") if form == "alpaca-eval" else ("answers of two turns", "grades")
        raise UsageError(
            f"--to {form} needs {answers}, or a judge's {verdicts} of them; {manifest.ref} holds neither",
            "see which artifacts there are: adpa show --all",
        )
    with explained(target.absolute().parent, f"{target} is not written"), fresh_folder(target, force) as private:
        for name, value in files.items():
            path = private / name
            path.parent.mkdir(exist_ok=True)
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=1)
            path.write_text(text, encoding="utf-8")
        (private / CARD).write_text(f"# {manifest.ref}\n\n{HOW[form]}", encoding="utf-8")


def _outputs(answers: Iterable[Answered], author: str) -> list[dict[str, str]]:
    return [
        {"instruction": question_words(answer.prompt), "output": answer.text, "generator": author} for answer in answers
    ]


def _of_comparisons(names: Names, manifest: Manifest, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The annotations of comparisons, with the outputs of both."""
    if manifest.spec.get("imported"):
        texts = {row["id"]: row["annotation"] for row in rows}
        return {"annotations.json": annotations_of(rows, texts)}
    (ours, author), (theirs, other) = (_answers(names, manifest, role) for role in (ROLLOUTS, AGAINST))
    texts = {
        name: {
            "instruction": question_words(answer.prompt), "output_1": theirs[name].text, "generator_1": other,
            "output_2": answer.text, "generator_2": author, "annotator": manifest.spec["judge"],
        }
        for name, answer in ours.items() if name in theirs
    }  # fmt: skip
    return {
        "annotations.json": annotations_of(rows, texts),
        "model_outputs.json": _outputs((ours[name] for name in texts), author),
        "reference_outputs.json": _outputs((theirs[name] for name in texts), other),
    }


def _answers(names: Names, manifest: Manifest, role: str) -> tuple[dict[str, Answered], str]:
    """(answers that were judged by the ids of their prompts, whose they are)."""
    content, made = _input(names, manifest, role)
    if made is not None:
        path, author = names.store.folder(made.ref), _author(names, made)
    else:
        facts = manifest.sources.get(content, {})
        path, author = Path(names.data_of(facts, content).where[0]), str(facts.get("name", role))
    return {answer.id: answer for answer in answers_of(path)}, author


def _input(names: Names, manifest: Manifest, role: str) -> tuple[str, Manifest | None]:
    """(what an artifact was made from in a role, its manifest where that is an artifact of the store)."""
    content = str(manifest.inputs.get(role, ""))
    return content, names.store.get(content) if content.startswith("artifact:") else None


def _author(names: Names, manifest: Manifest) -> str:
    """The model that wrote the answers of an artifact."""
    content, made = _input(names, manifest, "model")
    return made.ref if made else str(manifest.sources.get(content, {}).get("name", manifest.ref))


def _model_answers(folder: Path, author: str) -> dict[str, str]:
    rows = [
        {
            "question_id": row["question_id"], "answer_id": row["id"], "model_id": author,
            "choices": [{"index": 0, "turns": row["text"]}], "tstamp": 0,
        }
        for row in read_dialogues(folder)
    ]  # fmt: skip
    return {f"model_answer/{_file_name(author)}.jsonl": _lines(rows)}


def _of_grades(names: Names, manifest: Manifest, rows: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Judgments of single answers, with the answers where they are in the store."""
    judge, author = str(manifest.spec["judge"]), str(manifest.metrics.get("model", ""))
    files: dict[str, str] = {}
    _, made = _input(names, manifest, ROLLOUTS)
    if made is not None:
        author = _author(names, made)
        files |= _model_answers(names.store.folder(made.ref), author)
    templates = read_templates(str(manifest.spec["prompts"]))

    def prompt(row: Mapping[str, Any]) -> str:
        is_beside = REFERENCES in manifest.inputs and row["category"] in NEED_REFERENCE
        return chosen(templates, "single", row["turn"] == 2, is_beside).name if templates else ""

    return {**files, f"model_judgment/{_file_name(judge)}_single.jsonl": _lines(judgments(rows, author, judge, prompt))}


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.@-]+", "-", text)
