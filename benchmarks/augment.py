"""Views per second and memory of the two-view engine and of its peers, all with SimCLR's policy for CIFAR-10.

    python benchmarks/augment.py [--quick] [--device cuda]    # 8 minutes on 2 CPU cores; needs the extra `bench`

Crops of 0.08 to 1 of the area, flip, colour jitter of strength 0.5 with p 0.8, gray with p 0.2, no blur, normalised.
Ours and kornia get uint8 batches on the device; torchvision and lightly get PIL images one by one in a DataLoader with
a worker per core, as they are used. Each case has a process of its own. Views per second is the median over repeats,
memory the peak growth (resident set and, of workers, what is theirs alone; torch's allocator on a GPU). Writes
benchmarks/results/augment.json.
"""

import argparse
import functools
import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import record
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

ENGINES = ["eager", "compiled", "torchvision", "kornia", "lightly"]
OURS = {"eager", "compiled"}
IN_LOADER = {"torchvision", "lightly"}
BATCHES = {32: [64, 512, 4096], 224: [64, 256]}
BUDGET, MOST_PASSES = 4.0, 301  # seconds and repeats per case, whichever ends first
GOAL = {
    32: {"torchvision": 10, "kornia": 8},
    224: {"torchvision": 3, "kornia": 3},
}  # times as fast, at batch 512 or 256
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)
STORED = 512  # different images


def images(side: int, n: int) -> Tensor:
    return torch.randint(0, 256, (n, 3, side, side), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def ours(compiled: bool, side: int, batch: int, device: str) -> Callable[[int], Any]:
    from twoview.augment.image.geometric import HorizontalFlip, RandomResizedCrop
    from twoview.augment.image.photometric import ColorJitter, Grayscale
    from twoview.augment.views import TwoViews

    ops = {
        "crop": RandomResizedCrop(),
        "flip": HorizontalFlip(),
        "jitter": ColorJitter(strength=0.5),
        "gray": Grayscale(),
    }
    from twoview.data.image.pixels import Pixels

    views = TwoViews(ops, Pixels(MEAN, STD), compile=compiled).to(device)
    x, index = images(side, batch).to(device), torch.arange(batch, device=device)
    return lambda i: views(x, index, i)


def kornia(side: int, batch: int, device: str) -> Callable[[int], Any]:
    import kornia.augmentation as K

    policy = K.AugmentationSequential(
        K.RandomResizedCrop((side, side), scale=(0.08, 1.0)),
        K.RandomHorizontalFlip(),
        K.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
    )
    x = images(side, batch).to(device)

    @torch.no_grad()
    def views(i: int) -> list[Tensor]:
        floats = x.float() / 255
        return [policy(floats), policy(floats)]

    return views


def _twice(view: Callable[..., Any], picture: Any) -> tuple[Any, Any]:
    return view(picture), view(picture)


class Pictures(Dataset[Any]):
    """PIL images, of which each item is two views."""

    def __init__(self, engine: str, side: int) -> None:
        from torchvision.transforms import v2
        from torchvision.transforms.functional import to_pil_image

        self.pictures = [to_pil_image(x) for x in images(side, STORED)]
        if engine == "lightly":
            from lightly.transforms import SimCLRTransform

            normalize = {"mean": list(MEAN), "std": list(STD)}
            self.views: Callable[..., Any] = SimCLRTransform(
                side, cj_strength=0.5, gaussian_blur=0.0, normalize=normalize
            )
            return
        one = v2.Compose(
            [
                v2.RandomResizedCrop(side, scale=(0.08, 1.0)),
                v2.RandomHorizontalFlip(),
                v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
                v2.RandomGrayscale(0.2),
                v2.ToImage(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )
        self.views = functools.partial(_twice, one)

    def __len__(self) -> int:
        return 10**9

    def __getitem__(self, i: int) -> Any:
        return self.views(self.pictures[i % STORED])


def loader_seconds(engine: str, side: int, batch: int, budget: float) -> Iterator[float]:
    """Seconds per batch. Workers deliver in turns, so a turn of all of them is one repeat; the first is left out."""
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(1)  # workers have one each: so does what they are started from
    batches = iter(DataLoader(Pictures(engine, side), batch_size=batch, num_workers=workers))
    for turn in range(MOST_PASSES):
        start = time.perf_counter()
        for _ in range(workers):
            next(batches)
        seconds = time.perf_counter() - start
        if turn > 0:
            yield seconds / workers


def batch_seconds(make: Callable[[int], Any], device: str) -> Iterator[float]:
    for i in range(MOST_PASSES + 2):
        start = time.perf_counter()
        views = make(i)
        if device == "cuda":
            torch.cuda.synchronize()
        if i > 1:  # the first ones compile and allocate
            yield time.perf_counter() - start
        del views


def measure(engine: str, side: int, batch: int, device: str, budget: float) -> dict[str, Any]:
    """One case, in this process."""
    from twoview.train.trainer import keep_memory

    keep_memory()  # as in training; it serves every engine: otherwise each batch waits for fresh pages
    began = time.perf_counter()
    if engine in IN_LOADER:
        before, repeats = record.resident(), loader_seconds(engine, side, batch, budget)
    else:
        make = kornia(side, batch, device) if engine == "kornia" else ours(engine == "compiled", side, batch, device)
        before, repeats = record.resident(), batch_seconds(make, device)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        if engine == "compiled":
            start = time.perf_counter()
            make(0)
            began = time.perf_counter()
            compile_seconds = began - start
            before = max(before, record.resident()) if device == "cpu" else before
            if device == "cpu":
                record.clear_peak()  # the compiler's memory is not that of the views
    seconds, workers = [], 0
    for one in repeats:
        seconds.append(one)
        workers = max(workers, record.held_by_workers() if engine in IN_LOADER else 0)
        if sum(seconds) > budget and time.perf_counter() - began > budget:
            break
    if device == "cuda" and engine not in IN_LOADER:
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = record.peak() + workers
    case = {"views_per_second": 2 * batch / median(seconds), "extra_bytes": peak - before, "repeats": len(seconds)}
    return case | ({"compile_seconds": compile_seconds} if engine == "compiled" else {})


def in_own_process(engine: str, side: int, batch: int, device: str, budget: float) -> dict[str, Any]:
    words = ["--case", engine, str(side), str(batch), str(budget), "--device", device]
    return record.in_own_process(__file__, words)


def ratio(cases: list[dict[str, Any]], case: dict[str, Any], peer: str) -> float | None:
    """How many times as fast as a peer at the same size."""
    same = (c for c in cases if (c["side"], c["batch"], c["engine"]) == (case["side"], case["batch"], peer))
    other = next(same, {})  # none where the benchmark was stopped before
    known = "views_per_second" in case and "views_per_second" in other
    return case["views_per_second"] / other["views_per_second"] if known else None


def table(cases: list[dict[str, Any]], device: str) -> Table:
    peers = [e for e in ENGINES if e not in OURS]
    made = Table(
        "side", "B", "engine", "views/s", *(f"x {peer}" for peer in peers), "memory", title=f"Views on {device}"
    )
    for column in made.columns:
        column.justify = "left" if column.header == "engine" else "right"
    for case in cases:
        first = case["engine"] == ENGINES[0]
        start = [str(case["side"]) if first else "", f"{case['batch']:,}" if first else "", case["engine"]]
        if "skipped" in case:
            made.add_row(*start, case["skipped"])
        else:
            times = [ratio(cases, case, peer) if case["engine"] in OURS else None for peer in peers]
            ratios = ["" if r is None else f"{r:.1f}" for r in times]
            made.add_row(*start, f"{case['views_per_second']:,.0f}", *ratios, f"{case['extra_bytes'] / 2**20:,.0f} MiB")
        if case["engine"] == ENGINES[-1]:
            made.add_section()
    return made


def verdict(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The goals, and what was reached by the compiled form."""
    found = []
    for case in cases:
        if case["engine"] == "compiled" and (case["side"], case["batch"]) in ((32, 512), (224, 256)):
            reached = {peer: ratio(cases, case, peer) for peer in GOAL[case["side"]]}
            met = [None if r is None else r >= GOAL[case["side"]][peer] for peer, r in reached.items()]
            found.append({"side": case["side"], "goal": GOAL[case["side"]], "reached": reached, "met": met})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one batch size per side, a second per case")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "augment.json")
    parser.add_argument("--case", nargs=4, metavar=("ENGINE", "SIDE", "B", "SECONDS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        engine, side, batch, budget = args.case
        print(json.dumps(measure(engine, int(side), int(batch), args.device, float(budget))))
        return

    console, began, cases = Console(), time.perf_counter(), []
    budget = 1.0 if args.quick else BUDGET
    sizes = {32: [512], 224: [64]} if args.quick else BATCHES
    with record.until_stopped(console):
        for side, batch, engine in ((s, b, e) for s, batches in sizes.items() for b in batches for e in ENGINES):
            console.print(f"{engine}, {side} px, B = {batch:,}", style="dim")  # a spinner would take its share
            case = in_own_process(engine, side, batch, args.device, budget)
            cases.append({"side": side, "batch": batch, "engine": engine, **case})
    console.print(table(cases, args.device))
    result = {
        "device": args.device,
        "cases": cases,
        "verdict": verdict(cases),
    }
    record.write(args.out, result, began, {peer: record.version(peer) for peer in ("kornia", "lightly")}, console)


if __name__ == "__main__":
    main()
