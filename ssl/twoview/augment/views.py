"""The one seam of the project: a batch of samples becomes views.

Parameters are sampled apart from being applied, per sample, from counter-based random numbers (`twoview.rng`). So a
view is a pure function of (seed, epoch, sample index, view number) and the policy: the same for any batch size,
worker count or number of devices, and it can be shown again at any time.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from twoview.augment.compiled import Policy, translate
from twoview.augment.operation import BatchAugment
from twoview.data.demand import Samples, count, each, join, take, tensors
from twoview.data.preprocess import Preprocess
from twoview.data.set import SampleSet
from twoview.errors import UserError
from twoview.rng import Draw, unused

Mix = Callable[[Tensor, Draw], tuple[Tensor, Tensor]]

_MOST = 2**16  # views: their numbers are half a word of the counter


@dataclass(frozen=True)
class Group:
    """Views by one policy, with the numbers from `first` on."""

    policy: Policy
    first: int
    count: int


class TwoViews(nn.Module):
    """Turns a batch of samples into independently augmented views, each as the encoder takes it: two, unless `views`
    says otherwise.

    Args: ops: the policy, augmentations by name in the order of application. The name is also the random stream of
        the operation. preprocess: what lies before and behind them. seed: with the epoch, index and view number it
        decides every random number. strength: the paper's s, recorded for reference: policies hand it to their colour
        jitter by interpolation. views: groups of views, the global ones first, as `[{count: 2}, {count: 6, ops: {crop:
        {size: 12, scale: [0.05, 0.2]}}}]`. The `ops` of a group change the policy, by name: other values of an
        operation's arguments, another operation in its place or behind the others, or None, which drops it. None: two
        views of the policy as it is. mix: mixes neighbours of the first view (`augment.image.mix`). compile: whether
        the policy is translated into code of its own by `torch.compile`, with the same result up to rounding; `auto`
        does so where `ahead` promises that it pays and there is a compiler.
    """

    home: Tensor

    def __init__(
        self,
        ops: Mapping[str, BatchAugment],
        preprocess: Preprocess,
        seed: int = 0,
        strength: float | None = None,
        views: Sequence[Mapping[str, Any]] | None = None,
        mix: Mix | None = None,
        compile: bool | Literal["auto"] = "auto",  # noqa: A002 - the word of the configuration
    ) -> None:
        super().__init__()
        self.strength = strength
        self.preprocess = copy.deepcopy(preprocess)  # moves to the device where views are made
        self.seed = seed
        self.mix = mix
        self.compile_mode = compile
        self.ahead = 0  # samples of the whole run, if known: set by the data module
        self.groups: list[Group] = []
        self._begun = False
        self.register_buffer("home", torch.empty(0), persistent=False)  # lies where views are made
        for group in [{"count": 2}] if views is None else views:
            number, changes = _read(group)
            policy = Policy(_policy(ops, changes, preprocess.kind), self.preprocess, seed)
            self.groups.append(Group(policy, self.count, number))
        if not 1 <= self.count <= _MOST:
            raise UserError(f"augment.views={views} describes {self.count} views")

    @property
    def count(self) -> int:
        """How many views a sample has."""
        return sum(group.count for group in self.groups)

    @property
    def policies(self) -> list[dict[str, BatchAugment]]:
        """The operations of each view, by its number."""
        return [group.policy.ops for group in self.groups for _ in range(group.count)]

    def attach(self, train: SampleSet) -> None:
        """Hands the training set, on the device where views are made, to the operations that look into it."""
        for group in self.groups:
            for op in group.policy.ops.values():
                op.attach(train)

    @torch.no_grad()
    def forward(self, samples: Samples, index: Tensor | None = None, epoch: int | None = None) -> tuple[Tensor, ...]:
        """The views of `samples` (B, ...), stored or prepared, with sample numbers `index` (B,): one tensor (B, ...)
        for each, not mixed.

        Without index and epoch they are others in each call, by numbers that follow `torch.manual_seed`, as
        torchvision's transforms do: for loops of your own. With both a view can be made again.
        """
        if index is None or epoch is None:
            if index is not None or epoch is not None:
                raise UserError("views take both index and epoch, or neither: without them they are new in each call")
            index, epoch = unused(count(samples), tensors(samples)[0].device)
        samples = each(Tensor.contiguous, samples)
        if not self._begun and count(samples) > 1:  # single samples are trials
            self._begun = True
            self.preprocess.look(samples)
            numbers = self.ahead * self.count * sum(part[0].numel() for part in tensors(samples))
            policies, device = [group.policy for group in self.groups], index.device
            translate(policies, lambda: self._finished(samples, index, epoch), self.compile_mode, numbers, device)
        return self._finished(samples, index, epoch)

    def mixed(self, views: tuple[Tensor, ...], index: Tensor, epoch: int) -> tuple[tuple[Tensor, ...], Tensor | None]:
        """The views as a method gets them: where the policy mixes, the first one (B, ...) mixed, with the share (B,)
        that each of its rows has of itself.
        """
        if self.mix is None:
            return views, None
        first, share = self.mix(views[0], Draw(self.seed, epoch, index, 0, "mix"))
        return (first, *views[1:]), share

    @torch.no_grad()
    def prepared(self, samples: Samples, index: Tensor, epoch: int) -> list[Samples]:
        """The same views before `Preprocess.finish`: to be drawn, or for an encoder with a preprocessing of its own."""
        B, views = len(index), []
        for group in self.groups:
            x = join(list(group.policy.blocks(*_repeated(samples, index, group), epoch)))
            views += [take(x, slice(v * B, (v + 1) * B)) for v in range(group.count)]
        return views

    def _finished(self, samples: Samples, index: Tensor, epoch: int) -> tuple[Tensor, ...]:
        views: list[Tensor] = []
        for group in self.groups:
            views += group.policy.views(*_repeated(samples, index, group), epoch).tensor_split(group.count)
        return tuple(views)


def _repeated(samples: Samples, index: Tensor, group: Group) -> tuple[Samples, Tensor, Tensor]:
    """Samples, index and view numbers for one pass over all views of a group, view by view: (count * B, ...) each."""
    view = torch.arange(group.first, group.first + group.count, device=index.device).repeat_interleave(len(index))
    if group.count == 1:
        return samples, index, view
    repeated = each(lambda values: values.repeat(group.count, *(1,) * (values.dim() - 1)), samples)
    return repeated, index.repeat(group.count), view


def _read(group: Any) -> tuple[int, Mapping[str, Any]]:
    """How many views a group of the configuration has, and what changes their policy."""
    keys = ("count", "ops")
    if not isinstance(group, Mapping) or set(group) - set(keys):
        raise UserError(f"augment.views holds {group!r}: a group of views has {' and '.join(keys)}")
    number, ops = group.get("count", 1), group.get("ops") or {}
    if not isinstance(number, int) or isinstance(number, bool) or number < 1 or not isinstance(ops, Mapping):
        raise UserError(
            f"augment.views holds {group!r}: count is a number of views, ops what changes the policy by name"
        )
    return number, ops


def _policy(ops: Mapping[str, BatchAugment], changes: Mapping[str, Any], kind: str) -> dict[str, BatchAugment]:
    """The operations of a group, all of which must suit samples of this kind."""
    policy: dict[str, BatchAugment | None] = dict(ops)
    for name, change in changes.items():
        if name not in ops and not isinstance(change, BatchAugment):
            raise UserError(
                f"augment.views changes {name}, which the policy lacks; it has {', '.join(ops) or 'no operations'}"
            )
        policy[name] = ops[name].changed(**change) if isinstance(change, Mapping) else change
    found = {name: op for name, op in policy.items() if op is not None}
    for name, op in found.items():
        if kind and op.kind and not f"{kind}/".startswith(f"{op.kind}/"):
            raise UserError(
                f"augment.ops.{name}: {type(op).__name__} is an operation on data of the kind {op.kind}, and these are "
                f"of the kind {kind}; choose another policy by augment=..."
            )
        kind = op.makes or kind
    return found
