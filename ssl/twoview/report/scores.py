"""The scores of encoders side by side, as a table for the terminal."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

MOST_CLASSES = 20  # that have a row each


def score_table(title: str, results: Mapping[str, Mapping[str, Any]], classes: Sequence[str]) -> Table:
    """A column in percent per result (`twoview.evaluate.classify.score.Score`, in plain containers), by its name."""
    table = Table("%", title=title, title_justify="left")
    for name in results:
        table.add_column(name, justify="right")

    def row(label: str, text: Callable[[Mapping[str, Any]], str]) -> None:
        table.add_row(label, *map(text, results.values()))

    first = next(iter(results.values()))
    row("top-1", lambda r: f"[bold]{100 * r['top1']:.2f}[/bold]")
    row("95 % interval", lambda r: f"{100 * r['interval'][0]:.2f} ... {100 * r['interval'][1]:.2f}")
    if first["top5"] is not None:
        row("top-5", lambda r: f"{100 * r['top5']:.2f}")
    if "ridge" in first:
        row("top-1, ridge", lambda r: f"{100 * r['ridge']['top1']:.2f}")
    row("chance", lambda r: f"{100 * r['chance']:.2f}")
    table.add_section()
    for c, name in enumerate(classes if len(classes) <= MOST_CLASSES else ()):
        shares = [r["per_class"][c] for r in results.values()]
        table.add_row(name, *("-" if share is None else f"{100 * share:.1f}" for share in shares))
    return table
