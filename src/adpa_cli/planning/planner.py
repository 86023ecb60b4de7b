"""The nodes of a command: one method of `Planner` for each stage, with its spec and inputs. Together they are a `Plan`.

Planning reads names, JSON and hashes only. No torch, transformers or datasets, so a repeated command is quick.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from adpa_cli import methods
from adpa_cli.coerce import Auto, coerce
from adpa_cli.data.templates import TEMPLATES, Template
from adpa_cli.errors import UsageError
from adpa_cli.families import DATA_ALIASES, Alias, Family
from adpa_cli.hub import External
from adpa_cli.hub.externals import BUILTIN
from adpa_cli.hub.model_folder import ModelFolder
from adpa_cli.lab import END, TEMPLATE
from adpa_cli.planning import lineage
from adpa_cli.planning.adapters import adapter_of
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.planning.served import by_vllm
from adpa_cli.planning.settings import (
    EVAL_ROLLOUT,
    UserSettings,
    plain_spec,
    settable,
    train_spec,
    user_settings,
)
from adpa_cli.spec import TrainSpec
from adpa_cli.stages import Input, Node, Stage, in_order
from adpa_cli.stages.cache_teacher import CACHE_TEACHER, CaptureSpec
from adpa_cli.stages.eval import EVAL
from adpa_cli.stages.rewards import REWARDS, RewardsSpec
from adpa_cli.stages.rollout import ROLLOUT, RolloutSpec
from adpa_cli.stages.start_logps import START_LOGPS, StartSpec
from adpa_cli.stages.training import DPO_TEACHER, REWARD_MODEL, SFT
from adpa_cli.store.store import Store
from adpa_cli.suites import Suite

Inputs = dict[str, Input | tuple[Input, ...]]


@dataclass(frozen=True)
class Plan:
    """What a command makes (`targets`, whose ids it prints), what it measures afterwards, and remarks for people.

    `ignored` are the columns of data that may stay unread.
    """

    targets: tuple[Node, ...]
    template: Template
    evals: tuple[Node, ...] = ()
    notes: tuple[str, ...] = ()
    ignored: frozenset[str] = frozenset()

    def nodes(self, store: Store) -> list[Node]:
        """Every stage that is looked at, inputs before what uses them; nothing beneath what the store has."""
        return in_order((*self.targets, *self.evals), lambda node: store.get(node.label) is not None)

    def typed(self, node: Node, user: UserSettings) -> Mapping[str, Any]:
        """What a user typed for a stage: by its name, or without one where the command is about it."""
        bare = user.bare if any(node.stage == target.stage for target in self.targets) else {}
        return {**bare, **user.by_stage.get(node.stage, {})}


ADAPTER_RATE = 10
"""Times the learning rate of all weights that adapters usually take (Schulman et al. 2025, LoRA Without Regret)."""


def rate_notes(plan: Plan, user: UserSettings, store: Store) -> tuple[str, ...]:
    """What is said of adapters that are to be trained at the learning rate of all weights, for the user set none."""
    said = []
    for node in plan.nodes(store):
        is_usual = "lr" not in plan.typed(node, user)
        if isinstance(node.spec, TrainSpec) and node.spec.lora and is_usual and not store.get(node.label):
            rate = f"--set {node.stage}.lr={ADAPTER_RATE * node.spec.lr:g}"
            said.append(
                f"{node.stage} trains an adapter at lr={node.spec.lr:g}, a rate for training all weights; "
                f"adapters usually need about ten times as much: {rate}"
            )
    return tuple(dict.fromkeys(said))


@dataclass(frozen=True)
class Model:
    """A model, the family whose settings hold for what is made with it, and the chat template that goes with it."""

    input: Input
    family: Family
    template: Template


@dataclass(frozen=True)
class Teachers:
    """The aligned teacher, the model it was aligned from (None where nothing tells), their family and template."""

    aligned: Input
    reference: Input | None
    family: Family
    template: Template
    notes: tuple[str, ...] = ()
    """Remarks on the two for people."""


@dataclass(frozen=True)
class Planner:
    """Makes nodes for one command; `stage` is the one that it is about, to which bare settings belong.

    `pairs` and `dialogues` are the data sources that were named, none where the family's are meant.
    """

    names: Names
    user: UserSettings
    stage: str
    pairs: Sequence[str] = ()
    dialogues: Sequence[str] = ()
    preset: Mapping[str, Any] = field(default_factory=dict)
    """What the preset of a training says of what it reads, unless the user says otherwise."""

    def settings(self, stage: str, method: str = "", seeded: bool = False) -> dict[str, Any]:
        """The user's settings of a stage."""
        return user_settings(self.user, stage, method, self.stage, seeded)

    # What a name or a family stands for.

    def base(self, alias: Alias, template: Template | None = None) -> Model:
        """The base model of an alias, under that template or its own."""
        base = self.names.base(alias.model)
        return Model(base, alias.family, template or self.template(alias.family, base))

    def template(self, family: Family, base: Input) -> Template:
        """The base model's own template, else the family's."""
        choice = self.user.templates
        if template := lineage.template_of(base, choice):
            return template
        if family.template == "tiny":
            return choice.applied(Template(TEMPLATE, END), {})
        if not isinstance(base, External):
            raise lineage.missing_template(base.label, "start from a base model: adpa sft --model M")
        if not family.template:
            raise lineage.missing_template(base.label, "name one: --template NAME|FILE")
        default = TEMPLATES[family.template]
        end = default.end or (ModelFolder.of(Path(base.where[0])).end_token if base.is_open else "")
        return choice.applied(Template(default.text, end), {"eos_token": choice.end or end})

    def pairs_of(self, family: Family) -> External:
        """The preference data that were named, else the family's."""
        return self.names.data(self.pairs or (family.data,))

    def dialogues_of(self, family: Family) -> External:
        """The data of fine-tuning that were named, else the family's."""
        return self.names.data(self.dialogues or (family.sft_data,))

    def fine_tuned(self, alias: Alias, template: Template | None = None) -> Model:
        """The fine-tuned model of one side of a family; of a family of instruct models the model as it is."""
        if alias.family.instruct:
            own = self.base(alias)
            lineage.same_template(template or own.template, own.input, alias.side, self.user.templates)
            return replace(own, template=template or own.template)
        base = self.base(alias, template)
        node = self.sft(base, self.dialogues_of(alias.family), alias.side, SIDES[alias.side])
        return replace(base, input=node)

    # One node a stage.

    def sft(self, base: Model, data: External, side: str, role: str) -> Node:
        """Supervised fine-tuning of a base model on dialogues."""
        (method,) = SFT.methods()
        user = self.settings(SFT.name, method)
        is_named = SFT.name == self.stage or "skip_bad_rows" in self.user.by_stage.get(SFT.name, {})
        if not is_named and data.label == DATA_ALIASES[base.family.sft_data].removeprefix(BUILTIN):
            # The flag is about data that the user named: no teacher is trained again because of it.
            user.pop("skip_bad_rows", None)
        spec = train_spec(SFT.name, method, base.family, (SFT.name, f"{SFT.name}.{side}"), user, base.template)
        return Node(SFT.name, spec, {"model": base.input, "data": data}, role)

    def dpo_teacher(self, reference: Model, data: External) -> Node:
        """The aligned teacher, by DPO from the reference teacher."""
        spec = self._train_spec(DPO_TEACHER, reference)
        derived = self.derived(DPO_TEACHER.name, spec, reference, data)
        inputs = {"model": reference.input, "data": data}
        return Node(DPO_TEACHER.name, spec, inputs, "aligned teacher", derived=derived)

    def reward_model(self, model: Model, data: External) -> Node:
        """A scalar head on a model, fitted to the preferences of `data`."""
        inputs = {"model": model.input, "data": data}
        return Node(REWARD_MODEL.name, self._train_spec(REWARD_MODEL, model), inputs, "reward model")

    def _train_spec(self, stage: Stage, start: Model) -> TrainSpec:
        """The spec of a training whose stage has one method."""
        (method,) = stage.methods()
        user = self.settings(stage.name, method)
        return train_spec(stage.name, method, start.family, (stage.name,), user, start.template)

    def rewards(self, reward_model: Model, data: External, split: str = "train") -> Node:
        """What a reward model gives to both answers of every pair of one side of the data."""
        user = {**self.preset, **self.settings(REWARDS.name)}
        fixed = {**_fixed(reward_model), "split": split}
        spec = plain_spec(RewardsSpec, REWARDS.name, reward_model.family, user, **fixed)
        inputs = {"reward_model": reward_model.input, "data": data}
        return Node(REWARDS.name, spec, inputs, "rewards")

    def derived(self, stage: str, spec: TrainSpec, start: Model, data: External) -> dict[str, Node]:
        """What a training reads that follows from its recipe: log-probs of its start, if its method compares with it.

        They are of both answers of every pair, whichever a method reads, so that all methods share them.
        """
        method = methods.load(spec.method)
        if not any(need.start for need in method.needs_for(method.params(**spec.params))):
            return {}
        parts = ("chosen", "rejected")
        shared = ("template", "end", "dtype", "max_length", "truncation", "limit", "skip_bad_rows", "smoke", "quantise")
        is_merged = not spec.lora and adapter_of(start.input, self.names.store) is not None
        fixed = {"parts": parts, "merged": is_merged, **{name: getattr(spec, name) for name in shared}}
        name = START_LOGPS.name
        start_spec = plain_spec(StartSpec, name, start.family, self.settings(name), **fixed)
        inputs = {"model": start.input, "data": data}
        return {name: Node(name, start_spec, inputs, "start log-probs", hints={"training": stage})}

    def capture(
        self,
        teachers: Teachers,
        answers: Mapping[str, Input],
        parts: Sequence[str],
        student: Input | None = None,
        name: str = "aligned",
        support: methods.Support = "topk",
        exact: bool = False,
    ) -> Node:
        """Signal of a teacher called `name`, or of the pair, on the answers of `data` or of `rollouts`.

        Its ids are those of `student`, where one is to learn from it; `exact` where it should not be rounded.
        """
        aligned, reference = teachers.aligned, teachers.reference
        fixed: dict[str, Any] = {"parts": tuple(parts), **_fixed(teachers)}
        stage = CACHE_TEACHER.name
        user = {**self.preset, **({"precision": 0} if exact else {}), **self.settings(stage)}
        if reference is None:
            if stage == self.stage and "pair_precision" in user:
                raise UsageError(
                    "--pair-precision needs a reference teacher, and none is named",
                    "name one: --reference MODEL",
                )
            fixed["pair_precision"] = None
        elif coerce(float | Auto, user.get("precision", 1), "precision") == 0:
            user.setdefault("pair_precision", 0)
        if support == "sampled":
            user.setdefault("support", support)
        if student is not None:
            fixed["student_vocab"] = lineage.smaller_vocabulary(student, aligned, self.names.store)
        spec = plain_spec(CaptureSpec, stage, teachers.family, user, **fixed)
        if reference is not None and spec.support == "sampled":
            raise UsageError(
                "support=sampled works with one teacher only; the advantage of two needs a top k",
                f"leave out --reference, or --set {stage}.support=topk",
            )
        inputs: Inputs = {"aligned": aligned, **answers, **({"reference": reference} if reference else {})}
        return Node(stage, spec, inputs, "signal", name)

    def rollout(self, model: Model, data: External, split: str = "train") -> Node:
        """An answer of a model to every prompt of one side of the data."""
        user = {**self.preset, **self.settings(ROLLOUT.name, seeded=True)}
        return self._rollout(model, data, split, user, ROLLOUT.name)

    def eval_rollout(self, model: Model, data: External, decoding: Mapping[str, Any]) -> Node:
        """The answers of a model that an evaluation has judged, drawn as its suite says unless a setting does.

        They are drawn the same way for every model and seed of training, or their numbers could not be compared; what a
        command that trains says of its own rollouts does not hold for them.
        """
        user = self.settings(ROLLOUT.name, seeded=True)
        is_about = EVAL.name == self.stage
        if not is_about:
            user = {key: value for key, value in user.items() if key in SHARED_BY_ROLLOUTS}
        user = {**decoding, **user, **self.user.by_stage.get(EVAL_ROLLOUT, {})}
        return replace(self._rollout(model, data, "test", user, ROLLOUT.name, EVAL_ROLLOUT), is_settled=not is_about)

    def _rollout(self, model: Model, data: External, split: str, user: Mapping[str, Any], *keys: str) -> Node:
        fixed = {**_fixed(model), "split": split}
        spec = plain_spec(RolloutSpec, ROLLOUT.name, model.family, user, keys, **fixed)
        if spec.is_served:
            spec = by_vllm(spec, model.input, self.user.servers, self.names.store)
        hints = {"vllm": spec.vllm} if spec.vllm else {}
        return Node(ROLLOUT.name, spec, {"model": model.input, "data": data}, "rollouts", hints=hints)

    def answer_rewards(self, suite: Suite, judge: Model, answers: Input, scorers: Mapping[str, Input]) -> Node:
        """What a suite gives to some answers; `judge` has the family and the template that are not the scorers' own."""
        user = {key: value for key, value in self.settings(EVAL.name).items() if key in settable(REWARDS.name)}
        fixed = {**_fixed(judge), "scorer": suite.name}
        if _reads_its_own(scorers.get("reward_model")):
            fixed |= {"template": "", "end": ""}  # so that no answer is scored again beside another model
        user |= self.settings(REWARDS.name)
        spec = plain_spec(RewardsSpec, REWARDS.name, judge.family, user, (EVAL.name, REWARDS.name), **fixed)
        return Node(REWARDS.name, spec, {"rollouts": answers, **scorers}, "rewards")


SHARED_BY_ROLLOUTS = ("max_length", "skip_bad_rows", "smoke", "ties")
"""Settings of a command's rollouts that hold for those which an evaluation has judged too."""
SIDES = {"student": "student", "teacher": "reference teacher"}
"""The role of the fine-tuned model of each side of a family."""


def _reads_its_own(reward_model: Input | None) -> bool:
    """Whether a reward model reads answers under a template of its own, whatever that of the measured model is."""
    if not isinstance(reward_model, External):
        return reward_model is not None
    return not reward_model.is_open or bool(ModelFolder.of(Path(reward_model.where[0])).template)


def _fixed(model: Model | Teachers) -> dict[str, str]:
    """The fields of a spec that a template fills in."""
    return {"template": model.template.text, "end": model.template.end}
