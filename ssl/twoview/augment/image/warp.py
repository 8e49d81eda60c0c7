"""Rotations, shifts, scalings and shears: one affine map per sample, all sampled in one go.

Maps are written from output to input, in pixels from the middle of the image, and computed in torchvision's order of
operations, so that the nearest pixel is torchvision's also where two are equally near.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from twoview.augment.operation import BatchAugment, Params, check_range
from twoview.errors import UserError
from twoview.rng import Draw

INTERPOLATIONS = ("nearest", "bilinear")


class RandomRotation(BatchAugment):
    """A turn about the middle of the image, counter-clockwise.

    `degrees`: a range, or a number d for the range [-d, d]. `interpolation`: `nearest` or `bilinear`. `fill`: what
    lies outside of the image, in [0, 1]; `None` is black (see `warp`).
    """

    def __init__(
        self,
        degrees: float | Sequence[float] = 30.0,
        interpolation: str = "nearest",
        fill: float | None = 0.0,
        p: float = 1.0,
    ) -> None:
        super().__init__(p)
        self.degrees = _angles("RandomRotation: degrees", degrees, 360.0)
        check_sampling("RandomRotation", interpolation, fill)
        self.interpolation, self.fill = interpolation, fill

    def sample(self, draw: Draw, n: int, shape: tuple[int, ...]) -> Params:
        """`angle` (n,) in degrees."""
        return {"angle": _between(self.degrees, draw.uniform(1)[:, 0])}

    def apply(self, images: Tensor, params: Params) -> Tensor:
        return warp(images, inverse_affine(-params["angle"]), self.interpolation, self.fill)


class RandomAffine(BatchAugment):
    """A turn (clockwise), a shift by whole pixels, a scaling and a shear about the middle of the image.

    `degrees`: as in `RandomRotation`. `translate`: the largest shifts, as shares of width and height. `scale`: range
    of the enlargement. `shear`: degrees along x; a number s for [-s, s], a range, or two ranges, along x and along y.
    torchvision's laws, with mild defaults where it has none.
    """

    def __init__(
        self,
        degrees: float | Sequence[float] = 15.0,
        translate: Sequence[float] = (0.1, 0.1),
        scale: Sequence[float] = (0.9, 1.1),
        shear: float | Sequence[float] = 10.0,
        interpolation: str = "nearest",
        fill: float | None = 0.0,
        p: float = 1.0,
    ) -> None:
        super().__init__(p)
        self.degrees = _angles("RandomAffine: degrees", degrees, 360.0)
        if len(translate) != 2 or not all(0 <= share <= 1 for share in translate):
            raise UserError(f"RandomAffine: translate must be two numbers within [0, 1], not {list(translate)}")
        self.translate = float(translate[0]), float(translate[1])
        self.scale = check_range("RandomAffine: scale", scale, 1e-3, 1e3)
        along_y = shear[2:] if isinstance(shear, Sequence) and len(shear) == 4 else (0.0, 0.0)
        along_x = shear[:2] if isinstance(shear, Sequence) and len(shear) == 4 else shear
        self.shear = _angles("RandomAffine: shear", along_x, 89.0), _angles("RandomAffine: shear", along_y, 89.0)
        check_sampling("RandomAffine", interpolation, fill)
        self.interpolation, self.fill = interpolation, fill

    def sample(self, draw: Draw, n: int, shape: tuple[int, ...]) -> Params:
        """`angle` (n,) in degrees, `shift` (n, 2) along x and y in whole pixels, `scale` (n,), `shear` (n, 2) in
        degrees.
        """
        H, W = shape[-2:]
        u = draw.uniform(6)  # (n, 6)
        reach = self.translate[0] * W, self.translate[1] * H
        return {
            "angle": _between(self.degrees, u[:, 0]),
            "shift": torch.stack([torch.round(_between((-r, r), u[:, 1 + i])) for i, r in enumerate(reach)], dim=1),
            "scale": _between(self.scale, u[:, 3]),
            "shear": torch.stack([_between(s, u[:, 4 + i]) for i, s in enumerate(self.shear)], dim=1),
        }

    def apply(self, images: Tensor, params: Params) -> Tensor:
        matrix = inverse_affine(params["angle"], params["shift"], params["scale"], params["shear"])
        return warp(images, matrix, self.interpolation, self.fill)


def inverse_affine(
    angle: Tensor,
    shift: Tensor | None = None,
    scale: Tensor | None = None,
    shear: Tensor | None = None,
    centre: Tensor | None = None,
) -> Tensor:
    """Where each output pixel comes from: float32 (B, 2, 3), the inverse of shift, turn, scaling and shear.

    `angle` (B,) clockwise and `shear` (B, 2) in degrees, `shift` (B, 2) in pixels, `scale` (B,). `centre` (B, 2) is
    what stays in place but for the shift, in pixels from the middle of the image. Computed in float64, like
    torchvision's, and rounded once.
    """
    angle = angle.double()
    none = torch.zeros(len(angle), 2, dtype=torch.float64, device=angle.device)
    shift, centre, shear = (none if t is None else t.double() for t in (shift, centre, shear))
    scale = torch.ones_like(angle) if scale is None else scale.double()
    turn, along_x, along_y = (torch.deg2rad(t) for t in (angle, shear[:, 0], shear[:, 1]))
    a = torch.cos(turn - along_y) / torch.cos(along_y)
    b = -(a * torch.tan(along_x) + torch.sin(turn))
    c = torch.sin(turn - along_y) / torch.cos(along_y)
    d = torch.cos(turn) - c * torch.tan(along_x)
    linear = torch.stack([d, -b, -c, a], dim=1).view(-1, 2, 2) / scale[:, None, None]  # [[a, b], [c, d]] has det. 1
    offset = centre[:, :, None] - (linear * (centre + shift)[:, None, :]).sum(dim=2, keepdim=True)  # (B, 2, 1)
    return torch.cat([linear, offset], dim=2).float()


def warp(images: Tensor, matrix: Tensor, interpolation: str, fill: float | None) -> Tensor:
    """Samples `images` (B, C, H, W) at `matrix` (B, 2, 3) times each pixel's (x, y, 1).

    Outside of the image lies black (`fill` None), or `fill` as torchvision lays it: the share of a pixel that comes
    from inside is sampled along with the image, and weighs the result, blended with black already, against `fill`. So
    along a bilinear border the image counts a little less than in plain interpolation.
    """
    B, C, H, W = images.shape
    if B == 0:
        return images
    x = torch.linspace((1 - W) / 2, (W - 1) / 2, W, device=images.device)
    y = torch.linspace((1 - H) / 2, (H - 1) / 2, H, device=images.device)[:, None]
    # Products and sums one by one: a matrix product would round otherwise, and on some devices far more coarsely.
    column, row = ((matrix[:, i, :, None, None] / (side / 2)).unbind(1) for i, side in enumerate((W, H)))
    grid = torch.stack([m[0] * x + m[1] * y + m[2] for m in (column, row)], dim=3)  # (B, H, W, 2), image in [-1, 1]
    if fill is None:
        return F.grid_sample(images, grid, interpolation, "zeros", align_corners=False)
    marked = torch.cat([images, torch.ones_like(images[:, :1])], dim=1)  # (B, C + 1, H, W)
    result, inside = F.grid_sample(marked, grid, interpolation, "zeros", align_corners=False).split([C, 1], dim=1)
    if interpolation == "nearest":
        return torch.where(inside < 0.5, fill, result)
    return (result - fill) * inside + fill


def check_sampling(name: str, interpolation: str, fill: float | None) -> None:
    """Raises a UserError that names the operation `name`, if it cannot sample so."""
    if interpolation not in INTERPOLATIONS:
        raise UserError(f"{name}: interpolation must be one of {', '.join(INTERPOLATIONS)}, not {interpolation}")
    if fill is not None and not 0 <= fill <= 1:
        raise UserError(f"{name}: fill must lie in [0, 1], not {fill}")


def _angles(name: str, value: float | Sequence[float], largest: float) -> tuple[float, float]:
    return check_range(name, value if isinstance(value, Sequence) else (-value, value), -largest, largest)


def _between(span: tuple[float, float], u: Tensor) -> Tensor:
    return span[0] + (span[1] - span[0]) * u
