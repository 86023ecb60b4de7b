"""The training stages: `sft`, `dpo-teacher`, `reward-model`, `distill`. One body, for the method decides what it is."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adpa_cli.disk import write_json
from adpa_cli.engine import costs
from adpa_cli.errors import DataError
from adpa_cli.hub import External
from adpa_cli.sizes import Disk, Memory, Rows
from adpa_cli.spec import Runtime, TrainSpec, make
from adpa_cli.stages import Job, Lengths, Load, Monitor, Node, Stage, every, stored_words
from adpa_cli.stages._update import COMPUTED, first_steps, lost_update, rounds, share_words, update_of

if TYPE_CHECKING:
    from adpa_cli.data.chat import Encoder
    from adpa_cli.engine.adapters import Base
    from adpa_cli.engine.ranks import Ranks
    from adpa_cli.engine.sharding import WholeModel
    from adpa_cli.engine.training.checkpoint_selection import CheckpointSelection
    from adpa_cli.methods import Method, Need
    from adpa_cli.stages._training_inputs import Data

RESULT = "_result.json"
GAMMA_RATIO = 3.0  # γ × RMS(A) outside this factor of the tuned one is worth a warning


def compute(job: Job, monitor: Monitor, rank: int = 0, processes: int = 1) -> None:
    """Train, and leave a Hugging Face folder and metrics.jsonl in the work folder."""
    from adpa_cli.engine.device import forget_peak
    from adpa_cli.engine.layout.examples import encoder_of
    from adpa_cli.engine.ranks import Ranks
    from adpa_cli.engine.trackers import tracking
    from adpa_cli.engine.training import schedule
    from adpa_cli.engine.training.adapted import base_of
    from adpa_cli.engine.training.checkpoint_selection import CheckpointSelection
    from adpa_cli.engine.training.loop import Run, train
    from adpa_cli.engine.training.online import Online
    from adpa_cli.hub.model_folder import ModelFolder
    from adpa_cli.stages._training_inputs import gather, scaled_params

    spec = make(TrainSpec, job.spec)
    method = method_of(spec.method)
    params = scaled_params(job, spec, method)
    folder = job.one("model").path
    encoder = encoder_of(ModelFolder.of(folder).tokenizer, spec)
    data = gather(job, spec, method, params, encoder, monitor)
    rows, end = len(data.examples), spec.last_step(schedule.steps_of(len(data.examples), spec))
    held = validation(job, spec, encoder) if spec.select == "best" else None
    ranks = Ranks.here()
    student, whole, tuned = _placed_student(job, spec, encoder, data, ranks)
    base = base_of(folder, job.one("model").content, spec) if spec.lora else None
    inputs = (data.examples, data.online, spec, params, job.folder, job.runtime.tokens_per_device)
    feed = Online(student, ranks, *inputs) if data.online else None

    save_in = _saver(whole, encoder, folder, base)
    selection = CheckpointSelection(job.folder, student, ranks, save_in, held, spec.keep == "all")
    evaluated = schedule.evaluation_steps(rows, spec.batch_size, end) if held or spec.keep == "all" else frozenset()
    forget_peak(ranks.device)
    names, ref, logs, settings = job.tracked
    with tracking(names if ranks.is_first else [], ref, logs, settings, monitor.note) as track:
        run = Run(
            spec=spec, method=method, params=params, examples=data.examples, end_id=encoder.end_id, stage=job.stage,
            signal_of=data.signal_of, work=job.folder, runtime=job.runtime, progress=monitor.progress, track=track,
            look=first_steps(job, spec, whole.gathered, monitor, end), note=monitor.note, stop=monitor.stop,
            evaluation_steps=evaluated, evaluate=lambda step: track(step, selection.evaluate(step)), feed=feed,
            critic_lr=params.critic_lr if feed else 0.0, reward_of=data.reward_of, start_of=data.start_of,
        )  # fmt: skip
        summary = train(student, run, ranks)
    preferred = _preferred(job, spec, encoder, student, ranks) if method.scalar_head and not held else {}
    chosen = _kept_step(selection, base, end)
    if (model := whole.gathered()) is not None:
        write_json(job.folder / RESULT, {
            **preferred, **_selected(job, spec, chosen, bool(held), bool(evaluated)),
            **measured(job.folder, end, ranks.device.type), **_sizes(model, data),
            **({"runtime": tuned} if tuned else {}), **update_of(job, spec, model), "final": summary,
        })  # fmt: skip


def _placed_student(
    job: Job, spec: TrainSpec, encoder: Encoder, data: Data, ranks: Ranks
) -> tuple[Any, WholeModel, dict[str, Any]]:
    """The student where it trains, its weights shared out where that holds; the way to all of them; how it is tuned."""
    from adpa_cli.engine.sharding import WholeModel, share_out

    draws = bool(data.online) or "reward_model" in job.inputs
    costs.check_shared_out(spec, job.runtime, draws)
    is_shared = costs.is_shared_out(spec, job.runtime, ranks.count, draws)
    student, tuned = _student(job, spec, encoder, str(ranks.device), data)
    whole = WholeModel.of(student.model, ranks, is_shared)
    if is_shared:
        share_out(student, ranks)
    return student, whole, tuned


def _saver(whole: WholeModel, encoder: Encoder, source: Path, base: Base | None) -> Callable[[Path], None]:
    """Writes the model, or its adapter of a base, as it is by then, into a folder, with what its source says of
    itself."""
    from adpa_cli.engine.models import save

    text, end = encoder.template.text, encoder.template.end

    def save_in(folder: Path) -> None:
        if (model := whole.gathered()) is not None:
            save(model, encoder.tokenizer, folder, text, end, source, base)
            whole.forget()

    return save_in


def _kept_step(selection: CheckpointSelection, base: Base | None, end: int) -> int:
    """The step whose weights become those of the artifact: the best, or the last one."""
    from adpa_cli.engine.adapters import name_base

    if selection.measure is None:
        selection.save(selection.work)
        return end
    if not selection.ranks.is_first:
        return end
    step = selection.take_best()
    if base:
        name_base(selection.work, base)  # the folder of the best step lies deeper
    return step


def _sizes(model: Any, data: Data) -> dict[str, Any]:
    """How many examples and tokens there were, and how many parameters, of which so many trained if not all; what was
    cut, and what was said of the data."""
    from adpa_cli.engine.adapters import has_adapter
    from adpa_cli.engine.training.step_report import parameters_of

    trained = {"trained": parameters_of(model, trained=True)} if has_adapter(model) else {}
    return {
        "examples": len(data.examples), "parameters": parameters_of(model), **trained,
        "tokens": data.examples.tokens,
        **data.truncation, "notes": list(data.notes),
    }  # fmt: skip


def _selected(job: Job, spec: TrainSpec, step: int, held: bool, evaluated: bool) -> dict[str, Any]:
    """Which step's weights these are, if that was a choice; of a reward model that was selected also its scores."""
    from adpa_cli.engine.training.checkpoint_selection import records

    points = records(job.folder)
    scores = (
        next(point for point in points if point["step"] == step) if held and method_of(spec.method).scalar_head else {}
    )
    chosen = {"rule": spec.select, "step": step, "points": points}
    chosen |= {"prompts": spec.select_on} if spec.select == "best" else {}
    return {
        **{key: value for key, value in scores.items() if key != "step"},
        **({"selection": chosen} if evaluated or spec.select != "last" else {}),
    }


def _student(job: Job, spec: TrainSpec, encoder: Encoder, device: str, data: Data) -> tuple[Any, dict[str, Any]]:
    """What is trained on the data: the model, with a critic where answers are drawn online, or under a scalar head; and
    how it was tuned."""
    from adpa_cli.engine.layout.row_layout import packer_of
    from adpa_cli.engine.models import load_checked
    from adpa_cli.engine.rewards.reward_model import RewardModel, load_reward_model
    from adpa_cli.engine.training.adapted import load_adapted
    from adpa_cli.engine.training.optimizer import tune
    from adpa_cli.engine.training.student import Student, critic_of

    folder = job.one("model").path
    if method_of(spec.method).scalar_head:
        model = load_reward_model(folder, encoder.tokenizer, encoder.end_id, device, spec)
        tuned = tune(model, spec, job.runtime)
        return RewardModel(model, spec.dtype), tuned
    model = load_adapted(folder, spec, device) if spec.lora else load_checked(folder, train=True, device=device)
    packer = None
    if job.runtime.attention == "auto":
        lengths = data.examples.lengths
        # Answers that are drawn may be as long as max_length.
        longest = spec.max_length if data.online else int(lengths.max())
        packer = packer_of(model, spec.dtype, longest, float(lengths.mean()))
    tuned = tune(model, spec, job.runtime)
    student = Student(model, spec.dtype, critic_of(model, spec.dtype) if data.online else None)
    student.packer = packer
    return student, tuned


def _preferred(job: Job, spec: TrainSpec, encoder: Encoder, student: Any, ranks: Any) -> dict[str, Any]:
    """How often a finished reward model prefers the chosen of two held-out answers; nothing where none are."""
    try:
        held = validation(job, spec, encoder)
    except DataError:  # which says that the data have no held-out side
        return {}
    scores: dict[str, Any] = held.score(student, ranks)
    return scores


def finish(job: Job) -> dict[str, Any]:
    """The metrics of a finished training, with what to say of them and what to watch."""
    from adpa_cli.stages._training_inputs import rms_advantage

    metrics: dict[str, Any] = json.loads((job.folder / RESULT).read_text())
    metrics["memory"] = {"estimate": job.hints.get("memory"), **metrics["memory"]}
    spec, update = make(TrainSpec, job.spec), metrics.get("update", {})
    seen = share_words(update["seen"][COMPUTED]) if update and rounds(spec) else ""
    say = [f"computing in bfloat16 saw {seen} of what training changed"] if seen else []
    if spec.lora:
        say.append(f"{metrics['trained']:,} parameters trained beside {metrics['parameters'] - metrics['trained']:,}")
    watch = [*unequal_gradients(metrics.get("gradients", {})), *lost_update(update, job.stage, spec)]
    if job.spec.get("select") == "best":
        chosen = metrics["selection"]
        say.append(f"the best step is {chosen['step']} of {chosen['points'][-1]['step']}")
    sizes = [rms for cache in job.inputs.get("cache", ()) if (rms := rms_advantage(cache.path)) is not None]
    weight = job.spec["params"].get(method_of(job.spec["method"]).advantage_weight)
    if weight is not None and sizes:
        rms = 1.0 if job.spec["params"].get("unit") == "rms" else sizes[0]
        product = metrics["gamma_rms"] = weight * rms
        usual = job.hints["gamma_rms"]
        beside = f" (the family's: {usual:.3g})" if usual else ""
        say.append(f"γ × RMS of the advantage {product:.3g} nat{beside}")
        if usual and not usual / GAMMA_RATIO <= product <= usual * GAMMA_RATIO:
            watch.append(
                f"γ × RMS of the advantage is {product:.3g} where the family's γ was tuned at {usual:.3g}: "
                f"a good γ for one teacher is not one for another; try --set gamma={usual / rms:.2g}"
            )
    return {**metrics, **({"say": say} if say else {}), **({"watch": watch} if watch else {})}


GRADIENT_RATIO = 30.0
"""Times that the gradient of one term may exceed that of another before it is worth a warning."""


def measured(work: Path, step: int, device: str) -> dict[str, Any]:
    """From what a training left in `work` after `step` steps: `gradients` of the terms at the logits and `entropy` of
    the student's tokens, means over the steps where they were measured; `speed`; and `memory` in bytes."""
    from adpa_cli.engine.training.step_report import ENTROPY, GRADIENT, METRICS, Speed, StepLog

    log, speed = StepLog(work / METRICS, step, False), Speed.load(work)
    cells = [row["tokens"] / (1 - row["padding"]) for row in log.rows]
    padding = 1 - sum(row["tokens"] for row in log.rows) / max(1.0, sum(cells))
    summary = {"mfu": None, **speed.summary(), "padding": padding, "seconds": speed.seconds}
    means = {"gradients": log.measured(GRADIENT), "entropy": log.measured(ENTROPY)}
    return {
        **{name: values for name, values in means.items() if values},
        "speed": summary, "memory": {"peak": speed.memory, "device": device},
    }  # fmt: skip


def unequal_gradients(gradients: Mapping[str, float]) -> list[str]:
    """A warning where the gradients of two terms are of different scales: the smaller one hardly trains."""
    pulling = sorted((norm, name) for name, norm in gradients.items() if norm > 0)
    if len(pulling) < 2 or pulling[-1][0] <= GRADIENT_RATIO * pulling[0][0]:
        return []
    (least, weak), (most, strong) = pulling[0], pulling[-1]
    return [
        f"the gradient of {strong} is {most / least:.0f} times that of {weak} ({most:.2g} and {least:.2g} at the "
        f"logits): {weak} has almost no effect; change the weights of the two terms, or remove {weak}"
    ]


def validation(job: Job, spec: TrainSpec, encoder: Encoder) -> Any:
    """What scores a point: dialogues of `sft` by likelihood, pairs by preference, or answers by a reward model."""
    from adpa_cli.engine.layout import examples as ex
    from adpa_cli.engine.training.checkpoint_selection import HeldOut

    source, folder, half = job.one("data"), job.one("model").path, spec.select_on
    if "reward_model" in job.inputs:
        return reward_selection(job, spec, encoder)
    if every()[job.stage].reads == "pairs":
        return HeldOut(ex.pair_examples(spec, source, "test", folder, half), ("chosen", "rejected"))
    return HeldOut(ex.dialogues_for(spec, source, "test", folder, half)[0], ("chosen",))


def reward_selection(job: Job, spec: TrainSpec, encoder: Encoder) -> Any:
    """Greedy answers to each held-out prompt to select by once, judged by the reward model of the job."""
    from adpa_cli.engine.generation.sampling import Decoding, Sampling
    from adpa_cli.engine.layout import examples as ex
    from adpa_cli.engine.rewards.reward_model import reward_scores
    from adpa_cli.engine.training.checkpoint_selection import SCORE_TOKENS, RewardSelection
    from adpa_cli.hub.externals import prompts_of

    source = job.one("data")
    longest = spec.judged_tokens or spec.max_length
    ties = spec.select_on != "all"  # a prompt is judged though its answers in the data tie
    loaded = prompts_of(source.where, "test", spec.limit, spec.skip_bad_rows, spec.template, ties)
    items = loaded.items.of_half(spec.select_on, source.label)
    firsts = items.at(items.firsts("key"))
    asked = {ex.rollout_id(pair): pair for pair in firsts}
    prompts = ex.prompts_for(firsts, firsts.values("key"), encoder, spec, longest, source.label, job.stage)

    def rewards(answers: Mapping[str, Sequence[int]]) -> list[float]:
        dialogues = [(asked[name].prompt, encoder.decode(ids)) for name, ids in answers.items()]
        return reward_scores(job.one("reward_model"), dialogues, spec, SCORE_TOKENS)

    greedy = Sampling(0.0, 1.0, longest)
    ends = ex.end_ids(encoder, job.one("model").path)
    decoding = Decoding(greedy, ends, encoder.pad_id, spec.max_length, spec.dtype)
    return RewardSelection(prompts, rewards, decoding)


def method_of(name: str) -> Method:
    """A method by its name. Its file is read when it is asked for: lists of artifacts do not ask."""
    from adpa_cli.methods import load

    return load(name)


def method_names() -> tuple[str, ...]:
    """The names of all methods."""
    from adpa_cli.methods import names

    return names()


def needs_of(spec: TrainSpec) -> tuple[Need, ...]:
    """What the method of a training reads under its parameters."""
    method = method_of(spec.method)
    return method.needs_for(method.params(**spec.params))


def is_online(spec: TrainSpec) -> bool:
    """Whether a training draws answers while it goes on."""
    return any(need.online for need in needs_of(spec))


def rows(node: Node, lengths: Lengths) -> Rows:
    """Dialogues, or both answers of every pair with those that the method trains on besides."""
    spec = node.spec
    if node.declared.reads == "dialogues":
        return {"chosen": lengths.dialogues()}
    parts = lengths.pairs("train")
    if "rollouts" in node.inputs:
        answers, chosen = lengths.answers(), parts["chosen"]
        parts["rollout"] = chosen if not answers else chosen.answered(answers.totals.answer / len(answers))
    elif is_online(spec):  # guessed to be as long as the chosen ones
        parts["rollout"] = parts["chosen"]
    elif spec.source("rollout") != "rollout":
        parts["rollout"] = parts[spec.source("rollout")]
    return dict(parts)


def parts_of(spec: TrainSpec) -> tuple[str, ...]:
    """The parts of its rows where the data cannot be read yet."""
    return ("chosen", "rollout") if is_online(spec) else ("chosen", "rejected")


def _read(node: Node, load: Load) -> Rows:
    """Those of the rows that the method reads."""
    parts = {str(need.part) for need in needs_of(node.spec)}
    return {part: rows for part, rows in load.rows.items() if part in parts} or load.rows


def disk(node: Node, load: Load) -> Disk:
    """Of the checkpoint, of points that are kept, and of resume points meanwhile."""
    from adpa_cli.engine.training import schedule

    spec, count = node.spec, load.count
    steps = schedule.steps_of(count, spec)
    is_looked_at = spec.keep == "all" or spec.select == "best"
    points = len(schedule.evaluation_steps(count, spec.batch_size, steps)) if is_looked_at else 0
    every_steps = load.runtime.checkpoint_steps or schedule.half_epoch(count, spec.batch_size)
    saved = costs.trained_part(load.models[0], spec)
    return costs.training_disk(saved, steps, every_steps, points, spec.keep == "all", critic=is_online(spec))


def memory(node: Node, load: Load) -> Memory:
    """Of the largest micro-batch, with weights, gradients and moments."""
    spec = node.spec
    if is_online(spec):
        return costs.online_memory(load.models, _read(node, load), spec, load.runtime, load.where)
    caches = [item for role, item in node.flat_inputs() if role == "cache" and not isinstance(item, External)]
    ids = 1 + max((int(cache.values.get("top_k") or cache.values["samples"]) for cache in caches), default=0)
    return costs.training_memory(load.models[0], _read(node, load), spec, load.runtime, ids, load.where)


def check(spec: TrainSpec, runtime: Runtime) -> None:
    """Raise AdpaError where its weights are to be shared out and must be whole."""
    costs.check_shared_out(spec, runtime, is_online(spec))


def shares(spec: TrainSpec) -> bool:
    """Whether several processes can have a part each of the weights."""
    return costs.is_shared_out(spec, Runtime(), 2, is_online(spec))


def flops(node: Node, load: Load) -> float:
    """Of the passes over the rows, and of drawing answers where a method does."""
    from adpa_cli.engine.training.schedule import steps_of
    from adpa_cli.methods import passes_of

    spec, read = node.spec, _read(node, load)
    count, again = max(map(len, read.values()), default=0), passes_of(spec.method, spec.params)
    if not count:
        return 0.0
    passes = float(min(steps_of(count, spec) * spec.batch_size / count, spec.epochs * again))
    operations = costs.training_flops(load.models[0], read, passes, is_frozen=spec.lora is not None)
    if is_online(spec):
        operations += costs.online_flops(load.models, read["rollout"], passes, passes / again)
    return operations


def method_words(spec: TrainSpec) -> str:
    """A method with its one telling parameter, for people."""
    signs = {"gamma": "γ", "alpha": "α", "beta": "β"}
    scale = next((f" {sign} {spec.params[name]:g}" for name, sign in signs.items() if name in spec.params), "")
    on = f" on {spec.states} answers" if spec.states != method_of(spec.method).states else ""
    return f"{spec.method}{scale}{on}"


def adapter_words(spec: TrainSpec) -> str:
    """That a training makes an adapter, to stand behind what it does; "" where all weights are trained."""
    return f", lora {spec.lora}{stored_words(spec)}" if spec.lora else ""


def what(node: Node) -> str:
    """The method with its one telling parameter, and the model that it starts from."""
    return f"{method_words(node.spec)} from {node.label_of('model')}{adapter_words(node.spec)}"


def next_commands(name: str) -> list[str]:
    return [
        f"adpa chat {name}", f"adpa eval {name}", f"vllm serve $(adpa path {name})", f"adpa export {name} DIR --to hf",
        f"adpa show {name} --recipe > again.toml",
    ]  # fmt: skip


def next_of_reward_model(name: str) -> list[str]:
    return [
        f"adpa eval MODEL --reward-model {name}",
        f"adpa distill --method NAME --student MODEL --select best --reward-model {name}",
        f"adpa show {name} --recipe > again.toml",
    ]


SFT = Stage(
    "sft", 1, 1, TrainSpec, "training", "model", compute, finish, rows, disk, memory, flops,
    what=lambda node: f"{node.label_of('model')} on {node.label_of('data')}{adapter_words(node.spec)}",
    next_commands=next_commands, methods=lambda: ("sft",), reads="dialogues", parts=lambda spec: ("chosen",),
    check=check, shares=shares,
)  # fmt: skip
DPO_TEACHER = Stage(
    "dpo-teacher", 2, 1, TrainSpec, "training", "model", compute, finish, rows, disk, memory, flops,
    what=what, next_commands=next_commands, check=check, shares=shares, methods=lambda: ("dpo",), parts=parts_of,
)  # fmt: skip
REWARD_MODEL = Stage(
    "reward-model", 3, 1, TrainSpec, "training", "reward model", compute, finish, rows, disk, memory, flops,
    what=lambda node: f"reward model on {node.label_of('model')}{adapter_words(node.spec)}",
    next_commands=next_of_reward_model, check=check, shares=shares,
    methods=lambda: ("reward-model",), parts=parts_of,
)  # fmt: skip
DISTILL = Stage(
    "distill", 8, 1, TrainSpec, "training", "model", compute, finish, rows, disk, memory, flops,
    what=what, next_commands=next_commands, methods=method_names, any_method=True, parts=parts_of, is_result=True,
    check=check, shares=shares,
)  # fmt: skip
STAGES = (SFT, DPO_TEACHER, REWARD_MODEL, DISTILL)
