"""A model with weights of fewer bits: how they are rounded, and what is then left of what training changed.

Two bytes hold eight or eleven bits, and a short training moves most weights by less than half of such a step, so that
rounding to the nearest takes back what it did. Rounding at random keeps all of it in the mean. Which of the two is
right follows from the weights that training started with. The effect is measured on rows that it has not seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adpa_cli.data.examples import win
from adpa_cli.errors import AdpaError, DataError, NotFound
from adpa_cli.hub import External, Located
from adpa_cli.hub.model_folder import ModelFolder
from adpa_cli.machine import available_memory
from adpa_cli.planning.lineage import Trained, locate, start_of
from adpa_cli.planning.resolve_inputs import Names
from adpa_cli.sizes import size_words
from adpa_cli.spec import TrainSpec, make
from adpa_cli.stages import Artifact, every
from adpa_cli.store.manifest import Manifest
from adpa_cli.suites import EvalSpec, answer_logps

if TYPE_CHECKING:
    from adpa_cli.engine.casting import Rounding
    from adpa_cli.engine.layout.examples import Example
    from adpa_cli.engine.scoring import LabelLogps

ROWS = 64
"""Held-out rows on which both models are measured, unless another number is asked for."""
ENOUGH = 0.5
"""The part of the update that rounding to the nearest has to keep, not to be replaced or warned of."""
FIGURES = {
    "logp": "mean log-prob of a token of the answers, in nats",
    "logp_chosen": "mean log-prob of a token of the chosen answers, in nats",
    "logp_rejected": "mean log-prob of a token of the rejected answers, in nats",
    "reward_accuracy": "reward accuracy",
    "agreement": "implicit reward ranks the pair right",
    "kept": "part of the implicit rewards that is left",
}
"""What is measured, in the order in which it is shown."""
SHARES = ("reward_accuracy", "agreement", "kept")


@dataclass(frozen=True)
class Narrowing:
    """What was asked: the `dtype` of the weights, how to round to it, None for whichever keeps what training changed,
    and the most held-out rows to measure on. Float32 rounds nothing."""

    dtype: str
    rounding: Rounding | None = None
    rows: int = ROWS


@dataclass(frozen=True)
class Effect:
    """What an export in fewer bits keeps of its training.

    `update` is what `measured_update` says for both roundings, empty where the start is not known. `before` and `after`
    are figures of the model as it was trained and as it is exported, empty where nothing could be measured.
    """

    dtype: str
    rounding: Rounding
    said: tuple[str, ...]
    watch: tuple[str, ...] = ()
    start: str = ""
    update: Mapping[str, Any] = field(default_factory=dict)
    data: str = ""
    count: int = 0
    before: Mapping[str, float] = field(default_factory=dict)
    after: Mapping[str, float] = field(default_factory=dict)

    def table(self) -> list[tuple[str, str, str]]:
        """Rows of (figure, as trained, as exported) below a head; none where nothing was measured."""
        if not self.after:
            return []
        head = (f"on {self.count} held-out rows of {self.data}, computed in float32", "as trained", f"in {self.dtype}")
        known = [name for name in FIGURES if name in self.after]
        return [head, *((FIGURES[name], _figure(name, self.before), _figure(name, self.after)) for name in known)]

    def record(self) -> dict[str, Any]:
        """The effect as JSON."""
        measured = {"data": self.data, "rows": self.count, "before": self.before, "after": self.after}
        return {
            "dtype": self.dtype, "rounding": self.rounding, "said": list(self.said), "watch": list(self.watch),
            **({"update": {"from": self.start, **self.update}} if self.update else {}),
            **({"held_out": measured} if self.after else {}),
        }  # fmt: skip


def narrowed(
    names: Names, model: Trained, folder: Path, asked: Narrowing, note: Callable[[str], None] = lambda text: None
) -> Effect | None:
    """Write the weights in `folder`, a copy of `model`, in a dtype; what rounding does to them, None in float32.

    `note` is given a line before what takes long. Raises AdpaError for weights beyond the range of the dtype.
    """
    from adpa_cli.engine.casting import cast_weights, roundings
    from adpa_cli.engine.update import folder_pairs, measured_update

    quantise = ModelFolder.of(model.folder).quantise
    if asked.dtype == "float32":
        cast_weights(folder, asked.dtype)
        return _merged(names, model, folder, quantise, asked.rows, note) if quantise else None
    update, start, why = {}, None, ""
    try:
        start = _start(names, model)
        update = measured_update(folder_pairs(start.path, folder), roundings(asked.dtype, folder))
    except AdpaError as error:
        why = error.message
    seen = update.get("seen", {})
    rounding = asked.rounding or ("stochastic" if seen.get("nearest", 1.0) < ENOUGH else "nearest")
    if not cast_weights(folder, asked.dtype, rounding):
        return Effect(asked.dtype, rounding, (f"all weights fit {asked.dtype} exactly, so none is rounded",))
    said = _kept_words(asked, rounding, start.label, seen) if start and seen else _unknown_words(asked, rounding, why)
    words = (*((_merge_words(quantise),) if quantise else ()), said)
    effect = Effect(asked.dtype, rounding, words, _loss_words(rounding, seen), start.label if start else "", update)
    return _measured(effect, names, model, folder, start, asked.rows, note) if asked.rows else effect


def _merged(
    names: Names, model: Trained, folder: Path, quantise: str, rows: int, note: Callable[[str], None]
) -> Effect:  # fmt: skip
    """What it changes that an adapter, trained beside quantised weights, is merged into those of more bits."""
    effect = Effect("float32", "nearest", (_merge_words(quantise),))
    start = None
    with suppress(AdpaError):
        start = _start(names, model)
    return _measured(effect, names, model, folder, start, rows, note) if rows else effect


def _merge_words(quantise: str) -> str:
    return f"the adapter was trained beside {quantise} weights of its base, and is merged into the whole ones"


def _start(names: Names, model: Trained) -> Located:
    """The model that training started from. Raises AdpaError where it is not known, or not on this machine."""
    if model.manifest is None:
        raise NotFound(f"adpa did not train {model.label}")
    start = start_of(Artifact(model.manifest), names.store)
    if start is None or (isinstance(start, External) and start.download):
        raise NotFound(f"the model that {model.label} was trained from is not on this machine")
    return locate(start, names.store)


def percent(share: float) -> str:
    """A share of 1 in percent, with a digit behind the point below one percent."""
    return f"{100 * share:.{0 if abs(share) >= 0.01 or not share else 1}f} %"


def _kept_words(asked: Narrowing, rounding: Rounding, start: str, seen: Mapping[str, float]) -> str:
    """What is kept of the update, and why the weights are rounded as they are."""
    changed = f"what training changed in the weights of {start}"
    near, random = percent(seen["nearest"]), percent(seen["stochastic"])
    if rounding == "stochastic":
        return (
            f"{asked.dtype} by nearest would keep {near} of {changed}; the weights are rounded stochastically, which "
            f"keeps {random} of it"
        )
    return f"{asked.dtype} by nearest keeps {near} of {changed}"


def _loss_words(rounding: Rounding, seen: Mapping[str, float]) -> tuple[str, ...]:
    """A warning where rounding to the nearest takes back most of a training."""
    if rounding == "stochastic" or seen.get("nearest", 1.0) >= ENOUGH:
        return ()
    kept = percent(seen["stochastic"])
    return (f"most of what training changed is lost by rounding; --rounding stochastic would keep {kept} of it",)


def _unknown_words(asked: Narrowing, rounding: Rounding, why: str) -> str:
    """What is said where nobody knows what training changed."""
    manner = "to the nearest" if rounding == "nearest" else "stochastically"
    return (
        f"what {asked.dtype} keeps of the training is not known: {why or 'the model has no layers'}; the weights are "
        f"rounded {manner}"
    )


def _measured(
    effect: Effect, names: Names, model: Trained, folder: Path, start: Located | None, rows: int,
    note: Callable[[str], None],
) -> Effect:  # fmt: skip
    """The effect with figures of held-out rows, or with why there are none."""
    try:
        data, spec, examples = _held_out(names, model, rows)
        parts: Any = tuple(examples[0].parts)
        note(f"measuring on {len(examples)} held-out rows of {data} in float32 (--rows 0 skips this)")
        _check_memory(model.folder)
        before, after = (answer_logps(place, spec, examples, parts) for place in (model.folder, folder))
        base = answer_logps(start.path, spec, examples, parts) if start else None
    except AdpaError as error:
        return replace(effect, said=(*effect.said, f"held-out rows were not measured: {error.message}"))
    what = "merging" if ModelFolder.of(model.folder).quantise else "rounding"
    moved = [f"{what} changes the log-prob of a token by {_rms(after, before):.3g} nat (rms)"]
    if base is not None:
        moved.append(f"training had changed it by {_rms(before, base):.3g}")
    figures = [_figures(logps, before, base, examples) for logps in (before, after)]
    said = (*effect.said, ", ".join(moved))
    return replace(effect, said=said, data=data, count=len(examples), before=figures[0], after=figures[1])


def _check_memory(folder: Path) -> None:
    need, room = 4 * ModelFolder.of(folder).size.parameters, available_memory()
    if need > room:
        raise AdpaError(f"the model needs {size_words(need)} of memory in float32, and {size_words(room)} are free")


def _held_out(names: Names, model: Trained, rows: int) -> tuple[str, EvalSpec, Sequence[Example]]:
    """The data that a model was trained on, how it is scored, and some of the rows that were held out.

    Of pairs there are both answers, of dialogues the turns that training reads. The rows are the first by their hash.
    Raises AdpaError where none are within reach.
    """
    from adpa_cli.engine.layout import examples as ex
    from adpa_cli.hub.externals import dialogues_of, pairs_of

    if model.manifest is None:
        raise NotFound("it is not recorded which data the model was trained on")
    if model.is_judge:
        raise NotFound("a reward model has no log-probs")
    data, spec = _data(names, model.manifest), make(TrainSpec, model.manifest.spec)
    encoder = ex.encoder_of(ModelFolder.of(model.folder).tokenizer, spec)
    read = (data.where, "test", None, spec.skip_bad_rows, spec.template)
    if every()[model.manifest.stage].reads == "pairs":
        pairs = sorted(pairs_of(*read).items, key=lambda pair: pair.id)[:rows]
        answers = ex.pair_answers(pairs, encoder, spec.max_length, spec.truncation, data.label)
        both = zip(answers.chosen, answers.rejected, strict=True)
        examples = [
            ex.Example(good.key.example_id, {"chosen": good.sequence(), "rejected": bad.sequence()})
            for good, bad in both
        ]
    else:
        dialogues = sorted(dialogues_of(*read).items, key=lambda dialogue: dialogue.id)[:rows]
        examples = ex.dialogue_examples(dialogues, encoder, spec.max_length, data.label)[0]
    if not examples:
        raise DataError(f"no held-out row of {data.label} fits into {spec.max_length} tokens")
    scoring = EvalSpec(spec.template, spec.end, dtype="float32", max_length=spec.max_length)
    return data.label, scoring, examples


def _data(names: Names, manifest: Manifest) -> External:
    """The data that an artifact was made from. Raises NotFound where they are not on this machine."""
    content = str(manifest.inputs.get("data", ""))
    if content not in manifest.sources:
        raise NotFound("it is not recorded which data the model was trained on")
    data = names.data_of(manifest.sources[content], content)
    if not data.is_here:
        raise NotFound(f"the data it was trained on, {data.label}, are not on this machine")
    return data


def _figures(
    logps: LabelLogps, trained: LabelLogps, base: LabelLogps | None, examples: Sequence[Example]
) -> dict[str, float]:
    """What log-probs of answers say of a model, of pairs also beside those of the model as it was `trained`, from
    `base`."""
    from adpa_cli.engine.scoring import log_ratios, pair_margins

    if "rejected" not in examples[0].parts:
        return {"logp": _mean(logps.values())}
    margins = pair_margins(logps, examples)
    figures = {f"logp_{part}": _mean(logps[e.id, part] for e in examples) for part in examples[0].parts}
    figures["reward_accuracy"] = sum(map(win, margins.values())) / len(margins)
    if base is not None:
        gains, expected = log_ratios(logps, base), log_ratios(trained, base)
        wins = [win(gains[e.id, "chosen"] - gains[e.id, "rejected"]) for e in examples]
        figures["agreement"] = sum(wins) / len(wins)
        figures["kept"] = _projection([gains[key] for key in expected], list(expected.values()))
    return figures


def _projection(values: Sequence[float], of: Sequence[float]) -> float:
    """The part of some values that others hold; 1 where there is nothing to hold.

    Correlation would not do: what nearest leaves of an update points where the whole did, and is a few percent of it.
    """
    import numpy as np

    x, y = np.array(values), np.array(of)
    size = float(y @ y)
    return float(x @ y) / size if size else 1.0


def _mean(values: Iterable[Any]) -> float:
    """The mean over the tokens of some answers."""
    import numpy as np

    return float(np.concatenate(list(values)).mean(dtype=np.float64))


def _rms(first: LabelLogps, second: LabelLogps) -> float:
    """The root of the mean square of the differences of all tokens' log-probs."""
    return math.sqrt(_mean((first[key] - second[key]) ** 2 for key in first))


def _figure(name: str, figures: Mapping[str, float]) -> str:
    return f"{100 * figures[name]:.1f} %" if name in SHARES else f"{figures[name]:.4f}"
