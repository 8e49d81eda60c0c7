"""Kills a run, resumes it and compares it with one that was never stopped:  python scripts/verify_resume.py [words of
train.py]
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "ssl"))  # this checkout's package, installed or not

from twoview.commands import run

if __name__ == "__main__":
    run("verify")
