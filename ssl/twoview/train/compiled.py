"""Networks through `torch.compile`, for the passes of training alone."""

import logging
import time
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from twoview.errors import UserError

log = logging.getLogger(__name__)

LONG_ENOUGH = 20_000  # steps: an estimate, not measured. A minute of compiling against 3 ms or so gained in each step


class Compiler:
    """Passes of views through a network, by compiled code where that is wanted and works.

    `mode` True compiles, False does not, `auto` does so for runs of `LONG_ENOUGH` steps on one GPU. (On 2 CPU cores the
    compiled `small` is no faster than the plain one.) The network itself stays as it is: weights, checkpoints and
    evaluations know nothing of this. Where compiling fails a warning says so, once, and the network runs as it is.
    """

    def __init__(self, mode: bool | Literal["auto"] = False) -> None:
        self.mode = mode
        self._compiled: dict[nn.Module, Callable[[Tensor], Tensor]] = {}

    def decide(self, device: torch.device, steps: int, world_size: int) -> None:
        """What `auto` comes to in a run of `steps` steps."""
        if self.mode == "auto":
            self.mode = device.type == "cuda" and world_size == 1 and steps >= LONG_ENOUGH

    def __call__(self, network: nn.Module, views: Tensor) -> Tensor:
        """`network(views)`: (B, C, H, W) -> (B, D)."""
        if self.mode is not True:
            return network(views)
        if network not in self._compiled:
            self._begin(network, views)
        return self._compiled[network](views) if self.mode else network(views)

    def _begin(self, network: nn.Module, views: Tensor) -> None:
        """Compiles both ways, by a pass that leaves no trace."""
        start = time.perf_counter()
        before = {name: buffer.clone() for name, buffer in network.named_buffers()}  # batch statistics
        compiled = torch.compile(network, dynamic=False)
        try:
            h = compiled(views)
            weights = [p for p in network.parameters() if p.requires_grad]
            if torch.is_grad_enabled() and weights:
                torch.autograd.grad(h.float().sum(), weights, allow_unused=True)  # not backward: DDP would take part
        except UserError:
            raise
        except Exception as error:  # whatever a compiler may raise: there is a way without one
            self.mode = False
            log.warning("the network stays as it is: torch.compile failed with %s", str(error).strip().split("\n")[0])
            return
        finally:
            for name, buffer in network.named_buffers():
                buffer.copy_(before[name])
        self._compiled[network] = compiled
        log.info("%s compiled in %.1f s", type(network).__name__, time.perf_counter() - start)
