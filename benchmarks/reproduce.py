"""Runs a row of the README's table of results again, and compares.

    python benchmarks/reproduce.py row=cifar10_cpu [minutes=30] [out=...] [words of train.py ...]

Trains with `train.py experiment=<row>` in runs/reproduce/<row>, probes with `scripts/linear_probe.py`, and sets both
beside the figures in benchmarks/results/<row>/: within their 95 % interval is `reached`, else it is `below` or `above`.
`minutes` stops after so long; the same command goes on exactly there, on another machine too if the folder goes along.
Further words go to train.py (trainer=gpu, data.root=...). Writes reproduce.json into that folder.

Exit code: 0 reached, above, or nothing committed to compare with; 2 below; 3 not finished; 1 an error.
"""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import record
from rich.console import Console

from twoview.stats.intervals import wilson

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CODES = {"reached": 0, "above": 0, "not committed": 0, "below": 2}
NOT_FINISHED = 3


def figures(folder: Path) -> dict[str, dict[str, Any]]:
    """Accuracies of a run folder with their 95 % intervals; those that it holds."""
    found: dict[str, dict[str, Any]] = {}
    probe, summary = folder / "linear_probe.json", folder / "summary.json"
    if probe.exists():
        report = json.loads(probe.read_text())
        found["linear"] = {"top1": report["top1"], "interval": report["interval"]}
    knn = (json.loads(summary.read_text()).get("knn") or {}) if summary.exists() else {}
    if knn.get("final") is not None:
        interval = wilson(round(knn["final"] * knn["test"]), knn["test"])
        found["knn"] = {"top1": knn["final"], "interval": interval.limits}
    return found


def judge(new: dict[str, Any], old: dict[str, Any] | None) -> str:
    if old is None:
        return "not committed"
    low, high = old["interval"]
    return "below" if new["top1"] < low else "above" if new["top1"] > high else "reached"


def exit_code(judgements: list[str]) -> int:
    return max(CODES[word] for word in judgements)


def call(script: str, *words: str) -> None:
    """Runs a command of the project; its errors have been said when it ends."""
    code = subprocess.run([sys.executable, str(ROOT / script), *words]).returncode
    if code:
        sys.exit(code)


def main() -> None:
    words = dict(word.partition("=")[::2] for word in sys.argv[1:] if word.startswith(("row=", "minutes=", "out=")))
    others = [word for word in sys.argv[1:] if not word.startswith(("row=", "minutes=", "out="))]
    if not words.get("row"):
        sys.exit(__doc__)
    row, began, console = words["row"], time.perf_counter(), Console()
    folder = Path(words.get("out") or f"runs/reproduce/{row}")
    if "minutes" in words:
        seconds = round(60 * float(words["minutes"]))
        others.append(f"trainer.max_time={seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}")
    summary = folder / "summary.json"
    if not _finished(summary):
        call("train.py", f"experiment={row}", "resume=auto", f"hydra.run.dir={folder}", *others)
    if not _finished(summary):
        done = json.loads(summary.read_text())
        console.print(f"{row}: {done['epochs']:.2f} epochs done, not finished. The same command goes on.")
        sys.exit(NOT_FINISHED)
    if not (folder / "linear_probe.json").exists():
        call("scripts/linear_probe.py", f"ckpt={folder}")

    new, old = figures(folder), figures(RESULTS / row)
    judged = {name: judge(figure, old.get(name)) for name, figure in new.items()}
    for name, word in judged.items():
        figure, beside = new[name], old.get(name)
        text = "nothing committed" if beside is None else f"{beside['top1']:.2%} [{_range(beside)}] committed"
        console.print(f"{row}, {name}: {figure['top1']:.2%} [{_range(figure)}]; {text}: {word}", highlight=False)
    result = {"row": row, "words": others, "figures": new, "committed": old, "judged": judged}
    record.write(folder / "reproduce.json", result, began, {}, console)
    sys.exit(exit_code(list(judged.values())))


def _finished(summary: Path) -> bool:
    return summary.exists() and json.loads(summary.read_text())["status"] == "finished"


def _range(figure: dict[str, Any]) -> str:
    return ", ".join(f"{100 * end:.1f}" for end in figure["interval"])


if __name__ == "__main__":
    main()
