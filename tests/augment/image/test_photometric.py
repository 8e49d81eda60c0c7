import itertools
import math
from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from twoview.augment.image.photometric import ColorJitter, GaussianBlur, Grayscale, _order, _steps
from twoview.errors import UserError
from twoview.rng import Draw

STEPS: list[tuple[str, Callable[..., Tensor]]] = [
    ("brightness", TF.adjust_brightness),
    ("contrast", TF.adjust_contrast),
    ("saturation", TF.adjust_saturation),
    ("hue", TF.adjust_hue),
]
ORDERS = torch.tensor(list(itertools.permutations(range(4))))


def torchvision_jitter(images: Tensor, params: dict[str, Tensor]) -> Tensor:
    rows = []
    for i, x in enumerate(images):
        for step in params["order"][i].tolist():
            name, adjust = STEPS[step]
            x = adjust(x, params[name][i].item())
        rows.append(x)
    return torch.stack(rows)


def jitter_params(n: int, seed: int = 0) -> dict[str, Tensor]:
    """Factors over their widest range, each tenth row at an extreme, with every order equally often."""
    g = torch.Generator().manual_seed(seed)
    params = {name: 2 * torch.rand(n, generator=g) for name in ("brightness", "contrast", "saturation")}
    params["hue"] = torch.rand(n, generator=g) - 0.5
    for name, extremes in [(k, (0.0, 1.0, 2.0)) for k in params if k != "hue"] + [("hue", (-0.5, 0.0, 0.5))]:
        chosen = torch.rand(n, generator=g) < 0.1
        params[name][chosen] = torch.tensor(extremes)[torch.randint(3, (int(chosen.sum()),), generator=g)]
    return params | {"order": ORDERS.repeat(n // 24 + 1, 1)[:n]}


def colours(n: int, H: int, W: int, seed: int = 1) -> Tensor:
    """Random images, some of them gray, black, white, of pure colours, of a single colour or nearly gray."""
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 3, H, W, generator=g)
    x[1::10] = x[1::10, :1]
    x[2::10] = 0
    x[3::10] = 1
    x[4::10] = x[4::10].round()
    x[5::10] = x[5::10, :, :1, :1]
    x[6::10] = x[6::10, :1] * (1 + 1e-6 * x[6::10])
    return x.clamp_(0, 1)


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("step", range(4))
def test_each_step_equals_torchvision(step: int, place: int) -> None:
    n = 300
    order = [s for s in range(4) if s != step]
    order.insert(place, step)
    params = {name: torch.ones(n) for name, _ in STEPS[:3]} | {"hue": torch.zeros(n)}
    name, adjust = STEPS[step]
    params[name] = jitter_params(n)[name]
    images = colours(n, 5, 6)
    out = ColorJitter().apply(images, params | {"order": torch.tensor(order).expand(n, 4)})
    expected = torch.stack([adjust(x, f) for x, f in zip(images, params[name].tolist(), strict=True)])
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-4 if name == "hue" else 1e-5)


@pytest.mark.parametrize(("H", "W", "n"), [(8, 8, 1440), (1, 1, 240), (96, 96, 24), (3, 7, 240)])
def test_each_row_equals_torchvision_in_all_orders(H: int, W: int, n: int) -> None:
    images, params = colours(n, H, W), jitter_params(n)
    torch.testing.assert_close(
        ColorJitter().apply(images, params), torchvision_jitter(images, params), rtol=0, atol=1e-4
    )


def test_without_a_turn_of_hue_every_order_is_exact() -> None:
    n = 480
    images, params = colours(n, 8, 8), jitter_params(n) | {"hue": torch.zeros(n)}
    torch.testing.assert_close(
        ColorJitter().apply(images, params), torchvision_jitter(images, params), rtol=0, atol=1e-5
    )


@pytest.mark.parametrize("H", [1, 8])
@pytest.mark.parametrize("channels", [1, 3])
def test_the_path_of_gpus_is_the_same(H: int, channels: int) -> None:
    images, params = colours(960, H, 5)[:, :channels], jitter_params(960)
    masked = ColorJitter()._masked(images, *_steps(params))
    torch.testing.assert_close(masked, ColorJitter().apply(images, params), rtol=0, atol=1e-6)


def test_one_channel_gets_brightness_and_contrast_as_in_torchvision() -> None:
    images, params = colours(480, 6, 6)[:, :1], jitter_params(480)
    torch.testing.assert_close(
        ColorJitter().apply(images, params), torchvision_jitter(images, params), rtol=0, atol=1e-5
    )


def test_jitter_stays_in_range_and_keeps_its_input() -> None:
    images, params = colours(480, 6, 6), jitter_params(480)
    before = images.clone()
    out = ColorJitter().apply(images, params)
    assert images.equal(before)
    assert out.isfinite().all()
    assert out.min() >= -1e-6
    assert out.max() <= 1 + 1e-6


@pytest.mark.parametrize("options", [{"strength": 0.0}, {"brightness": 0, "contrast": 0, "saturation": 0, "hue": 0}])
def test_strength_0_is_the_identity_of_colour(options: dict[str, float]) -> None:
    images = colours(480, 6, 6)
    out = ColorJitter(p=1.0, **options)(images, Draw(0, 0, torch.arange(480), 0))
    torch.testing.assert_close(out, images, rtol=0, atol=1e-6)


def test_turning_hue_there_and_back() -> None:
    images = colours(100, 4, 4)
    params = {k: torch.ones(100) for k in ("brightness", "contrast", "saturation")} | {
        "order": ORDERS[:1].expand(100, 4)
    }
    there = ColorJitter().apply(images, params | {"hue": torch.full((100,), 0.3)})
    back = ColorJitter().apply(there, params | {"hue": torch.full((100,), -0.3)})
    torch.testing.assert_close(back, images, rtol=0, atol=1e-5)


# The law of the jitter

N = 120_000


@pytest.fixture(scope="module")
def drawn() -> dict[str, Tensor]:
    jitter = ColorJitter(brightness=0.4, contrast=1.5, saturation=0.8, hue=0.2, strength=0.9)
    return jitter.sample(Draw(0, 0, torch.arange(N), 0, "jitter"), N, (32, 32))


def test_the_numbers_of_the_24_orders() -> None:
    assert _order(torch.arange(24)).equal(ORDERS)


def test_factors_are_uniform_over_their_ranges(drawn: dict[str, Tensor]) -> None:
    for name, low, high in [
        ("brightness", 0.64, 1.36),
        ("contrast", 0.0, 2.35),  # 1 - 1.35 is cut at 0, and what is cut is not heaped up there
        ("saturation", 0.28, 1.72),
        ("hue", -0.18, 0.18),
    ]:
        assert drawn[name].shape == (N,)
        assert stats.kstest(drawn[name].double(), "uniform", (low, high - low)).pvalue > 0.01


def test_factors_have_the_distribution_of_torchvision(drawn: dict[str, Tensor]) -> None:
    theirs = v2.ColorJitter(0.36, 1.35, 0.72, 0.18)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rows = [theirs.make_params([]) for _ in range(20_000)]
    for name, _ in STEPS:
        sample = torch.tensor([row[f"{name}_factor"] for row in rows])
        assert stats.ks_2samp(drawn[name], sample).pvalue > 0.01
    counts = [
        torch.bincount(codes(o), minlength=256) for o in (drawn["order"], torch.stack([r["fn_idx"] for r in rows]))
    ]
    table = torch.stack(counts)
    assert stats.chi2_contingency(table[:, table.sum(dim=0) > 0]).pvalue > 0.01


def codes(order: Tensor) -> Tensor:
    return (order * torch.tensor([64, 16, 4, 1])).sum(dim=1)


def test_all_24_orders_are_equally_frequent(drawn: dict[str, Tensor]) -> None:
    assert drawn["order"].shape == (N, 4)
    assert drawn["order"].sort(dim=1).values.equal(torch.arange(4).expand(N, 4))
    values, counts = codes(drawn["order"]).unique(return_counts=True)
    assert len(values) == 24
    assert stats.chisquare(counts).pvalue > 0.01


def test_factors_and_order_are_independent(drawn: dict[str, Tensor]) -> None:
    ranks = {name: (drawn[name].argsort().argsort() * 8 // N) for name, _ in STEPS}  # eighths of each factor
    ranks["order"] = codes(drawn["order"]).unique(return_inverse=True)[1]
    for a, b in itertools.combinations(ranks, 2):
        table = torch.bincount(ranks[a] * 24 + ranks[b]).reshape(-1)
        table = torch.nn.functional.pad(table, (0, -len(table) % 24)).view(-1, 24)
        assert stats.chi2_contingency(table[:, table.sum(dim=0) > 0]).pvalue > 0.01


def test_two_rows_never_share_parameters(drawn: dict[str, Tensor]) -> None:
    rows = torch.stack([drawn[name] for name, _ in STEPS], dim=1)
    assert len(rows.unique(dim=0)) == N
    again = ColorJitter().sample(Draw(0, 0, torch.arange(N), 1, "jitter"), N, (32, 32))
    assert not (again["hue"] / 0.2 == drawn["hue"] / 0.18).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": -0.1}, "strength must be finite and not negative"),
        ({"brightness": -0.1}, "brightness must be finite and not negative"),
        ({"contrast": -1}, "contrast must be finite and not negative"),
        ({"saturation": math.nan}, "saturation must be finite and not negative"),
        ({"hue": 0.6}, r"hue x strength must lie in \[0, 0.5\]"),
        ({"hue": -0.1}, r"hue x strength must lie in \[0, 0.5\]"),
        ({"hue": 0.3, "strength": 2.0}, r"hue x strength must lie in \[0, 0.5\]"),
    ],
)
def test_bad_jitter_is_named_at_construction(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ColorJitter(**options)


# Grayscale


def test_grayscale_equals_torchvision() -> None:
    images = colours(500, 6, 7)
    out = Grayscale(1.0)(images, Draw(0, 0, torch.arange(500), 0))
    torch.testing.assert_close(out, TF.rgb_to_grayscale(images, num_output_channels=3), rtol=0, atol=1e-6)
    assert out[:, 0].equal(out[:, 1])
    assert out[:, 0].equal(out[:, 2])


def test_grayscale_leaves_one_channel_alone() -> None:
    images = torch.rand(5, 1, 4, 4)
    assert Grayscale(1.0)(images, Draw(0, 0, torch.arange(5), 0)).equal(images)


# Blur


@pytest.mark.parametrize(
    ("H", "W", "taps", "n"),
    [(32, 32, 3, 300), (16, 23, 5, 200), (12, 9, 9, 100), (5, 5, 9, 20), (4, 6, 1, 20), (64, 48, 23, 20)],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_each_row_of_a_blur_equals_torchvision(H: int, W: int, taps: int, n: int, channels: int) -> None:
    g = torch.Generator().manual_seed(0)
    images = torch.rand(n, channels, H, W, generator=g)
    images[::2] = images[::2].round()
    sigma = 0.1 + 1.9 * torch.rand(n, generator=g)
    sigma[:3] = torch.tensor([0.05, 2.0, 50.0])
    out = GaussianBlur(kernel_size=taps).apply(images, {"sigma": sigma})
    expected = [TF.gaussian_blur(x, [taps, taps], [s, s]) for x, s in zip(images, sigma.tolist(), strict=True)]
    torch.testing.assert_close(out, torch.stack(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("side", "taps"), [(8, 3), (32, 3), (50, 5), (96, 9), (224, 23)])
def test_the_kernel_is_a_tenth_of_the_side(side: int, taps: int) -> None:
    images, sigma = torch.rand(1, 3, side, side), {"sigma": torch.tensor([1.5])}
    assert GaussianBlur().apply(images, sigma).equal(GaussianBlur(kernel_size=taps).apply(images, sigma))


def test_flat_images_stay_flat_under_blur() -> None:
    images = torch.full((4, 3, 16, 16), 0.7)
    out = GaussianBlur(kernel_size=7).apply(images, {"sigma": torch.tensor([0.1, 0.5, 2.0, 100.0])})
    torch.testing.assert_close(out, images, rtol=0, atol=1e-6)


def test_blur_widths_are_uniform() -> None:
    sigma = GaussianBlur((0.1, 2.0)).sample(Draw(0, 0, torch.arange(N), 0, "blur"), N, (32, 32))["sigma"]
    assert stats.kstest(sigma.double(), "uniform", (0.1, 1.9)).pvalue > 0.01


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernel_size": 4}, "kernel_size must be odd and positive, not 4"),
        ({"kernel_size": 0}, "kernel_size must be odd and positive, not 0"),
        ({"kernel_size": -3}, "kernel_size must be odd and positive, not -3"),
        ({"sigma": (2.0, 0.1)}, "sigma must be two numbers, smaller first"),
        ({"sigma": (0.0, 2.0)}, "sigma must be two numbers, smaller first"),
    ],
)
def test_bad_blur_is_named_at_construction(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        GaussianBlur(**options)


def test_a_kernel_that_reaches_beyond_the_image_is_named() -> None:
    with pytest.raises(UserError, match="kernel_size 9 is too large for images of 4 x 8 pixels"):
        GaussianBlur(kernel_size=9).apply(torch.rand(1, 3, 4, 8), {"sigma": torch.ones(1)})
