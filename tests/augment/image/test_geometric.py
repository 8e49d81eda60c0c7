import itertools
import math

import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import RandomResizedCrop as TorchvisionCrop
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from twoview.augment.image import geometric
from twoview.augment.image.geometric import HorizontalFlip, RandomResizedCrop
from twoview.errors import UserError
from twoview.rng import Draw

FILTERS = {"bilinear": v2.InterpolationMode.BILINEAR, "bicubic": v2.InterpolationMode.BICUBIC}


def random_boxes(n: int, H: int, W: int, seed: int = 0) -> Tensor:
    """Boxes of any shape within the image, as extreme as they come: the law of the crop is another matter."""
    g = torch.Generator().manual_seed(seed)
    h = torch.randint(1, H + 1, (n,), generator=g)
    w = torch.randint(1, W + 1, (n,), generator=g)
    top = (torch.rand(n, generator=g) * (H - h + 1)).long()
    left = (torch.rand(n, generator=g) * (W - w + 1)).long()
    return torch.stack([top, left, h, w], dim=1)


def extreme_boxes(H: int, W: int) -> Tensor:
    corners = [(t, s, 1, 1) for t in (0, H - 1) for s in (0, W - 1)]
    lines = [(0, 0, 1, W), (H - 1, 0, 1, W), (0, 0, H, 1), (0, W - 1, H, 1)]
    return torch.tensor([(0, 0, H, W), *corners, *lines, (0, 0, H - 1, W), (1, 1, H - 1, W - 1), (0, 0, 2, 3)])


def torchvision_crop(images: Tensor, box: Tensor, size: tuple[int, int], interpolation: str, antialias: bool) -> Tensor:
    rows = [
        TF.resized_crop(x, *b, size=list(size), interpolation=FILTERS[interpolation], antialias=antialias)
        for x, b in zip(images, box.tolist(), strict=True)
    ]
    return torch.stack(rows).clamp(0, 1)  # on floats torchvision leaves the overshoot of bicubic; PIL and we cut it


@pytest.mark.parametrize(("interpolation", "antialias"), list(itertools.product(FILTERS, (True, False))))
@pytest.mark.parametrize(
    ("H", "W", "size", "n"),
    [
        (32, 32, None, 600),  # CIFAR: crops are enlarged
        (32, 32, 48, 100),
        (32, 32, 13, 300),  # crops are enlarged or reduced
        (96, 96, 32, 30),
        (17, 29, None, 200),
        (40, 23, 8, 100),
        (5, 7, 1, 50),
        (1, 1, 4, 3),
        (3, 224, 2, 30),
    ],
)
def test_each_row_equals_torchvision(
    H: int, W: int, size: int | None, n: int, interpolation: str, antialias: bool
) -> None:
    box = random_boxes(n, H, W) if min(H, W) < 4 else torch.cat([random_boxes(n, H, W), extreme_boxes(H, W)])
    images = torch.rand(len(box), 3, H, W, generator=torch.Generator().manual_seed(1))
    images[::3] = images[::3].round()  # black and white pixels: the sharpest edges there are
    crop = RandomResizedCrop(size=size, interpolation=interpolation, antialias=antialias)
    out = crop.apply(images, {"box": box})
    expected = torchvision_crop(images, box, (size or H, size or W), interpolation, antialias)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("interpolation", "antialias"), list(itertools.product(FILTERS, (True, False))))
@pytest.mark.parametrize(("side", "size"), [(224, None), (224, 96), (96, 224)])
def test_large_images_equal_torchvision(side: int, size: int | None, interpolation: str, antialias: bool) -> None:
    images = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    crop = RandomResizedCrop(size=size, interpolation=interpolation, antialias=antialias)
    box = crop.sample(Draw(0, 0, torch.arange(2), 0), 2, (side, side))["box"]
    out = crop.apply(images, {"box": box})
    expected = torchvision_crop(images, box, (size or side, size or side), interpolation, antialias)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("interpolation", "antialias"), list(itertools.product(FILTERS, (True, False))))
@pytest.mark.parametrize("value", [0.0, 0.25, 1.0])
def test_flat_images_stay_flat(interpolation: str, antialias: bool, value: float) -> None:
    box = torch.cat([random_boxes(100, 16, 16), extreme_boxes(16, 16)])
    crop = RandomResizedCrop(size=11, interpolation=interpolation, antialias=antialias)
    out = crop.apply(torch.full((len(box), 2, 16, 16), value), {"box": box})
    torch.testing.assert_close(out, torch.full_like(out, value), rtol=0, atol=5e-6)


@pytest.mark.parametrize(("interpolation", "antialias"), list(itertools.product(FILTERS, (True, False))))
def test_no_pixel_outside_the_crop_is_read(interpolation: str, antialias: bool) -> None:
    box = random_boxes(200, 16, 16)
    inside = torch.zeros(200, 1, 16, 16, dtype=torch.bool)
    for mask, (top, left, h, w) in zip(inside, box.tolist(), strict=True):
        mask[:, top : top + h, left : left + w] = True
    crop = RandomResizedCrop(interpolation=interpolation, antialias=antialias)
    images = torch.rand(200, 1, 16, 16)
    out = crop.apply(images, {"box": box})
    assert crop.apply(torch.where(inside, images, 1 - images), {"box": box}).equal(out)


def test_the_whole_image_at_its_own_size_is_the_identity() -> None:
    images = torch.rand(4, 3, 12, 20)
    box = torch.tensor([[0, 0, 12, 20]]).expand(4, 4)
    for interpolation, antialias in itertools.product(FILTERS, (True, False)):
        out = RandomResizedCrop(interpolation=interpolation, antialias=antialias).apply(images, {"box": box})
        torch.testing.assert_close(out, images, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("interpolation", "antialias"), list(itertools.product(FILTERS, (True, False))))
@pytest.mark.parametrize(("H", "W", "size"), [(32, 32, None), (80, 64, 32), (20, 70, 96)])
def test_matrix_products_and_row_by_row_are_the_same(
    H: int, W: int, size: int | None, interpolation: str, antialias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = torch.cat([random_boxes(60, H, W), extreme_boxes(H, W)])
    images = torch.rand(len(box), 4, H, W, generator=torch.Generator().manual_seed(1))
    crop, ways = RandomResizedCrop(size=size, interpolation=interpolation, antialias=antialias), []
    for side in (0, 1000):
        monkeypatch.setattr(geometric, "_PRODUCTS_PAY", side)
        ways.append(crop.apply(images, {"box": box}))
    torch.testing.assert_close(*ways, rtol=0, atol=1e-5)


def test_one_crop_per_row() -> None:
    images, box = torch.rand(20, 3, 16, 16), random_boxes(20, 16, 16)
    crop = RandomResizedCrop()
    rows = [crop.apply(images[i : i + 1], {"box": box[i : i + 1]}) for i in range(20)]
    torch.testing.assert_close(crop.apply(images, {"box": box}), torch.cat(rows), rtol=0, atol=1e-6)


# The law of the crop


def slow_crop(u: list[float], H: int, W: int, scale: tuple[float, float], ratio: tuple[float, float]) -> list[int]:
    """torchvision's loop over ten tries, fed with the numbers that the fast one draws."""
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for i in range(10):
        area = H * W * (scale[0] + (scale[1] - scale[0]) * u[i])
        r = math.exp(low + (high - low) * u[10 + i])
        w, h = round(math.sqrt(area * r)), round(math.sqrt(area / r))
        if 0 < w <= W and 0 < h <= H:
            return [int(u[20] * (H - h + 1)), int(u[21] * (W - w + 1)), h, w]
    return slow_fallback(H, W, ratio)


def slow_fallback(H: int, W: int, ratio: tuple[float, float]) -> list[int]:
    if ratio[0] > W / H:
        h, w = round(W / ratio[0]), W
    elif ratio[1] < W / H:
        h, w = H, round(H * ratio[1])
    else:
        h, w = H, W
    return [(H - h) // 2, (W - w) // 2, h, w]


@pytest.mark.parametrize(
    ("H", "W", "scale", "ratio", "falls_back"),
    [
        (32, 32, (0.08, 1.0), (3 / 4, 4 / 3), False),
        (32, 32, (0.9, 1.0), (0.5, 2.0), True),  # most tries do not fit
        (32, 32, (1.0, 1.0), (2.0, 4.0), True),  # none fits: a wide central crop
        (32, 32, (1.0, 1.0), (0.25, 0.5), True),  # and a high one
        (20, 60, (0.8, 1.0), (3 / 4, 4 / 3), True),
        (60, 21, (0.8, 1.0), (3 / 4, 4 / 3), True),
        (9, 9, (0.0, 0.004), (0.2, 5.0), True),  # crops of less than a pixel
        (7, 13, (0.0, 1.0), (0.1, 10.0), False),
        (224, 224, (0.08, 1.0), (3 / 4, 4 / 3), False),
    ],
)
def test_ten_tries_and_the_fallback_equal_the_loop(
    H: int, W: int, scale: tuple[float, float], ratio: tuple[float, float], falls_back: bool
) -> None:
    n = 1500
    draw = Draw(0, 0, torch.arange(n), 0, "crop")
    box = RandomResizedCrop(scale, ratio).sample(draw, n, (H, W))["box"]
    assert box.tolist() == [slow_crop(u, H, W, scale, ratio) for u in draw.uniform64(22).tolist()]
    assert not falls_back or slow_fallback(H, W, ratio) in box.tolist()


def torchvision_boxes(n: int, H: int, W: int, scale: tuple[float, float], ratio: tuple[float, float]) -> Tensor:
    image = torch.empty(3, H, W)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return torch.tensor([TorchvisionCrop.get_params(image, list(scale), list(ratio)) for _ in range(n)])


@pytest.mark.parametrize(
    ("H", "W", "scale", "ratio"),
    [(32, 32, (0.08, 1.0), (3 / 4, 4 / 3)), (24, 40, (0.5, 1.0), (0.5, 3.0))],
)
def test_crops_have_the_distribution_of_torchvision(
    H: int, W: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> None:
    theirs = torchvision_boxes(20_000, H, W, scale, ratio).double()
    n = 150_000
    ours = RandomResizedCrop(scale, ratio).sample(Draw(0, 0, torch.arange(n), 0, "crop"), n, (H, W))["box"].double()

    for column in range(4):  # top, left, height, width
        assert homogeneous(ours[:, column], theirs[:, column])
    assert homogeneous(joint(ours[:, 2:], 3), joint(theirs[:, 2:], 3))
    assert homogeneous(joint(ours, 6), joint(theirs, 6))
    area, other_area = ours[:, 2] * ours[:, 3], theirs[:, 2] * theirs[:, 3]
    assert stats.ks_2samp(area, other_area).pvalue > 0.01
    assert stats.ks_2samp(ours[:, 3] / ours[:, 2], theirs[:, 3] / theirs[:, 2]).pvalue > 0.01


def joint(columns: Tensor, cell: int) -> Tensor:
    """One number per combination of the columns, each in steps of `cell`."""
    code = torch.zeros(len(columns), dtype=torch.int64)
    for column in (columns / cell).long().unbind(1):
        code = code * 1000 + column
    return code


def homogeneous(a: Tensor, b: Tensor) -> bool:
    """Chi-square test that two samples of discrete values have one distribution; rare values count together."""
    _, code = torch.cat([a, b]).unique(return_inverse=True)
    counts = torch.stack([torch.bincount(c, minlength=int(code.max()) + 1) for c in (code[: len(a)], code[len(a) :])])
    common = counts[1] >= 10
    table = torch.cat([counts[:, common], counts[:, ~common].sum(dim=1, keepdim=True)], dim=1)
    return stats.chi2_contingency(table[:, table.sum(dim=0) > 0]).pvalue > 0.01


def test_the_comparison_notices_another_law() -> None:
    theirs = torchvision_boxes(5_000, 32, 32, (0.08, 1.0), (3 / 4, 4 / 3)).double()
    draw = Draw(0, 0, torch.arange(100_000), 0, "crop")
    ours = RandomResizedCrop((0.15, 1.0)).sample(draw, 100_000, (32, 32))["box"].double()
    assert not homogeneous(ours[:, 2], theirs[:, 2])


def test_offsets_are_uniform_whatever_the_size() -> None:
    n = 100_000
    box = RandomResizedCrop().sample(Draw(0, 0, torch.arange(n), 0, "crop"), n, (32, 32))["box"]
    for side in (12, 20, 28):
        for offset, length in ((box[:, 0], box[:, 2]), (box[:, 1], box[:, 3])):
            counts = torch.bincount(offset[length == side], minlength=32 - side + 1)
            assert len(counts) == 32 - side + 1
            assert stats.chisquare(counts).pvalue > 0.01


def test_rows_have_crops_of_their_own() -> None:
    n = 10_000
    box = RandomResizedCrop().sample(Draw(0, 0, torch.arange(n), 0, "crop"), n, (224, 224))["box"]
    assert len(box.unique(dim=0)) > 0.999 * n


@pytest.mark.parametrize(("H", "W"), [(1, 1), (2, 9), (32, 32), (96, 64)])
@pytest.mark.parametrize("ratio", [(3 / 4, 4 / 3), (1e-3, 1e-3), (1e3, 1e3), (1e-3, 1e3)])
def test_boxes_are_never_empty_nor_outside(H: int, W: int, ratio: tuple[float, float]) -> None:
    top, left, h, w = (
        RandomResizedCrop((0.0, 1.0), ratio).sample(Draw(0, 0, torch.arange(500), 0), 500, (H, W))["box"].unbind(1)
    )
    assert min(top.min(), left.min()) >= 0
    assert min(h.min(), w.min()) >= 1
    assert (top + h <= H).all()
    assert (left + w <= W).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": (1.0, 0.2)}, "scale must be two numbers, smaller first"),
        ({"scale": (-0.1, 1.0)}, "scale must be two numbers, smaller first"),
        ({"scale": (0.2, 1.5)}, "scale must be two numbers, smaller first"),
        ({"scale": (0.0, 0.0)}, "scale must allow crops with an area"),
        ({"ratio": (4 / 3, 3 / 4)}, "ratio must be two numbers, smaller first"),
        ({"ratio": (0.0, 1.0)}, "ratio must be two numbers, smaller first"),
        ({"size": 0}, "size must be at least 1 pixel, not 0"),
        ({"size": 8, "p": 0.5}, "p must be 1"),
        ({"interpolation": "nearest"}, "interpolation must be one of bilinear, bicubic, not nearest"),
    ],
)
def test_bad_settings_are_named_at_construction(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RandomResizedCrop(**options)


# Flip


def test_flip_equals_torchvision() -> None:
    images = torch.rand(50, 3, 9, 16)
    assert HorizontalFlip(1.0)(images, Draw(0, 0, torch.arange(50), 0)).equal(TF.horizontal_flip(images))


def test_flip_turns_whole_rows_of_the_batch() -> None:
    images = torch.rand(200, 3, 4, 5)
    out = HorizontalFlip(0.5)(images, Draw(0, 0, torch.arange(200), 0))
    flipped = (out == images.flip(-1)).flatten(1).all(dim=1)
    kept = (out == images).flatten(1).all(dim=1)
    assert (flipped ^ kept).all()
    assert 60 < flipped.sum() < 140
