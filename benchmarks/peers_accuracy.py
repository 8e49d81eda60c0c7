"""What the peers' recipes reach on CIFAR-10 in the minutes that a recipe of ours takes, on the same machine.

    python benchmarks/peers_accuracy.py [minutes=15] [only=lightly,resnet18] [precision=bf16-mixed] [out=...]

lightly's CIFAR-10 benchmark and solo-learn's recipe for CIFAR (`peers.py`), each with ResNet-18 as it ships it and with
our `small`, at its own batch size and in its own precision, or in the one that `precision` names. Training is stopped
after `minutes`, loading not counted; learning rates fall over this time, since the hundreds of epochs of the recipes
would leave them at their peak. Scores are those of our own rows: the convex linear probe and kNN (k=200, temperature
0.1) on h of un-augmented images, in eval mode and in float32. Four cases, each in a process of its own, take 4 x
`minutes` and scoring; `only` picks some, and results of others in the file stay. `data=shapes` takes drawn images.
Writes benchmarks/results/peers_accuracy.json.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import record
from rich.console import Console
from rich.table import Table

CASES = [(peer, network) for peer in ("lightly", "solo-learn-like") for network in ("resnet18", "small")]
KEYS = {
    "minutes": "15",
    "only": "",
    "precision": "",
    "data": "cifar10",
    "out": str(Path(__file__).parent / "results" / "peers_accuracy.json"),
}


def measure(name: str, network: str, minutes: float, precision: str, data: str) -> dict[str, Any]:
    """One case, in this process."""
    import own
    import torch
    from peers import PEERS, loader
    from run import cores

    from twoview.cli import schema
    from twoview.data.image.pixels import Pixels
    from twoview.encoder.frozen import Frozen
    from twoview.evaluate.classify.knn import knn_accuracy
    from twoview.evaluate.classify.linear import probe
    from twoview.evaluate.features import extract

    device = "cuda" if torch.cuda.is_available() else "cpu"
    load = schema.build(own.configuration([f"data={data}"])["data"])
    train, test = load(split="train"), load(split="test")
    torch.manual_seed(0)
    peer = PEERS[name](network)
    if peer.channels_last:
        peer = peer.to(memory_format=torch.channels_last)
    chosen, steps, start = precision or peer.precision, 0, time.monotonic()

    def progress() -> float:
        nonlocal steps
        steps += 1
        return (time.monotonic() - start) / (60 * minutes)

    batches = loader(peer, train, peer.batch, cores(), device)
    start = time.monotonic()
    peer.fit(batches, peer.batch, chosen, device, progress)
    seconds = time.monotonic() - start
    encoder = Frozen(peer.encoder, Pixels(peer.mean, peer.std))
    bank, queries = (extract(encoder, images, device=device).to(device) for images in (train, test))
    labels, truth = train.labels.to(device), test.labels.to(device)
    classes = len(train.classes)
    settings = {key: own.configuration([], "linear_probe")[key] for key in ("strengths", "holdout", "seed")}
    linear = probe(bank, labels, queries, truth, classes, **settings)
    k = min(200, len(bank))
    return {
        "batch": peer.batch,
        "precision": chosen,
        "seconds": round(seconds, 1),
        "epochs": steps * peer.batch / len(train),
        "images_per_second": steps * peer.batch / seconds,
        "linear": linear.top1,
        "protocol_hash": linear.protocol_hash,
        "interval": linear.interval.limits,
        "knn": knn_accuracy(bank, labels, queries, truth, k=k, temperature=0.1, classes=classes),
    }


def merged(old: list[dict[str, Any]], new: dict[str, Any]) -> list[dict[str, Any]]:
    """`old` with `new` in the place of the same peer, network, minutes and precision."""
    same = ("peer", "network", "minutes", "asked_precision")
    return [case for case in old if any(case.get(key) != new[key] for key in same)] + [new]


def table(cases: list[dict[str, Any]]) -> Table:
    made = Table("peer", "network", "minutes", "precision", "epochs", "images/s", "linear", "kNN")
    for case in cases:
        start = [case["peer"], case["network"], f"{case['minutes']:g}"]
        if "skipped" in case:
            made.add_row(*start, case["skipped"])
            continue
        made.add_row(
            *start,
            case["precision"],
            f"{case['epochs']:.2f}",
            f"{case['images_per_second']:,.0f}",
            f"{case['linear']:.1%}",
            f"{case['knn']:.1%}",
        )
    return made


def main() -> None:
    if sys.argv[1:2] == ["--case"]:
        name, network, minutes, precision, data = sys.argv[2:]
        print(json.dumps(measure(name, network, float(minutes), precision, data)))
        return
    chosen = dict(KEYS)
    for word in sys.argv[1:]:
        key, _, value = word.partition("=")
        if key not in KEYS:
            sys.exit(f"cannot read {word!r}: the keys are {', '.join(KEYS)}\n\n{__doc__}")
        chosen[key] = value
    picked = [case for case in CASES if set(filter(None, chosen["only"].split(","))) <= set(case)]
    if not picked:
        sys.exit(f"only={chosen['only']} picks nothing: name a peer, a network, or both of {CASES}")
    console, began, out = Console(), time.perf_counter(), Path(chosen["out"])
    cases = json.loads(out.read_text())["cases"] if out.exists() else []
    for name, network in picked:
        console.print(f"{name}, {network}, {chosen['minutes']} minutes", style="dim")
        words = ["--case", name, network, chosen["minutes"], chosen["precision"], chosen["data"]]
        about = {"peer": name, "network": network, "minutes": float(chosen["minutes"]), "data": chosen["data"]}
        about |= {"asked_precision": chosen["precision"]}
        cases = merged(cases, about | record.in_own_process(__file__, words))
        record.write(out, {"cases": cases}, began, {"lightly": record.version("lightly")}, console)
    console.print(table(cases))


if __name__ == "__main__":
    main()
