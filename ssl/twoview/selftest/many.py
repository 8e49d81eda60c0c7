"""Many devices do what one does: each process makes the same steps with its share of the batches."""

import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from twoview.data.batches import Batch
from twoview.model.base import Begin, Method
from twoview.model.byol import BYOL
from twoview.model.moco import MoCo
from twoview.model.mocov3 import MoCoV3
from twoview.model.part.head import Projector
from twoview.model.simclr import SimCLR
from twoview.optim.recipe import Recipe
from twoview.parallel import devices
from twoview.parallel.norm import global_batch_norm
from twoview.selftest.check import ROUNDING, Check, difference, last_line, measure, worst

PATIENCE = 300  # seconds until processes that have not ended are ended
SHARE = 8  # samples of a global batch per device
STEPS, ROUNDS = 6, 20  # of training; with a queue, which goes round several times
Found = list[dict[str, dict[str, Tensor]]]  # of each device, by method: losses, weights and buffers
RECIPE = Recipe(torch.optim.SGD, lr_per_256=0.1)


def make_head(**options: Any) -> Callable[..., Projector]:
    return partial(Projector, out_dim=8, **options)


def make_moco(encoder: nn.Module, projector: Callable[..., Any], **options: Any) -> MoCo:
    return MoCo(encoder, RECIPE, projector, temperature=0.5, momentum=0.9, **options)


class _Tiny(nn.Sequential):
    """An encoder with batch statistics, for images of 8 x 8 pixels."""

    dim = 16

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 4, kernel_size=4, stride=4), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten())


METHODS: dict[str, Callable[[int], Method]] = {
    "SimCLR": lambda world: SimCLR(_Tiny(), RECIPE, make_head()),
    "MoCo": lambda world: make_moco(
        _Tiny(), make_head(), queue_size=20 * world + 1, symmetric=True, split_batch_norm=1
    ),
    "MoCo v3": lambda world: MoCoV3(
        _Tiny(), RECIPE, make_head(norm="batch_all"), make_head(norm="batch"), momentum=0.9
    ),
    "BYOL": lambda world: BYOL(_Tiny(), RECIPE, make_head(norm="batch"), make_head(norm="batch"), momentum=0.9),
    "MoCo, split batch norm": lambda world: make_moco(
        _Tiny(), make_head(), queue_size=20 * world + 1, split_batch_norm=2 * world
    ),
}
EVEN = "MoCo, split batch norm"  # groups of statistics need equal shares


def batches(world: int, steps: int, even: bool) -> Iterator[Batch]:
    """Global batches of two views, the same on every device. Every fourth one is a last one: W devices cannot share it
    evenly.
    """
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        n = SHARE * world - int(step % 4 == 3 and not even)
        v1, v2 = torch.rand(2, n, 3, 8, 8, generator=generator)
        yield Batch((v1, v2), torch.randperm(4 * n, generator=generator)[:n], torch.full((n,), -1))


def part_of(batch: Batch, device: torch.device) -> Batch:
    """This device's share of a global batch."""

    def own(rows: Tensor) -> Tensor:
        return rows.tensor_split(devices.world_size())[devices.rank()].to(device)

    return Batch(tuple(map(own, batch.views)), own(batch.index), own(batch.label))


def train(name: str, world: int, device: torch.device) -> dict[str, Tensor]:
    """Losses, weights and buffers after some steps of this process among all that there are."""
    torch.manual_seed(0)
    model = METHODS[name](world).to(device)
    steps = ROUNDS if name == "MoCo" else STEPS
    model.begin(Begin(SHARE * world, steps, epochs=1, world_size=devices.world_size(), even_shares=name == EVEN))
    if devices.world_size() > 1:
        global_batch_norm(model, device)
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(weights, lr=0.1)
    losses = []
    for batch in batches(world, steps, even=name == EVEN):
        loss = model.step(part_of(batch, device)).loss
        optimizer.zero_grad()
        loss.backward()
        for weight in weights:  # the mean over devices that data-parallel training takes
            assert weight.grad is not None
            weight.grad = devices.total(weight.grad) / devices.world_size()
        optimizer.step()
        model.after_step()
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
            raise RuntimeError(f"process {error.error_index} has died: {last_line(error)}") from error
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
    queues = [[each["MoCo"][name] for name in ("queue.rows", "queue.index", "queue.count")] for each in found]
    return float(sum(int((a != b).sum()) for queue in queues for a, b in zip(queue, queues[0], strict=True)))
