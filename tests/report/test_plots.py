"""What figures are made of: folded names, letters on tiles, and likeness."""

import math

import pytest

from twoview.report.plots import fold, ink_on, likeness


@pytest.mark.parametrize("paint", ["#0b3d66", "#7fb2d8", "#f3f7fb", "#2f6f9f", "#858585"])
def test_letters_stand_out_on_every_tile(paint: str) -> None:
    assert ink_on(paint) == ("#ffffff" if paint in ("#0b3d66", "#2f6f9f") else "#14181d")


def test_long_names_are_folded() -> None:
    assert fold("a b", 10) == "a b"
    for text in ("word " * 50, "x" * 500, "", "a \n b"):
        lines = fold(text, 12).split("\n")
        assert len(lines) <= 2
        assert max(map(len, lines)) <= 12


def test_likeness_is_measured_from_that_of_different_images() -> None:
    assert likeness(1.0, 0.6) == 1
    assert likeness(0.6, 0.6) == 0
    assert likeness(0.8, 0.6) == pytest.approx(0.5)
    for unknown in (likeness(None, 0.6), likeness(0.9, None), likeness(0.9, math.nan)):
        assert math.isnan(unknown)
    assert math.isnan(likeness(1.0, 1.0))  # all images are the same to the encoder
