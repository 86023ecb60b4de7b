"""The `rollout` stage: one answer to every prompt, in blocks that are computed whole."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from adpa_cli.disk import numbered, write_json
from adpa_cli.endpoint import BASE_URL
from adpa_cli.engine.costs import Held, generating_memory, rollout_disk, scoring_in_turn
from adpa_cli.errors import UsageError
from adpa_cli.sizes import Disk, Memory, Rows, RowTable
from adpa_cli.spec import Dtype, Quantise, Runtime, Split, make, quantise
from adpa_cli.stages import (
    Job,
    Lengths,
    Load,
    Monitor,
    Node,
    Stage,
    _sharing,
    read_once_flops,
    stop_if_asked,
    stored_words,
)
from adpa_cli.store.build import LOG

if TYPE_CHECKING:
    from adpa_cli.data.items import Items
    from adpa_cli.data.preferences import Pair
    from adpa_cli.engine.generation.generate import Generated
    from adpa_cli.engine.generation.sampling import Decoding
    from adpa_cli.engine.layout.micro_batches import Block

    Drawn = Generator[tuple[Block[Any], list[Generated]], None, None]
    """Blocks of prompts, each with the answers to them."""

MADE = ("prompt_ids", "answer_ids", "text", "cut")
NONE = Memory(0, 0)
NO_SERVER = "rollout.engine=vllm needs the executable of vLLM, or the address of a server that runs"
SERVERS = f"add --set rollout.vllm=PATH, such as ~/vllm/bin/vllm; or {BASE_URL} http://HOST:8000"


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
    engine: Literal["hf", "vllm", "transformers"] = "transformers"
    """What draws the answers: the models of transformers, for which `hf` is short, or servers of vLLM."""
    block_tokens: int = 65536
    limit: int | None = None
    skip_bad_rows: bool = field(default=False, metadata={"neutral": False})
    smoke: bool = field(default=False, metadata={"neutral": False})
    quantise: Quantise | None = quantise()
    ties: bool = field(default=False, metadata={"neutral": False})
    """Whether prompts are answered whose answers in the data tie: a model can be measured on them, not trained."""
    engine_version: str = field(default="", metadata={"neutral": ""})
    """The release of vLLM: a plan asks the executable, or the servers, where nobody says."""
    vllm: str | None = field(default=None, metadata={"hashed": False})
    """The executable of vLLM that a server is started with."""

    def without_effect(self) -> set[str]:
        idle = {"ties"} if self.split == "train" else set()
        return {*idle, "seed", "top_p"} if self.temperature == 0 else idle

    def __post_init__(self) -> None:
        if self.engine == "hf":
            object.__setattr__(self, "engine", "transformers")
        said = [f"rollout.{name}={value}" for name in ("engine_version", "vllm") if (value := getattr(self, name))]
        if said and not self.is_served:
            raise UsageError(f"{said[0]} has no effect without vLLM", "add --set rollout.engine=vllm, or leave it out")
        if self.is_served and self.quantise:
            raise UsageError(
                f"quantise={self.quantise} is how this program holds weights, and vLLM draws the answers",
                "leave one of them out: --set rollout.quantise=none, or --set rollout.engine=hf",
            )
        if self.is_served and self.dtype == "tf32":
            raise UsageError("vLLM has no dtype tf32", "use --set rollout.dtype=float32, or --set rollout.engine=hf")

    @property
    def is_served(self) -> bool:
        """Whether servers of vLLM draw the answers."""
        return self.engine == "vllm"


def compute(job: Job, monitor: Monitor, rank: int = 0, processes: int = 1) -> None:
    """Leave one `_block-NNNNNN.json` per finished block in the work folder; blocks that are there are kept."""
    from adpa_cli.engine.generation.sampling import Decoding, Sampling
    from adpa_cli.engine.layout.examples import end_ids
    from adpa_cli.engine.layout.micro_batches import longest_first
    from adpa_cli.hub.model_folder import ModelFolder

    spec = make(RolloutSpec, job.spec)
    if spec.is_served:  # by one process, however many there are
        processes = 1
        if rank:
            return
    folder = job.one("model").path
    encoder, blocks = _blocks(job, spec, ModelFolder.of(folder).tokenizer)
    own = job.own(longest_first(blocks), rank, processes)
    mine = [block for block in own if not _path(job, block.index).exists()]
    if not _sharing.is_any_left(job, mine, processes):
        return
    sampling = Sampling(spec.temperature, spec.top_p, spec.max_new_tokens, spec.seed)
    decoding = Decoding(sampling, end_ids(encoder, folder), encoder.pad_id, spec.max_length, spec.dtype)
    done, draw = len(own) - len(mine), _by_servers if spec.is_served else _by_model
    together = _sharing.together(job, monitor, processes)
    with together as told, contextlib.closing(draw(job, told, spec, decoding, mine)) as drawn:
        for n, (block, made) in enumerate(drawn, done + 1):
            rows = [
                {
                    "id": row,
                    "prompt_ids": list(prompt),
                    "answer_ids": a.ids,
                    "cut": a.cut,
                    "text": encoder.decode(a.ids),
                }
                for (row, prompt), a in zip(block.items, made, strict=True)
            ]  # fmt: skip
            write_json(_path(job, block.index), rows)
            tokens = sum(len(answer.ids) for answer in made) / len(made)
            monitor.progress(n, len(own), {"tokens/answer": tokens})
            if n < len(own):
                stop_if_asked(told, n, len(own))


def _by_model(job: Job, monitor: Monitor, spec: RolloutSpec, decoding: Decoding, blocks: Sequence[Block[Any]]) -> Drawn:
    """Each block with its answers, drawn here."""
    from adpa_cli.engine.device import block_that_fits, device
    from adpa_cli.engine.generation.generate import generate_block
    from adpa_cli.engine.models import load_to_generate
    from adpa_cli.engine.overflow import overflow_named

    model = load_to_generate(job.one("model").path, spec.dtype, device(), spec.quantise)
    for block in blocks:
        began = time.monotonic()
        ids, prompts = zip(*block.items, strict=True)
        length = min(max(map(len, prompts)) + spec.max_new_tokens, spec.max_length)
        together = min(len(prompts), max(1, spec.block_tokens // length))
        with block_that_fits(job.stage, together, length), overflow_named(model, spec.dtype, job.stage):
            made = generate_block(model, prompts, ids, decoding, spec.block_tokens)
        monitor.worked(time.monotonic() - began)
        yield block, made


def _by_servers(
    job: Job, monitor: Monitor, spec: RolloutSpec, decoding: Decoding, blocks: Sequence[Block[Any]]
) -> Drawn:
    """Each block with its answers: from the servers that run, or from one that is started and ends with the stage."""
    from adpa_cli.engine.generation.vllm import Client
    from adpa_cli.engine.generation.vllm_server import Server, ready, started
    from adpa_cli.engine.scoring import scorer
    from adpa_cli.hub.model_folder import ModelFolder

    folder, urls = job.one("model").path, job.runtime.base_urls
    with contextlib.ExitStack() as stack:
        servers = [Server(url) for url in urls]
        if not urls:
            monitor.note("Starting vLLM; what it prints is in the log of the stage")
            servers = [stack.enter_context(started(
                str(job.hints["vllm"]), folder, spec.dtype, spec.max_length, job.folder / LOG,
                lambda: stop_if_asked(monitor, 0, len(blocks)),
            ))]  # fmt: skip
        known = [ready(server, spec.engine_version, spec.max_length) for server in servers]
        score = scorer(folder, spec.dtype, job.runtime.tokens_per_device) if urls else None
        client = Client(known, decoding, ModelFolder.of(folder).vocabulary, score)
        yield from client.drawn(blocks)


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
    """Of drawing answers in blocks, or of checking those of servers; what a server takes on this machine is its own."""
    if not node.spec.is_served:
        return drawing_memory(node, load)
    held, tokens = Held.by(node.spec, load.runtime, load.where), load.runtime.tokens_per_device
    return scoring_in_turn(load.models, load.rows, held, tokens, 1, load.where) if load.runtime.base_urls else NONE


def drawing_memory(node: Node, load: Load) -> Memory:
    """Of drawing answers in blocks."""
    spec, held = node.spec, Held.by(node.spec, load.runtime, load.where)
    return generating_memory(
        load.models[0], load.flat, held, spec.block_tokens, spec.max_new_tokens, spec.max_length, load.where
    )


def disk(node: Node, load: Load) -> Disk:
    """Of the answers."""
    return rollout_disk(load.flat, load.models[0].vocabulary)


def flops(node: Node, load: Load) -> float | None:
    """Of drawing them here; nobody can tell how long a server takes."""
    return None if node.spec.is_served else read_once_flops(node, load)


def check(spec: RolloutSpec, runtime: Runtime) -> None:
    """Raise UsageError where nothing says which servers draw the answers, or both things do that may, and AdpaError for
    what a model cannot be when processes share it out."""
    if not spec.is_served:
        _sharing.check(spec, runtime)
    if spec.is_served and not spec.vllm and not runtime.base_urls:
        raise UsageError(NO_SERVER, SERVERS)
    if spec.is_served and spec.vllm and runtime.base_urls:
        raise UsageError(
            f"rollout.vllm={spec.vllm} starts a server, and {BASE_URL} names servers that run", "leave one of them out"
        )


def what(node: Node) -> str:
    """Whose answers they are, how they are drawn, and to which prompts."""
    by = f" (vLLM {node.spec.engine_version})" if node.spec.is_served else ""
    how = f"temperature {node.spec.temperature:g}" if node.spec.temperature else "greedy"
    return f"by {node.label_of('model')}{stored_words(node.spec)}{by}, {how}, {node.spec.split} prompts"


def next_commands(name: str) -> list[str]:
    return [f"adpa show {name} --row 1", f"adpa cache-teacher --teacher MODEL --rollouts {name}"]


ROLLOUT = Stage(
    "rollout", 5, 1, RolloutSpec, "generating", "answers", compute, finish, rows, disk, memory, flops,
    what=what, check=check, next_commands=next_commands, reads="prompts", parts=lambda spec: ("rollout",),
    split=lambda spec: str(spec.split), vocabulary_of="model", follows=("limit", "max_length"), missing=missing,
    shares=lambda spec: not spec.is_served,
)  # fmt: skip
STAGES = (ROLLOUT,)
