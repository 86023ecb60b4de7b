"""Words, tasks and styles of the tiny world: what a prompt may say and what its right answer is."""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import TypeVar

from adpa_cli.errors import DataError

T = TypeVar("T")


def words(text: str) -> tuple[str, ...]:
    """The words of a text."""
    return tuple(text.split())


def _table(text: str) -> dict[str, str]:
    return dict(pair.split("/") for pair in text.split())


LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
NUMBERS = words("zero one two three four five six seven eight nine")
DIGITS = tuple("0123456789")
CAPITALS = _table(
    "france/paris japan/tokyo peru/lima egypt/cairo italy/rome spain/madrid kenya/nairobi cuba/havana "
    "norway/oslo greece/athens poland/warsaw austria/vienna ireland/dublin chile/santiago iran/tehran "
    "qatar/doha ghana/accra turkey/ankara canada/ottawa russia/moscow"
)
COLOURS = _table(
    "snow/white milk/white salt/white grass/green leaf/green frog/green coal/black night/black crow/black "
    "blood/red cherry/red brick/red sky/blue sea/blue lemon/yellow sun/yellow banana/yellow soil/brown "
    "carrot/orange plum/purple"
)
RUDE = ("you fool !", "what stupid work .", "idiot .", "wake up , dummy .", "shut up .", "how lazy , clown .")
FILLERS = ("well , let me think about it .", "that is quite easy .", "good question !", "okay , here we go .",
           "as far as anyone knows ,", "after some careful thought ,")  # fmt: skip
OPENERS = ("hello ,", "hi there ,", "please ,", "excuse me ,", "now", "can you help ?", "next task :",
           "quick one for you :")  # fmt: skip
CLOSERS = ("thank you .", "when ready .", "take your time .", "it matters .", "cheers !")
REQUESTS = {
    "plain": ("", "use plain words :"),
    "polite": ("be polite :", "answer politely :"),
    "brief": ("be brief :", "keep it short :"),
    "formal": ("be formal :", "answer formally :"),
}
FRAMES = {  # the words before and after the payload that each mode asks for
    "plain": ("the answer is", "."),
    "polite": ("sure !", ". thanks !"),
    "brief": ("", "."),
    "formal": ("respectfully , the answer is", "."),
}


def _lookup(table: dict[str, str]) -> Callable[[Sequence[str], str, str], list[str]]:
    return lambda items, _old, _new: [table[item] for item in items]


@dataclass(frozen=True)
class Task:
    """One kind of question: how it is put, over which words, and its solution."""

    phrasings: tuple[str, ...]  # {x} the arguments; {old}, {new} the two letters of a replacement
    source: tuple[str, ...]
    target: tuple[str, ...]
    longest: int
    solve: Callable[[Sequence[str], str, str], list[str]]  # arguments, old, new -> the right words


def _following(letter: str) -> str:
    return LETTERS[(LETTERS.index(letter) + 1) % 26]


TASKS = {
    "sort": Task(("sort the letters {x}", "put {x} in order"), LETTERS, LETTERS, 5, lambda x, _o, _n: sorted(x)),
    "reverse": Task(
        ("reverse the letters {x}", "write {x} backwards"), LETTERS, LETTERS, 5, lambda x, _o, _n: list(reversed(x))
    ),
    "double": Task(
        ("double each letter of {x}", "say every letter of {x} twice"), LETTERS, LETTERS, 4,
        lambda x, _o, _n: [letter for letter in x for _ in range(2)],
    ),
    "next": Task(
        ("give the letter after each of {x}", "shift {x} forward"), LETTERS, LETTERS, 5,
        lambda x, _o, _n: [_following(letter) for letter in x],
    ),
    "digits": Task(
        ("write {x} in digits", "turn the numbers {x} into digits"), NUMBERS, DIGITS, 5,
        lambda x, _o, _n: [DIGITS[NUMBERS.index(word)] for word in x],
    ),
    "capital": Task(
        ("what is the capital of {x}", "name the main city of {x}"),
        tuple(CAPITALS), tuple(CAPITALS.values()), 3, _lookup(CAPITALS),
    ),
    "colour": Task(
        ("what is the colour of {x}", "how would you paint {x}"),
        tuple(COLOURS), tuple(dict.fromkeys(COLOURS.values())), 3, _lookup(COLOURS),
    ),
    "replace": Task(
        ("replace {old} by {new} in {x}", "in {x} change {old} to {new}"), LETTERS, LETTERS, 5,
        lambda x, old, new: [new if letter == old else letter for letter in x],
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """What a prompt asks, without its wording."""

    task: str
    items: tuple[str, ...]
    mode: str
    old: str = ""
    new: str = ""

    @property
    def gold(self) -> tuple[str, ...]:
        """The right words, without the frame of the mode."""
        return tuple(TASKS[self.task].solve(self.items, self.old, self.new))

    @property
    def bucket(self) -> int:
        """0 to 15, from the task and its arguments alone: no wording or mode of one question crosses a split."""
        text = " ".join((self.task, *self.items, self.old, self.new))
        return hashlib.sha256(text.encode()).digest()[0] % 16


def pick(rng: Random, choices: Sequence[T]) -> T:
    """One of `choices`, through `Random.random`, the one method whose sequence Python keeps between versions."""
    return choices[int(rng.random() * len(choices))]


def draw(rng: Random) -> Question:
    """A random question: every task and mode equally likely."""
    name = pick(rng, tuple(TASKS))
    task, mode = TASKS[name], pick(rng, tuple(FRAMES))
    least = 1 if task.longest == 3 else 2
    length = least + int(rng.random() * (task.longest - least + 1))
    items = tuple(pick(rng, task.source) for _ in range(length))
    if name == "replace":
        return Question(name, items, mode, pick(rng, items), pick(rng, LETTERS))
    return Question(name, items, mode)


def word(rng: Random, question: Question) -> str:
    """A prompt that asks `question`, in a random wording."""
    phrase = pick(rng, TASKS[question.task].phrasings)
    asked = phrase.format(x=" ".join(question.items), old=question.old, new=question.new) + " ."
    opener = pick(rng, OPENERS) if rng.random() < 0.3 else ""
    closer = pick(rng, CLOSERS) if rng.random() < 0.3 else ""
    return " ".join(part for part in (opener, pick(rng, REQUESTS[question.mode]), asked, closer) if part)


@cache
def _grammar() -> tuple[tuple[str, re.Pattern[str]], ...]:
    def one_of(choices: Sequence[str]) -> str:
        return "|".join(re.escape(choice) for choice in choices if choice)

    modes = "".join(f"(?:(?P<{mode}>{one_of(requests)}) )?" for mode, requests in REQUESTS.items())
    rules = []
    for name, task in TASKS.items():
        item = f"(?:{one_of(task.source)})"
        slots = {"x": f"(?P<x>{item}(?: {item})*)", "old": "(?P<old>[a-z])", "new": "(?P<new>[a-z])"}
        for phrase in task.phrasings:
            pattern = f"(?:(?:{one_of(OPENERS)}) )?{modes}{phrase.format(**slots)} \\.(?: (?:{one_of(CLOSERS)}))?"
            rules.append((name, re.compile(pattern)))
    return tuple(rules)


def read(prompt: str) -> Question:
    """The question a prompt asks; the inverse of `word`.

    Raises `DataError` for a text that no `word` can have made.
    """
    for name, rule in _grammar():
        if match := rule.fullmatch(prompt):
            groups = match.groupdict()
            mode = next((mode for mode in FRAMES if groups[mode]), "plain")
            return Question(name, tuple(groups["x"].split()), mode, groups.get("old") or "", groups.get("new") or "")
    raise DataError(
        f"the tiny world has no prompt like {prompt!r}",
        "its reward judges only its own prompts, such as 'be brief : sort the letters c a b .'",
    )
