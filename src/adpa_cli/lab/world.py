"""The tiny world: a noisy writer, the splits it fills, and the reward that judges an answer.

Everything follows from fixed seeds and is the same on every machine; `VERSION` names the rows.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from random import Random
from typing import Any, Literal

from adpa_cli.errors import DataError
from adpa_cli.lab import tasks
from adpa_cli.lab.tasks import FILLERS, FRAMES, RUDE, TASKS, Question, pick

VERSION = 1
Split = Literal["train", "test"]

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
    phrases += [request for requests in tasks.REQUESTS.values() for request in requests]
    phrases += [side for frame in FRAMES.values() for side in frame]
    phrases += [*RUDE, *FILLERS, *tasks.OPENERS, *tasks.CLOSERS, *WRAPPINGS, *FACTS, REPEAT, *_value_words()]
    return sorted({piece for phrase in phrases for piece in phrase.split() if not piece.startswith("{")})


# The reward

WEIGHTS = {"correct": 0.5, "style": 0.2, "concise": 0.15, "civil": 0.15}
PATIENCE = 8  # words beyond the ideal answer after which nothing is left for concision


def explain(prompt: str, answer: str) -> dict[str, float]:
    """The four components of the reward, each in [0, 1], and their weighted sum as `reward`.

    `correct`: 1 − edit distance / length, between the first run of value words and the right ones; `style`: exactly the
    frame that the prompt asks for; `concise`: falls linearly with the words beyond the ideal answer; `civil`: no rude
    word. An answer without any value word earns civility at most. Raises `DataError` for a prompt of another world.
    """
    question = tasks.read(prompt)
    words = answer.split()
    payload = _payload(words)
    excess = max(0, len(words) - len(_framed(question.mode, question.gold).split()))
    parts = {
        "correct": _similarity(payload, question.gold),
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
    return frozenset(tasks.words("fool stupid idiot dummy shut lazy clown"))


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


# The writer

REPEAT = "again :"


def write(rng: Random, question: Question, noise: Noise) -> str:
    """An answer to `question`, spoiled at random."""
    payload = list(question.gold)
    if rng.random() < noise.wrong:
        payload = _spoil(rng, payload, TASKS[question.task].target)
    mode = pick(rng, tuple(FRAMES)) if rng.random() < noise.mode else question.mode
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


# The splits


def _prompts(rng: Random, buckets: range) -> Iterator[tuple[str, Question]]:
    """Distinct prompts whose questions fall in `buckets`, without end."""
    seen: set[str] = set()
    while True:
        question = tasks.draw(rng)
        prompt = tasks.word(rng, question)
        if question.bucket in buckets and prompt not in seen:
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
        worse, better = sorted((write(rng, question, CARELESS) for _ in range(2)), key=partial(reward, prompt))
        if reward(prompt, better) - reward(prompt, worse) < 0.05:
            continue
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


# What the base models have read

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
            (tuple(tasks.CAPITALS.items()), FACTS[:2]),
            (tuple(tasks.COLOURS.items()), FACTS[2:4]),
            (tuple(zip(tasks.NUMBERS, tasks.DIGITS, strict=True)), FACTS[4:]),
        ),
    )
    x, y = pick(rng, pairs)
    return pick(rng, forms).format(x=x, y=y)


def _stretch(rng: Random) -> str:
    length = 3 + int(rng.random() * 8)
    start = int(rng.random() * (26 - length))
    return " ".join(tasks.LETTERS[start : start + length])


def _list(rng: Random) -> str:
    words = pick(rng, (tasks.LETTERS, tasks.NUMBERS, tasks.DIGITS, tuple(tasks.CAPITALS), tuple(tasks.COLOURS)))
    return " ".join(pick(rng, words) for _ in range(2 + int(rng.random() * 5)))
