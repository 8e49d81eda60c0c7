"""The main figure of a study: a curve, a heat map, or differences to the reference."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

from twoview.ablate.results import HEADLINE, Results
from twoview.report.plots import canvas, fold, tiles
from twoview.report.theme import Plot, Theme
from twoview.report.words import NBSP, in_points
from twoview.stats.blocks import Difference
from twoview.stats.intervals import Interval

MOST = 7  # arms that colours can tell apart


class Chart(NamedTuple):
    """A plot with the name of its file and its texts: `lead` above it, `caption` below it, `alt` in its place."""

    name: str
    plot: Plot
    alt: str
    caption: str
    lead: str = ""


def label(value: Any) -> str:
    """A value of an axis as people write it."""
    return f"{value:g}" if isinstance(value, float) else " ".join(str(value).split())


def few(study: Results) -> list[str]:
    """At most `MOST` arms, in the order of the study: the reference, the best, and others evenly down to the worst."""
    if len(study.arms) <= MOST:
        return study.arms
    ranked = sorted(study.means, key=lambda arm: -study.means[arm])
    chosen = {ranked[round(i * (len(ranked) - 1) / (MOST - 2))] for i in range(MOST - 1)}
    return [arm for arm in study.arms if arm in chosen | {study.reference}]


def accuracy(study: Results) -> Chart:
    """The chart that answers the question of a study of its kind."""
    settings, home, name = study.settings, study.reference, str(study.settings["name"])
    shown = "mean over the seeds, linear probe, top-1 in percent"
    many = f" with its 95{NBSP}% interval" if len(settings["seeds"]) > 1 else " (one seed: no interval)"
    labels = [axis_label(axis) for axis in settings["axes"]]
    if settings["kind"] == "curve":
        caption = f"Thick line: {shown}{many}. Thin lines: the seeds. Ring: the reference, {home}."
        if isinstance(settings.get("chance"), int | float):
            caption += f" Chance: {settings['chance'] * 100:.3g}{NBSP}%."
        return Chart(name, lambda theme: _curve(study, theme), f"Accuracy over {' and '.join(labels)}", caption)
    if settings["kind"] in ("compose", "grid") and len(labels) == 2:
        caption = f"Each cell: {shown}. Outlined: the reference, {home}. Right: the mean of a row."
        alt = f"Accuracy by {labels[0]} and {labels[1]}"
        if settings["kind"] == "compose":
            caption += " On the diagonal an operation by itself, off it a pair; what ran in one order stands twice. "
            caption += "An arm applies what it names alone: without a crop whole images, unlike in SimCLR's figure 5."
            alt = "Accuracy of operations and of their pairs"
        return Chart(name, lambda theme: _heat_map(study, theme), alt, caption)
    if study.differences:
        caption = f"Difference to {home} in points{many}. Small dots: the seeds, each paired with its own."
        return Chart(name, lambda theme: _dots(study, theme), f"Differences to {home}", caption)
    caption = f"Large dot: {shown}{many}. Small dots: the seeds."
    return Chart(name, lambda theme: _dots(study, theme), "Accuracy of each arm", caption)


def axis_label(axis: dict[str, Any]) -> str:
    return label(axis.get("label") or axis["key"])


def _curve(study: Results, theme: Theme) -> Any:
    """A panel per axis: every seed, their mean and its interval."""
    axes, values = study.settings["axes"], study.values(HEADLINE)
    columns = 1 if theme.narrow else min(len(axes), 2)
    rows = math.ceil(len(axes) / columns)
    figure = canvas(theme, rows * (4.0 if columns == 1 and not theme.narrow else 3.2))
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    seen = [y for by in values.values() for y in by.values()]
    low, high = 100 * min(seen), 100 * max(seen)
    for axis, panel in zip(axes, panels, strict=False):
        at, arms = _along(study, axis)
        for seed in study.settings["seeds"]:
            line = [100 * values[arm].get(seed, math.nan) for arm in arms]
            panel.plot(at, line, color=theme.pale, lw=0.8, alpha=0.55, marker="o", ms=2.5)
        for x, arm in zip(at, arms, strict=True):
            panel.plot([x, x], _limits(study.intervals[arm]), color=theme.good, lw=6, alpha=0.25, solid_capstyle="butt")
        panel.plot(at, [100 * study.means[arm] for arm in arms], color=theme.good, lw=2.2, marker="o", ms=6)
        if study.reference in arms:
            home = at[arms.index(study.reference)], 100 * study.means[study.reference]
            panel.plot(*home, "o", ms=10, mfc=theme.paper, mec=theme.good, mew=2.2, zorder=5)
        chance = study.settings.get("chance")
        if isinstance(chance, int | float) and 100 * chance > low - (high - low):  # else it would flatten the curve
            panel.axhline(100 * chance, color=theme.bad, lw=1.2, ls=(0, (4, 3)))
            _write(panel, "chance", 100 * chance, (-2, 4), color=theme.bad, ha="right")
        _ticks(panel, at, [label(study.place(arm)[axis["key"]]) for arm in arms], theme)
        panel.set_xlabel(fold(axis_label(axis), 44 if theme.narrow or columns == 2 else 90))
        panel.grid(axis="y")
    for panel in panels[len(axes) :]:
        panel.set_visible(False)
    panels[0].set_title("linear probe, top-1 (%)", weight="normal", color=theme.pale)
    figure.legend(handles=_legend(study, theme), loc="outside lower center", ncols=2 if theme.narrow else 5)
    return figure


def _legend(study: Results, theme: Theme) -> list[Any]:
    """What the marks of a curve are."""
    from matplotlib.lines import Line2D

    many = len(study.settings["seeds"]) > 1
    marks: list[tuple[bool, str, dict[str, Any]]] = [
        (True, "mean of the seeds" if many else "one seed", {"color": theme.good, "lw": 2.2, "marker": "o", "ms": 6}),
        (many, "95 % interval", {"color": theme.good, "lw": 6, "alpha": 0.25}),
        (many, "a seed", {"color": theme.pale, "lw": 0.8, "marker": "o", "ms": 2.5}),
        (True, "reference", {"ls": "", "marker": "o", "ms": 10, "mfc": theme.paper, "mec": theme.good, "mew": 2.2}),
    ]
    return [Line2D([], [], label=name, **look) for wanted, name, look in marks if wanted]


def _limits(spread: Interval | Difference) -> tuple[float, float]:
    if spread.low is None or spread.high is None:
        return math.nan, math.nan
    return 100 * spread.low, 100 * spread.high


def _write(panel: Any, text: str, y: float, offset: tuple[float, float], **style: Any) -> None:
    """At the right border, `offset` in points."""
    where = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
    panel.annotate(text, (1, y), offset, **where, **style)


def _along(study: Results, axis: dict[str, Any]) -> tuple[list[float], list[str]]:
    """Positions on an axis and the arms at them: those that agree with the reference on all other axes."""
    home, key = study.place(study.reference), axis["key"]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in axis["values"])
    order = [label(value) for value in axis["values"]]
    found = []
    for arm in study.means:
        place = study.place(arm)
        value = place.pop(key, None)
        if label(value) in order and all(home.get(other) == there for other, there in place.items()):
            found.append((float(value) if numeric else float(order.index(label(value))), arm))
    found.sort()
    return [x for x, _ in found], [arm for _, arm in found]


def _ticks(panel: Any, places: Sequence[float], names: Sequence[str], theme: Theme) -> None:
    """A tick at each position, labelled where there is room."""
    room = (max(places) - min(places)) * (0.11 if theme.narrow else 0.055) if places else 0.0
    kept: list[tuple[float, str]] = []
    for place, name in zip(reversed(places), reversed(names), strict=True):  # further apart on the right
        if not kept or kept[-1][0] - place >= room:
            kept.append((place, fold(name, 12)))
    panel.set_xticks(places, minor=True)
    panel.set_xticks([place for place, _ in kept], [name for _, name in kept])


def _heat_map(study: Results, theme: Theme) -> Any:
    axes, means = study.settings["axes"], study.means
    rows, columns = ([label(value) for value in axis["values"]] for axis in axes)
    arms: dict[tuple[str, str], str] = {}
    for arm in means:
        first, second = (study.place(arm).get(axis["key"]) for axis in axes)
        arms[label(first), label(first if second is None else second)] = arm
    if study.settings["kind"] == "compose":
        arms |= {(b, a): arm for (a, b), arm in arms.items() if (b, a) not in arms}
    table: list[list[float | None]] = []
    for row in rows:
        cells = [means[arms[row, column]] if (row, column) in arms else None for column in columns]
        known = [x for x in cells if x is not None]
        table.append([*cells, fmean(known) if known else None])
    outlined = [
        (rows.index(row), columns.index(column))
        for (row, column), arm in arms.items()
        if arm == study.reference and row in rows and column in columns
    ]
    texts = [["" if x is None else f"{100 * x:.1f}" for x in row] for row in table]
    side = theme.width / (len(columns) + 3.5)
    figure = canvas(theme, 1.1 + len(rows) * min(0.9, max(0.3, side * (0.85 if theme.narrow else 0.62))))
    panel = figure.subplots()
    tiles(panel, table, texts, rows, [*columns, "mean"], theme, outlined, apart=1, scale="linear probe, top-1 (%)")
    panel.set_ylabel(fold(str(axes[0].get("label") or ""), 40))
    panel.set_title(fold(str(axes[1].get("label") or ""), 40), weight="normal", color=theme.pale, size=9, loc="center")
    return figure


def _dots(study: Results, theme: Theme) -> Any:
    """Differences to the reference, or the accuracies where there is none; the best arm on top."""
    values, differences = study.values(HEADLINE), study.differences
    spreads: dict[str, Any] = dict(differences or study.intervals)
    home = values[study.reference] if differences else {}
    order = sorted(spreads, key=lambda arm: -spreads[arm].mean)
    figure = canvas(theme, 0.9 + len(order) * (0.46 if theme.narrow else 0.4))
    panel = figure.subplots()
    for y, arm in enumerate(order):
        mean = 100 * spreads[arm].mean
        colour = theme.pale if differences else theme.good
        if differences:
            colour = {"better": theme.good, "worse": theme.bad}.get(differences[arm].verdict, theme.pale)
        dots = [100 * (v - home.get(seed, 0.0)) for seed, v in values[arm].items() if not home or seed in home]
        if len(dots) > 1:
            panel.plot(dots, [y + 0.24] * len(dots), "o", ms=3.2, color=theme.pale, alpha=0.7, mew=0)
        panel.plot(_limits(spreads[arm]), [y, y], color=colour, lw=2.2)
        panel.plot(mean, y, "o", ms=7.5, color=colour)
        text = in_points(mean / 100) if differences else f"{mean:.1f}"
        _write(panel, text, y, (8, 0), va="center", color=theme.ink)
    if differences:
        panel.axvline(0, color=theme.ink, lw=1)
        panel.set_xlabel(f"points against {fold(study.reference, 30 if theme.narrow else 60, 1)}")
    else:
        panel.set_xlabel("linear probe, top-1 (%)")
    panel.set_yticks(range(len(order)), [fold(arm, 15 if theme.narrow else 34) for arm in order])
    panel.set_ylim(len(order) - 0.4, -0.6)
    panel.locator_params(axis="x", nbins=5 if theme.narrow else 8)
    panel.tick_params(axis="y", length=0, colors=theme.ink)
    panel.spines["left"].set_visible(False)
    panel.grid(axis="x")
    return figure
