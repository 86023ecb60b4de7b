"""The formats that `adpa import` reads, piece by piece, worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from adpa_cli.interchange import captured as distillkit
from adpa_cli.interchange.captured import spelling


def test_every_kind_of_code_is_read() -> None:
    """One position worked by hand for each part of a code that DOCUMENTED lacks."""
    raw = {"d": 9, "k": 3, "exact_k": 1, "exact_dtype": "float64", "polynomial_terms": None, "delta_encoding": True,
           "residual_bins": [{"scale_dtype": "bfloat16", "element_bits": 1, "num_elements": 1}]}  # fmt: skip
    settings = distillkit.settings_of(raw, "here")
    code = np.frombuffer(np.float64(-0.25).tobytes() + np.float32(2.0).tobytes()[2:] + b"\x00", np.uint8)
    # -0.25, then a step of (2 · 0 - 1) · 2, then one of 0.
    np.testing.assert_allclose(distillkit.decode(code[None], settings), [[-0.25, -2.25, -2.25]])
    raw |= {"exact_k": 0, "polynomial_terms": [1, "exp"], "normalize_t": True, "residual_bins": [],
            "delta_encoding": False, "term_dtype": "float16"}  # fmt: skip
    code = np.frombuffer(np.array([-2, -1], "<f2").tobytes(), np.uint8)
    expected = [-2 * t - np.exp(t) for t in (0, 0.5, 1)]
    np.testing.assert_allclose(
        distillkit.decode(code[None], distillkit.settings_of(raw, "here"))[0], expected, rtol=2e-3
    )
    assert distillkit.unpack(np.array([[0b10101100, 0b01000000]], np.uint8), 5, 2).tolist() == [[21, 17]]


def test_tokens_are_told_by_their_bytes() -> None:
    words = spelling(["Ġa", "â", "a", "▁a", "<|end|>"], {"<|end|>": 4}, byte_level=True)
    assert words.id_of({"token": "?", "bytes": [0x20, 0x61]}) == 0
    assert words.id_of({"token": "?", "bytes": [0xE2]}) == 1
    assert words.id_of({"token": "<|end|>"}) == 4
    pieces = spelling(["▁a", "<0x0A>", " a"], {}, byte_level=False)
    assert pieces.id_of({"token": "\n", "bytes": None}) == 1
    with pytest.raises(ValueError, match="could be any of the ids 0, 2"):
        pieces.id_of({"token": " a"})
    with pytest.raises(ValueError, match="the vocabulary has 3"):
        pieces.id_of({"token": "token_id:3"})
