"""Draws what an augmentation does to the images of a run:  python scripts/preview_augment.py augment=simclr_cifar"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "ssl"))  # this checkout's package, installed or not

from twoview.commands import run

if __name__ == "__main__":
    run("preview")
