"""Waves made louder, moved and faded. What every operation on waves keeps: behind the end of a clip there is silence,
and at least one sample stays.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from twoview.augment.operation import BatchAugment, Params, check_range
from twoview.data.audio.decode import Sound
from twoview.data.demand import Shape
from twoview.errors import UserError
from twoview.rng import Draw


class WaveAugment(BatchAugment):
    """An operation on {"wave": float (B, T) in [-1, 1], "length": int64 (B,)}."""

    kind = "wave"


class Gain(WaveAugment):
    """Louder or softer by a number of decibels, uniform in the range. Nothing is clipped."""

    def __init__(self, decibels: Sequence[float] = (-12.0, 6.0), p: float = 1.0) -> None:
        super().__init__(p)
        self.decibels = check_range("Gain: decibels", decibels, -120.0, 120.0)

    def sample(self, draw: Draw, n: int, shape: Shape) -> Params:
        """`decibels` (n,)."""
        return {"decibels": between(self.decibels, draw)}

    def apply(self, sound: Sound, params: Params) -> Sound:
        return {"wave": sound["wave"] * 10 ** (params["decibels"][:, None] / 20), "length": sound["length"]}


class TimeShift(WaveAugment):
    """The clip starts later, after silence, or its beginning is cut off.

    `share`: the longest shift, as a share of the clip, uniform on both sides. What is moved beyond the window is lost.
    """

    def __init__(self, share: float = 0.2, p: float = 1.0) -> None:
        super().__init__(p)
        if not 0 <= share < 1:
            raise UserError(f"TimeShift: share must lie in [0, 1), not {share}")
        self.share = share

    def sample(self, draw: Draw, n: int, shape: Shape) -> Params:
        """`share` (n,): of the clip, above 0 for later."""
        return {"share": between((-self.share, self.share), draw)}

    def apply(self, sound: Sound, params: Params) -> Sound:
        wave, length = sound["wave"], sound["length"]
        shift = (params["share"] * length).trunc().long()  # (B,), less than the clip
        source = torch.arange(wave.shape[1], device=wave.device) - shift[:, None]  # (B, T)
        there = (source >= 0) & (source < length[:, None])
        moved = torch.where(there, wave.gather(1, source.clamp(0, wave.shape[1] - 1)), 0)
        return {"wave": moved, "length": (length + shift).clamp(1, wave.shape[1])}


class Fade(WaveAugment):
    """The clip swells at its beginning and dies away at its end, linearly (CLAR, Al-Tahan & Mohsenzadeh, AISTATS 2021,
    arXiv 2010.09542, found fading one of the two best transformations of speech).

    `longest`: share of the clip, of either fade at most; each is uniform below it.
    """

    def __init__(self, longest: float = 0.5, p: float = 1.0) -> None:
        super().__init__(p)
        if not 0 <= longest <= 1:
            raise UserError(f"Fade: longest must be a share in [0, 1], not {longest}")
        self.longest = longest

    def sample(self, draw: Draw, n: int, shape: Shape) -> Params:
        """`share` (n, 2): of the clip, at its beginning and at its end."""
        return {"share": self.longest * draw.uniform(2)}

    def apply(self, sound: Sound, params: Params) -> Sound:
        wave, length = sound["wave"], sound["length"]
        at = torch.arange(wave.shape[1], device=wave.device)
        swell, die = (params["share"] * length[:, None]).trunc().unbind(1)  # (B,) samples
        volume = ramp(at[None], swell) * ramp(length[:, None] - 1 - at, die)  # (B, T)
        return {"wave": wave * volume, "length": length}


class Reverse(WaveAugment):
    """The clip from its end to its beginning: what is said is lost. To be found harmful by a study, as a 6 made into a
    9 is.
    """

    def sample(self, draw: Draw, n: int, shape: Shape) -> Params:
        return {}

    def apply(self, sound: Sound, params: Params) -> Sound:
        wave, length = sound["wave"], sound["length"]
        source = length[:, None] - 1 - torch.arange(wave.shape[1], device=wave.device)  # (B, T)
        return {"wave": torch.where(source >= 0, wave.gather(1, source.clamp(min=0)), 0), "length": length}


def ramp(at: Tensor, samples: Tensor) -> Tensor:
    """0 at the first of `samples` (B,), 1 at the last of them and from there on: (B, T)."""
    rising = at / (samples[:, None] - 1).clamp(min=1)
    return torch.where(at < samples[:, None], rising, 1).clamp(0, 1)


def between(limits: tuple[float, float], draw: Draw) -> Tensor:
    """Uniform in the limits: (B,)."""
    return limits[0] + (limits[1] - limits[0]) * draw.uniform(1)[:, 0]


def log_between(limits: tuple[float, float], draw: Draw) -> Tensor:
    """The same with a uniform logarithm, as rates have it: (B,)."""
    return torch.exp(between((math.log(limits[0]), math.log(limits[1])), draw))


def inside(length: Tensor, window: int) -> Tensor:
    """Which samples belong to clips of `length` (B,): bool (B, window)."""
    return torch.arange(window, device=length.device) < length[:, None]
