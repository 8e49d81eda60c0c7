"""Figures that explain why arms differ: what their encoders ignore and know, and how the pretext task went."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from twoview.ablate.figures import Chart, few
from twoview.ablate.results import HEADLINE, Results, Run
from twoview.report.plots import SPACES, canvas, fold, likeness, profiles, tiles
from twoview.report.theme import Theme
from twoview.report.words import number, percent

MARKERS = "osD^vPX"
FACTORS = {  # of `twoview.data.image.shapes`, for people
    "background_hue": "background hue",
    "light": "light on dark",
    "background": "background pattern",
    "x": "position across",
    "y": "position up",
    "scale": "size",
}
NAMES = {"h": "Representation h", "z": "Projection z"}


def explanations(study: Results) -> list[Chart]:
    """The charts whose numbers were measured."""
    kinds = {"invariance": invariance, "factors": factors, "quality": quality}
    charts = [chart(study) for what, chart in kinds.items() if study.names(what)]
    return charts + [pretext(study)] * any(map(study.values, ("pretext.accuracy", "pretext.chance_loss")))


def invariance(study: Results) -> Chart:
    return Chart(
        "invariance",
        lambda theme: _invariance(study, theme),
        "Similarity of an image and its transform, for each transform and arm",
        "Similarity of an image and its transform as the transform grows. 1: to the network nothing has changed; 0: as "
        "unlike as two different images. Solid: the representation h; dashed: the projection z. Means over images and "
        "seeds.",
        "What each encoder ignores: the flatter the curve, the less it sees of the transform.",
    )


def _invariance(study: Results, theme: Theme) -> Any:
    arms = few(study)
    facts = {name: study.entry("invariance", name) for name in study.names("invariance")}
    facts = {name: entry for name, entry in facts.items() if entry.get("levels")}

    def curve(arm: str) -> Callable[[str, str], list[float]]:
        return lambda name, space: [_likeness(study, arm, name, space, level) for level in facts[name]["levels"]]

    colours = theme.colours(len(arms))
    looks = [lambda space, colour=colour: {"color": colour, "ls": SPACES[space]} for colour in colours]
    figure = profiles(theme, facts, [(look, curve(arm)) for arm, look in zip(arms, looks, strict=True)])
    _legend(figure, study, theme, lines=True)
    return figure


def _likeness(study: Results, arm: str, name: str, space: str, level: Any) -> float:
    """Mean over the seeds of the arm; where the similarity of different images is unknown, it counts as 0."""
    found = [
        likeness(
            run.metrics.get(f"invariance.{name}.{space}@{level}"),
            run.metrics.get(f"invariance.{name}.reference.{space}", 0.0),
        )
        for run in study.of(arm)
    ]
    known = [y for y in found if math.isfinite(y)]
    return fmean(known) if known else math.nan


def quality(study: Results) -> Chart:
    return Chart(
        "quality",
        lambda theme: _quality(study, theme),
        "Alignment against uniformity of each arm",
        "Alignment: mean squared distance between two views of an image (better to the left). Uniformity: how evenly "
        "images spread over the sphere (better below). Small dots: the seeds.",
        "How close two views of an image lie, and how evenly all images spread.",
    )


def _quality(study: Results, theme: Theme) -> Any:
    figure, panels = _pair(theme)
    for panel, (space, title) in zip(panels, NAMES.items(), strict=True):
        _scatter(study, theme, panel, _metric(f"quality.{space}.alignment"), _metric(f"quality.{space}.uniformity"))
        panel.set(title=title, xlabel="alignment", ylabel="uniformity")
    _legend(figure, study, theme)
    return figure


def pretext(study: Results) -> Chart:
    return Chart(
        "pretext",
        lambda theme: _pretext(study, theme),
        "Contrastive accuracy and loss of each arm against its accuracy",
        "How often the contrastive task is solved, and its loss as a share of that of guessing, against what the "
        "representation is worth. Small dots: the seeds.",
        "A pretext task that is solved more often need not make a better representation.",
    )


def _pretext(study: Results, theme: Theme) -> Any:
    figure, panels = _pair(theme, sharey=True)
    worth = _metric(HEADLINE, 100)
    _scatter(study, theme, panels[0], _metric("pretext.accuracy", 100), worth)
    _scatter(study, theme, panels[1], _metric("pretext.loss", 100, over="pretext.chance_loss"), worth)
    panels[0].set(title="Task", xlabel="contrastive accuracy (%)", ylabel="linear probe (%)")
    panels[1].set(title="Loss", xlabel="loss (% of chance level)")
    _legend(figure, study, theme)
    return figure


def factors(study: Results) -> Chart:
    return Chart(
        "factors",
        lambda theme: _factors(study, theme),
        "How well each factor can be read from the features of each arm",
        "How well a linear probe reads each recorded factor of an image from h and from z: accuracy in percent, or R² "
        "of a number. Colour: from chance to perfect. Means over the seeds.",
        "What each encoder knows about an image, and what it has forgotten.",
    )


def _factors(study: Results, theme: Theme) -> Any:
    names, arms = study.names("factors"), few(study)
    height = 1.1 + 0.34 * len(names)
    figure = canvas(theme, 2 * height if theme.narrow else height)
    panels = figure.subplots(2, 1) if theme.narrow else figure.subplots(1, 2, sharey=True)
    half = theme if theme.narrow else replace(theme, width=theme.width / 2)
    for panel, (space, title) in zip(panels, NAMES.items(), strict=True):
        shades: list[list[float | None]] = []
        texts, rows = [], []
        for name in names:
            entry = study.entry("factors", name)
            chance, of_number = float(entry.get("chance") or 0.0), entry.get("kind") == "r2"
            values = [study.mean(arm, f"factors.{name}.{space}") for arm in arms]
            shades.append([None if x is None else min(1.0, max(0.0, (x - chance) / (1 - chance))) for x in values])
            texts.append(["" if x is None else (number(x, 2) if of_number else percent(x, 0)) for x in values])
            rows.append(f"{FACTORS.get(name, name.replace('_', ' '))} ({'R²' if of_number else '%'})")
        tiles(panel, shades, texts, rows, arms, half, limits=(0, 1), scale="% of the way from chance to perfect")
        panel.set_title(title)
    return figure


# Marks of arms


def _pair(theme: Theme, sharey: bool = False) -> tuple[Any, Any]:
    figure = canvas(theme, 6.6 if theme.narrow else 3.9)
    return figure, figure.subplots(2, 1) if theme.narrow else figure.subplots(1, 2, sharey=sharey)


def _metric(name: str, scale: float = 1.0, over: str = "") -> Callable[[Run], float]:
    """A function of a run; NaN where the run lacks the metric."""

    def of(run: Run) -> float:
        divisor = run.metrics.get(over, math.nan) if over else 1.0
        return run.metrics.get(name, math.nan) * scale / divisor if divisor else math.nan

    return of


def _scatter(study: Results, theme: Theme, panel: Any, x: Callable[[Run], float], y: Callable[[Run], float]) -> None:
    """A mark at the means of each of the few arms, and a dot for each run."""
    marks = dict(zip(few(study), zip(theme.colours(len(few(study))), MARKERS, strict=False), strict=True))
    for arm in study.arms:
        found = [(x(run), y(run)) for run in study.of(arm)]
        found = [(a, b) for a, b in found if math.isfinite(a) and math.isfinite(b)]
        if not found:
            continue
        xs, ys = zip(*found, strict=True)
        colour, marker = marks.get(arm, (theme.pale, None))
        panel.plot(xs, ys, "o", ms=3, color=colour, alpha=0.6, mew=0)
        if marker:
            panel.plot(fmean(xs), fmean(ys), marker, ms=8, color=colour, mec=theme.paper, mew=0.8, zorder=4)
    panel.grid()


def _legend(figure: Any, study: Results, theme: Theme, lines: bool = False) -> None:
    from matplotlib.lines import Line2D

    arms, handles = few(study), []
    for colour, marker in zip(theme.colours(len(arms)), MARKERS, strict=False):
        style = {"lw": 2.4} if lines else {"ls": "", "marker": marker, "ms": 7}
        handles.append(Line2D([], [], color=colour, **style))
    names = [fold(arm, 24, 1) + " (reference)" * (arm == study.reference) for arm in arms]
    if lines:
        handles += [Line2D([], [], color=theme.pale, ls=style, lw=1.6) for style in SPACES.values()]
        names += list(SPACES)
    columns = _columns(names, theme)
    figure.legend(handles, names, loc="outside lower left", ncols=columns, labelcolor=theme.ink, handlelength=1.6)


def _columns(names: Sequence[str], theme: Theme) -> int:
    """As many columns of the legend as fit side by side; matplotlib gives the first ones one name more."""
    for columns in range(len(names), 1, -1):
        rows, more = divmod(len(names), columns)
        ends = [rows * (i + 1) + min(i + 1, more) for i in range(columns)]
        widths = [max(map(len, names[start:end])) + 7 for start, end in zip([0, *ends], ends, strict=False)]
        if sum(widths) <= 12 * theme.width:
            return columns
    return 1
