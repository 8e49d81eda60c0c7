import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2

from twoview.augment.image.mix import CutMix, LargerShare, MixUp
from twoview.errors import UserError
from twoview.rng import Draw

MIXES = [MixUp, CutMix]
ALPHAS = [0.05, 0.2, 0.5, 1.0, 1.5, 8.0, 100.0]


def draw(n: int, seed: int = 0, first: int = 0) -> Draw:
    return Draw(seed, 3, first + torch.arange(n) * 7919 % 50_000, 0, "mix")


def pictures(n: int, C: int = 3, H: int = 12, W: int = 9) -> Tensor:
    return torch.rand(n, C, H, W, generator=torch.Generator().manual_seed(0))


# Shares


def test_shares_follow_the_quantiles_of_beta() -> None:
    u = torch.rand(5000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    u = torch.cat([u, torch.tensor([0.0, 2.0**-32, 0.5, 1 - 2.0**-32], dtype=torch.float64)])
    for alpha in ALPHAS:
        share = LargerShare(alpha)(u)
        # The table is of the smaller share, from 0: its distribution function is twice Beta's.
        expected = stats.beta.isf(u.numpy() / 2, alpha, alpha)
        assert abs(share - torch.tensor(expected)).max() < 2e-4, alpha
        assert share.min() >= 0.5
        assert share.max() <= 1
        assert share.sort(descending=True).values.equal(LargerShare(alpha)(u.sort().values)), "monotone"


def test_alpha_1_is_uniform_in_closed_form() -> None:
    u = torch.linspace(0, 1 - 2.0**-32, 1001, dtype=torch.float64)
    torch.testing.assert_close(LargerShare(1.0)(u), 1 - u / 2, rtol=0, atol=1e-12)


def test_extreme_alphas_are_finite_and_reach_their_limits() -> None:
    u = torch.linspace(2.0**-32, 1 - 2.0**-32, 1001, dtype=torch.float64)
    assert (LargerShare(1e-6)(u)[:-1] > 0.999).float().mean() > 0.99  # nearly always one image alone
    assert (LargerShare(1e7)(u) - 0.5).abs().max() < 0.001  # always half of each
    for alpha in (1e-300, 1e300):
        share = LargerShare(alpha)(u)
        assert ((share >= 0.5) & (share <= 1)).all()


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixup_draws_the_larger_part_of_beta(alpha: float) -> None:
    n = 200_000
    drawn = Draw(1, 0, torch.arange(n), 0, "mix")
    u = replace(drawn, index=drawn.index[::2]).uniform64(3)[:, 0].contiguous()
    share = LargerShare(alpha)(u)
    assert stats.kstest(share, lambda x: 2 * stats.beta.cdf(x, alpha, alpha) - 1).pvalue > 0.01
    _, found = MixUp(alpha)(torch.zeros(n, 1, 1, 1), drawn)
    assert found[::2].equal(share.float())


def test_boxes_have_the_law_of_torchvision() -> None:
    """At lambda of at least one half, which is where ours are; the side of a box and how much the border cuts off."""
    H, W, n = 24, 40, 100_000
    theirs, image = v2.CutMix(num_classes=2), torch.empty(1, 3, H, W)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        theirs._dist = torch.distributions.Uniform(0.5, 1.0)
        shares = torch.tensor([theirs.make_params([image])["lam_adjusted"] for _ in range(3000)])
    _, share = CutMix()(torch.zeros(n, 1, H, W), Draw(0, 0, torch.arange(n), 0, "mix"))
    assert stats.ks_2samp(share[::2], shares).pvalue > 0.01  # float32 both: equal areas are equal numbers


# Mixtures


@pytest.mark.parametrize("n", [0, 1, 2, 3, 8, 41])
def test_mixup_is_the_share_of_each_neighbour(n: int) -> None:
    images = pictures(n)
    mixed, share = MixUp()(images, draw(n))
    assert share.shape == (n,)
    assert share.dtype == torch.float32
    for i in range(n):
        j = i ^ 1 if i ^ 1 < n else i
        torch.testing.assert_close(mixed[i], share[i] * images[i] + (1 - share[i]) * images[j], rtol=0, atol=1e-6)
    if n % 2:
        assert mixed[-1].equal(images[-1])
        assert share[-1] == 1


@pytest.mark.parametrize("n", [0, 1, 2, 3, 8, 41])
@pytest.mark.parametrize(("H", "W"), [(12, 9), (1, 1), (32, 32)])
def test_cutmix_exchanges_a_box_and_counts_it(n: int, H: int, W: int) -> None:
    images = pictures(n, 3, H, W)
    mixed, share = CutMix()(images, draw(n))
    for i in range(n):
        j = i ^ 1 if i ^ 1 < n else i
        other = (mixed[i] != images[i]).all(dim=0)  # (H, W)
        assert torch.where(other, images[j], images[i]).equal(mixed[i])
        assert share[i] == pytest.approx(1 - other.float().mean().item(), abs=1e-6)
        rows, columns = other.any(dim=1), other.any(dim=0)
        assert other.equal(rows[:, None] & columns)  # a box
        assert rows.int().diff().abs().sum() <= 2
        assert columns.int().diff().abs().sum() <= 2
        assert other.equal((mixed[j] != images[j]).all(dim=0))  # the same in both
    if n % 2:
        assert mixed[-1].equal(images[-1])
        assert share[-1] == 1


def test_half_of_the_boxes_are_as_large_as_the_papers_formula_says() -> None:
    """Where nothing is cut off: sides are those of the image times the root of 1 - lambda."""
    n, side = 20_000, 32
    images = torch.arange(n).float().view(n, 1, 1, 1).expand(n, 1, side, side) / n
    drawn = draw(n)
    mixed, _ = CutMix()(images, drawn)
    u = replace(drawn, index=drawn.index[::2]).uniform64(3)
    half = (0.5 * side * torch.sqrt(u[:, 0] / 2)).floor().long()  # alpha 1: 1 - lambda is u / 2
    y, x = (u[:, 1] * side).long(), (u[:, 2] * side).long()
    whole = (y >= half) & (x >= half) & (y + half <= side) & (x + half <= side)
    assert whole.float().mean() > 0.2
    exchanged = (mixed != images)[::2].sum(dim=(1, 2, 3))
    assert exchanged[whole].equal((2 * half[whole]) ** 2)


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("alpha", [0.3, 1.0, 3.0])
def test_pairs_share_and_shares_are_at_least_a_half(mix: type[MixUp] | type[CutMix], alpha: float) -> None:
    _, share = mix(alpha)(pictures(400, 1, 32, 32), draw(400))
    assert share[::2].equal(share[1::2])
    assert share.min() >= 0.5
    assert share.max() <= 1
    assert len(share.unique()) > 20


@pytest.mark.parametrize("mix", MIXES)
def test_a_mixture_is_a_function_of_its_pair(mix: type[MixUp] | type[CutMix]) -> None:
    images, drawn = pictures(20), draw(20)
    mixed, share = mix()(images, drawn)
    again, same = mix()(images, drawn)
    assert mixed.equal(again)
    assert share.equal(same)
    for size in (2, 6):  # whole pairs, in batches of any size
        for k in range(0, 20, size):
            part, own = mix()(images[k : k + size], replace(drawn, index=drawn.index[k : k + size]))
            assert part.equal(mixed[k : k + size])
            assert own.equal(share[k : k + size])
    view = torch.zeros(20, dtype=torch.long)
    assert mix()(images, replace(drawn, view=view))[1].equal(share)
    for other in (replace(drawn, seed=1), replace(drawn, epoch=4), replace(drawn, view=view + 1), drawn.of("x")):
        assert (mix()(images, other)[1] != share).any()


@pytest.mark.parametrize("mix", MIXES)
def test_swapping_the_rows_of_a_pair_keeps_both_shares_equal(mix: type[MixUp] | type[CutMix]) -> None:
    images, drawn = pictures(2), draw(2)
    mixed, _ = mix()(images, drawn)
    swapped, _ = mix()(images.flip(0), drawn)  # the images change places, the random numbers do not
    torch.testing.assert_close(swapped.flip(0), mixed, rtol=0, atol=0)
    torch.testing.assert_close(mixed.sum(dim=0), images.sum(dim=0), rtol=0, atol=1e-6)  # nothing is lost


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 7), st.integers(1, 4), st.integers(1, 20), st.integers(1, 20), st.floats(0.01, 50), st.booleans())
def test_any_shape_stays_in_range(n: int, C: int, H: int, W: int, alpha: float, cut: bool) -> None:
    images = pictures(n, C, H, W)
    before = images.clone()
    mixed, share = (CutMix if cut else MixUp)(alpha)(images, draw(n))
    assert images.equal(before)
    assert mixed.shape == images.shape
    assert mixed.dtype == share.dtype == torch.float32
    assert ((mixed >= 0) & (mixed <= 1)).all()
    assert ((share >= 0.5) & (share <= 1)).all()


@pytest.mark.parametrize("mix", MIXES)
def test_global_random_numbers_are_left_alone(mix: type[MixUp] | type[CutMix]) -> None:
    before = torch.get_rng_state()
    mix(0.3)(pictures(4), draw(4))
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("mix", MIXES)
def test_no_shape_depends_on_the_data(mix: type[MixUp] | type[CutMix]) -> None:
    """On a device without data, anything that reads data raises."""
    mixed, share = mix(0.4)(torch.rand(5, 3, 8, 8, device="meta"), replace(draw(5), index=draw(5).index.to("meta")))
    assert mixed.shape == (5, 3, 8, 8)
    assert share.shape == (5,)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mix", MIXES)
def test_a_gpu_gives_the_same_mixtures_and_never_waits(mix: type[MixUp] | type[CutMix]) -> None:
    images, drawn, op = pictures(256), draw(256), mix(0.4)
    on_gpu = images.cuda(), replace(drawn, index=drawn.index.cuda())
    op(*on_gpu)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = op(*on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for a, b in zip(found, op(images, drawn), strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("alpha", [0.0, -1.0, math.nan, math.inf])
def test_bad_alphas_are_named_at_construction(mix: type[MixUp] | type[CutMix], alpha: float) -> None:
    with pytest.raises(UserError, match=f"{mix.__name__}: alpha must be finite and above 0, not {alpha}"):
        mix(alpha)


def test_repr_shows_the_setting() -> None:
    assert repr(MixUp(0.2)) == "MixUp(alpha=0.2)"
