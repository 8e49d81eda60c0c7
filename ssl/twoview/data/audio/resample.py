"""Waves at another rate, by band-limited interpolation (Smith & Gossett, "A flexible sampling-rate conversion method",
ICASSP 1984), with the window and the constants of torchaudio's `resample`.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

WIDTH = 6  # zero crossings of the sinc on either side
ROLLOFF = 0.99  # where the low-pass ends, as a share of the lower of the two Nyquist frequencies
_AT_ONCE = 2**18  # numbers of the output that are made together


def resample(waves: Tensor, rate: Tensor, length: int, highest: float) -> Tensor:
    """Waves (B, T) read at `rate` (B,) samples per sample of the output: float32 (B, length), silence beyond the end.

    A rate of 2 is an octave higher and half as long. What would be above the new Nyquist frequency is filtered out.
    `highest`: the largest rate that can occur, which decides how many neighbours are looked at.
    """
    reach = math.ceil(WIDTH * max(1.0, highest) / ROLLOFF)
    padded = F.pad(waves.float(), (reach, reach))
    rate = rate.double()[:, None]
    cutoff = (ROLLOFF * (1 / rate).clamp(max=1)).float()  # (B, 1), as a share of the Nyquist frequency of the input
    parts = []
    for start in range(0, length, size := max(1, _AT_ONCE // max(1, len(waves)))):
        place = torch.arange(start, min(length, start + size), device=waves.device) * rate  # (B, n) float64
        whole = place.floor()
        fraction, first = (place - whole).float(), whole.long()
        part = torch.zeros_like(fraction)
        for tap in range(1 - reach, reach + 1):
            # Beyond the end every neighbour is one of the zeros there.
            neighbour = padded.gather(1, (first + (tap + reach)).clamp(max=padded.shape[1] - 1))
            t = (tap - fraction) * cutoff
            window = torch.cos(t.clamp(-WIDTH, WIDTH) * (math.pi / (2 * WIDTH))).square()
            part = part + neighbour * torch.sinc(t) * window
        parts.append(part * cutoff)
    return torch.cat(parts, dim=1)
