"""Says whether a run is ill, by what evidence, and what to do:  python scripts/doctor.py run=runs/<name>/<date>"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "ssl"))  # this checkout's package, installed or not

from twoview.commands import run

if __name__ == "__main__":
    run("doctor")
