"""A value from the command line, a recipe or a manifest as the type that a spec or a method declares, in its range."""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Collection
from typing import Any, Literal, Union

from adpa_cli.errors import UsageError

Step = typing.NewType("Step", float)
"""A quantisation step in nats, also written as a fraction, or `exact` for 0."""
Auto = typing.NewType("Auto", str)
"""`auto=X`: the coarsest step that keeps a mean KL of X nats."""
STEPS = ("precision", "pair_precision")
"""Settings that are a quantisation step wherever they are a number."""
POSITIVE = {"lr", "epochs", "batch_size", "max_length", "max_steps", "limit", "top_k",
            "max_new_tokens", "block_tokens", "clip", "bootstrap", "top_p", "lora_alpha"}  # fmt: skip
RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**63 - 1), "warmup_ratio": (0, 1), "weight_decay": (0, 1000), "adam_beta1": (0, 0.999999),
    "adam_beta2": (0, 0.999999), "temperature": (0, 1000), "top_p": (0, 1), "pair_precision": (0, 16),
    "precision": (0, 16),
}  # fmt: skip


def coerce(kind: Any, value: Any, name: str) -> Any:
    """`value` as the declared type `kind`, from text or JSON; UsageError naming the option when it does not fit."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        if value is None or (isinstance(value, str) and value.lower() in ("none", "null")):
            return None
        kinds = [a for a in args if a is not type(None)]
        if Auto in kinds and str(value).startswith("auto"):
            return coerce(Auto, value, name)
        return coerce(kinds[0], value, name)
    if origin is Literal:
        if value not in args:
            raise _not_among(name, value, args)
        return value
    if origin is tuple:
        items = value.split(",") if isinstance(value, str) else value
        return tuple(coerce(args[0], v, name) for v in items)
    if name in STEPS and kind is float:
        kind = Step
    try:
        return _SCALARS[kind](value)
    except (ValueError, TypeError, OverflowError, ZeroDivisionError):
        raise UsageError(
            f"{name} must be {_WORDS[kind]}; got {value}", f"for example {name}={_EXAMPLES[kind]}"
        ) from None


def _integer(value: Any) -> int:
    number = float(value)
    if number != int(number):
        raise ValueError
    return (
        int(value) if isinstance(value, int | str) and "e" not in str(value) and "." not in str(value) else int(number)
    )


def _boolean(value: Any) -> bool:
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
    if str(value).lower() not in words:
        raise ValueError
    return words[str(value).lower()]


def _real(value: Any) -> float:
    number = float(value)
    if number != number or number in (float("inf"), float("-inf")):
        raise ValueError
    return number


def _step(value: Any) -> Step:
    if value == "exact":
        return Step(0.0)
    number, slash, parts = str(value).partition("/")
    return Step(_real(number) / _real(parts) if slash else _real(number))


def check(f: dataclasses.Field[Any], value: Any) -> None:
    """Raise UsageError unless the value of a field lies where its name, or its metadata, allows."""
    if f.name in POSITIVE and value is not None and not value > 0:
        raise UsageError(f"{f.name} must be above 0; got {value:g}", f"leave {f.name} out for its default")
    low, high = RANGES.get(f.name, (f.metadata.get("low"), f.metadata.get("high")))
    choices = f.metadata.get("choices")
    if isinstance(value, int | float) and ((low is not None and value < low) or (high is not None and value > high)):
        allowed = f"between {low:g} and {high:g}" if high is not None else f"{low} or more"
        raise UsageError(f"{f.name} must be {allowed}; got {value:g}", f"leave {f.name} out for its default")
    if f.name in STEPS and isinstance(value, float) and 0 < value < 1e-6:
        raise UsageError(
            f"{f.name} must be 0 (exact), or between 1e-6 and 16; got {value:g}", f"for example {f.name}=1/32"
        )
    if choices and value not in choices:
        raise _not_among(f.name, value, choices)
    if "pattern" in f.metadata and not re.fullmatch(f.metadata["pattern"], value):
        raise UsageError(
            f"{f.name} must be last, best, or the number of a step from 1; got {value}", f"leave {f.name} out for last"
        )


def _not_among(name: str, value: Any, allowed: Collection[Any]) -> UsageError:
    """The error for a value that is none of those allowed, with the nearest of them."""
    words = [str(one) for one in allowed]
    close = difflib.get_close_matches(str(value).lower(), words, n=1, cutoff=0.7)
    return UsageError(
        f"{name} must be one of {', '.join(words)}; got {value}", f"{'did you mean' if close else 'for example'} "
        f"{name}={(close or words)[0]}{'?' if close else ''}"
    )  # fmt: skip


def auto_target(precision: float | Auto) -> float | None:
    """The mean KL in nats that `auto=X` allows; None for a step."""
    return float(precision.removeprefix("auto=")) if isinstance(precision, str) else None


def _auto(value: Any) -> Auto:
    word, _, number = str(value).partition("=")
    if word != "auto" or not 0 < _real(number) <= 1:
        raise ValueError
    return Auto(f"auto={float(number):g}")


def _mapping(value: Any) -> dict[str, Any]:
    return dict(value)


_SCALARS: dict[Any, Any] = {
    int: _integer, float: _real, bool: _boolean, str: str, dict[str, Any]: _mapping,
    Step: _step, Auto: _auto,
}  # fmt: skip
_WORDS: dict[Any, str] = {
    int: "a whole number", float: "a finite number", bool: "true or false", str: "text", dict[str, Any]: "a table",
    Step: "a number of nats such as 1/32, or exact", Auto: "auto=NATS with a mean KL above 0, such as auto=0.001",
}  # fmt: skip
_EXAMPLES: dict[Any, str] = {
    int: "8", float: "0.5", bool: "true", str: "text", dict[str, Any]: "{}", Step: "1/32", Auto: "auto=0.001"
}  # fmt: skip
