import math

import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from twoview.augment.image.occlude import Cutout, RandomErasing, inside
from twoview.errors import UserError
from twoview.rng import Draw

N = 100_000


def draw(n: int, seed: int = 0) -> Draw:
    return Draw(seed, 0, torch.arange(n), 0, "occlude")


def boxes(n: int, H: int, W: int) -> Tensor:
    g = torch.Generator().manual_seed(0)
    h, w = torch.randint(0, H + 1, (n,), generator=g), torch.randint(0, W + 1, (n,), generator=g)
    top = (torch.rand(n, generator=g) * (H - h + 1)).long()
    left = (torch.rand(n, generator=g) * (W - w + 1)).long()
    return torch.stack([top, left, h, w], dim=1)


@pytest.mark.parametrize(("C", "H", "W"), [(3, 32, 32), (1, 9, 5), (4, 1, 1), (3, 17, 96)])
def test_each_row_of_an_erasure_equals_torchvision(C: int, H: int, W: int) -> None:
    images, box = torch.rand(300, C, H, W), boxes(300, H, W)
    out = RandomErasing(value=0.25).apply(images, {"box": box})
    rows = [TF.erase(x, *b, v=torch.tensor(0.25)) for x, b in zip(images, box.tolist(), strict=True)]
    assert out.equal(torch.stack(rows))


def slow_erasing(u: list[float], H: int, W: int, scale: tuple[float, float], ratio: tuple[float, float]) -> list[int]:
    """The loop that the law is made of: ten tries with the numbers at hand."""
    for i in range(10):
        area = H * W * (scale[0] + (scale[1] - scale[0]) * u[i])
        aspect = math.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * u[10 + i])
        h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if h < H and w < W:
            return [int(u[20] * (H - h + 1)), int(u[21] * (W - w + 1)), h, w]
    return [0, 0, 0, 0]


@pytest.mark.parametrize(
    ("H", "W", "scale", "ratio"),
    [
        (32, 32, (0.02, 0.33), (0.3, 3.3)),
        (24, 40, (0.3, 0.9), (0.3, 3.3)),
        (32, 32, (0.97, 1.0), (0.9, 1.1)),
        (3, 3, (0.0, 0.2), (0.3, 3.3)),
        (1, 1, (0.02, 0.33), (0.3, 3.3)),
    ],
)
def test_ten_tries_equal_the_loop(H: int, W: int, scale: tuple[float, float], ratio: tuple[float, float]) -> None:
    box = RandomErasing(scale, ratio).sample(draw(1000), 1000, (H, W))["box"]
    u = draw(1000).uniform64(22).tolist()
    assert box.tolist() == [slow_erasing(row, H, W, scale, ratio) for row in u]


@pytest.mark.parametrize(
    ("scale", "ratio"), [((0.02, 0.33), (0.3, 3.3)), ((0.6, 1.0), (0.3, 3.3)), ((0.94, 1.0), (0.58, 0.62))]
)
def test_erasures_have_the_distribution_of_torchvision(scale: tuple[float, float], ratio: tuple[float, float]) -> None:
    """The last two are so large that sometimes none of the ten tries fits."""
    theirs, image, rows = v2.RandomErasing(1.0, scale, ratio), torch.empty(3, 24, 40), []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(4000):
            params = theirs.make_params([image])
            rows.append([0] * 4 if params["v"] is None else [params[k] for k in "ijhw"])
    reference = torch.tensor(rows).double()
    box = RandomErasing(scale, ratio).sample(draw(N), N, (24, 40))["box"].double()
    unchanged = [(b[:, 2] == 0).sum().item() for b in (box, reference)]
    table = [[k, len(b) - k] for k, b in zip(unchanged, (box, reference), strict=True)]
    assert (unchanged[0] > 0) == (scale[0] > 0.5)
    if min(unchanged) > 0:
        assert stats.chi2_contingency(table).pvalue > 0.01
    kept, theirs_kept = box[box[:, 2] > 0], reference[reference[:, 2] > 0]
    for a, b in zip(kept.unbind(1), theirs_kept.unbind(1), strict=True):
        # A test for continuous numbers, which whole ones make conservative: noise below one step is added to both.
        g = torch.Generator().manual_seed(1)
        a, b = (t + torch.rand(len(t), generator=g) for t in (a, b))
        assert stats.ks_2samp(a, b).pvalue > 0.01


def test_where_nothing_fits_the_image_stays() -> None:
    images = torch.rand(50, 3, 8, 8)
    assert RandomErasing((1.0, 1.0), (1.0, 1.0), p=1.0)(images, draw(50)).equal(images)


def test_noise_is_uniform_differs_everywhere_and_stays_in_the_box() -> None:
    op = RandomErasing((0.2, 0.4), value="noise", p=1.0)
    images = torch.full((200, 3, 32, 32), 0.5)
    out = op(images, draw(200))
    erased = inside(op.sample(draw(200), 200, (32, 32))["box"], 32, 32).expand_as(out)
    assert (out[~erased] == 0.5).all()
    assert stats.kstest(out[erased], "uniform").pvalue > 0.01
    assert len(out[erased].unique()) > 0.98 * erased.sum()  # of 2^24 values
    centred = out[:, :, :, 16] - 0.5
    assert abs((centred[:, 0] * centred[:, 1]).mean()) < 0.005


# Cutout


def slow_cutout(image: Tensor, top: int, left: int, side: int, value: float) -> Tensor:
    out, (H, W) = image.clone(), image.shape[-2:]
    for y in range(H):
        for x in range(W):
            if top <= y < top + side and left <= x < left + side:
                out[:, y, x] = value
    return out


@pytest.mark.parametrize(("size", "side", "H", "W"), [(4, 4, 12, 12), (5, 5, 8, 12), (0.5, 4, 8, 12), (30, 30, 8, 8)])
def test_cutout_equals_painting_pixel_by_pixel(size: float, side: int, H: int, W: int) -> None:
    images, op = torch.rand(40, 3, H, W), Cutout(size, value=0.1, p=1.0)
    box = op.sample(draw(40), 40, (H, W))["box"]
    assert (box[:, 2:] == side).all()
    rows = [slow_cutout(x, top, left, side, 0.1) for x, (top, left, _, _) in zip(images, box.tolist(), strict=True)]
    assert op(images, draw(40)).equal(torch.stack(rows))


def test_centres_are_uniform_over_the_pixels() -> None:
    box = Cutout(16).sample(draw(N), N, (24, 40))["box"]
    for start, side in ((box[:, 0], 24), (box[:, 1], 40)):
        counts = torch.bincount(start + 8, minlength=side)
        assert len(counts) == side
        assert stats.chisquare(counts).pvalue > 0.01
    joint = torch.bincount(((box[:, 0] + 8) // 6) * 4 + (box[:, 1] + 8) // 10).view(4, 4)
    assert stats.chi2_contingency(joint).pvalue > 0.01


@pytest.mark.parametrize("side", range(1, 9))
def test_the_mean_of_what_is_cut_out_has_a_closed_form(side: int) -> None:
    """Centres are uniform over the pixels of an axis: each offset covers the axis' length less its distance."""
    length = 8
    covered = sum(max(0, min(length, c - side // 2 + side) - max(0, c - side // 2)) for c in range(length)) / length
    out = Cutout(side, value=1.0, p=1.0)(torch.zeros(20_000, 1, length, length), draw(20_000))
    assert out.mean() * length**2 == pytest.approx(covered**2, rel=0.03)


def test_half_of_a_cifar_image_is_the_papers_16_pixels() -> None:
    assert (Cutout().sample(draw(5), 5, (32, 32))["box"][:, 2:] == 16).all()


@pytest.mark.parametrize(
    ("op", "options", "message"),
    [
        (RandomErasing, {"scale": (0.5, 0.2)}, "RandomErasing: scale must be two numbers, smaller first"),
        (RandomErasing, {"scale": (0.5, 1.2)}, "RandomErasing: scale must be two numbers, smaller first"),
        (RandomErasing, {"ratio": (0.0, 1.2)}, "RandomErasing: ratio must be two numbers, smaller first"),
        (RandomErasing, {"value": 1.2}, r"RandomErasing: value must be a number in \[0, 1\] or noise, not 1.2"),
        (RandomErasing, {"value": "random"}, "RandomErasing: value must be .* or noise, not random"),
        (Cutout, {"size": 0}, "Cutout: size must be a whole number of pixels or a share"),
        (Cutout, {"size": 1.5}, "Cutout: size must be a whole number of pixels or a share"),
        (Cutout, {"size": 0.0}, "Cutout: size must be a whole number of pixels or a share"),
        (Cutout, {"size": math.nan}, "Cutout: size must be a whole number of pixels or a share"),
        (Cutout, {"value": -0.5}, r"Cutout: value must lie in \[0, 1\]"),
    ],
)
def test_bad_settings_are_named_at_construction(op: type, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        op(**options)
