"""The teacher signal: what teachers say about every token of an answer, stored once and read without configuration."""

from adpa_cli.signal.advantage import advantage, rms_advantage
from adpa_cli.signal.blocks import load_block, save_block
from adpa_cli.signal.reader import SignalReader
from adpa_cli.signal.rows import AnswerKey, SignalRows, SignalSpec, difference_of, reference_logps, token_hash
from adpa_cli.signal.shard import Shard, write_shard

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
