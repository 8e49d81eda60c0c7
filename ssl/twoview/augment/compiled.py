"""Operations applied in their order, in blocks of rows: one after the other, or as code that is made for the policy."""

import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor

from twoview.augment.operation import BatchAugment, Plan
from twoview.data.demand import Samples, count, each, shape_of, take, tensors
from twoview.data.preprocess import Preprocess
from twoview.errors import UserError
from twoview.rng import Draw

log = logging.getLogger(__name__)

_CACHE = 2**20  # bytes of a compiled block for each thread: the second-level cache of a core
_EAGER = 2**21  # and of an eager one: each call costs microseconds, so larger blocks pay
ALIKE = 0.01  # mean difference of views, in deviations, that rounding can explain
_COMPILING_PAYS = 3e9  # numbers: at about 9 ns gained with each on two cores, more than the 20 s of compiling


class Policy:
    """The operations of a view, by name: the name is the random stream of the operation, `seed` the key of them all.

    On a CPU the work is done in blocks of rows that stay in its cache. A compiled policy knows one size of blocks, and
    the last block is filled up, so that no batch is translated again.
    """

    def __init__(self, ops: Mapping[str, BatchAugment], preprocess: Preprocess, seed: int) -> None:
        self.ops, self.preprocess, self.seed = dict(ops), preprocess, seed
        self.translated: Callable[..., Tensor] | None = None

    def views(self, samples: Samples, index: Tensor, view: Tensor, epoch: int) -> Tensor:
        """A view of each row, as the encoder takes it: (B, ...). `index`, `view` (B,): sample and view numbers."""
        if self.translated is None:
            return torch.cat([self.preprocess.finish(block) for block in self.blocks(samples, index, view, epoch)])
        now = torch.full((), epoch, device=index.device)  # a tensor: epochs are not translated one by one
        size, views = _block(samples, _CACHE), []
        for rows in _split(count(samples), size):
            part = each(lambda values: _fill(values, size), take(samples, rows))
            views.append(
                self.translated(part, _fill(index[rows], size), _fill(view[rows], size), now)[: rows.stop - rows.start]
            )
        return torch.cat(views)

    def blocks(self, samples: Samples, index: Tensor, view: Tensor, epoch: int) -> Iterator[Samples]:
        """Augmented rows before `Preprocess.finish`, block by block."""
        # Parameters are drawn at once for all rows: many small calls cost more.
        n, draw = count(samples), Draw(self.seed, epoch, index, view)
        device = tensors(samples)[0].device.type
        plans: dict[str, Plan] = {}
        with torch.autocast(device, enabled=False):  # the same views wherever they are made
            for rows in _split(n, _block(samples, _EAGER) if device == "cpu" else max(1, n)):
                x = self.preprocess.prepare(take(samples, rows))
                for name, op in self.ops.items():
                    if name not in plans:
                        plans[name] = op.plan(draw.of(name), n, shape_of(x))
                    params, chosen = plans[name]
                    part = {key: value[rows] for key, value in params.items()}
                    x = op.act(x, (part, chosen if chosen is None else chosen[rows]))
                yield x

    def translate(self) -> None:
        """From now on views are made by compiled code: the same up to rounding."""
        self.translated = torch.compile(self._graph, dynamic=False)

    def _graph(self, samples: Samples, index: Tensor, view: Tensor, epoch: Tensor) -> Tensor:
        x, draw = self.preprocess.prepare(samples), Draw(self.seed, epoch, index, view)
        for name, op in self.ops.items():
            x = op(x, draw.of(name))
        return self.preprocess.finish(x)


def translate(
    policies: list[Policy],
    trial: Callable[[], tuple[Tensor, ...]],
    mode: bool | Literal["auto"],
    ahead: int,
    device: torch.device,
) -> None:
    """Compiles policies where that is wished, or pays for the `ahead` numbers that the run has to augment. `trial`
    makes views with them; if that fails, or the views are other ones than before, they stay eager.
    """
    wanted, reason = _wanted(mode, ahead, device)
    if not wanted:
        log.debug("augmentation on %s: eager (%s)", device.type, reason)
        return
    _keep_code_apart()
    eager, start = trial(), time.perf_counter()
    for policy in policies:
        policy.translate()
    try:
        for view, expected in zip(trial(), eager, strict=True):
            if not (view - expected).abs().mean() < ALIKE:  # NaN is no number below it
                raise RuntimeError("its views are other ones")
    except UserError:
        raise
    except Exception as error:  # whatever a compiler may raise: there is a way without one
        for policy in policies:
            policy.translated = None
        log.warning("augmentation stays eager: torch.compile failed with %s", str(error).strip().split("\n")[0])
        return
    log.info("augmentation compiled in %.1f s", time.perf_counter() - start)


def _keep_code_apart() -> None:
    """Gives each kind of CPU a folder of its own for compiled code. torch takes what lies in one for another kind too,
    as where machines share a folder, and such code has been seen to make NaN.
    """
    kind = torch.backends.cpu.get_cpu_capability().lower()
    owner = os.getuid() if hasattr(os, "getuid") else "user"
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/torchinductor_{owner}_{kind}")


def _wanted(mode: bool | Literal["auto"], ahead: int, device: torch.device) -> tuple[bool, str]:
    """Whether to compile, and why."""
    if mode != "auto":
        return mode, f"augment.compile={str(mode).lower()}"
    if ahead < _COMPILING_PAYS:
        return False, f"the run has {ahead:.2g} numbers to augment, compiling pays from {_COMPILING_PAYS:.2g}"
    if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
        return False, "no C++ compiler"
    return True, f"the run has {ahead:.2g} numbers to augment"


def _block(samples: Samples, cache: int) -> int:
    """Rows of a block of about `cache` bytes per thread, a power of two so that it divides the usual batches."""
    parts = tensors(samples)
    threads = torch.get_num_threads() if parts[0].device.type == "cpu" else 16  # accelerators want some MiB at a time
    rows = threads * cache // (4 * max(1, sum(part.shape[1:].numel() for part in parts)))
    return 1 << max(0, rows.bit_length() - 1)


def _split(n: int, size: int) -> list[slice]:
    """Blocks of `size` rows and a rest; an empty one if there are no rows."""
    return [slice(start, min(n, start + size)) for start in range(0, max(1, n), size)]


def _fill(part: Tensor, size: int) -> Tensor:
    """`part` lengthened to `size` rows by zeros."""
    if len(part) == size:
        return part
    return torch.cat([part, part.new_zeros(size - len(part), *part.shape[1:])])
