"""Work that all devices could do is shared among them, and all have the same result."""

import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from twoview.optim.muon import Muon
from twoview.parallel import devices


class Devices:
    """W devices in one process: each is asked in turn, first for what it sends and then for what it makes of it all."""

    def __init__(self, world: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[Tensor | None] = [None] * world
        monkeypatch.setattr(devices, "world_size", lambda: world)
        monkeypatch.setattr(devices, "rank", lambda: self.rank)
        monkeypatch.setattr(dist, "all_gather", self._all_gather)

    def _all_gather(self, every: list[Tensor], mine: Tensor) -> None:
        self.sent[self.rank] = mine.clone()
        assert all(sent is None or sent.shape == mine.shape for sent in self.sent)  # or they would wait for ever
        for place, sent in zip(every, self.sent, strict=True):
            if sent is not None:
                place.copy_(sent)

    def results(self, inputs: list[Tensor], costs: list[int]) -> tuple[list[list[Tensor]], list[int]]:
        """What each device has in the end, and how often each input was worked on."""
        times = [0] * len(inputs)

        def work(some: list[Tensor]) -> list[Tensor]:
            for x in some:
                times[next(number for number, y in enumerate(inputs) if y is x)] += 1
            return [x.sin() for x in some]

        ended = []
        for turn in range(2 * len(self.sent)):
            self.rank = turn % len(self.sent)
            ended.append(devices.shared(inputs, costs, work))
        return ended[len(self.sent) :], [n // 2 for n in times]


@settings(max_examples=40, deadline=None)
@given(world=st.integers(1, 5), shapes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5)), max_size=7))
def test_each_device_works_on_a_share_and_all_have_everything(world: int, shapes: list[tuple[int, int]]) -> None:
    inputs = [torch.randn(shape) for shape in shapes]
    with pytest.MonkeyPatch.context() as patch:
        ended, times = Devices(world, patch).results(inputs, [x.numel() for x in inputs])
    assert times == [1] * len(inputs)
    for found in ended:
        assert len(found) == len(inputs)
        assert all(a.equal(b.sin()) for a, b in zip(found, inputs, strict=True))


def test_the_shares_are_balanced_by_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dearest matrix of a network outweighs all others: it has a device for itself."""
    costs, loads = [1, 10, 2, 3, 4], []
    several = Devices(2, monkeypatch)
    for several.rank in range(2):
        mine: list[float] = []
        devices.shared(
            [torch.full((1,), float(c)) for c in costs], costs, lambda x, m=mine: (m.extend(map(float, x)), x)[1]
        )
        loads.append(sum(mine))
    assert sorted(loads) == [10, 10]


def test_muon_on_several_devices_makes_the_steps_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def weights(muons: int) -> list[list[nn.Parameter]]:
        g = torch.Generator().manual_seed(0)
        shapes = [(6, 2, 3, 3), (6,), (6, 5), (5, 6), (4, 4)]
        values = [torch.randn(shape, generator=g) for shape in shapes]
        found = [[nn.Parameter(x.clone()) for x in values] for _ in range(muons)]
        for one in found:
            again = torch.Generator().manual_seed(1)
            for w in one:
                w.grad = torch.randn(w.shape, generator=again)
        return found

    (alone,) = weights(1)
    Muon(alone, lr=0.1).step()
    several = Devices(3, monkeypatch)
    first, second = weights(3), weights(3)
    for several.rank, own in enumerate(first):  # for what they send
        Muon(own, lr=0.1).step()
    for several.rank, own in enumerate(second):
        Muon(own, lr=0.1).step()
        assert all(a.equal(b) for a, b in zip(own, alone, strict=True))
