"""Images per second of the whole loop, with data and augmentation, each through its own trainer.

    python benchmarks/run.py [--quick] [--device cuda]    # 6 minutes on 2 CPU cores; needs the extras `bench`, `plot`

`ours` is a run as train.py starts it and as its configuration has it, augmentation compiled or not, with its
meters and logs (kNN and checkpoints come at the end of an epoch, and no epoch ends here). The peers stand in
`peers.py`: torchvision transforms or lightly's, image by image, in a DataLoader with a worker per core.
`bare` is the limit, the step of `train_step.py` on views that are already there. Each in the precision that it has by
default, and in the fastest that the device computes in natively. Same network, batch and images (CIFAR-10): on a CPU
ResNet-18 with 128 images, and ours with `small` as in experiment=cifar10_cpu too; on a GPU ResNet-18 and ResNet-50 with
512, and ours as in experiment=cifar10_fast too.

Each case has a process of its own; `bare` and `ours`, which are held to a few percent of each other, take turns. Images
per second are from the median of steps (of turns of all workers) after those that compile and fill the queues. Memory
is the peak growth from before the data were loaded (resident set, and of workers what is theirs alone; torch's
allocator on a GPU). A product of matrices tells what the machine computes at most. Writes benchmarks/results/run.json
and run.png.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import record
import train_step
from rich.console import Console
from train_step import NETWORKS, SHORT, TURNS, TWINS, pooled, rate, ratio, schedule

QUICK = {
    "cpu": {"small": ["experiment=cifar10_cpu", "batch_size=16", "augment.compile=false"]},
    "cuda": {"resnet18": ["batch_size=64"]},
}
FEW = ["data=shapes", "data.n_train=256", "data.n_test=16", "data.size=32"]  # images for --quick
OWN_ONLY = {"cpu": {"small"}, "cuda": set()}  # networks that only `bare` and `ours` are measured with
STEPS = {"cpu": {"own": 12, "peer": 6}, "cuda": {"own": 200, "peer": 40}}  # after the first ones
WARM = {"cpu": 2, "cuda": 20}
GOAL: dict[str, float] = {"lightly": 3.0, "small": 900.0, "epoch_seconds": 1.8}  # beside those of `train_step`


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def own_run(words: list[str], device: str, steps: int) -> tuple[Any, int, int]:
    """(clock, batch, bytes) of a run of ours."""
    import own

    config = own.configuration(words)
    cuda, clock = device == "cuda", own.Clock(device, WARM[device], every=20 if device == "cuda" else 1)
    before = record.memory_before(cuda)

    def on_step(trainer: Any) -> None:
        clock.tick()
        if clock.steps == clock.warm and not cuda:
            record.clear_peak()  # the compiler's memory is not that of the loop

    with tempfile.TemporaryDirectory() as folder:
        own.run(config, Path(folder), WARM[device] + steps, on_step)
    return clock, config["batch_size"], record.memory_at_most(cuda) - before


def peer_run(engine: str, network: str, words: list[str], chosen: str, device: str, steps: int) -> tuple[Any, int, int]:
    """The same of a loop in the manner of a peer."""
    import own
    import torch
    from peers import PEERS, loader

    from twoview.cli import schema

    config, cuda, workers = own.configuration(words), device == "cuda", cores()
    torch.manual_seed(0)
    before = record.memory_before(cuda)
    images = schema.build(config["data"])(split="train")
    peer, batch = PEERS[engine](network), config["batch_size"]
    if peer.channels_last:
        peer = peer.to(memory_format=torch.channels_last)
    clock = own.Clock(device, WARM[device], every=20 if cuda else workers)
    last, held = WARM[device] + steps, 0

    def progress() -> float:
        nonlocal held
        clock.tick()
        if clock.steps == last:
            held = record.held_by_workers()
        return clock.steps / last

    peer.fit(loader(peer, images, batch, workers, device), batch, chosen, device, progress)
    return clock, batch, record.memory_at_most(cuda) - before + (0 if cuda else held)


def matmul(chosen: str, device: str) -> dict[str, Any]:
    """What the machine computes at most: floating-point operations per second of a product of square matrices."""
    import torch

    from twoview.parallel.precision import half_of

    n, dtype = 4096 if device == "cuda" else 2048, half_of(chosen) or torch.float32
    a, b = torch.randn(2, n, n, device=device, dtype=dtype)
    seconds = []
    for _ in range(12):
        start = time.perf_counter()
        c = a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    assert c.isfinite().all()
    return {"gflops": 2e-9 * n**3 / median(seconds[2:])}


def measure(engine: str, network: str, words: list[str], chosen: str, device: str, share: float) -> dict[str, Any]:
    """One case, in this process, with `share` of the steps."""
    if engine == "matmul":
        return matmul(chosen, device)
    if engine == "bare":
        steps = max(3, round(share * STEPS[device]["own"]))
        return train_step.measure("bare", network, words, chosen, device, budget=0.0, at_least=steps)
    if engine == "ours":
        clock, batch, extra = own_run(words, device, max(3, round(share * STEPS[device]["own"])))
    else:
        steps = max(cores(), round(share * STEPS[device]["peer"]))
        clock, batch, extra = peer_run(engine, network, words, chosen, device, steps)
    case = {"batch": batch, "step_seconds": clock.seconds, "extra_bytes": extra}
    return case | ({"first_step_after_seconds": clock.first} if engine == "ours" else {})


def verdict(cases: list[dict[str, Any]], device: str) -> list[dict[str, Any]]:
    networks = dict.fromkeys(case["network"] for case in cases)
    goals = [
        record.goal(
            f"whole loop of ours, {network}, of the bare step",
            ratio(rate(cases, network, "ours"), rate(cases, network, "bare")),
            at_least=train_step.GOAL[device],
        )
        for network in networks
    ]
    ours = rate(cases, "resnet18", "ours")
    if device == "cpu":
        beside = ratio(ours, rate(cases, "resnet18", "lightly"))
        goals.append(record.goal("whole loop of ours, resnet18, of lightly's default", beside, GOAL["lightly"]))
        goals.append(record.goal("images/s of ours, small", rate(cases, "small", "ours"), GOAL["small"]))
    else:
        seconds = None if ours is None else 50_000 / ours
        goals.append(record.goal("seconds per epoch, resnet18", seconds, at_most=GOAL["epoch_seconds"]))
    return goals


def draw(cases: list[dict[str, Any]], device: str, out: Path) -> None:
    """Images per second as bars, one panel for each network."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    measured = [case for case in cases if "images_per_second" in case]
    networks = list(dict.fromkeys(case["network"] for case in measured))
    rows = [[case for case in measured if case["network"] == network] for network in networks]
    figure, axes = plt.subplots(
        len(rows),
        1,
        figsize=(7.5, 0.9 + 0.36 * len(measured) + 0.5 * len(rows)),
        height_ratios=[len(row) for row in rows],
        squeeze=False,
        layout="constrained",
    )
    colours = {"ours": "#0f6fbf", "bare": "#b9c2cc"}
    for axis, network, row in zip(axes[:, 0], networks, rows, strict=True):
        speeds = [case["images_per_second"] for case in row]
        bars = axis.barh(
            [f"{case['engine']}, {SHORT[case['precision']]}" for case in row],
            speeds,
            color=[colours.get(case["engine"], "#d98b3a") for case in row],
        )
        axis.bar_label(bars, [f"{speed:,.0f}" for speed in speeds], padding=3)
        axis.invert_yaxis()
        axis.set_xlim(0, 1.12 * max(speeds))
        axis.set_title(f"{network}, batch {row[0]['batch']}", loc="left", fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1, 0].set_xlabel(f"images/s of the whole loop ({'one GPU' if device == 'cuda' else f'{cores()} CPU cores'})")
    figure.savefig(out, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small network, a few steps on drawn images")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "run.json")
    parser.add_argument("--case", nargs=4, metavar=tuple("ABCD"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    trainer = f"trainer={'gpu' if args.device == 'cuda' else 'cpu'}"
    words = {
        network: [*own_words, trainer, *(FEW if args.quick else [])]
        for network, own_words in (QUICK if args.quick else NETWORKS)[args.device].items()
    }
    if args.case:
        engine, network, chosen, share = args.case
        print(json.dumps(measure(engine, network, words.get(network, []), chosen, args.device, float(share))))
        return

    from twoview.parallel.precision import best_precision

    console, began, found = Console(), time.perf_counter(), []
    common = ["--device", args.device, *(["--quick"] if args.quick else [])]
    with record.until_stopped(console):
        for network, engine, chosen in schedule(list(words), args.device):
            if engine not in TWINS and network in OWN_ONLY[args.device] and not args.quick:
                continue
            console.print(f"{engine}, {network}, {chosen}", style="dim")  # a spinner would take its share of the cores
            share = 0.1 if args.quick else 1 / TURNS if engine in TWINS else 1.0
            case = record.in_own_process(__file__, ["--case", engine, network, chosen, str(share), *common])
            found.append({"network": network, "engine": engine, "precision": chosen, **case})
    peaks = {
        chosen: record.in_own_process(__file__, ["--case", "matmul", "none", chosen, "1", *common])
        for chosen in dict.fromkeys(("32-true", best_precision(args.device)))
    }
    console.print(f"a product of matrices: {peaks}")
    cases = pooled(found)
    console.print(train_step.table(cases, f"Whole loop on {args.device}"))
    goals = verdict(cases, args.device)
    record.say(goals, console)
    result = {"device": args.device, "workers": cores(), "cases": cases, "matmul": peaks, "verdict": goals}
    record.write(args.out, result, began, {"lightly": record.version("lightly")}, console)
    if any("images_per_second" in case for case in cases):
        draw(cases, args.device, args.out.with_suffix(".png"))


if __name__ == "__main__":
    main()
