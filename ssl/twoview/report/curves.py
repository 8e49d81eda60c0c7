"""The curves of a run: its loss against the chance level, and its accuracies."""

from collections.abc import Mapping, Sequence
from typing import Any

from twoview.report.plots import canvas
from twoview.report.theme import Plot, Theme


def curves(rows: Sequence[Mapping[str, float]], title: str = "") -> Plot:
    """Two panels over the epochs, from the rows of a `metrics.csv`: the pretext task, and what it is worth."""
    steps = max(row["step"] for row in rows) / max(row["epoch"] for row in rows)  # per epoch

    def points(name: str, scale: float = 1.0) -> tuple[list[float], list[float]]:
        found = [(row["step"] / steps, scale * row[name]) for row in rows if name in row]
        return [x for x, _ in found], [y for _, y in found]

    few = {"marker": "o", "ms": 3.5} if len(points("loss")[0]) < 5 else {}  # too short for a line

    def plot(theme: Theme) -> Any:
        figure = canvas(theme, 5.0 if theme.narrow else 2.9)
        left, right = figure.subplots(*((2, 1) if theme.narrow else (1, 2)))
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
        for panel in (left, right):
            panel.set_xlim(left=0)
            panel.set_xlabel("epoch")
            panel.grid(axis="y")
            if panel.lines:
                panel.legend(loc="best")
        if title:
            figure.suptitle(title, size=10, color=theme.ink)
        return figure

    return plot
