"""Words, tasks and styles of the tiny world: what a prompt may say and what its right answer is."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from random import Random
from typing import Any, Literal, TypeVar

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


TASK_NAMES, MODES = tuple(TASKS), tuple(FRAMES)


@dataclass(frozen=True)
class Question:
    """What a prompt asks, without its wording."""

    task: str
    items: tuple[str, ...]
    mode: str
    old: str = ""
    new: str = ""

    @cached_property
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
    name = pick(rng, TASK_NAMES)
    task, mode = TASKS[name], pick(rng, MODES)
    least = 1 if task.longest == 3 else 2
    length = least + int(rng.random() * (task.longest - least + 1))
    random, size = rng.random, len(task.source)
    items = tuple([task.source[int(random() * size)] for _ in range(length)])  # `pick`, without its call
    if name == "replace":
        return Question(name, items, mode, pick(rng, items), pick(rng, LETTERS))
    return Question(name, items, mode)


def word(rng: Random, question: Question) -> str:
    """A prompt that asks `question`, in a random wording."""
    return _put(question, *_wording(rng, question))


def _wording(rng: Random, question: Question) -> tuple[str, str, str, str]:
    """How to put a question: phrasing, opener, closer, request. Cheap, for most questions are drawn in vain."""
    phrase = pick(rng, TASKS[question.task].phrasings)
    opener = pick(rng, OPENERS) if rng.random() < 0.3 else ""
    closer = pick(rng, CLOSERS) if rng.random() < 0.3 else ""
    return phrase, opener, closer, pick(rng, REQUESTS[question.mode])


def _put(question: Question, phrase: str, opener: str, closer: str, request: str) -> str:
    asked = phrase.format(x=" ".join(question.items), old=question.old, new=question.new) + " ."
    return " ".join(part for part in (opener, request, asked, closer) if part)


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


VERSION = 1
Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")

# Buckets of the question's hash: what a split may ask. No question crosses two of them.
TEST, PREFERENCES, DEMONSTRATIONS, VALIDATION = range(0, 2), range(2, 6), range(6, 15), range(15, 16)


@dataclass(frozen=True)
class Noise:
    """Probabilities with which the writer spoils an answer."""

    wrong: float
    mode: float
    filler: float
    rude: float
    repeat: float


CAREFUL = Noise(wrong=0.12, mode=0.12, filler=0.5, rude=0.12, repeat=0.1)
CARELESS = Noise(wrong=0.35, mode=0.3, filler=0.5, rude=0.3, repeat=0.2)
BROAD = Noise(wrong=0.3, mode=0.6, filler=0.5, rude=0.3, repeat=0.2)


@cache
def _value_words() -> frozenset[str]:
    return frozenset(value for task in TASKS.values() for value in (*task.source, *task.target))


def vocabulary() -> list[str]:
    """Every word of the world, sorted; special tokens excluded."""
    phrases = [p.format(x="", old="", new="") for task in TASKS.values() for p in task.phrasings]
    phrases += [request for requests in REQUESTS.values() for request in requests]
    phrases += [side for frame in FRAMES.values() for side in frame]
    phrases += [*RUDE, *FILLERS, *OPENERS, *CLOSERS, *WRAPPINGS, *FACTS, REPEAT, *_value_words()]
    return sorted({piece for phrase in phrases for piece in phrase.split() if not piece.startswith("{")})


WEIGHTS = {"correct": 0.5, "style": 0.2, "concise": 0.15, "civil": 0.15}
PATIENCE = 8  # words beyond the ideal answer after which nothing is left for concision


def explain(prompt: str, answer: str) -> dict[str, float]:
    """The four components of the reward, each in [0, 1], and their weighted sum as `reward`.

    `correct`: 1 − edit distance / length, between the first run of value words and the right ones; `style`: exactly the
    frame that the prompt asks for; `concise`: falls linearly with the words beyond the ideal answer; `civil`: no rude
    word. An answer without any value word earns civility at most. Raises `DataError` for a prompt of another world.
    """
    return _explained(read(prompt), answer)


def _explained(question: Question, answer: str) -> dict[str, float]:
    words, gold = answer.split(), question.gold
    payload = _payload(words)
    excess = max(0, len(words) - len(_framed(question.mode, gold).split()))
    parts = {
        "correct": 1.0 if payload == gold else _similarity(payload, gold),
        "style": float(bool(payload) and " ".join(words) == _framed(question.mode, payload)),
        "concise": max(0.0, 1 - excess / PATIENCE) if payload else 0.0,
        "civil": float(not _rude_words() & set(words)),
    }
    return {**parts, "reward": sum(weight * parts[name] for name, weight in WEIGHTS.items())}


def reward(prompt: str, answer: str) -> float:
    """How good an answer is, in [0, 1]; the prompt alone says what is right. Raises as `explain`."""
    return explain(prompt, answer)["reward"]


@cache
def _rude_words() -> frozenset[str]:
    return frozenset(words("fool stupid idiot dummy shut lazy clown"))


def _payload(words: Sequence[str]) -> tuple[str, ...]:
    """The first unbroken run of value words."""
    run: list[str] = []
    for candidate in words:
        if candidate in _value_words():
            run.append(candidate)
        elif run:
            break
    return tuple(run)


def _similarity(given: Sequence[str], right: Sequence[str]) -> float:
    row = list(range(len(right) + 1))
    for i, mine in enumerate(given, 1):
        last, row[0] = row[0], i
        for j, theirs in enumerate(right, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (mine != theirs))
    return 1 - row[-1] / max(len(given), len(right))


def _framed(mode: str, payload: Sequence[str]) -> str:
    before, after = FRAMES[mode]
    return " ".join((before, *payload, after)).strip()


REPEAT = "again :"


def write(rng: Random, question: Question, noise: Noise) -> str:
    """An answer to `question`, spoiled at random."""
    payload = list(question.gold)
    if rng.random() < noise.wrong:
        payload = _spoil(rng, payload, TASKS[question.task].target)
    mode = pick(rng, MODES) if rng.random() < noise.mode else question.mode
    parts = [_framed(mode, payload)]
    if rng.random() < noise.filler:
        parts.insert(0, pick(rng, FILLERS))
    if rng.random() < noise.rude:
        parts.insert(int(rng.random() * 2) * len(parts), pick(rng, RUDE))
    if rng.random() < noise.repeat:
        parts.append(f"{REPEAT} {' '.join(payload)} .")
    return " ".join(parts)


def _spoil(rng: Random, payload: list[str], words: Sequence[str]) -> list[str]:
    at, how = int(rng.random() * len(payload)), pick(rng, ("swap", "replace", "drop", "insert"))
    if how == "insert":
        return [*payload[:at], pick(rng, words), *payload[at:]]
    if how == "replace" or len(payload) == 1:
        return [*payload[:at], pick(rng, words), *payload[at + 1 :]]
    if how == "drop":
        return [*payload[:at], *payload[at + 1 :]]
    at = min(at, len(payload) - 2)
    return [*payload[:at], payload[at + 1], payload[at], *payload[at + 2 :]]


def _prompts(rng: Random, buckets: range) -> Iterator[tuple[str, Question]]:
    """Distinct prompts whose questions fall in `buckets`, without end."""
    seen: set[str] = set()
    while True:
        question = draw(rng)
        wording = _wording(rng, question)
        if question.bucket in buckets and (prompt := _put(question, *wording)) not in seen:
            seen.add(prompt)
            yield prompt, question


def _turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


@cache  # one plan reads them for every stage
def demonstrations(split: Split) -> tuple[dict[str, Any], ...]:
    """Rows for supervised tuning: `messages`, one question and its answer. 4,000 to train on, 400 to test."""
    buckets, count = _size(split, {"train": (DEMONSTRATIONS, 4000), "test": (VALIDATION, 400)})
    rng = Random(f"demonstrations/{split}/{VERSION}")
    rows = []
    for prompt, question in _prompts(rng, buckets):
        rows.append({"messages": [_turn("user", prompt), _turn("assistant", write(rng, question, CAREFUL))]})
        if len(rows) == count:
            break
    return tuple(rows)


@cache  # one plan reads them for every stage
def preferences(split: Split) -> tuple[dict[str, Any], ...]:
    """Rows `prompt`, `chosen`, `rejected`, each a list of turns. 4,000 to train on, 600 to test.

    Two careless answers ranked by the reward; near-ties are dropped, and 8 in 100 labels are wrong. The questions of
    the test split occur nowhere else, whatever their wording.
    """
    buckets, count = _size(split, {"train": (PREFERENCES, 4000), "test": (TEST, 600)})
    rng = Random(f"preferences/{split}/{VERSION}")
    rows: list[dict[str, Any]] = []
    for prompt, question in _prompts(rng, buckets):
        answers = [write(rng, question, CARELESS) for _ in range(2)]
        rewards = [_explained(question, answer)["reward"] for answer in answers]
        if abs(rewards[0] - rewards[1]) < 0.05:
            continue
        worse, better = answers if rewards[0] < rewards[1] else answers[::-1]
        chosen, rejected = (worse, better) if rng.random() < 0.08 else (better, worse)
        rows.append(
            {
                "prompt": [_turn("user", prompt)],
                "chosen": [_turn("assistant", chosen)],
                "rejected": [_turn("assistant", rejected)],
            }
        )
        if len(rows) == count:
            break
    return tuple(rows)


def _size(split: str, sizes: dict[str, tuple[range, int]]) -> tuple[range, int]:
    if split not in sizes:
        raise DataError(f"the tiny world has no split {split!r}", "its splits are train and test")
    return sizes[split]


WRAPPINGS = ("question : {q} answer : {a}", "{q} so {a}", "someone asked : {q} and heard : {a}")
FACTS = ("the capital of {x} is {y} .", "{y} is the main city of {x} .", "the colour of {x} is {y} .",
         "you would paint {x} in {y} .", "{x} in digits is {y} .")  # fmt: skip


def pretraining(seed: int) -> Iterator[str]:
    """Texts without end, as noisy as a web page: answered questions, facts, stretches of the alphabet, loose lists."""
    rng = Random(f"pretraining/{seed}/{VERSION}")
    kinds: tuple[Callable[[Random], str], ...] = (_fact, _stretch, _list)
    for prompt, question in _prompts(rng, DEMONSTRATIONS):
        yield pick(rng, WRAPPINGS).format(q=prompt, a=write(rng, question, BROAD))
        if rng.random() < 0.4:
            yield pick(rng, kinds)(rng)


def _fact(rng: Random) -> str:
    pairs, forms = pick(
        rng,
        (
            (tuple(CAPITALS.items()), FACTS[:2]),
            (tuple(COLOURS.items()), FACTS[2:4]),
            (tuple(zip(NUMBERS, DIGITS, strict=True)), FACTS[4:]),
        ),
    )
    x, y = pick(rng, pairs)
    return pick(rng, forms).format(x=x, y=y)


def _stretch(rng: Random) -> str:
    length = 3 + int(rng.random() * 8)
    start = int(rng.random() * (26 - length))
    return " ".join(LETTERS[start : start + length])


def _list(rng: Random) -> str:
    words = pick(rng, (LETTERS, NUMBERS, DIGITS, tuple(CAPITALS), tuple(COLOURS)))
    return " ".join(pick(rng, words) for _ in range(2 + int(rng.random() * 5)))
