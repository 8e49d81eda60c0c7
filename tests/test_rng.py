import math
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from twoview.rng import Draw, permutation, philox

N = 200_000
word = st.integers(0, 2**32 - 1)


def slow_philox(counter: tuple[int, ...], key: tuple[int, int]) -> tuple[int, ...]:
    """Philox 4x32-10 as the paper writes it, on unbounded integers."""
    c, k = list(counter), list(key)
    for _ in range(10):
        high0, low0 = divmod(0xD2511F53 * c[0], 2**32)
        high1, low1 = divmod(0xCD9E8D57 * c[2], 2**32)
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return tuple(c)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the known answers that come with Random123
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_published_answers(counter: str, key: str, expected: str) -> None:
    c = [int(w, 16) for w in counter.split()]
    k0, k1 = (int(w, 16) for w in key.split())
    answer = tuple(int(w, 16) for w in expected.split())
    assert tuple(int(w) for w in philox(c, (k0, k1))) == answer
    assert tuple(int(w) for w in philox([torch.tensor([w]) for w in c], (k0, k1))) == answer
    assert slow_philox(tuple(c), (k0, k1)) == answer


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(word, word, word, word), min_size=1, max_size=5), st.tuples(word, word))
def test_philox_equals_unbounded_integers(counters: list[tuple[int, ...]], key: tuple[int, int]) -> None:
    columns = torch.tensor(counters, dtype=torch.int64).unbind(1)
    rows = torch.stack(philox(columns, key), dim=1).tolist()
    assert rows == [list(slow_philox(c, key)) for c in counters]


def test_philox_broadcasts() -> None:
    a, b = torch.arange(3)[:, None], torch.arange(5)
    words = philox((a, 7, b, 9), (1, 2))
    assert words[0].shape == (3, 5)
    assert tuple(int(w[2, 4]) for w in words) == slow_philox((2, 7, 4, 9), (1, 2))


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(-(2**63), 2**64 - 1),
    epoch=word,
    index=st.lists(word, min_size=1, max_size=6),
    view=st.integers(0, 2**16 - 1),
    count=st.integers(1, 11),
)
def test_a_row_depends_on_its_own_counters_only(seed: int, epoch: int, index: list[int], view: int, count: int) -> None:
    together = Draw(seed, epoch, torch.tensor(index), view, "crop").bits(count)
    assert together.shape == (len(index), count)
    for row, i in zip(together, index, strict=True):
        alone = Draw(seed, epoch, torch.tensor([i]), torch.tensor([view]), "crop")
        assert row.equal(alone.bits(count)[0])
        assert row.equal(alone.bits(count + 5)[0, :count])  # asking for more changes nothing of what came before


@pytest.mark.parametrize(
    "other",
    [
        Draw(1, 2, torch.arange(100), 1, "crop"),
        Draw(2**32, 2, torch.arange(100), 1, "crop"),  # the upper half of the seed counts
        Draw(0, 3, torch.arange(100), 1, "crop"),
        Draw(0, 2, torch.arange(1, 101), 1, "crop"),
        Draw(0, 2, torch.arange(100), 0, "crop"),
        Draw(0, 2, torch.arange(100), 1, "crop/p"),
        Draw(0, 2, torch.arange(100), 1, "crop").of("flip"),
    ],
)
def test_every_counter_matters(other: Draw) -> None:
    assert not (Draw(0, 2, torch.arange(100), 1, "crop").bits(4) == other.bits(4)).any()


def test_of_changes_the_stream_alone() -> None:
    draw = Draw(5, 6, torch.arange(4), 1, "a")
    assert draw.of("b").bits(3).equal(Draw(5, 6, torch.arange(4), 1, "b").bits(3))
    assert draw.of("b").of("a").bits(3).equal(draw.bits(3))


def test_views_of_a_batch_may_differ_by_row() -> None:
    view = torch.tensor([0, 1, 1, 0])
    mixed = Draw(0, 0, torch.tensor([3, 3, 4, 4]), view).bits(6)
    for i, (index, v) in enumerate([(3, 0), (3, 1), (4, 1), (4, 0)]):
        assert mixed[i].equal(Draw(0, 0, torch.tensor([index]), v).bits(6)[0])


def test_uniform_numbers_lie_on_their_grid_below_one() -> None:
    draw = Draw(0, 0, torch.arange(N), 0, "grid")
    u, v = draw.uniform(2), draw.uniform64(2)
    assert (u.dtype, v.dtype) == (torch.float32, torch.float64)
    for x, steps in ((u.double(), 2**24), (v, 2**32)):
        assert x.min() >= 0
        assert x.max() < 1
        assert (x * steps == (x * steps).round()).all()
    assert u.double().equal((v * 2**24).floor() / 2**24)  # the same words


@pytest.mark.parametrize("count", [0, 1, 4, 5])
def test_empty_batches_and_no_numbers(count: int) -> None:
    assert Draw(0, 0, torch.arange(0), 0).uniform(count).shape == (0, count)
    assert Draw(0, 0, torch.arange(3), 0).uniform(count).shape == (3, count)


# A small battery. The counters of a run are consecutive small numbers, so these are what is counted through.


@cache
def along_index(stream: str = "battery", epoch: int = 0, view: int = 0) -> Tensor:
    return Draw(0, epoch, torch.arange(N), view, stream).uniform64(1)[:, 0]


@cache
def along_epoch() -> Tensor:
    return torch.cat([Draw(0, e, torch.arange(N // 1000), 0, "battery").uniform64(1)[:, 0] for e in range(1000)])


@cache
def along_view() -> Tensor:
    return Draw(0, 0, torch.zeros(50_000, dtype=torch.int64), torch.arange(50_000), "battery").uniform64(4).flatten()


@cache
def along_stream() -> Tensor:
    return torch.cat([Draw(0, 0, torch.arange(N // 1000), 0, f"op{s}").uniform64(1)[:, 0] for s in range(1000)])


@cache
def along_seed() -> Tensor:
    return torch.cat([Draw(s, 0, torch.arange(N // 1000), 0, "battery").uniform64(1)[:, 0] for s in range(1000)])


@cache
def along_draws() -> Tensor:
    return Draw(0, 0, torch.arange(N // 20), 0, "battery").uniform64(20).flatten()


SEQUENCES = [along_index, along_epoch, along_view, along_stream, along_seed, along_draws]


@pytest.mark.parametrize("sequence", SEQUENCES)
def test_equidistribution(sequence) -> None:
    u = sequence()
    assert len(u) == N
    assert stats.chisquare(torch.bincount((u * 1000).long(), minlength=1000)).pvalue > 0.01
    assert stats.kstest(u, "uniform").pvalue > 0.01


@pytest.mark.parametrize("sequence", SEQUENCES)
@pytest.mark.parametrize("lag", [1, 4, 200])
def test_serial_correlation(sequence, lag: int) -> None:
    u = sequence()
    assert uncorrelated(u[:-lag], u[lag:])


@pytest.mark.parametrize(
    "other",
    [
        along_index(epoch=1),
        along_index(view=1),
        along_index("other"),
        along_index("battery/p"),
        along_index().flip(0),
    ],
    ids=["epoch", "view", "stream", "application", "reversed"],
)
def test_cross_correlation(other: Tensor) -> None:
    assert uncorrelated(along_index(), other)


def uncorrelated(a: Tensor, b: Tensor) -> bool:
    """Neither a linear relation nor any other that shows in 16 x 16 cells."""
    r = stats.pearsonr(a, b)
    cells = torch.bincount((a * 16).long() * 16 + (b * 16).long(), minlength=256)
    # Pairs overlap along a sequence, which leaves the mean of the statistic as it is; 0.001 allows for its spread.
    return r.pvalue > 0.001 and stats.chisquare(cells).pvalue > 0.001


def test_the_battery_notices_a_weak_generator() -> None:
    u = torch.arange(N).double() * 0.6180339887 % 1  # equidistributed but serially dependent
    assert stats.chisquare(torch.bincount((u * 1000).long(), minlength=1000)).pvalue > 0.01
    assert not uncorrelated(u[:-1], u[1:])


def test_each_of_the_32_bits_is_fair() -> None:
    words = Draw(0, 0, torch.arange(N // 4), 0, "bits").bits(4).flatten()
    ones = torch.stack([(words >> b) & 1 for b in range(32)]).sum(dim=1).double()
    z = (ones - N / 2) / math.sqrt(N / 4)
    assert z.abs().max() < 4  # 32 draws of a standard normal: beyond 4 in one of 500 cases


@pytest.mark.parametrize("place", range(4))
def test_one_bit_of_the_counter_changes_half_of_the_result(place: int) -> None:
    counter = [torch.arange(2000) * (p + 1) for p in range(4)]
    before = torch.stack(philox(counter, (11, 12)))
    for bit in (0, 7, 31):
        counter[place] = counter[place] ^ (1 << bit)
        after = torch.stack(philox(counter, (11, 12)))
        changed = torch.stack([((before ^ after) >> b) & 1 for b in range(32)]).double().mean()
        assert abs(changed - 0.5) < 4 * 0.5 / math.sqrt(before.numel() * 32)
        before = after


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 300), st.integers(-(2**63), 2**64 - 1), st.integers(0, 2**32 - 1))
def test_permutation_is_one(n: int, seed: int, epoch: int) -> None:
    order = permutation(n, seed, epoch)
    assert order.dtype == torch.int64
    assert order.sort().values.equal(torch.arange(n))
    assert order.equal(permutation(n, seed, epoch))


def test_permutations_differ_by_epoch_seed_and_stream() -> None:
    orders = [permutation(100, *a) for a in ((0, 0), (0, 1), (1, 0), (2**32, 0), (0, 0, "split"))]
    assert len({tuple(o.tolist()) for o in orders}) == len(orders)


def test_all_permutations_are_equally_likely() -> None:
    count = dict.fromkeys(
        [(a, b, c, 6 - a - b - c) for a in range(4) for b in range(4) for c in range(4) if len({a, b, c}) == 3], 0
    )
    for epoch in range(1200):
        count[tuple(permutation(4, 0, epoch).tolist())] += 1
    assert len(count) == 24
    assert stats.chisquare(list(count.values())).pvalue > 0.01


def test_a_permutation_forgets_the_order() -> None:
    order = permutation(N, 0, 0).double()
    assert abs(stats.pearsonr(order, torch.arange(N).double()).statistic) < 4 / math.sqrt(N)
    assert abs(stats.pearsonr(order[:-1], order[1:]).statistic) < 4 / math.sqrt(N)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_same_bits_on_a_gpu() -> None:
    index = torch.randint(0, 2**32, (10_000,), generator=torch.Generator().manual_seed(0))
    for draw in ("bits", "uniform", "uniform64"):
        cpu = getattr(Draw(2**40 + 3, 9, index, 1, "x"), draw)(11)
        assert cpu.equal(getattr(Draw(2**40 + 3, 9, index.cuda(), 1, "x"), draw)(11).cpu())
