"""What holds on one device: keys and negatives, batch statistics, views, blocks; and what needs a GPU."""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from twoview.augment.image.geometric import HorizontalFlip, RandomResizedCrop
from twoview.augment.image.photometric import ColorJitter, GaussianBlur, Grayscale
from twoview.augment.views import TwoViews
from twoview.data.batches import Batch
from twoview.data.image.pixels import Pixels
from twoview.losses.contrastive import info_nce_contrast, nt_xent_contrast
from twoview.model.base import Method
from twoview.model.mocov3 import MoCoV3
from twoview.model.simclr import SimCLR
from twoview.parallel.precision import native_half
from twoview.selftest.check import ROUNDING, Check, difference, measure, worst
from twoview.selftest.many import METHODS, RECIPE, batches, make_moco, part_of


def on_one_device(device: torch.device) -> list[Check]:
    where = f"on {device.type}"
    rows: list[tuple[str, str, float, Callable[[], float]]] = [
        (f"own keys {where}", "losses of planted images with their formula", ROUNDING, lambda: own_keys(device)),
        (f"leak {where}", "unguarded accuracy by batch statistics, short of 1", 0.1, lambda: 1 - leak(device, False)),
        (f"guard {where}", "guarded accuracy, chance 1/33", 3 / 33, lambda: leak(device, True)),
        (f"views {where}", "views of a batch with those of its parts", ROUNDING, lambda: views_apart(device)),
        (f"blocks {where}", "losses and gradients with those of chunk=null", ROUNDING, lambda: blocks_apart(device)),
    ]
    return [measure(*row) for row in rows]


def on_gpu(there_is_one: bool, reason: str) -> list[Check]:
    gpu = torch.device("cuda")
    rows: list[tuple[str, str, float, Callable[[], float]]] = [
        ("views on cuda and cpu", "pixels on the one with those on the other", 1e-4, lambda: views_across(gpu)),
        ("views do not wait", "times that the host waits for the GPU", 0, lambda: waits(gpu)),
        ("half precision on cuda", "losses under autocast with those in float32", 1e-2, lambda: autocast_apart(gpu)),
    ]
    return [measure(*row) if there_is_one else Check(*row[:3], note=reason) for row in rows]


class _Pixels(nn.Flatten):
    """An encoder, and a head, that leave the image as it is."""

    def __init__(self, in_dim: int = 16) -> None:
        super().__init__()
        self.dim = self.out_dim = in_dim


class _OnlyStatistics(nn.Module):
    """Sees of an image nothing but what the statistics of its batch, or group, are: a constant, normalised with it."""

    dim = 12

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(12)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(torch.stack([x, torch.zeros_like(x)], dim=2))[:, :, 1]


def own_keys(device: torch.device) -> float:
    """Images that are orthogonal to each other and to all that waits in a queue: with N negatives of similarity 0, the
    loss is log(1 + N exp(-1 / t)). An own key among the negatives would have similarity 1.
    """
    far, near = torch.eye(16, device=device).chunk(2)  # (8, 16) each
    index, none = torch.arange(8, device=device), torch.full((8,), -1, device=device)
    head = cast(Any, _Pixels)
    cases: list[tuple[Method, int, float]] = [
        (SimCLR(_Pixels(), RECIPE, _Pixels, temperature=0.5), 14, 1),
        (make_moco(_Pixels(), _Pixels, queue_size=32), 8, 1),
        (make_moco(_Pixels(), _Pixels, queue_size=32, symmetric=True), 16, 1),
        (MoCoV3(_Pixels(), RECIPE, head, head, temperature=0.5), 7, 2),  # the sum over both directions, times 2 t
    ]
    missed = []
    for model, negatives, factor in cases:
        model.to(device).step(Batch((far, far), index, none))
        loss = model.step(Batch((near, near), index + 8, none)).loss
        missed.append(difference(loss, torch.tensor(factor * math.log1p(negatives * math.exp(-1 / 0.5)))))
    return worst(missed)


def leak(device: torch.device, guard: bool) -> float:
    """How often a network that sees batch statistics alone finds its key among 33."""
    model = make_moco(_OnlyStatistics(), _Pixels, split_batch_norm=32, shuffle_keys=guard, queue_size=32).to(device)
    generator, found = torch.Generator().manual_seed(0), []
    for step in range(20):
        x, noise = torch.randn(2, 1024, 12, generator=generator).to(device)
        index = torch.arange(1024, device=device) + 1024 * step
        found.append(model.step(Batch((x, x + 0.1 * noise), index, index)).numbers["accuracy"])
        keys = model.keys(x + 0.1 * noise, index)
        model.queue.add(keys[::32], index[::32])  # of many groups, as a queue of many batches would hold
    return float(torch.stack(found[1:]).mean())


def _views(device: torch.device) -> tuple[TwoViews, Tensor, Tensor]:
    """A policy, and 64 images with their numbers."""
    ops = {
        "crop": RandomResizedCrop(),
        "flip": HorizontalFlip(),
        "jitter": ColorJitter(strength=0.5),
        "gray": Grayscale(),
        "blur": GaussianBlur(),
    }
    images = torch.randint(256, (64, 3, 32, 32), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    views = TwoViews(ops, Pixels((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)), compile=False).to(device)
    return views, images.to(device), torch.arange(64, device=device) * 701


def views_apart(device: torch.device) -> float:
    views, images, index = _views(device)
    whole = torch.cat(views(images, index, 1), dim=1)
    return worst(
        difference(torch.cat([torch.cat(views(images[rows], index[rows], 1), dim=1) for rows in parts]), whole)
        for parts in (torch.arange(64).split(7), torch.arange(64).split(1), torch.arange(64).tensor_split(5))
    )


def views_across(device: torch.device) -> float:
    views, images, index = _views(device)
    expected, images_, index_ = _views(torch.device("cpu"))
    return worst(map(difference, views(images, index, 1), expected(images_, index_, 1)))


def waits(device: torch.device) -> float:
    """0, or RuntimeError from torch where the host has to wait."""
    views, images, index = _views(device)
    views(images, index, 0)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        views(images, index, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return 0.0


def blocks_apart(device: torch.device) -> float:
    generator = torch.Generator().manual_seed(0)
    z = [torch.randn(n, 16, generator=generator).to(device).requires_grad_() for n in (33, 33, 50)]

    def numbers(chunk: int | None) -> list[Tensor]:
        losses = [
            nt_xent_contrast(z[0], z[1], 0.2, chunk=chunk).loss,
            info_nce_contrast(z[0], z[1], z[2], 0.2, chunk=chunk).loss,
        ]
        return [*losses, *torch.autograd.grad(losses[0], z[:2]), *torch.autograd.grad(losses[1], z)]

    plain_numbers = numbers(None)
    return worst(d for chunk in (1, 8, 100) for d in map(difference, numbers(chunk), plain_numbers))


def autocast_apart(device: torch.device, half: torch.dtype | None = None) -> float:
    """Losses of a first step with products in `half` (None: the device's own) against float32, of the same weights."""
    missed, half = [], half or native_half(device.type)
    for make in METHODS.values():
        losses = []
        for enabled in (True, False):
            torch.manual_seed(0)
            model = make(4).to(device)
            with torch.autocast(device.type, half, enabled=enabled):
                for batch in batches(4, 2, even=True):
                    loss = model.step(part_of(batch, device)).loss
            losses.append(loss)
        missed.append(difference(*losses))
    return worst(missed)
