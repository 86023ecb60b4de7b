"""A training under a real limit of memory, as a program: `python -m support.memory_limit FOLDER`, run in `tests`.

It forks one process after the other, none of which has threads: one without a limit, in small micro-batches; one with a
limit that the wanted micro-batches exceed; two that train together, of which only the second has a limit; one that not
even single rows fit; and one for each stage of inference, in a block as large as its data. Each leaves in FOLDER what
became of it.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from adpa_cli.engine.layout.examples import Example, TokenSequence
from adpa_cli.engine.ranks import Ranks
from adpa_cli.engine.training.loop import train
from adpa_cli.engine.training.student import Student
from adpa_cli.errors import AdpaError
from adpa_cli.hub import Located
from adpa_cli.lab import BASES, TEMPLATE
from adpa_cli.lab import END as TINY_END
from adpa_cli.spec import Runtime
from adpa_cli.stages import Job, Monitor
from support.tiny_models import END, VOCABULARY, tiny_llama
from support.train_samples import make_run, start_of

LENGTH, ROWS = 48, 48
WANTED = 2 * LENGTH * ROWS  # a pair is two sequences
ROOM = 100 * 2**20  # gradients and moments take 25 MB of it, the rows wanted more than 200
OWN: dict[str, dict[str, Any]] = {
    "cache-teacher": {"parts": ("chosen", "rejected"), "pair_precision": None},
    "start-logps": {"parts": ("chosen", "rejected"), "skip_bad_rows": False, "smoke": False},
}
HINTS = {"training": "distill"}
SIZE = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 4}


def pairs() -> list[Example]:
    rng = np.random.default_rng(0)

    def sequence() -> TokenSequence:
        ids = rng.integers(5, VOCABULARY, LENGTH).astype(np.int32)
        ids[-1] = END
        return TokenSequence(ids, np.arange(LENGTH) >= 8)

    return [Example(f"row{n}", {"chosen": sequence(), "rejected": sequence()}) for n in range(ROWS)]


def limit(more: int) -> None:
    """Allow this process `more` bytes of address space beyond what it has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more,) * 2)


def body(folder: Path, tokens: int, more: int | None, rendezvous: str = "") -> None:
    """Train for two steps and write what became of it."""
    folder.mkdir(parents=True, exist_ok=True)
    said: list[str] = []
    student = Student(tiny_llama(0, initializer_range=0.02, **SIZE).requires_grad_(), "float32")
    rows = pairs()
    run = make_run(
        "dpo", rows, None, folder, batch_size=ROWS, epochs=2.0, lr=1e-4, note=said.append,
        runtime=Runtime(tokens_per_device=tokens), start_of=start_of(student.model, rows),
    )  # fmt: skip
    if rendezvous:
        number = int(os.environ["RANK"])
        torch.distributed.init_process_group("gloo", f"file://{rendezvous}", rank=number, world_size=2)
    ranks = Ranks.here()
    if more is not None:
        limit(more)
    try:
        outcome: dict[str, Any] = {"summary": train(student, run, ranks)}
        save_file({name: p.detach() for name, p in student.named_parameters()}, folder / "weights.safetensors")
    except AdpaError as error:
        outcome = {"error": error.message, "hint": error.hint}
    (folder / "told.json").write_text(json.dumps({**outcome, "said": said}))


def rank(number: int, *given: Any) -> None:
    os.environ.update({"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"})
    body(*given)


def block(folder: Path, stage: str) -> None:
    """A stage of inference: first in small blocks, until one is done, then in one block that does not fit."""
    module = importlib.import_module(f"adpa_cli.stages.{stage.replace('-', '_')}")
    model = Located("model", "model:tiny", "tiny", (str(BASES / "teacher"),))
    inputs = {
        "model": (model,),
        "aligned": (model,),
        "data": (Located("data", "data:p", "p", ("builtin:tiny-pairs",)),),
    }
    more = OWN.get(stage, {})
    said = ""
    for tokens in (256, 10**6):
        spec = {"template": TEMPLATE, "end": TINY_END, "dtype": "float32", "max_length": 128, "limit": 400, **more}
        work = folder / str(tokens)
        work.mkdir(parents=True)
        job = Job(stage, f"{stage}/test", {**spec, "block_tokens": tokens}, inputs, str(work), hints=HINTS)
        try:
            module.compute(job, Monitor(stop=lambda: "SIGTERM"))
        except AdpaError as error:
            said = f"{error.message} | {error.hint}"
        if tokens == 256:
            limit(2**25)  # loading the model once more starts threads, of 8 MB of address space each
    (folder / "told.json").write_text(json.dumps(said))


def forked(*calls: tuple[Callable[..., None], tuple[Any, ...]]) -> None:
    """Run some calls at once, each in a process of its own; all must end well."""
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=function, args=given) for function, given in calls]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        if child.is_alive():
            child.kill()
        if child.exitcode != 0:
            sys.exit(f"a child ended with {child.exitcode}")


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    forked((body, (folder / "small", WANTED // 4, None)))
    forked((body, (folder / "limited", WANTED, ROOM)))
    meet = str(folder / "rendezvous")
    forked(
        (rank, (0, folder / "rank0", WANTED // 2, None, meet)),
        (rank, (1, folder / "rank1", WANTED // 2, ROOM, meet)),
    )
    forked((body, (folder / "none", WANTED, 2**20)))
    for stage in ("rollout", "cache-teacher", "eval", "start-logps"):
        forked((block, (folder / stage, stage)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
