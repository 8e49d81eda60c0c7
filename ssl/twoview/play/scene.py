"""What the playground shows: both views of some samples under a policy, and what an encoder makes of the pairs.

Views come from `TwoViews` with the seed, epoch, sample numbers and view numbers of a run, parameters from each
operation's own `plan`: what is seen is what is trained on.
"""

import base64
import io
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from twoview.augment.image.geometric import RandomResizedCrop
from twoview.augment.views import TwoViews
from twoview.cli import schema
from twoview.data.demand import count, join, shape_of
from twoview.data.image.pixels import as_bytes
from twoview.data.set import SampleSet
from twoview.encoder.frozen import Frozen
from twoview.errors import UserError
from twoview.evaluate.features import spaces
from twoview.play.policy import Policy, controls, file_of, resolved, turned, words_of
from twoview.report.preview import FirstSamples, describe, overlap
from twoview.report.sheet import fit, shown
from twoview.rng import Draw

MOST = 12  # samples at once
LARGEST = 512  # pixels of the side of a view
SIDE = 256  # pixels of the side of a picture on the page
STRANGERS = 64  # samples whose views make the random pairs
RANDOM = 200  # random pairs that are drawn one by one


@dataclass(frozen=True)
class Judge:
    """An encoder, the head that makes z of its h if there is one, and their name."""

    encoder: Frozen
    projector: nn.Module | None
    name: str


class Scene:
    """Samples, the policy that the page starts from, and an encoder if one was named. Threads take turns."""

    def __init__(
        self, samples: FirstSamples, policy: Policy, start: Sequence[str], seed: int = 0, judge: Judge | None = None
    ) -> None:
        self.samples, self.policy, self.start, self.seed, self.judge = samples, policy, list(start), seed, judge
        self.turn = threading.Lock()
        self.views({})  # what cannot be shown is said before a page opens

    @property
    def train(self) -> SampleSet:
        return self.samples.train

    def about(self) -> dict[str, Any]:
        """What the page is built from: samples with their pictures, and the controls of the policy."""
        pictures = [png(picture) for picture in fit(self.samples.pictures, 64)]
        numbers = self.samples.index.tolist()
        return {
            "data": self.train.name,
            "count": len(self.train),
            "samples": [
                {"number": i, "name": name, "picture": picture}
                for i, name, picture in zip(numbers, self.samples.names, pictures, strict=True)
            ],
            "strength": self.policy.get("strength"),
            "follows": any("follows" in key and key["follows"] for op in controls(self.policy) for key in op["keys"]),
            "ops": controls(self.policy),
            "seed": self.seed,
            "epoch": self.samples.epoch,
            "encoder": self.judge.name if self.judge else None,
        }

    def views(self, wishes: Mapping[str, Any]) -> dict[str, Any]:
        """Both views of the chosen samples with their parameters in words, the crop boxes in shares of the original
        and their overlap, and the policy as a file and as words of the command line.
        """
        with self.turn:
            policy, views, index, epoch = self._asked(wishes)
            pictures = [fit(x, SIDE) for x in shown(self.train, views, index, epoch)[:3]]
            drawn = [self._parameters(views, index, epoch, view) for view in range(2)]
        boxes = [box for _, box in drawn]
        known = [box for box in boxes if box is not None]
        shared = overlap(*known).tolist() if len(known) == 2 else [None] * len(index)
        H, W = self.samples.pictures.shape[-2:]
        return {
            "samples": [
                {
                    "number": number,
                    "original": png(pictures[0][i]),
                    "overlap": shared[i],
                    "views": [
                        {
                            "picture": png(pictures[1 + view][i]),
                            "ops": drawn[view][0][i],
                            "box": None if (box := boxes[view]) is None else _shares(box[i].tolist(), H, W),
                        }
                        for view in range(2)
                    ],
                }
                for i, number in enumerate(index.tolist())
            ],
            "yaml": file_of(policy),
            "words": [*self.start, *words_of(self.policy, policy)],
        }

    def pairs(self, wishes: Mapping[str, Any]) -> dict[str, Any]:
        """Cosine similarities of h, and of z if there is one: of the two views of each chosen sample, and of views of
        different samples, with the share of these that are less alike than each pair.
        """
        if self.judge is None:
            raise UserError("no encoder was named: start with ckpt=<run>")
        with self.turn:
            _, views, index, epoch = self._asked(wishes)
            others = [i for i in range(min(len(self.train), STRANGERS + MOST)) if i not in index.tolist()]
            pool = torch.cat([index, torch.tensor(others, dtype=torch.int64)[:STRANGERS]])
            x = join(views.prepared(self.train.fetch(pool), pool, epoch)[:2])
            with spaces(self.judge.encoder, self.judge.projector) as features:
                found = {space: normalize(f, dim=1).split(len(pool)) for space, f in features(x).items()}
        n = len(index)
        off = ~torch.eye(len(pool), dtype=torch.bool)
        result = {}
        for space, (first, second) in found.items():
            alike = first @ second.T  # (N, N), pairs on its diagonal
            random = alike[off].sort().values
            if not alike.isfinite().all():
                raise UserError("the encoder gives numbers that are not finite")
            own = alike.diagonal()[:n]
            result[space] = {
                "pairs": own.tolist(),
                "above": [float((random < pair).float().mean()) for pair in own],
                "random": _spread(random).tolist(),
                "mean": float(random.mean()),
            }
        return {"spaces": result, "strangers": len(pool)}

    def _asked(self, wishes: Mapping[str, Any]) -> tuple[Policy, TwoViews, Tensor, int]:
        """What a page asks for, checked: the policy, its views, sample numbers (B,) and the epoch."""
        seed, epoch = (_whole(wishes.get(key, default), key, 2**32) for key, default in self._defaults().items())
        numbers = wishes.get("samples", self.samples.index[:1].tolist())
        if not isinstance(numbers, list) or not 1 <= len(numbers) <= MOST:
            raise UserError(f"choose 1 to {MOST} samples")
        index = torch.tensor([_whole(number, "a sample", len(self.train)) for number in numbers])
        policy = turned(self.policy, wishes)
        views: TwoViews = schema.build(resolved(policy), preprocess=self.train.preprocess, seed=seed)
        if views.count < 2:
            raise UserError("the playground shows two views of each sample, and augment.views describes one")
        for op in (op for ops in views.policies[:2] for op in ops.values()):
            if (getattr(op, "size", None) or 0) > LARGEST:
                raise UserError(f"views of more than {LARGEST} pixels are none to look at here: take a smaller size")
        views.attach(self.train)
        return policy, views, index, epoch

    def _defaults(self) -> dict[str, int]:
        return {"seed": self.seed, "epoch": self.samples.epoch}

    def _parameters(
        self, views: TwoViews, index: Tensor, epoch: int, view: int
    ) -> tuple[list[list[dict[str, Any]]], Tensor | None]:
        """Of each sample, what every operation drew, in words; and the box (B, 4) of a crop that comes first."""
        x = views.preprocess.prepare(self.train.fetch(index))
        rows: list[list[dict[str, Any]]] = [[] for _ in index]
        box = None
        for place, (name, op) in enumerate(views.policies[view].items()):
            params, chosen = op.plan(Draw(views.seed, epoch, index, view, name), count(x), shape_of(x))
            acts = torch.ones_like(index, dtype=torch.bool) if chosen is None else chosen
            if place == 0 and isinstance(op, RandomResizedCrop):
                shape = shape_of(x)
                assert isinstance(shape, tuple)
                box = torch.where(acts[:, None], params["box"], torch.tensor([0, 0, *shape[-2:]]))
            for i, row in enumerate(rows):
                lines = describe({key: values[i] for key, values in params.items()}) if acts[i] else []
                row.append({"name": name, "acts": bool(acts[i]), "lines": lines})
            x = op.act(x, (params, chosen))
        return rows, box


def png(picture: Tensor) -> str:
    """float (C, H, W) in [0, 1] as an address that holds the picture: of more than three channels the first three, of
    two the first.
    """
    pixels = as_bytes(picture[: 3 if len(picture) >= 3 else 1])
    pixels = pixels.expand(3, -1, -1) if len(pixels) == 1 else pixels
    file = io.BytesIO()
    Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy()).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _shares(box: Sequence[int], H: int, W: int) -> dict[str, float]:
    top, left, height, width = box
    return {"top": top / H, "left": left / W, "height": height / H, "width": width / W}


def _spread(values: Tensor) -> Tensor:
    """At most `RANDOM` of sorted values (N,), evenly."""
    return values[torch.linspace(0, len(values) - 1, min(RANDOM, len(values))).round().long()]


def _whole(value: Any, name: str, below: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < below:
        raise UserError(f"{name}={value!r} must be a whole number from 0 to {below - 1:,}")
    return value
