"""The figures of a card that show numbers, each a plot of one entry of `card.json`."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from twoview.card.measures import OTHER, RUN, UNTRAINED
from twoview.report.plots import DASHED, canvas, likeness, profiles, tiles
from twoview.report.theme import Plot, Theme
from twoview.report.words import percent

NAMES = {RUN: "this run", UNTRAINED: "untrained", OTHER: "the other run"}
LINES: dict[str, Any] = {RUN: "-", UNTRAINED: DASHED, OTHER: (0, (1, 1.5))}
MANY = 20  # classes whose names and numbers still fit into a picture

Content = Mapping[str, Any]  # of card.json, or of an entry of it


def among(content: Content) -> list[str]:
    """The encoders in an entry, in the order of the page."""
    return [name for name in NAMES if name in content]


def colour(theme: Theme, name: str) -> str:
    return {RUN: theme.good, UNTRAINED: theme.pale, OTHER: theme.bad}[name]


def knn(content: Content) -> Plot:
    def plot(theme: Theme) -> Any:
        names = among(content)
        columns = 1 if theme.narrow else len(names)
        lines = math.ceil(len(names) / columns)
        figure = canvas(theme, lines * (1.0 + 0.34 * len(content["k"])))
        panels = figure.subplots(lines, columns, squeeze=False).ravel()
        shares = [x for name in names for row in content[name]["grid"] for x in row]
        for name, panel in zip(names, panels, strict=True):
            grid = content[name]["grid"]
            texts = [[percent(x) for x in row] for row in grid]
            outlined = []
            if content["fixed"][0] in content["k"] and content["fixed"][1] in content["temperature"]:
                outlined = [
                    (content["k"].index(content["fixed"][0]), content["temperature"].index(content["fixed"][1]))
                ]
            heads = [f"{t:g}" for t in content["temperature"]]
            tiles(
                panel, grid, texts, [f"k = {k}" for k in content["k"]], heads, theme,
                outlined=outlined, limits=(min(shares), max(shares)), scale="top-1 (%)",
            )  # fmt: skip
            panel.set_title(NAMES[name], pad=8)
        return figure

    return plot


def few_labels(content: Content, chance: float) -> Plot:
    def plot(theme: Theme) -> Any:
        figure = canvas(theme, 3.2)
        panel = figure.subplots()
        entries = [entry for entry in content["fractions"] if RUN in entry]
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
            if name == RUN or abs(y - ends[RUN]) > 0.07 * max(ends.values()):  # else the two numbers would overlap
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

    return plot


def robustness(content: Content) -> Plot:
    def plot(theme: Theme) -> Any:
        names, kinds, severities = among(content), list(content["groups"]), content["severities"]
        figure = canvas(theme, 0.7 + 0.36 * (len(kinds) + 1))
        rows = [
            [*content[RUN]["accuracy"][kind], *[_mean(content[n]["accuracy"][kind]) for n in names]] for kind in kinds
        ]
        rows.append([_mean(column) for column in zip(*rows, strict=True)])
        texts = [[percent(x, 0 if theme.narrow else 1) for x in row] for row in rows]
        short = {RUN: "mean", UNTRAINED: "untrained", OTHER: "other run"}
        heads = [str(s) for s in severities] + [short[name] for name in names]
        highest = max(content[RUN]["clean"], *[x for row in rows for x in row[: len(severities)]])
        panel = figure.subplots()
        tiles(
            panel, rows, texts, [*kinds, "mean"], heads, theme, apart=len(names), limits=(0, highest), scale="top-1 (%)"
        )
        if not theme.narrow:
            panel.set_xticks(panel.get_xticks(), heads, rotation=0, ha="center")
        return figure

    return plot


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def reliability(content: Content) -> Plot:
    def plot(theme: Theme) -> Any:
        figure = canvas(theme, 3.4 if theme.narrow else 4.0)
        panel, amount = figure.subplots(2, 1, height_ratios=(4, 1), sharex=True)
        panel.plot([0, 100], [0, 100], color=theme.pale, lw=1, ls=(0, (4, 3)))
        names = among(content)
        for i, name in enumerate(names):
            bins, tint = content[name]["reliability"], colour(theme, name)
            label = f"{NAMES[name]}: ECE {percent(content[name]['ece'])} %"
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

    return plot


def confusion(content: Content, classes: Sequence[str]) -> Plot:
    """Of the run, each row in shares of its class."""
    counts = content[RUN]["confusion"]
    table = [[x / sum(row) if sum(row) else None for x in row] for row in counts]

    def plot(theme: Theme) -> Any:
        if len(classes) <= MANY:
            figure = canvas(theme, 1.1 + (0.27 if theme.narrow else 0.4) * len(classes))
            panel = figure.subplots()
            texts = [["" if x is None or x < 0.005 else f"{100 * x:.0f}" for x in row] for row in table]
            scale = "% of a class (row) that were given this class (column)"
            tiles(panel, table, texts, list(classes), list(classes), theme, limits=(0, 1), scale=scale)
            return figure
        from matplotlib.colors import LinearSegmentedColormap

        figure = canvas(theme, theme.width * 0.8)
        panel = figure.subplots()
        ramp = LinearSegmentedColormap.from_list("ramp", theme.ramp)
        shares = [[math.nan if x is None else math.sqrt(x) for x in row] for row in table]
        panel.imshow(shares, cmap=ramp, vmin=0, vmax=1, interpolation="nearest")
        panel.set(xlabel="predicted class", ylabel="class")
        return figure

    return plot


def invariance(content: Content) -> Plot:
    def plot(theme: Theme) -> Any:
        from matplotlib.lines import Line2D

        names = among(content)

        def curve(name: str) -> Callable[[str, str], list[float]]:
            def of(transform: str, space: str) -> list[float]:
                found = content[name][transform]
                return [likeness(x, found["reference"][space]) for x in found.get(space, ())]

            return of

        tints = {"h": theme.good, "z": theme.bad}

        def look(name: str) -> Callable[[str], dict[str, Any]]:
            return lambda space: {"color": tints[space], "ls": LINES[name], "alpha": 1 if name == RUN else 0.65}

        figure = profiles(theme, content[RUN], [(look(name), curve(name)) for name in names])
        handles = [Line2D([], [], color=tint, lw=2, label=space) for space, tint in tints.items()]
        handles += [Line2D([], [], color=theme.ink, lw=1.5, ls=LINES[name], label=NAMES[name]) for name in names]
        figure.legend(handles=handles, loc="outside lower center", ncols=2 if theme.narrow else 5)
        return figure

    return plot
