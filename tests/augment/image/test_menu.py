"""What every operation promises, held for all that the package has: found by looking through its modules."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from twoview.augment import image
from twoview.augment.operation import BatchAugment
from twoview.errors import UserError
from twoview.rng import Draw


def menu() -> list[type[BatchAugment]]:
    found = set()
    for module in pkgutil.iter_modules(image.__path__, "twoview.augment.image."):
        for name, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(kind, BatchAugment) and kind is not BatchAugment and not name.startswith("_"):
                found.add(kind)
    return sorted(found, key=lambda kind: kind.__name__)


MENU = menu()
ops = pytest.mark.parametrize("op", MENU, ids=lambda op: op.__name__)

# Those whose draws include doing nothing: no operation or an empty box, the whole image, a turn by less than a pixel at
# the border, the narrowest blur.
MAY_REST = {
    *("RandAugment", "AutoAugment", "RandomErasing", "RandomResizedCrop"),
    *("RandomRotation", "RandomAffine", "GaussianBlur"),
}


def draw(n: int) -> Draw:
    return Draw(0, 1, torch.arange(n) * 7919 % 50_000, 0, "op")


def pictures(n: int, channels: int = 3, H: int = 16, W: int = 20) -> Tensor:
    return torch.rand(n, channels, H, W, generator=torch.Generator().manual_seed(0))


def test_the_menu_holds_what_the_readme_names() -> None:
    assert {op.__name__ for op in MENU} >= {
        *("RandomRotation", "RandomAffine", "RandomErasing", "Cutout", "Solarize", "Equalize", "Posterize"),
        *("Sharpness", "AutoContrast", "Invert", "Sobel", "GaussianNoise", "RandAugment", "AutoAugment"),
    }


@ops
def test_p_0_is_the_identity_and_p_1_always_acts(op: type[BatchAugment]) -> None:
    images = pictures(300)
    assert op(p=0.0)(images, draw(300)).equal(images)
    acted = (op(p=1.0)(images, draw(300)) != images).flatten(1).any(dim=1)
    assert acted.float().mean() > 0.7 if op.__name__ in MAY_REST else acted.all()


@ops
@pytest.mark.parametrize("p", [0.4, 1.0])
@pytest.mark.parametrize("channels", [1, 3])
def test_results_are_images_again_for_any_split_of_the_batch(op: type[BatchAugment], p: float, channels: int) -> None:
    images, drawn, augmentation = pictures(30, channels), draw(30), op(p=p)
    before = images.clone()
    out = augmentation(images, drawn)
    assert images.equal(before)
    assert out.shape == images.shape
    assert out.dtype == torch.float32
    assert out.min() >= 0
    assert out.max() <= 1 + 1e-6
    assert augmentation(images, drawn).equal(out)  # replay, bit for bit
    for size in (1, 7):
        parts = [
            augmentation(images[k : k + size], replace(drawn, index=drawn.index[k : k + size]))
            for k in range(0, 30, size)
        ]
        torch.testing.assert_close(torch.cat(parts), out, rtol=0, atol=2e-6)


@ops
def test_parameters_belong_to_rows(op: type[BatchAugment]) -> None:
    n = 500
    params = op(p=1.0).sample(draw(n), n, (16, 20))
    last = op(p=1.0).sample(replace(draw(n), index=draw(n).index[-3:]), 3, (16, 20))
    for name, value in params.items():
        assert value.shape[0] == n
        assert last[name].equal(value[-3:])
    if params and any(
        len(value.unique(dim=0)) > 1 for value in params.values()
    ):  # else it is one for all, as a setting
        table = torch.cat([value.reshape(n, -1).double() for value in params.values()], dim=1)
        distinct = len(table.unique(dim=0))
        discrete = {
            "AutoAugment": 50,
            "RandAugment": 100,
            "Cutout": 200,
            "RandomResizedCrop": 300,
            "RandomErasing": 300,
        }
        assert distinct >= discrete.get(op.__name__, n)


@ops
@pytest.mark.parametrize("n", [0, 1])
@pytest.mark.parametrize("p", [0.5, 1.0])
@pytest.mark.parametrize("size", [(4, 4), (5, 9)])
def test_empty_batches_and_batches_of_one(op: type[BatchAugment], n: int, p: float, size: tuple[int, int]) -> None:
    images = pictures(n, 3, *size)
    for channels in (1, 3):
        out = op(p=p)(images[:, :channels], draw(n))
        assert out.shape == (n, channels, *size)
        assert out.isfinite().all()


@ops
def test_channels_last_is_the_same(op: type[BatchAugment]) -> None:
    images = pictures(20)
    out = op(p=1.0)(images.contiguous(memory_format=torch.channels_last), draw(20))
    torch.testing.assert_close(out, op(p=1.0)(images, draw(20)), rtol=0, atol=2e-6)


@ops
def test_global_random_numbers_are_left_alone(op: type[BatchAugment]) -> None:
    before = torch.get_rng_state()
    op(p=0.5)(pictures(4), draw(4))
    assert torch.get_rng_state().equal(before)


@ops
@pytest.mark.parametrize("p", [-0.1, 1.1, float("nan")])
def test_bad_probabilities_are_named_at_construction(op: type[BatchAugment], p: float) -> None:
    with pytest.raises(UserError, match=rf"{op.__name__}: .*p must lie in \[0, 1\]"):
        op(p=p)


@ops
@pytest.mark.parametrize("p", [0.5, 1.0])
def test_off_the_cpu_no_shape_depends_on_the_data(op: type[BatchAugment], p: float) -> None:
    """On a device without data, anything that reads data raises."""
    drawn = draw(6)
    out = op(p=p)(torch.rand(6, 3, 16, 20, device="meta"), replace(drawn, index=drawn.index.to("meta")))
    assert out.shape == (6, 3, 16, 20)


@ops
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_and_never_waits(op: type[BatchAugment]) -> None:
    images, drawn, augmentation = pictures(256), draw(256), op(p=0.5)
    on_gpu = images.cuda(), replace(drawn, index=drawn.index.cuda())
    augmentation(*on_gpu)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = augmentation(*on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    # A pixel half-way between two others, or on a level's edge, may fall to the other side.
    close = (found.cpu() - augmentation(images, drawn)).abs() < 2e-4
    assert close.float().mean() > 0.999


def test_each_is_one_key_of_a_policy(command: Callable[..., Any], tiny: list[str]) -> None:
    keys = [f"+augment.ops.{op.__name__}._target_={op.__module__}.{op.__name__}" for op in MENU]
    ended = command(*tiny, "epochs=1", "data.n_train=128", *keys)
    assert ended.code == 0, ended.err


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["warp.RandomAffine", "translate=[0.1,0.2]", "shear=[1,2,3,4]", "fill=null"], None),
        (["occlude.RandomErasing", "value=noise", "scale=[0.1,0.2]"], None),
        (["occlude.Cutout", "size=4"], None),
        (["tone.Sharpness", "factor=[0.5,1.5]"], None),
        (["tone.Posterize", "bits=9"], "Posterize: bits must lie in [0, 8], not 9"),
        (["tone.Solarize", "treshold=0.4"], "threshold"),
        (["warp.RandomRotation", "degrees=wide"], "degrees"),
        (["auto.AutoAugment", "policy=imagenet"], "AutoAugment: policy must be one of cifar10, not imagenet"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_settings_are_keys_and_mistakes_one_line(
    command: Callable[..., Any], tiny: list[str], keys: list[str], message: str | None
) -> None:
    words = [
        f"+augment.ops.new._target_=twoview.augment.image.{keys[0]}",
        *(f"+augment.ops.new.{key}" for key in keys[1:]),
    ]
    ended = command(*tiny, "epochs=1", "data.n_train=64", "data.n_test=16", *words)
    if message is None:
        assert ended.code == 0, ended.err
    else:
        assert message in ended.error
