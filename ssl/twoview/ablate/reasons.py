"""Pictures that tell why arms differ: what their encoders ignore, what they know, and how the pretext task fared."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from twoview.ablate.figures import Drawing, few
from twoview.ablate.results import HEADLINE, Run, Study
from twoview.report.page import Theme
from twoview.report.plots import canvas, fold, tiles

MARKERS = "osD^vPX"
FACTORS = {  # of `twoview.data.image.shapes`, for people
    "background_hue": "background hue",
    "light": "light on dark",
    "background": "background pattern",
    "x": "position across",
    "y": "position up",
    "scale": "size",
}
SPACES = {"h": "Representation h", "z": "Projection z"}


def drawings(study: Study) -> list[Drawing]:
    """Those whose numbers are there."""
    kinds = {"invariance": invariance, "factors": factors, "quality": quality, "pretext": pretext}
    return [draw(study) for what, draw in kinds.items() if study.names(what)]


def invariance(study: Study) -> Drawing:
    return Drawing(
        "invariance",
        lambda theme: _invariance(study, theme),
        "Similarity of an image and its transform, for each transform and arm",
        "Similarity of an image and its transform as the transform grows. 1: to the network nothing has changed; 0: as "
        "unlike as two different images. Solid: the representation h; dashed: the projection z. Means over images and "
        "seeds.",
        "What each encoder ignores: the flatter the curve, the less it sees of the transform.",
    )


def _invariance(study: Study, theme: Theme) -> Any:
    arms = few(study)
    facts = {name: study.fact("invariance", name) for name in study.names("invariance")}
    facts = {name: fact for name, fact in facts.items() if fact.get("levels")}
    columns = max(1, min(len(facts), 2 if theme.narrow else 3))
    rows = max(1, math.ceil(len(facts) / columns))
    figure = canvas(theme, rows * 2.2 + (1.2 if theme.narrow else 0.6))
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for (name, fact), panel in zip(facts.items(), panels, strict=False):
        levels = fact["levels"]
        for arm, colour in zip(arms, theme.colours(len(arms)), strict=True):
            for space, style in (("h", "-"), ("z", (0, (3, 2)))):
                line = [_similarity(study, arm, name, space, level) for level in levels]
                panel.plot(levels, line, color=colour, ls=style, lw=1.6)
        panel.set_title(fold(name, 22, 1))
        panel.set_xlabel(fold(str(fact.get("unit") or ""), 26))
        panel.locator_params(axis="x", nbins=4 if theme.narrow else 5)
        panel.set_ylim(-0.1, 1.05)
        panel.grid(axis="y")
        if levels[0] > levels[-1]:  # what is left of the image: no change stands on the left all the same
            panel.invert_xaxis()
    for panel in panels[len(facts) :]:
        panel.set_visible(False)
    _legend(figure, study, theme, lines=True)
    return figure


def _similarity(study: Study, arm: str, name: str, space: str, level: Any) -> float:
    """Cosine similarity on a scale from that of two different images (where unknown: 0) to 1; NaN where unknown."""
    found = []
    for run in study.of(arm):
        y = run.metrics.get(f"invariance.{name}.{space}@{level}", math.nan)
        base = run.metrics.get(f"invariance.{name}.reference.{space}", 0.0)
        if math.isfinite(y) and base < 0.999:  # else all images are alike to a network that has collapsed
            found.append((y - base) / (1 - base))
    return fmean(found) if found else math.nan


def quality(study: Study) -> Drawing:
    return Drawing(
        "quality",
        lambda theme: _quality(study, theme),
        "Alignment against uniformity of each arm",
        "Alignment: mean squared distance between two views of an image (better to the left). Uniformity: how evenly "
        "images spread over the sphere (better below). Small dots: the seeds.",
        "How close two views of an image lie, and how evenly all images spread.",
    )


def _quality(study: Study, theme: Theme) -> Any:
    figure, panels = _pair(theme)
    for panel, (space, title) in zip(panels, SPACES.items(), strict=True):
        _scatter(study, theme, panel, _metric(f"quality.{space}.alignment"), _metric(f"quality.{space}.uniformity"))
        panel.set(title=title, xlabel="alignment", ylabel="uniformity")
    _legend(figure, study, theme)
    return figure


def pretext(study: Study) -> Drawing:
    return Drawing(
        "pretext",
        lambda theme: _pretext(study, theme),
        "Contrastive accuracy and loss of each arm against its accuracy",
        "How often the contrastive task is solved, and its loss as a share of that of guessing, against what the "
        "representation is worth. Small dots: the seeds.",
        "A pretext task that is solved more often need not make a better representation.",
    )


def _pretext(study: Study, theme: Theme) -> Any:
    figure, panels = _pair(theme, sharey=True)
    worth = _metric(HEADLINE, 100)
    _scatter(study, theme, panels[0], _metric("pretext.accuracy", 100), worth)
    _scatter(study, theme, panels[1], _metric("pretext.loss", 100, over="pretext.chance_loss"), worth)
    panels[0].set(title="Task", xlabel="contrastive accuracy (%)", ylabel="linear probe (%)")
    panels[1].set(title="Loss", xlabel="loss (% of chance level)")
    _legend(figure, study, theme)
    return figure


def factors(study: Study) -> Drawing:
    return Drawing(
        "factors",
        lambda theme: _factors(study, theme),
        "How well each factor can be read from the features of each arm",
        "How well a linear probe reads each recorded factor of an image from h and from z: accuracy in percent, or R² "
        "of a number. Colour: from chance to perfect. Means over the seeds.",
        "What each encoder knows about an image, and what it has forgotten.",
    )


def _factors(study: Study, theme: Theme) -> Any:
    names, arms = study.names("factors"), few(study)
    height = 1.1 + 0.34 * len(names)
    figure = canvas(theme, 2 * height if theme.narrow else height)
    panels = figure.subplots(2, 1) if theme.narrow else figure.subplots(1, 2, sharey=True)
    half = theme if theme.narrow else replace(theme, width=theme.width / 2)
    for panel, (space, title) in zip(panels, SPACES.items(), strict=True):
        shades: list[list[float | None]] = []
        texts, rows = [], []
        for name in names:
            fact = study.fact("factors", name)
            chance, of_number = float(fact.get("chance") or 0.0), fact.get("kind") == "r2"
            values = [study.mean(arm, f"factors.{name}.{space}") for arm in arms]
            shades.append([None if x is None else min(1.0, max(0.0, (x - chance) / (1 - chance))) for x in values])
            texts.append(["" if x is None else (f"{x:.2f}" if of_number else f"{100 * x:.0f}") for x in values])
            rows.append(f"{FACTORS.get(name, name.replace('_', ' '))} ({'R²' if of_number else '%'})")
        texts = [[text.replace("-", "−") for text in row] for row in texts]
        tiles(panel, shades, texts, rows, arms, half, limits=(0, 1))
        panel.set_title(title)
    return figure


# Marks of arms


def _pair(theme: Theme, sharey: bool = False) -> tuple[Any, Any]:
    figure = canvas(theme, 6.6 if theme.narrow else 3.9)
    return figure, figure.subplots(2, 1) if theme.narrow else figure.subplots(1, 2, sharey=sharey)


def _metric(name: str, scale: float = 1.0, over: str = "") -> Callable[[Run], float]:
    """NaN for a run that has it not."""

    def of(run: Run) -> float:
        divisor = run.metrics.get(over, math.nan) if over else 1.0
        return run.metrics.get(name, math.nan) * scale / divisor if divisor else math.nan

    return of


def _scatter(study: Study, theme: Theme, panel: Any, x: Callable[[Run], float], y: Callable[[Run], float]) -> None:
    """Each of the few arms as a mark at its means, each run as a dot."""
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


def _legend(figure: Any, study: Study, theme: Theme, lines: bool = False) -> None:
    from matplotlib.lines import Line2D

    arms, handles = few(study), []
    for colour, marker in zip(theme.colours(len(arms)), MARKERS, strict=False):
        style = {"lw": 2.4} if lines else {"ls": "", "marker": marker, "ms": 7}
        handles.append(Line2D([], [], color=colour, **style))
    names = [fold(arm, 24, 1) + " (reference)" * (arm == study.reference) for arm in arms]
    if lines:
        handles += [Line2D([], [], color=theme.pale, ls=style, lw=1.6) for style in ("-", (0, (3, 2)))]
        names += list(SPACES)
    columns = _columns(names, theme)
    figure.legend(handles, names, loc="outside lower left", ncols=columns, labelcolor=theme.ink, handlelength=1.6)


def _columns(names: Sequence[str], theme: Theme) -> int:
    """As many columns of the legend as fit side by side; the first ones hold one name more, as matplotlib does it."""
    for columns in range(len(names), 1, -1):
        rows, more = divmod(len(names), columns)
        ends = [rows * (i + 1) + min(i + 1, more) for i in range(columns)]
        widths = [max(map(len, names[start:end])) + 7 for start, end in zip([0, *ends], ends, strict=False)]
        if sum(widths) <= 12 * theme.width:
            return columns
    return 1
