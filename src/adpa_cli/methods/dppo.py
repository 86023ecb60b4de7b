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
    "token_reward_clip": "The paper names no bound; the code of RTO (Zhong et al. 2024), where the reward per token "
    "comes from, clips it to ±0.05.",
    "reward": "Both are the paper's: Eq. 29 (`token`), Eqs. 26-27 (`sequence`).",
}
NOTES = (
    "The constants of PPO are not in the paper but those of RTO's code. The critic starts as a copy of the start model "
    "under a head of zeros; it is no part of the artifact.",
    "Eq. 27 pays at the end token; an answer that was cut has none and is paid at its last token. `cut` in "
    "metrics.jsonl says how many were.",
    "The distance to the start model is part of the reward and is not differentiated.",
    "Log-probs are those at temperature 1, whatever answers are drawn at.",
    "Student, critic and their optimizers are in memory together; start model and teachers are loaded in turn each "
    "time that answers are drawn.",
)

Reward = Literal["token", "sequence"]


@dataclass(frozen=True)
class Params:
    """The reward, and the constants of PPO, which the paper does not give."""

    reward: Reward = param("token", "where the teachers' log-ratio is paid", choices=get_args(Reward), origin="paper")
    beta: float = param(0.05, "β of the reward and of its distance to the start", low=0.0, high=100.0, origin="paper")
    token_reward_clip: float | None = param(None, "greatest reward of one token, in nats", low=0.0, high=1000.0)
    rollout_batch: int = param(1024, "prompts answered at a time, in whole batches", low=1, high=1e6)
    ppo_epochs: int = param(1, "passes over the answers of one time", low=1, high=100)
    temperature: float = param(1.0, "of the answers", low=0.0, high=100.0)
    max_new_tokens: int = param(1024, "tokens of an answer at most", low=1, high=1e6)
    clip: float = param(0.2, "how far π/π_old may go from 1 and still count", low=0.0, high=10.0)
    value_clip: float = param(0.2, "how far a value may go from the old one and still count", low=0.0, high=1000.0)
    value_weight: float = param(1.0, "c_v: weight of the critic's error", low=0.0, high=1000.0)
    critic_lr: float = param(9e-6, "peak learning rate of the critic", low=0.0, high=10.0)
    discount: float = param(1.0, "of later rewards", low=0.0, high=1.0)
    gae_lambda: float = param(0.95, "λ of the advantage estimate", low=0.0, high=1.0)
    whiten: bool = param(True, "scale the advantages of one time to mean 0 and deviation 1")
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
