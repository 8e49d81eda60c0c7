import copy
import logging
import math
import os
import shutil
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from twoview.augment import compiled as blocks
from twoview.augment.image.geometric import HorizontalFlip, RandomResizedCrop
from twoview.augment.image.photometric import ColorJitter, GaussianBlur, Grayscale
from twoview.augment.operation import BatchAugment, Params, check_range
from twoview.augment.views import TwoViews
from twoview.cli import schema
from twoview.data.image.pixels import Pixels
from twoview.data.preprocess import Preprocess
from twoview.data.set import SampleSet
from twoview.errors import UserError
from twoview.rng import Draw

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
PIXELS = Pixels(MEAN, STD)
PLAIN = Pixels((0.0,) * 3, (1.0,) * 3)


class Record(BatchAugment):
    """Leaves images alone and remembers its random numbers."""

    def __init__(self, p: float = 1.0) -> None:
        super().__init__(p)
        self.seen: Tensor = torch.empty(0)

    def sample(self, draw: Draw, n: int, shape: tuple[int, ...]) -> Params:
        self.seen = draw.bits(4)
        return {"bits": self.seen}

    def apply(self, images: Tensor, params: Params) -> Tensor:
        return images


class Add(BatchAugment):
    """Adds a number in (0, 1] that is random per sample."""

    def sample(self, draw: Draw, n: int, shape: tuple[int, ...]) -> Params:
        return {"offset": 1 - draw.uniform(1)[:, 0]}

    def apply(self, images: Tensor, params: Params) -> Tensor:
        return images + params["offset"][:, None, None, None]


def policy() -> dict[str, BatchAugment]:
    return {
        "crop": RandomResizedCrop(),
        "flip": HorizontalFlip(),
        "jitter": ColorJitter(),
        "gray": Grayscale(),
        "blur": GaussianBlur(),
    }


def two_views(ops: dict[str, BatchAugment] | None = None, **options: object) -> TwoViews:
    return TwoViews(policy() if ops is None else ops, PIXELS, **options)


def second(changes: dict[str, object] | None) -> list[dict[str, object]] | None:
    """Two views, of which the second has a policy of its own."""
    return None if changes is None else [{"count": 1}, {"count": 1, "ops": changes}]


def pixels(n: int, size: int = 32, channels: int = 3) -> Tensor:
    g = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (n, channels, size, size), generator=g, dtype=torch.uint8)


def index(n: int) -> Tensor:
    return torch.arange(n) * 7919 % 50_000


# Application with probability p


@pytest.mark.parametrize("op", [RandomResizedCrop, HorizontalFlip, ColorJitter, Grayscale, GaussianBlur, Add])
def test_p_0_is_the_identity_bit_for_bit(op: type[BatchAugment]) -> None:
    x = torch.rand(64, 3, 16, 16)
    assert op(p=0.0)(x, Draw(0, 0, index(64), 0)).equal(x)


@pytest.mark.parametrize(
    "op", [HorizontalFlip(1.0), ColorJitter(p=1.0), Grayscale(1.0), GaussianBlur((0.5, 2.0), p=1.0), Add(1.0)]
)
def test_p_1_always_acts(op: BatchAugment) -> None:
    x = torch.rand(512, 3, 16, 16)
    changed = op(x, Draw(0, 0, index(512), 0)) != x
    assert changed.flatten(1).any(dim=1).all()


@pytest.mark.parametrize("p", [0.05, 0.2, 0.5, 0.8, 0.999])
def test_application_rate(p: float) -> None:
    n = 200_000
    x = torch.zeros(n, 1, 1, 1)
    acted = (Add(p)(x, Draw(3, 0, torch.arange(n), 0, "add")) > 0).sum().item()
    assert abs(acted - n * p) < 4 * math.sqrt(n * p * (1 - p))


def test_application_is_independent_of_the_parameters_and_of_other_operations() -> None:
    n = 100_000
    x = torch.zeros(n, 1, 1, 1)
    draw = Draw(3, 0, torch.arange(n), 0, "add")
    offset = Add().sample(draw, n, (1, 1))["offset"]
    acted = (Add(0.5)(x, draw) > 0).flatten()
    assert abs(offset[acted].mean() - offset[~acted].mean()) < 4 * math.sqrt(2 * (1 / 12) / (n / 2))
    other = (Add(0.5)(x, draw.of("other")) > 0).flatten()
    assert abs((acted & other).float().mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / n)


def test_rows_that_are_picked_get_their_own_parameters() -> None:
    x, draw = torch.rand(100, 3, 8, 8), Draw(0, 0, index(100), 0, "jitter")
    always, sometimes = ColorJitter(p=1.0)(x, draw), ColorJitter(p=0.5)(x, draw)
    acted = (sometimes != x).flatten(1).any(dim=1)
    assert 20 < acted.sum() < 80
    torch.testing.assert_close(sometimes[acted], always[acted], rtol=0, atol=1e-6)
    assert sometimes[~acted].equal(x[~acted])


@pytest.mark.parametrize("p", [-0.1, 1.1, math.nan])
@pytest.mark.parametrize("op", [RandomResizedCrop, HorizontalFlip, ColorJitter, Grayscale, GaussianBlur])
def test_bad_probabilities_are_named_at_construction(op: type[BatchAugment], p: float) -> None:
    with pytest.raises(UserError, match=rf"{op.__name__}: .*p must lie in \[0, 1\]"):
        op(p=p)


@pytest.mark.parametrize(
    "value", [(0.5, 0.2), (-0.1, 0.5), (0.5, 1.1), (0.5,), (0.1, 0.2, 0.3), (math.nan, 1), (0, math.nan)]
)
def test_ranges_must_be_ordered_pairs_within_their_bounds(value: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="a range must be two numbers, smaller first"):
        check_range("a range", value, 0.0, 1.0)


def test_ranges_may_be_a_point() -> None:
    assert check_range("a range", [1, 1], 0, 1) == (1.0, 1.0)


def test_repr_shows_every_setting() -> None:
    assert repr(HorizontalFlip(0.25)) == "HorizontalFlip(p=0.25)"
    assert "hue=0.1" in repr(ColorJitter(hue=0.1))


# Two views


def test_views_do_not_depend_on_the_batch() -> None:
    images, i = pixels(24), index(24)
    v1, v2 = two_views()(images, i, 3)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(1))
    w1, w2 = two_views()(images[order], i[order], 3)
    torch.testing.assert_close(w1, v1[order], rtol=0, atol=2e-6)
    torch.testing.assert_close(w2, v2[order], rtol=0, atol=2e-6)
    for size in (1, 5, 23):
        parts = [two_views()(images[k : k + size], i[k : k + size], 3) for k in range(0, 24, size)]
        torch.testing.assert_close(torch.cat([p[0] for p in parts]), v1, rtol=0, atol=2e-6)
        torch.testing.assert_close(torch.cat([p[1] for p in parts]), v2, rtol=0, atol=2e-6)


def test_replay_gives_the_same_bits() -> None:
    images, i = pixels(16), index(16)
    for a, b in zip(two_views(seed=4)(images, i, 2), two_views(seed=4)(images, i, 2), strict=True):
        assert a.equal(b)


def test_views_do_not_touch_or_follow_global_random_numbers() -> None:
    images, i = pixels(4), index(4)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = two_views()(images, i, 0)[0]
    assert torch.get_rng_state().equal(before)
    torch.manual_seed(1)
    assert two_views()(images, i, 0)[0].equal(first)


def test_autocast_does_not_reach_the_views() -> None:
    images, i = pixels(8), index(8)
    expected = two_views()(images, i, 0)
    with torch.autocast("cpu", torch.bfloat16):
        found = two_views()(images, i, 0)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        assert a.equal(b)


def test_each_of_seed_epoch_sample_and_view_changes_the_view() -> None:
    same = pixels(1).expand(8, 3, 32, 32)
    v1, v2 = two_views()(same, torch.arange(8), 0)
    other_epoch, other_seed = two_views()(same, torch.arange(8), 1)[0], two_views(seed=1)(same, torch.arange(8), 0)[0]
    for a, b in [(v1, v2), (v1, other_epoch), (v1, other_seed), (v1, v1.roll(1, 0))]:
        assert (a != b).flatten(1).any(dim=1).all()


def test_equal_samples_get_equal_views_wherever_they_stand() -> None:
    v1, v2 = two_views()(pixels(1).expand(3, 3, 32, 32), torch.tensor([5, 9, 5]), 0)
    assert v1[0].equal(v1[2])
    assert v2[0].equal(v2[2])


def test_normalisation_comes_last() -> None:
    images = pixels(4)
    v1, v2 = two_views({})(images, index(4), 0)
    expected = (images.double() / 255 - torch.tensor(MEAN).double()[:, None, None]) / torch.tensor(STD).double()[
        :, None, None
    ]
    assert v1.equal(v2)
    assert v1.dtype == torch.float32
    torch.testing.assert_close(v1.double(), expected, rtol=0, atol=1e-5)
    # After the policy as well: undoing it leads back to [0, 1].
    for v in two_views()(images, index(4), 0):
        back = v * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
        assert back.min() > -1e-5
        assert back.max() < 1 + 1e-5


def test_prepared_views_are_what_forward_finishes() -> None:
    images, i = pixels(6), index(6)
    views = two_views(views=[{"count": 2}, {"count": 2, "ops": {"crop": {"size": 12}, "gray": None}}])
    for seen, view in zip(views.prepared(images, i, 5), views(images, i, 5), strict=True):
        assert PIXELS.finish(seen).equal(view)


@pytest.mark.parametrize("kind", ["float32", "float64", "channels_last", "strided"])
def test_input_formats_give_the_same_views(kind: str) -> None:
    images, i = pixels(8), index(8)
    expected = two_views()(images, i, 0)
    given = {
        "float32": images.float() / 255,
        "float64": images.double() / 255,
        "channels_last": images.contiguous(memory_format=torch.channels_last),
        "strided": images.repeat_interleave(2, dim=3)[..., ::2],
    }[kind]
    for a, b in zip(two_views()(given, i, 0), expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0, atol=5e-6)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int16, torch.int32, torch.int64, torch.bool])
def test_integers_without_a_scale_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(UserError, match=f"images of {str(dtype)[6:]}: give uint8"):
        two_views()(pixels(3).to(dtype), index(3), 0)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_images_are_not_changed_in_place(dtype: torch.dtype) -> None:
    images = pixels(8).to(dtype) / 255 if dtype.is_floating_point else pixels(8)
    before = images.clone()
    two_views()(images, index(8), 0)
    two_views(views=second({"blur": None}))(images, index(8), 0)
    assert images.equal(before)


@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("size", [None, 20])
def test_empty_batches_and_batches_of_one(n: int, size: int | None) -> None:
    ops = policy() | {"crop": RandomResizedCrop(size=size)}
    for changes in (None, {"gray": Grayscale(1.0)}):
        for v in two_views(ops, views=second(changes))(pixels(n), index(n), 0):
            assert v.shape == (n, 3, size or 32, size or 32)
            assert v.isfinite().all()


@pytest.mark.parametrize("p", [0.0, 0.5, 1.0])
def test_every_operation_takes_a_batch_of_which_it_picks_no_row(p: float) -> None:
    for op in (RandomResizedCrop(p=p), HorizontalFlip(p), ColorJitter(p=p), Grayscale(p), GaussianBlur(p=p)):
        for n in (0, 1):
            for seed in range(4):
                x = torch.rand(n, 3, 8, 8)
                assert op(x, Draw(seed, 0, index(n), 0)).shape == x.shape


@pytest.mark.parametrize(("side", "n"), [(96, 3), (224, 2)])
def test_larger_images(side: int, n: int) -> None:
    for v in two_views()(pixels(n, side), index(n), 0):
        assert v.shape == (n, 3, side, side)
        assert v.isfinite().all()


def test_one_channel() -> None:
    for v in TwoViews(policy(), Pixels((0.5,), (0.2,)))(pixels(8, channels=1), index(8), 0):
        assert v.shape == (8, 1, 32, 32)
        assert v.isfinite().all()


def test_four_channels_where_the_operation_has_a_meaning() -> None:
    x, draw = torch.rand(4, 4, 16, 16), Draw(0, 0, index(4), 0)
    for op in (RandomResizedCrop(), HorizontalFlip(1.0), GaussianBlur(p=1.0)):
        assert op(x, draw).shape == x.shape
    for op in (ColorJitter(p=1.0), Grayscale(1.0)):
        with pytest.raises(UserError, match=f"{type(op).__name__} needs images of 1 or 3 channels, not 4"):
            op(x, draw)


# Policies


@pytest.mark.parametrize(
    "others",
    [
        {"before": HorizontalFlip()},
        {"before": RandomResizedCrop(), "between": ColorJitter()},
        {"between": Grayscale(), "after": GaussianBlur()},
    ],
)
def test_other_operations_leave_the_random_numbers_alone(others: dict[str, BatchAugment]) -> None:
    images, i = pixels(8), index(8)
    alone = {"a": Record(), "b": Record(0.5)}
    two_views(alone)(images, i, 1)
    among: dict[str, BatchAugment] = {"a": Record(), "b": Record(0.5)}
    parts = [("before", others.get("before")), ("a", among["a"]), ("between", others.get("between"))]
    parts += [("b", among["b"]), ("after", others.get("after"))]
    for arranged in (parts, parts[::-1]):
        two_views({k: op for k, op in arranged if op is not None})(images, i, 1)
        for name, op in alone.items():
            assert among[name].seen.equal(op.seen)


def test_operations_have_streams_of_their_own() -> None:
    ops = {"a": Record(), "b": Record()}
    two_views(ops)(pixels(8), index(8), 0)
    assert not (ops["a"].seen == ops["b"].seen).any()


def test_a_group_changes_its_own_views_only() -> None:
    images, i = pixels(16), index(16)
    same1, same2 = two_views()(images, i, 0)
    v1, v2 = two_views(views=second({"gray": Grayscale(1.0), "blur": None}))(images, i, 0)
    torch.testing.assert_close(v1, same1, rtol=0, atol=2e-6)
    pixels2 = v2 * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    assert (pixels2 - pixels2[:, :1]).abs().max() < 1e-5
    assert not torch.allclose(v2, same2)


def test_a_group_that_says_the_same_gives_the_same_views() -> None:
    images, i = pixels(16), index(16)
    for a, b in zip(two_views()(images, i, 0), two_views(views=second(policy()))(images, i, 0), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6)


def test_dropping_an_operation_equals_never_having_it() -> None:
    images, i = pixels(8), index(8)
    without = {name: op for name, op in policy().items() if name != "jitter"}
    expected = two_views(without)(images, i, 0)[1]
    torch.testing.assert_close(two_views(views=second({"jitter": None}))(images, i, 0)[1], expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        (
            [{"ops": {"solarize": {"p": 0.1}}}],
            r"augment\.views changes solarize, which the policy lacks; it has crop",
        ),
        ([{"ops": {"solarize": None}}], "changes solarize, which the policy lacks"),
        ([{"ops": {"crop": {"sise": 12}}}], "RandomResizedCrop has no argument 'sise'; it has: scale, ratio, size"),
        ([{"ops": {"crop": {"size": 0}}}], "size must be at least 1 pixel"),
        ([{"number": 2}], "a group of views has count and ops"),
        ([{"count": 0}], "count is a number"),
        ([{"count": True}], "count is a number"),
        ([{"count": 1, "ops": ["crop"]}], "ops what changes the policy"),
        (["crop"], "a group of views has count and ops"),
        ([], "describes 0 views"),
        ([{"count": 70_000}], "describes 70000 views"),
    ],
)
def test_groups_that_describe_no_views_are_refused_in_one_line(groups: list[Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as refusal:
        two_views(views=groups)
    assert "\n" not in str(refusal.value)


def test_a_policy_without_operations_says_so() -> None:
    with pytest.raises(UserError, match="it has no operations"):
        two_views({}, views=second({"blur": None}))


def test_local_crops_are_views_of_their_own_size_with_numbers_behind_those_of_the_global_ones() -> None:
    """Numbers of views are their places: two global views have the bits that they have alone, and a local one is what
    its number and its policy say, whatever the groups are."""
    images, i = pixels(9), index(9)
    local = {"crop": {"size": 12, "scale": [0.05, 0.2]}, "blur": None, "flip": {"p": 0.0}}
    views = two_views(views=[{"count": 2}, {"count": 3, "ops": local}])
    found = views(images, i, 4)
    assert [tuple(view.shape[1:]) for view in found] == [(3, 32, 32)] * 2 + [(3, 12, 12)] * 3
    for a, b in zip(found, two_views()(images, i, 4), strict=False):
        assert a.equal(b)
    ops = policy() | {"crop": RandomResizedCrop(size=12, scale=(0.05, 0.2)), "flip": HorizontalFlip(0.0)}
    del ops["blur"]
    alone = two_views(ops, views=[{"count": 5}])(images, i, 4)
    for a, b in zip(found[2:], alone[2:], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6)
    assert len({view.numpy().tobytes() for view in found}) == 5
    assert views.count == len(views.policies) == 5
    assert "blur" in views.policies[1]
    assert "blur" not in views.policies[2]


def test_a_group_may_have_an_operation_more() -> None:
    images, i = pixels(6), index(6)
    ops = {"flip": HorizontalFlip()}
    _, v2 = two_views(ops, views=second({"gray": Grayscale(1.0)}))(images, i, 0)
    assert v2.equal(two_views(ops | {"gray": Grayscale(1.0)})(images, i, 0)[1])


def test_an_operation_on_other_data_is_refused_in_one_line() -> None:
    class Reverse(Record):
        kind = "wave"

    with pytest.raises(UserError, match=r"augment\.ops\.back: Reverse is an operation on .* wave, .* kind image; ch"):
        two_views({"back": Reverse()})
    with pytest.raises(UserError, match="Reverse"):
        two_views({"flip": HorizontalFlip()}, views=second({"flip": Reverse()}))
    assert TwoViews({"back": Reverse(), "flip": HorizontalFlip()}, Preprocess()).count == 2  # of data of no kind


def test_changed_operations_keep_their_other_arguments() -> None:
    op = ColorJitter(0.1, hue=0.3, p=0.7).changed(contrast=0.5, p=0.2)
    assert (op.brightness, op.contrast, op.saturation, op.hue, op.p) == (0.1, 0.5, 0.8, 0.3, 0.2)
    again = copy.deepcopy(op).changed(p=1.0)
    assert (again.contrast, again.p) == (0.5, 1.0)


def test_operations_get_the_training_set() -> None:
    class Other(Record):
        def attach(self, train: SampleSet) -> None:
            self.train = train

    ops = {"a": Other(), "b": Other()}
    views = two_views(ops, views=[{"count": 1}, {"count": 1, "ops": {"b": {"p": 0.5}}}])
    train = SampleSet("noise", pixels(4), None, (), PIXELS)
    views.attach(train)
    assert [op.train for group in views.groups for op in group.policy.ops.values()] == [train] * 4


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(-(2**63), 2**63 - 1),
    epoch=st.integers(0, 2**32 - 1),
    numbers=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4),
    side=st.integers(4, 12),
)
def test_any_counters_give_pixels_in_range(seed: int, epoch: int, numbers: list[int], side: int) -> None:
    views = TwoViews(policy() | {"crop": RandomResizedCrop(interpolation="bicubic")}, PLAIN, seed=seed)
    images = pixels(len(numbers), side)
    v1, v2 = views(images, torch.tensor(numbers), epoch)
    for v in (v1, v2):
        assert v.shape == images.shape
        assert v.min() >= -1e-5
        assert v.max() <= 1 + 1e-5
    last = views(images[-1:], torch.tensor(numbers[-1:]), epoch)[1]
    torch.testing.assert_close(last[0], v2[-1], rtol=0, atol=2e-6)


# Each view (6, 3, 32, 32) multiplied with random signs and added up, in units of sqrt(3072): recorded when views were
# two by definition. Another crop, colour or order of operations changes them by about 1, rounding by less than 1e-4.
RECORDED = {
    "simclr_cifar": [[-1.032, 1.516, -0.467, 1.957, 0.589, 0.239], [0.324, 1.501, 0.653, 0.596, -0.342, -1.017]],
    "byol_cifar": [[-1.201, 1.499, -0.578, 1.992, 0.774, 0.387], [0.638, 0.658, 0.633, 0.597, -0.486, -1.124]],
}


@pytest.mark.parametrize("augment", RECORDED)
def test_the_two_views_of_a_policy_are_those_that_they_have_always_been(
    augment: str, compose: Callable[..., dict[str, Any]]
) -> None:
    draw = Draw(0, 0, torch.arange(6), 0, "golden")
    images = (draw.bits(3 * 32 * 32) & 255).byte().view(6, 3, 32, 32)
    signs = 1 - 2 * (draw.of("signs").bits(3 * 32 * 32) & 1).double()
    views = schema.build(compose(f"augment={augment}")["augment"], preprocess=PIXELS, seed=5)
    for view, recorded in zip(views(images, torch.arange(6) * 7919, 3), RECORDED[augment], strict=True):
        found = (view.flatten(1).double() * signs).sum(dim=1) / 3072**0.5
        torch.testing.assert_close(found, torch.tensor(recorded).double(), rtol=0, atol=2e-3)


# Blocks, and compiled policies


@pytest.fixture
def info(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """The lines that the engine has logged."""
    caplog.set_level(logging.INFO, "twoview")
    return lambda: [record.getMessage() for record in caplog.records]


@pytest.fixture
def uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of a compiled policy without the minute that a compiler takes."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


@pytest.mark.parametrize("size", [None, 20])
@pytest.mark.parametrize("changes", [None, {"gray": None}])
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, size: int | None, changes: dict[str, object]) -> None:
    ops, images, i = policy() | {"crop": RandomResizedCrop(size=size)}, pixels(37), index(37)
    whole = two_views(ops, views=second(changes))(images, i, 1)
    monkeypatch.setattr(blocks, "_EAGER", 5 * 4 * 3 * 32 * 32 // torch.get_num_threads())  # rounded down to four rows
    for a, b in zip(two_views(ops, views=second(changes))(images, i, 1), whole, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=2e-6)


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("changes", [None, {"gray": None}])
def test_the_last_block_of_a_compiled_policy_is_filled_up(changes: dict[str, object]) -> None:
    views, eager = (two_views(compile=compiled, views=second(changes)) for compiled in (True, False))
    for n in (70, 5, 1, 0):
        for a, b in zip(views(pixels(n), index(n), n), eager(pixels(n), index(n), n), strict=True):
            assert a.shape == b.shape
            torch.testing.assert_close(a, b, rtol=0, atol=2e-6)


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))), reason="no C++ compiler")
@pytest.mark.parametrize("channels", [3, 1, 4])
def test_compiled_equals_eager_and_is_compiled_once(channels: int) -> None:
    ops = policy() if channels < 4 else {name: policy()[name] for name in ("crop", "flip", "blur")}
    compiled, eager = (TwoViews(ops, Pixels([0.5] * channels, [0.2] * channels), compile=c) for c in (True, False))
    torch._dynamo.reset()
    compiled(pixels(70, 32, channels), index(70), 0)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for n, epoch in ((70, 1), (200, 2), (5, 3), (1, 4), (0, 5)):
            images = pixels(n, 32, channels)
            for kind in (images, images.contiguous(memory_format=torch.channels_last)):
                for a, b in zip(compiled(kind, index(n), epoch), eager(images, index(n), epoch), strict=True):
                    torch.testing.assert_close(a, b, rtol=0, atol=5e-5)  # 1e-5 of pixels, divided by 0.2
    for a, b in zip(
        compiled(pixels(9, 32, channels) / 255, index(9), 0), eager(pixels(9, 32, channels), index(9), 0), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=0, atol=5e-5)


@pytest.mark.usefixtures("uncompiled")
def test_auto_compiles_long_runs_only(info: Callable[[], list[str]]) -> None:
    a_sample = 2 * 3 * 32 * 32  # numbers of its two views
    for ahead, compiled in ((1, False), (2.9e9 / a_sample, False), (3.1e9 / a_sample, True)):
        views = two_views()
        views.ahead = int(ahead)
        for epoch in range(3):
            views(pixels(2), index(2), epoch)
        assert (views.groups[0].policy.translated is not None) == compiled
    assert [line.startswith("augmentation compiled in") for line in info()] == [True]


def test_auto_stays_eager_without_a_compiler(monkeypatch: pytest.MonkeyPatch, info: Callable[[], list[str]]) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    views = two_views()
    views.ahead = 10**12
    views(pixels(2), index(2), 0)
    assert views.groups[0].policy.translated is None
    assert info() == []


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("wanted", [True, False])
def test_compile_can_be_said(wanted: bool, info: Callable[[], list[str]]) -> None:
    views = two_views(compile=wanted)
    views.ahead = 0 if wanted else 10**12
    views(pixels(2), index(2), 0)
    assert len(info()) == wanted
    assert (views.groups[0].policy.translated is not None) == wanted


def test_a_single_image_is_a_trial_that_decides_nothing(info: Callable[[], list[str]]) -> None:
    views = two_views(compile=True)
    views(pixels(1), index(1), 0)
    assert info() == []


def test_a_compiler_that_fails_leaves_the_eager_way(
    monkeypatch: pytest.MonkeyPatch, info: Callable[[], list[str]]
) -> None:
    def broken(function: object, **options: object) -> Callable[..., Tensor]:
        def call(*args: object) -> Tensor:
            raise RuntimeError("no such header\nand more")

        return call

    monkeypatch.setattr(torch, "compile", broken)
    views = two_views(compile=True)
    for epoch in range(2):
        found, expected = (v(pixels(6), index(6), epoch) for v in (views, two_views(compile=False)))
        assert found[0].equal(expected[0])
    assert [line for line in info() if "failed" in line] == [
        "augmentation stays eager: torch.compile failed with no such header"
    ]


@pytest.mark.parametrize("wrong", [math.nan, 5.0])
def test_compiled_code_that_makes_other_views_is_not_used(
    monkeypatch: pytest.MonkeyPatch, info: Callable[[], list[str]], wrong: float
) -> None:
    """As torch's has been seen to do where code for another kind of CPU lay in its cache."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda *args: function(*args) * wrong)
    found, expected = (v(pixels(6), index(6), 0) for v in (two_views(compile=True), two_views(compile=False)))
    assert found[0].equal(expected[0])
    assert "augmentation stays eager: torch.compile failed with its views are other ones" in info()


def test_each_kind_of_cpu_has_a_folder_for_compiled_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    folders = set()
    for kind in ("AVX2", "AVX512"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda kind=kind: kind)
        blocks._keep_code_apart()
        folders.add(os.environ.pop("TORCHINDUCTOR_CACHE_DIR"))
    assert len(folders) == 2
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "mine")
    blocks._keep_code_apart()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == "mine"


# Input that is not what it should be


@pytest.mark.parametrize("bad", [pixels(4).float(), pixels(4) / 128 - 1, torch.full((4, 3, 32, 32), math.nan)])
def test_floats_outside_their_range_are_said_once(bad: Tensor, info: Callable[[], list[str]]) -> None:
    views = two_views()
    for epoch in range(3):
        views(bad, index(4), epoch)
    warnings = [line for line in info() if "expect floats in [0, 1]" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith("images lie in [")


@pytest.mark.parametrize("good", [pixels(4), pixels(4) / 255, torch.zeros(4, 3, 32, 32), torch.ones(4, 3, 32, 32)])
def test_good_images_need_no_words(good: Tensor, info: Callable[[], list[str]]) -> None:
    two_views()(good, index(4), 0)
    assert not [line for line in info() if "expect" in line]


# Mixtures


def test_mix_acts_on_the_first_view_alone() -> None:
    images, i = pixels(6), index(6)

    def swap(view: Tensor, draw: Draw) -> tuple[Tensor, Tensor]:
        assert (draw.seed, draw.epoch, draw.view, draw.stream) == (7, 3, 0, "mix")
        assert draw.index.equal(i)
        return view.flip(0), torch.full((6,), 0.75)

    v1, v2 = two_views(seed=7)(images, i, 3)
    mixing = two_views(seed=7, mix=swap)
    (w1, w2), share = mixing.mixed(mixing(images, i, 3), i, 3)
    assert share is not None
    assert two_views(seed=7).mixed((v1, v2), i, 3) == ((v1, v2), None)
    assert w1.equal(v1.flip(0))
    assert w2.equal(v2)
    assert share.equal(torch.full((6,), 0.75))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("compile_mode", [False, True])
def test_a_gpu_gives_the_same_views_and_never_waits(compile_mode: bool) -> None:
    images, i = pixels(256), index(256)
    views = two_views(compile=compile_mode).cuda()
    on_gpu = images.cuda(), i.cuda()
    views(*on_gpu, 0)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = views(*on_gpu, 0)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for a, b in zip(found, two_views()(images, i, 0), strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=2e-4)
