"""Memory and time of NT-Xent, forward and backward: the similarity matrix at once, in chunks, and lightly's.

    python benchmarks/loss.py [--quick] [--device cuda]      # 6 minutes on 2 CPU cores; needs lightly for its column

Each case has a process of its own, so that no case finds memory that another has left. Extra memory is the peak during
the first loss and backward pass, beside the embeddings: of the resident set on a CPU (Linux), of torch's allocator on a
GPU. Time is the median of passes. A case that is expected not to fit, by the square of what the size before it took,
is said and not tried. Writes benchmarks/results/loss.json.
"""

import argparse
import importlib.metadata
import json
import sys
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

from twoview.losses.contrastive import nt_xent_contrast

SIZES = [512, 2048, 8192, 16384, 32768]
FORMS = ["plain", "chunked", "lightly"]
DIM, TEMPERATURE = 128, 0.5
BUDGET, MOST_PASSES = 10.0, 15  # seconds and passes per case, whichever ends first
GOAL: dict[str, float] = {"batch": 16384, "memory": 1 / 8, "seconds": 1.3}  # of the plain form's, at most
GIB = 2**30


def build(form: str, chunk: int) -> Callable[[Tensor, Tensor], Tensor]:
    if form == "lightly":
        from lightly.loss import NTXentLoss

        return NTXentLoss(TEMPERATURE)
    return lambda z1, z2: nt_xent_contrast(z1, z2, TEMPERATURE, chunk=chunk if form == "chunked" else None).loss


def measure(form: str, batch: int, chunk: int, device: str, budget: float) -> dict[str, Any]:
    """One case, in this process."""
    loss_of, cuda = build(form, chunk), device == "cuda"

    def one_pass(z1: Tensor, z2: Tensor) -> tuple[float, float]:
        start = time.perf_counter()
        loss = loss_of(z1, z2)
        loss.backward()
        value = loss.item()  # waits for the GPU
        if cuda:
            torch.cuda.synchronize()
        return value, time.perf_counter() - start

    def embeddings(n: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        return [torch.randn(n, DIM, generator=generator).to(device).requires_grad_() for _ in range(2)]

    one_pass(*embeddings(64))  # libraries, threads, kernels
    z1, z2 = embeddings(batch)
    before = record.memory_before(cuda)
    value, seconds = one_pass(z1, z2)
    peak = record.memory_at_most(cuda)
    passes = [seconds]
    while sum(passes) < budget and len(passes) < MOST_PASSES:
        passes.append(one_pass(z1, z2)[1])
    return {"extra_bytes": peak - before, "seconds": median(passes), "passes": len(passes), "loss": value}


def free_memory(device: str) -> int:
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return int(lines["MemAvailable"].split()[0]) * 1024


def in_own_process(form: str, batch: int, chunk: int, device: str, budget: float) -> dict[str, Any]:
    words = ["--case", form, str(batch), str(budget), "--chunk", str(chunk), "--device", device]
    return record.in_own_process(__file__, words)


def compare(sizes: list[int], chunk: int, device: str, budget: float, console: Console) -> Iterator[dict[str, Any]]:
    expected = dict.fromkeys(FORMS, 0.0)  # bytes that the next size should take
    for i, batch in enumerate(sizes):
        losses = []
        for form in FORMS:
            if expected[form] > 0.9 * free_memory(device):
                case: dict[str, Any] = {"skipped": f"would need about {expected[form] / GIB:.0f} GiB"}
            else:
                console.print(f"{form}, B = {batch:,}", style="dim")  # a spinner would take its share of the cores
                case = in_own_process(form, batch, chunk, device, budget)
            if i + 1 < len(sizes):
                growth = sizes[i + 1] / batch
                last = float(case.get("extra_bytes", expected[form]))
                expected[form] = last * (growth if form == "chunked" else growth**2)
            losses += [case["loss"]] if "loss" in case else []
            yield {"batch": batch, "form": form, **case}
        if max(losses, default=0) - min(losses, default=0) > 1e-4:
            sys.exit(f"the losses of one batch differ: {losses}")


def relative(cases: list[dict[str, Any]], case: dict[str, Any], key: str) -> float | None:
    """How many times the plain form's number, where both are known."""
    plain = next(c for c in cases if c["batch"] == case["batch"] and c["form"] == "plain")
    return case[key] / plain[key] if key in case and plain.get(key) else None


def table(cases: list[dict[str, Any]], chunk: int) -> Table:
    made = Table("B", "form", "extra memory", "of plain", "seconds", "of plain", title=f"NT-Xent, D = {DIM}")
    for column in made.columns:
        column.justify = "left" if column.header == "form" else "right"
    for case in cases:
        name = f"chunks of {chunk}" if case["form"] == "chunked" else case["form"]
        start = [f"{case['batch']:,}" if case["form"] == FORMS[0] else "", name]
        if "skipped" in case:
            made.add_row(*start, case["skipped"])
        else:
            memory, seconds = (relative(cases, case, key) for key in ("extra_bytes", "seconds"))
            ratios = ["" if ratio is None else f"{ratio:.2f}" for ratio in (memory, seconds)]
            made.add_row(
                *start, f"{case['extra_bytes'] / 2**20:,.0f} MiB", ratios[0], f"{case['seconds']:.3f}", ratios[1]
            )
        if case["form"] == FORMS[-1]:
            made.add_section()
    return made


def verdict(cases: list[dict[str, Any]]) -> dict[str, Any]:
    """The goal, and what the chunked form needs of the plain form's memory and time at that size; None: unknown."""
    case = next((c for c in cases if c["batch"] == GOAL["batch"] and c["form"] == "chunked"), None)
    memory, seconds = (relative(cases, case, key) if case else None for key in ("extra_bytes", "seconds"))
    met = None if memory is None or seconds is None else memory <= GOAL["memory"] and seconds <= GOAL["seconds"]
    return {"goal": GOAL, "memory": memory, "seconds": seconds, "met": met}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the two smallest sizes, a second per case")
    parser.add_argument("--chunk", type=int, default=256, help="rows held at once (default: %(default)s)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "loss.json")
    parser.add_argument("--case", nargs=3, metavar=("FORM", "B", "SECONDS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        form, batch, budget = args.case
        print(json.dumps(measure(form, int(batch), args.chunk, args.device, float(budget))))
        return
    if args.device == "cpu" and not Path("/proc/self/clear_refs").exists():
        sys.exit("peak memory on a CPU is read from /proc, which only Linux has: try --device cuda")

    console, began, cases = Console(), time.perf_counter(), []
    sizes, budget = (SIZES[:2], 1.0) if args.quick else (SIZES, BUDGET)
    with record.until_stopped(console):
        for case in compare(sizes, args.chunk, args.device, budget, console):
            cases.append(case)  # noqa: PERF402 - one by one: some may be left
    console.print(table(cases, args.chunk))
    goal = verdict(cases)
    if goal["met"] is not None:
        console.print(
            f"B = {GOAL['batch']:,} in chunks: {goal['memory']:.3f} of the plain form's memory (goal: at most "
            f"{GOAL['memory']}), {goal['seconds']:.2f} of its time (at most {GOAL['seconds']})"
        )
    try:
        used = {"lightly": importlib.metadata.version("lightly")}
    except importlib.metadata.PackageNotFoundError:
        used = {}
        console.print("lightly is not installed: its column is empty")
    result = {
        "dim": DIM,
        "temperature": TEMPERATURE,
        "chunk": args.chunk,
        "device": args.device,
        "cases": cases,
        "verdict": goal,
    }
    record.write(args.out, result, began, used, console)


if __name__ == "__main__":
    main()
