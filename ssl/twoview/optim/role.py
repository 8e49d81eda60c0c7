"""Parts of a method that are optimized otherwise than the rest."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from twoview.errors import UserError


@dataclass(frozen=True)
class Role:
    """`parameters` that the method wants to be optimized in a way of their own, whatever the optimizer.

    `lr`: their rate in units of the recipe's. `constant`: they keep it, without warm-up and cosine (SimSiam's
    predictor). `decay` False: no weight decay (prototypes). `frozen_epochs`: they stay as they are for so many epochs
    (DINO's last layer); the method drops their gradients before the step, see `Method.on_before_optimizer_step`.
    """

    parameters: Sequence[Tensor]
    lr: float = 1.0
    constant: bool = False
    decay: bool = True
    frozen_epochs: int = 0

    def __post_init__(self) -> None:
        if self.lr < 0 or self.frozen_epochs < 0:
            raise UserError(
                f"rates of the method's own and model.frozen_epochs cannot be negative, not {self.lr} and "
                f"{self.frozen_epochs}"
            )
