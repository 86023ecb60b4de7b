"""DPPO: reinforcement learning on the teachers' implicit reward, with answers drawn while the student trains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from adpa_cli.methods import Need, Part, Term, View, param, required

VERSION = 1
SOURCE = "Gao et al. 2025, section 4.4 and Eqs. 26-29"
SUMMARY = "PPO on the log-ratio of the two teachers, paid per token or per answer"
FORMULA = (
    "L_SFT(y_w) + mean_t -min(ρ Â, clip(ρ) Â) + c_v mean_t ½(V - R)² on answers drawn from π, "
    "r_t = β log π_aligned/π_reference - β log π_old/π_start, Â by GAE"
)
NEEDS = (Need("chosen"), Need("rollout", online=True))
PASSES = "ppo_epochs"
TEACHERS_BETA = "beta"
READINGS = {
    "token_reward_clip": (
        "The paper gives no limit. The code of RTO (Zhong et al. 2024), from which the paper takes its reward per "
        "token, limits it to ±0.05."
    ),
    "reward": "The paper has both: Eq. 29 (`token`) and Eqs. 26-27 (`sequence`).",
}
NOTES = (
    (
        "The paper does not give the constants of PPO. They are those of RTO's code. The critic starts as a copy of "
        "the start model with a head of zeros, and is not part of the artifact."
    ),
    (
        "Eq. 27 gives the reward at the end token. An answer that was cut has none, and gets its reward at its last "
        "token. `cut` in metrics.jsonl says how many answers were cut."
    ),
    "The distance to the start model is part of the reward. It is not differentiated.",
    "Log-probs are those at temperature 1, whatever `temperature` the answers are generated with.",
    (
        "Student, critic and their optimizers are in memory at the same time. The start model and the teachers are "
        "loaded one after the other, each time that answers are generated."
    ),
)

Reward = Literal["token", "sequence"]


@dataclass(frozen=True)
class Params:
    """The reward, and the constants of PPO, which the paper does not give."""

    reward: Reward = param(
        "token",
        "where the reward is given: at each token, or once per answer",
        choices=get_args(Reward),
        origin="paper",
    )
    beta: float = param(
        0.05, "β of the reward and of the distance to the start model", low=0.0, high=100.0, origin="paper"
    )
    token_reward_clip: float | None = param(None, "largest absolute reward of one token, in nats", low=0.0, high=1000.0)
    rollout_batch: int = param(1024, "prompts answered before each update phase, in whole batches", low=1, high=1e6)
    ppo_epochs: int = param(1, "passes over the answers of each update phase", low=1, high=100)
    temperature: float = param(1.0, "sampling temperature of the answers", low=0.0, high=100.0)
    max_new_tokens: int = param(1024, "largest number of tokens of an answer", low=1, high=1e6)
    clip: float = param(0.2, "distance of π/π_old from 1 beyond which the gradient is cut off", low=0.0, high=10.0)
    value_clip: float = param(
        0.2, "distance of a value from the old one beyond which the gradient is cut off", low=0.0, high=1000.0
    )
    value_weight: float = param(1.0, "c_v: weight of the critic's error", low=0.0, high=1000.0)
    critic_lr: float = param(9e-6, "peak learning rate of the critic", low=0.0, high=10.0)
    discount: float = param(1.0, "discount factor of later rewards", low=0.0, high=1.0)
    gae_lambda: float = param(0.95, "λ of the advantage estimate", low=0.0, high=1.0)
    whiten: bool = param(True, "scale the advantages of each update phase to mean 0 and standard deviation 1")
    sft_weight: float = param(1.0, "weight of -log π(y_t) on chosen answers", low=0.0, high=1000.0, origin="paper")


def terms(views: Mapping[Part, View], p: Params) -> tuple[Term, ...]:
    """-log π(y_t) at chosen tokens; the clipped objective and the critic's error at the drawn ones."""
    from adpa_cli.tensors.ppo import actor_loss, critic_loss

    drawn = views["rollout"]
    then = required(drawn.experience)
    error = critic_loss(required(drawn.values), then.values, then.returns, p.value_clip)
    return (
        Term("sft", -views["chosen"].logps, "chosen", p.sft_weight),
        Term("actor", actor_loss(drawn.logps, then.logps, then.advantages, p.clip), "rollout"),
        Term("critic", error, "rollout", p.value_weight),
    )
