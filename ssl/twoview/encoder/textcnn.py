"""A convolution over the words of a text."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from twoview.encoder.bag import checked
from twoview.encoder.weights import start_from
from twoview.errors import UserError


class TextCNN(nn.Module):
    """Filters over runs of neighbouring words, of each the largest and the mean value over the text (Kim, EMNLP 2014,
    arXiv 1408.5882, has the largest): texts (B, 3, L) -> h (B, 2 x filters x number of `runs`).

    `words`: numbers that there are (`data.words`); `width`: of an embedding; `runs`: how many words a filter sees;
    `filters`: of each. Padding is never in a value: texts are as if they ended. `weights`: what to start from.
    """

    def __init__(
        self,
        words: int = 4096,
        width: int = 128,
        filters: int = 128,
        runs: Sequence[int] = (1, 2, 3),
        weights: str = "random",
    ) -> None:
        super().__init__()
        if words < 1 or width < 1 or filters < 1 or not runs or min(runs) < 1:
            raise UserError("encoder textcnn needs words, width, filters and runs of at least 1")
        self.words, self.runs, self.dim = words, list(runs), 2 * filters * len(runs)
        self.table = nn.Embedding(words, width)
        self.filters = nn.ModuleList(nn.Conv1d(width, filters, run) for run in runs)
        start_from(self, weights)

    def forward(self, x: Tensor) -> Tensor:
        ids, weight = checked(x, self.words)
        there = (ids != 0)[:, None]  # (B, 1, L)
        values = (self.table(ids) * (weight > 0)[..., None]).transpose(1, 2)  # (B, width, L)
        parts = []
        for run, convolution in zip(self.runs, self.filters, strict=True):
            y = convolution(pad(values, (0, run - 1))).relu()  # (B, filters, L)
            y = y * there
            parts += [y.amax(2), y.sum(2) / there.sum(2)]
        return torch.cat(parts, dim=1)
