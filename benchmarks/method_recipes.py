"""Searches the short recipe of each method for two CPU cores: values around those of `experiment=<method>_cifar10_cpu`.

    python benchmarks/method_recipes.py [method ...] [--epochs 2] [--float32] [--out FILE]    # five minutes a method

Each method is a study of one seed. Its first arm is the recipe as it is, and every other arm changes one thing. The
probe learns from 10,000 training images and is scored on 5,000 others, all of which pre-training has seen without
labels; the test set stays closed. SupCon is missing, for it learns from the labels of what would be scored. One seed
tells differences of about a point and a half, so a recipe changes only for more. `--float32` is for machines that
multiply in bfloat16 too, to see what most others would. What was measured before stays in the file, and the same
command goes on where it was stopped.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "benchmarks" / "results" / "methods" / "search.json"

LR = "optimizer.lr_per_256"
AXES: dict[str, dict[str, list[Any]]] = {  # values beside those of the recipe, by method
    "simclr": {"batch_size": [256], "model.temperature": [0.1]},
    "dcl": {"model.temperature": [0.15, 0.25], LR: [0.06]},
    "vicreg": {LR: [0.015, 0.06], "model.covariance": [4.0]},
    "simsiam": {LR: [0.015, 0.06], "augment.views": [[{"count": 4}]]},
    "swav": {"model.temperature": [0.2], "model.prototypes": [256], LR: [0.015]},
    "byol": {"model.momentum": [0.97], LR: [0.06, 0.1]},
    "barlow": {LR: [0.015, 0.06], "model.weight": [0.02]},
    "nnclr": {"batch_size": [256], "model.temperature": [0.1], "model.queue_size": [16384]},
    "ressl": {"batch_size": [256], "model.teacher_temperature": [0.06], "model.momentum": [0.97]},
    "dino": {"model.momentum": [0.97], "model.teacher_temperature": [0.07], LR: [0.015]},
    "wmse": {LR: [0.015, 0.06], "model.iterations": [4]},
    "lejepa": {"model.weight": [0.02, 0.2], LR: [0.015]},
    "corinfomax": {"batch_size": [256], "model.weight": [50.0], LR: [0.015]},
    "mmcr": {"batch_size": [256], "model.projector.out_dim": [512], LR: [0.015]},
    "moco": {"batch_size": [256], "model.temperature": [0.1]},
}


def command(method: str, epochs: int, float32: bool, folder: Path) -> list[str]:
    """The study of one method."""
    experiment = "cifar10_cpu" if method == "simclr" else f"{method}_cifar10_cpu"
    axes = json.dumps(AXES[method]).replace('"', "").replace(" ", "")
    words = [
        "study=strength",
        f"experiment={experiment}",
        "~study.axes",
        f"+study.axes={axes}",
        "study.seeds=1",
        f"epochs={epochs}",
        "judge.scored_on=train",
        "judge.profile=0",
        f"study.name={method}",
        f"study.title={method}: what its short recipe could be",
        f"folder={folder}",
        *(["trainer.precision=32-true"] if float32 else []),
    ]
    return [sys.executable, str(ROOT / "scripts" / "ablate_augment.py"), *words]


def trials(folder: Path) -> list[dict[str, Any]]:
    """What the arms of a study came to, in the order of the study."""
    order = json.loads((folder / "study.json").read_text())["arms"]
    runs = sorted(json.loads((folder / "runs.json").read_text()).values(), key=lambda run: order.index(run["arm"]))
    kept = ("arm", "words", "status", "error", "linear", "knn", "pretext", "cost", "protocol", "machine", "versions")
    return [{key: run[key] for key in (*kept, "commit") if key in run} for run in runs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", help=f"which: {', '.join(AXES)}; all by default")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--float32", action="store_true")
    parser.add_argument("--folder", type=Path, default=Path("runs") / "method_recipes")
    parser.add_argument("--out", type=Path, default=OUT)
    asked = parser.parse_args()
    if unknown := [method for method in asked.methods if method not in AXES]:
        parser.error(f"no such method: {', '.join(unknown)}; there are: {', '.join(AXES)}")
    failed = []
    for method in asked.methods or AXES:
        folder = asked.folder.resolve() / f"{method}_{asked.epochs}ep{'_float32' * asked.float32}"
        if subprocess.run(command(method, asked.epochs, asked.float32, folder), cwd=ROOT).returncode:
            failed.append(method)
        if not (folder / "runs.json").exists():
            continue
        found = json.loads(asked.out.read_text()) if asked.out.exists() else {}
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        asked.out.write_text(json.dumps(found | {method: trials(folder)}, indent=1) + "\n")
    if failed:
        sys.exit(f"not whole: {', '.join(failed)}; the same command goes on")


if __name__ == "__main__":
    main()
