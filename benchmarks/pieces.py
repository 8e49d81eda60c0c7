"""A step whose encoder takes the batch in pieces, beside the plain steps of the whole batch and of a piece.

    python benchmarks/pieces.py                            ResNet-18, batch 4,096 in 8 pieces of 32 px images: for a GPU
    python benchmarks/pieces.py --device cpu --batch 256   a small one, a minute on 2 cores

SimCLR's step, forward and backward. Each case has a process of its own; memory is what a step takes beside weights and
views, at most; time is the median of steps. Writes benchmarks/results/pieces_<device>.json.
"""

import argparse
import json
import sys
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import record
import torch
from rich.console import Console

from twoview.data.batches import Batch
from twoview.encoder.resnet import resnet18
from twoview.model.base import Begin
from twoview.model.part.head import Projector
from twoview.model.simclr import SimCLR
from twoview.optim.recipe import Recipe

GOAL = {"memory": 1.1, "seconds": 1.4}  # of a piece's memory, and of the whole batch's time, at most


def measure(batch: int, pieces: int, side: int, steps: int, device: str) -> dict[str, Any]:
    """One case, in this process."""
    cuda = device == "cuda"
    torch.manual_seed(0)
    head = partial(Projector, hidden_dim=512)
    model = SimCLR(resnet18(), Recipe(torch.optim.SGD, 0.1), head).to(device, memory_format=torch.channels_last)
    model.begin(Begin(batch, steps, 1, pieces=pieces))
    index = torch.arange(batch, device=device)
    views = Batch(tuple(torch.rand(2, batch, 3, side, side, device=device)), index, index)
    before, seconds = record.memory_before(cuda), []
    for _ in range(steps + 1):
        start = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=cuda):
            model.step(views).loss.backward()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        model.zero_grad()
    return {"mib": (record.memory_at_most(cuda) - before) / 2**20, "seconds": median(seconds[1:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    for name, default in (("batch", 4096), ("pieces", 8), ("side", 32), ("steps", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--case", action="store_true", help="measure this one and print it")
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measure(args.batch, args.pieces, args.side, args.steps, args.device)))
        return
    console, began = Console(), time.perf_counter()
    same = [f"--device={args.device}", f"--side={args.side}", f"--steps={args.steps}", "--case"]
    cases = {
        name: record.in_own_process(__file__, [*same, f"--batch={batch}", f"--pieces={pieces}"])
        for name, batch, pieces in (
            ("in pieces", args.batch, args.pieces),
            ("a piece alone", args.batch // args.pieces, 1),
            ("whole", args.batch, 1),
        )
    }
    for name, case in cases.items():
        console.print(name, case, highlight=False)
    ratio = {
        key: cases["in pieces"][key] / cases[other][key] if key in cases["in pieces"] and key in cases[other] else None
        for key, other in (("mib", "a piece alone"), ("seconds", "whole"))
    }
    goals = [
        record.goal("memory in units of a piece's", ratio["mib"], at_most=GOAL["memory"]),
        record.goal("time in units of the whole batch's", ratio["seconds"], at_most=GOAL["seconds"]),
    ]
    record.say(goals, console)
    about = {"batch": args.batch, "pieces": args.pieces, "side": args.side, "steps": args.steps, "device": args.device}
    out = Path(__file__).parent / "results" / f"pieces_{args.device}.json"
    record.write(out, about | {"cases": cases, "goals": goals}, began, {}, console)


if __name__ == "__main__":
    sys.exit(main())
