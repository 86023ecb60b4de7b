"""What a judge is asked: our templates, FastChat's `judge_prompts.jsonl`, AlpacaEval's templates, filled in one pass.

Ours lie in the folder `prompts`, one file each, and end with the number of their version: a text that changes gets a
new file. They and AlpacaEval's have a block for each turn, `<|im_start|>ROLE … <|im_end|>`.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from adpa_cli.data.examples import Message
from adpa_cli.errors import DataError, NotFound, UsageError, fault_in

Kind = Literal["pairwise", "single"]
"""Whether a judge names the better of two answers, or grades one."""
SAME = {"question": ("instruction", "question_1"), "answer_a": ("output_1",), "answer_b": ("output_2",)}
"""Names of fields that mean what ours do: AlpacaEval's, and those of FastChat's templates of two turns."""
TURN = re.compile(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", re.DOTALL)
FIELD = re.compile(r"\{(\w+)\}")
HINT = "give a judge_prompts.jsonl of FastChat, or a template of AlpacaEval with <|im_start|>user … <|im_end|>"


@dataclass(frozen=True)
class Template:
    """The turns of one question to a judge, with `{fields}`, and the marks by which it names the first answer, the
    second, and neither; without marks it gives a grade."""

    name: str
    turns: tuple[tuple[str, str], ...]
    marks: tuple[str, ...]

    @property
    def kind(self) -> Kind:
        return "pairwise" if self.marks else "single"

    @property
    def fields(self) -> set[str]:
        """The names of what is filled in."""
        return {name for _, text in self.turns for name in FIELD.findall(text)}

    @property
    def has_two_turns(self) -> bool:
        return "question_2" in self.fields

    @property
    def has_reference(self) -> bool:
        return "ref_answer_1" in self.fields

    def filled(self, values: Mapping[str, str]) -> list[dict[str, str]]:
        """The messages with the values in the place of their fields. A field that has no value, and any brace in a
        value, is text."""
        every = {**values, **{other: values[own] for own, others in SAME.items() if own in values for other in others}}
        return [
            {"role": role, "content": FIELD.sub(lambda field: every.get(field[1], field[0]), text)}
            for role, text in self.turns
        ]


def templates_of(path: Path | None) -> tuple[Template, ...]:
    """The templates of a file; ours without one. NotFound for a file that is not there, DataError for one that holds no
    template."""
    if path is None:
        folder = Path(__file__).with_name("prompts")
        return tuple(_of_blocks(file.read_text(encoding="utf-8"), file.stem) for file in sorted(folder.glob("*.txt")))
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise NotFound(f"--judge-prompts {path}: no such file", HINT) from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--judge-prompts {path}: the file cannot be read ({error})", HINT) from None
    if TURN.search(text):
        return (_of_blocks(text, path.stem),)
    return tuple(_of_fastchat(line, f"{path.name} row {row}") for row, line in _lines(text))


def _lines(text: str) -> list[tuple[int, str]]:
    lines = [(row, line) for row, line in enumerate(text.splitlines(), 1) if line.strip()]
    if not lines:
        raise DataError("--judge-prompts names an empty file", HINT)
    return lines


def _of_blocks(text: str, name: str) -> Template:
    turns = tuple((role, content.strip()) for role, content in TURN.findall(text))
    fields = {field for _, content in turns for field in FIELD.findall(content)}
    is_pair = bool(fields & {"answer_b", "output_2", "answer_b_1"})
    if not is_pair and not fields & {"answer", "answer_1"}:
        raise DataError(f"{name}: the template has no place for an answer", HINT)
    return Template(name, turns, _marks(turns, name) if is_pair else ())


def _of_fastchat(line: str, where: str) -> Template:
    try:
        row: dict[str, Any] = json.loads(line)
        kind, name = row["type"], str(row["name"])
        turns = tuple(turn for turn in (("system", row["system_prompt"]), ("user", row["prompt_template"])) if turn[1])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where} is not a judge prompt: {fault_in(error)}", HINT) from None
    if kind not in ("pairwise", "single"):
        raise DataError(f"{where} has the type {kind!r}, and must be pairwise or single", HINT)
    return Template(name, turns, _marks(turns, name) if kind == "pairwise" else ())


def _marks(turns: Sequence[tuple[str, str]], name: str) -> tuple[str, ...]:
    """The marks that a template of pairs asks for, by what it says of them."""
    text = "\n".join(content for _, content in turns)
    known = (("[[A]]", "[[B]]", "[[C]]"), ("Output (a)", "Output (b)"))
    for marks in known:
        if all(mark in text for mark in marks[:2]):
            return tuple(mark for mark in marks if mark in text)
    words = set(re.findall(r"(?<![\w{])\w(?![\w}])", text))
    for pair in (("m", "M"), ("A", "B")):
        if words.issuperset(pair):
            return pair
    raise DataError(
        f"{name}: the template does not tell the judge how to name the better answer",
        "use [[A]] and [[B]], Output (a) and Output (b), m and M, or A and B",
    )


def chosen(templates: Sequence[Template], kind: Kind, two_turns: bool = False, reference: bool = False) -> Template:
    """The template of a kind, for so many turns, with or without a reference answer. UsageError where none is."""
    fitting = [t for t in templates if (t.kind, t.has_two_turns) == (kind, two_turns)]
    exact = [t for t in fitting if t.has_reference == reference]
    if not exact:
        wanted = f"{kind}{' of two turns' * two_turns}{' with a reference answer' * reference}"
        known = ", ".join(t.name for t in templates)
        raise UsageError(f"--judge-prompts holds no template that is {wanted}, but {known}", HINT)
    return exact[0]


def stored(templates: Sequence[Template]) -> str:
    """Templates as text that `read_templates` reads, the same for equal ones."""
    return json.dumps([asdict(template) for template in templates], ensure_ascii=False, sort_keys=True)


@functools.cache
def read_templates(text: str) -> tuple[Template, ...]:
    """The templates that `stored` wrote."""
    return tuple(
        Template(row["name"], tuple((role, content) for role, content in row["turns"]), tuple(row["marks"]))
        for row in json.loads(text)
    )


def prompt_name(text: str) -> str:
    """The names of stored templates with the beginning of the hash of their text; "" where there are none."""
    names = " + ".join(template.name for template in read_templates(text))
    return f"{names} ({hashlib.sha256(text.encode()).hexdigest()[:8]})" if names else ""


def question_words(prompt: Sequence[Message]) -> str:
    """A prompt as a judge reads it: a single turn of the user as it is, a longer one with its speakers."""
    if len(prompt) == 1:
        return prompt[0].content
    return "\n\n".join(f"[{turn.role}]\n{turn.content}" for turn in prompt)
