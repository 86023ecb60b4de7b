"""`--precision`, `--pair-precision`: a number of nats, a fraction, or `exact`; however written, one value is one id."""

from __future__ import annotations

import pytest

from adpa_cli.errors import UsageError
from adpa_cli.spec import hashed, make
from adpa_cli.stages.cache_teacher import CaptureSpec
from adpa_cli.store.store import Store
from support.cli_samples import Cli, Pipeline

FIXED = {"parts": ("chosen",), "template": "t", "end": "e"}


@pytest.mark.parametrize("name", ["precision", "pair_precision"])
@pytest.mark.parametrize(
    ("words", "value"),
    [((0, 0.0, "0", "0.0", "exact"), 0.0), ((0.03125, "0.03125", "1/32", "3.125e-2"), 1 / 32), (("16", 16), 16.0)],
)
def test_equal_values_are_one_recipe(name, words, value):
    made = [make(CaptureSpec, {**FIXED, name: word}) for word in words]
    assert [getattr(spec, name) for spec in made] == [value] * len(words)
    assert all(hashed(spec) == hashed(made[0]) for spec in made)
    assert hashed(made[0]) == {**hashed(make(CaptureSpec, FIXED)), name: value}


@pytest.mark.parametrize("name", ["precision", "pair_precision"])
@pytest.mark.parametrize("word", ["fine", "1/0", "1/", "/2", "-1", "1/-32", "1e-9", "17", "inf", "exactly", "1/2/3"])
def test_anything_else_is_refused_by_name(name, word):
    with pytest.raises(UsageError, match=name):
        make(CaptureSpec, {**FIXED, name: word})


def test_the_options_of_the_command_are_the_settings(cli: Cli) -> None:
    def planned(*words: str) -> list[str]:
        return [
            row[4] for row in cli("cache-teacher", "--teacher", "tiny", "--reference", "tiny", *words, "--dry-run").rows
        ]

    assert planned("--precision", "1/64", "--pair-precision", "exact") == planned(
        "--set", "precision=0.015625", "--set", "pair_precision=0"
    )
    assert planned("--pair-precision", "exact") != planned("--pair-precision", "1/16")
    assert planned("--precision", "exact") == planned("--precision", "0", "--pair-precision", "0")
    tiny = ("cache-teacher", "--teacher", "tiny", "--dry-run", "--pair-precision")
    assert "pair_precision" in cli.refused(2, *tiny, "fine", "--reference", "tiny")
    assert "--reference" in cli.refused(2, *tiny, "1/64")


def test_a_manifest_tells_the_greatest_errors_of_both_forms(pipeline: Pipeline) -> None:
    store = Store.find(pipeline.store)
    single, pair = (store.resolve(pipeline.made(f"signal #{number}")) for number in (1, 2))
    assert (single.metrics["max_abs_error_nats"], single.metrics["max_abs_error_nats_read"]) == (1 / 64, 1 / 32)
    assert "max_abs_error_nats_pair" not in single.metrics
    assert (pair.metrics["max_abs_error_nats_pair"], pair.metrics["max_abs_error_nats_pair_read"]) == (1 / 256, 5 / 128)
