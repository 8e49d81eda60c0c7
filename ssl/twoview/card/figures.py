"""The pictures of a card, each drawn from what `card.json` holds. `draw(theme)` draws one in the colours and the width
of a theme (`twoview.report.page`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twoview.card.parts import OTHER, RUN, UNTRAINED
from twoview.report.page import Theme
from twoview.report.plots import canvas, fold, tiles
from twoview.report.words import percent

NAMES = {RUN: "this run", UNTRAINED: "untrained", OTHER: "the other run"}
MANY = 20  # classes whose names and numbers still fit into a picture

Facts = Mapping[str, Any]
Draw = Callable[[Theme], Any]


def among(facts: Facts) -> list[str]:
    """The encoders that a part has numbers of, in the order of the page."""
    return [name for name in NAMES if name in facts]


def colour(theme: Theme, name: str) -> str:
    return {RUN: theme.good, UNTRAINED: theme.pale, OTHER: theme.bad}[name]


def knn(facts: Facts) -> Draw:
    def draw(theme: Theme) -> Any:
        names = among(facts)
        columns = 1 if theme.narrow else len(names)
        lines = math.ceil(len(names) / columns)
        figure = canvas(theme, lines * (1.0 + 0.34 * len(facts["k"])))
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        shares = [x for name in names for row in facts[name]["grid"] for x in row]
        for name, panel in zip(names, panels, strict=True):
            grid = facts[name]["grid"]
            texts = [[percent(x) for x in row] for row in grid]
            outlined = []
            if facts["fixed"][0] in facts["k"] and facts["fixed"][1] in facts["temperature"]:
                outlined = [(facts["k"].index(facts["fixed"][0]), facts["temperature"].index(facts["fixed"][1]))]
            heads = [f"{t:g}" for t in facts["temperature"]]
            tiles(
                panel, grid, texts, [f"k = {k}" for k in facts["k"]], heads, theme,
                outlined=outlined, limits=(min(shares), max(shares)),
            )  # fmt: skip
            panel.set_title(NAMES[name], pad=8)
        return figure

    return draw


def few_labels(facts: Facts, chance: float) -> Draw:
    def draw(theme: Theme) -> Any:
        figure = canvas(theme, 3.2)
        panel = figure.subplots()
        entries = [entry for entry in facts["fractions"] if RUN in entry]
        at = [100 * entry["fraction"] for entry in entries]
        for name in among(entries[0]):
            means = [100 * entry[name]["mean"] for entry in entries]
            panel.plot(at, means, color=colour(theme, name), lw=2, marker="o", ms=5.5, label=NAMES[name])
            for x, entry in zip(at, entries, strict=True):
                values = [100 * v for v in entry[name]["values"]]
                if len(values) > 1:
                    panel.plot([x] * len(values), values, "o", ms=2.5, color=colour(theme, name), alpha=0.6, mew=0)
                if limits := entry[name]["interval"]:
                    panel.plot([x, x], [100 * y for y in limits], color=colour(theme, name), lw=5, alpha=0.3)
        ends = {name: 100 * entries[-1][name]["mean"] for name in among(entries[0])}
        for name, y in ends.items():
            if name == RUN or abs(y - ends[RUN]) > 0.07 * max(ends.values()):  # else one number lies on the other
                where: dict[str, Any] = {"xytext": (8, 0), "textcoords": "offset points", "va": "center"}
                panel.annotate(f"{y:.1f}", (at[-1], y), **where, color=theme.ink)
        panel.axhline(100 * chance, color=theme.pale, lw=1, ls=(0, (4, 3)))
        panel.annotate("chance", (1, 100 * chance), (-2, 4), xycoords=("axes fraction", "data"),
                       textcoords="offset points", ha="right", color=theme.pale)  # fmt: skip
        panel.set_xscale("log")
        panel.set_xticks(at, [f"{x:g} %" for x in at])
        panel.minorticks_off()
        panel.margins(x=0.12)
        panel.set_ylim(bottom=0)
        panel.set_xlabel("share of the labels")
        panel.set_title("linear probe, top-1 (%)", weight="normal", color=theme.pale)
        panel.grid(axis="y")
        figure.legend(loc="outside lower center", ncols=3)
        return figure

    return draw


def robustness(facts: Facts) -> Draw:
    def draw(theme: Theme) -> Any:
        names, kinds, severities = among(facts), list(facts["groups"]), facts["severities"]
        figure = canvas(theme, 0.7 + 0.36 * (len(kinds) + 1))
        rows = [[*facts[RUN]["accuracy"][kind], *[_mean(facts[n]["accuracy"][kind]) for n in names]] for kind in kinds]
        rows.append([_mean(column) for column in zip(*rows, strict=True)])
        texts = [[percent(x, 0 if theme.narrow else 1) for x in row] for row in rows]
        short = {RUN: "mean", UNTRAINED: "untrained", OTHER: "other run"}
        heads = [str(s) for s in severities] + [short[name] for name in names]
        highest = max(facts[RUN]["clean"], *[x for row in rows for x in row[: len(severities)]])
        panel = figure.subplots()
        tiles(panel, rows, texts, [*kinds, "mean"], heads, theme, apart=len(names), limits=(0, highest))
        if not theme.narrow:
            panel.set_xticks(panel.get_xticks(), heads, rotation=0, ha="center")
        return figure

    return draw


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def reliability(facts: Facts) -> Draw:
    def draw(theme: Theme) -> Any:
        figure = canvas(theme, 3.4 if theme.narrow else 4.0)
        panel, amount = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
        panel.plot([0, 100], [0, 100], color=theme.pale, lw=1, ls=(0, (4, 3)))
        names = among(facts)
        for i, name in enumerate(names):
            bins, tint = facts[name]["reliability"], colour(theme, name)
            label = f"{NAMES[name]}: ECE {percent(facts[name]['ece'])} %"
            x, y = ([100 * b[key] for b in bins] for key in ("confidence", "accuracy"))
            panel.plot(x, y, color=tint, lw=1.8, marker="o", ms=4.5, label=label)
            total = sum(b["n"] for b in bins)
            width = 100 * (bins[0]["high"] - bins[0]["low"]) / (len(names) + 0.5)
            places = [100 * b["low"] + (i + 0.75) * width for b in bins]
            amount.bar(places, [100 * b["n"] / total for b in bins], width=0.92 * width, color=tint)
        panel.set(xlim=(0, 100), ylim=(0, 100), ylabel="accuracy (%)")
        amount.set(xlabel="confidence (%)", ylabel="images (%)")
        for axes in (panel, amount):
            axes.grid(axis="y")
        panel.legend(loc="upper left")
        return figure

    return draw


def confusion(facts: Facts, classes: Sequence[str]) -> Draw:
    """Of the run, each row as shares of the images of its class."""
    counts = facts[RUN]["confusion"]
    table = [[x / sum(row) if sum(row) else None for x in row] for row in counts]

    def draw(theme: Theme) -> Any:
        if len(classes) <= MANY:
            figure = canvas(theme, 1.1 + (0.27 if theme.narrow else 0.4) * len(classes))
            panel = figure.subplots()
            texts = [["" if x is None or x < 0.005 else f"{100 * x:.0f}" for x in row] for row in table]
            tiles(panel, table, texts, list(classes), list(classes), theme, limits=(0, 1))
            return figure
        from matplotlib.colors import LinearSegmentedColormap

        figure = canvas(theme, theme.width * 0.8)
        panel = figure.subplots()
        ramp = LinearSegmentedColormap.from_list("ramp", theme.ramp)
        shares = [[math.nan if x is None else math.sqrt(x) for x in row] for row in table]
        panel.imshow(shares, cmap=ramp, vmin=0, vmax=1, interpolation="nearest")
        panel.set(xlabel="predicted class", ylabel="class")
        return figure

    return draw


def invariance(facts: Facts) -> Draw:
    def draw(theme: Theme) -> Any:
        names = among(facts)
        kinds = list(facts[RUN])
        columns = 2 if theme.narrow else 4
        rows = math.ceil(len(kinds) / columns)
        figure = canvas(theme, rows * 2.1 + 0.6)
        panels = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
        for kind, panel in zip(kinds, panels, strict=False):
            for name in names:
                of = facts[name][kind]
                for space, style in (("h", "-"), ("z", (0, (3, 2)))):
                    if space in of:
                        rest = of["reference"][space]
                        line = [_above(x, rest) for x in of[space]]
                        panel.plot(of["levels"], line, color=colour(theme, name), ls=style, lw=1.7)
            levels = facts[RUN][kind]["levels"]
            panel.set_title(kind)
            panel.set_xlabel(fold(str(facts[RUN][kind]["unit"]), 24))
            panel.locator_params(axis="x", nbins=4)
            panel.set_ylim(-0.1, 1.05)
            panel.grid(axis="y")
            if levels[0] > levels[-1]:  # what is left of the image: no change stands on the left all the same
                panel.invert_xaxis()
        for panel in panels[len(kinds) :]:
            panel.set_visible(False)
        from matplotlib.lines import Line2D

        handles = [Line2D([], [], color=colour(theme, name), lw=2, label=NAMES[name]) for name in names]
        handles += [
            Line2D([], [], color=theme.ink, lw=1.5, label="h"),
            Line2D([], [], color=theme.ink, lw=1.5, ls=(0, (3, 2)), label="z"),
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=2 if theme.narrow else 5)
        return figure

    return draw


def _above(similarity: float | None, rest: float | None) -> float:
    """1: as like as the image itself; 0: as like as two different images."""
    if similarity is None or rest is None or rest >= 1 - 1e-6:
        return math.nan
    return (similarity - rest) / (1 - rest)


def curves(rows: Sequence[Mapping[str, float]]) -> Draw:
    def draw(theme: Theme) -> Any:
        steps = max(row["step"] for row in rows) / max(row["epoch"] for row in rows)

        def points(name: str, scale: float = 1.0) -> tuple[list[float], list[float]]:
            found = [(row["step"] / steps, scale * row[name]) for row in rows if name in row]
            return [x for x, _ in found], [y for _, y in found]

        figure = canvas(theme, 5.0 if theme.narrow else 2.9)
        left, right = figure.subplots(*((2, 1) if theme.narrow else (1, 2)))
        few = {"marker": "o", "ms": 3.5} if len(points("loss")[0]) < 5 else {}  # a line has no length yet
        left.plot(*points("loss"), color=theme.good, lw=1.8, label="loss", **few)
        left.plot(*points("chance_loss"), color=theme.pale, lw=1.2, ls=(0, (4, 3)), label="chance level")
        left.set_title("loss (nats)")
        right.plot(*points("accuracy", 100), color=theme.good, lw=1.8, label="contrastive accuracy", **few)
        if points("knn")[0]:
            right.plot(*points("knn", 100), color=theme.bad, lw=1.8, marker="o", ms=3.5, label="kNN on test images")
        right.set_ylim(0, 100)
        right.set_title("accuracy (%)")
        for panel in (left, right):
            panel.set_xlim(left=0)
            panel.set_xlabel("epoch")
            panel.grid(axis="y")
            panel.legend(loc="best")
        return figure

    return draw
