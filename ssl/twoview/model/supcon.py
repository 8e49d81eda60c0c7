"""SupCon: Khosla et al., "Supervised contrastive learning", NeurIPS 2020.

arXiv 2004.11362. SimCLR in which all views of a class are positives. It reads labels: this is not self-supervised
learning. A sample without a label (-1) has its own views as positives, as in SimCLR.
"""

import logging
import math
from collections.abc import Callable

import torch
from torch import nn

from twoview.data.batches import Batch
from twoview.losses import sup_con
from twoview.model.base import Begin, Method, Outcome
from twoview.model.part.checks import check_temperature
from twoview.model.part.head import Projector
from twoview.optim.recipe import Recipe

log = logging.getLogger(__name__)


class SupCon(Method):
    """Encoder, projector (a callable with the argument `in_dim`) and the loss of two views or more at `temperature`."""

    views_needed = (2, None)
    reads_labels = True

    def __init__(
        self, encoder: nn.Module, optimizer: Recipe, projector: Callable[..., Projector], temperature: float = 0.1
    ) -> None:
        super().__init__(encoder, optimizer)
        self.projector = projector(in_dim=encoder.dim)
        self.temperature = check_temperature(temperature)

    def heads(self) -> dict[str, nn.Module]:
        return {"projector": self.projector}

    def begin(self, run: Begin) -> None:
        super().begin(run)
        log.info("SupCon reads the labels of the training set: this is not self-supervised learning")

    def step(self, batch: Batch) -> Outcome:
        z = self.projector(self.through(self.encoder, torch.cat(batch.views)))  # (VB, P) shared batch statistics
        views = [self.gather(view) for view in z.chunk(len(batch.views))]  # V (N, P)
        label = self.gather(batch.label)  # (N,)
        loss, accuracy = sup_con(views, label, self.temperature)
        chance = loss.new_full((), math.log(len(views) * len(label) - 1))
        return Outcome(loss, {"accuracy": accuracy}, chance)
