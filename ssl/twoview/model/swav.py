"""SwAV: Caron et al., "Unsupervised learning of visual features by contrasting cluster assignments", NeurIPS 2020.

arXiv 2006.09882. The samples of a batch are divided evenly among prototypes, and each view predicts the prototypes that
were assigned to the others.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twoview.data.batches import Batch
from twoview.errors import UserError
from twoview.losses import sinkhorn, spread, swapped_prediction
from twoview.losses.prototypes import entropy
from twoview.model.base import Begin, Method, Outcome
from twoview.model.part.checks import check_count, check_temperature, check_weight
from twoview.model.part.crops import by_size
from twoview.model.part.head import Projector
from twoview.model.part.memory import Queue
from twoview.model.part.prototypes import Prototypes
from twoview.optim.recipe import Recipe
from twoview.optim.role import Role


class SwAV(Method):
    """Encoder, projector (a callable with the argument `in_dim`) and `prototypes` unit vectors.

    The first two views are assigned to prototypes, all views predict. Assignments come from `iterations` of Sinkhorn's
    algorithm at `epsilon` over the global batch and, from epoch `queue_epoch` on and once it is full, a queue of
    `queue_size` earlier samples, scored anew with the present prototypes (0: no queue). Prototypes do not decay, and
    stay as they are for `frozen_epochs`.
    """

    views_needed = (2, None)

    def __init__(
        self,
        encoder: nn.Module,
        optimizer: Recipe,
        projector: Callable[..., Projector],
        prototypes: int = 512,
        temperature: float = 0.1,
        epsilon: float = 0.05,
        iterations: int = 3,
        queue_size: int = 0,
        queue_epoch: int = 15,
        frozen_epochs: int = 1,
    ) -> None:
        super().__init__(encoder, optimizer)
        check_count(iterations, "iterations", most=100)
        if prototypes < 2 or queue_size < 0:
            raise UserError(
                f"model.prototypes must be at least 2 and model.queue_size 0, not {prototypes} and {queue_size}"
            )
        self.projector = projector(in_dim=encoder.dim)
        self.prototypes = Prototypes(self.projector.out_dim, prototypes)
        self.temperature, self.epsilon = check_temperature(temperature), check_temperature(epsilon, "epsilon")
        check_weight(frozen_epochs, "frozen_epochs")
        self.iterations, self.frozen_epochs, self.queue_epoch = iterations, frozen_epochs, queue_epoch
        self.queue = (
            Queue(queue_size, 2 * self.projector.out_dim) if queue_size else None
        )  # of both views, side by side
        self._full = False

    def heads(self) -> dict[str, nn.Module]:
        return {"projector": self.projector}

    def roles(self) -> Sequence[Role]:
        return [Role([self.prototypes.weight], decay=False, frozen_epochs=self.frozen_epochs)]

    def begin(self, run: Begin) -> None:
        super().begin(run)
        pool, count = (
            (run.last_batch or run.global_batch_size) + (0 if self.queue is None else len(self.queue)),
            len(self.prototypes.weight),
        )
        if pool < count:
            raise UserError(
                f"model.prototypes={count} are more than the {pool} samples of batch and queue can fill: most would "
                f"stay empty; fewer prototypes, or model.queue_size={count - run.global_batch_size} at least"
            )

    def step(self, batch: Batch) -> Outcome:
        self.prototypes.normalise()
        z = by_size(lambda views: self.projector(self.through(self.encoder, views)), batch.views)  # V (B, P)
        z = [self.gather(view) for view in z]  # V (N, P)
        scores = [self.prototypes(view) for view in z]  # V (N, K) cosines
        targets = [self.assigned(scores[view], view) for view in range(2)]  # 2 (N, K)
        loss = swapped_prediction(targets, scores, self.temperature)
        if self.queue is not None and self.current_epoch >= self.queue_epoch:
            both = torch.cat([F.normalize(view.detach().float(), dim=1) for view in z[:2]], dim=1)  # (N, 2P)
            self.queue.add(both, self.gather(batch.index))
        return Outcome(loss, {"target_entropy": entropy(torch.cat(targets)), "spread": spread(z[0])})

    @torch.no_grad()
    def assigned(self, scores: Tensor, view: int) -> Tensor:
        """(N, K) the prototypes of a global view's samples, as probabilities."""
        pool = scores.detach()
        if self.queue is not None and self.full(self.queue):
            earlier = self.queue.rows.chunk(2, dim=1)[view]  # (Q, P)
            pool = torch.cat([pool, self.prototypes(earlier)])
        return sinkhorn(pool, self.epsilon, self.iterations)[: len(scores)]

    def full(self, queue: Queue) -> bool:
        """Asks the device only until it is."""
        self._full = self._full or int(queue.count) >= len(queue)
        return self._full
