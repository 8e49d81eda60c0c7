"""What figures are made of: folded names, letters on tiles, and likeness."""

import math

import pytest

from twoview.report.curves import curves
from twoview.report.plots import canvas, fold, ink_on, likeness, profiles, tiles
from twoview.report.theme import LIGHT
from twoview.report.words import number, percent


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


def test_numbers_have_no_minus_before_zero() -> None:
    assert [number(x, 2) for x in (-0.001, 0.0, -0.006, 1234.5, None)] == ["0.00", "0.00", "−0.01", "1,234.50", "–"]
    assert percent(-0.0001) == "0.0"
    assert percent(-0.0012) == "−0.1"


def test_a_heat_map_says_what_its_colours_mean() -> None:
    figure = canvas(LIGHT, 3)
    tiles(figure.subplots(), [[0.1, 0.9]], [["10", "90"]], ["row"], ["a", "b"], LIGHT, scale="top-1 (%)")
    _, bar = figure.axes
    assert bar.get_xlabel() == "top-1 (%)"
    assert bar.get_xlim() == pytest.approx((10, 90))


@pytest.mark.parametrize("low", [0.9, 0.2, -0.4])
def test_profiles_fill_their_panels(low: float) -> None:
    facts = {"hue": {"levels": [0, 1], "unit": "share"}, "blur": {"levels": [0, 1], "unit": "px"}}
    figure = profiles(LIGHT, facts, [(lambda space: {"color": "k"}, lambda name, space: [1.0, low, math.nan][:2])])
    for panel in figure.axes[:2]:
        bottom, top = panel.get_ylim()
        assert bottom < low < 1 < top
        assert (1 - low) / (top - bottom) > 0.8


def test_curves_have_panels_for_what_was_measured() -> None:
    rows = [{"step": 4.0 * e, "epoch": float(e), "loss": 5.0 - e, "chance_loss": 5.0} for e in (1, 2, 3)]
    assert len(curves(rows)(LIGHT).axes) == 2
    measured = [row | {"h_rankme": 10.0, "z_rankme": 5.0} for row in rows]
    figure = curves(measured)(LIGHT)
    titles = [panel.get_title("left") or panel.get_title() for panel in figure.axes]
    assert titles == ["loss (nats)", "accuracy (%)", "RankMe (dimensions)"]
    assert [line.get_label() for line in figure.axes[2].lines] == ["h", "z"]
