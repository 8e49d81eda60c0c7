"""From waves to log-mel spectrograms within a policy, and what is done to them as sounds."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from twoview.augment.audio.waves import between
from twoview.augment.operation import BatchAugment, Params, check_range
from twoview.data.audio.decode import Sound
from twoview.data.audio.mel import SPECTROGRAM, LogMel
from twoview.data.demand import Shape, moved, tensors
from twoview.data.set import SampleSet
from twoview.errors import UserError
from twoview.rng import Draw


class MelAugment(BatchAugment):
    """An operation that knows the scale of the training set's spectrograms: float (B, 1, bands, frames) in [0, 1]."""

    kind = SPECTROGRAM

    def attach(self, train: SampleSet) -> None:
        if not isinstance(train.preprocess, LogMel):
            raise UserError(f"{type(self).__name__} works on spectrograms of sounds, and {train.name} holds none")
        device = None if not train.in_memory else tensors(train.samples)[0].device  # type: ignore[arg-type]
        self._preprocess = copy.deepcopy(train.preprocess).to(device)

    @property
    def preprocess(self) -> LogMel:
        found: LogMel | None = getattr(self, "_preprocess", None)
        if found is None:
            raise UserError(f"{type(self).__name__} knows no scale yet: attach the training set first")
        return found


class ToLogMel(MelAugment):
    """Makes the spectrogram: before it a policy has operations on waves, behind it those on spectrograms and images."""

    kind = "wave"
    makes = SPECTROGRAM

    def __init__(self) -> None:
        super().__init__(p=1.0)

    def sample(self, draw: Draw, n: int, shape: Shape) -> Params:
        return {}

    def apply(self, sound: Sound, params: Params) -> Tensor:
        return self.preprocess.spectrogram(sound)


class Tilt(MelAugment):
    """Another microphone: a gain that rises or falls evenly from the lowest band to the highest.

    `decibels`: range of the gain of the highest band, uniform; the lowest gets its opposite, the middle none.
    """

    def __init__(self, decibels: Sequence[float] = (-6.0, 6.0), p: float = 1.0) -> None:
        super().__init__(p)
        self.decibels = check_range("Tilt: decibels", decibels, -120.0, 120.0)

    def sample(self, draw: Draw, n: int, shape: Shape) -> Params:
        """`decibels` (n,)."""
        return {"decibels": between(self.decibels, draw)}

    def apply(self, x: Tensor, params: Params) -> Tensor:
        mel = self.preprocess.mel
        slope = torch.linspace(-1, 1, x.shape[2], device=x.device)[:, None]  # (bands, 1)
        return mel.scaled(mel.power(x) * 10 ** (params["decibels"].view(-1, 1, 1, 1) * slope / 10))


class LogMixup(MelAugment):
    """Another sound in the background: powers are mixed, in the proportion 1 - s to s (BYOL-A's log-mixup-exp, Niizumi
    et al., IJCNN 2021, arXiv 2103.06695, whose bank of earlier samples is here the whole training set).

    `share`: range of s, uniform.
    """

    def __init__(self, share: Sequence[float] = (0.0, 0.4), p: float = 1.0) -> None:
        super().__init__(p)
        self.share = check_range("LogMixup: share", share, 0.0, 1.0)

    def attach(self, train: SampleSet) -> None:
        super().attach(train)
        self._train = train

    def sample(self, draw: Draw, n: int, shape: Shape) -> Params:
        """`other` (n,) int64: its sample number in the training set; `share` (n,): of the other."""
        _ = self.preprocess  # says what is missing
        other = (draw.of(f"{draw.stream}/other").uniform64(1)[:, 0] * len(self._train)).long()
        return {"other": other, "share": between(self.share, draw)}

    def apply(self, x: Tensor, params: Params) -> Tensor:
        mel = self.preprocess.mel
        other = self.preprocess.spectrogram(moved(self._train.fetch(params["other"]), x.device))
        if other.shape != x.shape:
            raise UserError(
                f"LogMixup mixes whole spectrograms of {tuple(other.shape[2:])}, and an operation before it left "
                f"{tuple(x.shape[2:])}: put it right behind ToLogMel"
            )
        return mel.scaled(torch.lerp(mel.power(x), mel.power(other), params["share"].view(-1, 1, 1, 1)))
