"""Sheets of views: what an augmentation does, drawn from the numbers of a run.

Nothing is simulated: views come from `TwoViews` with the seed, epoch, sample numbers and view numbers of the run, and
parameters from each operation's own `sample`, so that what is seen is what is trained on.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from twoview.augment.image.auto import OPS
from twoview.augment.image.geometric import RandomResizedCrop
from twoview.augment.operation import BatchAugment
from twoview.augment.views import TwoViews
from twoview.data.demand import Shape, shape_of
from twoview.data.set import SampleSet
from twoview.errors import UserError
from twoview.report.sheet import Band, Picture, shown
from twoview.rng import Draw, permutation

log = logging.getLogger(__name__)

COLOURS = (
    "#0072b2",
    "#e69f00",
)  # of both views; colour-blind readers can tell them apart (Okabe & Ito)


@dataclass(frozen=True)
class FirstSamples:
    """The first samples of a run by their numbers (B,), with names and pictures (B, C, H, W) in [0, 1] of them, and the
    epoch to look at.
    """

    train: SampleSet
    index: Tensor
    names: Sequence[str]
    epoch: int
    pictures: Tensor

    def originals(self) -> list[Picture]:
        return [Picture(x, [name]) for x, name in zip(self.pictures, self.names, strict=True)]

    def positives(self, views: TwoViews) -> list[Tensor]:
        """Pictures (B, C, H, W) of their first two views."""
        return shown(self.train, views, self.index, self.epoch)[1:3]


def first_samples(train: SampleSet, count: int, seed: int, epoch: int) -> FirstSamples:
    """The samples that a run with this seed sees first, in that order. UserError if they cannot be drawn."""
    if train.draw is None:
        raise UserError(f"the samples of {train.name} cannot be drawn, so there is no preview of them")
    index = permutation(len(train), seed, epoch=0)[:count]
    names = [f"image {i:,}" for i in index.tolist()]
    if train.labels is not None:
        labels = [int(train.labels[i]) for i in index.tolist()]
        names = [
            f"{train.classes[c]} {i:,}" if c >= 0 else name
            for c, i, name in zip(labels, index.tolist(), names, strict=True)
        ]
    return FirstSamples(train, index, names, epoch, train.draw(train.fetch(index)))


def by_strength(views: Sequence[TwoViews], samples: FirstSamples) -> list[Band]:
    """Rows: images. Columns: the original, the first view at each strength, the second view at each."""
    seen = [samples.positives(policy) for policy in views]
    pictures = [samples.originals(), *([Picture(x) for x in pair[view]] for view in range(2) for pair in seen)]
    headings = [f"s = {policy.strength:g}" for policy in views]
    blocks = [("", ["original"]), ("first view", headings), ("second view", headings)]
    return [Band(blocks, list(zip(*pictures, strict=True)))]


def by_operation(views: TwoViews, samples: FirstSamples, draws: int) -> list[Band]:
    """A band for each operation: the original, and what the operation alone makes of it in `draws` epochs."""
    first, *others = views.policies
    bands = [(name, name, op, 0) for name, op in first.items()]
    known = list(first.values())
    for view, policy in enumerate(others, start=1):
        bands += [(name, f"{name}, {_ordinal(view)} view", op, view) for name, op in policy.items() if op not in known]
        known += policy.values()
    if not bands:
        raise UserError("the policy has no operations to show; choose another by augment=...")
    epochs = range(samples.epoch, samples.epoch + draws)
    blocks = [f"epoch {epoch}" for epoch in epochs]
    sheet = []
    for stream, title, op, view in bands:
        columns = [alone(op, samples, Draw(views.seed, epoch, samples.index, view, stream)) for epoch in epochs]
        sheet.append(Band([("", ["original"]), (title, blocks)], list(zip(samples.originals(), *columns, strict=True))))
    return sheet


def alone(op: BatchAugment, samples: FirstSamples, numbers: Draw) -> list[Picture]:
    """What one operation makes of each image, with its parameters in words."""
    train = samples.train
    x = train.preprocess.prepare(train.fetch(samples.index))
    params, chosen = op.plan(numbers, len(samples.index), shape_of(x))
    acts = _all(numbers) if chosen is None else chosen
    assert train.draw is not None
    changed = train.draw(op.act(x, (params, chosen)))
    return [
        Picture(
            changed[i],
            describe({k: v[i] for k, v in params.items()}) if acts[i] else ["not applied", f"(p = {op.p:g})"],
        )
        for i in range(len(samples.index))
    ]


def applied(op: BatchAugment, numbers: Draw, shape: Shape) -> Tensor:
    """Which rows the probability of `op` picks: bool (B,)."""
    chosen = op.plan(numbers, len(numbers.index), shape)[1]
    return _all(numbers) if chosen is None else chosen


def _all(numbers: Draw) -> Tensor:
    return torch.ones_like(numbers.index, dtype=torch.bool)


def _ordinal(view: int) -> str:
    return ("first", "second", "third")[view] if view < 3 else f"{view + 1}th"


def describe(params: Mapping[str, Tensor]) -> list[str]:
    """One row of an operation's parameters in words, a line each; steps with an `order` are numbered by it."""
    values = {name: value.flatten().tolist() for name, value in params.items()}
    values.pop("key", None)  # what noise grows from says nothing to a person
    order = values.pop("order", [])
    if "op" in values:  # of a policy that chooses: the names of its choices in place of numbers
        return [f"{OPS[op]} {_number(x)}" for op, x in zip(values["op"], values["magnitude"], strict=True)]
    lines = []
    for name, numbers in values.items():
        if name == "box":
            top, left, height, width = map(_number, numbers)
            lines += [f"{width} × {height} px", f"at x {left}, y {top}"]
        else:
            lines.append(f"{name} {', '.join(map(_number, numbers[:4]))}{' ...' if len(numbers) > 4 else ''}")
    if order:
        lines = [f"{place}. {lines[step]}" for place, step in enumerate(order, start=1)]
    return lines or ["applied"]


def _number(x: float) -> str:
    digits = 2 if isinstance(x, float) and abs(x) < 10 else 0
    return f"{round(x, digits) + 0.0:.{digits}f}".replace("-", "−")  # + 0.0: no minus before 0


def by_pair(views: TwoViews, samples: FirstSamples) -> list[Band]:
    """Positives: the original with both crop boxes, the first view, the second view; four images and more in two
    blocks.
    """
    boxes = [crop_boxes(views, samples, view) for view in range(2)]  # (B, 4) each
    shared = overlap(*boxes).tolist()
    seen = samples.positives(views)
    cells = []
    for i, original in enumerate(samples.originals()):
        drawn = {colour: box[i].tolist() for colour, box in zip(COLOURS, boxes, strict=True)}
        captions = [[f"{box[i][3]} × {box[i][2]} px", _others(views, samples, v, i)] for v, box in enumerate(boxes)]
        cells.append(
            [
                Picture(original.pixels, [*original.caption, f"overlap {100 * shared[i]:.0f} %"], drawn),
                *(Picture(seen[v][i], captions[v], frame=COLOURS[v]) for v in range(2)),
            ]
        )
    across = 2 if len(cells) >= 4 else 1
    rows = [[p for cell in cells[i : i + across] for p in cell] for i in range(0, len(cells), across)]
    return [Band([("", ["original", "first view", "second view"])] * across, rows)]


def crop_boxes(views: TwoViews, samples: FirstSamples, view: int) -> Tensor:
    """What the crop of a view leaves of each image: int64 (B, 4), top, left, height and width in pixels."""
    shape = samples.train.shape
    policy = views.policies[view]
    name, crop = next(iter(policy.items()), ("", None))
    if not isinstance(crop, RandomResizedCrop):  # boxes behind other operations would not be the original's
        raise UserError(
            f"mode=pairs draws the boxes of the RandomResizedCrop with which a policy begins, and this one consists "
            f"of {', '.join(policy) or 'nothing'}; use mode=strength or mode=ops"
        )
    numbers = Draw(views.seed, samples.epoch, samples.index, view, name)
    box = crop.sample(numbers, len(samples.index), shape)["box"]
    return torch.where(applied(crop, numbers, shape)[:, None], box, torch.tensor([0, 0, *shape[-2:]]))


def _others(views: TwoViews, samples: FirstSamples, view: int, row: int) -> str:
    """The operations behind the crop that a view has had."""
    names = [
        name
        for name, op in list(views.policies[view].items())[1:]
        if applied(op, Draw(views.seed, samples.epoch, samples.index, view, name), samples.train.shape)[row]
    ]
    return ", ".join(names)


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes (B, 4), rows (top, left, height, width): (B,) in [0, 1]."""
    low = torch.maximum(a[:, :2], b[:, :2])  # (B, 2)
    high = torch.minimum(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:])
    both = (high - low).clamp(min=0).prod(dim=1)
    return both / (a[:, 2:].prod(dim=1) + b[:, 2:].prod(dim=1) - both)
