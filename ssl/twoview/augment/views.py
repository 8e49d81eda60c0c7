"""What an augmentation is, and the one seam of the project: a batch of samples becomes two views.

Parameters are sampled apart from being applied, per sample, from counter-based random numbers (`twoview.rng`). So a
view is a pure function of (seed, epoch, sample index, view number) and the policy: the same for any batch size,
worker count or number of devices, and it can be shown again at any time.
"""

import functools
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from twoview.augment.operation import BatchAugment, Plan
from twoview.errors import UserError
from twoview.rng import Draw

Mix = Callable[[Tensor, Draw], tuple[Tensor, Tensor]]

log = logging.getLogger(__name__)


class TwoViews(nn.Module):
    """Turns a batch of images into two independently augmented, normalised views.

    Args: ops: the policy, augmentations by name in the order of application. The name is also the random stream of
        the operation. mean, std: per channel, of pixels in [0, 1]; normalisation always comes last. seed: with the
        epoch, index and view number it decides every random number. strength: the paper's s, recorded for reference:
        policies hand it to their colour jitter by interpolation. second: operations that replace those of the same
        name in the second view (`None` drops one), for methods with asymmetric policies (BYOL, MoCo v3). mix: mixes
        neighbours of the first view (`augment.image.mix`). compile: whether the policy is translated into code of
        its own by `torch.compile`, with the same result up to rounding; `auto` does so where `ahead` promises that
        it pays and there is a compiler.

    On a CPU the work is done in blocks of rows that stay in its cache. A compiled policy knows one size of blocks, and
    the last block is filled up, so that no batch is translated again.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        ops: Mapping[str, BatchAugment],
        mean: Sequence[float],
        std: Sequence[float],
        seed: int = 0,
        strength: float | None = None,
        second: Mapping[str, BatchAugment | None] | None = None,
        mix: Mix | None = None,
        compile: bool | Literal["auto"] = "auto",  # noqa: A002 - the word of the configuration
    ) -> None:
        super().__init__()
        self.strength = strength
        self.policies = (_policy(ops, {}), _policy(ops, second or {}))
        self.seed = seed
        self.mix = mix
        self.compile_mode = compile
        self.ahead = 0  # pixels (views x height x width) of the whole run, if known: set by the data module
        self._compiled: list[Callable[..., Tensor]] | None = None  # one for each policy
        self._begun = False
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1), persistent=False)

    @torch.no_grad()
    def forward(self, images: Tensor, index: Tensor, epoch: int) -> tuple[Tensor, ...]:
        """`images` (B, C, H, W), uint8 or float in [0, 1]; `index` (B,) sample numbers. Returns two float32 (B, C,
        H', W'), and with `mix` the share (B,) that each row of the first has of itself.
        """
        B = len(images)
        if images.shape[1] != len(self.mean):
            raise ValueError(f"images of {images.shape[1]} channels, but mean and std of {len(self.mean)}")
        images = images.contiguous()
        if not self._begun and B > 1:  # single images are trials
            self._begin(images, index, epoch)
        first, second = self._both(images, index, epoch)
        if self.mix is None:
            return first, second
        first, share = self.mix(first, Draw(self.seed, epoch, index, 0, "mix"))
        return first, second, share

    def _both(self, images: Tensor, index: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        B = len(images)
        if self.policies[0] == self.policies[1]:  # one pass over both views
            view = torch.arange(2, device=index.device).repeat_interleave(B)  # (2B,)
            both = self._views(images.repeat(2, 1, 1, 1), index.repeat(2), epoch, view, 0)
            return both[:B], both[B:]
        first, second = (self._views(images, index, epoch, torch.full_like(index, v), v) for v in (0, 1))
        return first, second

    def augment(
        self, images: Tensor, index: Tensor, epoch: int, view: Tensor | int, ops: Mapping[str, BatchAugment]
    ) -> Tensor:
        """One view of each row before normalisation: float32 in [0, 1]."""
        return torch.cat(list(self._blocks(images, index, epoch, view, ops)))

    def normalize(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std

    def _views(self, images: Tensor, index: Tensor, epoch: int, view: Tensor, policy: int) -> Tensor:
        """Normalised views of each row."""
        if self._compiled is None:
            blocks = self._blocks(images, index, epoch, view, self.policies[policy])
            return torch.cat([self.normalize(block) for block in blocks])
        now = torch.full((), epoch, device=index.device)  # a tensor: epochs are not translated one by one
        size, views = _block(images, _CACHE), []
        for rows in _split(len(images), size):
            filled = [_fill(part[rows], size) for part in (images, index, view)]
            views.append(self._compiled[policy](*filled, now)[: rows.stop - rows.start])
        return torch.cat(views)

    def _blocks(
        self, images: Tensor, index: Tensor, epoch: int, view: Tensor | int, ops: Mapping[str, BatchAugment]
    ) -> Iterator[Tensor]:
        """Augmented rows, block by block. Parameters are drawn at once for all rows: many small calls cost more."""
        n, draw = len(images), Draw(self.seed, epoch, index, view)
        plans: dict[str, Plan] = {}
        with torch.autocast(images.device.type, enabled=False):  # the same views wherever they are made
            for rows in _split(n, _block(images, _EAGER) if images.device.type == "cpu" else max(1, n)):
                x = _as_float(images[rows])
                for name, op in ops.items():
                    if name not in plans:
                        plans[name] = op.plan(draw.of(name), n, tuple(x.shape[1:]))
                    params, chosen = plans[name]
                    part = {key: value[rows] for key, value in params.items()}
                    x = op.act(x, (part, chosen if chosen is None else chosen[rows]))
                yield x

    def _translatable(self, images: Tensor, index: Tensor, view: Tensor, epoch: Tensor, *, policy: int) -> Tensor:
        """The same as one graph for a compiler."""
        x, draw = _as_float(images), Draw(self.seed, epoch, index, view)
        for name, op in self.policies[policy].items():
            x = op(x, draw.of(name))
        return self.normalize(x)

    def _begin(self, images: Tensor, index: Tensor, epoch: int) -> None:
        """Looks at the first batch, and decides between eager and compiled."""
        self._begun = True
        if images.is_floating_point():
            low, high = torch.aminmax(images)  # the host waits for this once
            if not (low >= 0 and high <= 1):
                log.warning("images lie in [%.3g, %.3g]; the augmentations expect floats in [0, 1]", low, high)
        wanted, reason = self._wanted(images.device)
        if not wanted:
            log.log(
                logging.INFO if self.ahead else logging.DEBUG,
                "augmentation on %s: eager (%s)",
                images.device.type,
                reason,
            )
            return
        start = time.perf_counter()
        self._compiled = [
            torch.compile(functools.partial(self._translatable, policy=policy), dynamic=False) for policy in (0, 1)
        ]
        try:
            self._both(images, index, epoch)
        except UserError:
            raise
        except Exception as error:  # whatever a compiler may raise: there is a way without one
            self._compiled = None
            log.warning("augmentation stays eager: torch.compile failed with %s", str(error).strip().split("\n")[0])
            return
        log.info("augmentation on %s: compiled in %.1f s (%s)", images.device.type, time.perf_counter() - start, reason)

    def _wanted(self, device: torch.device) -> tuple[bool, str]:
        """Whether to compile, and why."""
        if self.compile_mode != "auto":
            return self.compile_mode, f"augment.compile={str(self.compile_mode).lower()}"
        if self.ahead < _COMPILING_PAYS:
            return False, f"the run has {self.ahead:.2g} pixels to augment, compiling pays from {_COMPILING_PAYS:.2g}"
        if device.type == "cpu" and not any(map(shutil.which, (os.environ.get("CXX", "g++"), "clang++"))):
            return False, "no C++ compiler"
        return True, f"the run has {self.ahead:.2g} pixels to augment"


_CACHE = 2**20  # bytes of a compiled block for each thread: the second-level cache of a core
_EAGER = 2**21  # and of an eager one: each call costs microseconds, so larger blocks pay
_COMPILING_PAYS = 1e9  # pixels: at about 27 ns gained with each on two cores, more than the 20 s of compiling


def _as_float(images: Tensor) -> Tensor:
    if images.dtype == torch.uint8:
        return images / 255
    if not images.is_floating_point():
        raise UserError(
            f"images of {str(images.dtype).removeprefix('torch.')}: give uint8 pixels, or floats in [0, 1] "
            "(divided by their largest possible value)"
        )
    return images.float()


def _block(images: Tensor, cache: int) -> int:
    """Rows of a block of about `cache` bytes per thread, a power of two so that it divides the usual batches."""
    threads = torch.get_num_threads() if images.device.type == "cpu" else 16  # accelerators want some MiB at a time
    rows = threads * cache // (4 * max(1, images.shape[1:].numel()))
    return 1 << max(0, rows.bit_length() - 1)


def _split(n: int, size: int) -> list[slice]:
    """Blocks of `size` rows and a rest; an empty one if there are no rows."""
    return [slice(start, min(n, start + size)) for start in range(0, max(1, n), size)]


def _fill(part: Tensor, size: int) -> Tensor:
    """`part` lengthened to `size` rows by zeros."""
    if len(part) == size:
        return part
    return torch.cat([part, part.new_zeros(size - len(part), *part.shape[1:])])


def _policy(ops: Mapping[str, BatchAugment], replaced: Mapping[str, Any]) -> dict[str, BatchAugment]:
    unknown = set(replaced) - set(ops)
    if unknown:
        raise UserError(
            f"augment.second names {', '.join(sorted(unknown))}, which the policy lacks; "
            f"it has {', '.join(ops) or 'no operations'}"
        )
    return {name: op for name, op in (dict(ops) | dict(replaced)).items() if op is not None}
