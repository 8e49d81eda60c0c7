"""On W devices a method gives the loss and the gradients of one device with the whole batch."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from twoview.model.projector import Projector
from twoview.model.simclr import SimCLR
from twoview.optim import Recipe


class Flat(nn.Module):
    """An encoder without batch statistics."""

    dim = 6

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.linear(x.flatten(1)))


def simclr() -> SimCLR:
    torch.manual_seed(0)
    recipe = Recipe(torch.optim.SGD, lr_per_256=0.1)
    return SimCLR(Flat(), recipe, lambda in_dim: Projector(in_dim, out_dim=4), temperature=0.5).double()


def views() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    v1, v2 = torch.randn(2, 8, 3, 2, 2, generator=generator, dtype=torch.float64)
    return v1, v2


def one_device(rank: int, world: int, file: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=world)
    model = simclr()
    v1, v2 = (view[rank::world] for view in views())
    loss = model.contrast(v1, v2, torch.arange(8)[rank::world]).loss
    loss.backward()
    for parameter in model.parameters():  # the mean over devices, as DDP takes it
        dist.all_reduce(parameter.grad)
        parameter.grad /= world
    torch.save({"loss": loss.detach(), "grads": [p.grad for p in model.parameters()]}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_loss_and_gradients_are_those_of_the_global_batch(world: int, tmp_path: Path) -> None:
    mp.spawn(one_device, args=(world, str(tmp_path / "rendezvous"), str(tmp_path)), nprocs=world)
    model = simclr()
    loss = model.contrast(*views(), torch.arange(8)).loss
    loss.backward()
    for rank in range(world):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        torch.testing.assert_close(found["loss"], loss.detach())
        for gradient, parameter in zip(found["grads"], model.parameters(), strict=True):
            torch.testing.assert_close(gradient, parameter.grad)
