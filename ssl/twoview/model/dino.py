"""DINO: Caron et al., "Emerging properties in self-supervised vision transformers", ICCV 2021.

arXiv 2104.14294. A student predicts, from all views, the distribution over prototypes that its slow teacher sees in the
global views. Centring the teacher's outputs keeps one prototype from taking all, a low temperature keeps them unequal.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from twoview.data.batches import Batch
from twoview.losses import centred_softmax, spread, swapped_prediction
from twoview.losses.prototypes import entropy
from twoview.model.base import Method, Outcome
from twoview.model.part.checks import check_sharper, check_temperature, check_weight
from twoview.model.part.crops import by_size
from twoview.model.part.head import Projector
from twoview.model.part.momentum import Momentum, follow, frozen_copy
from twoview.model.part.prototypes import Prototypes
from twoview.optim.recipe import Recipe
from twoview.optim.role import Role
from twoview.parallel import devices


class DINO(Method):
    """Encoder, projector (a callable with the argument `in_dim`) and `prototypes` unit vectors, and a teacher of all
    three that follows after each step with `momentum`, which rises to `momentum_end` by half a cosine.

    The teacher sees the first two views. Its temperature rises from `warmup_temperature` to `teacher_temperature` in
    `warmup_epochs`; above 0.07 the source finds it unstable. Prototypes stay as they are for `frozen_epochs`.
    `weight_decay_end`: the weight decay goes there by half a cosine; None: it stays.
    """

    views_needed = (2, None)
    centre: Tensor

    teacher: nn.Module

    def __init__(
        self,
        encoder: nn.Module,
        optimizer: Recipe,
        projector: Callable[..., Projector],
        prototypes: int = 4096,
        student_temperature: float = 0.1,
        teacher_temperature: float = 0.04,
        warmup_temperature: float = 0.04,
        warmup_epochs: int = 0,
        momentum: float = 0.996,
        momentum_end: float | None = 1.0,
        centre_momentum: float = 0.9,
        frozen_epochs: int = 1,
        weight_decay_end: float | None = None,
    ) -> None:
        super().__init__(encoder, optimizer)
        check_sharper(teacher_temperature, student_temperature)
        check_sharper(warmup_temperature, student_temperature, "warmup_temperature")
        self.student_temperature = check_temperature(student_temperature, "student_temperature")
        self.temperatures = (
            check_temperature(warmup_temperature, "warmup_temperature"),
            check_temperature(teacher_temperature, "teacher_temperature"),
        )
        self.momentum = Momentum(momentum, momentum_end)
        self.centre_momentum = check_weight(centre_momentum, "centre_momentum", 1)
        check_weight(frozen_epochs, "frozen_epochs")
        self.warmup_epochs, self.frozen_epochs, self.weight_decay_end = warmup_epochs, frozen_epochs, weight_decay_end
        self.projector = projector(in_dim=encoder.dim)
        self.prototypes = Prototypes(self.projector.out_dim, prototypes)
        self.teacher = frozen_copy(self.encoder)
        self.teacher_projector, self.teacher_prototypes = frozen_copy(self.projector), frozen_copy(self.prototypes)
        self.register_buffer("centre", torch.zeros(prototypes))

    def heads(self) -> dict[str, nn.Module]:
        return {"projector": self.projector}

    def roles(self) -> Sequence[Role]:
        return [Role([self.prototypes.weight], frozen_epochs=self.frozen_epochs)]

    def step(self, batch: Batch) -> Outcome:
        z = by_size(lambda views: self.projector(self.through(self.encoder, views)), batch.views)  # V (B, P)
        with torch.no_grad():
            seen = by_size(lambda views: self.teacher_projector(self.through(self.teacher, views)), batch.views[:2])
            outputs = [self.teacher_prototypes(view) for view in seen]  # 2 (B, K) cosines
        targets = [centred_softmax(view, self.centre, self.temperature) for view in outputs]
        loss = swapped_prediction(targets, [self.prototypes(view) for view in z], self.student_temperature)
        centre = devices.mean(torch.stack(outputs, dim=1)).mean(dim=0)  # (K,) of both views and all devices
        self.centre.lerp_(centre.to(self.centre), 1 - self.centre_momentum)  # after use
        rows = torch.stack([loss, entropy(torch.cat(targets))]).expand(len(batch.index), 2)
        loss, target_entropy = devices.mean(rows)
        return Outcome(loss, {"target_entropy": target_entropy.detach(), "spread": spread(self.gather(z[0].detach()))})

    @property
    def temperature(self) -> float:
        """The teacher's, in this epoch."""
        share = self.current_epoch / max(1, self.warmup_epochs - 1) if self.current_epoch < self.warmup_epochs else 1.0
        return self.temperatures[0] + share * (self.temperatures[1] - self.temperatures[0])

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        super().on_before_optimizer_step(optimizer)
        if self.weight_decay_end is None:
            return
        change = (self.recipe.weight_decay - self.weight_decay_end) * (1 + math.cos(math.pi * self.progress)) / 2
        for group in optimizer.param_groups:
            if group["weight_decay"]:  # biases, norms and whatever else does not decay has 0
                group["weight_decay"] = self.weight_decay_end + change

    def after_step(self) -> None:
        momentum = self.momentum.at(self.progress)
        follow(self.teacher, self.encoder, momentum)
        follow(self.teacher_projector, self.projector, momentum)
        follow(self.teacher_prototypes, self.prototypes, momentum)
