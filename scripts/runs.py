"""The runs that there are, and what they differ in:  python scripts/runs.py list | show RUN | diff A B | export"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "ssl"))  # this checkout's package, installed or not

from twoview.commands import run

if __name__ == "__main__":
    run("runs")
