"""Which device this process computes on, and how to make it give equal bytes."""

from __future__ import annotations

import os


def device() -> str:
    """`cuda:N` for the local rank N where there is a GPU, else `cpu`."""
    import torch

    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"


def prepare(threads: int) -> None:
    """Set the threads of this process, and choose the kernels that give the same bytes each time."""
    import torch

    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        # cuBLAS reads this when it starts; kernels without a deterministic form only warn.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
