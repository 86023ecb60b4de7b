"""From a command to the stages it needs: what exists is reused, what is missing is built, inputs first.

Planning reads names, JSON and hashes only. No torch, transformers or datasets, so a repeated command is quick.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adpa_cli import methods
from adpa_cli.coerce import Auto, coerce
from adpa_cli.data.chat import DEFAULT_TEMPLATES
from adpa_cli.errors import UsageError
from adpa_cli.families import DATA_ALIASES, Alias, Family, stage_settings
from adpa_cli.hub import External
from adpa_cli.hub.externals import BUILTIN
from adpa_cli.hub.model_folder import end_token
from adpa_cli.lab import END, TEMPLATE
from adpa_cli.planning import lineage
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.planning.settings import Given, plain_spec, settable, train_spec, user_settings
from adpa_cli.spec import TrainSpec
from adpa_cli.stages import Input, Made, Node, in_order
from adpa_cli.stages.cache_teacher import CaptureSpec
from adpa_cli.stages.rewards import RewardsSpec
from adpa_cli.stages.rollout import RolloutSpec
from adpa_cli.stages.start_logps import StartSpec
from adpa_cli.store.store import Store

Template = tuple[str, str]


@dataclass(frozen=True)
class Plan:
    """What a command makes (`targets`, whose ids it prints), what it measures afterwards, and remarks for people."""

    targets: tuple[Node, ...]
    template: Template
    evals: tuple[Node, ...] = ()
    notes: tuple[str, ...] = ()

    def nodes(self, store: Store) -> list[Node]:
        """Every stage that is looked at, inputs before what uses them; nothing beneath what the store has."""
        return in_order((*self.targets, *self.evals), lambda node: store.get(node.label) is not None)


@dataclass(frozen=True)
class Planner:
    """Makes nodes for one command; `own` names the stages that bare settings belong to."""

    names: Names
    given: Given
    own: tuple[str, ...]

    def user(self, stage: str, method: str = "", seeded: bool = False) -> dict[str, Any]:
        """The user's settings of a stage."""
        own = stage in self.own
        values = user_settings(self.given, stage, method, own, seeded or own)
        # These two decide which answers a training reads, so what is made for it follows them.
        follows = stage in ("cache-teacher", "rollout", "rewards") or (stage == "eval" and not own)
        if self.given.limit is not None and (own or (follows and stage != "eval")):
            values.setdefault("limit", self.given.limit)
        drawn = self.given.by_stage.get("cache-teacher", {}).get("support") == "sampled"
        if drawn and stage == "distill" and "tail" in settable(stage, method):
            values.setdefault("tail", "sampled")
        if "max_length" in self.given.own and follows:
            values.setdefault("max_length", self.given.own["max_length"])
        return values

    def base(self, alias: Alias) -> External:
        return self.names.base(alias.model)

    def family_template(self, family: Family, base: Input) -> Template:
        """The base model's own template, else the family's."""
        own = lineage.template_of(base)
        if own is not None:
            return own
        if family.template == "tiny":
            return TEMPLATE, END
        if not isinstance(base, External):
            raise UsageError(f"{base.label} has no chat template", "start from a base model: adpa sft --model M")
        default = DEFAULT_TEMPLATES[family.template]
        return default.text, default.end or (end_token(Path(base.where[0])) if base.is_open else "")

    def sft(self, base: Input, data: External, family: Family, side: str, template: Template, role: str) -> Node:
        """Supervised fine-tuning of a base model on dialogues."""
        user = self.user("sft", "sft")
        asked = "sft" in self.own or "skip_bad_rows" in self.given.by_stage.get("sft", {})
        if not asked and data.label == DATA_ALIASES[family.sft_data].removeprefix(BUILTIN):
            # The flag is about data that the user named: no teacher is trained again because of it.
            user.pop("skip_bad_rows", None)
        spec = train_spec("sft", "sft", family, ("sft", f"sft.{side}"), user, template)
        return Node("sft", spec, {"model": base, "data": data}, role, f"{base.label} on {data.label}")

    def dpo_teacher(self, reference: Input, data: External, family: Family, template: Template) -> Node:
        """The aligned teacher, by DPO from the reference teacher."""
        user = self.user("dpo-teacher", "dpo")
        spec = train_spec("dpo-teacher", "dpo", family, ("dpo-teacher",), user, template)
        what = f"dpo β {spec.params['beta']:g} from {reference.label}"
        derived = self.derived("dpo-teacher", spec, reference, data, family)
        inputs: dict[str, Input | tuple[Input, ...]] = {"model": reference, "data": data}
        return Node("dpo-teacher", spec, inputs, "aligned teacher", what, derived=derived)

    def reward_model(self, model: Input, data: External, family: Family, template: Template) -> Node:
        """A scalar head on `model`, fitted to the preferences of `data`."""
        user = self.user("reward-model", "reward-model")
        spec = train_spec("reward-model", "reward-model", family, ("reward-model",), user, template)
        inputs: dict[str, Input | tuple[Input, ...]] = {"model": model, "data": data}
        return Node("reward-model", spec, inputs, "reward model", f"reward model on {model.label}")

    def rewards(self, judge: Input, data: External, family: Family, template: Template) -> Node:
        """What a reward model gives to both answers of every pair."""
        fixed = {"template": template[0], "end": template[1]}
        spec = plain_spec(RewardsSpec, "rewards", family, ("rewards",), self.user("rewards"), fixed)
        return Node("rewards", spec, {"reward_model": judge, "data": data}, "rewards", f"of pairs, by {judge.label}")

    def derived(self, stage: str, spec: TrainSpec, start: Input, data: External, family: Family) -> dict[str, Node]:
        """What a training reads that follows from its recipe: log-probs of its start, if its method compares with it.

        They are of both answers of every pair, whichever a method reads, so that all methods share them.
        """
        read = methods.load(spec.method)
        if not any(need.start for need in read.needs_for(read.params(**spec.params))):
            return {}
        parts = ("chosen", "rejected")
        same = ("template", "end", "dtype", "max_length", "limit", "skip_bad_rows", "smoke")
        fixed = {"parts": parts, **{name: getattr(spec, name) for name in same}}
        own = plain_spec(StartSpec, "start-logps", family, ("start-logps",), self.user("start-logps"), fixed)
        what = f"log-probs of {'+'.join(parts)}, under {start.label}"
        inputs: dict[str, Input | tuple[Input, ...]] = {"model": start, "data": data}
        return {"start-logps": Node("start-logps", own, inputs, "start log-probs", what, {"training": stage})}

    def capture(
        self,
        aligned: Input,
        reference: Input | None,
        answers: dict[str, Input],
        parts: Sequence[str],
        family: Family,
        template: Template,
        student: Input | None = None,
        name: str = "aligned",
        support: str = "topk",
    ) -> Node:
        """Signal of a teacher called `name` on the answers of `data` or of `rollouts`, on ids of `student`."""
        fixed: dict[str, Any] = {"parts": tuple(parts), "template": template[0], "end": template[1]}
        user = self.user("cache-teacher")
        if reference is None:
            if "cache-teacher" in self.own and "pair_precision" in user:
                raise UsageError("--pair-precision, and no reference teacher", "name one: --reference MODEL")
            fixed["pair_precision"] = None
        elif coerce(float | Auto, user.get("precision", 1), "precision") == 0:
            user.setdefault("pair_precision", 0)
        if support == "sampled":
            user.setdefault("support", support)
        if student is not None:
            fixed["student_vocab"] = lineage.smaller_vocabulary(student, aligned, self.names.store)
        spec = plain_spec(CaptureSpec, "cache-teacher", family, ("cache-teacher",), user, fixed)
        if reference is not None and spec.support == "sampled":
            raise UsageError(
                "support=sampled is of one teacher: an advantage needs both at the ids of a top k",
                "leave --reference away, or --set cache-teacher.support=topk",
            )
        inputs: dict[str, Input | tuple[Input, ...]] = {"aligned": aligned, **answers}
        if reference is not None:
            inputs["reference"] = reference
        who = f"{name}+reference" if reference else name
        on = "+".join(parts) if "data" in answers else f"rollouts {next(iter(answers.values())).label}"
        return Node("cache-teacher", spec, inputs, "signal", f"{who}, on {on}")

    def rollout(
        self,
        model: Input,
        data: External,
        family: Family,
        template: Template,
        split: str = "train",
        judged: bool = False,
    ) -> Node:
        """An answer of `model` to every prompt of one side of the data; `judged` when it is made for an evaluation."""
        keys = ("rollout", "eval.rollout") if judged else ("rollout",)
        user = self.user("rollout", seeded=True)
        if judged:
            # Drawn the same way for every model and seed of training, or their numbers could not be compared.
            user = {key: user[key] for key in ("max_length", "skip_bad_rows", "smoke") if key in user}
            if "eval" in self.own and self.given.limit is not None:
                user["limit"] = self.given.limit
        fixed = {"template": template[0], "end": template[1], "split": split}
        spec = plain_spec(RolloutSpec, "rollout", family, keys, user, fixed)
        how = f"temperature {spec.temperature:g}" if spec.temperature else "greedy"
        what = f"by {model.label}, {how}, {split} prompts"
        return Node("rollout", spec, {"model": model, "data": data}, "rollouts", what)

    def distill(
        self,
        method: str,
        start: Input,
        data: External,
        caches: Sequence[Made],
        rollouts: Made | None,
        family: Family,
        template: Template,
        others: Mapping[str, Input] | None = None,
    ) -> Node:
        """One training of the student with one method; `others` are what else it needs at hand, by role."""
        user = self.user("distill", method)
        spec = train_spec("distill", method, family, ("distill", f"distill.{method}"), user, template)
        inputs: dict[str, Input | tuple[Input, ...]] = {"model": start, "data": data}
        if caches:
            inputs["cache"] = tuple(caches)
        if rollouts is not None:
            inputs["rollouts"] = rollouts
        inputs |= others or {}
        if "reward_model" in inputs:
            spec = dataclasses.replace(spec, judged_tokens=judged_tokens(family))
        what = f"{method_words(spec)} from {start.label}"
        # Of the methods with a γ only this one's objective is γ times the advantage.
        hints = {"gamma_rms": family.gamma_rms} if method == "adpa" else {}
        derived = self.derived("distill", spec, start, data, family)
        return Node("distill", spec, inputs, f"distill {method}", what, hints, derived)

    # Models by the role that an option asks for.

    def sft_of(self, alias: Alias, sft_data: External, template: Template) -> Node:
        """The fine-tuned model of one side of a family."""
        role = "student" if alias.side == "student" else "reference teacher"
        return self.sft(self.base(alias), sft_data, alias.family, alias.side, template, role)

    def family_data(self, texts: Sequence[str], family: Family, kind: str) -> External:
        """The given data, else the family's."""
        return self.names.data(tuple(texts) or ((family.sft_data if kind == "sft" else family.data),))


def judged_tokens(family: Family) -> int:
    """How long an answer may be that a family has judged."""
    return int(stage_settings(family, "rollout", "eval.rollout").get("max_new_tokens", RolloutSpec.max_new_tokens))


def method_words(spec: Any) -> str:
    """A method with its one telling parameter, for people."""
    signs = (("gamma", "γ"), ("alpha", "α"), ("beta", "β"))
    found = [f" {sign} {spec.params[name]:g}" for name, sign in signs if name in spec.params]
    on = f" on {spec.states} answers" if spec.states != methods.load(spec.method).states else ""
    return f"{spec.method}{found[0] if found else ''}{on}"
