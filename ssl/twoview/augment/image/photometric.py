"""Changes of colour and focus, per sample, in torchvision's formulas for float images in [0, 1]."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from twoview.augment.operation import BatchAugment, Params, check_range
from twoview.errors import UserError
from twoview.rng import Draw

Planes = tuple[Tensor, ...]  # the channels, (B, H, W) each

_MOST = 1e4  # factor of brightness, contrast and saturation
_GRAY = (0.2989, 0.587, 0.114)  # torchvision's weights of red, green and blue


class ColorJitter(BatchAugment):
    """Brightness, contrast, saturation and hue in a random order of their own for each image (SimCLR, appendix A).

    At `strength` 1, factors are drawn from [max(0, 1 - x), 1 + x] for x = `brightness`, `contrast`, `saturation`, and
    the hue is turned by a share of the colour circle in [-`hue`, `hue`]. `strength` multiplies all four: it is the
    paper's s with the paper's defaults 0.8, 0.8, 0.8, 0.2. Needs three channels, or one (then only brightness and
    contrast do something).
    """

    def __init__(
        self,
        brightness: float = 0.8,
        contrast: float = 0.8,
        saturation: float = 0.8,
        hue: float = 0.2,
        strength: float = 1.0,
        p: float = 0.8,
    ) -> None:
        super().__init__(p)
        if not 0 <= strength < math.inf:
            raise UserError(f"ColorJitter: strength must be finite and not negative, got {strength}")
        for name, value in {"brightness": brightness, "contrast": contrast, "saturation": saturation}.items():
            if not 0 <= value < math.inf:
                raise UserError(f"ColorJitter: {name} must be finite and not negative, got {value}")
            if value * strength > _MOST:  # far beyond any use, float32 would overflow
                raise UserError(f"ColorJitter: {name} x strength must be at most {_MOST:g}, not {value} x {strength}")
        if not 0 <= hue * strength <= 0.5:
            raise UserError(
                f"ColorJitter: hue x strength must lie in [0, 0.5], not {hue} x {strength} = {hue * strength:g}"
            )
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue
        self.strength = strength

    def sample(self, draw: Draw, n: int, shape: tuple[int, ...]) -> Params:
        """`brightness`, `contrast`, `saturation`, `hue` (n,), and `order` (n, 4): a permutation of 0 ... 3 in that
        naming.
        """
        u = draw.uniform(5)  # (n, 5)
        params = {}
        for i, name in enumerate(("brightness", "contrast", "saturation")):
            x = getattr(self, name) * self.strength
            low = max(0.0, 1.0 - x)
            params[name] = low + (1 + x - low) * u[:, i]
        params["hue"] = self.hue * self.strength * (2 * u[:, 3] - 1)
        params["order"] = _order((u[:, 4] * 24).long())
        return params

    def apply(self, images: Tensor, params: Params) -> Tensor:
        channels = images.shape[1]
        if channels not in (1, 3):
            raise UserError(f"ColorJitter needs images of 1 or 3 channels, not {channels}; take it out of the policy")
        steps, hue, hue_place = _steps(params)
        if images.device.type != "cpu" or torch.compiler.is_compiling():
            return self._masked(images, steps, hue, hue_place)
        result = torch.empty_like(images)
        for q in range(4):  # rows that turn the hue at the same place go through the four steps together
            rows = (hue_place == q).nonzero()[:, 0]
            if len(rows) == 0:
                continue
            planes = images[rows].unbind(1)
            for place in range(4):
                planes = turn_hue(planes, hue[rows]) if place == q else _blend(planes, steps[place][rows])
            result[rows] = torch.stack(planes, dim=1)
        return result

    def _masked(self, images: Tensor, steps: list[Tensor], hue: Tensor, hue_place: Tensor) -> Tensor:
        """The same without shapes that depend on the data, so that the host never waits for a GPU and a compiler sees
        one chain: steps that do nothing stand wherever the hue of a row leaves a gap.
        """
        nothing = torch.zeros_like(steps[0])
        nothing[:, 0] = 1
        before = [torch.where((place < hue_place)[:, None], steps[place], nothing) for place in range(3)]
        after = [torch.where((place > hue_place)[:, None], steps[place], nothing) for place in range(1, 4)]
        rows = torch.cat(before + after, dim=1)  # (B, 18), in memory: not computed again for each pixel
        planes = images.unbind(1)
        for step in rows[:, :9].split(3, dim=1):
            planes = _blend(planes, step)
        planes = turn_hue(planes, hue)
        for step in rows[:, 9:].split(3, dim=1):
            planes = _blend(planes, step)
        return torch.stack(planes, dim=1)


def _order(number: Tensor) -> Tensor:
    """The permutation of 0 ... 3 of each `number` (n,) in 0 ... 23, in lexicographic order: int64 (n, 4).

    Computed rather than looked up: a table would have to be copied to each device, for which the host waits.
    """
    first, rest = number // 6, number % 6
    second, third = rest // 2, rest % 2  # places among those that are left
    second = second + (second >= first)
    third = third + (third >= torch.minimum(first, second))
    third = third + (third >= torch.maximum(first, second))
    return torch.stack([first, second, third, 6 - first - second - third], dim=1)


def _steps(params: Params) -> tuple[list[Tensor], Tensor, Tensor]:
    """What happens to each row: coefficients (B, 3) at each of the four places, the turn of hue (B,) in sixths of the
    circle, and its place (B,).
    """
    order = params["order"]
    factors = torch.stack([params["brightness"], params["contrast"], params["saturation"]], dim=1)  # (B, 3)
    hue_place = (order == 3).to(torch.uint8).argmax(dim=1)  # (B,)
    return [_coefficients(order[:, place], factors) for place in range(4)], 6 * params["hue"], hue_place


def _coefficients(step: Tensor, factors: Tensor) -> Tensor:
    """Each linear step is x -> f x + (1 - f) base, where the base is black for brightness, the mean luminance for
    contrast and the luminance of each pixel for saturation: (B, 3) coefficients of x, mean and luminance.

    `step` (B,) names the step of each row, 0 ... 3, `factors` (B, 3) are those of the first three.
    """
    f = torch.where(step == 0, factors[:, 0], torch.where(step == 1, factors[:, 1], factors[:, 2]))
    f = torch.where(step == 3, 1.0, f)
    return torch.stack([f, (1 - f) * (step == 1), (1 - f) * (step == 2)], dim=1)


def _blend(planes: Planes, coefficients: Tensor) -> Planes:
    """A linear step (see `_coefficients`), cut to [0, 1]."""
    f, of_mean, of_pixel = coefficients[:, :, None, None].unbind(1)  # (B, 1, 1) each
    luminance = _luminance(planes)  # (B, H, W)
    base = torch.addcmul(of_mean * luminance.mean(dim=(1, 2), keepdim=True), of_pixel, luminance)
    return tuple(torch.addcmul(base, f, plane).clamp_(0, 1) for plane in planes)


def _luminance(planes: Planes) -> Tensor:
    """(B, H, W) of one or three channels."""
    if len(planes) == 1:
        return planes[0]
    r, g, b = planes
    return (_GRAY[0] * r).add_(g, alpha=_GRAY[1]).add_(b, alpha=_GRAY[2])


def gray(x: Tensor) -> Tensor:
    """Luminance (B, 1, H, W) of (B, 3, H, W)."""
    return _luminance(x.unbind(1))[:, None]


def turn_hue(planes: Planes, turn: Tensor) -> Planes:
    """Red, green and blue (B, H, W) each, the hue turned by `turn` (B,) sixths of the colour circle, at equal value and
    saturation in HSV. One channel has no hue and stays as it is.

    At hue h in [0, 6) the share of a channel between the lowest and the highest one is |h - 3| - 1 for red, 2 - |h - 2|
    for green and 2 - |h - 4| for blue, cut to [0, 1].
    """
    if len(planes) == 1:
        return planes
    r, g, b = planes
    highest, lowest = torch.maximum(torch.maximum(r, g), b), torch.minimum(torch.minimum(r, g), b)
    chroma = highest - lowest
    scale = 1 / torch.where(chroma == 0, 1.0, chroma)
    h = torch.where(highest == g, 2 + (b - r) * scale, 4 + (r - g) * scale)
    h = torch.where(highest == r, (g - b) * scale, h) + turn[:, None, None]
    h = h - 6 * torch.floor(h / 6)
    shares = (h - 3).abs() - 1, 2 - (h - 2).abs(), 2 - (h - 4).abs()
    return tuple(torch.addcmul(lowest, chroma, share.clamp(0, 1)) for share in shares)


class Grayscale(BatchAugment):
    """Colour taken away: three equal channels of luminance."""

    def __init__(self, p: float = 0.2) -> None:
        super().__init__(p)

    def sample(self, draw: Draw, n: int, shape: tuple[int, ...]) -> Params:
        return {}

    def apply(self, images: Tensor, params: Params) -> Tensor:
        if images.shape[1] == 1:
            return images
        if images.shape[1] != 3:
            raise UserError(
                f"Grayscale needs images of 1 or 3 channels, not {images.shape[1]}; take it out of the policy"
            )
        return gray(images).expand_as(images)


class GaussianBlur(BatchAugment):
    """Blur with a Gaussian of random width (SimCLR, appendix A: p 0.5, 10 % of the side as the kernel).

    `sigma`: range in pixels. `kernel_size`: taps, odd; `None` takes a tenth of the smaller side, made odd, at least
    3. The border is reflected, as in torchvision (the paper's code pads with zeros).
    """

    def __init__(self, sigma: Sequence[float] = (0.1, 2.0), kernel_size: int | None = None, p: float = 0.5) -> None:
        super().__init__(p)
        self.sigma = check_range("GaussianBlur: sigma", sigma, 1e-3, 1e3)
        if kernel_size is not None and (kernel_size < 1 or kernel_size % 2 == 0):
            raise UserError(f"GaussianBlur: kernel_size must be odd and positive, not {kernel_size}")
        self.kernel_size = kernel_size

    def sample(self, draw: Draw, n: int, shape: tuple[int, ...]) -> Params:
        """`sigma` (n,) in pixels."""
        return {"sigma": self.sigma[0] + (self.sigma[1] - self.sigma[0]) * draw.uniform(1)[:, 0]}

    def apply(self, images: Tensor, params: Params) -> Tensor:
        H, W = images.shape[-2:]
        taps = self.kernel_size or max(3, min(H, W) // 10 | 1)
        radius = taps // 2
        if radius >= min(H, W):
            raise UserError(f"GaussianBlur: kernel_size {taps} is too large for images of {H} x {W} pixels")
        if len(images) == 0:
            return images
        offset = torch.arange(-radius, radius + 1, device=images.device, dtype=torch.float32)  # (taps,)
        kernel = torch.softmax(-0.5 * (offset / params["sigma"][:, None]) ** 2, dim=1)  # (B, taps), sums to 1
        kernel = kernel[:, :, None, None, None]
        x = F.pad(images, (radius, radius, radius, radius), mode="reflect")
        across = torch.zeros_like(x[..., :W])  # (B, C, H + 2 radius, W): blurred along the width
        for i in range(taps):
            across.addcmul_(kernel[:, i], x[..., i : i + W])
        blurred = torch.zeros_like(images)
        for i in range(taps):
            blurred.addcmul_(kernel[:, i], across[..., i : i + H, :])
        return blurred
