"""Waves as an encoder takes them: log-mel spectrograms, which are images of one channel."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twoview.data.audio.decode import WHOLE, Clips, Sound
from twoview.data.demand import Samples, take
from twoview.data.preprocess import Preprocess
from twoview.errors import UserError

STATISTICS_SAMPLE = 2000  # clips at most from which mean and deviation are computed
SPECTROGRAM = "image/spectrogram"  # the kind of data: operations on images take it


class Mel(nn.Module):
    """Log-mel spectrograms in [0, 1] of waves (B, T) in [-1, 1]: float32 (B, 1, bands, T / hop), low bands first.

    0 is silence, 1 a sine of full scale, and in between the scale is that of decibels: log(1 + P / f) / log(1 + 1 / f)
    for the power P of a band, f = 10^(`floor` / 10). So a blank picture is silence, and silence stays it under any
    gain. The window is Hann's, `n_fft` samples long, every `hop` samples, with zeros before and behind the wave; bands
    are triangles, `bands` of them spaced evenly on O'Shaughnessy's mel scale, 2595 log10(1 + f / 700), from `low` to
    `high` Hz.
    """

    window: Tensor
    bank: Tensor

    def __init__(
        self,
        rate: int = 16000,
        n_fft: int = 512,
        hop: int = 160,
        bands: int = 64,
        low: float = 60.0,
        high: float = 7800.0,
        floor: float = -80.0,
    ) -> None:
        super().__init__()
        if not 1 <= rate <= 2**20:
            raise UserError(f"data.mel.rate={rate}: samples per second, 1 to {2**20:,}")
        if not (2 <= n_fft <= 2**16 and 1 <= hop <= n_fft and bands >= 1):
            raise UserError(
                f"data.mel: n_fft={n_fft} samples of a window, hop={hop} between windows, bands={bands}: 1 <= hop <= "
                "n_fft, and at least one band"
            )
        if not 0 <= low < high <= rate / 2:
            raise UserError(
                f"data.mel: bands from low={low:g} to high={high:g} Hz, but at {rate} samples per second there is "
                f"nothing above {rate / 2:g} Hz: 0 <= low < high <= {rate / 2:g}"
            )
        if not -200 <= floor < 0:
            raise UserError(f"data.mel.floor={floor:g}: decibels below full scale, in [-200, 0)")
        self.rate, self.n_fft, self.hop, self.bands = rate, n_fft, hop, bands
        self.low, self.high, self.floor = low, high, floor
        self.ceiling = math.log1p(10 ** (-floor / 10))  # of log(1 + P / f)
        window = torch.hann_window(n_fft, dtype=torch.float64)
        # So that a sine of full scale has the power 1 in its bin.
        self.register_buffer("window", (window / (window.sum() / 2)).float(), persistent=False)  # (n_fft,)
        self.register_buffer("bank", filters(rate, n_fft, bands, low, high).float(), persistent=False)
        empty = (self.bank.sum(0) == 0).nonzero().flatten().tolist()
        if empty:
            raise UserError(
                f"data.mel: band {empty[0]} of {bands} is narrower than the {rate / n_fft:.3g} Hz that a window of "
                f"n_fft={n_fft} resolves; take fewer bands or a longer window"
            )

    def frames(self, samples: int) -> int:
        return max(1, -(-samples // self.hop))

    def forward(self, waves: Tensor) -> Tensor:
        before = (self.n_fft - self.hop) // 2
        whole = (self.frames(waves.shape[1]) - 1) * self.hop + self.n_fft
        framed = F.pad(waves, (before, whole - before - waves.shape[1])).unfold(1, self.n_fft, self.hop)
        power = torch.fft.rfft(framed * self.window).abs().square()  # (B, frames, bins)
        return self.scaled(power @ self.bank).transpose(1, 2)[:, None]  # (B, 1, bands, frames)

    def scaled(self, power: Tensor) -> Tensor:
        """Power of a band, 1 for a sine of full scale, to [0, 1]."""
        return torch.log1p(power * 10 ** (-self.floor / 10)) / self.ceiling

    def power(self, x: Tensor) -> Tensor:
        """The other way."""
        return torch.expm1(x * self.ceiling) * 10 ** (self.floor / 10)

    def describe(self) -> dict[str, Any]:
        names = ("rate", "n_fft", "hop", "bands", "low", "high", "floor")
        return {"_target_": f"{type(self).__module__}.{type(self).__qualname__}"} | {n: getattr(self, n) for n in names}


def filters(rate: int, n_fft: int, bands: int, low: float, high: float) -> Tensor:
    """The bank of triangles: float64 (n_fft // 2 + 1, bands), each 1 at its peak."""
    at = torch.linspace(0, rate // 2, n_fft // 2 + 1, dtype=torch.float64)[:, None]  # Hz of a bin
    first, last = (2595 * math.log10(1 + f / 700) for f in (low, high))
    edges = 700 * (10 ** (torch.linspace(first, last, bands + 2, dtype=torch.float64) / 2595) - 1)  # (bands + 2,)
    rising = (at - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - at) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0)


class LogMel(Preprocess):
    """Sounds {"wave": (B, T), "length": (B,)}, int16 or float in [-1, 1], to log-mel spectrograms normalised by the
    `mean` and `std` of each band, (B, 1, bands, frames).

    Operations on waves come first in a policy, `twoview.augment.audio.mel.ToLogMel` behind them, and operations on
    spectrograms and images behind that. Without it the spectrogram is made at the end.
    """

    kind = "wave"
    mean: Tensor
    std: Tensor

    def __init__(self, mel: Mel, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if not len(mean) == len(std) == mel.bands:
            raise UserError(f"mean and std must have one value for each of the {mel.bands} bands")
        if not all(map(math.isfinite, mean)) or not all(0 < s < math.inf for s in std):
            raise UserError(f"mean {list(mean)} and std {list(std)} must be finite, and std positive")
        self.mel = mel
        # Not in the state dict: they are what `describe` tells.
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32), persistent=False)  # (bands,)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32), persistent=False)  # (bands,)

    def prepare(self, samples: Samples) -> Samples:
        if isinstance(samples, Tensor):  # a spectrogram already
            return samples
        wave = samples["wave"]
        if not wave.is_floating_point():
            if wave.dtype != torch.int16:
                raise UserError(f"waves of {str(wave.dtype).removeprefix('torch.')}: give int16, or floats in [-1, 1]")
            wave = wave / WHOLE
        return {"wave": wave.float(), "length": samples["length"]}

    def spectrogram(self, samples: Samples) -> Tensor:
        """Sounds, stored or prepared, as they are before normalisation; what is a spectrogram already, as it is."""
        x = self.prepare(samples)
        made: Tensor = x if isinstance(x, Tensor) else self.mel(x["wave"])
        return made

    def finish(self, x: Samples) -> Tensor:
        return (self.spectrogram(x) - self.mean[:, None]) / self.std[:, None]

    def picture(self, samples: Samples) -> Tensor:
        """Spectrograms to look at, low tones at the bottom: float (B, 1, bands, frames) in [0, 1]."""
        return self.spectrogram(samples).clamp(0, 1).flip(2)

    def describe(self) -> dict[str, Any]:
        return super().describe() | {
            "mel": self.mel.describe(),
            "mean": self.mean.tolist(),
            "std": self.std.tolist(),
        }


def fitted(mel: Mel, clips: Sound | Clips) -> LogMel:
    """The preprocessing whose mean and deviation of each band are those of these clips, over all frames that are not
    silent, of all clips or of a fixed random draw where there are many. The deviation is at least a hundredth.
    """
    n = len(clips) if isinstance(clips, Clips) else len(clips["wave"])
    sample = torch.randperm(n, generator=torch.Generator().manual_seed(0))[:STATISTICS_SAMPLE]
    count, total, squares = 0, torch.zeros(mel.bands, dtype=torch.float64), torch.zeros(mel.bands, dtype=torch.float64)
    for part in sample.split(64):
        some = clips.fetch(part.tolist()) if isinstance(clips, Clips) else take(clips, part)
        assert isinstance(some, dict)
        frames = mel(some["wave"] / WHOLE)[:, 0].transpose(1, 2).flatten(0, 1).double()  # (clips x frames, bands)
        frames = frames[(frames > 0).any(1)]
        count, total, squares = count + len(frames), total + frames.sum(0), squares + frames.square().sum(0)
    mean = total / max(1, count)
    std = (squares / max(1, count) - mean.square()).clamp(min=0).sqrt().clamp(min=0.01)
    return LogMel(mel, mean.tolist(), std.tolist())
