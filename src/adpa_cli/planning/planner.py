"""From a command to the stages it needs: what exists is reused, what is missing is built, inputs first.

Planning reads names, JSON and hashes only. No torch, transformers or datasets, so a repeated command is quick.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from adpa_cli import methods, stages
from adpa_cli.coerce import Auto, coerce
from adpa_cli.data.chat import DEFAULT_TEMPLATES
from adpa_cli.errors import UsageError
from adpa_cli.families import DATA_ALIASES, Alias, Family, stage_settings
from adpa_cli.hub import External
from adpa_cli.hub.externals import BUILTIN
from adpa_cli.hub.model_folder import ModelFolder
from adpa_cli.lab import END, TEMPLATE
from adpa_cli.planning import lineage
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.planning.settings import Given, plain_spec, train_spec, user_settings
from adpa_cli.spec import TrainSpec
from adpa_cli.stages import Input, Made, Node, in_order
from adpa_cli.stages.cache_teacher import CACHE_TEACHER, CaptureSpec
from adpa_cli.stages.eval import EVAL
from adpa_cli.stages.rewards import REWARDS, RewardsSpec
from adpa_cli.stages.rollout import ROLLOUT, RolloutSpec
from adpa_cli.stages.start_logps import START_LOGPS, StartSpec
from adpa_cli.stages.training import DISTILL, DPO_TEACHER, REWARD_MODEL, SFT
from adpa_cli.store.store import Store

Template = tuple[str, str]
JUDGED = f"{EVAL.name}.{ROLLOUT.name}"
"""A family's settings of the answers that are judged."""


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
    """Makes nodes for one command; `own` is the stage that it is about, to which bare settings belong."""

    names: Names
    given: Given
    own: str

    def user(self, stage: str, method: str = "", seeded: bool = False) -> dict[str, Any]:
        """The user's settings of a stage."""
        own, follows = stage == self.own, stages.every()[stage].follows
        values = user_settings(self.given, stage, method, own, seeded or own)
        if self.given.limit is not None and (own or "limit" in follows):
            values.setdefault("limit", self.given.limit)
        if "max_length" in self.given.own and "max_length" in follows:
            values.setdefault("max_length", self.given.own["max_length"])
        drawn = self.given.by_stage.get(CACHE_TEACHER.name, {}).get("support") == "sampled"
        return {**(methods.load(method).sampled if drawn and method else {}), **values}

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
        return default.text, default.end or (ModelFolder.of(Path(base.where[0])).end_token if base.is_open else "")

    def sft(self, base: Input, data: External, family: Family, side: str, template: Template, role: str) -> Node:
        """Supervised fine-tuning of a base model on dialogues."""
        (method,) = SFT.methods()
        user = self.user(SFT.name, method)
        asked = SFT.name == self.own or "skip_bad_rows" in self.given.by_stage.get(SFT.name, {})
        if not asked and data.label == DATA_ALIASES[family.sft_data].removeprefix(BUILTIN):
            # The flag is about data that the user named: no teacher is trained again because of it.
            user.pop("skip_bad_rows", None)
        spec = train_spec(SFT.name, method, family, (SFT.name, f"{SFT.name}.{side}"), user, template)
        return Node(SFT.name, spec, {"model": base, "data": data}, role, f"{base.label} on {data.label}")

    def dpo_teacher(self, reference: Input, data: External, family: Family, template: Template) -> Node:
        """The aligned teacher, by DPO from the reference teacher."""
        (method,) = DPO_TEACHER.methods()
        stage, user = DPO_TEACHER.name, self.user(DPO_TEACHER.name, method)
        spec = train_spec(stage, method, family, (stage,), user, template)
        what = f"{method_words(spec)} from {reference.label}"
        derived = self.derived(stage, spec, reference, data, family)
        return Node(stage, spec, {"model": reference, "data": data}, "aligned teacher", what, derived=derived)

    def reward_model(self, model: Input, data: External, family: Family, template: Template) -> Node:
        """A scalar head on `model`, fitted to the preferences of `data`."""
        (method,) = REWARD_MODEL.methods()
        stage, user = REWARD_MODEL.name, self.user(REWARD_MODEL.name, method)
        spec = train_spec(stage, method, family, (stage,), user, template)
        return Node(stage, spec, {"model": model, "data": data}, "reward model", f"reward model on {model.label}")

    def rewards(self, judge: Input, data: External, family: Family, template: Template) -> Node:
        """What a reward model gives to both answers of every pair."""
        stage, fixed = REWARDS.name, {"template": template[0], "end": template[1]}
        spec = plain_spec(RewardsSpec, stage, family, (stage,), self.user(stage), fixed)
        return Node(stage, spec, {"reward_model": judge, "data": data}, "rewards", f"of pairs, by {judge.label}")

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
        name = START_LOGPS.name
        own = plain_spec(StartSpec, name, family, (name,), self.user(name), fixed)
        what = f"log-probs of {'+'.join(parts)}, under {start.label}"
        inputs: dict[str, Input | tuple[Input, ...]] = {"model": start, "data": data}
        return {name: Node(name, own, inputs, "start log-probs", what, {"training": stage})}

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
        support: methods.Support = "topk",
    ) -> Node:
        """Signal of a teacher called `name` on the answers of `data` or of `rollouts`, on ids of `student`."""
        fixed: dict[str, Any] = {"parts": tuple(parts), "template": template[0], "end": template[1]}
        stage, user = CACHE_TEACHER.name, self.user(CACHE_TEACHER.name)
        if reference is None:
            if stage == self.own and "pair_precision" in user:
                raise UsageError("--pair-precision, and no reference teacher", "name one: --reference MODEL")
            fixed["pair_precision"] = None
        elif coerce(float | Auto, user.get("precision", 1), "precision") == 0:
            user.setdefault("pair_precision", 0)
        if support == "sampled":
            user.setdefault("support", support)
        if student is not None:
            fixed["student_vocab"] = lineage.smaller_vocabulary(student, aligned, self.names.store)
        spec = plain_spec(CaptureSpec, stage, family, (stage,), user, fixed)
        if reference is not None and spec.support == "sampled":
            raise UsageError(
                "support=sampled is of one teacher: an advantage needs both at the ids of a top k",
                f"leave --reference away, or --set {stage}.support=topk",
            )
        inputs: dict[str, Input | tuple[Input, ...]] = {"aligned": aligned, **answers}
        if reference is not None:
            inputs["reference"] = reference
        who = f"{name}+reference" if reference else name
        on = "+".join(parts) if "data" in answers else f"rollouts {next(iter(answers.values())).label}"
        return Node(stage, spec, inputs, "signal", f"{who}, on {on}")

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
        stage = ROLLOUT.name
        keys = (stage, JUDGED) if judged else (stage,)
        user = self.user(stage, seeded=True)
        if judged:
            # Drawn the same way for every model and seed of training, or their numbers could not be compared.
            user = {key: user[key] for key in ("max_length", "skip_bad_rows", "smoke") if key in user}
            if EVAL.name == self.own and self.given.limit is not None:
                user["limit"] = self.given.limit
        fixed = {"template": template[0], "end": template[1], "split": split}
        spec = plain_spec(RolloutSpec, stage, family, keys, user, fixed)
        how = f"temperature {spec.temperature:g}" if spec.temperature else "greedy"
        what = f"by {model.label}, {how}, {split} prompts"
        return Node(stage, spec, {"model": model, "data": data}, "rollouts", what)

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
        stage, user = DISTILL.name, self.user(DISTILL.name, method)
        spec = train_spec(stage, method, family, (stage, f"{stage}.{method}"), user, template)
        inputs: dict[str, Input | tuple[Input, ...]] = {"model": start, "data": data}
        if caches:
            inputs["cache"] = tuple(caches)
        if rollouts is not None:
            inputs["rollouts"] = rollouts
        inputs |= others or {}
        if "reward_model" in inputs:
            spec = dataclasses.replace(spec, judged_tokens=judged_tokens(family))
        what = f"{method_words(spec)} from {start.label}"
        hints = {"gamma_rms": family.gamma_rms} if methods.load(method).advantage_weight else {}
        derived = self.derived(stage, spec, start, data, family)
        return Node(stage, spec, inputs, f"{stage} {method}", what, hints, derived)

    # Models by the role that an option asks for.

    def sft_of(self, alias: Alias, sft_data: External, template: Template) -> Node:
        """The fine-tuned model of one side of a family."""
        role = "student" if alias.side == "student" else "reference teacher"
        return self.sft(self.base(alias), sft_data, alias.family, alias.side, template, role)

    def family_data(self, texts: Sequence[str], family: Family, kind: Literal["dialogues", "pairs"]) -> External:
        """The given data, else the family's."""
        return self.names.data(tuple(texts) or ((family.sft_data if kind == "dialogues" else family.data),))


def judged_tokens(family: Family) -> int:
    """How long an answer may be that a family has judged."""
    return int(stage_settings(family, ROLLOUT.name, JUDGED).get("max_new_tokens", RolloutSpec.max_new_tokens))


def method_words(spec: Any) -> str:
    """A method with its one telling parameter, for people."""
    signs = (("gamma", "γ"), ("alpha", "α"), ("beta", "β"))
    found = [f" {sign} {spec.params[name]:g}" for name, sign in signs if name in spec.params]
    on = f" on {spec.states} answers" if spec.states != methods.load(spec.method).states else ""
    return f"{spec.method}{found[0] if found else ''}{on}"
