"""What contrastive learning has to hold, tried on the machine at hand: a table of promises, kept or broken.

Each check is a function that returns by how much a promise is missed, and a limit for that. Nothing is downloaded and
nothing is learned: networks are tiny, and images are noise.
"""

import json
import logging
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from omegaconf import DictConfig
from rich import get_console
from rich.box import SIMPLE
from rich.table import Table
from torch import Tensor, nn

from twoview import devices, schema
from twoview.augment.base import TwoViews
from twoview.augment.geometric import HorizontalFlip, RandomResizedCrop
from twoview.augment.photometric import ColorJitter, GaussianBlur, Grayscale
from twoview.command import plain
from twoview.errors import UserError
from twoview.losses import info_nce_contrast, nt_xent_contrast
from twoview.model.base import ContrastiveModule
from twoview.model.moco import MoCo
from twoview.model.mocov3 import MoCoV3
from twoview.model.projector import Projector
from twoview.model.simclr import SimCLR
from twoview.norm import global_batch_norm
from twoview.optim import Recipe
from twoview.pretrain import commit, machine, versions

log = logging.getLogger(__name__)

KEYS = {"devices": Literal["auto", "cpu", "cuda"], "world": int | Literal["auto"], "out": str | None, "debug": bool}
ROUNDING = 1e-5  # of float32 over a few steps, relative to the largest number of what is compared
PATIENCE = 300  # seconds until processes that have not ended are ended
SHARE = 8  # samples of a global batch per device
STEPS, ROUNDS = 6, 20  # of training; with a queue, which goes round several times
Found = list[dict[str, dict[str, Tensor]]]  # of each device, by method: losses, weights and buffers
RECIPE = Recipe(torch.optim.SGD, lr_per_256=0.1)


@dataclass(frozen=True)
class Check:
    """A promise, by how much it was missed, and by how much it may be; `note` is why there is no such number."""

    name: str
    compared: str
    limit: float = 0.0
    difference: float | None = None
    result: Literal["pass", "FAIL", "skipped"] = "skipped"
    seconds: float = 0.0
    note: str = ""


def selftest_command(composed: DictConfig) -> int:
    """`scripts/selftest.py`."""
    config = plain(composed)
    kind, world = plan(config)
    gpus = [torch.device("cuda")] if torch.cuda.is_available() and config["devices"] != "cpu" else []
    torch.backends.cudnn.allow_tf32 = False  # its rounding is not float32's
    log.info("%s, and one device", f"{world} {'GPUs (NCCL)' if kind == 'cuda' else 'CPU processes (gloo)'}")
    checks = on_many_devices(kind, world)
    for device in [torch.device("cpu"), *gpus] if config["devices"] != "cuda" else gpus:
        checks += on_one_device(device)
    checks += on_gpu(bool(gpus), "devices=cpu" if torch.cuda.is_available() else "no GPU here")
    get_console().print(_table(checks))
    if config["out"]:
        _write(Path(config["out"]), checks, {"kind": kind, "world": world})
    results = [check.result for check in checks]
    passed, skipped, failed = (results.count(result) for result in ("pass", "skipped", "FAIL"))
    log.info("%d passed, %d skipped, %d failed", passed, skipped, failed)
    return int(failed > 0)


def plan(config: dict[str, Any]) -> tuple[str, int]:
    """Which kind of devices is to act together, and how many."""
    for key, kind in KEYS.items():
        if not schema.fits(config[key], kind):
            raise UserError(f"{key}={config[key]!r} is not {schema.words(kind)}")
    gpus = torch.cuda.device_count()
    if config["devices"] == "cuda" and not gpus:
        raise UserError("devices=cuda, but torch finds no GPU on this machine; use devices=cpu")
    where = "cuda" if config["devices"] == "cuda" or (config["devices"] == "auto" and gpus > 1) else "cpu"
    world = config["world"] if config["world"] != "auto" else gpus if where == "cuda" else 2
    if world < 1:
        raise UserError(f"world={world}: there must be at least 1 process")
    if where == "cuda" and world > gpus:
        raise UserError(f"world={world}, but torch finds {gpus} GPUs on this machine; use fewer, or devices=cpu")
    if config["out"] and not Path(config["out"]).parent.is_dir():
        raise UserError(f"out={config['out']}: there is no folder {Path(config['out']).parent}")
    return where, world


def measure(name: str, compared: str, limit: float, find: Callable[[], float]) -> Check:
    """Whether what `find` returns is within the limit; whatever it raises is a failure too."""
    check, started = Check(name, compared, limit, result="FAIL"), time.monotonic()
    logging.disable(logging.INFO)  # what is being checked has nothing to say
    try:
        found = find()
    except Exception as error:
        check = replace(check, note=f"{type(error).__name__}: {_last_line(error)}")
    else:
        check = replace(check, difference=found, result="pass" if found <= limit else "FAIL")  # not a number: FAIL
    finally:
        logging.disable(logging.NOTSET)
    return replace(check, seconds=time.monotonic() - started)


def difference(found: Tensor, expected: Tensor) -> float:
    """The largest difference of two tensors, relative to the largest number of the second, but at least to 0.01: what
    is 0 but for rounding, as a shift in front of a normalisation, has no size of its own.
    """
    if found.shape != expected.shape:
        return math.inf
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    return float((found - expected).abs().max() / expected.abs().max().clamp(min=0.01))


def worst(differences: Iterable[float]) -> float:
    return float(torch.tensor(list(differences), dtype=torch.float64).max())  # unlike max(), it does not lose a nan


# Many devices: each process makes the same steps with its share of the batches


def _head(**options: Any) -> Callable[..., Projector]:
    return partial(Projector, out_dim=8, **options)


def _moco(encoder: nn.Module, projector: Callable[..., Any], **options: Any) -> MoCo:
    return MoCo(encoder, RECIPE, projector, temperature=0.5, momentum=0.9, **options)


class _Tiny(nn.Sequential):
    """An encoder with batch statistics, for images of 8 x 8 pixels."""

    dim = 16

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, kernel_size=4, stride=4), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten())


METHODS: dict[str, Callable[[int], ContrastiveModule]] = {
    "SimCLR": lambda world: SimCLR(_Tiny(), RECIPE, _head()),
    "MoCo": lambda world: _moco(_Tiny(), _head(), queue_size=20 * world + 1, symmetric=True, split_batch_norm=1),
    "MoCo v3": lambda world: MoCoV3(_Tiny(), RECIPE, _head(norm="batch_all"), _head(norm="batch"), momentum=0.9),
    "MoCo, split batch norm": lambda world: _moco(
        _Tiny(), _head(), queue_size=20 * world + 1, split_batch_norm=2 * world
    ),
}
EVEN = "MoCo, split batch norm"  # groups of statistics need equal shares


class _Run:
    """What a method asks of its trainer."""

    global_step, estimated_stepping_batches = 0, 1

    def __init__(self, world: int) -> None:
        self.world_size = world


def batches(world: int, steps: int, even: bool) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Global batches of two views and sample numbers, the same on every device. Every fourth one is a last one: W
    devices cannot share it evenly.
    """
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        n = SHARE * world - int(step % 4 == 3 and not even)
        v1, v2 = torch.rand(2, n, 3, 8, 8, generator=generator)
        yield v1, v2, torch.randperm(4 * n, generator=generator)[:n]


def train(name: str, world: int, device: torch.device) -> dict[str, Tensor]:
    """Losses, weights and buffers after some steps of this process among all that there are."""
    torch.manual_seed(0)
    model = METHODS[name](world).to(device)
    model.even_shares = name == EVEN
    run = _Run(devices.world_size())
    model.trainer = cast(Any, run)  # a weak reference
    model.setup("fit")
    if devices.world_size() > 1:
        global_batch_norm(model, device)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.1)
    losses = []
    for batch in batches(world, ROUNDS if name == "MoCo" else STEPS, even=name == EVEN):
        own = (part.tensor_split(devices.world_size())[devices.rank()].to(device) for part in batch)
        loss = model.contrast(*own).loss
        optimizer.zero_grad()
        loss.backward()
        for weight in weights:  # the mean over devices that data-parallel training takes
            assert weight.grad is not None
            weight.grad = devices.total(weight.grad) / devices.world_size()
        optimizer.step()
        losses.append(loss.detach())
    return {key: value.cpu() for key, value in {"losses": torch.stack(losses), **model.state_dict()}.items()}


def one_process(rank: int, world: int, kind: str, folder: str) -> None:
    """A device of several: trains with every method, and leaves what came out in the folder."""
    torch.backends.cudnn.allow_tf32 = False
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // world))
    dist.init_process_group(
        "nccl" if kind == "cuda" else "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world,
        timeout=timedelta(seconds=PATIENCE),
    )
    torch.save({name: train(name, world, device) for name in METHODS}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def run_processes(kind: str, world: int) -> Found:
    """What each process found. RuntimeError with the message of one that dies; TimeoutError if they do not end."""
    with tempfile.TemporaryDirectory() as folder:
        context = mp.spawn(one_process, args=(world, kind, folder), nprocs=world, join=False)
        deadline = time.monotonic() + PATIENCE
        try:
            while not context.join(timeout=max(0.0, deadline - time.monotonic())):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"the processes had not ended after {PATIENCE} s")
        except (mp.ProcessRaisedException, mp.ProcessExitedException) as error:
            raise RuntimeError(f"process {error.error_index} has died: {_last_line(error)}") from error
        finally:
            for process in context.processes:
                process.kill()
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world)]


def on_many_devices(kind: str, world: int) -> list[Check]:
    """W devices do what one does."""
    rows: list[tuple[str, str, float, Callable[[Found], float]]] = [
        (
            f"{name}, {world} devices",
            "losses and weights with one device",
            ROUNDING,
            partial(against_one, name, world, kind),
        )
        for name in METHODS
    ]
    rows.append((f"queue, {world} devices", "entries that differ", 0, queues_apart))
    if world == 1:
        return [Check(*row[:3], note="needs 2 devices") for row in rows]
    found: Found = []

    def run() -> float:
        found.extend(run_processes(kind, world))
        return 0

    ran = measure(f"{world} devices", "processes that fail", 0, run)
    if ran.result == "FAIL":
        return [ran]
    return [ran, *(measure(name, what, limit, partial(find, found)) for name, what, limit, find in rows)]


def against_one(name: str, world: int, kind: str, found: Found) -> float:
    """How far the devices' losses, weights and buffers are from those of this process alone with whole batches."""
    alone = train(name, world, torch.device(kind))
    return worst(difference(each[name][key], alone[key]) for each in found for key in alone)


def queues_apart(found: Found) -> float:
    """Entries of the queue, its sample numbers and its count that are not the first device's."""
    queues = [[each["MoCo"][name] for name in ("queue", "queue_index", "queue_count")] for each in found]
    return float(sum(int((a != b).sum()) for queue in queues for a, b in zip(queue, queues[0], strict=True)))


# One device


def on_one_device(device: torch.device) -> list[Check]:
    where = f"on {device.type}"
    rows: list[tuple[str, str, float, Callable[[], float]]] = [
        (f"own keys {where}", "losses of planted images with their formula", ROUNDING, lambda: own_keys(device)),
        (f"leak {where}", "unguarded accuracy by batch statistics, short of 1", 0.1, lambda: 1 - leak(device, False)),
        (f"guard {where}", "guarded accuracy, chance 1/33", 3 / 33, lambda: leak(device, True)),
        (f"views {where}", "views of a batch with those of its parts", ROUNDING, lambda: views_apart(device)),
        (f"blocks {where}", "losses and gradients with those of chunk=null", ROUNDING, lambda: blocks_apart(device)),
    ]
    return [measure(*row) for row in rows]


def on_gpu(there_is_one: bool, reason: str) -> list[Check]:
    gpu = torch.device("cuda")
    rows: list[tuple[str, str, float, Callable[[], float]]] = [
        ("views on cuda and cpu", "pixels on the one with those on the other", 1e-4, lambda: views_across(gpu)),
        ("views do not wait", "times that the host waits for the GPU", 0, lambda: waits(gpu)),
        ("bfloat16 on cuda", "losses under autocast with those in float32", 1e-2, lambda: autocast_apart(gpu)),
    ]
    return [measure(*row) if there_is_one else Check(*row[:3], note=reason) for row in rows]


class _Pixels(nn.Flatten):
    """An encoder, and a head, that leave the image as it is."""

    def __init__(self, in_dim: int = 16) -> None:
        super().__init__()
        self.dim = self.out_dim = in_dim


class _OnlyStatistics(nn.Module):
    """Sees of an image nothing but what the statistics of its batch, or group, are: a constant, normalised with it."""

    dim = 12

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(12)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.stack([x, torch.zeros_like(x)], dim=2))[:, :, 1]


def own_keys(device: torch.device) -> float:
    """Images that are orthogonal to each other and to all that waits in a queue: with N negatives of similarity 0, the
    loss is log(1 + N exp(-1 / t)). An own key among the negatives would have similarity 1.
    """
    far, near = torch.eye(16, device=device).chunk(2)  # (8, 16) each
    index = torch.arange(8, device=device)
    head = cast(Any, _Pixels)
    cases: list[tuple[ContrastiveModule, int, float]] = [
        (SimCLR(_Pixels(), RECIPE, _Pixels, temperature=0.5), 14, 1),
        (_moco(_Pixels(), _Pixels, queue_size=32), 8, 1),
        (_moco(_Pixels(), _Pixels, queue_size=32, symmetric=True), 16, 1),
        (MoCoV3(_Pixels(), RECIPE, head, head, temperature=0.5), 7, 2),  # the sum over both directions, times 2 t
    ]
    missed = []
    for model, negatives, factor in cases:
        model.to(device).contrast(far, far, index)
        loss = model.contrast(near, near, index + 8).loss
        missed.append(difference(loss, torch.tensor(factor * math.log1p(negatives * math.exp(-1 / 0.5)))))
    return worst(missed)


def leak(device: torch.device, guard: bool) -> float:
    """How often a network that sees batch statistics alone finds its key among 33."""
    model = _moco(_OnlyStatistics(), _Pixels, split_batch_norm=32, shuffle_keys=guard, queue_size=32).to(device)
    generator, found = torch.Generator().manual_seed(0), []
    for step in range(20):
        x, noise = torch.randn(2, 1024, 12, generator=generator).to(device)
        index = torch.arange(1024, device=device) + 1024 * step
        found.append(model.contrast(x, x + 0.1 * noise, index).accuracy)
        keys = model.keys(x + 0.1 * noise, index)
        model.enqueue(keys[::32], index[::32])  # of many groups, as a queue of many batches would hold
    return float(torch.stack(found[1:]).mean())


def _views(device: torch.device) -> tuple[TwoViews, Tensor, Tensor]:
    """A policy, and 64 images with their numbers."""
    ops = {
        "crop": RandomResizedCrop(),
        "flip": HorizontalFlip(),
        "jitter": ColorJitter(strength=0.5),
        "gray": Grayscale(),
        "blur": GaussianBlur(),
    }
    images = torch.randint(256, (64, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    views = TwoViews(ops, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), compile=False).to(device)
    return views, images.to(device), torch.arange(64, device=device) * 701


def views_apart(device: torch.device) -> float:
    views, images, index = _views(device)
    whole = torch.cat(views(images, index, 1), dim=1)
    return worst(
        difference(torch.cat([torch.cat(views(images[rows], index[rows], 1), dim=1) for rows in parts]), whole)
        for parts in (torch.arange(64).split(7), torch.arange(64).split(1), torch.arange(64).tensor_split(5))
    )


def views_across(device: torch.device) -> float:
    views, images, index = _views(device)
    expected, images_, index_ = _views(torch.device("cpu"))
    return worst(map(difference, views(images, index, 1), expected(images_, index_, 1)))


def waits(device: torch.device) -> float:
    """0, or RuntimeError from torch where the host has to wait."""
    views, images, index = _views(device)
    views(images, index, 0)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        views(images, index, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return 0.0


def blocks_apart(device: torch.device) -> float:
    generator = torch.Generator().manual_seed(0)
    z = [torch.randn(n, 16, generator=generator).to(device).requires_grad_() for n in (33, 33, 50)]

    def numbers(chunk: int | None) -> list[Tensor]:
        losses = [
            nt_xent_contrast(z[0], z[1], 0.2, chunk=chunk).loss,
            info_nce_contrast(z[0], z[1], z[2], 0.2, chunk=chunk).loss,
        ]
        return [*losses, *torch.autograd.grad(losses[0], z[:2]), *torch.autograd.grad(losses[1], z)]

    plain_numbers = numbers(None)
    return worst(d for chunk in (1, 8, 100) for d in map(difference, numbers(chunk), plain_numbers))


def autocast_apart(device: torch.device) -> float:
    """Losses of a first step in bfloat16 against float32, of the same weights."""
    missed = []
    for make in METHODS.values():
        losses = []
        for enabled in (True, False):
            torch.manual_seed(0)
            model = make(4).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=enabled):
                for batch in batches(4, 2, even=True):
                    loss = model.contrast(*(part.to(device) for part in batch)).loss
            losses.append(loss)
        missed.append(difference(*losses))
    return worst(missed)


# What a person sees


def _last_line(error: Exception) -> str:
    return (str(error).strip() or "no message").splitlines()[-1]


def _table(checks: list[Check]) -> Table:
    table = Table(box=SIMPLE)
    for name in ("check", "compared"):
        table.add_column(name)
    for name in ("difference", "limit", "result", "s"):
        table.add_column(name, justify="right")
    colours = {"pass": "green", "FAIL": "bold red", "skipped": "yellow"}
    for check in checks:
        found = "" if check.difference is None else f"{check.difference:.2g}"
        result = f"[{colours[check.result]}]{check.result}[/]"
        table.add_row(
            check.name, check.note or check.compared, found, f"{check.limit:.2g}", result, f"{check.seconds:.1f}"
        )
    return table


def _write(path: Path, checks: list[Check], devices: dict[str, Any]) -> None:
    report = devices | {"checks": [asdict(check) for check in checks]}
    report |= {"machine": machine(), "versions": versions(), "commit": commit()}
    try:
        path.write_text(json.dumps(report, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; name another file by out=...") from error
    log.info("written to %s", path)
