"""Writes a run's encoder as a file for other software:  python scripts/export.py ckpt=<run>/last.ckpt format=onnx"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "ssl"))  # this checkout's package, installed or not

from twoview.commands import run

if __name__ == "__main__":
    run("export")
