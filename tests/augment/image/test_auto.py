import math

import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import AutoAugmentPolicy, v2

from twoview.augment.image.auto import OPS, AutoAugment, RandAugment, magnitudes, perform
from twoview.errors import UserError
from twoview.rng import Draw

MODES = {"nearest": v2.InterpolationMode.NEAREST, "bilinear": v2.InterpolationMode.BILINEAR}
RANDOM, LEARNT = v2.RandAugment(), v2.AutoAugment(AutoAugmentPolicy.CIFAR10)
SIGNED = OPS[:9]
N = 100_000


def draw(n: int, seed: int = 0) -> Draw:
    return Draw(seed, 0, torch.arange(n), 0, "auto")


def pictures(n: int, H: int, W: int, channels: int = 3) -> Tensor:
    x = torch.rand(n, channels, H, W, generator=torch.Generator().manual_seed(0))
    x[1::5] = x[1::5].round()
    x[2::5] = 0.4 + 0.1 * x[2::5]
    x[3::25] = x[3::25, :, :1, :1]
    return x


def torchvision_rows(images: Tensor, op: Tensor, magnitude: Tensor, interpolation: str, fill: float | None) -> Tensor:
    theirs, rows = v2.RandAugment(fill=fill), []
    for x, names, values in zip(images, op.tolist(), magnitude.tolist(), strict=True):
        for name, value in zip(names, values, strict=True):
            x = theirs._apply_image_or_video_transform(x, OPS[name], value, MODES[interpolation], theirs._fill)
        rows.append(x)
    return torch.stack(rows)


@pytest.mark.parametrize("grouped", [True, False], ids=["cpu", "gpu"])
@pytest.mark.parametrize(
    ("H", "W", "channels", "interpolation", "fill"),
    [
        (32, 32, 3, "nearest", None),
        (32, 32, 3, "bilinear", 0.5),
        (17, 29, 3, "bilinear", None),
        (17, 29, 1, "nearest", 0.25),
        (2, 3, 3, "nearest", None),
    ],
)
def test_each_operation_equals_torchvision_at_every_level(
    H: int, W: int, channels: int, interpolation: str, fill: float | None, grouped: bool
) -> None:
    """All kinds, all 31 levels, both signs."""
    table = magnitudes(31, (H, W))  # (15, 31)
    op = torch.arange(len(OPS)).repeat_interleave(2 * 31)
    magnitude = torch.stack([table, torch.where(torch.arange(len(OPS)) < len(SIGNED), -1, 1)[:, None] * table], dim=1)
    images = pictures(len(op), H, W, channels)
    out = perform(images, op, magnitude.flatten(), interpolation, fill, grouped)
    expected = torchvision_rows(images, op[:, None], magnitude.view(-1, 1), interpolation, fill)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("H", "W", "n"), [(32, 32, 400), (24, 40, 100), (96, 96, 30)])
@pytest.mark.parametrize("op", [RandAugment(3, 14), AutoAugment()], ids=["RandAugment", "AutoAugment"])
def test_each_row_of_a_policy_equals_torchvision(op: RandAugment | AutoAugment, H: int, W: int, n: int) -> None:
    images, params = pictures(n, H, W), op.sample(draw(n), n, (H, W))
    out = op.apply(images, params)
    expected = torchvision_rows(images, params["op"], params["magnitude"], "nearest", None)
    # A pixel on the edge of a level falls to either side by the last bit, if Equalize or Posterize follow upon a blend.
    apart = (out - expected).abs() > 1e-5
    assert apart.sum() <= 1e-5 * apart.numel()


@pytest.mark.parametrize("bins", [2, 10, 31])
@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_magnitudes_are_those_of_torchvision(bins: int, size: tuple[int, int]) -> None:
    ours, spaces = magnitudes(bins, size), RANDOM._AUGMENTATION_SPACE | LEARNT._AUGMENTATION_SPACE
    assert set(spaces) == set(OPS)
    for name, row in zip(OPS, ours, strict=True):
        values, signed = spaces[name]
        assert signed == (name in SIGNED)
        reference = values(bins, *size)
        assert row.equal(torch.zeros(bins) if reference is None else reference.float())


# Laws


def counts(op: Tensor) -> Tensor:
    return torch.bincount(op, minlength=len(OPS))


def test_randaugment_draws_all_kinds_equally_often_and_both_signs() -> None:
    params = RandAugment(2, 9).sample(draw(N), N, (32, 32))
    for op, magnitude in zip(params["op"].unbind(1), params["magnitude"].unbind(1), strict=True):
        kinds = torch.tensor([OPS.index(name) for name in RANDOM._AUGMENTATION_SPACE])
        assert counts(op)[kinds].sum() == N
        assert stats.chisquare(counts(op)[kinds]).pvalue > 0.01
        for i, name in enumerate(OPS):
            drawn, level = magnitude[op == i], magnitudes(31, (32, 32))[i, 9]
            assert drawn.abs().eq(level).all()
            if name in SIGNED:
                assert stats.binomtest(int((drawn < 0).sum()), len(drawn)).pvalue > 0.001
            else:
                assert (drawn >= 0).all()
    pairs = torch.bincount(params["op"][:, 0] * 15 + params["op"][:, 1], minlength=225).view(15, 15)
    kept = pairs.sum(dim=1) > 0
    assert stats.chi2_contingency(pairs[kept][:, kept]).pvalue > 0.01


def test_autoaugment_has_the_policies_rates_and_levels_of_torchvision() -> None:
    """The table itself, read off the draws: each of the 25 pairs by what it leaves."""
    params = AutoAugment().sample(draw(N), N, (32, 32))
    levels, identity = magnitudes(10, (32, 32)), OPS.index("Identity")
    expected = torch.zeros(2, len(OPS) * 20)  # by kind, sign and level, with Identity where an operation is left out
    for pair in LEARNT._policies:
        for place, (name, rate, level) in enumerate(pair):
            kind = OPS.index(name)
            for negative in (0, 1) if name in SIGNED else (0,):
                expected[place, kind * 20 + negative * 10 + (level or 0)] += rate / 25 / (2 if name in SIGNED else 1)
            expected[place, identity * 20] += (1 - rate) / 25
    for place in range(2):
        op, magnitude = params["op"][:, place], params["magnitude"][:, place]
        # The first level of this size; operations without levels have zeros everywhere and so get 0.
        level = (levels[op] == magnitude.abs()[:, None]).to(torch.uint8).argmax(dim=1)
        negative = ((magnitude < 0) | ((magnitude == 0) & torch.signbit(magnitude))).long()
        found = torch.bincount(op * 20 + negative * 10 + level, minlength=len(OPS) * 20).double()
        share = expected[place].double()
        # Posterize's levels come in equals: both sides count them at the first.
        share = merge_posterize(share, levels)
        assert found[share == 0].sum() == 0
        assert stats.chisquare(found[share > 0], share[share > 0] / share.sum() * N).pvalue > 0.01


def merge_posterize(share: Tensor, levels: Tensor) -> Tensor:
    kind = OPS.index("Posterize")
    merged = share.clone()
    merged[kind * 20 : kind * 20 + 10] = 0
    for level in range(10):
        first = int((levels[kind] == levels[kind, level]).to(torch.uint8).argmax())
        merged[kind * 20 + first] += share[kind * 20 + level]
    return merged


def test_autoaugment_draws_pairs_not_single_operations() -> None:
    """Kinds of both places occur together as torchvision's 25 pairs say, which are far from independent."""
    params = AutoAugment().sample(draw(N), N, (32, 32))
    expected = torch.zeros(len(OPS), len(OPS), dtype=torch.float64)
    identity = OPS.index("Identity")
    for (a, p, _), (b, q, _) in LEARNT._policies:
        i, j = OPS.index(a), OPS.index(b)
        for k, x in ((i, p), (identity, 1 - p)):
            for m, y in ((j, q), (identity, 1 - q)):
                expected[k, m] += x * y / 25
    found = torch.bincount(params["op"][:, 0] * 15 + params["op"][:, 1], minlength=225).double()
    expected = expected.flatten()
    assert found[expected == 0].sum() == 0
    kept = expected > 0
    assert stats.chisquare(found[kept], expected[kept] / expected.sum() * N).pvalue > 0.01


def test_rows_of_one_batch_get_operations_of_their_own() -> None:
    same = pictures(1, 16, 16).expand(40, 3, 16, 16)
    for op in (RandAugment(), AutoAugment()):
        assert len({row.numpy().tobytes() for row in op(same, draw(40))}) > 10


def test_other_numbers_of_channels_are_refused() -> None:
    for op in (RandAugment(), AutoAugment()):
        with pytest.raises(UserError, match=f"{type(op).__name__} needs images of 1 or 3 channels, not 4"):
            op(torch.rand(2, 4, 8, 8), draw(2))


@pytest.mark.parametrize(
    ("op", "options", "message"),
    [
        (RandAugment, {"num_ops": 0}, "RandAugment: num_ops must be at least 1, not 0"),
        (RandAugment, {"num_magnitude_bins": 1, "magnitude": 0}, "num_magnitude_bins must be at least 2, not 1"),
        (RandAugment, {"magnitude": 31}, r"RandAugment: magnitude must lie in \[0, 30\], not 31"),
        (RandAugment, {"magnitude": -1}, r"RandAugment: magnitude must lie in \[0, 30\], not -1"),
        (RandAugment, {"interpolation": "bicubic"}, "RandAugment: interpolation must be one of nearest, bilinear"),
        (RandAugment, {"fill": -1.0}, r"RandAugment: fill must lie in \[0, 1\]"),
        (AutoAugment, {"policy": "svhn"}, "AutoAugment: policy must be one of cifar10, not svhn"),
        (AutoAugment, {"interpolation": "box"}, "AutoAugment: interpolation must be one of"),
        (AutoAugment, {"fill": math.nan}, r"AutoAugment: fill must lie in \[0, 1\]"),
    ],
)
def test_bad_settings_are_named_at_construction(op: type, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        op(**options)
