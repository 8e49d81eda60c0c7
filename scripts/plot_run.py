"""Draws the curves of a run to curves.png:  python scripts/plot_run.py run=runs/<name>/<date>"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "ssl"))  # this checkout's package, installed or not

from twoview.commands import run

if __name__ == "__main__":
    run("plot")
