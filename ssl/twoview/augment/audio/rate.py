"""Waves faster or slower, higher or lower, with a rate per clip."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from twoview.augment.audio.waves import WaveAugment, between, inside, log_between
from twoview.augment.operation import Params, check_range
from twoview.data.audio.decode import Sound
from twoview.data.audio.resample import resample
from twoview.data.demand import Shape
from twoview.errors import UserError
from twoview.rng import Draw


class Resample(WaveAugment):
    """Faster and higher, or slower and lower, as a tape that runs at another speed.

    `rate`: range of the speed, log-uniform; 2 is an octave higher and half as long. What becomes longer than the window
    loses its end.
    """

    def __init__(self, rate: Sequence[float] = (0.85, 1.15), p: float = 1.0) -> None:
        super().__init__(p)
        self.rate = check_range("Resample: rate", rate, 0.1, 10.0)

    def sample(self, draw: Draw, n: int, shape: Shape) -> Params:
        """`rate` (n,)."""
        return {"rate": log_between(self.rate, draw)}

    def apply(self, sound: Sound, params: Params) -> Sound:
        wave = sound["wave"]
        played = resample(wave, params["rate"], wave.shape[1], self.rate[1])
        return _cut(played, sound["length"] / params["rate"])


class TimeStretch(WaveAugment):
    """Faster or slower at the same pitch, by a phase vocoder (Flanagan & Golden, "Phase vocoder", Bell System Technical
    Journal 1966; torchaudio's `phase_vocoder`, with a rate for each row).

    `rate`: range of the speed, log-uniform. `n_fft`: samples of its windows, four of which overlap. What becomes longer
    than the window loses its end.
    """

    def __init__(self, rate: Sequence[float] = (0.8, 1.25), n_fft: int = 512, p: float = 0.5) -> None:
        super().__init__(p)
        self.rate = check_range("TimeStretch: rate", rate, 0.1, 10.0)
        self.n_fft = check_window("TimeStretch", n_fft)

    def sample(self, draw: Draw, n: int, shape: Shape) -> Params:
        """`rate` (n,)."""
        return {"rate": log_between(self.rate, draw)}

    def apply(self, sound: Sound, params: Params) -> Sound:
        wave = sound["wave"]
        stretched = stretch(wave, params["rate"], wave.shape[1], self.n_fft)
        return _cut(stretched, sound["length"] / params["rate"])


class PitchShift(WaveAugment):
    """Higher or lower in the same time: stretched, and played faster by as much.

    `semitones`: range, uniform. Formants move along, as in a voice of another size. `n_fft` as in `TimeStretch`.
    """

    def __init__(self, semitones: Sequence[float] = (-3.0, 3.0), n_fft: int = 512, p: float = 0.5) -> None:
        super().__init__(p)
        self.semitones = check_range("PitchShift: semitones", semitones, -36.0, 36.0)
        self.n_fft = check_window("PitchShift", n_fft)

    def sample(self, draw: Draw, n: int, shape: Shape) -> Params:
        """`semitones` (n,)."""
        return {"semitones": between(self.semitones, draw)}

    def apply(self, sound: Sound, params: Params) -> Sound:
        wave, length = sound["wave"], sound["length"]
        rate = 2 ** (params["semitones"] / 12)  # (B,)
        highest = 2 ** (self.semitones[1] / 12)
        longer = stretch(wave, 1 / rate, math.ceil(wave.shape[1] * max(1.0, highest)), self.n_fft)
        return _cut(resample(longer, rate, wave.shape[1], highest), length)


def stretch(waves: Tensor, rate: Tensor, length: int, n_fft: int) -> Tensor:
    """Waves (B, T) played at `rate` (B,) without a change of pitch: (B, length), silence beyond the end."""
    hop = n_fft // 4
    window = torch.hann_window(n_fft, device=waves.device)
    waves = F.pad(waves, (0, -waves.shape[1] % hop))  # whole frames
    spectrum = torch.stft(waves, n_fft, hop, window=window, center=True, pad_mode="constant", return_complex=True)
    spoken = vocode(spectrum, rate, -(-length // hop) + 1, hop)  # (B, bins, frames)
    return torch.istft(spoken, n_fft, hop, window=window, center=True, length=length)


def vocode(spectrum: Tensor, rate: Tensor, frames: int, hop: int) -> Tensor:
    """A short-time spectrum, complex (B, bins, n), read at `rate` (B,) frames per frame: (B, bins, frames).

    Magnitudes are interpolated between neighbours; phases go on by what they advance from one neighbour to the next.
    """
    B, bins, n = spectrum.shape
    turn = 2 * math.pi
    # Of a bin's own frequency from frame to frame. Whole turns are left out: sums of phases stay small.
    advance = (torch.arange(bins, device=spectrum.device) * (turn / 2 * hop / (bins - 1))).remainder(turn)[:, None]
    place = torch.arange(frames, device=spectrum.device) * rate[:, None]  # (B, frames)
    below = place.long()
    padded = F.pad(spectrum, (0, 2))
    first, second = (
        padded.gather(2, (below + later).clamp(max=n + 1)[:, None].expand(B, bins, frames)) for later in (0, 1)
    )
    turned = second.angle() - first.angle() - advance
    turned = turned - turn * torch.round(turned / turn) + advance
    phase = torch.cat([first[..., :1].angle(), turned[..., :-1]], dim=2).cumsum(2)
    share = (place - below)[:, None]
    return torch.polar(torch.lerp(first.abs(), second.abs(), share), phase)


def check_window(name: str, n_fft: int) -> int:
    if not 16 <= n_fft <= 2**16 or n_fft % 4:
        raise UserError(f"{name}: n_fft={n_fft} samples of a window: 16 to {2**16}, a multiple of 4")
    return n_fft


def _cut(waves: Tensor, length: Tensor) -> Sound:
    """Waves (B, T) as sounds of `length` (B,), rounded, with silence behind."""
    length = length.round().long().clamp(1, waves.shape[1])
    return {"wave": torch.where(inside(length, waves.shape[1]), waves, 0), "length": length}
