"""A network that takes a batch in pieces: the gradients of the whole, with the memory of a piece."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from twoview.errors import UserError
from twoview.model.base import Begin, plain_pass
from twoview.model.moco import MoCo
from twoview.model.part.head import Projector
from twoview.optim.recipe import Recipe
from twoview.parallel.norm import SplitBatchNorm, split_batch_norm
from twoview.parallel.pieces import in_pieces

B, PIECES = 12, 3
ORDER = torch.arange(B).view(-1, PIECES).T.flatten()  # rows piece by piece


class Net(nn.Module):
    dim = 5

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(p))
        self.last = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, momentum=None))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layers(x).mean(dim=(2, 3)))


def views() -> Tensor:
    return torch.randn(B, 3, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def loss(h: Tensor) -> Tensor:
    """Every row's term depends on all others."""
    return torch.logsumexp(h @ h.T / 2, dim=1).mean()


def test_batch_statistics_are_those_of_pieces_and_gradients_those_of_the_whole() -> None:
    """The oracle holds its batch together: it normalises groups, as if each lay on a device of its own."""
    found, expected = Net().double(), split_batch_norm(Net().double(), PIECES)
    for _ in range(2):
        h = in_pieces(plain_pass, found, views(), PIECES)
        other = expected(views()[ORDER])[ORDER.argsort()]
        torch.testing.assert_close(h, other)
        for output in (h, other):
            loss(output).backward()
    for (name, a), (_, b) in zip(found.named_parameters(), expected.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
    for (name, a), (_, b) in zip(found.named_buffers(), expected.named_buffers(), strict=True):
        torch.testing.assert_close(a, b, msg=name)  # once, though every piece has passed twice
    assert not any(isinstance(module, SplitBatchNorm) for module in found.modules())


def test_dropout_draws_the_same_numbers_again() -> None:
    gradients = []
    for kept in (False, True):
        network = Net(p=0.5).double()
        torch.manual_seed(7)
        h = (
            torch.stack([network(views()[piece::PIECES]) for piece in range(PIECES)], dim=1).flatten(0, 1)
            if kept
            else in_pieces(plain_pass, network, views(), PIECES)
        )
        loss(h).backward()
        gradients.append([p.grad for p in network.parameters()])
        gradients[-1].append(torch.rand(3))  # the generator goes on from where it was
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_without_gradients_and_in_one_piece() -> None:
    network = Net().double()
    with torch.no_grad():
        assert not in_pieces(plain_pass, network, views(), PIECES).requires_grad
    assert in_pieces(plain_pass, network, views(), 1).equal(network(views()))


def moco(groups: int) -> MoCo:
    def head(in_dim: int) -> Projector:
        return Projector(in_dim, 4, norm="batch")

    return MoCo(Net(), Recipe(torch.optim.SGD, 0.1), head, queue_size=8, split_batch_norm=groups)


def test_groups_of_mocos_statistics_are_divided_among_the_pieces() -> None:
    model = moco(4)
    model.begin(Begin(16, steps=5, epochs=1, pieces=2))
    for network, groups in ((model.encoder, 2), (model.teacher, 2), (model.projector, 4), (model.teacher_projector, 4)):
        assert {m.groups for m in network.modules() if isinstance(m, SplitBatchNorm)} == {groups}
    assert moco(1)._shuffles() is False
    model = moco(1)
    model.begin(Begin(16, steps=5, epochs=1, pieces=2))
    assert model._shuffles()  # a query and its key would share the statistics of their piece


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (Begin(16, 5, 1, pieces=3), "pieces=3: a device's 16 samples of a batch do not divide into as many equal"),
        (Begin(16, 5, 1, pieces=16), "pieces=16: a device's 16 samples of a batch do not divide .* of at least 2"),
        (Begin(16, 5, 1, world_size=2, shares=frozenset({8, 3}), pieces=2), "pieces=2: a device's 3 samples"),
        (Begin(16, 5, 1, pieces=8), "pieces=8 do not divide the 4 groups .* model.split_batch_norm=4; choose"),
    ],
)
def test_what_does_not_divide_is_refused_before_the_first_step(run: Begin, message: str) -> None:
    model = moco(1 if "samples" in message else 4)
    with pytest.raises(UserError, match=message):
        model.begin(run)


MEMORY = r"""
import re, sys
from pathlib import Path
import torch
from torch import nn
from twoview.model.base import plain_pass
from twoview.parallel.pieces import in_pieces

torch.set_num_threads(1)
layers = [nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()) for _ in range(12)]
network = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
views = torch.randn(int(sys.argv[1]), 3, 32, 32)
def peak() -> int:
    return int(re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])

Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far, that of the parent included
before = peak()
in_pieces(plain_pass, network, views, int(sys.argv[2])).mean().backward()
print((peak() - before) / 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the kernel does not tell peaks of memory")
def test_memory_is_that_of_a_piece() -> None:
    def mib(rows: int, pieces: int) -> float:
        command = [sys.executable, "-c", MEMORY, str(rows), str(pieces)]
        counted = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}  # glibc gives back what is freed
        ended = subprocess.run(command, capture_output=True, text=True, env=counted)
        return float(ended.stdout)

    whole, pieces = mib(256, 1), mib(256, 8)
    assert pieces < 0.35 * whole
    assert pieces < 1.3 * mib(32, 1)
