"""Compares augmentations by whole runs:  python scripts/ablate_augment.py study=strength experiment=cifar10_cpu"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "ssl"))  # this checkout's package, installed or not

from twoview.commands import run

if __name__ == "__main__":
    run("ablate")
