"""MoCo v3: Chen, Xie & He, "An empirical study of training self-supervised vision transformers", ICCV 2021.

arXiv 2104.02057. No queue: the negatives are the other keys of the batch, and a predictor turns queries towards keys.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twoview.data.batches import Batch
from twoview.errors import UserError
from twoview.losses import info_nce_contrast
from twoview.model.base import Method, Outcome, check_chunk
from twoview.model.part.head import Projector
from twoview.model.part.momentum import Momentum, follow, frozen_copy
from twoview.optim.recipe import Recipe


class MoCoV3(Method):
    """Encoder, projector and predictor, whose queries look for the keys of a copy of encoder and projector that
    follows with `momentum` (the `teacher`).

    The loss is the sum over both directions, times 2 `temperature` (the paper's algorithm 1): its chance level is 4 t
    log B. `momentum_end` is the momentum at the end of the run, reached by half a cosine; `None` keeps it constant.
    `projector` and `predictor` make heads from the width of what they get: callables with the argument `in_dim`.
    `chunk`: rows of the similarity matrix held at once, `None` all.
    """

    reads_share = True
    teacher: nn.Module

    def __init__(
        self,
        encoder: nn.Module,
        optimizer: Recipe,
        projector: Callable[..., Projector],
        predictor: Callable[..., Projector],
        temperature: float = 0.2,
        momentum: float = 0.99,
        momentum_end: float | None = 1.0,
        chunk: int | None = None,
    ) -> None:
        super().__init__(encoder, optimizer)
        if not 0 < temperature < math.inf:
            raise UserError(f"model.temperature must be positive, not {temperature}")
        self.projector = projector(in_dim=encoder.dim)
        self.predictor = predictor(in_dim=self.projector.out_dim)
        if self.predictor.out_dim != self.projector.out_dim:
            raise UserError(
                f"model.predictor.out_dim={self.predictor.out_dim} and model.projector.out_dim="
                f"{self.projector.out_dim} must be equal: queries are compared with keys"
            )
        self.teacher, self.teacher_projector = frozen_copy(self.encoder), frozen_copy(self.projector)
        self.temperature = temperature
        self.momentum = Momentum(momentum, momentum_end)
        self.chunk = check_chunk(chunk)

    def step(self, batch: Batch) -> Outcome:
        momentum = self.momentum.at(self.progress)
        follow(self.teacher, self.encoder, momentum)  # before the keys of this step, as in the authors' code
        follow(self.teacher_projector, self.projector, momentum)
        share = None if batch.share is None else self.gather(batch.share)  # (B,)
        halves = []

        def own(rows: slice) -> Tensor:
            """A query's own key; that of a mixture's neighbour too, which is a candidate of its own right."""
            number = torch.arange(len(query), device=query.device)  # (B,)
            if share is not None:
                number = number // 2
            return number[rows, None] == number  # (rows, B)

        v1, v2 = batch.views
        for view, other in ((v1, v2), (v2, v1)):
            query = self.gather(self.predictor(self.projector(self.through(self.encoder, view))))  # (B, P)
            key = self.keys(other)  # (B, P)
            halves.append(
                info_nce_contrast(query, key, key, self.temperature, excluded=own, share=share, chunk=self.chunk)
            )
        loss = 2 * self.temperature * (halves[0].loss + halves[1].loss)
        accuracy = (halves[0].accuracy + halves[1].accuracy) / 2
        return Outcome(loss, {"accuracy": accuracy}, loss.new_full((), self._chance(len(query))))

    @torch.no_grad()
    def keys(self, view: Tensor) -> Tensor:
        """Keys of the global batch (B, P), of length 1."""
        z = self.teacher_projector(self.through(self.teacher, view))
        return self.gather(F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=1))

    def heads(self) -> dict[str, nn.Module]:
        return {"projector": self.projector, "predictor": self.predictor}

    def outlook(self) -> str:
        return f"loss at chance level {self._chance(self.run.global_batch_size):.3f}"

    def _chance(self, candidates: int) -> float:
        return 4 * self.temperature * math.log(candidates)
