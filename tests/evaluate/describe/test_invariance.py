"""What an encoder ignores, on encoders of which it is known."""

import math

import pytest
import torch
from torch import Tensor, nn

from twoview.data.image.shapes import shapes
from twoview.evaluate.describe import invariance
from twoview.evaluate.describe.invariance import TRANSFORMS, decode, factors, profile
from twoview.rng import Draw

# Half a turn may leave an image closer than a quarter, and beyond a small crop all pixels are others already.
NOT_BY_PIXELS = ("rotation", "crop")


@pytest.fixture(scope="module")
def images() -> Tensor:
    found = shapes("train", n_train=40, size=16)
    assert found is not None
    assert isinstance(found.samples, Tensor)
    return found.samples


class Pixels(nn.Module):
    """Sees everything."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) - 0.5


class Gray(nn.Module):
    """Blind to colour: the mean of every pixel's channels, by the weights of luminance."""

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.tensor([0.2989, 0.587, 0.114])
        return ((x * weights[:, None, None]).sum(1)).flatten(1) - 0.5


class Palette(nn.Module):
    """Blind to place: how often each channel has which brightness."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([((x - c).abs() < 0.1).float().mean((2, 3)) for c in (0.1, 0.3, 0.5, 0.7, 0.9)], 1).flatten(
            1
        )


def sample(images: Tensor, name: str, level: float) -> Tensor:
    n = len(images)
    return TRANSFORMS[name].apply(images.float() / 255, level, Draw(0, 0, torch.arange(n), 0, name))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_first_level_changes_nothing_and_each_further_one_more(name: str, images: Tensor) -> None:
    levels, x = TRANSFORMS[name].levels, images.float() / 255
    torch.testing.assert_close(sample(images, name, levels[0]), x, atol=1e-5, rtol=0)
    distances = []
    for level in levels:
        y = sample(images, name, level)
        assert y.shape == x.shape
        assert y.min() >= 0
        assert y.max() <= 1 + 1e-6
        distances.append(float((y - x).square().mean().sqrt()))
    assert distances[1] > 1e-3
    if name not in NOT_BY_PIXELS:
        assert distances == sorted(distances)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transform_is_a_function_of_image_and_level(name: str, images: Tensor) -> None:
    transform, x = TRANSFORMS[name], images.float() / 255
    level, index = transform.levels[2], torch.arange(len(x))
    whole = transform.apply(x, level, Draw(0, 0, index, 0, name))
    part = transform.apply(x[7:9], level, Draw(0, 0, index[7:9], 0, name))
    torch.testing.assert_close(part, whole[7:9])


@pytest.mark.parametrize("size", [(16, 16), (12, 20), (9, 8), (1, 1)])
@pytest.mark.parametrize("name", ["crop", "rotation", "shift", "blur"])
def test_images_of_any_shape_keep_it(name: str, size: tuple[int, int]) -> None:
    x = torch.rand(3, 2, *size, generator=torch.Generator().manual_seed(0))
    transform = TRANSFORMS[name]
    for i, level in enumerate(transform.levels):
        y = transform.apply(x, level, Draw(0, 0, torch.arange(3), 0))
        assert y.shape == x.shape
        if i == 0:
            torch.testing.assert_close(y, x, atol=1e-5, rtol=0)  # places in float32, times steps of up to 1


def test_quarter_turns_are_exact_and_bring_in_no_black(images: Tensor) -> None:
    x = images.float() / 255
    for degrees, quarters in ((90, 1), (180, 2)):
        torch.testing.assert_close(sample(images, "rotation", degrees), x.rot90(quarters, (2, 3)), atol=1e-5, rtol=0)
    white = torch.full((2, 3, 16, 16), 255, dtype=torch.uint8)
    for name in ("rotation", "shift"):
        for level in TRANSFORMS[name].levels:
            torch.testing.assert_close(sample(white, name, level), torch.ones(2, 3, 16, 16), atol=1e-5, rtol=0)


def test_the_profile_begins_at_one_and_falls_for_who_sees_everything(images: Tensor) -> None:
    found = profile(Pixels(), nn.Identity(), images)
    assert list(found) == list(TRANSFORMS)
    for name, curve in found.items():
        assert set(curve) == {"unit", "levels", "h", "z", "reference"}
        assert curve["levels"] == list(TRANSFORMS[name].levels)
        assert curve["h"] == curve["z"]
        assert (len(curve["h"]), curve["h"][0]) == (len(curve["levels"]), 1.0)
        assert all(-1 <= value < 1 for value in curve["h"][1:])
        if name not in NOT_BY_PIXELS:
            assert curve["h"] == sorted(curve["h"], reverse=True)
    assert len({str(curve["reference"]) for curve in found.values()}) == 1


def test_values_are_mean_cosines(images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, n = Pixels(), len(images)
    found = profile(encoder, None, images, seed=3)
    x = encoder(images.float() / 255)
    draw = Draw(3, 0, torch.arange(n), 0, "invariance/noise")
    y = encoder(TRANSFORMS["noise"].apply(images.float() / 255, 0.1, draw))
    expected = torch.cosine_similarity(x, y).mean()
    assert found["noise"]["h"][2] == pytest.approx(float(expected), abs=1e-6)
    unit = nn.functional.normalize(x, dim=1)
    cosines = (unit @ unit.T)[~torch.eye(n, dtype=torch.bool)]
    assert found["noise"]["reference"]["h"] == pytest.approx(float(cosines.mean()), abs=1e-5)
    assert "z" not in found["noise"]
    monkeypatch.setattr(invariance, "BATCH", 7)
    again = profile(encoder, None, images, seed=3)
    for name in found:
        assert again[name]["h"] == pytest.approx(found[name]["h"], abs=1e-6)


def test_encoders_are_invariant_to_what_they_cannot_see(images: Tensor) -> None:
    gray, palette = profile(Gray(), None, images), profile(Palette(), None, images)
    assert gray["grayscale"]["h"] == pytest.approx([1] * 3, abs=1e-5)
    assert gray["crop"]["h"][-1] < 0.9
    for moved in ("rotation", "shift"):
        assert min(palette[moved]["h"]) > 0.9 > min(gray[moved]["h"])
    assert palette["rotation"]["h"][3] == pytest.approx(1, abs=1e-4)  # a quarter turn moves whole pixels
    assert palette["hue"]["h"][-1] < 0.9


def test_one_channel_has_no_colour() -> None:
    images = torch.randint(0, 256, (20, 1, 12, 12), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert set(profile(Pixels(), None, images)) == set(TRANSFORMS) - {"hue", "grayscale"}
    assert set(decode(Pixels(), None, images[:10], images[10:])) == {"rotation", "noise", "sobel"}
    two = images.expand(-1, 2, -1, -1)
    assert set(profile(Pixels(), None, two)) == set(TRANSFORMS) - {"colour", "hue", "grayscale"}


def test_networks_are_evaluated_and_handed_back_as_they_were(images: Tensor) -> None:
    encoder = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(3 * 16 * 16), nn.Dropout(0.5))
    projector = nn.Sequential(nn.Linear(3 * 16 * 16, 4), nn.BatchNorm1d(4).eval())
    before = {name: value.clone() for name, value in nn.ModuleList([encoder, projector]).state_dict().items()}
    modes = [m.training for net in (encoder, projector) for m in net.modules()]
    state = torch.get_rng_state()
    first = profile(encoder, projector, images[:10])
    decode(encoder, projector, images[:10], images[10:20])
    assert profile(encoder, projector, images[:10]) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for net in (encoder, projector) for m in net.modules()] == modes
    after = nn.ModuleList([encoder, projector]).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not encoder[1].weight.grad


def test_transforms_are_read_by_who_sees_them_only(images: Tensor) -> None:
    found = decode(Chroma(), Gray2(), images, shapes_of("test", 40))
    assert {name: row["chance"] for name, row in found.items()} == {
        "colour": 0.5, "rotation": 0.25, "noise": 0.5, "sobel": 0.5,
    }  # fmt: skip
    assert found["colour"]["h"] == 1
    assert found["colour"]["z"] == pytest.approx(0.5, abs=0.01)  # z keeps luminance only: the same for both answers
    assert found["rotation"]["h"] < 0.5
    assert decode(Chroma(), Gray2(), images, shapes_of("test", 40)) == found


def test_training_and_test_images_have_noise_of_their_own(images: Tensor) -> None:
    """The same images in both parts: all that is seen is the same, but for the noise."""
    seen: list[Tensor] = []

    class Records(Pixels):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.clone())
            return super().forward(x)

    decode(Records(), None, images[:12], images[:12])
    train, test = seen[: len(seen) // 2], seen[len(seen) // 2 :]
    noisy = train[5]  # behind the original, gray and three turns
    assert float((noisy - train[0]).std()) == pytest.approx(0.1, rel=0.2)
    assert [torch.equal(a, b) for a, b in zip(train, test, strict=True)] == [True] * 5 + [False, True]
    shared = torch.corrcoef(torch.stack([(part[5] - part[0]).flatten() for part in (train, test)]))[0, 1]
    assert abs(float(shared)) < 0.1


class Chroma(nn.Module):
    """Mean colourfulness, and the mean of each channel."""

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.tensor([0.2989, 0.587, 0.114])
        luminance = (x * weights[:, None, None]).sum(1).mean((1, 2))
        return torch.stack([(x.amax(1) - x.amin(1)).mean((1, 2)) > 1e-4, luminance, luminance.square()], dim=1).float()


class Gray2(nn.Module):
    """Of `Chroma`, the luminance."""

    def forward(self, h: Tensor) -> Tensor:
        return (h[:, 1:] * 1e4).round() / 1e4  # without the rounding of gray images


def shapes_of(split: str, n: int) -> Tensor:
    found = shapes(split, n_train=n, n_test=n, size=16)
    assert found is not None
    assert isinstance(found.samples, Tensor)
    return found.samples


def known(n: int, seed: int) -> tuple[Tensor, dict[str, Tensor]]:
    """Features that hold some factors linearly, and some not at all."""
    g = torch.Generator().manual_seed(seed)
    hue, x, secret = torch.rand(n, generator=g), torch.rand(n, generator=g), torch.rand(n, generator=g)
    kind, light = torch.randint(0, 3, (n,), generator=g), torch.randint(0, 2, (n,), generator=g).float()
    columns = [torch.sin(2 * math.pi * hue), torch.cos(2 * math.pi * hue), 5 * x - 2, 2 * light]
    h = torch.stack([*columns, *(kind == k for k in range(3)), torch.ones(n)], dim=1)
    return h, {
        "hue": hue, "x": x, "scale": secret, "texture": kind, "light": light,
        "background": torch.randint(0, 3, (n,), generator=g), "rotation": 2 * math.pi * secret,
    }  # fmt: skip


def test_factors_that_features_hold_are_read_and_others_are_not() -> None:
    (h, f), (th, tf) = known(1500, 0), known(1500, 1)
    found = factors(h, f, th, tf)
    kinds = {name: row["kind"] for name, row in found.items()}
    accuracies = {"texture", "light", "background"}
    assert kinds == {name: "accuracy" if name in accuracies else "r2" for name in f}
    for name in ("hue", "x"):
        assert found[name]["value"] > 0.99
        assert found[name]["chance"] == 0
    assert found["texture"]["value"] == found["light"]["value"] == 1
    for name in ("scale", "rotation"):
        assert found[name]["value"] == pytest.approx(0, abs=0.02)
    share = float(torch.bincount(tf["background"]).max()) / 1500
    assert found["background"]["chance"] == pytest.approx(share)
    assert found["background"]["value"] == pytest.approx(1 / 3, abs=0.05)


def test_circles_close() -> None:
    """A map onto the number itself would err by a whole turn where it comes round; a circle has no such place."""
    (h, f), (th, tf) = known(1500, 0), known(1500, 1)
    assert factors(h, {"hue": f["hue"]}, th, {"hue": tf["hue"]})["hue"]["value"] > 0.99
    assert factors(h, {"line": f["hue"]}, th, {"line": tf["hue"]})["line"]["value"] < 0.7


def test_factors_of_one_value_are_left_out_and_unseen_classes_are_misses() -> None:
    (h, f), (th, _) = known(300, 0), known(300, 1)
    constant, seen = torch.zeros(300), torch.arange(300) % 2
    unseen = torch.full((300,), 7)
    found = factors(h, {"same": constant, "kind": seen}, th, {"same": constant, "kind": unseen})
    assert set(found) == {"kind"}
    assert (found["kind"]["value"], found["kind"]["chance"]) == (0, 0)
    assert factors(torch.ones(300, 2), {"x": f["x"]}, torch.ones(300, 2), {"x": f["x"]})["x"]["value"] == 0
