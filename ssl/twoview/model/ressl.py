"""ReSSL: Zheng et al., "ReSSL: Relational self-supervised learning with weak augmentation", NeurIPS 2021.

arXiv 2107.09282. A strongly augmented view is to have the similarities to earlier samples that a slow teacher sees in a
weakly augmented one. One backward pass for two views makes it four encoder passes, the cheapest of all.
"""

from collections.abc import Callable

import torch
from torch import nn

from twoview.data.batches import Batch
from twoview.losses import relational, spread
from twoview.model.base import Method, Outcome
from twoview.model.part.checks import check_sharper, check_temperature
from twoview.model.part.head import Projector
from twoview.model.part.memory import Queue
from twoview.model.part.momentum import Momentum, follow, frozen_copy
from twoview.optim.recipe import Recipe


class ReSSL(Method):
    """Encoder and projector, a teacher that follows both with `momentum`, and a queue of `queue_size` of its outputs,
    random directions at first.

    The first view is the strong one, the student's; the second the weak one, the teacher's. The teacher's temperature
    has to be the lower one. `momentum_end`: the momentum at the end of the run, by half a cosine; None: constant.
    """

    teacher: nn.Module

    def __init__(
        self,
        encoder: nn.Module,
        optimizer: Recipe,
        projector: Callable[..., Projector],
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        queue_size: int = 4096,
        momentum: float = 0.99,
        momentum_end: float | None = None,
    ) -> None:
        super().__init__(encoder, optimizer)
        self.student_temperature = check_temperature(student_temperature, "student_temperature")
        self.teacher_temperature = check_temperature(teacher_temperature, "teacher_temperature")
        check_sharper(teacher_temperature, student_temperature)
        self.momentum = Momentum(momentum, momentum_end)
        self.projector = projector(in_dim=encoder.dim)
        self.teacher, self.teacher_projector = frozen_copy(self.encoder), frozen_copy(self.projector)
        self.queue = Queue(queue_size, self.projector.out_dim, random=True)

    def heads(self) -> dict[str, nn.Module]:
        return {"projector": self.projector}

    def step(self, batch: Batch) -> Outcome:
        momentum = self.momentum.at(self.progress)
        follow(self.teacher, self.encoder, momentum)  # before the passes, as in the source
        follow(self.teacher_projector, self.projector, momentum)
        strong, weak = batch.views
        student = self.gather(self.projector(self.through(self.encoder, strong)))  # (N, P)
        with torch.no_grad():
            teacher = self.gather(self.teacher_projector(self.through(self.teacher, weak)))  # (N, P)
        temperatures = self.student_temperature, self.teacher_temperature
        loss, entropy = relational(student, teacher, self.queue.rows.clone(), *temperatures)
        self.queue.add(teacher, self.gather(batch.index))  # after: no sample is among its own candidates
        return Outcome(loss, {"teacher_entropy": entropy, "spread": spread(student)})
