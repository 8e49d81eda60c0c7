"""Rows of a table as an encoder takes them: numbers on one scale and cut into pieces, categories one by one."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from twoview.data.demand import Samples
from twoview.data.preprocess import Preprocess
from twoview.errors import UserError


class TableRows(Preprocess):
    """Rows (B, F) float32, as `twoview.data.table.column.code` makes them, to what the encoder takes, (B, `width`).

    A number becomes its distance from the mean in deviations, 1 if it is missing, and one number for each piece
    between its edges: how far it reaches into that piece, 0 to 1 (piecewise-linear encoding, Gorishniy et al., NeurIPS
    2022, arXiv 2203.05556). A category becomes one number for each value, 1 for its own: so the first layer of an
    encoder is its table of embeddings. A missing category, or one never seen, is all zeros.
    """

    kind = "table"
    mean: Tensor
    std: Tensor

    def __init__(self, columns: Sequence[Mapping[str, Any]]) -> None:
        super().__init__()
        if not columns:
            raise UserError("a table needs at least one column that is neither constant nor an identifier")
        self.columns = [dict(column) for column in columns]
        self.categorical = [("values" in column) for column in self.columns]
        self.width = sum(len(c["values"]) if "values" in c else 2 + max(0, len(c["edges"]) - 1) for c in self.columns)
        scale = [(0.0, 1.0) if "values" in c else (c["mean"], c["std"]) for c in self.columns]
        # Not in the state dict: they are what `describe` tells.
        self.register_buffer("mean", torch.tensor([m for m, _ in scale]), persistent=False)  # (F,)
        self.register_buffer("std", torch.tensor([s for _, s in scale]), persistent=False)  # (F,)
        for i, column in enumerate(self.columns):
            if "edges" in column:
                self.register_buffer(f"edges{i}", torch.tensor(column["edges"]), persistent=False)

    def finish(self, x: Samples) -> Tensor:
        assert isinstance(x, Tensor)
        if x.dim() != 2 or x.shape[1] != len(self.columns):
            raise UserError(f"rows have the shape {tuple(x.shape[1:])}, and the table {len(self.columns)} columns")
        scaled, parts = (x - self.mean) / self.std, []
        for i, column in enumerate(self.columns):
            if "values" in column:
                parts.append(x[:, i, None] == torch.arange(1, len(column["values"]) + 1, device=x.device))  # (B, K)
                continue
            value, missing = x[:, i, None], x[:, i, None].isnan()
            edges = self.get_buffer(f"edges{i}")
            pieces = ((value - edges[:-1]) / (edges[1:] - edges[:-1])).clamp(0, 1)  # (B, pieces)
            parts += [scaled[:, i, None].nan_to_num(0.0), missing, pieces.nan_to_num(0.0)]
        return torch.cat([part.float() for part in parts], dim=1)

    def raw(self, x: Tensor) -> Tensor:
        """What other models take: numbers in deviations from the mean, the mean where missing; categories as above."""
        scaled = ((x - self.mean) / self.std).nan_to_num(0.0)
        return torch.cat(
            [
                (x[:, i, None] == torch.arange(1, len(c["values"]) + 1, device=x.device)).float()
                if "values" in c
                else scaled[:, i, None]
                for i, c in enumerate(self.columns)
            ],
            dim=1,
        )

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"columns": self.columns}
