"""Policies that draw other operations for each image: RandAugment and AutoAugment, with torchvision's operations and
magnitudes.

An operation is a number, its place in `OPS`, and a signed magnitude; so a policy is two small tensors per batch, and
one function performs all of them.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from twoview.augment.image.photometric import gray
from twoview.augment.image.tone import autocontrast, equalize, posterize, sharpen, solarize
from twoview.augment.image.warp import check_sampling, inverse_affine, warp
from twoview.augment.operation import BatchAugment, Params
from twoview.errors import UserError
from twoview.rng import Draw

OPS = (
    *("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"),  # one warp
    *("Brightness", "Color", "Contrast"),  # one blend
    *("Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize", "Invert"),
    "Identity",
)
_SIGNED = 9  # the first nine turn to either side
_POSTERIZE, _SOLARIZE = OPS.index("Posterize"), OPS.index("Solarize")

# Table 7 of Cubuk et al., "AutoAugment: learning augmentation strategies from data" (CVPR 2019): 25 pairs of
# operation, probability, level 0 ... 9.
_CIFAR10 = """
    Invert .1 0, Contrast .2 6;         Rotate .7 2, TranslateX .3 9;       Sharpness .8 1, Sharpness .9 3;
    ShearY .5 8, TranslateY .7 9;       AutoContrast .5 0, Equalize .9 0;   ShearY .2 7, Posterize .3 7;
    Color .4 3, Brightness .6 7;        Sharpness .3 9, Brightness .7 9;    Equalize .6 0, Equalize .5 0;
    Contrast .6 7, Sharpness .6 5;      Color .7 7, TranslateX .5 8;        Equalize .3 0, AutoContrast .4 0;
    TranslateY .4 3, Sharpness .2 6;    Brightness .9 6, Color .2 8;        Solarize .5 2, Invert 0 0;
    Equalize .2 0, AutoContrast .6 0;   Equalize .2 0, Equalize .6 0;       Color .9 9, Equalize .6 0;
    AutoContrast .8 0, Solarize .2 8;   Brightness .1 3, Color .7 0;        Solarize .4 5, AutoContrast .9 0;
    TranslateY .9 9, TranslateY .7 9;   AutoContrast .9 0, Solarize .8 3;   Equalize .8 0, Invert .1 0;
    TranslateY .7 9, AutoContrast .9 0
"""
_POLICIES = {"cifar10": [[part.split() for part in pair.split(",")] for pair in _CIFAR10.split(";")]}


class _Policy(BatchAugment):
    """What the two have in common: how drawn operations are performed."""

    def __init__(self, interpolation: str, fill: float | None, p: float) -> None:
        super().__init__(p)
        check_sampling(type(self).__name__, interpolation, fill)
        self.interpolation, self.fill = interpolation, fill

    def apply(self, images: Tensor, params: Params) -> Tensor:
        if images.shape[1] not in (1, 3):
            raise UserError(
                f"{type(self).__name__} needs images of 1 or 3 channels, not {images.shape[1]}; "
                "take it out of the policy"
            )
        grouped = images.device.type == "cpu" and not torch.compiler.is_compiling()
        for op, magnitude in zip(params["op"].unbind(1), params["magnitude"].unbind(1), strict=True):
            images = perform(images, op, magnitude, self.interpolation, self.fill, grouped)
        return images


class RandAugment(_Policy):
    """`num_ops` operations for each image, all kinds equally often, at one magnitude and with random signs (Cubuk et
    al., "RandAugment: practical automated data augmentation with a reduced search space", 2020).

    `magnitude`: from 0 to `num_magnitude_bins` - 1. `interpolation`: `nearest` or `bilinear`. `fill`: what warps bring
    in from outside, in [0, 1]; `None` is black.
    """

    def __init__(
        self,
        num_ops: int = 2,
        magnitude: int = 9,
        num_magnitude_bins: int = 31,
        interpolation: str = "nearest",
        fill: float | None = None,
        p: float = 1.0,
    ) -> None:
        super().__init__(interpolation, fill, p)
        if num_ops < 1:
            raise UserError(f"RandAugment: num_ops must be at least 1, not {num_ops}")
        if num_magnitude_bins < 2:
            raise UserError(f"RandAugment: num_magnitude_bins must be at least 2, not {num_magnitude_bins}")
        if not 0 <= magnitude < num_magnitude_bins:
            raise UserError(f"RandAugment: magnitude must lie in [0, {num_magnitude_bins - 1}], not {magnitude}")
        self.num_ops, self.magnitude, self.num_magnitude_bins = num_ops, magnitude, num_magnitude_bins

    def sample(self, draw: Draw, n: int, shape: tuple[int, ...]) -> Params:
        """`op` (n, num_ops) int64, places in `OPS`; `magnitude` (n, num_ops), signed."""
        u = draw.uniform(2 * self.num_ops)  # (n, 2 num_ops)
        kinds = [i for i, name in enumerate(OPS) if name != "Invert"]
        op = _like(torch.tensor(kinds), u)[(u[:, : self.num_ops] * len(kinds)).long()]
        magnitude = _like(magnitudes(self.num_magnitude_bins, shape)[:, self.magnitude], u)[op]
        return {"op": op, "magnitude": _signed(magnitude, op, u[:, self.num_ops :])}


class AutoAugment(_Policy):
    """One of the 25 pairs of operations of a learnt policy for each image, each of the two with its probability and
    magnitude, with random signs (Cubuk et al., CVPR 2019).

    `policy`: `cifar10`. `interpolation`, `fill`: as in `RandAugment`.
    """

    def __init__(
        self, policy: str = "cifar10", interpolation: str = "nearest", fill: float | None = None, p: float = 1.0
    ) -> None:
        super().__init__(interpolation, fill, p)
        if policy not in _POLICIES:
            raise UserError(f"AutoAugment: policy must be one of {', '.join(_POLICIES)}, not {policy}")
        self.policy = policy

    def sample(self, draw: Draw, n: int, shape: tuple[int, ...]) -> Params:
        """`op` (n, 2) int64, places in `OPS`; `magnitude` (n, 2), signed."""
        pairs = _POLICIES[self.policy]
        kind = torch.tensor([[OPS.index(name) for name, _, _ in pair] for pair in pairs])  # (25, 2)
        rate = torch.tensor([[float(rate) for _, rate, _ in pair] for pair in pairs])
        level = torch.tensor([[int(level) for _, _, level in pair] for pair in pairs])
        table = magnitudes(10, shape)[kind, level]
        u = draw.uniform(5)  # (n, 5)
        chosen = (u[:, 0] * len(pairs)).long()  # (n,)
        acts = u[:, 1:3] < _like(rate, u)[chosen]
        op = torch.where(acts, _like(kind, u)[chosen], OPS.index("Identity"))  # (n, 2)
        return {"op": op, "magnitude": _signed(torch.where(acts, _like(table, u)[chosen], 0), op, u[:, 3:])}


def magnitudes(bins: int, shape: tuple[int, ...]) -> Tensor:
    """What the levels 0 ... `bins` - 1 mean for images of `shape`, (..., H, W): float32 (len(OPS), bins), in the order
    of `OPS`.

    Slopes of shears, pixels of shifts, degrees of turns, factors less 1 of blends and sharpness, bits, thresholds.
    """
    H, W = shape[-2:]
    largest = {"ShearX": 0.3, "ShearY": 0.3, "TranslateX": 150 / 331 * W, "TranslateY": 150 / 331 * H, "Rotate": 30.0}
    largest |= dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), 0.9)
    table = torch.stack([torch.linspace(0, largest.get(name, 0.0), bins) for name in OPS])
    table[_POSTERIZE] = (8 - torch.arange(bins) / ((bins - 1) / 4)).round()
    table[_SOLARIZE] = torch.linspace(1, 0, bins)
    return table


def perform(
    images: Tensor, op: Tensor, magnitude: Tensor, interpolation: str, fill: float | None, grouped: bool
) -> Tensor:
    """Row i of `images` (B, 1 or 3, H, W) after operation `op[i]`, a place in `OPS`, of `magnitude[i]`.

    `grouped`: each row goes through its own operation only, which makes shapes depend on the data: good on a CPU, while
    a GPU's host would have to wait. Otherwise all rows go through all operations, under a mask.
    """
    steps: tuple[tuple[str, str, Callable[[Tensor, Tensor, Tensor], Tensor]], ...] = (
        ("ShearX", "Rotate", lambda x, op, m: warp(x, _map(op, m, x), interpolation, fill)),
        ("Brightness", "Contrast", _blend),
        ("Sharpness", "Sharpness", lambda x, op, m: sharpen(x, 1 + m)),
        ("Posterize", "Posterize", lambda x, op, m: posterize(x, m)),
        ("Solarize", "Solarize", lambda x, op, m: solarize(x, m)),
        ("AutoContrast", "AutoContrast", lambda x, op, m: autocontrast(x)),
        ("Equalize", "Equalize", lambda x, op, m: equalize(x)),
        ("Invert", "Invert", lambda x, op, m: 1 - x),
    )
    result = images.clone() if grouped else images
    for first, last, step in steps:
        chosen = (op >= OPS.index(first)) & (op <= OPS.index(last))  # (B,)
        if not grouped:
            result = torch.where(chosen[:, None, None, None], step(images, op, magnitude), result)
        elif len(rows := chosen.nonzero()[:, 0]):
            result[rows] = step(images[rows], op[rows], magnitude[rows])
    return result


def _map(op: Tensor, magnitude: Tensor, x: Tensor) -> Tensor:
    """The inverse affine maps (B, 2, 3) of shears about the upper left corner, shifts by whole pixels, and turns."""
    H, W = x.shape[-2:]

    def where(name: str) -> Tensor:
        return torch.where(op == OPS.index(name), magnitude.double(), 0.0)

    sheared = op <= OPS.index("ShearY")
    centre = torch.stack([torch.where(sheared, -side / 2, 0.0) for side in (W, H)], dim=1)  # (B, 2)
    shear = torch.rad2deg(torch.atan(torch.stack([where("ShearX"), where("ShearY")], dim=1)))
    shift = torch.trunc(torch.stack([where("TranslateX"), where("TranslateY")], dim=1))
    return inverse_affine(-where("Rotate"), shift=shift, shear=shear, centre=centre)


def _blend(x: Tensor, op: Tensor, magnitude: Tensor) -> Tensor:
    """x -> f x + (1 - f) base with f = 1 + magnitude and base black (Brightness), the pixel's luminance (Color) or the
    mean luminance (Contrast).
    """
    luminance = gray(x) if x.shape[1] == 3 else x  # (B, 1, H, W)
    op, f = op[:, None, None, None], 1 + magnitude[:, None, None, None]
    mean = torch.where(op == OPS.index("Contrast"), luminance.mean(dim=(1, 2, 3), keepdim=True), 0.0)
    base = torch.where(op == OPS.index("Color"), luminance, mean)
    return (f * x + (1 - f) * base).clamp(0, 1)


def _signed(magnitude: Tensor, op: Tensor, u: Tensor) -> Tensor:
    return torch.where((op < _SIGNED) & (u < 0.5), -magnitude, magnitude)


def _like(table: Tensor, u: Tensor) -> Tensor:
    """A small table on the device of `u`, without waiting for it."""
    return table.to(u.device, non_blocking=True)
