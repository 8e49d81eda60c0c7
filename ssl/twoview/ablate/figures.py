"""The pictures of a study. Each is a function of a theme (`twoview.page`): colours and a width in inches."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import fmean
from textwrap import shorten, wrap
from typing import Any, NamedTuple

from twoview.ablate.results import Study
from twoview.page import Theme

MOST = 7  # arms that colours can tell apart
MARKERS = "osD^vPX"
HEADLINES = {"linear.top1": "linear probe", "knn.top1": "kNN"}


class Drawing(NamedTuple):
    """`name` is that of its file."""

    name: str
    draw: Callable[[Theme], Any]
    alt: str
    caption: str


def label(value: Any) -> str:
    """A value of an axis as a person writes it."""
    return f"{value:g}" if isinstance(value, float) else " ".join(str(value).split())


def fold(name: str, width: int, lines: int = 2) -> str:
    """A name in lines of `width` letters, cut where it needs more than `lines`."""
    parts = wrap(" ".join(name.split()), width) or [""]
    if len(parts) > lines:
        parts = [*parts[: lines - 1], shorten(" ".join(parts[lines - 1 :]), width, placeholder="…")]
    return "\n".join(parts)


def few(study: Study) -> list[str]:
    """At most `MOST` arms in the order of the study: the best, the reference, and others evenly from best to worst."""
    if len(study.arms) <= MOST:
        return study.arms
    ranked = sorted(study.means, key=lambda arm: -study.means[arm])
    chosen = {ranked[round(i * (len(ranked) - 1) / (MOST - 2))] for i in range(MOST - 1)}
    return [arm for arm in study.arms if arm in chosen | {study.reference}]


def _figure(theme: Theme, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(theme.width, height), layout="constrained")


# The main picture


def accuracy(study: Study) -> Drawing:
    """The picture that answers the study's question, by the study's kind."""
    name, seeds = str(study.settings["name"]), len(study.settings["seeds"])
    shown = f"mean over the seeds, {HEADLINES[study.headline]}, top-1 in percent"
    many = " with its 95 % interval" if seeds > 1 else " (a single seed: no interval)"
    if study.settings["kind"] == "curve":
        names = " and ".join(label(axis["label"] or axis["key"]) for axis in study.settings["axes"])
        caption = f"Thick line: {shown}{many}. Thin lines: the seeds. Ring: the reference, {study.reference}."
        return Drawing(name, lambda theme: _curve(study, theme), f"Accuracy over {names}", caption)
    if study.settings["kind"] in ("compose", "grid") and len(study.settings["axes"]) == 2:
        first, second = (label(axis["label"] or axis["key"]) for axis in study.settings["axes"])
        caption = f"Each cell: {shown}. Outlined: the reference, {study.reference}. Right: the mean of a row."
        if study.settings["kind"] == "compose":
            caption += (
                " On the diagonal an operation alone; a pair stands on both sides of it where only one order ran."
            )
        return Drawing(name, lambda theme: _heat_map(study, theme), f"Accuracy by {first} and {second}", caption)
    if study.differences:
        caption = f"Difference to {study.reference} in points{many}. Small dots: the seeds, each paired with its own."
    else:
        caption = f"Thick dot: {shown}{many}. Small dots: the seeds."
    return Drawing(name, lambda theme: _dots(study, theme), "Accuracy of each arm against the reference", caption)


def _curve(study: Study, theme: Theme) -> Any:
    axes = study.settings["axes"]
    columns = 1 if theme.narrow else min(len(axes), 2)
    rows = math.ceil(len(axes) / columns)
    figure = _figure(theme, rows * (3.2 if theme.narrow else 4.0 if columns == 1 else 3.2))
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    values = study.values(study.headline)
    low, high = (f(y for by in values.values() for y in by.values()) * 100 for f in (min, max))
    for axis, panel in zip(axes, panels, strict=False):
        points = _along(study, axis)
        for seed in study.settings["seeds"]:
            line = [(x, values[arm][seed] * 100) for x, arm in points if seed in values[arm]]
            if line:
                panel.plot(*zip(*line, strict=True), color=theme.pale, lw=0.8, alpha=0.55, marker="o", ms=2.5)
        spread = [(x, study.intervals[arm]) for x, arm in points]
        band = [(x, i.low * 100, i.high * 100) for x, i in spread if i.low is not None and i.high is not None]
        if band:
            panel.fill_between(*zip(*band, strict=True), color=theme.good, alpha=0.16, lw=0)
        mean = [(x, study.means[arm] * 100) for x, arm in points] or [(math.nan, math.nan)]
        panel.plot(*zip(*mean, strict=True), color=theme.good, lw=2.2, marker="o", ms=6)
        for x, arm in points:
            if arm == study.reference:
                y = study.means[arm] * 100
                panel.plot(x, y, "o", ms=10, mfc=theme.paper, mec=theme.good, mew=2.2, zorder=5)
        for name in ("chance", "untrained"):
            level = study.settings.get(name)
            if isinstance(level, int | float) and level * 100 > low - (high - low):  # else it would flatten the curve
                panel.axhline(level * 100, color=theme.bad, lw=1.2, ls=(0, (4, 3)))
                panel.annotate(
                    name, (1, level * 100), (0, 3), color=theme.bad, ha="right",
                    xycoords=("axes fraction", "data"), textcoords="offset points",
                )  # fmt: skip
        _ticks(panel, [x for x, _ in points], [label(v) for v in _values(study, axis, points)], theme)
        panel.set_xlabel(fold(axis["label"] or axis["key"], 44 if theme.narrow or columns == 2 else 90))
        panel.grid(axis="y")
    for panel in panels[len(axes) :]:
        panel.set_visible(False)
    panels[0].set_title(f"{HEADLINES[study.headline].capitalize()}, top-1 (%)", weight="normal", color=theme.pale)
    return figure


def _along(study: Study, axis: dict[str, Any]) -> list[tuple[float, str]]:
    """The arms on an axis, all others at the reference's place: where each lies, and its name."""
    home, key = study.place(study.reference), axis["key"]
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in axis["values"])
    order = [label(value) for value in axis["values"]]
    points = []
    for arm in study.means:
        place = study.place(arm)
        value = place.pop(key, None)
        if label(value) in order and all(home.get(other) == there for other, there in place.items()):
            points.append((float(value) if numeric else float(order.index(label(value))), arm))
    return sorted(points)


def _values(study: Study, axis: dict[str, Any], points: Sequence[tuple[float, str]]) -> list[Any]:
    return [study.place(arm)[axis["key"]] for _, arm in points]


def _ticks(panel: Any, places: Sequence[float], names: Sequence[str], theme: Theme) -> None:
    """A tick at each place, named where there is room."""
    panel.set_xticks(places, minor=True)
    if not places:
        return
    room = (max(places) - min(places)) * (0.11 if theme.narrow else 0.055)
    kept: list[tuple[float, str]] = []
    for place, name in reversed(list(zip(places, names, strict=True))):  # from the right, where they are wider apart
        if not kept or kept[-1][0] - place >= room:
            kept.append((place, fold(name, 12)))
    panel.set_xticks([place for place, _ in kept], [name for _, name in kept])


def _heat_map(study: Study, theme: Theme) -> Any:
    rows, columns = ([label(value) for value in axis["values"]] for axis in study.settings["axes"])
    down, right = (axis["key"] for axis in study.settings["axes"])
    arms: dict[tuple[str, str], str] = {}
    for arm in study.means:
        place = study.place(arm)
        first = place.get(down)
        second = place.get(right)
        arms[label(first), label(first if second is None else second)] = arm
    if study.settings["kind"] == "compose":
        arms |= {(b, a): arm for (a, b), arm in arms.items() if (b, a) not in arms}
    means = {cell: study.means[arm] for cell, arm in arms.items()}
    table = [[means.get((row, column)) for column in columns] for row in rows]
    average = [fmean(known) if (known := [x for x in row if x is not None]) else None for row in table]
    outlined = [
        (i, j) for i, row in enumerate(rows) for j, column in enumerate(columns)
        if arms.get((row, column)) == study.reference
    ]  # fmt: skip
    texts = [
        ["" if x is None else f"{x * 100:.1f}" for x in [*row, mean]] for row, mean in zip(table, average, strict=True)
    ]
    figure = _figure(theme, 1.2 + len(rows) * theme.width / (len(columns) + 3.5) * (0.85 if theme.narrow else 0.62))
    panel = figure.subplots()
    cells = [[*row, mean] for row, mean in zip(table, average, strict=True)]
    _cells(panel, cells, texts, rows, [*columns, "mean"], theme, outlined, apart=1)
    panel.set_ylabel(fold(study.settings["axes"][0]["label"], 40))
    panel.set_title(
        fold(study.settings["axes"][1]["label"], 40), weight="normal", color=theme.pale, size=9, loc="center"
    )
    return figure


def _cells(
    panel: Any,
    table: Sequence[Sequence[float | None]],
    texts: Sequence[Sequence[str]],
    rows: Sequence[str],
    columns: Sequence[str],
    theme: Theme,
    outlined: Sequence[tuple[int, int]] = (),
    apart: int = 0,
    limits: tuple[float, float] | None = None,
) -> None:
    """A heat map with its texts; the last `apart` columns stand apart and colour nothing."""
    from matplotlib.colors import LinearSegmentedColormap, to_rgb
    from matplotlib.patches import Rectangle

    ramp = LinearSegmentedColormap.from_list("ramp", theme.ramp)
    coloured = len(columns) - apart
    known = [x for row in table for x in row[:coloured] if x is not None]
    low, high = limits or (min(known), max(known))
    panel.set(xlim=(0, len(columns) + 0.3 * bool(apart)), ylim=(len(rows), 0))
    size = min(9.5, 72 * theme.width / (len(columns) + 4) / 2.6)
    for i, row in enumerate(table):
        for j, x in enumerate(row):
            left = j + 0.3 * (j >= coloured)
            colour: Any = theme.paper
            if x is not None and j < coloured:
                colour = ramp((x - low) / (high - low) if high > low else 0.5)
            if j < coloured:
                panel.add_patch(
                    Rectangle((left + 0.03, i + 0.03), 0.94, 0.94, fc=theme.rule if x is None else colour, lw=0)
                )
            red, green, blue = to_rgb(colour)
            ink = "#ffffff" if 0.3 * red + 0.59 * green + 0.11 * blue < 0.55 else "#14181d"
            panel.text(left + 0.5, i + 0.5, texts[i][j], ha="center", va="center", color=ink, size=size)
    for i, j in outlined:
        panel.add_patch(Rectangle((j + 0.03, i + 0.03), 0.94, 0.94, fill=False, ec=theme.bad, lw=2.2, zorder=4))
    wide = max(len(name) for name in columns) > 0.8 * theme.width * 13 / len(columns)
    names = [shorten(name, 18, placeholder="…") if " " in name else fold(name, 18, 1) for name in columns]
    turned = {"rotation": 40, "ha": "left", "rotation_mode": "anchor"} if wide else {}
    panel.set_xticks([j + 0.5 + 0.3 * (j >= coloured) for j in range(len(columns))], names, **turned)
    panel.set_yticks([i + 0.5 for i in range(len(rows))], [fold(name, 14 if theme.narrow else 26) for name in rows])
    panel.tick_params(length=0, labeltop=True, labelbottom=False, colors=theme.ink)
    panel.spines[:].set_visible(False)


def _dots(study: Study, theme: Theme) -> Any:
    values, differences = study.values(study.headline), study.differences
    home = values[study.reference] if differences else {}
    means = {arm: mean - study.means[study.reference] * bool(home) for arm, mean in study.means.items()}
    means |= {arm: d.mean for arm, d in differences.items() if d.mean is not None}
    order = sorted(differences or means, key=lambda arm: -means[arm])
    figure = _figure(theme, 0.9 + len(order) * (0.46 if theme.narrow else 0.4))
    panel = figure.subplots()
    for y, arm in enumerate(order):
        spread: Any = differences[arm] if differences else study.intervals[arm]
        verdict = differences[arm].verdict if differences else ""
        colour = {"better": theme.good, "worse": theme.bad}.get(verdict, theme.pale if differences else theme.good)
        dots = [(v - home[s] if home else v) * 100 for s, v in values[arm].items() if not home or s in home]
        panel.plot(dots, [y + 0.22] * len(dots), "o", ms=3.2, color=theme.pale, alpha=0.7, mew=0)
        if spread.low is not None and spread.high is not None:
            panel.plot([spread.low * 100, spread.high * 100], [y, y], color=colour, lw=2.2)
        panel.plot(means[arm] * 100, y, "o", ms=7.5, color=colour)
        text = in_points(means[arm]) if differences else f"{means[arm] * 100:.1f}"
        panel.annotate(
            text,
            (1, y),
            (8, 0),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            va="center",
            color=theme.ink,
        )
    if differences:
        panel.axvline(0, color=theme.ink, lw=1)
        panel.set_xlabel(f"points against {fold(study.reference, 30 if theme.narrow else 60, 1)}")
    else:
        panel.set_xlabel(f"{HEADLINES[study.headline]}, top-1 (%)")
    panel.set_yticks(range(len(order)), [fold(arm, 15 if theme.narrow else 34) for arm in order])
    panel.set_ylim(len(order) - 0.4, -0.6)
    panel.tick_params(axis="y", length=0, colors=theme.ink)
    panel.spines["left"].set_visible(False)
    panel.grid(axis="x")
    return figure


def in_points(x: float) -> str:
    """A difference of shares in points, with its sign."""
    return f"{x * 100 + 0.0:+.1f}".replace("-", "−") if round(x, 3) else "0.0"


# Why: what the encoders have learnt


def invariance(study: Study) -> Drawing:
    caption = (
        "Similarity of an image and its transform as the transform grows. 1: to the network nothing has changed; 0: as "
        "unlike as two different images. Solid: the representation h; dashed: the projection z. Means over images and "
        "seeds."
    )
    return Drawing("invariance", lambda theme: _invariance(study, theme), "Similarity against each transform", caption)


def _invariance(study: Study, theme: Theme) -> Any:
    names, arms = study.names("invariance"), few(study)
    names = [name for name in names if "levels" in study.fact("invariance", name)]
    columns = min(len(names), 2 if theme.narrow else 3)
    rows = math.ceil(len(names) / columns)
    figure = _figure(
        theme, rows * (1.9 if theme.narrow else 2.25) + 0.3 * math.ceil(len(arms) / (2 if theme.narrow else 4))
    )
    panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for name, panel in zip(names, panels, strict=False):
        fact = study.fact("invariance", name)
        for arm, colour in zip(arms, theme.colours(len(arms)), strict=True):
            for space, style in (("h", "-"), ("z", (0, (3, 2)))):
                line = [(x, _similarity(study, arm, f"invariance.{name}", space, x)) for x in fact["levels"]]
                known = [(x, y) for x, y in line if y is not None]
                if known:
                    panel.plot(*zip(*known, strict=True), color=colour, ls=style, lw=1.6)
        panel.set_title(fold(name, 22, 1))
        panel.set_xlabel(fold(str(fact.get("unit", "")), 26))
        panel.grid(axis="y")
        if fact["levels"][0] > fact["levels"][-1]:  # what is left: identity stands on the left all the same
            panel.invert_xaxis()
    for panel in panels[len(names) :]:
        panel.set_visible(False)
    _key(figure, study, arms, theme, lines=True)
    return figure


def _similarity(study: Study, arm: str, name: str, space: str, level: Any) -> float | None:
    """Cosine similarity at a level on a scale from that of different images (0; unknown: of right angles) to 1."""
    found = []
    for run in study.of(arm):
        y = run.metrics.get(f"{name}.{space}@{level}", math.nan)
        base = run.metrics.get(f"{name}.reference.{space}", 0.0)
        if math.isfinite(y) and base < 0.999:  # else all images are alike: collapsed
            found.append((y - base) / (1 - base))
    return fmean(found) if found else None


def _key(figure: Any, study: Study, arms: Sequence[str], theme: Theme, lines: bool = False) -> None:
    """The legend of arms below a figure."""
    from matplotlib.lines import Line2D

    def handle(i: int, colour: Any) -> Any:
        style = {"lw": 2.4} if lines else {"ls": "", "marker": MARKERS[i % len(MARKERS)], "ms": 7}
        return Line2D([], [], color=colour, **style)

    handles = [handle(i, colour) for i, colour in enumerate(theme.colours(len(arms)))]
    names = [fold(arm, 20 if theme.narrow else 26, 1) + " (reference)" * (arm == study.reference) for arm in arms]
    longest = max(len(name) for name in names)
    columns = max(1, min(len(arms), round(theme.width * 13) // (longest + 6)))
    figure.legend(handles, names, loc="outside lower left", ncols=columns, labelcolor=theme.ink, handlelength=1.4)


def _scatter(study: Study, theme: Theme, panel: Any, x: Callable[[str, int], float | None], y: str) -> None:
    """Each arm as a mark at its means, each of its seeds as a dot; arms beyond the few are dots alone."""
    arms = few(study)
    colours = dict(zip(arms, theme.colours(len(arms)), strict=True))
    for arm in study.arms:
        scale = 100 if y.endswith("top1") else 1
        dots = [
            (there, study.runs[arm, run.seed].metrics[y] * scale)
            for run in study.of(arm)
            if (there := x(arm, run.seed)) is not None and math.isfinite(run.metrics.get(y, math.nan))
        ]
        if dots:
            xs, ys = zip(*dots, strict=True)
            panel.plot(xs, ys, "o", ms=3, color=colours.get(arm, theme.pale), alpha=0.6, mew=0)
            if arm in colours:
                marker = MARKERS[arms.index(arm) % len(MARKERS)]
                panel.plot(fmean(xs), fmean(ys), marker, ms=8, color=colours[arm], mec=theme.paper, mew=0.8, zorder=4)
    panel.grid()


def _metric(study: Study, name: str, scale: float = 1, over: str = "") -> Callable[[str, int], float | None]:
    def of(arm: str, seed: int) -> float | None:
        metrics = study.runs[arm, seed].metrics
        value = metrics.get(name, math.nan) * scale / (metrics.get(over, math.nan) if over else 1)
        return value if math.isfinite(value) else None

    return of


def quality(study: Study) -> Drawing:
    caption = (
        "Alignment: mean squared distance between two views of an image (left is better). Uniformity: how evenly "
        "images spread over the sphere (lower is better). Small dots: the seeds."
    )
    return Drawing("quality", lambda theme: _quality(study, theme), "Alignment against uniformity", caption)


def _quality(study: Study, theme: Theme) -> Any:
    figure = _figure(theme, 6.6 if theme.narrow else 3.9)
    panels = figure.subplots(2, 1) if theme.narrow else figure.subplots(1, 2)
    for panel, space, title in zip(panels, "hz", ("Representation h", "Projection z"), strict=True):
        _scatter(study, theme, panel, _metric(study, f"quality.{space}.alignment"), f"quality.{space}.uniformity")
        panel.set(title=title, xlabel="alignment", ylabel="uniformity")
    _key(figure, study, few(study), theme)
    return figure


def pretext(study: Study) -> Drawing:
    caption = (
        "The pretext task against what it is for. Left: how often the contrastive task is solved; right: its loss as a "
        "share of that of guessing. An arm that solves it more often need not have learnt more."
    )
    return Drawing("pretext", lambda theme: _pretext(study, theme), "Pretext task against the probe", caption)


def _pretext(study: Study, theme: Theme) -> Any:
    figure = _figure(theme, 6.6 if theme.narrow else 3.9)
    panels = figure.subplots(2, 1) if theme.narrow else figure.subplots(1, 2, sharey=True)
    _scatter(study, theme, panels[0], _metric(study, "pretext.accuracy", 100), study.headline)
    _scatter(study, theme, panels[1], _metric(study, "pretext.loss", 100, "pretext.chance_loss"), study.headline)
    panels[0].set(title="Task solved", xlabel="contrastive accuracy (%)", ylabel=f"{HEADLINES[study.headline]} (%)")
    panels[1].set(title="Loss", xlabel="loss (% of chance level)")
    _key(figure, study, few(study), theme)
    return figure


def factors(study: Study) -> Drawing:
    caption = (
        "How well each factor of an image can be read from h and from z by a linear probe. Accuracy in percent, or R² "
        "for factors that are numbers. Colour: from chance (pale) to perfect."
    )
    return Drawing("factors", lambda theme: _factors(study, theme), "Factors read from each arm's features", caption)


def _factors(study: Study, theme: Theme) -> Any:
    names, arms = study.names("factors"), few(study)
    height = 1.1 + 0.36 * len(names)
    figure = _figure(theme, 2 * height if theme.narrow else height)
    panels = figure.subplots(2, 1) if theme.narrow else figure.subplots(1, 2, sharey=True)
    half = theme if theme.narrow else replace(theme, width=theme.width / 2)
    for panel, space, title in zip(panels, "hz", ("Representation h", "Projection z"), strict=True):
        above, texts, rows = [], [], []
        for name in names:
            fact = study.fact("factors", name)
            chance, r2 = float(fact.get("chance") or 0), fact.get("kind") == "r2"
            values = [study.mean(arm, f"factors.{name}.{space}") for arm in arms]
            above.append([None if v is None else min(1, max(0, (v - chance) / (1 - chance))) for v in values])
            texts.append(
                ["" if v is None else f"{v:.2f}".replace("-", "−") if r2 else f"{v * 100:.0f}" for v in values]
            )
            rows.append(f"{name} (R²)" if r2 else f"{name} (%)")
        _cells(panel, above, texts, rows, arms, half, limits=(0, 1))
        panel.set_title(title)
    return figure
