"""What an image costs as the set and the batch grow, and what a second process gains.

    python benchmarks/scaling.py [--quick]     # 6 minutes on 2 CPU cores, 8 GiB of memory

Runs of train.py with the recipe of experiment=cifar10_cpu (`small`, views of 24 pixels) and its augmentation
compiled, on 5,000 to 1,000,000 images that are made up, and with batches of 128 to 4,096 on 50,000 of them. Images per
second are from the median step; what an epoch costs beside its steps (the order of the images, the checkpoint) and the
seconds until the first step stand apart. Memory is the peak growth of the resident set from before the images were
there, beside what `paper` says. Then two processes of one thread each, over gloo, against one process of one thread.
Muon's work for a step does not depend on the batch and is done by every process: the ends of both ranges with SGD, too.

Each case has a process of its own. Writes benchmarks/results/scaling.json.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import record
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

RECIPE = ["experiment=cifar10_cpu", "augment.compile=true"]
QUICK = ["experiment=cifar10_cpu", "augment.compile=false", "encoder.widths=[8,8,8,8]"]
SIZES, BATCHES = [5_000, 50_000, 500_000, 1_000_000], [128, 512, 2048, 4096]
IMAGES, BATCH = 50_000, 512
WARM, STEPS = 3, 20  # of the largest batches a fifth
GOAL = {"flat": 1.1, "memory": 1.25, "processes": 1.6}
SIDE = 32


def synthetic(n: int, split: str) -> Any:
    """`n` images of noise, 5,000 of them different: a SampleSet without labels, and no test split."""
    import torch

    from twoview.data.image.pixels import Pixels
    from twoview.data.set import SampleSet

    if split == "test":
        return None
    some = torch.randint(0, 256, (min(n, 5000), 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    images = some.to(torch.uint8).repeat(-(-n // len(some)), 1, 1, 1)[:n].contiguous()
    return SampleSet("noise", images, None, (), Pixels((0.5,) * 3, (0.29,) * 3))


def paper(n: int, batch: int, side: int, widths: list[int], parameters: int) -> dict[str, int]:
    """Bytes that a step of SimCLR with `small` needs, as computed on paper.

    `images`: uint8. `optimizer`: weights, gradients and momentum in float32, and weights once more in half precision.
    `activations`, for each of the 2B views: the view in float32 and in half; in half what every convolution gives
    (the input of its normalisation) and what its ReLU gives, the two residual sums, and what each pooling gives, with
    its indices of 8 bytes. `backward`: what passes the largest of them on the way back, in, out and past the residual
    branch. `loss`: three matrices (2B, 2B) in float32 and a mask.
    """
    w1, w2, w3, w4 = widths
    s2, s4, s8 = (side // 2) ** 2, (side // 4) ** 2, (side // 8) ** 2
    pooled = w1 * s4 + w2 * s8
    half = 3 * side**2 + 5 * w1 * s2 + 5 * w2 * s4 + 2 * w3 * s8 + 2 * w4 * s8 + pooled
    view = 2 * half + 8 * pooled + 4 * 3 * side**2
    return {
        "images": n * 3 * SIDE**2,
        "optimizer": 14 * parameters,
        "activations": 2 * batch * view,
        "backward": 2 * batch * 3 * 2 * w1 * s2,
        "loss": 13 * (2 * batch) ** 2,
    }


def measure(
    words: list[str], optimizer: str, n: int, batch: int, steps: int, processes: int, threads: int
) -> dict[str, Any]:
    """One case, in this process, or the first of `processes`. `threads` 0: as many as there are cores."""
    if threads:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # also of the processes that Lightning starts
    import own
    import torch

    from twoview.rng import permutation

    words = [*words, f"batch_size={batch}", "data=shapes", "trainer=cpu", f"optimizer={optimizer}"]
    if processes > 1:
        words += ["trainer.strategy=ddp", f"trainer.devices={processes}"]
    config = own.configuration(words)
    config["data"] = {"_target_": "scaling.synthetic", "_partial_": True, "n": n}
    config["trust"] = ["scaling"]
    parameters = sum(p.numel() for p in own.model_and_optimizer(config, "cpu", "32-true")[0].parameters())
    before = record.memory_before(cuda=False)
    clock = own.Clock("cpu", WARM)

    def on_step(trainer: Any) -> None:
        clock.tick()
        if clock.steps == WARM:
            record.clear_peak()  # the compiler's memory is not that of the loop

    with tempfile.TemporaryDirectory() as folder:
        own.run(config, Path(folder), WARM + steps, on_step)
    if int(os.environ.get("LOCAL_RANK", 0)):
        sys.exit()  # the first process tells
    extra = record.memory_at_most(cuda=False) - before
    within, across = parts(clock.seconds, n // batch)
    start = time.perf_counter()
    permutation(n, seed=0, epoch=1)
    side = config["augment"]["ops"]["crop"]["size"] or SIDE
    return {
        "optimizer": optimizer,
        "images": n,
        "batch": batch,
        "processes": processes,
        "threads": torch.get_num_threads(),
        "images_per_second": batch / median(within),
        "epoch_end_seconds": median(across) - median(within) if across else None,
        "order_seconds": time.perf_counter() - start,
        "first_step_after_seconds": clock.first,
        "extra_bytes": extra,
        "paper_bytes": paper(n, batch, side, config["encoder"]["widths"], parameters),
    }


def parts(seconds: list[float], per_epoch: int) -> tuple[list[float], list[float]]:
    """Durations of the steps within epochs, and of those that begin one: with what lies between two epochs."""
    within, across = [], []
    for i, duration in enumerate(seconds):
        (across if (WARM + i) % per_epoch == 0 else within).append(duration)
    return within, across


def unevenness(cases: list[dict[str, Any]]) -> float | None:
    """The dearest image of the cases, in terms of the cheapest."""
    speeds = [case["images_per_second"] for case in cases if "images_per_second" in case]
    return max(speeds) / min(speeds) if len(speeds) == len(cases) and cases else None


def verdict(sizes: list[Any], batches: list[Any], processes: list[Any]) -> list[dict[str, Any]]:
    largest = batches[-1]
    memory = largest["extra_bytes"] / sum(largest["paper_bytes"].values()) if "paper_bytes" in largest else None
    speeds = [case.get("images_per_second") for case in processes]
    gain = speeds[1] / speeds[0] if all(speeds) else None
    return [
        record.goal("cost per image over sizes, dearest by cheapest", unevenness(sizes), at_most=GOAL["flat"]),
        record.goal("cost per image over batches, dearest by cheapest", unevenness(batches), at_most=GOAL["flat"]),
        record.goal("memory of the largest batch, of the figure on paper", memory, at_most=GOAL["memory"]),
        record.goal("two processes, of one", gain, at_least=GOAL["processes"]),
    ]


def table(cases: list[dict[str, Any]]) -> Table:
    about, costs = ("optimizer", "images", "B", "proc."), ("img/s", "us/img", "order", "end", "start")
    made = Table(*about, *costs, "MiB", "paper", title="Scaling", box=SIMPLE_HEAD, padding=0)
    for column in made.columns[1:]:
        column.justify = "right"
    for case in cases:
        start = [case["optimizer"], f"{case['images']:,}", f"{case['batch']:,}", str(case["processes"])]
        if "images_per_second" not in case:
            made.add_row(*start, case["skipped"])
            continue
        end = case["epoch_end_seconds"]
        made.add_row(
            *start,
            f"{case['images_per_second']:,.0f}",
            f"{1e6 / case['images_per_second']:,.0f}",
            f"{case['order_seconds']:.2f}",
            "" if end is None else f"{end:.2f}",
            f"{case['first_step_after_seconds']:.1f}",
            f"{case['extra_bytes'] / 2**20:,.0f}",
            f"{sum(case['paper_bytes'].values()) / 2**20:,.0f}",
        )
    return made


def _steps(batch: int, steps: int) -> int:
    return steps if batch <= 1024 else max(4, steps // 5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny network, small sets and batches")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "scaling.json")
    parser.add_argument("--case", nargs=6, metavar=tuple("ABCDEF"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measure(QUICK if args.quick else RECIPE, args.case[0], *map(int, args.case[1:]))))
        return

    console, began = Console(), time.perf_counter()
    sizes, batches, images, batch, steps = SIZES, BATCHES, IMAGES, BATCH, STEPS
    if args.quick:
        sizes, batches, images, batch, steps = [64, 256], [16, 32], 256, 16, 6
    plans = {
        "sizes": [("muon", n, batch, steps, 1, 0) for n in sizes],
        "batches": [("muon", images, b, _steps(b, steps), 1, 0) for b in batches],
        "batches_sgd": [("sgd", images, b, _steps(b, steps), 1, 0) for b in (batches[0], batches[-1])],
        "processes": [("muon", images, batch, steps, p, 1) for p in (1, 2)],
        "processes_sgd": [("sgd", images, batch, steps, p, 1) for p in (1, 2)],
    }
    found: dict[str, list[dict[str, Any]]] = {}
    for name, cases in plans.items():
        for optimizer, n, b, k, processes, threads in cases:
            console.print(f"{optimizer}, {n:,} images, B = {b:,}, {processes} processes", style="dim")
            words = [optimizer, *map(str, (n, b, k, processes, threads)), *(["--quick"] if args.quick else [])]
            case = {"optimizer": optimizer, "images": n, "batch": b, "processes": processes}
            found.setdefault(name, []).append(case | record.in_own_process(__file__, ["--case", *words]))
    console.print(table([case for cases in found.values() for case in cases]))
    goals = verdict(found["sizes"], found["batches"], found["processes"])
    record.say(goals, console)
    record.write(args.out, {**found, "verdict": goals}, began, {}, console)


if __name__ == "__main__":
    main()
