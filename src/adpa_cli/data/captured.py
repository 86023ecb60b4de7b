"""What other tools captured of a teacher, one answer or text at a time, before it becomes signal of ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adpa_cli.data.turns import Prompt


@dataclass(frozen=True)
class Captured:
    """T tokens that a teacher was asked about, in nats under its full softmax.

    `where` names the file and row. `before` are the ids that precede the tokens, None where the file does not tell;
    `prompt` are the turns, if it has them.
    """

    where: str
    tokens: tuple[int, ...]
    ids: NDArray[np.int32]
    """[T, K] distinct in a row."""
    logps: NDArray[np.float64]
    """[T, K] may be -inf."""
    label_logps: NDArray[np.float64]
    """[T] of the tokens themselves; -inf where the file does not tell."""
    before: tuple[int, ...] | None = None
    prompt: Prompt | None = None

    def part(self, start: int, end: int) -> dict[str, Any]:
        """The arrays of some of the tokens, by name."""
        names = ("ids", "logps", "label_logps")
        return {name: getattr(self, name)[start:end] for name in names}
