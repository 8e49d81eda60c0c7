"""Time and memory of the linear probe beside scikit-learn's LogisticRegression, on features of a trained encoder.

    python benchmarks/probe.py ckpt=runs/<run> [--quick] [--device cuda]    # needs scikit-learn; minutes on 2 cores

Features are real, hence ill-conditioned, unlike random ones: of the run's own un-augmented training images, the map of
the encoder's last stage, averaged over the whole map (512) and over a 2 x 2 grid (2048). Both standardise and fit ten
classes or however many there are, cold, with the same L2 strength; ours to the gradient norm that scikit-learn reached
with `tol`, in the full gradient's Euclidean norm, which is computed alike for both. Its time is that of `fit` alone, in
float64; ours contains standardising too. Then the path of twelve strengths as the probe walks it, to 1e-4 nats each.

Each case has a process of its own, and what is measured is written after each dimension. Time is the median of passes,
memory the peak growth beside the stored features (of the resident set; of torch's allocator on a GPU). Writes
benchmarks/results/probe.json.
"""

import argparse
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import record
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

GRIDS = {512: 1, 2048: 2}  # dimensions, and over what grid the last stage is averaged
TOLS = [1e-4]  # of scikit-learn: its default
STRENGTHS = [1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 1.0]  # of configs/linear_probe.yaml
BUDGET, MOST_PASSES = 10.0, 9  # seconds and passes per case, whichever ends first
GOAL = {"fit": 1.0, "path": 3.0}  # of scikit-learn's seconds, at most


class LastStage(nn.Module):
    """Features that are the encoder's last map, averaged over a grid: images (B, C, H, W) -> (B, channels * grid^2)."""

    def __init__(self, encoder: nn.Module, grid: int) -> None:
        super().__init__()
        self.encoder, self.grid = encoder, grid
        network: Any = encoder.encoder
        stage = getattr(network, "layer4", None) or network.stage4  # of ResNets, and of the small encoder
        stage.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.map = output

    def forward(self, images: Tensor) -> Tensor:
        self.encoder(images)
        return F.adaptive_avg_pool2d(self.map, self.grid).flatten(1)


def standardised(features: Tensor) -> Tensor:
    x = features.double()
    std = x.std(0, correction=0)
    return (x - x.mean(0)) / torch.where(std == 0, 1.0, std)


def gradient_norm(weight: Tensor, bias: Tensor, features: Tensor, labels: Tensor, l2: float) -> float:
    """Of mean cross-entropy + l2/2 ||weight||^2 on standardised features, in float64."""
    x = standardised(features)
    error = (torch.addmm(bias, x, weight.T)).softmax(1)  # (N, classes)
    error[torch.arange(len(x)), labels] -= 1
    gradient = error.T @ x / len(x) + l2 * weight
    return float(torch.cat([gradient.flatten(), error.mean(0)]).norm())


def measure(engine: str, file: str, l2: float, goal: float, device: str, budget: float) -> dict[str, Any]:
    """One case, in this process. `goal` is scikit-learn's `tol`, and for ours the gradient norm to reach."""
    from twoview.evaluate.classify.linear import SELECTION_TOL, fit_linear, fit_path

    stored = torch.load(file, weights_only=True)
    cuda = device == "cuda" and engine != "scikit-learn"
    where = "cuda" if cuda else "cpu"
    features, labels = stored["features"].to(where), stored["labels"].to(where)
    classes = int(labels.max()) + 1
    fit_linear(features[:500], labels[:500] % 2, 2, 1.0)  # libraries, threads, kernels
    before = record.memory_before(cuda)

    passes: list[float] = []
    about: dict[str, Any] = {}
    while not passes or (sum(passes) < budget and len(passes) < MOST_PASSES):
        if engine == "scikit-learn":
            from sklearn.linear_model import LogisticRegression

            x, y = standardised(features).numpy(), labels.numpy()
            model = LogisticRegression(C=1 / (len(x) * l2), tol=goal, max_iter=20_000)
            start = time.perf_counter()
            model.fit(x, y)
            passes.append(time.perf_counter() - start)
            about = {"iterations": int(model.n_iter_[0])}
            heads = [(torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_))]
            del x
        else:
            start = time.perf_counter()
            if engine == "fit":
                found = [fit_linear(features, labels, classes, l2, tol=goal**2 / (2 * l2))]
            else:
                found = list(fit_path(features, labels, classes, STRENGTHS, tol=SELECTION_TOL))
            if cuda:
                torch.cuda.synchronize()
            passes.append(time.perf_counter() - start)
            about = {"iterations": sum(head.iterations for head in found), "gap": max(h.gap_bound for h in found)}
            heads = [(head.weight.cpu(), head.bias.cpu()) for head in found]
    peak = record.memory_at_most(cuda)
    if engine != "path":
        about["gradient_norm"] = gradient_norm(*heads[0], stored["features"], stored["labels"], l2)
    return {"seconds": median(passes), "passes": len(passes), "extra_bytes": peak - before, **about}


def compare(file: str, dim: int, l2: float, device: str, budget: float, console: Console) -> list[dict[str, Any]]:
    cases = []

    def case(engine: str, goal: float, tol: float | None) -> dict[str, Any]:
        console.print(f"{engine}, D = {dim:,}" + (f", tol = {tol:g}" if tol else ""), style="dim")
        words = ["--case", engine, file, str(l2), str(goal), str(budget), "--device", device]
        done = {"dim": dim, "engine": engine, "tol": tol, **record.in_own_process(__file__, words)}
        cases.append(done)
        return done

    for tol in TOLS:
        theirs = case("scikit-learn", tol, tol)
        if "gradient_norm" in theirs:
            case("fit", theirs["gradient_norm"], tol)
    case("path", 0.0, None)
    return cases


def of_theirs(cases: list[dict[str, Any]], case: dict[str, Any], key: str) -> float | None:
    """Times what scikit-learn needs, to the same gradient norm or, for the path, with its default."""
    tol = case["tol"] or TOLS[0]
    peers = (c for c in cases if (c["dim"], c["engine"], c["tol"]) == (case["dim"], "scikit-learn", tol))
    theirs = next(peers, {})
    return case[key] / theirs[key] if key in case and theirs.get(key) else None


def table(cases: list[dict[str, Any]], images: int, l2: float) -> Table:
    made = Table(
        "D", "", "tol", "seconds", "of theirs", "iterations", "gradient norm", "memory", "of theirs",
        title=f"logistic regression on {images:,} images, L2 {l2:g}",
    )  # fmt: skip
    names = {"fit": "one fit", "path": f"path of {len(STRENGTHS)}"}
    for case in cases:
        first = [f"{case['dim']:,}", names.get(case["engine"], case["engine"]), f"{case['tol'] or ''}"]
        if "skipped" in case:
            made.add_row(*first, case["skipped"])
            continue
        ratios = [of_theirs(cases, case, key) for key in ("seconds", "extra_bytes")]
        time_, memory = ("" if r is None or case["engine"] == "scikit-learn" else f"{r:.2f}" for r in ratios)
        norm = f"{case['gradient_norm']:.1e}" if "gradient_norm" in case else ""
        size = f"{case['extra_bytes'] / 2**20:,.0f} MiB"
        made.add_row(*first, f"{case['seconds']:.2f}", time_, str(case["iterations"]), norm, size, memory)
    return made


def verdict(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The goals, and what was reached of them."""
    found = []
    for case in cases:
        if case["engine"] in GOAL:
            reached, goal = of_theirs(cases, case, "seconds"), GOAL[case["engine"]]
            met = None if reached is None else reached <= goal
            found.append({key: case[key] for key in ("dim", "engine", "tol")} | {"reached": reached, "met": met})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ckpt", nargs="?", help="ckpt=<run>: whose encoder and data")
    parser.add_argument("--quick", action="store_true", help="4,000 images in 512 dimensions, a second per case")
    parser.add_argument(
        "--l2",
        type=float,
        default=1e-3,
        help="strength of the single fit, by default what a probe of CIFAR-10 chooses: %(default)s",
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="of our side")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "probe.json")
    parser.add_argument("--case", nargs=5, metavar=("ENGINE", "FILE", "L2", "GOAL", "SECONDS"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        engine, file, *numbers = args.case
        warnings.simplefilter("ignore")
        print(json.dumps(measure(engine, file, float(numbers[0]), float(numbers[1]), args.device, float(numbers[2]))))
        return
    if not (args.ckpt or "").startswith("ckpt="):
        parser.error("which run? ckpt=<run>/last.ckpt")

    from importlib.metadata import version

    from twoview.evaluate.features import extract
    from twoview.run.checkpoint import instantiate_own, load_encoder

    console, began, cases = Console(), time.perf_counter(), []
    encoder = load_encoder(args.ckpt.removeprefix("ckpt="))
    config: Any = encoder.config
    images = instantiate_own(config["data"], "data")(split="train")
    if images.labels is None:
        sys.exit(f"{images.name} has no labels")
    if args.quick:
        images = images.subset(torch.arange(min(4000, len(images))))
    for dim, grid in list(GRIDS.items())[: 1 if args.quick else None]:
        with tempfile.NamedTemporaryFile(suffix=".pt") as file:
            features = extract(LastStage(encoder, grid), images, device=args.device)[:, :dim].clone()
            if features.shape[1] < dim:
                sys.exit(f"the encoder's last stage gives {features.shape[1]} features of the {dim} wanted")
            torch.save({"features": features, "labels": images.labels}, file.name)
            cases += compare(file.name, dim, args.l2, args.device, 1.0 if args.quick else BUDGET, console)
        result = {  # so far: what was measured is kept if the rest takes too long
            "images": len(images),
            "data": images.name,
            "encoder": config["encoder"]["_target_"],
            "l2": args.l2,
            "strengths": STRENGTHS,
            "device": args.device,
            "cases": cases,
            "goal": GOAL,
            "verdict": verdict(cases),
        }
        record.write(args.out, result, began, {"scikit-learn": version("scikit-learn")}, console)
    console.print(table(cases, len(images), args.l2))


if __name__ == "__main__":
    main()
