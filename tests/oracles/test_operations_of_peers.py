"""Operations of kornia and torchvision with the same parameters: the same images. tests/augment compares every
operation with torchvision; this is what kornia defines alike.
"""

from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from twoview.augment.image.geometric import HorizontalFlip, RandomResizedCrop
from twoview.augment.image.photometric import ColorJitter, GaussianBlur, Grayscale
from twoview.augment.image.tone import posterize, sharpen, solarize

N, SIDE = 6, 20


@pytest.fixture
def kornia() -> Any:
    return pytest.importorskip("kornia", reason="the extra `bench` is not installed")


def images() -> Tensor:
    return torch.rand(N, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def jitter(images: Tensor, **values: Tensor) -> Tensor:
    """One of its four steps; the others do nothing."""
    nothing = {"brightness": torch.ones(N), "contrast": torch.ones(N), "saturation": torch.ones(N)}
    params = nothing | {"hue": torch.zeros(N), "order": torch.arange(4).repeat(N, 1)} | values
    return ColorJitter().apply(images, params)


FACTOR = torch.linspace(0.2, 1.8, N)


def test_brightness(kornia: Any) -> None:
    theirs = kornia.enhance.adjust_brightness_accumulative(images(), FACTOR)
    torch.testing.assert_close(jitter(images(), brightness=FACTOR), theirs, rtol=0, atol=1e-6)


def test_contrast(kornia: Any) -> None:
    """kornia's luminance weighs red by 0.299, torchvision's and ours by 0.2989."""
    theirs = kornia.enhance.adjust_contrast_with_mean_subtraction(images(), FACTOR)
    torch.testing.assert_close(jitter(images(), contrast=FACTOR), theirs, rtol=0, atol=2e-4)


def test_saturation(kornia: Any) -> None:
    theirs = kornia.enhance.adjust_saturation_with_gray_subtraction(images(), FACTOR)
    torch.testing.assert_close(jitter(images(), saturation=FACTOR), theirs, rtol=0, atol=2e-4)


def test_hue(kornia: Any) -> None:
    turn = torch.linspace(-0.5, 0.5, N)  # of the circle; kornia's in radians
    theirs = kornia.enhance.adjust_hue(images(), turn * 2 * torch.pi)
    torch.testing.assert_close(jitter(images(), hue=turn), theirs, rtol=0, atol=1e-5)


def test_grayscale(kornia: Any) -> None:
    theirs = kornia.color.rgb_to_grayscale(images()).expand(-1, 3, -1, -1)
    torch.testing.assert_close(Grayscale().apply(images(), {}), theirs, rtol=0, atol=2e-4)


def test_blur(kornia: Any) -> None:
    sigma = torch.linspace(0.3, 2.0, N)
    theirs = kornia.filters.gaussian_blur2d(images(), (5, 5), torch.stack([sigma, sigma], dim=1))
    ours = GaussianBlur(kernel_size=5).apply(images(), {"sigma": sigma})
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


def test_flip_and_solarize(kornia: Any) -> None:
    assert torch.equal(HorizontalFlip().apply(images(), {}), kornia.geometry.hflip(images()))
    threshold = torch.linspace(0.1, 0.9, N)
    assert torch.equal(solarize(images(), threshold), kornia.enhance.solarize(images(), threshold))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crop_posterize_and_sharpness_of_torchvision(interpolation: str) -> None:
    box = torch.tensor([[0, 0, 20, 20], [3, 1, 9, 7], [10, 2, 4, 17], [0, 5, 20, 6], [7, 7, 1, 1], [2, 2, 13, 11]])
    crop = RandomResizedCrop(interpolation=interpolation)
    mode = TF.InterpolationMode(interpolation)
    pairs = zip(images(), box.tolist(), strict=True)
    theirs = torch.stack([TF.resized_crop(x, *b, [SIDE, SIDE], mode, antialias=True) for x, b in pairs])
    torch.testing.assert_close(crop.apply(images(), {"box": box}), theirs.clamp(0, 1), rtol=0, atol=1e-5)
    sharper = torch.stack([TF.adjust_sharpness(x, float(f)) for x, f in zip(images(), FACTOR, strict=True)])
    torch.testing.assert_close(sharpen(images(), FACTOR), sharper, rtol=0, atol=1e-5)
    coarse = torch.stack([TF.posterize(x, 3) for x in images()])
    torch.testing.assert_close(posterize(images(), torch.full((N,), 3.0)), coarse, rtol=0, atol=1e-6)
