"""docs/scale.md says what the estimators say."""

from __future__ import annotations

from pathlib import Path

import pytest

from support import scale_tables

PAGE = Path(__file__).resolve().parents[2] / "docs" / "scale.md"


@pytest.mark.parametrize("number", range(3), ids=["fits", "signals", "runs"])
def test_a_table_of_the_page_is_what_the_estimators_give(number: int) -> None:
    table = scale_tables.tables()[number]
    assert table in PAGE.read_text(encoding="utf-8"), f"put this into docs/scale.md:\n{table}"


def test_what_the_page_says_in_words_is_in_its_tables() -> None:
    sizes = scale_tables.sizes()
    assert scale_tables.training(sizes["danube2-1.8b"], "bfloat16") < 25.4
    assert scale_tables.capture(sizes["llama-3.1-8b"]) < 25.4
    assert scale_tables.capture(sizes["llama-2-13b"]) < 80 < scale_tables.training(sizes["llama-3.1-8b"])
    assert scale_tables.training(sizes["llama-3.1-8b"], "bfloat16") < 80
    assert scale_tables.capture(scale_tables.LLAMA_70B, "nf4") < 80 < scale_tables.capture(scale_tables.LLAMA_70B)
