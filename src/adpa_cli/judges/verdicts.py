"""What a judge's reply says, by the log-probs of its verdict or by its text: which answer is better, or a grade.

Nothing is guessed: what cannot be read is None.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
BEFORE = r"(?i:\W*(?:(?:the|final|my|better|best|output|response|answer|assistant|verdict|winner|model|is)\W+)*)"
BRACKETED = re.compile(r"\[\[\s*(\w+)\s*\]\]")
GRADE = re.compile(r"\[\[\s*(\d+(?:\.\d+)?)\s*(?:/\s*10\s*)?\]\]")
BARE_GRADE = re.compile(r"(?i:[^\w[]*(?:(?:rating|grade|score)\W+)?)(\d+(?:\.\d+)?)(?:\s*/\s*10)?\W*")
LOWEST, HIGHEST = 1.0, 10.0
TIE = "C"

Tokens = Sequence[Mapping[str, Any]]
"""The tokens of a reply as chat completions list them: `token`, `logprob`, and `top_logprobs` at their place."""


@dataclass(frozen=True)
class Verdict:
    """P(the answer that was shown first is better), or a grade; `logps` are the log-probs of the marks that it was read
    from, None where it was read from the text."""

    value: float
    logps: Mapping[str, float] | None = None


def preference(text: str, tokens: Tokens | None, marks: Sequence[str]) -> Verdict | None:
    """Which answer a reply prefers, where `marks` name the first, the second and, as a third, neither.

    With `tokens` it is P(first) among the marks at the place of the verdict, half of a tie's going to each; a mark that
    is not among the listed tokens counts as 0. Without, or where no mark is listed there, the text says 1, ½ or 0.
    """
    letters = [re.findall(r"\w", mark)[-1] for mark in marks]
    letter, is_last = _letter(text, letters)
    if tokens:
        logps = _logps_at(tokens, letters, letter, is_last, is_short=not marks[0].startswith("[["))
        if logps:
            weights = [math.exp(logps[name]) if name in logps else 0.0 for name in (*letters[:2], TIE)]
            if total := sum(weights):
                return Verdict((weights[0] + weights[2] / 2) / total, logps)
    if letter is None:
        return None
    return Verdict({letters[0]: 1.0, letters[1]: 0.0}.get(letter, 0.5))


def _letter(text: str, letters: Sequence[str]) -> tuple[str | None, bool]:
    """(the letter that a reply names, whether it stands at its end)."""
    said = THOUGHT.sub("", text).strip()
    bracketed = [name for name in BRACKETED.findall(said) if name in (*letters, TIE)]
    if bracketed:
        return bracketed[-1], True
    lines = [line for line in said.splitlines() if line.strip()]
    for place in (-1, 0):
        found = re.fullmatch(rf"{BEFORE}({'|'.join(letters)})\W*", lines[place]) if lines else None
        if found:
            return found[1], place == -1
    return None, False


def _logps_at(
    tokens: Tokens, letters: Sequence[str], letter: str | None, is_last: bool, is_short: bool
) -> dict[str, float]:
    """The log-prob of each letter at the place of the verdict: where the text names one, else at the first token of a
    reply that was to be one mark. Empty where that place cannot be told or lists no letter."""
    names = [_bare(str(token.get("token", ""))) for token in tokens]
    if letter is None:
        place = 0 if is_short else None
    else:
        places = [place for place, name in enumerate(names) if name == letter]
        place = places[-1 if is_last else 0] if places else None
    if place is None:
        return {}
    listed = list(tokens[place].get("top_logprobs") or ())
    if tokens[place].get("token") not in [other.get("token") for other in listed]:
        listed.append(tokens[place])
    masses: dict[str, float] = {}
    for other in listed:
        name = _bare(str(other.get("token", "")))
        if name in letters:
            masses[name] = masses.get(name, 0.0) + math.exp(min(0.0, float(other["logprob"])))
    return {name: math.log(mass) for name, mass in masses.items() if mass}


def _bare(token: str) -> str:
    """A token without what stands around a letter: blanks, brackets, the marks of a tokenizer for a blank."""
    return re.sub(r"[^A-Za-z0-9]+", "", token)


def grade(text: str) -> Verdict | None:
    """The grade, 1 to 10, that a reply ends with: in double brackets, or as the whole of its last line."""
    said = THOUGHT.sub("", text).strip()
    found = GRADE.findall(said)
    if not found and said:
        bare = BARE_GRADE.fullmatch(said.splitlines()[-1])
        found = [bare[1]] if bare else []
    return Verdict(float(found[-1])) if found and LOWEST <= float(found[-1]) <= HIGHEST else None
