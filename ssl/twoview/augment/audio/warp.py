"""A spectrogram stretched along both axes."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from twoview.augment.operation import BatchAugment, Params, check_range
from twoview.data.audio.mel import SPECTROGRAM
from twoview.errors import UserError
from twoview.rng import Draw


class Warp(BatchAugment):
    """A piece of a canvas of silence, in whose middle the spectrogram lies, enlarged or reduced to the size of that:
    BYOL-A's random resize crop (Niizumi et al., IJCNN 2021, arXiv 2103.06695), as one affine map per clip.

    `frequency`, `time`: ranges of the piece's height and width, as shares of the spectrogram's, uniform: 0.8 makes the
    voice higher or the clip slower. `canvas`: height and width of the canvas, likewise; no piece is larger. The piece
    lies anywhere on the canvas. Bilinear.
    """

    kind = SPECTROGRAM

    def __init__(
        self,
        frequency: Sequence[float] = (0.6, 1.5),
        time: Sequence[float] = (0.6, 1.5),
        canvas: Sequence[float] = (1.0, 1.5),
        p: float = 1.0,
    ) -> None:
        super().__init__(p)
        self.frequency = check_range("Warp: frequency", frequency, 0.01, 100.0)
        self.time = check_range("Warp: time", time, 0.01, 100.0)
        if len(canvas) != 2 or not all(1 <= side <= 100 for side in canvas):
            raise UserError(f"Warp: canvas must be two numbers within [1, 100], not {list(canvas)}")
        self.canvas = float(canvas[0]), float(canvas[1])

    def sample(self, draw: Draw, n: int, shape: tuple[int, ...]) -> Params:
        """`piece` (n, 4): top, left, height, width, in bands and frames of the spectrogram, parts of it perhaps
        outside.
        """
        u = draw.uniform(4)
        starts, sizes = [], []
        for i, ((low, high), side, most) in enumerate(
            zip((self.frequency, self.time), shape[-2:], self.canvas, strict=True)
        ):
            canvas = int(side * most)
            size = (side * (low + (high - low) * u[:, i])).clamp(1, canvas)  # (n,)
            starts.append(u[:, 2 + i] * (canvas - size) - (canvas - side) // 2)
            sizes.append(size)
        return {"piece": torch.stack([*starts, *sizes], dim=1)}

    def apply(self, x: Tensor, params: Params) -> Tensor:
        top, left, height, width = params["piece"].unbind(1)
        axes = []
        for start, size, side in ((left, width, x.shape[3]), (top, height, x.shape[2])):
            step = (size - 1) / max(1, side - 1)  # between neighbours of the output, in pixels of the input
            at = start[:, None] + torch.arange(side, device=x.device) * step[:, None]  # (B, side)
            axes.append(at * (2 / max(1, side - 1)) - 1)
        across, down = axes
        grid = torch.stack(
            torch.broadcast_tensors(across[:, None, :], down[:, :, None]), dim=3
        )  # (B, bands, frames, 2)
        return F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
