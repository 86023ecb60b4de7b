"""Which device this process computes on."""

from __future__ import annotations

import os


def device() -> str:
    """`cuda:N` for the local rank N where there is a GPU, else `cpu`."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
