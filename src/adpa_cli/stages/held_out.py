"""What a training is looked at with: its held-out rows, or a reward model that judges answers to their prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from adpa_cli.data.chat import Encoder
from adpa_cli.spec import TrainSpec
from adpa_cli.stages.job import Job


def held_out(job: Job, spec: TrainSpec, encoder: Encoder) -> Any:
    """What scores a point: dialogues of `sft` by likelihood, pairs by preference, or answers by a reward model."""
    from adpa_cli.engine.points import Held
    from adpa_cli.stages import examples as ex

    source = job.one("data")
    if "reward_model" in job.inputs:
        return judge(job, spec, encoder)
    if job.stage != "sft":
        return Held(ex.pair_examples(spec, source, "test", job.one("model").path), ("chosen", "rejected"))
    loaded = ex.dialogues_of(source.where, "test", spec.limit, spec.skip_bad_rows)
    return Held(ex.dialogue_examples(loaded.items, encoder, spec.max_length, source.label)[0], ("chosen",))


def judge(job: Job, spec: TrainSpec, encoder: Encoder) -> Any:
    """Greedy answers to each held-out prompt once, judged by the reward model of the job."""
    from adpa_cli.engine.judge import Judge
    from adpa_cli.engine.points import SCORE_TOKENS
    from adpa_cli.stages import examples as ex
    from adpa_cli.stages.judging import rewards_of

    source = job.one("data")
    longest = spec.judged_tokens or spec.max_length
    pairs = ex.pairs_of(source.where, "test", spec.limit, spec.skip_bad_rows).items
    asked = {ex.rollout_id(pair): pair for pair in reversed(pairs)}
    prompts = {
        name: ex.fitted_prompt(pair, encoder, spec, longest, source.label, job.stage) for name, pair in asked.items()
    }

    def rewards(answers: Mapping[str, Sequence[int]]) -> list[float]:
        dialogues = [(asked[name].prompt, encoder.decode(ids)) for name, ids in answers.items()]
        return rewards_of(job.one("reward_model"), dialogues, spec, SCORE_TOKENS, "")

    padding = encoder.tokenizer.pad_token_id
    pad_id = encoder.end_id if padding is None else padding
    return Judge(prompts, rewards, encoder.end_id, pad_id, longest, spec.max_length)
