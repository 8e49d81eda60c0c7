"""The projection head g: from the representation h to the space of the loss."""

from itertools import pairwise
from typing import Literal

from torch import nn

from twoview.errors import UserError


class Projector(nn.Sequential):
    """An MLP of `layers` linear layers, h (B, `in_dim`) -> z (B, `out_dim`), with ReLU between them (SimCLR, section
    4.2).

    `hidden_dim=None` keeps the width of h. `norm="batch"` normalises after each layer but the last, `"batch_all"`
    after the last too (as SimCLR's TensorFlow code does), where linear layers lose their bias. `affine_last=False`
    takes scale and shift from the last of these norms, `bias_last=False` the bias from the last linear layer (both MoCo
    v3, whose `_build_mlp` has no biases at all; the latter BYOL too). `layers=1` is the linear head of MoCo v1.
    """

    out_dim: int

    def __init__(
        self,
        in_dim: int,
        out_dim: int = 128,
        hidden_dim: int | None = None,
        layers: int = 2,
        norm: Literal["none", "batch", "batch_all"] = "none",
        affine_last: bool = True,
        bias_last: bool = True,
    ) -> None:
        if layers < 1 or out_dim < 1 or (hidden_dim is not None and hidden_dim < 1):
            raise UserError(
                f"projector: layers, out_dim and hidden_dim must be at least 1, not {layers}, {out_dim}, {hidden_dim}"
            )
        if norm not in ("none", "batch", "batch_all"):
            raise UserError(f"projector: norm must be none, batch or batch_all, not {norm}")
        widths = [in_dim, *[hidden_dim or in_dim] * (layers - 1), out_dim]
        modules: list[nn.Module] = []
        for i, (a, b) in enumerate(pairwise(widths)):
            last = i == layers - 1
            normalised = norm == "batch_all" or (norm == "batch" and not last)
            modules.append(nn.Linear(a, b, bias=not normalised and (bias_last or not last)))
            if normalised:
                modules.append(nn.BatchNorm1d(b, affine=affine_last or not last))
            if not last:
                modules.append(nn.ReLU(inplace=True))
        super().__init__(*modules)
        self.out_dim = out_dim
