"""What is read of a judge's reply, and what is not."""

from __future__ import annotations

import math

import pytest

from adpa_cli.judges.verdicts import grade, preference
from support.judge_server import token

LETTERS, BRACKETS, CASES = ("A", "B"), ("[[A]]", "[[B]]", "[[C]]"), ("m", "M")


@pytest.mark.parametrize(
    ("text", "marks", "value"),
    [
        ("A", LETTERS, 1.0),
        (" B.\n", LETTERS, 0.0),
        ("**B**", LETTERS, 0.0),
        ("Answer: A", LETTERS, 1.0),
        ("The better answer is B", LETTERS, 0.0),
        ("B\n\nIt is right, and A is not.", LETTERS, 0.0),
        ("A is verbose and wrong.\nB", LETTERS, 0.0),
        ("A response should be short.", LETTERS, None),
        ("Both are fine", LETTERS, None),
        ("", LETTERS, None),
        ("Neither [[A]] nor ... so in the end [[B]]", BRACKETS, 0.0),
        ("They are equal. [[C]]", BRACKETS, 0.5),
        ("[[D]]", BRACKETS, None),
        ("<think>A, no, [[A]]</think>[[B]]", BRACKETS, 0.0),
        ("m", CASES, 1.0),
        ("M", CASES, 0.0),
        ("Output (b)", ("Output (a)", "Output (b)"), 0.0),
    ],
)
def test_the_text_of_a_preference(text: str, marks: tuple[str, ...], value: float | None) -> None:
    verdict = preference(text, None, marks)
    assert (verdict and verdict.value) == value
    assert verdict is None or verdict.logps is None


def test_the_logprobs_of_the_verdict_token() -> None:
    """e^-0.5 : e^-1.5, of spellings with a blank too; the end token behind it says nothing."""
    tokens = [
        token("A", math.log(0.3), **{" A": math.log(0.2), "B": math.log(0.1), "The": math.log(0.4)}),
        token("</s>", 0.0),
    ]
    verdict = preference("A", tokens, LETTERS)
    assert verdict is not None
    assert verdict.value == pytest.approx(0.5 / 0.6)
    assert verdict.logps == pytest.approx({"A": math.log(0.5), "B": math.log(0.1)})


def test_half_of_a_tie_goes_to_each() -> None:
    tokens = [
        token("Fine", 0.0),
        token(" [[", 0.0),
        token("C", math.log(0.5), A=math.log(0.3), B=math.log(0.1)),
        token("]]", 0.0),
    ]
    verdict = preference("Fine [[C]]", tokens, BRACKETS)
    assert verdict is not None
    assert verdict.value == pytest.approx((0.3 + 0.25) / 0.9)


def test_the_place_of_a_verdict_after_an_explanation_is_the_last() -> None:
    tokens = [
        token("A", 0.0),
        token(" is worse [[", 0.0),
        token("B", math.log(0.75), A=math.log(0.25)),
        token("]]", 0.0),
    ]
    verdict = preference("A is worse [[B]]", tokens, BRACKETS)
    assert verdict is not None
    assert verdict.value == pytest.approx(0.25)


def test_one_token_that_was_to_be_the_verdict_is_read_though_its_text_is_none() -> None:
    tokens = [token("The", math.log(0.6), A=math.log(0.1), B=math.log(0.3))]
    verdict = preference("The", tokens, LETTERS)
    assert verdict is not None
    assert verdict.value == pytest.approx(0.25)
    assert preference("The", tokens, BRACKETS) is None


def test_a_mark_that_is_not_listed_counts_as_nothing() -> None:
    verdict = preference("A", [token("A", -0.1)], LETTERS)
    assert verdict is not None
    assert verdict.value == 1.0


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Good.\n[[7]]", 7.0),
        ("Rating: [[8.5]]", 8.5),
        ("I thought of [[3]], but no: [[4]]", 4.0),
        ("Fine.\n9/10", 9.0),
        ("6", 6.0),
        ("[[11]]", None),
        ("[[0]]", None),
        ("It has 7 mistakes.", None),
        ("[[7", None),
        ("", None),
    ],
)
def test_grades(text: str, value: float | None) -> None:
    verdict = grade(text)
    assert (verdict and verdict.value) == value
