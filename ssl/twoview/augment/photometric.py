"""Changes of colour and focus, per sample, in torchvision's formulas for float images in [0, 1]."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from twoview.augment.base import BatchAugment, Params, check_range
from twoview.errors import UserError
from twoview.rng import Draw

_GRAY = (0.2989, 0.587, 0.114)  # torchvision's weights of red, green and blue
_ORDERS = torch.tensor(  # the 24 orders of brightness 0, contrast 1, saturation 2, hue 3
    [[a, b, c, 6 - a - b - c] for a in range(4) for b in range(4) for c in range(4) if len({a, b, c}) == 3]
)


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
        if not 0 <= hue * strength <= 0.5:
            raise UserError(
                f"ColorJitter: hue x strength must lie in [0, 0.5], not {hue} x {strength} = {hue * strength:g}"
            )
        self.brightness, self.contrast, self.saturation, self.hue = brightness, contrast, saturation, hue
        self.strength = strength

    def sample(self, draw: Draw, n: int, size: tuple[int, int]) -> Params:
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
        params["order"] = _ORDERS.to(u.device)[(u[:, 4] * len(_ORDERS)).long()]
        return params

    def apply(self, images: Tensor, params: Params) -> Tensor:
        channels = images.shape[1]
        if channels not in (1, 3):
            raise UserError(f"ColorJitter needs images of 1 or 3 channels, not {channels}; take it out of the policy")
        if channels == 1:  # no colour: the steps of saturation and hue change nothing
            params = params | {"saturation": torch.ones_like(params["saturation"])}
        hue_place = params["order"].argsort(dim=1)[:, 3]  # (B,)
        if images.device.type != "cpu":
            return self._masked(images, params, hue_place)
        result = torch.empty_like(images)
        for q in range(4):  # rows that turn the hue at the same place go through the four steps together
            rows = (hue_place == q).nonzero()[:, 0]
            group = {name: value[rows] for name, value in params.items()}
            x = images[rows]
            for position in range(4):
                x = _turn_if_colour(x, group["hue"]) if position == q else _blend(x, position, group)
            result[rows] = x
        return result

    def _masked(self, images: Tensor, params: Params, hue_place: Tensor) -> Tensor:
        """The same without shapes that depend on the data, so that the host never waits for a GPU: linear steps run
        twice under a mask.
        """
        x = images
        for position in range(3):
            x = _blend(x, position, params, active=position < hue_place)
        x = _turn_if_colour(x, params["hue"])
        for position in range(1, 4):
            x = _blend(x, position, params, active=position > hue_place)
        return x


def _blend(x: Tensor, position: int, params: Params, active: Tensor | None = None) -> Tensor:
    """The step at `position` of each row's order, if it is a linear one: x -> f x + (1 - f) base, cut to [0, 1].

    The base is black for brightness, the mean luminance for contrast and the luminance of each pixel for saturation.
    """
    step = params["order"][:, position]  # (B,)
    table = torch.stack(
        [params["brightness"], params["contrast"], params["saturation"], torch.ones_like(params["hue"])],
        dim=1,
    )
    f = table.gather(1, step[:, None])[:, 0]  # (B,)
    if active is not None:
        f = torch.where(active, f, 1.0)
    luminance = gray(x) if x.shape[1] == 3 else x  # (B, 1, H, W)
    rest = 1 - f
    of_mean = (torch.where(step == 1, rest, 0.0) * luminance.mean(dim=(1, 2, 3)))[:, None, None, None]
    of_pixel = torch.where(step == 2, rest, 0.0)[:, None, None, None]
    return torch.addcmul(of_mean, luminance, of_pixel).addcmul(x, f[:, None, None, None]).clamp_(0, 1)


def _turn_if_colour(x: Tensor, hue: Tensor) -> Tensor:
    return turn_hue(x, hue[:, None, None, None]) if x.shape[1] == 3 else x


def gray(x: Tensor) -> Tensor:
    """Luminance (B, 1, H, W) of (B, 3, H, W)."""
    r, g, b = x.split(1, dim=1)
    return (_GRAY[0] * r).add_(g, alpha=_GRAY[1]).add_(b, alpha=_GRAY[2])


def turn_hue(x: Tensor, shift: Tensor) -> Tensor:
    """Turns the hue of `x` (B, 3, H, W) by `shift` (B, 1, 1, 1), a share of the colour circle, at equal value and
    saturation in HSV.

    In HSV each channel is v - v s max(0, min(1, k, 4 - k)) with k = (n + 6 h) mod 6 and n = 5, 3, 1 for red, green,
    blue.
    """
    v, lowest = x.amax(dim=1, keepdim=True), x.amin(dim=1, keepdim=True)  # (B, 1, H, W)
    chroma = v - lowest
    r, g, b = x.split(1, dim=1)
    safe = torch.where(chroma == 0, torch.ones_like(chroma), chroma)
    sector = torch.where(v == r, (g - b) / safe, torch.where(v == g, 2 + (b - r) / safe, 4 + (r - g) / safe))  # 6 h
    n = torch.tensor([5.0, 3.0, 1.0], device=x.device, dtype=x.dtype).view(1, 3, 1, 1)
    k = torch.remainder(n + sector + 6 * shift, 6)  # (B, 3, H, W)
    return v - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


class Grayscale(BatchAugment):
    """Colour taken away: three equal channels of luminance."""

    def __init__(self, p: float = 0.2) -> None:
        super().__init__(p)

    def sample(self, draw: Draw, n: int, size: tuple[int, int]) -> Params:
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

    def sample(self, draw: Draw, n: int, size: tuple[int, int]) -> Params:
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
