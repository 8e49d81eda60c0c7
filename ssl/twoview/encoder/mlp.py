"""A multi-layer perceptron, for rows of tables."""

from collections.abc import Sequence

from torch import Tensor, nn

from twoview.encoder.weights import start_from
from twoview.errors import UserError


class MLP(nn.Module):
    """Linear layers with batch normalisation and ReLU: (B, `inputs`) -> h (B, `widths[-1]`).

    Its first layer is the table of embeddings of all categories, which come as zeros and a one
    (`twoview.data.table.rows`). `weights`: what to start from (`twoview.encoder.weights`).
    """

    def __init__(self, inputs: int, widths: Sequence[int] = (256, 256, 256), weights: str = "random") -> None:
        super().__init__()
        if inputs < 1 or not widths or min(widths) < 1:
            raise UserError(f"encoder mlp needs inputs and widths of at least 1, not {inputs} and {list(widths)}")
        self.inputs, self.dim = inputs, widths[-1]
        layers: list[nn.Module] = []
        for before, width in zip([inputs, *widths], widths, strict=False):
            layers += [nn.Linear(before, width, bias=False), nn.BatchNorm1d(width), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        start_from(self, weights)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 2 or x.shape[1] != self.inputs:
            wide = f"{x.shape[1]} numbers: set encoder.inputs={x.shape[1]}" if x.dim() == 2 else "no vectors"
            raise UserError(f"encoder mlp is for {self.inputs} numbers a row (encoder.inputs), and these have {wide}")
        h: Tensor = self.layers(x)
        return h
