"""Bands and moments of a spectrogram taken away (SpecAugment, Park et al., Interspeech 2019, arXiv 1904.08779)."""

import torch
from torch import Tensor

from twoview.augment.operation import BatchAugment, Params
from twoview.data.audio.mel import SPECTROGRAM
from twoview.errors import UserError
from twoview.rng import Draw


class _Mask(BatchAugment):
    """`count` masks, each of a width w uniform in [0, `width`) and a start uniform in [0, size - w), rounded down as
    torchaudio's `mask_along_axis_iid` does. What is masked becomes the mean of the clip; silent frames stay silent.
    """

    kind = SPECTROGRAM
    axis: int  # of (B, 1, bands, frames)

    def __init__(self, width: int, count: int, p: float) -> None:
        super().__init__(p)
        if width < 0 or count < 0:
            raise UserError(f"{type(self).__name__}: width={width} and count={count} must not be negative")
        self.width, self.count = width, count

    def widest(self, size: int) -> int:
        return min(self.width, size)

    def sample(self, draw: Draw, n: int, shape: tuple[int, ...]) -> Params:
        """`start` and `end` (n, count) int64, the end not included."""
        size = shape[self.axis - 1]
        u = draw.uniform(2 * self.count)
        wide = u[:, : self.count] * self.widest(size)
        start = (u[:, self.count :] * (size - wide)).long()
        return {"start": start, "end": start + wide.long()}

    def apply(self, x: Tensor, params: Params) -> Tensor:
        at = torch.arange(x.shape[self.axis], device=x.device)
        hit = ((at >= params["start"][..., None]) & (at < params["end"][..., None])).any(1)  # (B, size)
        hit = hit[:, None, :, None] if self.axis == 2 else hit[:, None, None, :]
        heard = (x > 0).any(2, keepdim=True)  # (B, 1, 1, frames)
        total = (heard.sum((1, 2, 3), keepdim=True) * x.shape[2]).clamp(min=1)
        return torch.where(hit & heard, x.sum((1, 2, 3), keepdim=True) / total, x)


class FrequencyMask(_Mask):
    """Masks of up to `width` bands of a spectrogram (B, 1, bands, frames)."""

    axis = 2

    def __init__(self, width: int = 8, count: int = 1, p: float = 1.0) -> None:
        super().__init__(width, count, p)


class TimeMask(_Mask):
    """Masks of up to `width` frames of a spectrogram (B, 1, bands, frames), and no more than a `share` of them all."""

    axis = 3

    def __init__(self, width: int = 8, count: int = 1, share: float = 1.0, p: float = 1.0) -> None:
        super().__init__(width, count, p)
        if not 0 <= share <= 1:
            raise UserError(f"TimeMask: share must lie in [0, 1], not {share}")
        self.share = share

    def widest(self, size: int) -> int:
        return min(self.width, int(self.share * size))
