"""Writes the features of a run's encoder to a file:  python scripts/embed.py ckpt=<run>/last.ckpt format=parquet"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "ssl"))  # this checkout's package, installed or not

from twoview.commands import run

if __name__ == "__main__":
    run("embed")
