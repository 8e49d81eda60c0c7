"""Writes other versions of texts to a file:  python scripts/translate_text.py texts=train.csv out=versions.csv"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "ssl"))  # this checkout's package, installed or not

from twoview.commands import run

if __name__ == "__main__":
    run("translate")
