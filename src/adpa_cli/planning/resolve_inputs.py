"""What a name on the command line means: an alias by the role asked for, an artifact, or what comes from outside."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from adpa_cli import stages
from adpa_cli.data.sources import HUB_ID
from adpa_cli.errors import NotFound, UsageError
from adpa_cli.families import Alias, ReadyPair, aliases, ready_pairs, reward_models
from adpa_cli.hub import External
from adpa_cli.hub.externals import Externals
from adpa_cli.hub.model_folder import ModelFolder
from adpa_cli.hub.usable import check_decoder
from adpa_cli.machine import expanded
from adpa_cli.stages import Artifact


@dataclass(frozen=True)
class Names(Externals):
    """Resolves names against one store: what is in it, and what comes from outside."""

    def model(
        self, text: str, option: str, made_by: Sequence[str] = (), may_reward: bool = False
    ) -> Alias | ReadyPair | Artifact | External:
        """What a model option means; an artifact is `made_by` one of some stages, any that makes models unless said.

        A model from outside writes texts, unless it `may_reward` or the option asks for a reward model. Raises
        UsageError and NotFound.
        """
        may_reward = may_reward or "reward" in option
        if not text:
            raise UsageError(f"{option} is empty", "name a model; a $variable in its place may have been empty")
        if text.startswith((".", "/", "~")):
            return self._decoder(self.folder(expanded(text)), may_reward)
        if text in reward_models():
            if may_reward:
                return self.hub_model(reward_models()[text].name)
            said = f"{option} {text} is a reward model, which cannot write answers"
            raise UsageError(said, f"use it as a judge: --reward-model {text}")
        known: dict[str, Alias | ReadyPair] = {**aliases(), **ready_pairs()}
        if text in known:
            if tagged := self.store.tags().get(text):
                made = self.store.get(tagged)
                ref = made.ref if made else tagged[:12]
                raise UsageError(
                    f"{text} is ambiguous: it is an alias, and also the tag of {ref}",
                    f"write {ref} for the artifact, or remove the tag: adpa tag --delete {text}",
                )
            return known[text]
        if HUB_ID.fullmatch(text) and text.split("/")[0] not in stages.names():
            return self._decoder(self.hub_model(text), may_reward)
        ref, _, step = text.rpartition("@")
        if ref and step.isdigit():
            return self._point(self.made(ref, made_by or stages.making("model"), option), int(step), option)
        return self.made(text, made_by or stages.making("model"), option, "for a hub model, write ORG/NAME; ")

    def _point(self, artifact: Artifact, step: int, option: str) -> External:
        """A kept point of a training, `REF@STEP`: the weights after that step. NotFound where they were not kept."""
        kept = {int(path.name.partition("-")[2]): path for path in self.store.folder(artifact.label).glob("step-*")}
        if step not in kept:
            steps = sorted(kept)
            has = f"only steps {', '.join(map(str, steps))} were kept" if kept else "no steps were kept"
            names = " or ".join(f"{artifact.label}@{n}" for n in steps)
            hint = names or "train with --keep all, which keeps the weights of every checkpoint"
            raise NotFound(f"{option} {artifact.label}@{step} does not exist: {has}", hint)
        label = f"{artifact.label}@{step}"
        model = self.folder(kept[step])
        return replace(model, label=label, facts={**model.facts, "name": label, "point_of": artifact.label})

    @staticmethod
    def _decoder(model: External, may_reward: bool) -> External:
        """A model from outside, refused where one that writes texts is wanted and it does not."""
        if model.is_open and not may_reward:
            check_decoder(ModelFolder.of(Path(model.where[0])), model.label)
        return model

    def made(self, text: str, made_by: Sequence[str], option: str, instead: str = "") -> Artifact:
        """The artifact `made_by` one of some stages that `text` names. What else could be named is `instead`."""
        if not text:
            raise UsageError(f"{option} is empty", "name an artifact; a $variable in its place may have been empty")
        try:
            manifest = self.store.resolve(text)
        except NotFound as error:
            known = [*aliases(), *ready_pairs(), *self.store.tags()]
            close = difflib.get_close_matches(text.lower(), known, n=2, cutoff=0.7)
            stage = text.partition("@")[0].lower()
            hint = f"did you mean {' or '.join(close)}?" if close and "/" not in text else instead + error.hint
            if stage in made_by and text != f"{stage}@latest" and "/" not in text:
                hint = f"the newest artifact of this stage is {stage}@latest; adpa show lists all"
            if Path(text).is_dir():
                hint = f"a folder is written with its path: ./{text}"
            raise NotFound(f"{option} {text}: {error.message}", hint) from None
        if manifest.stage not in made_by:
            raise UsageError(
                f"{option} needs an artifact made by {' or '.join(made_by)}, but {manifest.ref} was made by "
                f"{manifest.stage}",
                "see what there is: adpa show",
            )
        return Artifact(manifest)
