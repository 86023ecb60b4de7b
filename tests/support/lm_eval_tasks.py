"""Small tasks of lm-evaluation-harness under the leaderboard's names, of rows of this machine."""

from __future__ import annotations

import random
from pathlib import Path

from support.cli_samples import write_rows

WORDS = ("red", "blue", "cat", "dog", "seven", "nine", "sun", "moon")
SUBJECTS = ("anatomy", "astronomy")
"""Of the small mmlu, with 8 and 4 rows: so its plain mean is not the weighted one."""
CHOICES = """
output_type: multiple_choice
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{answer}}"
doc_to_choice: "{{choices}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
"""
GENERATED = """
output_type: generate_until
doc_to_text: "Question: {{question}}\\nAnswer:"
doc_to_target: "{{said}}"
generation_kwargs: {until: ["Question:"], do_sample: false, max_gen_toks: 8}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
filter_list:
  - {name: strict-match, filter: [{function: regex, regex_pattern: "([a-z]+)"}, {function: take_first}]}
  - {name: flexible-extract, filter: [{function: take_first}]}
"""

ROLLED = """
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
"""
"""Whose numbers are made of the log-probs of all documents, so that their last digits tell."""


def write_questions(path: Path, count: int, seed: str, choices: int = 3) -> Path:
    """Questions of a few words, with some answers of which one is right."""
    drawn = random.Random(seed)
    rows = []
    for _ in range(count):
        answers = drawn.sample(WORDS, choices)
        right = drawn.randrange(choices)
        question = " ".join(drawn.choices(WORDS, k=drawn.randint(2, 6)))
        rows.append({"question": question, "choices": answers, "answer": right, "said": answers[right]})
    return write_rows(path, rows)


def write_task(folder: Path, name: str, count: int = 6, body: str = CHOICES, more: str = "") -> None:
    """One task: its rows, those of its examples, and its *.yaml file."""
    test = write_questions(folder / f"{name}.jsonl", count, name)
    shots = write_questions(folder / f"{name}-shots.jsonl", 30, f"{name} shots")
    head = f"task: {name}\ndataset_path: json\ntest_split: test\nfewshot_split: train\n"
    data = f"dataset_kwargs:\n  data_files:\n    test: {test}\n    train: {shots}\n"
    text = f"{head}{data}{body.lstrip()}metadata: {{version: 7}}\n{more}"
    (folder / f"{name}.yaml").write_text(text, encoding="utf-8")


def write_leaderboard(folder: Path) -> Path:
    """The six tasks of the Open LLM Leaderboard v1 by name, a few rows each."""
    folder.mkdir(parents=True)
    for name in ("arc_challenge", "hellaswag", "truthfulqa_mc2", "winogrande"):
        write_task(folder, name)
    write_task(folder, "gsm8k", 3, GENERATED)
    for subject, count in zip(SUBJECTS, (8, 4), strict=True):
        write_task(folder, f"mmlu_{subject}", count)
    listed = "".join(f"  - mmlu_{subject}\n" for subject in SUBJECTS)
    group = f"group: mmlu\ntask:\n{listed}aggregate_metric_list:\n  - {{metric: acc, weight_by_size: true}}\n"
    (folder / "mmlu.yaml").write_text(group + "metadata: {version: 2}\n", encoding="utf-8")
    return folder
