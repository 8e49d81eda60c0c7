"""Images per second and memory of the training step alone, on views that are already there: ours, and its peers'.

    python benchmarks/train_step.py [--quick] [--device cuda]    # 6 minutes on 2 CPU cores; needs the extra `bench`

`bare` is the limit: forward, NT-Xent in its plainest form, backward and optimizer step of the same network, memory
format and precision as ours, without Lightning and without what is measured on the way. `ours` is the module's own
`training_step`, its backward pass and its optimizer. The peers stand in `peers.py`. Each in the precision that it has
by default, and in the fastest that the device computes in natively. On a CPU: ResNet-18 with 128 images, and `small` as
in experiment=cifar10_cpu (512 images, views of 24 pixels); on a GPU ResNet-18 and ResNet-50 with 512 images, as in
experiment=cifar10_100ep, and ours as in experiment=cifar10_fast.

Each case has a process of its own; `bare` and `ours`, which are held to a few percent of each other, take turns. Images
per second are from the median step, memory is the peak growth from before the network was built (resident set; torch's
allocator on a GPU). Writes benchmarks/results/train_step.json.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import record
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

ENGINES = ["bare", "ours", "lightly", "solo-learn-like", "dkobak-like"]
TWINS, TURNS = ("bare", "ours"), 3  # measured in turns, as often as this
NETWORKS = {
    "cpu": {"resnet18": ["batch_size=128"], "small": ["experiment=cifar10_cpu"]},
    "cuda": {
        "resnet18": ["experiment=cifar10_100ep"],
        "resnet50": ["experiment=cifar10_100ep", "encoder=resnet50"],
        "cifar10_fast": ["experiment=cifar10_fast"],
    },
}
OWN_RECIPES = {"cifar10_fast"}  # which only `bare` and `ours` are measured with
QUICK = {"cpu": {"small": ["experiment=cifar10_cpu", "batch_size=16"]}, "cuda": {"resnet18": ["batch_size=64"]}}
SHORT = {"bf16-mixed": "bf16", "16-mixed": "fp16", "32-true": "fp32"}
WARM, BUDGET, MOST_STEPS = 3, 10.0, 200  # steps, seconds and steps per case
GOAL = {"cpu": 0.95, "cuda": 0.9}  # of the bare step's images per second, at least


def own_step(bare: bool, config: dict[str, Any], chosen: str, device: str) -> Callable[[], Any]:
    import own
    import torch
    from peers import nt_xent

    from twoview.data.batches import Batch
    from twoview.train.trainer import keep_memory

    keep_memory()  # as in a run, whose trainer also lets cuDNN try out which convolutions are fastest
    torch.backends.cudnn.benchmark = device == "cuda"
    views = own.views(config, device)
    index = torch.arange(config["batch_size"], device=device)
    batch = Batch(views, index, index)
    model, optimizer = own.model_and_optimizer(config, device, chosen)

    def loss() -> Any:
        if not bare:
            return model.training_step(batch, 0)["loss"]
        z1, z2 = model.projector(model.through(model.encoder, torch.cat(views))).chunk(2)
        return nt_xent(z1, z2, model.temperature)

    def step() -> None:
        with own.autocast(device, chosen):
            value = loss()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    return step


def peer_step(engine: str, network: str, config: dict[str, Any], chosen: str, device: str) -> Callable[[], Any]:
    import own
    import torch
    from peers import PEERS

    peer = PEERS[engine](network).to(device).train()
    if peer.channels_last:
        peer = peer.to(memory_format=torch.channels_last)
    v1, v2 = own.views(config, device)
    optimizer = peer.make_optimizer(config["batch_size"])

    def step() -> None:
        with own.autocast(device, chosen):
            value = peer.loss(v1, v2)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()

    return step


def measure(
    engine: str, network: str, words: list[str], chosen: str, device: str, budget: float, at_least: int = 3
) -> dict[str, Any]:
    """One case, in this process: as many steps as fit into `budget` seconds, but `at_least` some."""
    import own

    config, clock = own.configuration(words), own.Clock(device, WARM)
    before = record.memory_before(device == "cuda")
    make = peer_step(engine, network, config, chosen, device) if engine not in TWINS else None
    step = make or own_step(engine == "bare", config, chosen, device)
    while len(clock.seconds) < MOST_STEPS and (sum(clock.seconds) < budget or len(clock.seconds) < at_least):
        step()
        clock.tick()
    extra = record.memory_at_most(device == "cuda") - before
    return {"batch": config["batch_size"], "step_seconds": clock.seconds, "extra_bytes": extra}


def precisions(engine: str, device: str) -> list[str]:
    """The precision that an engine has by default on `device`, and the fastest that the device computes in natively."""
    from peers import PEERS

    from twoview.parallel.precision import best_precision

    best = best_precision(device)
    default = best if engine in TWINS else PEERS[engine].precision
    if (default, device) == ("16-mixed", "cpu"):
        default = best  # Lightning's own substitute, unless it were emulated
    return list(dict.fromkeys([default, best]))


def schedule(networks: list[str], device: str) -> list[tuple[str, str, str]]:
    """(network, engine, precision) in the order of measurement; the twins take turns."""
    order = []
    for network in networks:
        engines = TWINS if network in OWN_RECIPES else ENGINES
        cases = [(network, engine, chosen) for engine in engines for chosen in precisions(engine, device)]
        twins = [case for case in cases if case[1] in TWINS]
        order += twins * TURNS + [case for case in cases if case[1] not in TWINS]
    return order


def pooled(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One case of all measurements of the same network, engine and precision: images per second of the median step."""
    cases: dict[tuple[str, str, str], dict[str, Any]] = {}
    for one in found:
        case = cases.setdefault((one["network"], one["engine"], one["precision"]), {**one, "step_seconds": []})
        case["step_seconds"] = case["step_seconds"] + one.get("step_seconds", [])
        case["extra_bytes"] = max(case.get("extra_bytes", 0), one.get("extra_bytes", 0))
    for case in cases.values():
        if case["step_seconds"]:
            case["steps"], case["spread"] = len(case["step_seconds"]), _spread(case["step_seconds"])
            case["images_per_second"] = case["batch"] / median(case.pop("step_seconds"))
    return list(cases.values())


def _spread(seconds: list[float]) -> float:
    """The distance of the quartiles, of the median."""
    ordered = sorted(seconds)
    return (ordered[3 * len(ordered) // 4] - ordered[len(ordered) // 4]) / median(ordered)


def rate(cases: list[dict[str, Any]], network: str, engine: str) -> float | None:
    """Images per second of an engine, in the precision that it has by default."""
    case = next((c for c in cases if (c["network"], c["engine"]) == (network, engine)), None)
    return case.get("images_per_second") if case else None


def ratio(a: float | None, b: float | None) -> float | None:
    return a / b if a is not None and b else None


def table(cases: list[dict[str, Any]], title: str) -> Table:
    made = Table(
        "network",
        "B",
        "engine",
        "in",
        "images/s",
        "of bare",
        "ours is",
        "MiB",
        title=title,
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for i in (1, 4, 5, 6, 7):
        made.columns[i].justify = "right"
    for i, case in enumerate(cases):
        network = case["network"]
        first = i == 0 or cases[i - 1]["network"] != network
        if first and i:
            made.add_section()
        about = [network, str(case.get("batch", ""))] if first else ["", ""]
        start = [*about, case["engine"], SHORT[case["precision"]]]
        if "images_per_second" not in case:
            made.add_row(*start, case.get("skipped", ""))
            continue
        speed = case["images_per_second"]
        share, times = ratio(speed, rate(cases, network, "bare")), ratio(rate(cases, network, "ours"), speed)
        made.add_row(
            *start,
            f"{speed:,.0f}" if speed >= 100 else f"{speed:.1f}",
            "" if share is None else f"{share:.3f}",
            "" if times is None or case["engine"] in TWINS else f"{times:.1f} x",
            f"{case['extra_bytes'] / 2**20:,.0f}",
        )
    return made


def verdict(cases: list[dict[str, Any]], device: str) -> list[dict[str, Any]]:
    return [
        record.goal(
            f"step of ours, {network}, of the bare step",
            ratio(rate(cases, network, "ours"), rate(cases, network, "bare")),
            at_least=GOAL[device],
        )
        for network in dict.fromkeys(case["network"] for case in cases)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small network, a second per case")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "train_step.json")
    parser.add_argument("--case", nargs=4, metavar=tuple("ABCD"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    networks = (QUICK if args.quick else NETWORKS)[args.device]
    if args.case:
        engine, network, chosen, budget = args.case
        print(json.dumps(measure(engine, network, networks[network], chosen, args.device, float(budget))))
        return

    console, began, found = Console(), time.perf_counter(), []
    budget = 0.5 if args.quick else BUDGET
    common = ["--device", args.device, *(["--quick"] if args.quick else [])]
    with record.until_stopped(console):
        for network, engine, chosen in schedule(list(networks), args.device):
            console.print(f"{engine}, {network}, {chosen}", style="dim")  # a spinner would take its share of the cores
            share = str(budget / TURNS if engine in TWINS else budget)
            case = record.in_own_process(__file__, ["--case", engine, network, chosen, share, *common])
            found.append({"network": network, "engine": engine, "precision": chosen, **case})
    cases = pooled(found)
    console.print(table(cases, f"Training step on {args.device}"))
    goals = verdict(cases, args.device)
    record.say(goals, console)
    result = {"device": args.device, "cases": cases, "verdict": goals}
    record.write(args.out, result, began, {"lightly": record.version("lightly")}, console)


if __name__ == "__main__":
    main()
