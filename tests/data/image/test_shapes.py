import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from twoview.data.image.pixels import Pixels, pixel_statistics
from twoview.data.image.shapes import PATTERNS, SHAPES, render, shapes
from twoview.data.set import SampleSet
from twoview.errors import UserError

# Bounds of the recorded factors: low, high.
RANGES = {
    "hue": (0, 1),
    "background_hue": (0, 1),
    "light": (0, 1),
    "texture": (0, len(PATTERNS) - 1),
    "background": (0, len(PATTERNS) - 1),
    "x": (-0.32, 0.32),
    "y": (-0.32, 0.32),
    "scale": (0.36, 0.78),
    "rotation": (0, 2 * math.pi),
}


def load(split: str = "train", **options: int) -> SampleSet:
    found = shapes(split, **options)
    assert found is not None
    return found


def pixels(images: SampleSet) -> Tensor:
    assert isinstance(images.samples, Tensor)
    return images.samples


@pytest.fixture(scope="module")
def train() -> SampleSet:
    return load(n_train=1000)


def test_a_set_is_what_it_says(train: SampleSet) -> None:
    assert train.shape == (3, 32, 32)
    assert len(train) == 1000
    assert len(train.classes) == len(set(train.classes)) == 10
    assert train.labels is not None
    assert torch.bincount(train.labels).tolist() == [100] * 10
    assert not torch.equal(train.labels, torch.arange(10).repeat(100))
    assert train.factors.keys() == RANGES.keys()
    for name, (low, high) in RANGES.items():
        values = train.factors[name].double()
        assert low <= values.min()
        assert values.max() <= high
        if name not in ("x", "y"):  # for them the bounds are reached by the smallest shapes alone
            assert values.max() - values.min() > 0.9 * (high - low)


@given(n=st.integers(1, 530), seed=st.integers(0, 2**64 - 1), split=st.sampled_from(["train", "test"]))
@settings(max_examples=8, deadline=None)
def test_an_image_is_a_function_of_its_number_alone(n: int, seed: int, split: str) -> None:
    few, many = render(seed, split, n, 32), render(seed, split, 530, 32)
    assert torch.equal(few[0], many[0][:n])
    assert torch.equal(few[1], many[1][:n])
    for name, values in few[2].items():
        assert torch.equal(values, many[2][name][:n])


def test_calls_repeat_and_seeds_and_splits_differ(train: SampleSet) -> None:
    assert load(n_train=1000).digest() == train.digest()
    others = [pixels(load(n_train=50)), pixels(load(n_train=50, seed=1)), pixels(load("test", n_test=50))]
    for i in range(3):
        for j in range(i):
            same = (others[i] == others[j]).flatten(1).all(dim=1)
            assert not same.any()
    assert len(torch.unique(pixels(train).flatten(1), dim=0)) == 1000


def test_mean_and_std_are_those_of_train_whatever_the_split_and_its_length(train: SampleSet) -> None:
    for other in (load(n_train=10), load("test", n_test=10)):
        assert other.preprocess.describe() == train.preprocess.describe()
    assert train.preprocess.describe() == Pixels(*pixel_statistics(train.samples)).describe()
    assert not torch.equal(load(n_train=10, seed=1).preprocess.mean, train.preprocess.mean)


@pytest.mark.parametrize("name", [shape.__name__ for shape in SHAPES])
def test_a_shape_covers_the_middle_of_its_disc_and_nothing_outside(name: str) -> None:
    shape = next(shape for shape in SHAPES if shape.__name__ == name)
    step = np.linspace(-1.5, 1.5, 301)
    x, y = (grid.ravel() for grid in np.meshgrid(step, step))
    inside = shape(x, y) < 0
    reach = np.hypot(x, y)[inside]
    assert 0.8 < reach.max() <= 1.1  # fills its disc, stays in it but for a corner
    assert 0.2 < inside.sum() / (np.hypot(x, y) <= 1).sum() < 0.85
    # Never steeper than a distance, or edges were jagged; on the outline hardly flatter, or they were blurred.
    h = 1e-4
    near = np.abs(shape(x, y)) < 0.02
    slope = np.hypot(shape(x + h, y) - shape(x - h, y), shape(x, y + h) - shape(x, y - h))[near] / (2 * h)
    assert slope.max() < 1.05
    assert np.median(slope) > 0.9


def test_shapes_differ_under_every_rotation_and_scale() -> None:
    """The least area by which two shapes differ, over rotations and scales, in shares of the smaller one."""
    step = np.linspace(-1.2, 1.2, 61)
    x, y = (grid.ravel() for grid in np.meshgrid(step, step))
    for i, first in enumerate(SHAPES):
        still = first(x, y) < 0
        for second in SHAPES[:i]:
            for angle in np.linspace(0, 2 * math.pi, 24, endpoint=False):
                u, v = math.cos(angle) * x + math.sin(angle) * y, math.cos(angle) * y - math.sin(angle) * x
                for scale in (0.7, 0.85, 1.0, 1.15, 1.3):
                    turned = second(u / scale, v / scale) < 0
                    differs = (still ^ turned).sum() / min(still.sum(), turned.sum())
                    assert differs > 0.1, (first, second, angle)


def test_factors_are_those_of_the_picture() -> None:
    images, labels, factors = render(3, "train", 400, 64)
    step = (torch.arange(64) + 0.5) / 64 - 0.5
    y, x = torch.meshgrid(-step, step, indexing="ij")
    disc = [shape.__name__ for shape in SHAPES].index("disc")
    for i in torch.nonzero(labels == disc).flatten().tolist():
        away = torch.hypot(x - factors["x"][i], y - factors["y"][i]) / (factors["scale"][i] / 2)
        inside, outside = images[i].float().mean(0)[away < 0.8], images[i].float().mean(0)[away > 0.95]
        contrast = (inside.mean() - outside.mean()).item()
        assert (contrast > 0) == bool(factors["light"][i])
        assert abs(contrast) > 20


def test_the_class_is_drawn_apart_from_everything_else(train: SampleSet) -> None:
    assert train.labels is not None
    for name, (low, high) in RANGES.items():
        values = train.factors[name].double()
        means = torch.stack([values[train.labels == k].mean() for k in range(10)])
        # standard error of a mean of 100 is at most a tenth of half the range
        assert (means - values.mean()).abs().max() < 4 * (high - low) / 2 / 10, name


def test_pixels_do_not_give_the_class_away(train: SampleSet) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    test = load("test", n_test=500)
    probe = linear_model.RidgeClassifier(alpha=1e4).fit(pixels(train).flatten(1).numpy(), train.labels)
    assert probe.score(pixels(test).flatten(1).numpy(), test.labels) < 0.3


@pytest.mark.parametrize("size", [1, 2, 17, 96])
def test_any_size(size: int) -> None:
    small = load(n_train=12, size=size)
    assert small.shape == (3, size, size)
    assert torch.equal(small.factors["hue"], load(n_train=12).factors["hue"])  # the same scenes


def test_odd_numbers_are_refused() -> None:
    for odd in ({"n_train": 0}, {"size": 0}, {"seed": -1}, {"n_test": -1}):
        with pytest.raises(UserError, match="data=shapes needs"):
            shapes("train", **odd)
    assert shapes("test", n_test=0) is None
    assert len(load(n_train=1)) == 1
