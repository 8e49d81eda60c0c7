import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from twoview.augment.image.noise import GaussianNoise, Sobel, pixel_uniform, pixel_words
from twoview.errors import UserError
from twoview.rng import Draw, philox


def draw(n: int, stream: str = "noise") -> Draw:
    return Draw(0, 0, torch.arange(n), 0, stream)


def noise(n: int, C: int, H: int, W: int, sigma: float = 0.01, stream: str = "noise") -> Tensor:
    """What is added to gray, in standard deviations: float64 (n, C, H, W)."""
    images = torch.full((n, C, H, W), 0.5)
    return (GaussianNoise(sigma, p=1.0)(images, draw(n, stream)).double() - 0.5) / sigma


def test_noise_is_standard_normal() -> None:
    z = noise(40, 3, 32, 32).flatten()
    assert stats.kstest(z, "norm").pvalue > 0.01
    assert abs(stats.kurtosis(z)) < 4 * math.sqrt(24 / len(z))
    assert 4 < z.abs().max() < 4.87


def test_noise_has_the_law_of_torchvision() -> None:
    """With what is cut: a fifth of the pixels here lie beyond 0 or 1."""
    images = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)  # other than that of the images, which would be the same random numbers
        theirs = TF.gaussian_noise(images, mean=0.0, sigma=0.3)
    ours = GaussianNoise(0.3, p=1.0)(images, draw(40))
    assert 0.1 < ((ours == 0) | (ours == 1)).float().mean() < 0.4
    assert stats.ks_2samp(ours.flatten(), theirs.flatten()).pvalue > 0.01


def test_no_two_pixels_rows_or_channels_share_their_noise() -> None:
    z = noise(30, 3, 16, 16)
    flat = z.view(30, -1)
    bound = 5 / math.sqrt(flat[0].numel())
    correlation = torch.corrcoef(flat) - torch.eye(30)
    assert correlation.abs().max() < bound
    channels = torch.corrcoef(z.transpose(0, 1).reshape(3, -1)) - torch.eye(3)
    assert channels.abs().max() < bound
    for lag in (1, 2, 3, 4, 16, 128, 384):  # 384: the other half of Box and Muller's pairs
        for a, b in [(flat[:, lag:], flat[:, :-lag]), (flat[:, lag:] ** 2 - 1, flat[:, :-lag] ** 2 - 1)]:
            assert abs((a * b).mean()) < 5 * a.std() * b.std() / math.sqrt(a.numel())


def test_other_streams_have_other_noise() -> None:
    a, b = noise(20, 1, 16, 16).flatten(), noise(20, 1, 16, 16, stream="other").flatten()
    assert abs((a * b).mean()) < 5 / math.sqrt(len(a))


@pytest.mark.parametrize("count", [1, 3, 4, 5, 27])
def test_pixel_numbers_are_those_of_philox(count: int) -> None:
    key = torch.tensor([[1, 2], [2**32 - 1, 7]])
    words, u = pixel_words(key, count), pixel_uniform(key, count)
    assert words.shape == u.shape == (2, count)
    for row, (a, b) in enumerate(key.tolist()):
        for i in range(count):
            word = int(philox((a, b, i // 4, 0), (0, 0))[i % 4])
            assert words[row, i] == word
            assert u[row, i] == (word >> 8) / 2**24


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (1, 3, 3)])
def test_odd_numbers_of_pixels(shape: tuple[int, int, int]) -> None:
    z = noise(2000, *shape)
    assert stats.kstest(z.flatten(), "norm").pvalue > 0.01


def test_sigma_0_changes_nothing() -> None:
    images = torch.rand(4, 3, 8, 8)
    assert GaussianNoise(0.0, p=1.0)(images, draw(4)).equal(images)


@pytest.mark.parametrize("sigma", [-0.1, math.nan, math.inf])
def test_bad_sigmas_are_named_at_construction(sigma: float) -> None:
    with pytest.raises(UserError, match="GaussianNoise: sigma must be finite and not negative"):
        GaussianNoise(sigma)


# Sobel

KERNEL = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])


@pytest.mark.parametrize(("C", "H", "W"), [(3, 32, 32), (1, 5, 9), (4, 2, 2), (3, 1, 1), (2, 1, 8)])
def test_sobel_equals_two_convolutions(C: int, H: int, W: int) -> None:
    images = torch.rand(20, C, H, W, generator=torch.Generator().manual_seed(0))
    images[::2] = images[::2].round()
    x = F.pad(images.double(), (1, 1, 1, 1), mode="replicate").view(20 * C, 1, H + 2, W + 2)
    gradient = F.conv2d(x, torch.stack([KERNEL, KERNEL.T])[:, None].double())
    expected = gradient.norm(dim=1).view(20, C, H, W) / math.sqrt(20)
    torch.testing.assert_close(Sobel(1.0)(images, draw(20)).double(), expected, rtol=0, atol=1e-6)


def test_a_straight_edge_and_a_flat_image() -> None:
    image = torch.zeros(1, 1, 6, 6)
    image[..., 3:] = 1
    out = Sobel(1.0)(image, draw(1))
    assert out[..., 2:4].allclose(torch.tensor(4 / math.sqrt(20)))
    assert (out[..., :2] == 0).all()
    assert (out[..., 4:] == 0).all()
    assert (Sobel(1.0)(torch.full((1, 3, 6, 6), 0.7), draw(1)) < 1e-6).all()


def test_the_longest_gradient_becomes_1() -> None:
    """The length is convex in the pixels: its maximum is at one of the 2^9 patches of black and white."""
    patches = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 9).view(-1, 1, 3, 3)
    middle = Sobel(1.0)(patches, draw(len(patches)))[:, 0, 1, 1]
    assert middle.max() == pytest.approx(1)


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 2**31), st.integers(0, 3))
def test_sobel_turns_with_the_image(seed: int, quarters: int) -> None:
    image = torch.rand(1, 3, 7, 5, generator=torch.Generator().manual_seed(seed))
    out = Sobel(1.0)(image, draw(1)).rot90(quarters, (2, 3))
    torch.testing.assert_close(Sobel(1.0)(image.rot90(quarters, (2, 3)), draw(1)), out, rtol=0, atol=1e-6)
