"""Corruptions beside Pillow, closed forms, and what severity means."""

import io
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, stats
from torch import Tensor

from twoview.evaluate.describe.corruptions import CORRUPTIONS, SEVERITIES, corrupt, suited
from twoview.rng import Draw

EVERY = [(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]


def smooth(n: int = 8, side: int = 32, seed: int = 0) -> Tensor:
    """uint8 (n, 3, side, side) like photographs: most of the power at low frequencies."""
    coarse = torch.rand(n, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)
    return (fine * 255).round().byte()


@pytest.mark.parametrize(("name", "severity"), EVERY)
def test_an_image_keeps_its_numbers_in_any_batch(name: str, severity: int) -> None:
    images, index = smooth(), torch.tensor([5, 900, 2, 7, 70_000, 1, 0, 3])
    whole = corrupt(images, name, severity, index)
    assert whole.dtype == torch.uint8
    assert whole.shape == images.shape
    assert torch.equal(corrupt(images[3:5], name, severity, index[3:5]), whole[3:5])
    assert torch.equal(corrupt(images.flip(0), name, severity, index.flip(0)), whole.flip(0))
    assert not torch.equal(whole, images)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_higher_severity_leads_further_away(name: str) -> None:
    images, index = smooth(64), torch.arange(64)
    away = [float((corrupt(images, name, s, index).float() - images.float()).abs().mean()) for s in SEVERITIES]
    if name == "motion blur":  # 3 and 4 have the same sigma, and differ in where a tail of 1 in 1,000 ends
        assert away[2] == pytest.approx(away[3], rel=1e-3)
        assert away[0] < away[1] < away[2] < away[4]
    elif name == "pixelate":  # pixels of 28 in 32 fall worse than those of 27
        assert away[0] < min(away[1], away[2])
        assert max(away[1], away[2]) < away[3] < away[4]
    elif name == "saturate":  # two severities take colour away, three add it
        assert away[0] < away[1]
        assert away[2] < away[3] < away[4]
    else:
        assert all(less < more for less, more in pairwise(away)), away


@pytest.mark.parametrize("name", [n for n in CORRUPTIONS if CORRUPTIONS[n].group == "noise"])
def test_noise_differs_from_image_to_image_and_with_the_seed(name: str) -> None:
    images = smooth(1).expand(2, -1, -1, -1)
    first, second = corrupt(images, name, 5, torch.tensor([0, 1]))
    assert not torch.equal(first, second)
    assert not torch.equal(corrupt(images[:1], name, 5, torch.tensor([0]), seed=1)[0], first)


def zoomed(image: np.ndarray, factor: float) -> np.ndarray:
    """A square image (H, W, C) enlarged about its middle, in whole pixels, and trimmed again."""
    side = len(image)
    cut = math.ceil(side / factor)
    at = (side - cut) // 2
    large = ndimage.zoom(image[at : at + cut, at : at + cut], (factor, factor, 1), order=1)
    at = (len(large) - side) // 2
    return large[at : at + side, at : at + side]


@pytest.mark.parametrize(("severity", "count"), [(1, 7), (2, 12), (3, 16), (4, 21), (5, 26)])
@pytest.mark.parametrize("side", [32, 31, 96])
def test_zoom_blur_is_that_of_the_script(severity: int, count: int, side: int) -> None:
    images = smooth(2, side)
    factors = np.arange(1, (1.06, 1.11, 1.16, 1.21, 1.26)[severity - 1], 0.01)
    assert len(factors) == count
    for image, got in zip(images, corrupt(images, "zoom blur", severity, torch.arange(2)), strict=True):
        x = image.permute(1, 2, 0).numpy().astype(np.float32) / 255
        expected = (x + sum(zoomed(x, factor) for factor in factors)) / (count + 1) * 255
        assert np.abs(got.permute(1, 2, 0).numpy() - expected).max() < 0.51


def test_zoom_blur_of_other_ratios_keeps_the_middle() -> None:
    images = torch.zeros(1, 1, 21, 41, dtype=torch.uint8)
    images[..., 10, 20] = 255
    blurred = corrupt(images, "zoom blur", 3, torch.arange(1))[0, 0].float()
    assert (blurred == blurred.max()).nonzero().tolist() == [[10, 20]]


@pytest.mark.parametrize(("severity", "sigma"), [(1, 0.04), (5, 0.10)])
def test_gaussian_noise_has_its_deviation(severity: int, sigma: float) -> None:
    gray = torch.full((16, 3, 32, 32), 128, dtype=torch.uint8)
    noise = corrupt(gray, "gaussian noise", severity, torch.arange(16)).double() / 255 - 128 / 255
    assert float(noise.std()) == pytest.approx(sigma, rel=0.02)
    assert abs(float(noise.mean())) < 4 * sigma / math.sqrt(noise.numel())


@pytest.mark.parametrize(("severity", "photons"), [(1, 500), (3, 100), (5, 50)])
@pytest.mark.parametrize("level", [20, 128])
def test_shot_noise_is_of_poisson(severity: int, photons: int, level: int) -> None:
    gray = torch.full((16, 3, 32, 32), level / 255)
    corruption = CORRUPTIONS["shot noise"]
    assert corruption.levels[severity - 1] == photons
    found = corruption.apply(gray, photons, Draw(0, 0, torch.arange(16), 0, "test")).double()
    counts = (found * photons).round().flatten().numpy()
    law = stats.poisson(photons * level / 255)
    assert counts.mean() == pytest.approx(law.mean(), abs=5 * law.std() / math.sqrt(len(counts)))
    assert counts.var() == pytest.approx(law.var(), rel=0.05)
    edges = np.unique(law.ppf(np.linspace(0, 1, 9)[1:-1]))  # up to eight bins of about the same share
    observed = np.bincount(np.searchsorted(edges, counts), minlength=len(edges) + 1)
    bounds = np.concatenate([[0], law.cdf(edges), [1]])
    assert stats.chisquare(observed, np.diff(bounds) * len(counts)).pvalue > 1e-4


def test_black_has_no_photons_and_impulses_are_black_and_white() -> None:
    black, index = torch.zeros(2, 3, 16, 16, dtype=torch.uint8), torch.arange(2)
    assert int(corrupt(black, "shot noise", 5, index).sum()) == 0
    assert int(corrupt(black, "speckle noise", 5, index).sum()) == 0
    gray = torch.full((32, 3, 32, 32), 100, dtype=torch.uint8)
    found = corrupt(gray, "impulse noise", 5, torch.arange(32))
    for value in (0, 255):
        assert float((found == value).double().mean()) == pytest.approx(0.035, rel=0.05)
    assert set(found.unique().tolist()) == {0, 100, 255}


@pytest.mark.parametrize("name", [n for n in CORRUPTIONS if CORRUPTIONS[n].group == "blur"])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_blur_keeps_what_is_even_and_evens_out_what_is_not(name: str, severity: int) -> None:
    even = torch.full((2, 3, 32, 32), 77, dtype=torch.uint8)
    assert torch.equal(corrupt(even, name, severity, torch.arange(2)), even)
    rough = torch.randint(0, 256, (4, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    blurred = corrupt(rough, name, severity, torch.arange(4)).double()
    assert float(blurred.var()) < 0.98 * float(rough.double().var())
    assert float(blurred.mean()) == pytest.approx(float(rough.double().mean()), abs=4)


def test_gaussian_blur_is_scipys() -> None:
    from scipy.ndimage import gaussian_filter

    images = smooth(2)
    for severity, sigma in zip(SEVERITIES, (0.4, 0.6, 0.7, 0.8, 1.0), strict=True):
        oracle = gaussian_filter(images.numpy() / 255.0, (0, 0, sigma, sigma), mode="nearest", truncate=4)
        found = corrupt(images, "gaussian blur", severity, torch.arange(2)).numpy()
        assert np.abs(found - 255 * oracle).max() <= 0.51


@pytest.mark.parametrize("side", [32, 47])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_pixelate_is_pillows_box(side: int, severity: int) -> None:
    images = torch.randint(0, 256, (3, 3, side, side), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    found = corrupt(images, "pixelate", severity, torch.arange(3))
    small = int(side * (0.95, 0.9, 0.85, 0.75, 0.65)[severity - 1])
    for image, mine in zip(images, found, strict=True):
        whole = Image.fromarray(image.movedim(0, -1).numpy())
        oracle = whole.resize((small, small), Image.Resampling.BOX).resize((side, side), Image.Resampling.BOX)
        gap = np.abs(np.asarray(oracle).astype(int) - mine.movedim(0, -1).numpy().astype(int))
        assert gap.max() <= 1  # Pillow's weights are rounded to integers
        assert (gap > 0).mean() < 0.02


@pytest.mark.parametrize(("severity", "quality"), [(1, 80), (5, 40)])
def test_jpeg_is_about_pillows(severity: int, quality: int) -> None:
    images = smooth(3)
    found = corrupt(images, "jpeg", severity, torch.arange(3))
    for image, mine in zip(images, found, strict=True):
        file = io.BytesIO()
        Image.fromarray(image.movedim(0, -1).numpy()).save(file, "JPEG", quality=quality)
        oracle = np.asarray(Image.open(file)).astype(int)
        assert np.abs(oracle - mine.movedim(0, -1).numpy().astype(int)).mean() < 1


def test_light_in_hsv_beside_the_standard_library() -> None:
    import colorsys

    images = torch.randint(0, 256, (1, 3, 8, 8), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    images[0, :, 0, 0], images[0, :, 0, 1] = 0, 90  # black, and gray
    bright = corrupt(images, "brightness", 3, torch.tensor([0]))[0].flatten(1).T
    vivid = corrupt(images, "saturate", 5, torch.tensor([0]))[0].flatten(1).T
    for pixel, light, strong in zip(images[0].flatten(1).T.tolist(), bright.tolist(), vivid.tolist(), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*(x / 255 for x in pixel))
        for found, (s2, v2) in ((light, (s, min(1, v + 0.15))), (strong, (min(1, 2.5 * s + 0.2), v))):
            oracle = colorsys.hsv_to_rgb(h, s2, v2)
            assert max(abs(a - 255 * b) for a, b in zip(found, oracle, strict=True)) <= 0.51


def test_contrast_keeps_the_mean() -> None:
    images = smooth(4) // 3 + 80  # far from black and white
    found = corrupt(images, "contrast", 5, torch.arange(4)).double()
    assert float((found.mean((2, 3)) - images.double().mean((2, 3))).abs().max()) < 0.5
    assert float(found.std()) < 0.5 * float(images.double().std())


def test_other_sizes_and_channels() -> None:
    assert "saturate" not in suited(1)
    assert {"saturate", "jpeg"} & set(suited(4)) == set()
    for channels in (1, 2, 4):
        images = torch.randint(0, 256, (2, channels, 9, 20), dtype=torch.uint8)
        for name in suited(channels):
            assert corrupt(images, name, 5, torch.arange(2)).shape == images.shape
    assert corrupt(smooth(0), "jpeg", 1, torch.arange(0)).shape == (0, 3, 32, 32)
    with pytest.raises(ValueError, match="severity"):
        corrupt(smooth(1), "jpeg", 6, torch.arange(1))
