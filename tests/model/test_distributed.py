"""On W devices a method gives the losses, the gradients and the queue of one device with the whole batch."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
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
from twoview.parallel.norm import GlobalBatchNorm, global_batch_norm

STEPS, BATCH, LAST = 8, 8, 5  # the last batch of each four is a smaller one


class Flat(nn.Module):
    """An encoder with or without batch statistics."""

    dim = 6

    def __init__(self, norm: bool) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 6)
        self.norm = nn.BatchNorm1d(6) if norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.linear(x.flatten(1))))


def head(out_dim: int = 4, **options: Any) -> Callable[..., Projector]:
    return partial(Projector, out_dim=out_dim, **options)


RECIPE = Recipe(torch.optim.SGD, lr_per_256=0.1)
METHODS: dict[str, Callable[[], Method]] = {
    "simclr": lambda: SimCLR(Flat(norm=False), RECIPE, head(), temperature=0.5),
    "simclr, batch statistics": lambda: SimCLR(Flat(norm=True), RECIPE, head(), temperature=0.5),
    "simclr, in blocks": lambda: SimCLR(Flat(norm=True), RECIPE, head(), temperature=0.5, chunk=3),
    "moco": lambda: MoCo(Flat(norm=False), RECIPE, head(), queue_size=13, split_batch_norm=1),
    "moco, symmetric, masked": lambda: MoCo(
        Flat(norm=True), RECIPE, head(), queue_size=13, split_batch_norm=1, symmetric=True, mask_same_image=True
    ),
    "byol": lambda: BYOL(Flat(norm=True), RECIPE, head(norm="batch"), head(norm="batch")),
    "mocov3": lambda: MoCoV3(Flat(norm=True), RECIPE, head(norm="batch_all"), head(norm="batch")),
}
EVEN: dict[str, Callable[[], Method]] = {  # groups of statistics need even shares
    "moco, split batch norm": lambda: MoCo(Flat(norm=True), RECIPE, head(), queue_size=13, split_batch_norm=4),
}


def make(name: str) -> Method:
    torch.manual_seed(0)
    model = (METHODS | EVEN)[name]().double()
    model.begin(Begin(BATCH, STEPS, 1, devices.world_size(), even_shares=name in EVEN))
    return model


def batches(even: bool) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    found = []
    for step in range(STEPS):
        n = BATCH if even or step % 4 != 3 else LAST
        v1, v2 = torch.randn(2, n, 3, 2, 2, generator=generator, dtype=torch.float64)
        share = torch.rand(n, generator=generator, dtype=torch.float64) / 2 + 0.5
        share[1::2] = share[0 : n - 1 : 2]  # the same in both rows of a pair
        found.append((v1, v2, torch.randperm(30, generator=generator)[:n], share))
    return found


def fit(name: str, mixed: bool = False) -> dict[str, Any]:
    """A few steps of plain gradient descent on this device's share of each batch, DDP's mean of gradients included."""
    model, losses = make(name), []
    if devices.world_size() > 1:
        global_batch_norm(model, torch.device("cpu"))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    for batch in batches(name in EVEN):
        v1, v2, index, share = (x.tensor_split(devices.world_size())[devices.rank()] for x in batch)
        loss, numbers, _ = model.step(Batch((v1, v2), index, index, share if mixed else None))
        optimizer.zero_grad()
        loss.backward()
        for parameter in model.parameters():
            if devices.world_size() > 1 and parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= devices.world_size()
        losses.append(torch.stack([loss.detach(), *numbers.values()]))
        optimizer.step()
        model.after_step()
    return {"losses": torch.stack(losses), "state": model.state_dict()}


def one_device(rank: int, world: int, names: list[tuple[str, bool]], folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    torch.save({name: fit(*name) for name in names}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_losses_weights_and_queues_are_those_of_one_device(world: int, tmp_path: Path) -> None:
    names = [(name, mixed) for name in METHODS | EVEN for mixed in (False, True) if make(name).reads_share or not mixed]
    mp.spawn(one_device, args=(world, names, str(tmp_path)), nprocs=world)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(world)]
    for name in names:
        alone = fit(*name)
        for result in found:
            torch.testing.assert_close(result[name]["losses"], alone["losses"], rtol=0, atol=1e-9)
        for key, value in found[0][name]["state"].items():
            torch.testing.assert_close(value, alone["state"][key], rtol=0, atol=1e-8, msg=lambda m, k=key: f"{k}: {m}")
            if "queue" in key:
                assert all(result[name]["state"][key].equal(value) for result in found), key


def test_losses_change_over_the_steps_and_the_queue_goes_round() -> None:
    """What is compared above is not a row of constants."""
    for name in METHODS | EVEN:
        losses = fit(name)["losses"][:, 0]
        assert losses.diff().abs().min() > 1e-6, name
    assert fit("moco")["state"]["queue.count"] == 6 * BATCH + 2 * LAST > 3 * 13


class Groups(nn.Module):
    dim = 4

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x)


def maps() -> Tensor:
    return torch.randn(7, 4, 3, 3, generator=torch.Generator().manual_seed(1)).mul(2).add(1).bfloat16()


def gathered(rank: int, world: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    torch.set_num_threads(1)
    rows = torch.arange(7 * 2, dtype=torch.float64).view(7, 2)
    own = rows.tensor_split(world)[rank].clone().requires_grad_()
    everything = devices.gather(own, 7)
    (everything * (1 + rank) * rows).sum().backward()
    result = {
        "rows": everything.detach(),
        "grad": own.grad,
        "index": devices.gather(torch.arange(7).tensor_split(world)[rank], 7),
    }
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    norm = global_batch_norm(Groups(), torch.device("cpu"))
    assert isinstance(norm.norm, GlobalBatchNorm)
    part = x.tensor_split(world)[rank].clone().requires_grad_()
    y = norm(part)
    (devices.gather(y, 7) ** 3).sum().backward()
    result |= {
        "y": y.detach(),
        "y grad": part.grad / world,
        "mean": norm.norm.running_mean,
        "var": norm.norm.running_var,
    }
    images = maps().tensor_split(world)[rank].contiguous(memory_format=torch.channels_last).requires_grad_()
    norm = global_batch_norm(nn.BatchNorm2d(4), torch.device("cpu"))
    (norm(images).float() * maps().tensor_split(world)[rank].sin()).sum().backward()
    result |= {"maps grad": images.grad, "weight grad": devices.total(norm.weight.grad), "maps": norm(images).detach()}
    with pytest.raises(ValueError, match="rows of 20"):
        devices.gather(own.detach(), 20)
    torch.save(result, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_gathered_rows_and_global_batch_statistics(world: int, tmp_path: Path) -> None:
    mp.spawn(gathered, args=(world, str(tmp_path)), nprocs=world)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(world)]
    rows = torch.arange(7 * 2, dtype=torch.float64).view(7, 2)
    x = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    plain = Groups()
    y = plain(x)
    (y**3).sum().backward()
    assert x.grad is not None
    for rank, result in enumerate(found):
        assert result["rows"].equal(rows)
        assert result["index"].tolist() == list(range(7))
        assert result["grad"].equal(rows.tensor_split(world)[rank] * sum(range(1, world + 1)))
        torch.testing.assert_close(result["y"], y.detach().tensor_split(world)[rank])
        torch.testing.assert_close(result["y grad"], x.grad.tensor_split(world)[rank], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(result["mean"], plain.norm.running_mean)
        torch.testing.assert_close(result["var"], plain.norm.running_var)
    images, plain = maps().float().requires_grad_(), nn.BatchNorm2d(4)
    (plain(images) * maps().sin()).sum().backward()
    assert images.grad is not None
    for rank, result in enumerate(found):  # bfloat16, with statistics in float32
        assert result["maps"].dtype == result["maps grad"].dtype == torch.bfloat16
        assert result["maps"].is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(
            result["maps"].float(), plain(images).detach().tensor_split(world)[rank], rtol=0.01, atol=0.01
        )
        torch.testing.assert_close(
            result["maps grad"].float(), images.grad.tensor_split(world)[rank], rtol=0.02, atol=0.01
        )
        torch.testing.assert_close(result["weight grad"], plain.weight.grad, rtol=1e-2, atol=1e-2)
