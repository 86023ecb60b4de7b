"""What to try for an artifact: command values that might make it, named by what holds anywhere or by ids of a store."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adpa_cli import methods
from adpa_cli.families import DATA_ALIASES, FAMILIES
from adpa_cli.stages.names import BUILTIN
from adpa_cli.store.manifest import Manifest
from adpa_cli.store.store import Store

Values = Mapping[str, Any]


@dataclass(frozen=True)
class Candidates:
    """First tries in one store, the most telling first. What a plan can correct (settings, data) is left out."""

    store: Store

    def of(self, manifest: Manifest, ids: bool) -> Iterator[Values]:
        """First tries, with names that mean the same anywhere, or with ids of this store."""
        makers: Mapping[str, Callable[[Manifest, bool], Iterator[Values]]] = {
            "sft": self._sft, "dpo-teacher": self._dpo_teacher, "cache-teacher": self._capture,
            "rollout": self._rollout, "distill": self._distill, "eval": self._eval,
            "reward-model": self._reward_model,
            "rewards": lambda made, ids: iter(()), "start-logps": lambda made, ids: iter(()),  # on the way only
        }  # fmt: skip
        seeds = {made.spec["seed"] for made in self.lineage(manifest) if "seed" in made.spec}
        moved = {"seed-all": next(iter(seeds))} if len(seeds) == 1 and seeds != {0} else {}
        size = {"smoke": True} if manifest.made.get("smoke") else {}
        for tried in makers[manifest.stage](manifest, ids):
            values = {**tried, **size}
            # Only distill spells --seed-all; a command of one stage has --seed for it.
            if moved and manifest.stage == "distill":
                yield {**values, **moved}
            yield values

    def lineage(self, manifest: Manifest) -> list[Manifest]:
        """An artifact and everything below it that is still here."""
        found, open_ = {manifest.id: manifest}, [manifest]
        while open_:
            for _, parent in open_.pop().parents():
                made = self.store.get(parent)
                if made is not None and parent not in found:
                    found[parent] = made
                    open_.append(made)
        return list(found.values())

    def _sft(self, manifest: Manifest, ids: bool) -> Iterator[Values]:
        yield from ({"model": word} for word in self._words(manifest, "model", ids, base=True))

    def _dpo_teacher(self, manifest: Manifest, ids: bool) -> Iterator[Values]:
        yield from ({"reference": word} for word in self._words(manifest, "model", ids))

    def _reward_model(self, manifest: Manifest, ids: bool) -> Iterator[Values]:
        yield from ({"model": word} for word in self._words(manifest, "model", ids))

    def _rollout(self, manifest: Manifest, ids: bool) -> Iterator[Values]:
        split = {} if manifest.spec["split"] == "train" else {"split": manifest.spec["split"]}
        yield from ({"student": word, **split} for word in self._words(manifest, "model", ids))

    def _capture(self, manifest: Manifest, ids: bool) -> Iterator[Values]:
        on: dict[str, Any] = {}
        if "rollouts" in manifest.inputs:
            if not ids:
                return
            on = {"rollouts": [f"rollout/{str(manifest.inputs['rollouts']).removeprefix('artifact:')[:12]}"]}
        for who in self._teachers(manifest, ids):
            yield {**who, **on}

    def _teachers(self, capture: Manifest, ids: bool) -> Iterator[dict[str, str]]:
        """--teacher and --reference of a capture; none of one that was imported."""
        if "aligned" not in capture.inputs:
            return
        below = self._words(capture, "reference", ids) if "reference" in capture.inputs else [None]
        for teacher, reference in itertools.product(self._words(capture, "aligned", ids), below):
            yield {"teacher": teacher, **({"reference": reference} if reference else {})}

    def _distill(self, manifest: Manifest, ids: bool) -> Iterator[Values]:
        start = self._parent(manifest, "model")
        chained = (
            start and start.stage == "distill" and (start.spec["method"], manifest.spec["method"]) == ("dckd", "adpa")
        )
        captures = [m for _, p in manifest.parents() if (m := self.store.get(p)) and m.stage == "cache-teacher"]
        teachers: list[dict[str, Any]] = [{}]
        for taught in (*captures, *([manifest] if "aligned" in manifest.inputs else [])):
            teachers += [who for who in self._teachers(taught, ids) if who not in teachers]
        signal: dict[str, Any] = {}
        if ids and captures:
            signal["cache"] = [capture.ref for capture in captures]
        if ids and (answers := self._parent(manifest, "rollouts")):
            signal["rollouts"] = [answers.ref]
        if chained and start:
            for student, who in itertools.product(self._words(start, "model", ids), teachers):
                yield {"method": "adpa+", "student": student, **who, "no-eval": True}
        students, judges = self._words(manifest, "model", ids), self._judges(manifest, ids)
        for student, sources, judge in itertools.product(students, self._sources(manifest), judges):
            common = {"method": manifest.spec["method"], "student": student, "no-eval": True, **sources, **judge}
            yield from ({**common, **who} for who in teachers)
            if signal:
                yield from ({**common, **who, **signal} for who in teachers)

    def _judges(self, manifest: Manifest, ids: bool) -> list[dict[str, str]]:
        """--reward-model of a student: it selected, or gave rewards; one that was not named is made for those."""
        given = self._parent(manifest, "rewards")
        held = manifest if "reward_model" in manifest.inputs else given
        words = self._words(held, "reward_model", ids) if held else []
        return [*({} for _ in range(held is not manifest)), *({"reward-model": word} for word in words)]

    def _sources(self, manifest: Manifest) -> list[dict[str, str]]:
        """Settings that no spec tells, for they only chose the inputs: whose rollouts, and which teacher."""
        known = methods.load(str(manifest.spec["method"])).sources
        answers = self._parent(manifest, "rollouts")
        foreign = answers is not None and answers.inputs["model"] != manifest.inputs["model"]
        states = {"states": ("teacher", "student") if foreign else ("student",) if answers else ()}
        tried = {"kd_teacher": methods.KD_TEACHERS, **states}
        axes = [[(key, word) for word in words] for key, words in tried.items() if key in known and words]
        return [{key: word for key, word in one if word != known[key]} for one in itertools.product(*axes)]

    def _eval(self, manifest: Manifest, ids: bool) -> Iterator[Values]:
        scorer: dict[str, Any] = {"suite": manifest.spec["suite"]}
        if "reward_model" in manifest.inputs:
            scorer["reward-model"] = next(iter(self._words(manifest, "reward_model", ids)), "")
        opponent = self._parent(manifest, "against")
        against = self._words(opponent, "model", ids) if opponent else [None]
        teachers = list(self._teachers(manifest, ids)) if "aligned" in manifest.inputs else [{}]
        for word, other, who in itertools.product(self._words(manifest, "model", ids), against, teachers):
            yield {"models": [word], **scorer, **({"against": other} if other else {}), **who}

    def _parent(self, manifest: Manifest, role: str) -> Manifest | None:
        return self.store.get(str(manifest.inputs.get(role, "")))

    def _words(self, manifest: Manifest, role: str, ids: bool, base: bool = False) -> list[str]:
        """What to type for a model that went in; `base` where an alias means the base model itself."""
        content = str(manifest.inputs[role])
        if content.startswith("artifact:"):
            made = self.store.get(content)
            if made is None:
                return []
            alias = None if base else self._alias_of(made)
            return [alias] if alias and not ids else [made.ref] if ids else []
        facts = manifest.sources[content]
        alias = _alias(str(facts.get("name", "")))
        if base and alias:
            return [alias]
        if facts.get("commit"):
            return [f"{facts['name']}@{facts['commit']}"]
        folder = self.store.hash_cache.locate(content.removeprefix("model:"))
        return [_path_word(folder)] if folder is not None else []

    def _alias_of(self, made: Manifest) -> str | None:
        """The alias that stands for a fine-tuned student, a fine-tuned teacher, an aligned one or a reward model."""
        while made.stage in ("dpo-teacher", "reward-model"):
            below = self._parent(made, "model")
            if below is None:
                return None
            made = below
        if made.stage != "sft":
            return None
        return _alias(str(made.sources.get(str(made.inputs["model"]), {}).get("name", "")))


def _alias(name: str) -> str | None:
    for family in FAMILIES:
        if name in (family.student, family.teacher):
            return family.alias if name == family.student else family.teacher_alias
    return None


def data_word(text: str) -> str:
    if text.startswith(BUILTIN):
        return next((alias for alias, name in DATA_ALIASES.items() if name == text), text)
    return _path_word(Path(text)) if text.startswith("/") else text


def _path_word(path: Path) -> str:
    """A path from the working directory when it lies below, else whole."""
    here = Path.cwd()
    return f"./{path.relative_to(here)}" if path.is_relative_to(here) else str(path)
