"""The teacher signal: what teachers say about every token of an answer, stored once and read without configuration."""

from __future__ import annotations

from adpa_cli.signal.block_files import load_block, save_block
from adpa_cli.signal.rows import (
    AnswerKey,
    SignalRows,
    SignalSpec,
    advantage,
    difference_of,
    reference_logps,
    rms_advantage,
    token_hash,
)
from adpa_cli.signal.shard import Shard, SignalReader, write_shard

__all__ = [
    "AnswerKey",
    "Shard",
    "SignalReader",
    "SignalRows",
    "SignalSpec",
    "advantage",
    "difference_of",
    "load_block",
    "reference_logps",
    "rms_advantage",
    "save_block",
    "token_hash",
    "write_shard",
]
