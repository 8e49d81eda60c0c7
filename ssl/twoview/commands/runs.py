"""The runs in a folder: a table with their numbers, one of them, what two differ in, all as CSV or as a page."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console, Group
from rich.table import Table

from twoview.cli.program import spelled
from twoview.report.overview import overview
from twoview.run.registry import diff_runs, export_runs, list_runs, show_run

WIDTH = 240  # characters of a line in files and pipes


def runs_command(typed: Sequence[str]) -> int:
    """`twoview runs`: `list`, `show RUN`, `diff A B`, `export` or `html`. Returns the exit code."""
    parser = argparse.ArgumentParser(prog=spelled("runs"), description=__doc__)
    commands = parser.add_subparsers(
        dest="command", required=True, metavar="list | show RUN | diff A B | export | html"
    )
    listing = commands.add_parser("list", help="all runs with their numbers")
    show = commands.add_parser("show", help="one run: its numbers, its identity, its configuration")
    show.add_argument("run", type=Path)
    diff = commands.add_parser("diff", help="what two runs differ in")
    diff.add_argument("a", type=Path)
    diff.add_argument("b", type=Path)
    diff.add_argument("--across", action="store_true", help="compare results of runs that are not the same")
    export = commands.add_parser("export", help="all runs as CSV, with all keys of their configurations")
    export.add_argument("--out", type=Path, default=Path("runs.csv"))
    page = commands.add_parser("html", help="a page with all runs, cards and studies, to be sorted in a browser")
    page.add_argument("--out", type=Path, help="the file to write (index.html in the folder of the runs)")
    for command in (listing, export, page):
        command.add_argument("--root", type=Path, default=Path("runs"), help="the folder that holds the runs (runs)")
    chosen = parser.parse_args(typed)
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    if chosen.command == "export":
        console.print(f"{export_runs(chosen.root, chosen.out)} runs written to {chosen.out}", markup=False)
        return 0
    if chosen.command == "html":
        out = chosen.out or chosen.root / "index.html"
        overview(chosen.root, out).write(out)
        console.print(f"written to {out}", markup=False)
        return 0
    tables: dict[str, Callable[[], Table | Group]] = {
        "list": lambda: list_runs(chosen.root),
        "show": lambda: show_run(chosen.run),
        "diff": lambda: diff_runs(chosen.a, chosen.b, chosen.across),
    }
    console.print(tables[chosen.command]())
    return 0
