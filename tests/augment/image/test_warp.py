import itertools
import math

import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from twoview.augment.image.warp import RandomAffine, RandomRotation, inverse_affine, warp
from twoview.errors import UserError
from twoview.rng import Draw

MODES = {"nearest": v2.InterpolationMode.NEAREST, "bilinear": v2.InterpolationMode.BILINEAR}
SAMPLING = list(itertools.product(MODES, (None, 0.0, 0.3)))
SIZES = [(32, 32, 200), (17, 29, 200), (96, 96, 20), (5, 4, 100), (1, 1, 10), (1, 6, 20), (224, 224, 3)]


def pictures(n: int, H: int, W: int, channels: int = 3) -> Tensor:
    x = torch.rand(n, channels, H, W, generator=torch.Generator().manual_seed(0))
    x[::3] = x[::3].round()  # black and white pixels: the sharpest edges there are
    return x


def uniform(n: int, low: float, high: float, seed: int) -> Tensor:
    return low + (high - low) * torch.rand(n, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("interpolation", "fill"), SAMPLING)
@pytest.mark.parametrize(("H", "W", "n"), SIZES)
def test_each_row_of_a_rotation_equals_torchvision(H: int, W: int, n: int, interpolation: str, fill: float) -> None:
    angle = uniform(n, -360, 360, 1)
    angle[:2] = torch.tensor([45, 1e-3])
    images = pictures(n, H, W)
    out = RandomRotation(interpolation=interpolation, fill=fill).apply(images, {"angle": angle})
    rows = [
        TF.rotate(x, a, interpolation=MODES[interpolation], fill=fill)
        for x, a in zip(images, angle.tolist(), strict=True)
    ]
    # What nearest takes is taken exactly, ties included.
    torch.testing.assert_close(out, torch.stack(rows), rtol=0, atol=1e-5 if interpolation == "bilinear" else 0)


@pytest.mark.parametrize("interpolation", MODES)
@pytest.mark.parametrize(("H", "W"), [(32, 32), (17, 29), (224, 224)])
def test_quarter_turns_equal_torchvision(H: int, W: int, interpolation: str) -> None:
    """torchvision copies pixels there. Sampled, they are the same but for the rounding of coordinates: the sum, the
    product and the coordinate itself are good to half a unit in float32's last place, together 2^-23 of a side.
    """
    angle = torch.tensor([0.0, 90, 180, 270, 360, -90, -180])
    images = pictures(7, H, W)
    out = RandomRotation(interpolation=interpolation).apply(images, {"angle": angle})
    rows = [
        TF.rotate(x, a, interpolation=MODES[interpolation], fill=0) for x, a in zip(images, angle.tolist(), strict=True)
    ]
    tolerance = max(1e-5, (H + W) * 2.0**-23) if interpolation == "bilinear" else 0
    torch.testing.assert_close(out, torch.stack(rows), rtol=0, atol=tolerance)


def affine_params(n: int, H: int, W: int) -> dict[str, Tensor]:
    """Maps as wild as they come; among them none at all, half the size, a shear by a fifth: there, pixels lie half-way
    between others.
    """
    params = {
        "angle": uniform(n, -180, 180, 1),
        "shift": torch.stack([uniform(n, -W, W, 2).round(), uniform(n, -H, H, 3).round()], dim=1),
        "scale": uniform(n, 0.1, 3, 4),
        "shear": torch.stack([uniform(n, -60, 60, 5), uniform(n, -60, 60, 6)], dim=1),
    }
    params["angle"][::4] = 0
    params["shift"][::5] = 0
    params["scale"][::4] = 0.5
    params["shear"][::4] = 0
    params["shear"][4::8, 0] = math.degrees(math.atan(0.2))
    params["scale"][0] = 1
    return params


def torchvision_affine(images: Tensor, params: dict[str, Tensor], interpolation: str, fill: float | None) -> Tensor:
    rows = zip(images, *(params[k].tolist() for k in ("angle", "shift", "scale", "shear")), strict=True)
    return torch.stack([TF.affine(*row, interpolation=MODES[interpolation], fill=fill) for row in rows])


@pytest.mark.parametrize(("interpolation", "fill"), SAMPLING)
@pytest.mark.parametrize(("H", "W", "n"), SIZES)
def test_each_row_of_an_affine_map_equals_torchvision(H: int, W: int, n: int, interpolation: str, fill: float) -> None:
    images, params = pictures(n, H, W), affine_params(n, H, W)
    out = RandomAffine(interpolation=interpolation, fill=fill).apply(images, params)
    expected = torchvision_affine(images, params, interpolation, fill)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-5 if interpolation == "bilinear" else 0)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_any_number_of_channels(channels: int) -> None:
    images, params = pictures(20, 12, 9, channels), affine_params(20, 12, 9)
    expected = torchvision_affine(images, params, "bilinear", 0.5)
    torch.testing.assert_close(
        RandomAffine(interpolation="bilinear", fill=0.5).apply(images, params), expected, rtol=0, atol=1e-5
    )


def test_turns_go_counter_clockwise_and_affine_turns_clockwise() -> None:
    images, quarter = pictures(2, 8, 8), torch.tensor([90.0, -90.0])
    turned = torch.stack([images[0].rot90(1, (1, 2)), images[1].rot90(-1, (1, 2))])
    assert RandomRotation().apply(images, {"angle": quarter}).equal(turned)
    zeros = torch.zeros(2, 2)
    params = {"angle": -quarter, "shift": zeros, "scale": torch.ones(2), "shear": zeros}
    assert RandomAffine().apply(images, params).equal(turned)


def test_shifts_move_whole_pixels_and_fill_what_comes_in() -> None:
    images = pictures(1, 6, 6)
    out = warp(images, inverse_affine(torch.zeros(1), shift=torch.tensor([[2.0, -1.0]])), "bilinear", 0.25)
    assert out[..., :-1, 2:].allclose(images[..., 1:, :-2], rtol=0, atol=1e-6)
    assert (out[..., :2] == 0.25).all()
    assert (out[..., -1, :] == 0.25).all()


def test_a_map_about_a_centre_leaves_it_in_place() -> None:
    centre = torch.tensor([[3.0, -4.0]], dtype=torch.float64)
    angle, scale, shear = torch.tensor([33.0]), torch.tensor([1.7]), torch.tensor([[5.0, 8.0]])
    matrix = inverse_affine(angle, None, scale, shear, centre)
    assert (matrix @ torch.tensor([3.0, -4.0, 1.0])).allclose(torch.tensor([[3.0, -4.0]]), atol=1e-5)


def test_the_inverse_map_inverts() -> None:
    params = affine_params(50, 32, 32)
    there = inverse_affine(params["angle"], params["shift"], params["scale"], params["shear"])
    for matrix, angle, shift, scale, shear in zip(there, *params.values(), strict=True):
        forward = v2.functional._geometry._get_inverse_affine_matrix(
            [0, 0], angle.item(), shift.tolist(), scale.item(), shear.tolist(), inverted=False
        )
        last = torch.tensor([[0.0, 0.0, 1.0]])
        product = torch.cat([matrix, last]) @ torch.cat([torch.tensor(forward).view(2, 3), last])
        torch.testing.assert_close(product, torch.eye(3), rtol=0, atol=1e-3)


# Laws

N = 120_000
SIZE = (24, 40)


def test_angles_are_uniform() -> None:
    for degrees, low, high in [(30.0, -30, 30), ((10, 50), 10, 50), (0.0, 0, 0)]:
        angle = RandomRotation(degrees).sample(Draw(0, 0, torch.arange(N), 0, "turn"), N, SIZE)["angle"]
        assert angle.shape == (N,)
        if low == high:
            assert (angle == low).all()
        else:
            assert stats.kstest(angle.double(), "uniform", (low, high - low)).pvalue > 0.01


def test_affine_maps_have_the_laws_of_torchvision() -> None:
    options = {"degrees": (-20, 50), "translate": (0.3, 0.1), "scale": (0.7, 1.2), "shear": (-5.0, 20.0, 3.0, 8.0)}
    ours = RandomAffine(**options).sample(Draw(0, 0, torch.arange(N), 0, "affine"), N, SIZE)
    theirs = v2.RandomAffine(**options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rows = [theirs.make_params([torch.empty(3, *SIZE)]) for _ in range(10_000)]
    for name, key in [("angle", "angle"), ("scale", "scale"), ("shift", "translate"), ("shear", "shear")]:
        sample = torch.tensor([row[key] for row in rows]).view(len(rows), -1)
        for column, reference in zip(ours[name].view(N, -1).unbind(1), sample.unbind(1), strict=True):
            if name == "shift":
                counts = [torch.bincount(t.long() + 20, minlength=40) for t in (column, reference)]
                table = torch.stack(counts)
                assert stats.chi2_contingency(table[:, table.sum(dim=0) > 0]).pvalue > 0.01
            else:
                assert stats.ks_2samp(column, reference).pvalue > 0.01


@pytest.mark.parametrize(("shear", "x", "y"), [(10.0, (-10, 10), (0, 0)), ((2, 6), (2, 6), (0, 0))])
def test_one_range_of_shear_is_along_x(shear: object, x: tuple[int, int], y: tuple[int, int]) -> None:
    drawn = RandomAffine(shear=shear).sample(Draw(0, 0, torch.arange(2000), 0), 2000, SIZE)["shear"]
    assert (drawn[:, 1] == 0).all()
    assert y == (0, 0)
    assert x[0] <= drawn[:, 0].min() < x[0] + 0.1
    assert x[1] - 0.1 < drawn[:, 0].max() <= x[1]


def test_shifts_are_whole_pixels_within_their_share() -> None:
    shift = RandomAffine(translate=(0.3, 0.1)).sample(Draw(0, 0, torch.arange(5000), 0), 5000, SIZE)["shift"]
    assert shift.equal(shift.round())
    assert shift.abs().amax(dim=0).tolist() == [12, 2]


@pytest.mark.parametrize(
    ("op", "options", "message"),
    [
        (RandomRotation, {"degrees": (30, 10)}, "RandomRotation: degrees must be two numbers, smaller first"),
        (RandomRotation, {"degrees": -5.0}, "RandomRotation: degrees must be two numbers, smaller first"),
        (RandomRotation, {"degrees": math.nan}, "RandomRotation: degrees must be two numbers, smaller first"),
        (RandomRotation, {"degrees": (0, 400)}, r"RandomRotation: degrees .* within \[-360.0, 360.0\]"),
        (RandomRotation, {"interpolation": "bicubic"}, "interpolation must be one of nearest, bilinear, not bicubic"),
        (RandomRotation, {"fill": 1.5}, r"RandomRotation: fill must lie in \[0, 1\], not 1.5"),
        (RandomAffine, {"translate": (0.1, 1.5)}, r"translate must be two numbers within \[0, 1\]"),
        (RandomAffine, {"translate": (0.1,)}, r"translate must be two numbers within \[0, 1\]"),
        (RandomAffine, {"scale": (1.2, 0.8)}, "RandomAffine: scale must be two numbers, smaller first"),
        (RandomAffine, {"scale": (0, 1)}, "RandomAffine: scale must be two numbers, smaller first"),
        (RandomAffine, {"shear": 90.0}, "RandomAffine: shear must be two numbers, smaller first"),
        (RandomAffine, {"shear": (1.0, 2.0, 3.0)}, "RandomAffine: shear must be two numbers, smaller first"),
        (RandomAffine, {"shear": (1.0, 2.0, 3.0, 0.0)}, "RandomAffine: shear must be two numbers, smaller first"),
        (RandomAffine, {"interpolation": "cubic"}, "RandomAffine: interpolation must be one of"),
    ],
)
def test_bad_settings_are_named_at_construction(op: type, options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        op(**options)
