"""How many tokens the rows of a stage have, before anything is tokenised for it: a sample is, the rest follows.

Reads the data (as the checks before the work do), `tokenizer.json` and the chat template. No torch, no transformers.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adpa_cli.data.answers import answers_of
from adpa_cli.data.examples import Message, Pair
from adpa_cli.data.items import Items
from adpa_cli.data.rendering import render
from adpa_cli.engine.layout.examples import Cut, Reading, answers_for, dialogues_for
from adpa_cli.errors import AdpaError, DataError
from adpa_cli.hub import External
from adpa_cli.hub.externals import dialogues_of, pairs_of, prompts_of
from adpa_cli.hub.model_folder import ModelFolder
from adpa_cli.planning.lineage import folder_of, locate, single
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.sizes import RowTable
from adpa_cli.stages import MODEL_ROLES, Artifact, Input, Node
from adpa_cli.store.identity import file_digest
from adpa_cli.store.store import Store

EXACT_ROWS = 2_000
"""Data of at most so many rows are tokenised before the work where some come `CLOSE` to what fits."""
CLOSE = 0.7
SAMPLE_BYTES = 50_000
BYTES_PER_TOKEN = 4.0  # of text under a tokenizer that cannot be asked
TURN_TOKENS = 5.0  # of a template that cannot be rendered
Sizes = Any
"""An array [n] of numbers of bytes, turns or tokens."""
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
        folder = ModelFolder.of(folder).texts.path
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

    def answers(self, size: Sizes, count: Sizes | int) -> Sizes:
        """Tokens of `count` answers of `size` bytes together, each with its end token."""
        return self.said * size + count

    def prompts(self, size: Sizes, turns: Sizes) -> Sizes:
        """Of prompts of so many turns and bytes, with the header that asks for an answer."""
        return self.ask + self.turn * turns + self.asked * size


@dataclass(frozen=True)
class RowLengths:
    """Measures the rows of one node's inputs: the `Lengths` that its stage asks for."""

    node: Node
    store: Store

    def dialogues(self) -> RowTable:
        """Of the dialogues that it trains on, within its `max_length`, or packed into rows of it."""
        rows, spec = dialogue_rows(*self.reading("train")), self.node.spec
        return rows.packed(spec.max_length) if getattr(spec, "packed", False) else rows.fitted(spec.max_length)

    def pairs(self, split: str) -> dict[str, RowTable]:
        """Of both answers to every pair of one side, within its `max_length`."""
        both, longest = pair_rows(*self.reading(split)), self.node.spec.max_length
        return {"chosen": both.chosen.fitted(longest), "rejected": both.rejected.fitted(longest)}

    def prompts(self, split: str) -> RowTable:
        """Of the prompts of one side, each once and whole, with the chosen answer, or with an endless one."""
        both = pair_rows(*self.reading(split), read=prompts_of)
        return RowTable(both.chosen.prompts[both.firsts], both.chosen.answers[both.firsts])

    def answers(self) -> RowTable:
        """Of its rollouts, one a prompt; for a finished one their number and mean length are known."""
        import numpy as np

        made = single(self.node, "rollouts", self.store)
        if isinstance(made, Node):
            manifest = self.store.get(made.label)
            if manifest is None:
                (rows,) = made.declared.rows(made, RowLengths(made, self.store)).values()
                return (
                    rows if isinstance(rows, RowTable) else RowTable(*np.array([(r.prompt, r.answer) for r in rows]).T)
                )
            made = Artifact(manifest)
        if isinstance(made, External):
            answers = [(sum(len(t.content) for t in a.prompt), len(a.text)) for a in answers_of(Path(made.where[0]))]
            return RowTable(*(np.array(answers, dtype=np.float32).T / BYTES_PER_TOKEN + TURN_TOKENS))
        if made is None:
            return RowTable(np.zeros(0), np.zeros(0))
        count, mean = int(made.manifest.metrics["answers"]), float(made.manifest.metrics["mean_tokens"])
        return RowTable(np.full(count, _mean_prompt(made, self.store)), np.full(count, mean))

    def reading(self, split: str) -> tuple[Reading, TokenizerFolder, tuple[str, str]]:
        """What is read of the data, and the tokenizer and template of the model that reads it first."""
        (data, model), spec = _data_and_model(self.node), self.node.spec
        if not data.is_here:
            raise AdpaError(f"{data.label} is not on this machine")
        reading = (data.where, split, spec.limit, spec.skip_bad_rows, spec.template)
        return reading, TokenizerFolder.of(folder_of(model, self.store), self.store), (spec.template, spec.end)


def _data_and_model(node: Node) -> tuple[External, Input]:
    """The data of a node, and the model that reads them first. Raises AdpaError for a node without."""
    data = node.inputs["data"]
    model = next(node.inputs[role] for role in MODEL_ROLES if role in node.inputs)
    if not isinstance(data, External) or isinstance(model, tuple):
        raise AdpaError(f"{node.label} does not record which data it reads")
    return data, model


def cut_words(node: Node, store: Store) -> list[str]:
    """What is said before the work of rows that are longer than a node's `max_length`; nothing where none seems to be.

    Raises AdpaError where its data cannot be read.
    """
    kind, longest = node.declared.reads, node.spec.max_length
    if getattr(node.spec, "packed", False):
        return []
    reading = RowLengths(node, store).reading(node.declared.split(node.spec))
    import numpy as np

    if kind == "dialogues":
        rows = [dialogue_rows(*reading)]
    else:
        both = pair_rows(*reading)
        rows = [both.chosen, both.rejected]
    if len(rows[0]) <= EXACT_ROWS and any(part.totals.longest > CLOSE * longest for part in rows):
        cut = _exact_cut(node, store)
        if cut.rows and cut.left_out == cut.rows:
            raise cut.nothing_left(node.label_of("data"), kind, longest, node.stage)
        return cut.words(kind, longest)
    prompts, most = rows[0].prompts, np.maximum.reduce([part.answers for part in rows])
    kept = np.minimum(prompts, np.maximum(longest - most, longest // 2))
    over = np.stack([np.maximum(0.0, part.answers - (longest - kept)) for part in rows])
    count = int(np.count_nonzero((prompts > kept) | over.any(0)))
    tokens, lost = float((prompts - kept).sum() + over.sum()), int(np.count_nonzero(over))
    if not count:
        return []
    return [
        f"about {count:,} of {len(prompts):,} {kind} are longer than max_length={longest}; about {tokens:,.0f} tokens "
        f"are cut off, and about {lost:,} answers lose their end"
    ]


def _exact_cut(node: Node, store: Store) -> Cut:
    """What of a node's rows does not fit, by tokenising them all."""
    (data, model), spec = _data_and_model(node), node.spec
    folder, split = folder_of(model, store), node.declared.split(spec)
    data_here = locate(data, store)
    if node.declared.reads == "pairs":
        return answers_for(spec, data_here, split, folder).cut
    return dialogues_for(spec, data_here, split, folder)[1]


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
        rows = pair_rows(reading, TokenizerFolder.of(folder, store), (template, end), read=prompts_of).chosen
        return rows.totals.prompt / len(rows)
    except (AdpaError, OSError, KeyError):
        return float(made.manifest.metrics["mean_tokens"])


@dataclass(frozen=True)
class PairRows:
    """Both answers of every pair, and where each prompt is met the first time."""

    chosen: RowTable
    rejected: RowTable
    firsts: Any


@functools.lru_cache(maxsize=16)
def pair_rows(
    reading: Reading, tokenizer: TokenizerFolder, template: tuple[str, str], read: Callable[..., Any] = pairs_of
) -> PairRows:
    """The answers of every pair, before fitting; those of a prompt alone are endless."""
    import numpy as np

    items: Items[Pair] = read(*reading).items
    asked, turns, chosen, rejected = (items.values(name) for name in ("asked", "asking", "said", "refused"))
    starts = np.cumsum(np.r_[0, turns])

    def question(number: int) -> str:
        item = int(np.searchsorted(starts, number, "right")) - 1
        return items[item].prompt[number - int(starts[item])].content

    def answer(number: int) -> str:
        item = items[number // 2]
        return item.rejected if number % 2 else item.chosen

    ruler = ruler_for(
        tokenizer.path, template, _sampled(question, int(starts[-1]), int(asked.sum())),
        _sampled(answer, 2 * len(items), int(chosen.sum() + rejected.sum())),
    )  # fmt: skip
    prompts = ruler.prompts(asked, turns).astype(np.float32)
    tokens = (np.where(chosen > 0, ruler.answers(size, 1), np.inf) for size in (chosen, rejected))
    both = [RowTable(prompts, size.astype(np.float32)) for size in tokens]
    return PairRows(both[0], both[1], items.firsts("key"))


@functools.lru_cache(maxsize=16)
def dialogue_rows(reading: Reading, tokenizer: TokenizerFolder, template: tuple[str, str]) -> RowTable:
    """Every dialogue before fitting: all its answers, and all that is not one."""
    import numpy as np

    items = dialogues_of(*reading).items
    asked, asking, said, saying = (items.values(name) for name in ("asked", "asking", "said", "saying"))

    def texts(counts: Sizes, size: Sizes, is_answer: bool) -> list[str]:
        starts = np.cumsum(np.r_[0, counts])

        def text(number: int) -> str:
            item = int(np.searchsorted(starts, number, "right")) - 1
            own = [m.content for m in items[item].messages if (m.role == "assistant") == is_answer]
            return own[number - int(starts[item])]

        return _sampled(text, int(starts[-1]), int(size.sum()))

    ruler = ruler_for(tokenizer.path, template, texts(asking, asked, False), texts(saying, said, True))
    prompts = ruler.prompts(asked, asking) + (saying - 1) * ruler.ask
    return RowTable(prompts.astype(np.float32), ruler.answers(said, saying).astype(np.float32))


def _sampled(text_of: Callable[[int], str], count: int, size: int) -> list[str]:
    """Of `count` texts of `size` bytes some of at most about `SAMPLE_BYTES`, drawn with one seed: data often repeat in
    a rhythm."""
    share = SAMPLE_BYTES / max(1, size)
    most = max(1, round(count * share))
    return [text_of(n) for n in (range(count) if share >= 1 else random.Random(0).sample(range(count), most))]


def ruler_for(folder: Path, template: tuple[str, str], asked: Sequence[str], said: Sequence[str]) -> Ruler:
    """Measured on some of the prompts and of the answers."""
    path = folder / "tokenizer.json"
    if not path.exists():
        return Ruler(1 / BYTES_PER_TOKEN, 1 / BYTES_PER_TOKEN, TURN_TOKENS, TURN_TOKENS)
    tokenizer = _tokenizer(path)
    turn, ask = _template_tokens(folder, template, tokenizer)
    return Ruler(_tokens_per_byte(asked, tokenizer), _tokens_per_byte(said, tokenizer), turn, ask)


def _tokens_per_byte(texts: Sequence[str], tokenizer: Any) -> float:
    tokens = sum(len(e.ids) for e in tokenizer.encode_batch(list(texts), add_special_tokens=False))
    return tokens / max(1, sum(len(text.encode()) for text in texts)) or 1 / BYTES_PER_TOKEN


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
