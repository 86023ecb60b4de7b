"""Tokenised rows as mapped tables, made once for some items, a tokenizer and the lengths, and then read by everybody.

A row of a table is an example: its `prompt` and the answer of each part, as lists of token ids. All cores make it, each
process a batch of rows at a time, in the order of the data. A table is named by the content of what it is made from,
so copies of the same rows share one.
"""

from __future__ import annotations

import itertools
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context, parent_process
from multiprocessing.connection import wait
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adpa_cli.data.chat import Encoded, Encoder, fit, fit_answers, fit_dialogue
from adpa_cli.data.examples import Dialogue, Pair
from adpa_cli.data.items import TEXT, Items, item_of
from adpa_cli.data.tables import BATCH, WATCH, Table, code_digest, record_batch, table
from adpa_cli.data.templates import Template
from adpa_cli.data.tokenizer import Tokenizer
from adpa_cli.engine.layout.sequences import Cut
from adpa_cli.engine.layout.token_rows import DIALOGUE, MASK, OTHER_PROMPT, PAIR
from adpa_cli.errors import AdpaError, DataError, named_row
from adpa_cli.signal.rows import token_hash
from adpa_cli.spec import Truncation

NONE = np.zeros(0, np.int32)
MUCH_TEXT = 8_000_000
"""Bytes of text that take one core longer than other processes take to start."""
AHEAD = 2
"""Batches for each core that are made before the first of them is written."""


def schema(parts: Sequence[str]) -> Any:
    """The columns of a table with these parts: their ids, the hash of prompt and answer, and whether some was cut.

    `rejected_prompt` is empty where both answers follow one prompt, `chosen_mask` where all of an answer is trained.
    """
    import pyarrow as pa

    ids, mask = pa.list_(pa.int32()), pa.list_(pa.uint8())
    columns = [("id", pa.uint64()), ("prompt", ids), *((part, ids) for part in parts)]
    columns += [(f"{part}_hash", pa.binary(16)) for part in parts] + [(f"{part}_cut", pa.bool_()) for part in parts]
    return pa.schema([*columns, *([(OTHER_PROMPT, ids)] if len(parts) > 1 else [(MASK, mask)])])


@dataclass(frozen=True)
class Encoding:
    """How items become token ids. `name` is what errors call the data; `room` the tokens that a prompt which `stage`
    answers must leave. Of dialogues `every_token` but the first is trained if not those of answers, and what the
    template writes `behind` the last one is kept if that is asked for."""

    tokenizer: Tokenizer
    template: Template
    max_length: int
    truncation: Truncation
    name: str
    room: int = 0
    stage: str = ""
    every_token: bool = False
    behind: bool = False

    def made_from(self, items: Items[Any], parts: Sequence[str]) -> list[Any]:
        """All that decides what is in the table of some items."""
        rules = [self.template.text, self.template.end, self.max_length, self.truncation, self.room, list(parts)]
        trained = [self.every_token, self.behind]
        return [items.digest, self.tokenizer.digest, *rules, *trained, code_digest(__file__)]


def fitted_pair(
    item: Pair, encoder: Encoder, max_length: int, truncation: Truncation, name: str
) -> list[Encoded] | None:
    """Both answers to a pair within `max_length`; None where nothing is left to train on. Raises DataError."""
    where = f"{name} row {item.row}"
    with named_row(where):
        prompt, answers = encoder.answered(item.prompt, item.chosen, item.rejected)
    if truncation == "pair":
        both = fit_answers(prompt, answers, max_length, bos_id=encoder.bos_id)
        return None if both is None or both[0].answer == both[1].answer else both
    fitted = []
    for part, answer in zip(PAIR, answers, strict=True):
        fitted.append(fit(prompt, answer, max_length, bos_id=encoder.bos_id, where=f"{where}, {part}"))
        if not fitted[-1].answer:
            raise DataError(
                f"{where}, {part}: the answer has no tokens left within max_length",
                f"--set max_length={max_length * 2}",
            )
    return fitted


def fitted_dialogue(
    item: Dialogue, encoder: Encoder, max_length: int, name: str, every_token: bool = False, behind: bool = False
) -> tuple[list[int], list[bool], Encoded] | None:
    """The ids of a dialogue within `max_length`, what of them is trained, and what was cut; None where nothing is left.

    The settings are those of an `Encoding`. Raises DataError that names the row which the template refuses.
    """
    with named_row(f"{name} row {item.row}"):
        ids, mask = encoder.dialogue(item.messages, behind)
    if every_token:
        mask = [False, *[True] * (len(ids) - 1)]
    fitted = fit_dialogue(ids, mask, max_length, bos_id=encoder.bos_id)
    if fitted is None:
        return None
    kept, answer, cut = fitted
    lost = cut if mask[-1] and not (answer[-1] and kept[-1] == ids[-1]) else 0
    return kept, answer, Encoded((), (), cut - lost, lost)


def fitted_prompt(pair: Pair, encoder: Encoder, rules: Encoding) -> tuple[int, ...]:
    """The ids of a prompt that is to be answered. Raises DataError where no answer fits beside it."""
    where = f"{rules.name} row {pair.row}, prompt"
    with named_row(where):
        ids = encoder.prompt(pair.prompt)
    fitted = fit(ids, [encoder.end_id] * rules.room, rules.max_length, bos_id=encoder.bos_id, where=where)
    if len(fitted.prompt) >= rules.max_length:
        raise DataError(
            f"{where} leaves no room for an answer in {rules.max_length} tokens",
            f"--set {rules.stage}.max_length={2 * rules.max_length}",
        )
    return fitted.prompt


def pairs_table(items: Items[Pair], encoding: Encoding) -> tuple[Table, Cut]:
    """Both answers of every pair that fits, and what did not. Raises DataError as `fitted_pair`."""
    return _tokenised(items, PAIR, encoding)


def dialogues_table(items: Items[Dialogue], encoding: Encoding) -> tuple[Table, Cut]:
    """Every dialogue that fits, as an answer to what stands before its first one. Raises DataError."""
    return _tokenised(items, DIALOGUE, encoding)


def prompts_table(items: Items[Pair], encoding: Encoding) -> Table:
    """The prompt of every pair, as it is asked. Raises DataError as `fitted_prompt`."""
    return _tokenised(items, (), encoding)[0]


def _tokenised(items: Items[Any], parts: Sequence[str], encoding: Encoding) -> tuple[Table, Cut]:
    def fill(add: Any) -> dict[str, Any]:
        cut = Cut()
        for batch, lost in encoded_batches(items, parts, encoding):
            add(batch, len(items))
            cut += lost
            WATCH.get()(f"tokenising {encoding.name}", cut.rows, len(items))
        return {"cut": vars(cut)}

    held = table("tokens", encoding.made_from(items, parts), schema(parts), fill)
    return held, Cut(**held.about["cut"])


def encoded_batches(items: Items[Any], parts: Sequence[str], encoding: Encoding) -> Iterator[tuple[Any, Cut]]:
    """The rows of a table, a batch at a time, and what of them did not fit; made by all cores where it is worth it."""
    rows = items.records(TEXT)
    chunks = iter(lambda: list(itertools.islice(rows, BATCH)), [])
    size = sum(float(items.values(name).sum()) for name in ("asked", "said", "refused"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores == 1 or size < MUCH_TEXT:
        yield from map(Tokenise(encoding, parts), chunks)
        return
    given = replace(encoding, tokenizer=replace(encoding.tokenizer))  # without what it has looked up
    with ProcessPoolExecutor(cores, get_context("spawn"), _start, (given, parts)) as pool:
        waiting: deque[Future[tuple[Any, Cut]]] = deque()
        try:
            for chunk in chunks:
                waiting.append(pool.submit(_encoded, chunk))
                if len(waiting) > AHEAD * cores:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool as error:
            raise AdpaError(
                f"{encoding.name}: a process that tokenised the data was killed",
                "the kernel does this when memory runs out (see dmesg); run the command again",
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


class Tokenise:
    """Makes a batch of a table from the records of some items, and says what of them did not fit."""

    def __init__(self, encoding: Encoding, parts: Sequence[str]) -> None:
        self.encoding, self.parts = encoding, parts
        self.encoder = Encoder(encoding.tokenizer, encoding.template)

    def __call__(self, records: Iterable[tuple[Any, ...]]) -> tuple[Any, Cut]:
        items = [item_of(*record) for record in records]
        made = [self._row(item) for item in items]
        rows = [row for row, _ in made if row is not None]
        return rows_batch(rows, schema(self.parts)), Cut.of([lost for _, lost in made])

    def _row(self, item: Any) -> tuple[dict[str, Any] | None, list[Encoded] | None]:
        if not self.parts:
            prompt = fitted_prompt(item, self.encoder, self.encoding)
            return {"id": int(item.id, 16), "prompt": prompt}, [Encoded((), ())]
        return self._pair(item) if isinstance(item, Pair) else self._dialogue(item)

    def _pair(self, item: Pair) -> tuple[dict[str, Any] | None, list[Encoded] | None]:
        """A row of the table with what was cut of it; None for a pair that is left out."""
        rules = self.encoding
        both = fitted_pair(item, self.encoder, rules.max_length, rules.truncation, rules.name)
        if both is None:
            return None, None
        row: dict[str, Any] = {"id": int(item.id, 16), "prompt": np.array(both[0].prompt, np.int32)}
        row[OTHER_PROMPT] = prompt = NONE
        for part, each in zip(PAIR, both, strict=True):
            if each.prompt == both[0].prompt:
                prompt = row["prompt"]
            else:
                row[OTHER_PROMPT] = prompt = np.array(each.prompt, np.int32)
            row[part] = np.array(each.answer, np.int32)
            row[f"{part}_hash"] = bytes.fromhex(token_hash(prompt, row[part]))
            row[f"{part}_cut"] = each.cut_prompt + each.cut_answer > 0
        return row, both

    def _dialogue(self, item: Dialogue) -> tuple[dict[str, Any] | None, list[Encoded] | None]:
        """Likewise: the prompt is what stands before the first token that is trained."""
        rules = self.encoding
        fitted = fitted_dialogue(item, self.encoder, rules.max_length, rules.name, rules.every_token, rules.behind)
        if fitted is None:
            return None, None
        ids, mask, lost = fitted
        is_cut = lost.cut_prompt + lost.cut_answer > 0
        return dialogue_row(int(item.id, 16), np.array(ids, np.int32), np.array(mask, np.uint8), is_cut), [lost]


def dialogue_row(id_: int, ids: NDArray[np.int32], mask: NDArray[np.uint8], is_cut: bool) -> dict[str, Any]:
    """Token ids [L] and which of them are trained [L] as a row of a table of dialogues."""
    lead = int(mask.argmax())
    prompt, answer = ids[:lead], ids[lead:]
    return {
        "id": id_, "prompt": prompt, "chosen": answer, "chosen_cut": is_cut,
        "chosen_hash": bytes.fromhex(token_hash(prompt, answer)),
        MASK: NONE if mask[lead:].all() else mask[lead:],
    }  # fmt: skip


def rows_batch(rows: Sequence[Mapping[str, Any]], fields: Any) -> Any:
    """Rows of a table with these columns as Arrow; lists that a row lacks are empty."""
    return record_batch([[row.get(field.name, ()) for row in rows] for field in fields], fields)


_WORK: list[Tokenise] = []
"""What a process of its own makes batches with."""


def _start(encoding: Encoding, parts: Sequence[str]) -> None:
    """Begin the life of a process that makes batches: it ends with its parent, which also hears the signals."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = parent_process()

    def leave_with_the_parent() -> None:
        if parent is not None:
            wait([parent.sentinel])
            os._exit(1)

    threading.Thread(target=leave_with_the_parent, daemon=True).start()
    _WORK.append(Tokenise(encoding, parts))


def _encoded(records: list[tuple[Any, ...]]) -> tuple[Any, Cut]:
    return _WORK[0](records)
