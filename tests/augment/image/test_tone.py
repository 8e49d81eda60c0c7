import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from twoview.augment.image.tone import AutoContrast, Equalize, Invert, Posterize, Sharpness, Solarize, posterize
from twoview.augment.operation import BatchAugment
from twoview.errors import UserError
from twoview.rng import Draw

SIZES = [(32, 32, 100), (17, 29, 100), (96, 96, 20), (3, 3, 50), (2, 7, 20), (1, 1, 20), (224, 224, 2)]


def tones(n: int, H: int, W: int, channels: int = 3) -> Tensor:
    """Random images, some of them of few levels, flat, black, white, dim or of 8 bits."""
    x = torch.rand(n, channels, H, W, generator=torch.Generator().manual_seed(0))
    x[1::9] = x[1::9].round()
    x[2::9] = x[2::9, :, :1, :1]
    x[3::9] = 0
    x[4::9] = 1
    x[5::9] = 0.4 + 0.01 * x[5::9]
    x[6::9] = (x[6::9] * 255).round() / 255
    x[7::9, 0] = 0.5
    x[8::9] = x[8::9] ** 8
    return x


def draw(n: int) -> Draw:
    return Draw(0, 0, torch.arange(n), 0, "tone")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("H", "W", "n"), SIZES)
def test_each_row_equals_torchvision(H: int, W: int, n: int, channels: int) -> None:
    images = tones(n, H, W, channels)
    for op, expected in [
        (Equalize(1.0), TF.equalize),
        (AutoContrast(1.0), TF.autocontrast),
        (Invert(1.0), TF.invert),
        (Solarize(0.5, 1.0), lambda x: TF.solarize(x, 0.5)),
        (Solarize(0.0, 1.0), lambda x: TF.solarize(x, 0.0)),
        (Solarize(1.0, 1.0), lambda x: TF.solarize(x, 1.0)),
        *[(Posterize(bits, 1.0), lambda x, bits=bits: TF.posterize(x, bits)) for bits in range(9)],
    ]:
        rows = torch.stack([expected(x) for x in images])
        torch.testing.assert_close(op(images, draw(n)), rows, rtol=0, atol=1e-6, msg=lambda m, op=op: f"{op}: {m}")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("H", "W", "n"), SIZES)
def test_each_row_of_a_sharpening_equals_torchvision(H: int, W: int, n: int, channels: int) -> None:
    images = tones(n, H, W, channels)
    factor = 3 * torch.rand(n, generator=torch.Generator().manual_seed(1))
    factor[:4] = torch.tensor([0.0, 1.0, 2.0, 50.0])[:n]
    out = Sharpness((0, 3)).apply(images, {"factor": factor})
    rows = [TF.adjust_sharpness(x, f) for x, f in zip(images, factor.tolist(), strict=True)]
    torch.testing.assert_close(out, torch.stack(rows), rtol=0, atol=1e-5)


def test_thresholds_and_bits_may_differ_between_rows() -> None:
    images = tones(9, 8, 8)
    threshold = torch.linspace(0, 1, 9)
    out = Solarize().apply(images, {"threshold": threshold})
    rows = [TF.solarize(x, t) for x, t in zip(images, threshold.tolist(), strict=True)]
    assert out.equal(torch.stack(rows))
    out = posterize(images, torch.arange(9.0))
    torch.testing.assert_close(out, torch.stack([TF.posterize(x, b) for b, x in enumerate(images)]), rtol=0, atol=1e-7)


def slow_equalize(pixels: list[int]) -> list[int]:
    """PIL's rule for one channel of 8 bits, written out."""
    histogram = [pixels.count(level) for level in range(256)]
    step = (len(pixels) - histogram[max(pixels)]) // 255
    if step == 0:
        return pixels
    return [min(255, (sum(histogram[:p]) + step // 2) // step) for p in pixels]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 40), st.floats(0.1, 6))
def test_equalize_follows_the_rule(seed: int, H: int, W: int, gamma: float) -> None:
    g = torch.Generator().manual_seed(seed)
    levels = (torch.rand(2, H * W, generator=g) ** gamma * 255).round().int()
    out = Equalize(1.0)((levels / 255).view(1, 2, H, W), draw(1)) * 255
    expected = torch.tensor([slow_equalize(channel) for channel in levels.tolist()])
    assert out.round().int().view(2, -1).equal(expected.int())


@pytest.mark.parametrize("op", [Equalize, AutoContrast, Invert, Posterize, Solarize, Sharpness])
@pytest.mark.parametrize("channels", [2, 4])
def test_channels_are_treated_alike_and_apart(op: type[BatchAugment], channels: int) -> None:
    images = tones(18, 20, 20, channels)
    together = op(p=1.0)(images, draw(18))
    for c in range(channels):
        torch.testing.assert_close(op(p=1.0)(images[:, c : c + 1], draw(18)), together[:, c : c + 1], rtol=0, atol=1e-6)


def test_inversion_and_full_solarisation_undo_themselves() -> None:
    images = tones(30, 6, 6)
    for op in (Invert(1.0), Solarize(0.0, 1.0)):
        torch.testing.assert_close(op(op(images, draw(30)), draw(30)), images, rtol=0, atol=1e-6)


def test_contrast_reaches_both_ends() -> None:
    images = 0.3 + 0.2 * torch.rand(10, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    out = AutoContrast(1.0)(images, draw(10))
    assert (out.amin(dim=(2, 3)) == 0).all()
    assert (out.amax(dim=(2, 3)) == 1).all()


@pytest.mark.parametrize("op", [Equalize, AutoContrast, Invert, Posterize, Solarize, Sharpness])
@pytest.mark.parametrize("beyond", [4.1e-6, 0.01, 5.0])
def test_what_lies_beyond_white_and_black_is_no_error(op: type[BatchAugment], beyond: float) -> None:
    """Interpolation and blends leave [0, 1] by rounding."""
    images = tones(18, 20, 20)
    images[:, :, 3, 4], images[:, :, 5, 6] = 1 + beyond, -beyond
    out = op(p=1.0)(images, draw(18))
    assert out.isfinite().all()
    if op is Equalize:
        torch.testing.assert_close(out, op(p=1.0)(images.clamp(0, 1), draw(18)))


def test_equalize_makes_levels_equally_frequent() -> None:
    """On images so large that the whole number of pixels per level loses little to rounding."""
    images = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) ** 3
    out = Equalize(1.0)(images, draw(2)).flatten(2)
    quarters = torch.quantile(out, torch.tensor([0.25, 0.5, 0.75]), dim=2)  # (3, 2, 3)
    assert (quarters - torch.tensor([0.25, 0.5, 0.75])[:, None, None]).abs().max() < 0.03


def test_posterize_keeps_so_many_levels() -> None:
    images = torch.rand(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    for bits in range(7):
        assert len(Posterize(bits, 1.0)(images, draw(1)).unique()) == 2**bits


def test_a_factor_of_1_leaves_sharpness_alone() -> None:
    images = tones(20, 9, 9)
    torch.testing.assert_close(Sharpness(1.0, p=1.0)(images, draw(20)), images, rtol=0, atol=1e-6)


def test_sharpness_has_one_factor_or_a_uniform_range() -> None:
    n = 100_000
    assert (Sharpness(2.5).sample(draw(n), n, (8, 8))["factor"] == 2.5).all()
    factor = Sharpness((0.1, 1.9)).sample(draw(n), n, (8, 8))["factor"]
    assert stats.kstest(factor.double(), "uniform", (0.1, 1.8)).pvalue > 0.01


@pytest.mark.parametrize(
    ("op", "options", "message"),
    [
        (Solarize, {"threshold": 128}, r"Solarize: threshold must lie in \[0, 1\], not 128"),
        (Solarize, {"threshold": -0.1}, r"Solarize: threshold must lie in \[0, 1\]"),
        (Solarize, {"threshold": math.nan}, r"Solarize: threshold must lie in \[0, 1\]"),
        (Posterize, {"bits": 9}, r"Posterize: bits must lie in \[0, 8\], not 9"),
        (Posterize, {"bits": -1}, r"Posterize: bits must lie in \[0, 8\]"),
        (Sharpness, {"factor": -1.0}, "Sharpness: factor must be two numbers, smaller first"),
        (Sharpness, {"factor": (2.0, 1.0)}, "Sharpness: factor must be two numbers, smaller first"),
        (Sharpness, {"factor": math.inf}, "Sharpness: factor must be two numbers, smaller first"),
    ],
)
def test_bad_settings_are_named_at_construction(op: type, options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        op(**options)
