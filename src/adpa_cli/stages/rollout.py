"""The `rollout` stage: one answer to every prompt, in blocks that are computed whole."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from adpa_cli.disk import numbered, write_json
from adpa_cli.engine.costs import Held, generating_memory, rollout_disk
from adpa_cli.sizes import Disk, Memory, Rows, RowTable
from adpa_cli.spec import Dtype, Quantise, Split, make, quantise
from adpa_cli.stages import Job, Lengths, Load, Monitor, Node, Stage, stop_if_asked, stored_words

if TYPE_CHECKING:
    from adpa_cli.data.items import Items
    from adpa_cli.data.preferences import Pair

MADE = ("prompt_ids", "answer_ids", "text", "cut")


@dataclass(frozen=True)
class RolloutSpec:
    """One `rollout` stage: an answer to every prompt."""

    template: str
    end: str
    split: Split = "train"
    temperature: float = 0.0
    top_p: float = 1.0
    max_new_tokens: int = 1024
    max_length: int = 2048
    seed: int = 0
    dtype: Dtype = "bfloat16"
    engine: Literal["transformers"] = "transformers"
    block_tokens: int = 65536
    limit: int | None = None
    skip_bad_rows: bool = field(default=False, metadata={"neutral": False})
    smoke: bool = field(default=False, metadata={"neutral": False})
    quantise: Quantise | None = quantise()
    ties: bool = field(default=False, metadata={"neutral": False})
    """Whether prompts are answered whose answers in the data tie: a model can be measured on them, not trained."""

    def without_effect(self) -> set[str]:
        idle = {"ties"} if self.split == "train" else set()
        return {*idle, "seed", "top_p"} if self.temperature == 0 else idle


def compute(job: Job, monitor: Monitor, rank: int = 0, processes: int = 1) -> None:
    """Leave one `_block-NNNNNN.json` per finished block in the work folder; blocks that are there are kept."""
    from adpa_cli.engine.device import block_that_fits, device
    from adpa_cli.engine.generation.generate import generate_block
    from adpa_cli.engine.generation.sampling import Decoding, Sampling
    from adpa_cli.engine.layout.examples import end_ids
    from adpa_cli.engine.layout.micro_batches import longest_first
    from adpa_cli.engine.models import load_to_generate
    from adpa_cli.engine.overflow import overflow_named
    from adpa_cli.hub.model_folder import ModelFolder

    spec = make(RolloutSpec, job.spec)
    folder = job.one("model").path
    encoder, blocks = _blocks(job, spec, ModelFolder.of(folder).tokenizer)
    own = job.own(longest_first(blocks), rank, processes)
    mine = [block for block in own if not _path(job, block.index).exists()]
    if not mine:
        return
    model = load_to_generate(folder, spec.dtype, device(), spec.quantise)
    sampling = Sampling(spec.temperature, spec.top_p, spec.max_new_tokens, spec.seed)
    decoding = Decoding(sampling, end_ids(encoder, folder), encoder.pad_id, spec.max_length, spec.dtype)
    done = len(own) - len(mine)
    for n, block in enumerate(mine, 1):
        began = time.monotonic()
        prompts, ids = [item[1] for item in block.items], [item[0] for item in block.items]
        length = min(max(map(len, prompts)) + spec.max_new_tokens, spec.max_length)
        together = min(len(prompts), max(1, spec.block_tokens // length))
        with block_that_fits(job.stage, together, length), overflow_named(model, spec.dtype, job.stage):
            made = generate_block(model, prompts, ids, decoding, spec.block_tokens)
        rows = [
            {"id": row, "prompt_ids": list(prompt), "answer_ids": a.ids, "cut": a.cut, "text": encoder.decode(a.ids)}
            for row, prompt, a in zip(ids, prompts, made, strict=True)
        ]
        write_json(_path(job, block.index), rows)
        monitor.worked(time.monotonic() - began)
        tokens = sum(len(answer.ids) for answer in made) / len(made)
        monitor.progress(done + n, done + len(mine), {"tokens/answer": tokens})
        if n < len(mine):
            stop_if_asked(monitor, done + n, done + len(mine))


def missing(job: Job) -> int:
    """How many blocks are not there yet."""
    from adpa_cli.hub.model_folder import ModelFolder

    spec = make(RolloutSpec, job.spec)
    blocks = _blocks(job, spec, ModelFolder.of(job.one("model").path).tokenizer)[1]
    return sum(not _path(job, block.index).exists() for block in blocks)


def finish(job: Job) -> dict[str, Any]:
    """Put the blocks together, in the order of the data."""
    import numpy as np

    from adpa_cli.engine.layout.examples import ROWS, Rollout, rollouts_table, write_rollouts
    from adpa_cli.engine.layout.token_rows import rows_of

    spec, blocks = make(RolloutSpec, job.spec), numbered(job.folder, "_block-*.json")
    read = (row for path in blocks for row in json.loads(path.read_text(encoding="utf-8")))
    made = rollouts_table(Rollout(row["id"], (), *(row[name] for name in MADE)) for row in read)
    asked = _asked(job, spec)
    places = rows_of(asked.values("key"), made.table.values("id")).tolist()
    answered = (replace(made[place], prompt=pair.prompt) for place, pair in zip(places, asked, strict=True))
    write_rollouts(job.folder / ROWS, answered)
    lengths, cut = made.table.lengths("rollout")[places], made.table.values("cut")[places]
    return {
        "answers": len(lengths), "tokens": int(lengths.sum(dtype=np.int64)),
        "mean_tokens": int(lengths.sum(dtype=np.int64)) / len(lengths), "cut": int(cut.sum()) / len(cut),
        "blocks": len(blocks),
    }  # fmt: skip


def _path(job: Job, index: int) -> Any:
    return job.folder / f"_block-{index:06d}.json"


def _asked(job: Job, spec: RolloutSpec) -> Items[Pair]:
    """The first pair with each prompt, in the order of the data."""
    from adpa_cli.hub.externals import prompts_of

    ties = spec.ties and spec.split == "test"
    items = prompts_of(job.one("data").where, spec.split, spec.limit, spec.skip_bad_rows, spec.template, ties).items
    return items.at(items.firsts("key"))


def _blocks(job: Job, spec: RolloutSpec, tokenizer: Any) -> tuple[Any, Any]:
    import numpy as np

    from adpa_cli.engine.generation.generate import POOL
    from adpa_cli.engine.layout.examples import encoder_of, prompts_for
    from adpa_cli.engine.layout.micro_batches import mapped_blocks

    encoder, asked, label = encoder_of(tokenizer, spec), _asked(job, spec), job.one("data").label
    names = asked.values("key")
    prompts = prompts_for(asked, names, encoder, spec, spec.max_new_tokens, label, job.stage)
    lengths = np.minimum(prompts.lengths + spec.max_new_tokens, spec.max_length)
    return encoder, mapped_blocks(prompts, lengths, [names], POOL * spec.block_tokens)[0]


def rows(node: Node, lengths: Lengths) -> Rows:
    """A row for each prompt, with an answer that is not written yet: as long as the chosen one, where it may be."""
    import numpy as np

    spec, asked = node.spec, lengths.prompts(node.spec.split)
    room = np.maximum(1.0, spec.max_length - asked.prompts)
    return {"rollout": RowTable(asked.prompts, np.minimum(np.minimum(asked.answers, spec.max_new_tokens), room))}


def memory(node: Node, load: Load) -> Memory:
    """Of drawing answers in blocks."""
    spec, held = node.spec, Held.by(node.spec, load.runtime)
    return generating_memory(
        load.models[0], load.flat, held, spec.block_tokens, spec.max_new_tokens, spec.max_length, load.where
    )


def disk(node: Node, load: Load) -> Disk:
    """Of the answers."""
    return rollout_disk(load.flat, load.models[0].vocabulary)


def what(node: Node) -> str:
    """Whose answers they are, how they are drawn, and to which prompts."""
    how = f"temperature {node.spec.temperature:g}" if node.spec.temperature else "greedy"
    return f"by {node.label_of('model')}{stored_words(node.spec)}, {how}, {node.spec.split} prompts"


def next_commands(name: str) -> list[str]:
    return [f"adpa show {name} --row 1", f"adpa cache-teacher --teacher MODEL --rollouts {name}"]


ROLLOUT = Stage(
    "rollout", 5, 1, RolloutSpec, "generating", "answers", compute, finish, rows, disk, memory,
    what=what, next_commands=next_commands, reads="prompts", parts=lambda spec: ("rollout",),
    split=lambda spec: str(spec.split), vocabulary_of="model", follows=("limit", "max_length"), missing=missing,
)  # fmt: skip
STAGES = (ROLLOUT,)
