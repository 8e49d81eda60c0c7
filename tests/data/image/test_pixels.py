"""What a byte of an image means."""

import logging

import pytest
import torch

from twoview.cli import schema
from twoview.data.image.pixels import Pixels, as_bytes, as_float, draw
from twoview.errors import UserError

EVERY = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)


def test_bytes_and_floats_are_the_same_pixels() -> None:
    pixels = Pixels((0.4,), (0.2,))
    assert torch.equal(pixels.prepare(EVERY), EVERY / 255)
    assert torch.equal(pixels(EVERY), pixels(EVERY.double() / 255))
    assert pixels(EVERY).dtype == torch.float32
    torch.testing.assert_close(pixels(EVERY), (EVERY / 255 - 0.4) / 0.2)
    assert torch.equal(as_bytes(as_float(EVERY)), EVERY)
    assert as_bytes(torch.tensor([-1.0, 0.4999 / 255, 0.5001 / 255, 2.0])).tolist() == [0, 0, 1, 255]


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64, torch.bool])
def test_integers_without_a_scale_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(UserError, match=f"images of {str(dtype)[6:]}: give uint8"):
        Pixels((0.4,), (0.2,))(EVERY.to(dtype))


@pytest.mark.parametrize(
    ("mean", "std"),
    [((0.5,), (0.2, 0.2)), ((0.2,), (0.0,)), ((0.2,), (float("nan"),)), ((float("inf"),), (0.2,)), ((0.2,), (-1.0,))],
)
def test_means_and_deviations_that_normalise_nothing_are_refused(mean: tuple[float], std: tuple[float]) -> None:
    with pytest.raises(UserError, match="finite and as many as each other, and std positive"):
        Pixels(mean, std)


def test_other_channels_are_refused() -> None:
    with pytest.raises(UserError, match="images of 1 channels, but mean and std of 3"):
        Pixels((0.5,) * 3, (0.2,) * 3)(EVERY)


def test_what_it_describes_builds_it_again() -> None:
    pixels = Pixels((0.4914, 0.1), (0.2, 1 / 3))
    assert not pixels.state_dict()
    again = schema.build(pixels.describe())
    assert type(again) is Pixels
    assert torch.equal(again.mean, pixels.mean)
    assert torch.equal(again.std, pixels.std)


@pytest.mark.parametrize(("channels", "shown"), [(1, 1), (2, 1), (3, 3), (4, 3)])
def test_pictures_have_one_channel_or_three(channels: int, shown: int) -> None:
    images = torch.randint(256, (2, channels, 4, 4), dtype=torch.uint8)
    assert torch.equal(draw(images), images[:, :shown] / 255)
    assert torch.equal(draw(2 * images / 255), (2 * images[:, :shown] / 255).clamp(0, 1))


def test_floats_that_are_no_pixels_are_said(caplog: pytest.LogCaptureFixture) -> None:
    pixels = Pixels((0.5,), (0.2,))
    with caplog.at_level(logging.WARNING):
        for good in (EVERY, EVERY / 255, torch.zeros(1, 1, 2, 2)):
            pixels.look(good)
        assert not caplog.records
        pixels.look(EVERY.float())
    assert "images lie in [0, 255]; the augmentations expect floats in [0, 1]" in caplog.text
