"""Whether a network fits into memory: said before it is built, for the system ends who takes more than there is."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from twoview.cli import schema
from twoview.data.memory import memory
from twoview.encoder.weights import RANDOM
from twoview.errors import UserError


def refuse_too_large(config: Mapping[str, Any], trains_here: bool) -> None:
    """UserError where weights and buffers of the model, and with `trains_here` (on the CPU) gradients and one state of
    the optimizer for each weight, need more memory than there is.
    """
    encoder = config["encoder"] | ({"weights": RANDOM} if "weights" in config["encoder"] else {})
    try:
        with torch.device("meta"):  # shapes without memory
            recipe = schema.build(config["optimizer"])
            model: nn.Module = schema.build(config["model"], encoder=schema.build(encoder), optimizer=recipe)
    except Exception:  # what a part refuses, or cannot do without memory, is said when it is built in earnest
        return
    parts = dict(_tensors(model))
    copies = 2 if trains_here else 0
    needs = sum(part.nbytes * (1 + copies * part.requires_grad) for part in parts.values())
    if needs > memory():
        name, largest = max(parts.items(), key=lambda part: part[1].nbytes)
        training = " for training, weights, gradients and the optimizer's state," if trains_here else ""
        raise UserError(
            f"the model needs{training} at least {needs / 2**30:,.0f} GiB of memory, and there are "
            f"{memory() / 2**30:,.0f}: make it smaller. Its largest part is {name} of "
            f"{' x '.join(f'{side:,}' for side in largest.shape)} numbers"
        )


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters()
    yield from model.named_buffers()
