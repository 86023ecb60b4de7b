"""How many tokens the rows of a stage have, before anything is tokenised for it: a sample is, the rest follows.

Reads the data (as the checks before the work do), `tokenizer.json` and the chat template. No torch, no transformers.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adpa_cli.data.examples import Message
from adpa_cli.data.rendering import render
from adpa_cli.data.tokenizer import Tokenizer
from adpa_cli.engine.layout.examples import Cut, Reading, answers_for, dialogue_examples, encoder_of
from adpa_cli.errors import AdpaError, DataError
from adpa_cli.hub import External
from adpa_cli.hub.adapter_folder import tokenizer_folder
from adpa_cli.hub.externals import dialogues_of, pairs_of
from adpa_cli.hub.model_folder import ModelFolder
from adpa_cli.planning.lineage import folder_of, locate, single
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.sizes import Row, Rows
from adpa_cli.stages import MODEL_ROLES, Artifact, Input, Node
from adpa_cli.store.identity import file_digest
from adpa_cli.store.store import Store

EXACT_ROWS = 2_000
"""Data of at most so many rows are tokenised before the work where some come `CLOSE` to what fits."""
CLOSE = 0.7
SAMPLE_BYTES = 50_000
BYTES_PER_TOKEN = 4.0  # of text under a tokenizer that cannot be asked
TURN_TOKENS = 5.0  # of a template that cannot be rendered
SPECIAL = ("bos_token", "eos_token", "pad_token")


@dataclass(frozen=True)
class TokenizerFolder:
    """A model folder by its tokenizer: two are equal that cut texts alike, so a family's texts are measured once."""

    path: Path = field(compare=False)
    digest: str
    special: tuple[str, ...] = ()

    @staticmethod
    def of(folder: Path, store: Store) -> TokenizerFolder:
        """That of a model folder; one without a fast tokenizer is equal to itself alone."""
        folder = tokenizer_folder(folder)
        path = folder / "tokenizer.json"
        if not path.exists():
            return TokenizerFolder(folder, str(folder))
        special = tuple(ModelFolder.of(folder).token(name) for name in SPECIAL)
        return TokenizerFolder(folder, file_digest(path, store.hash_cache), special)


@dataclass(frozen=True)
class Ruler:
    """Tokens for a byte of a prompt and of an answer, and for each turn and each whole prompt under a chat template."""

    asked: float
    said: float
    turn: float
    ask: float

    def answer(self, text: str) -> float:
        """With its end token."""
        return self.said * len(text.encode()) + 1

    def prompt(self, messages: Sequence[Any]) -> float:
        """With the header that asks for an answer."""
        return self.ask + sum(self.turn + self.asked * len(message.content.encode()) for message in messages)


@dataclass(frozen=True)
class RowLengths:
    """Measures the rows of one node's inputs: the `Lengths` that its stage asks for."""

    node: Node
    store: Store

    def dialogues(self) -> list[Row]:
        """Of the dialogues that it trains on, within its `max_length`."""
        return _within(self.node.spec.max_length, dialogue_rows(*self.reading("train")))

    def pairs(self, split: str) -> Rows:
        """Of both answers to every pair of one side, within its `max_length`."""
        chosen, rejected, _ = pair_rows(*self.reading(split))
        longest = self.node.spec.max_length
        return {"chosen": _within(longest, chosen), "rejected": _within(longest, rejected)}

    def prompts(self, split: str) -> list[Row]:
        """Of the prompts of one side, each once and whole, with the chosen answer."""
        chosen, _, firsts = pair_rows(*self.reading(split))
        return [chosen[place] for place in firsts]

    def answers(self) -> list[Row]:
        """Of its rollouts, one a prompt; for a finished one their number and mean length are known."""
        made = single(self.node, "rollouts", self.store)
        if isinstance(made, Node):
            manifest = self.store.get(made.label)
            if manifest is None:
                (rows,) = made.declared.rows(made, RowLengths(made, self.store)).values()
                return rows
            made = Artifact(manifest)
        if not isinstance(made, Artifact):
            return []
        count, mean = int(made.manifest.metrics["answers"]), float(made.manifest.metrics["mean_tokens"])
        return [Row(_mean_prompt(made, self.store), mean)] * count

    def reading(self, split: str) -> tuple[Reading, TokenizerFolder, tuple[str, str]]:
        """What is read of the data, and the tokenizer and template of the model that reads it first."""
        (data, model), spec = _data_and_model(self.node), self.node.spec
        if data.download or not data.is_open:
            raise AdpaError(f"{data.label} is not on this machine")
        reading = (data.where, split, spec.limit, spec.skip_bad_rows, spec.template)
        return reading, TokenizerFolder.of(folder_of(model, self.store), self.store), (spec.template, spec.end)


def _data_and_model(node: Node) -> tuple[External, Input]:
    """The data of a node, and the model that reads them first. Raises AdpaError for a node without."""
    data = node.inputs["data"]
    model = next(node.inputs[role] for role in MODEL_ROLES if role in node.inputs)
    if not isinstance(data, External) or isinstance(model, tuple):
        raise AdpaError(f"{node.label} does not tell what it reads")
    return data, model


def cut_words(node: Node, store: Store) -> list[str]:
    """What is said before the work of rows that are longer than a node's `max_length`; nothing where none seems to be.

    Raises AdpaError where its data cannot be read.
    """
    kind, longest = node.declared.reads, node.spec.max_length
    reading = RowLengths(node, store).reading(node.declared.split(node.spec))
    if kind == "dialogues":
        rows = [[row] for row in dialogue_rows(*reading)]
    else:
        chosen, rejected, _ = pair_rows(*reading)
        rows = [list(pair) for pair in zip(chosen, rejected, strict=True)]
    if len(rows) <= EXACT_ROWS and any(r.prompt + r.answer > CLOSE * longest for row in rows for r in row):
        cut = _exact_cut(node, store)
        if cut.rows and cut.left_out == cut.rows:
            raise cut.nothing_left(node.label_of("data"), kind, longest, node.stage)
        return cut.words(kind, longest)
    count, tokens, lost = 0, 0.0, 0
    for answers in rows:
        prompt, most = answers[0].prompt, max(row.answer for row in answers)
        kept = min(prompt, max(longest - most, longest // 2))
        over = [max(0.0, row.answer - (longest - kept)) for row in answers]
        count += prompt > kept or any(over)
        tokens += prompt - kept + sum(over)
        lost += sum(each > 0 for each in over)
    if not count:
        return []
    return [
        f"about {count:,} of {len(rows):,} {kind} are longer than max_length {longest}: about {tokens:,.0f} tokens "
        f"are cut, and about {lost:,} answers lose their end"
    ]


def _exact_cut(node: Node, store: Store) -> Cut:
    """What of a node's rows does not fit, by tokenising them all."""
    (data, model), spec = _data_and_model(node), node.spec
    folder, split = folder_of(model, store), node.declared.split(spec)
    if node.declared.reads == "pairs":
        return answers_for(spec, locate(data, store), split, folder).cut
    items = dialogues_of(data.where, split, spec.limit, spec.skip_bad_rows, spec.template).items
    encoder = encoder_of(Tokenizer.of(tokenizer_folder(folder)), spec)
    return dialogue_examples(items, encoder, spec.max_length, data.label)[1]


def _mean_prompt(made: Artifact, store: Store) -> float:
    """Mean tokens of the prompts behind a finished rollout; where its data have moved, as many as of its answers."""
    spec = made.manifest.spec
    content = str(made.manifest.inputs["data"])
    below = store.get(str(made.manifest.inputs["model"]))
    try:
        data = Names(store).data_of(made.manifest.sources[content], content)
        folder = store.folder(made.label if below is None else below.ref)
        template, end = str(spec["template"]), str(spec["end"])
        reading = (data.where, str(spec["split"]), spec["limit"], bool(spec.get("skip_bad_rows")), template)
        rows, _, _ = pair_rows(reading, TokenizerFolder.of(folder, store), (template, end))
        return sum(row.prompt for row in rows) / len(rows)
    except (AdpaError, OSError, KeyError):
        return float(made.manifest.metrics["mean_tokens"])


def _within(longest: int, rows: Sequence[Row]) -> list[Row]:
    """What is left of rows within `longest` tokens; most rows are short enough as they are."""
    return [row if row.prompt + row.answer <= longest else row.fitted(longest) for row in rows]


@functools.lru_cache(maxsize=16)
def pair_rows(
    reading: Reading, tokenizer: TokenizerFolder, template: tuple[str, str]
) -> tuple[tuple[Row, ...], tuple[Row, ...], tuple[int, ...]]:
    """The chosen and the rejected answer of every pair, before fitting; and where a prompt is met the first time."""
    items = pairs_of(*reading).items
    answers = [text for item in items for text in (item.chosen, item.rejected)]
    ruler = ruler_for(tokenizer.path, template, [m.content for item in items for m in item.prompt], answers)
    firsts: dict[Any, int] = {}
    chosen, rejected = [], []
    for place, item in enumerate(items):
        firsts.setdefault(item.prompt, place)
        prompt = ruler.prompt(item.prompt)
        chosen.append(Row(prompt, ruler.answer(item.chosen)))
        rejected.append(Row(prompt, ruler.answer(item.rejected)))
    return tuple(chosen), tuple(rejected), tuple(firsts.values())


@functools.lru_cache(maxsize=16)
def dialogue_rows(reading: Reading, tokenizer: TokenizerFolder, template: tuple[str, str]) -> tuple[Row, ...]:
    """Every dialogue before fitting: all its answers, and all that is not one."""
    items = dialogues_of(*reading).items
    turns = [message for item in items for message in item.messages]
    asked, said = ([m.content for m in turns if (m.role == "assistant") == own] for own in (False, True))
    ruler = ruler_for(tokenizer.path, template, asked, said)
    rows = []
    for item in items:
        answers = [m for m in item.messages if m.role == "assistant"]
        prompt = ruler.prompt([m for m in item.messages if m.role != "assistant"])
        rows.append(Row(prompt + (len(answers) - 1) * ruler.ask, sum(ruler.answer(m.content) for m in answers)))
    return tuple(rows)


def ruler_for(folder: Path, template: tuple[str, str], asked: Sequence[str], said: Sequence[str]) -> Ruler:
    """Measured on some of the prompts and of the answers."""
    path = folder / "tokenizer.json"
    if not path.exists():
        return Ruler(1 / BYTES_PER_TOKEN, 1 / BYTES_PER_TOKEN, TURN_TOKENS, TURN_TOKENS)
    tokenizer = _tokenizer(path)
    turn, ask = _template_tokens(folder, template, tokenizer)
    return Ruler(_tokens_per_byte(asked, tokenizer), _tokens_per_byte(said, tokenizer), turn, ask)


def _tokens_per_byte(texts: Sequence[str], tokenizer: Any) -> float:
    """Of at most about `SAMPLE_BYTES` of texts, drawn with one seed: data often repeat in a rhythm."""
    share = SAMPLE_BYTES / max(1, sum(map(len, texts)))
    count = max(1, round(len(texts) * share))
    sample = list(texts) if share >= 1 else random.Random(0).sample(list(texts), count)
    tokens = sum(len(e.ids) for e in tokenizer.encode_batch(sample, add_special_tokens=False))
    return tokens / max(1, sum(len(text.encode()) for text in sample)) or 1 / BYTES_PER_TOKEN


@functools.lru_cache(maxsize=8)
def _tokenizer(path: Path) -> Any:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()  # a file may ask for both, and a count wants neither
    tokenizer.no_truncation()
    return tokenizer


def _template_tokens(folder: Path, template: tuple[str, str], tokenizer: Any) -> tuple[float, float]:
    """Tokens that a chat template adds to each turn, and to the whole with the header that asks for an answer."""
    names = {name: ModelFolder.of(folder).token(name) for name in SPECIAL}
    one = [Message("user", "a")]
    three = [*one, Message("assistant", "a"), *one]

    def count(turns: Sequence[Message]) -> int:
        return len(tokenizer.encode(render(template[0], turns, True, names), add_special_tokens=False).ids)

    try:
        alone, whole = count(one), count(three)
    except DataError:
        return TURN_TOKENS, TURN_TOKENS
    turn = max(0.0, (whole - alone) / 2 - 1)
    return turn, max(0.0, alone - turn - 1)
