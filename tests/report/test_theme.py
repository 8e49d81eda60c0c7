"""The looks of figures: contrast, order of colours, no settings left behind, and the file of a plot."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure
from PIL import Image

from twoview.errors import UserError
from twoview.report.theme import DARK, LIGHT, Theme, render, write_plot


def line(theme: Theme) -> Any:
    figure = Figure(figsize=(theme.width, 1))
    figure.subplots().plot([0, 1], color=theme.good)
    return figure


def luminance(colour: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in shares]
    return sum(x * weight for x, weight in zip(linear, (0.2126, 0.7152, 0.0722), strict=True))


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_stands_out_from_the_paper(theme: Theme) -> None:
    for colour in (theme.ink, theme.pale, theme.good, theme.bad):
        low, high = sorted((luminance(colour), luminance(theme.paper)))
        assert (high + 0.05) / (low + 0.05) >= 4.5, colour  # level AA


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_in_order_grow_steadily_lighter(theme: Theme) -> None:
    shades = [luminance("#" + "".join(f"{round(255 * x):02x}" for x in colour[:3])) for colour in theme.colours(7)]
    assert shades == sorted(shades)
    assert len(set(shades)) == 7
    ramp = [luminance(colour) for colour in theme.ramp]
    assert ramp in (sorted(ramp), sorted(ramp, reverse=True))


def test_drawing_leaves_no_settings_behind() -> None:
    from matplotlib import rcParams

    before = dict(rcParams)
    render(line, DARK)
    assert dict(rcParams) == before


@pytest.mark.parametrize(("name", "kind"), [("curve.png", "PNG"), ("curve", "PNG"), ("curve.jpg", "JPEG")])
def test_the_suffix_names_the_kind_of_file(name: str, kind: str, tmp_path: Path) -> None:
    write_plot(tmp_path / name, line, dpi=20)
    with Image.open(tmp_path / name) as image:
        assert image.format == kind


def test_a_kind_that_matplotlib_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot write .*curve\.exe: .*out="):
        write_plot(tmp_path / "curve.exe", line)
    assert not list(tmp_path.iterdir())
