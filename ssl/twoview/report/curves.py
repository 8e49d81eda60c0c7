"""The curves of a run: its loss against the chance level, and its accuracies."""

from collections.abc import Mapping, Sequence
from typing import Any

from twoview.report.plots import canvas
from twoview.report.theme import Plot, Theme

SHAPE = {"alignment": "alignment of pairs", "uniformity": "uniformity", "rankme": "RankMe (dimensions)"}


def curves(rows: Sequence[Mapping[str, float]], title: str = "") -> Plot:
    """Panels over the epochs, from the rows of a `metrics.csv`: the pretext task, what it is worth, and the shape of h
    and z where that was measured.
    """
    steps = max(row["step"] for row in rows) / max(row["epoch"] for row in rows)  # per epoch

    def points(name: str, scale: float = 1.0) -> tuple[list[float], list[float]]:
        found = [(row["step"] / steps, scale * row[name]) for row in rows if name in row]
        return [x for x, _ in found], [y for _, y in found]

    few = {"marker": "o", "ms": 3.5} if len(points("loss")[0]) < 5 else {}  # too short for a line

    def plot(theme: Theme) -> Any:
        measured = [name for name in SHAPE if points(f"h_{name}")[0]]
        figure = canvas(theme, 2.5 * (2 + len(measured)) if theme.narrow else 5.4 if measured else 2.9)
        wide = [["loss"] * 3 + ["accuracy"] * 3]
        if measured:
            wide.append([name for name in measured for _ in range(6 // len(measured))])
        panels = figure.subplot_mosaic([[name] for name in ("loss", "accuracy", *measured)] if theme.narrow else wide)
        figure.get_layout_engine().set(hspace=0.08)
        left, right = panels["loss"], panels["accuracy"]
        lines = [
            (left, "loss", 1, "loss", {"color": theme.good, "lw": 1.8} | few),
            (left, "chance_loss", 1, "chance level", {"color": theme.pale, "lw": 1.2, "ls": (0, (4, 3))}),
            (right, "accuracy", 100, "contrastive accuracy (training)", {"color": theme.good, "lw": 1.8} | few),
            (right, "spread", 100, "spread (0: collapsed)", {"color": theme.pale, "lw": 1.8} | few),
            (right, "knn", 100, "kNN (test)", {"color": theme.bad, "lw": 1.8, "marker": "o", "ms": 3.5}),
        ]
        for panel, name, scale, label, style in lines:
            if points(name)[0]:  # not every method has a chance level, not every run a kNN monitor
                panel.plot(*points(name, scale), label=label, **style)
        left.set_title("loss (nats)")
        right.set_ylim(0, 100)
        right.set_title("accuracy (%)")
        for name in measured:
            for space, tint in (("h", theme.good), ("z", theme.bad)):
                if points(f"{space}_{name}")[0]:
                    panels[name].plot(*points(f"{space}_{name}"), label=space, color=tint, lw=1.8, marker="o", ms=3.5)
            panels[name].set_title(SHAPE[name])
        for panel in panels.values():
            panel.set_xlim(left=0)
            panel.set_xlabel("epoch")
            panel.grid(axis="y")
            if panel.lines:
                panel.legend(loc="best")
        if title:
            figure.suptitle(title, size=10, color=theme.ink)
        return figure

    return plot
