"""What a stage leaves on disk, and what it needs there while it works. Bytes; pure functions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from adpa_cli.stages.model_size import ModelSize
from adpa_cli.stages.row_lengths import Row

LOG_LINE = 210  # bytes of metrics.jsonl for one step
ANSWER_HEAD = 300  # bytes of a signal for each answer: key, offset, checksum, and what compression loses at a start
TOKENIZER_PACKED = 0.3  # of tokenizer.json, by zstandard
TOKEN_JSON = 1.9  # bytes of a token id in a block of a rollout, besides its digits
TOKEN_TEXT = 4.0
TOKEN_PARQUET = 1.7
PARQUET = 6_000  # bytes of a file without rows
LOGP_PARQUET, KEY_PARQUET = 3.5, 24  # bytes of a float32, and of the name of an answer
ROW_JSON = 75
SCORE_LINE = 36  # bytes of scores.json for one figure of one row


@dataclass(frozen=True)
class Disk:
    """`keeps` stays after the commit; `extra` comes on top of it at the fullest moment before."""

    keeps: int
    extra: int = 0


def training(
    model: ModelSize, steps: int, every: int, points: int = 0, keep_all: bool = False, critic: bool = False
) -> Disk:
    """A checkpoint, and with `keep_all` one for each of the `points` that are looked at.

    Meanwhile resume points of weights and two moments, the new one beside the old, a critic's with them; and the best
    point beside a better.
    """
    resume = 12 * model.parameters * (2 if critic else 1)
    saved = (steps - 1) // every
    last = model.checkpoint + LOG_LINE * steps
    beside = points * model.checkpoint if keep_all else 0
    best = 0 if keep_all else min(points, 2) * model.checkpoint
    fullest = max(min(saved, 2) * resume + best, min(saved, 1) * resume + last + min(best, model.checkpoint))
    return Disk(last + beside, fullest - last)


def signal_bytes_per_token(vocabulary: int, k: int, step: float, pair_step: float | None) -> float:
    """Of one answer token: its ids by their entropy, and per value the bits that its step leaves to store.

    Fitted to 92 and 141 bytes at V = 128,256, k = 50, steps of 1/32 and 1/128 (docs/benchmarks.md).
    """
    k = min(k, vocabulary)
    ids = IDS_OF_ENTROPY * log2_subsets(vocabulary, k) / 8
    pair = 0.0 if pair_step is None else _value_bytes(pair_step, PAIR_BITS)
    return ids + k * (_value_bytes(step, VALUE_BITS) + pair)


IDS_OF_ENTROPY = 0.55
VALUE_BITS, PAIR_BITS = 2.4, 0.85


def _value_bytes(step: float, bits: float) -> float:
    return 3.6 if step == 0 else max(0.25, (bits + math.log2(1 / step)) / 8)


def log2_subsets(of: int, k: int) -> float:
    """log2 of the number of sets of k out of `of`."""
    return (math.lgamma(of + 1) - math.lgamma(k + 1) - math.lgamma(of - k + 1)) / math.log(2)


def capture(rows: Sequence[Row], per_token: float, k: int, pair: bool, tokenizer: int) -> Disk:
    """A signal and its tokenizer; meanwhile every finished block in float32."""
    tokens = sum(row.answer for row in rows)
    keeps = per_token * tokens + ANSWER_HEAD * len(rows) + TOKENIZER_PACKED * tokenizer
    spooled = (13 * k + 24 if pair else 8 * k + 12) * tokens + ROW_JSON * len(rows)
    return Disk(int(keeps), int(spooled))


def rollout(rows: Sequence[Row], vocabulary: int) -> Disk:
    """Answers in Parquet; meanwhile blocks of JSON."""
    tokens, answers = sum(row.whole for row in rows), sum(row.answer for row in rows)
    of_token = TOKEN_JSON + math.log10(vocabulary)
    blocks = of_token * tokens + TOKEN_TEXT * answers + ROW_JSON * len(rows)
    return Disk(int(PARQUET + TOKEN_PARQUET * tokens), int(blocks))


def start_logps(rows: Sequence[Row]) -> Disk:
    """A float32 for every answer token and the key of every answer in Parquet; meanwhile the same in blocks."""
    size = PARQUET + LOGP_PARQUET * sum(row.answer for row in rows) + KEY_PARQUET * len(rows)
    return Disk(int(size), int(size))


def evaluation(rows: int, figures: int) -> Disk:
    """The numbers of every row, twice while they are put together."""
    return Disk(SCORE_LINE * rows * figures, SCORE_LINE * rows * figures)
