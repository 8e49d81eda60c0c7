"""Pre-trains an encoder by contrast of two views:  python train.py model=simclr  (python train.py --help lists what
there is).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "ssl"))  # this checkout's package, installed or not

from twoview.commands import run

if __name__ == "__main__":
    run("train")
