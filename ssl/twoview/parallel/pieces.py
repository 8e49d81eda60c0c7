"""Batches that are larger than a device, with the gradients of the whole: Gao, Zhang, Han & Callan, "Scaling deep
contrastive learning batch size under memory limited setup", RepL4NLP 2021.

arXiv 2101.06983 (GradCache). A contrastive loss of a batch is not the sum of those of its parts, so gradients cannot be
accumulated over them. Instead the network passes over the batch in pieces of which only the outputs are kept, the loss
is that of all outputs, and its gradient goes back piece by piece, each of which passes once more. That is
`torch.utils.checkpoint` of each piece, which gives dropout the same random numbers again.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def in_pieces(through: Callable[[nn.Module, Tensor], Tensor], network: nn.Module, views: Tensor, pieces: int) -> Tensor:
    """`through(network, views)`: (B, ...) -> (B, D), for B / `pieces` rows at a time. `pieces` divides B.

    Piece j holds the rows j, j + `pieces`, ..., so that the devices of a run have their parts of one device's pieces.
    Batch statistics are those of a piece. Each piece finds the network's buffers as they were before the first, and
    afterwards they hold the mean over the pieces, as if each lay on a device of its own.
    """
    if pieces == 1:
        return through(network, views)
    places = [(m, name, value) for m in network.modules() for name, value in m._buffers.items() if value is not None]
    before = [value.clone() for *_, value in places]

    @contextmanager
    def lent(values: list[Tensor]) -> Iterator[None]:
        # Other tensors in their place: autograd refuses to go back where one that it has seen was written to since.
        for (module, name, _), value in zip(places, values, strict=True):
            module._buffers[name] = value
        try:
            yield
        finally:
            for module, name, value in places:
                module._buffers[name] = value

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), lent([value.clone() for value in before])  # the second pass leaves no trace

    h, after = [], []
    for piece in range(pieces):
        after.append([value.clone() for value in before])
        with lent(after[-1]):
            h.append(checkpoint(through, network, views[piece::pieces], use_reentrant=False, context_fn=contexts))
    with torch.no_grad():
        for (*_, value), found in zip(places, zip(*after, strict=True), strict=True):
            value.copy_(torch.stack(found).mean(dim=0) if value.is_floating_point() else found[0])
    return torch.stack(h, dim=1).flatten(0, 1)  # (B / pieces, pieces, D) -> (B, D)
