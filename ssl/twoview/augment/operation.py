"""What an augmentation is: parameters that are sampled per sample, and their application to a batch."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from twoview.data.demand import Samples, Shape, count, shape_of, take, tensors
from twoview.data.image.pixels import as_float
from twoview.data.set import SampleSet
from twoview.errors import UserError
from twoview.rng import Draw, unused

Params = dict[str, Tensor]
Plan = tuple[Params, Tensor | None]


class BatchAugment:
    """One augmentation of a batch, applied to each sample with probability `p`.

    Subclasses override two methods: `sample`, which draws parameters, and `apply`, which uses them. `kind` says what
    they change, as the `kind` of `twoview.data.preprocess.Preprocess` does: an operation on an "image" also takes an
    "image/spectrogram", which is one. `makes` says what comes out, where that is of another kind. One that needs other
    samples draws their numbers in the training set, which `attach` hands it, and never looks at the rest of the batch.
    """

    kind: ClassVar[str] = "image"
    makes: ClassVar[str] = ""
    _given: dict[str, Any]  # the arguments of the constructor

    def __new__(cls, *args: Any, **arguments: Any) -> "BatchAugment":
        self = super().__new__(cls)
        self._given = dict(inspect.signature(cls.__init__).bind_partial(self, *args, **arguments).arguments)
        self._given.pop("self", None)
        return self

    def __init__(self, p: float = 1.0) -> None:
        if not 0 <= p <= 1:
            raise UserError(f"{type(self).__name__}: the probability p must lie in [0, 1], not {p}")
        self.p = p

    def changed(self, **arguments: Any) -> "BatchAugment":
        """The operation with other values of some of its constructor's arguments."""
        known = list(inspect.signature(type(self).__init__).parameters)[1:]
        for name in arguments:
            if name not in known:
                raise UserError(f"{type(self).__name__} has no argument {name!r}; it has: {', '.join(known)}")
        return type(self)(**(self._given | arguments))

    def attach(self, train: SampleSet) -> None:
        """Takes the training set, on the device where views are made. Called before the first view is made."""

    def sample(self, draw: Draw, n: int, shape: Shape) -> Params:
        """Parameters of `n` samples of `shape` (images: C, H, W): a dict of tensors whose first dimension is `n`."""
        raise NotImplementedError

    def apply(self, samples: Any, params: Params) -> Any:
        """Augments every row of prepared samples (of images: float (B, C, H, W) in [0, 1]) with its row of `params`."""
        raise NotImplementedError

    def plan(self, draw: Draw, n: int, shape: Shape) -> Plan:
        """What `sample` gives, and which of the `n` samples the probability picks: bool (n,), None for all."""
        chosen = None if self.p == 1 else draw.of(f"{draw.stream}/p").uniform(1)[:, 0] < self.p
        return self.sample(draw, n, shape), chosen

    def act(self, samples: Any, plan: Plan) -> Any:
        """Augments the rows that the probability picks; the others come back as they were."""
        params, chosen = plan
        if chosen is None:
            return self.apply(samples, params)
        if chosen.device.type != "cpu" or torch.compiler.is_compiling():
            # Shapes that depend on the data would make the host wait for the device.
            return _put(samples, self.apply(samples, params), lambda new, old: torch.where(_as(old, chosen), new, old))
        rows = chosen.nonzero()[:, 0]
        some = self.apply(take(samples, rows), {name: values[rows] for name, values in params.items()})
        return _put(samples, some, lambda new, old: old.index_copy(0, rows, new))

    def __call__(self, samples: Any, draw: Draw | None = None) -> Any:
        """Augmented samples (B, ...), prepared (of images: float in [0, 1]). Without `draw` the random numbers are new
        in each call and follow `torch.manual_seed`, and images may be uint8.
        """
        if draw is None:
            samples = as_float(samples) if self.kind == "image" else samples
            index, epoch = unused(count(samples), tensors(samples)[0].device)
            draw = Draw(0, epoch, index, 0, type(self).__name__)
        return self.act(samples, self.plan(draw, count(samples), shape_of(samples)))

    def __repr__(self) -> str:
        values = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in values.items())})"


def _as(like: Tensor, rows: Tensor) -> Tensor:
    """`rows` (B,) with as many dimensions as `like` (B, ...)."""
    return rows.view(-1, *(1,) * (like.dim() - 1))


def _put(old: Samples, new: Samples, how: Callable[[Tensor, Tensor], Tensor]) -> Samples:
    """`how(new, old)` of the tensor, or of every tensor of a dict."""
    if isinstance(old, Tensor):
        assert isinstance(new, Tensor)
        return how(new, old)
    assert isinstance(new, dict)
    return {name: how(new[name], values) for name, values in old.items()}


def check_range(name: str, value: Sequence[float], low: float, high: float) -> tuple[float, float]:
    """`value` as an ordered pair within [low, high]; a UserError that names it otherwise."""
    if len(value) != 2 or not low <= value[0] <= value[1] <= high:
        raise UserError(f"{name} must be two numbers, smaller first, within [{low}, {high}], not {list(value)}")
    return float(value[0]), float(value[1])
