"""What an encoder has learned to ignore: how fast its features change as an image is transformed more and more, which
transformations can still be read from them, and which factors of an image.

The transformations are the project's augmentations with parameters that are fixed, or drawn from counters: the same
images give the same numbers, and an image meets the same random numbers at every level.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twoview.augment.image.geometric import RandomResizedCrop
from twoview.augment.image.noise import GaussianNoise, Sobel
from twoview.augment.image.photometric import ColorJitter, GaussianBlur, Grayscale
from twoview.augment.image.warp import RandomAffine, RandomRotation
from twoview.data.image.pixels import as_float
from twoview.evaluate.classify.linear import fit_linear
from twoview.evaluate.describe.quality import mean_similarity
from twoview.evaluate.features import spaces
from twoview.rng import Draw

L2 = 0.03  # of the probes: strong enough for a few hundred images, and no choice for anybody to make
BATCH = 256  # images that are transformed and encoded at once
CIRCLES = {"hue": 1.0, "background_hue": 1.0, "rotation": 2 * math.pi}  # factors that come round, and when


class Transform(NamedTuple):
    """`apply(images, level, draw)` takes float images (B, C, H, W) in [0, 1]; the first level changes nothing."""

    unit: str
    levels: tuple[float, ...]
    apply: Callable[[Tensor, float, Draw], Tensor]
    channels: tuple[int, ...] = ()  # of the images that it suits; empty: all


def _colour(images: Tensor, level: float, draw: Draw) -> Tensor:
    return ColorJitter(hue=0.0, strength=level, p=1.0)(images, draw)


def _turn_colours(images: Tensor, hue: float = 0.0, saturation: float = 1.0) -> Tensor:
    one = images.new_ones(len(images))
    order = torch.arange(4, device=images.device).expand(len(images), 4)
    params = {"brightness": one, "contrast": one, "saturation": saturation * one, "hue": hue * one, "order": order}
    return ColorJitter().apply(images, params)


def _crop(images: Tensor, level: float, draw: Draw) -> Tensor:
    size = torch.tensor(images.shape[-2:], device=images.device)
    side = (size * math.sqrt(level)).round().clamp_min(1)  # (2,) height and width, in the image's own ratio
    corner = (draw.uniform64(2) * (size - side + 1)).floor()  # (B, 2)
    return RandomResizedCrop().apply(images, {"box": torch.cat([corner, side.expand_as(corner)], dim=1).long()})


def _rotation(images: Tensor, level: float, draw: Draw) -> Tensor:
    operation = RandomRotation(interpolation="bilinear", fill=None)
    return _in_frame(images, lambda x: operation.apply(x, {"angle": x.new_full((len(x),), level)}))


def _shift(images: Tensor, level: float, draw: Draw) -> Tensor:
    direction = 2 * math.pi * draw.uniform(1)[:, 0]
    reach = level * min(images.shape[-2:])
    shift = torch.stack([direction.cos(), direction.sin()], dim=1).mul(reach).round()  # (B, 2)
    zero, one = torch.zeros_like(direction), torch.ones_like(direction)
    params = {"angle": zero, "shift": shift, "scale": one, "shear": torch.zeros_like(shift)}
    return _in_frame(images, lambda x: RandomAffine(fill=None).apply(x, params))


def _in_frame(images: Tensor, move: Callable[[Tensor], Tensor]) -> Tensor:
    """Moves images within their own reflection, so that no black border comes in, which an encoder would see."""
    H, W = images.shape[-2:]
    frame = min(math.ceil(max(H, W) / 4), H - 1, W - 1)  # the corners of a square reach out by 0.21 of its side
    moved = move(F.pad(images, (frame, frame, frame, frame), mode="reflect"))
    return moved[..., frame : frame + H, frame : frame + W]


def _blur(images: Tensor, level: float, draw: Draw) -> Tensor:
    side = min(images.shape[-2:])
    sigma = max(1e-3, level * side)  # of no effect
    radius = min(math.ceil(3 * sigma), side - 1)
    params = {"sigma": images.new_full((len(images),), sigma)}
    return GaussianBlur(kernel_size=2 * radius + 1).apply(images, params)


def _noise(images: Tensor, level: float, draw: Draw) -> Tensor:
    return GaussianNoise(level, p=1.0)(images, draw)


TRANSFORMS = {
    "colour": Transform("strength of brightness, contrast, saturation", (0, 0.25, 0.5, 0.75, 1), _colour, (1, 3)),
    "hue": Transform(
        "share of the colour circle", (0, 0.05, 0.1, 0.2, 0.5), lambda x, a, _: _turn_colours(x, hue=a), (3,)
    ),
    "grayscale": Transform(
        "share of colour taken away", (0, 0.5, 1), lambda x, a, _: _turn_colours(x, saturation=1 - a), (3,)
    ),
    "crop": Transform("share of the area", (1, 0.75, 0.5, 0.25, 0.08), _crop),
    "rotation": Transform("degrees", (0, 15, 45, 90, 180), _rotation),
    "shift": Transform("share of the side", (0, 0.125, 0.25), _shift),
    "blur": Transform("sigma as a share of the side", (0, 0.02, 0.04, 0.06, 0.1), _blur),
    "noise": Transform("standard deviation", (0, 0.05, 0.1, 0.2, 0.4), _noise),
}


def profile(encoder: nn.Module, projector: nn.Module | None, images: Tensor, seed: int = 0) -> dict[str, Any]:
    """Mean cosine similarity between the features of an image and of its transform, level by level.

    `encoder` takes float images in [0, 1] to h, `projector` h to z (None: no z). `images` (N, C, H, W) are uint8, or
    float in [0, 1]. Returns for each of `TRANSFORMS` that suits the number of channels a dict of `unit`, `levels`, `h`
    and `z`, with one number per level, the first of which is 1 (no change), and `reference`, the mean similarity of
    two different images for `h` and `z`: for an encoder to which all images are alike, the curves are high and the
    reference is as high. The networks run in eval mode where they are, and are handed back in the mode they were in.
    """
    n, suits = len(images), [name for name, t in TRANSFORMS.items() if images.shape[1] in t.channels or not t.channels]
    sums: dict[str, dict[str, list[float]]] = {name: {} for name in suits}
    originals: list[dict[str, Tensor]] = []
    with spaces(encoder, projector) as features:
        for index in torch.arange(n).split(BATCH):
            batch = _as_float(encoder, images[index])
            base = features(batch)
            originals.append(base)
            for name in suits:
                _, levels, apply, _ = TRANSFORMS[name]
                draw = Draw(seed, 0, index.to(batch.device), 0, f"invariance/{name}")
                for i, level in enumerate(levels[1:], start=1):
                    for space, x in features(apply(batch, level, draw)).items():
                        means = sums[name].setdefault(space, [1.0] + [0.0] * (len(levels) - 1))
                        means[i] += float(F.cosine_similarity(base[space], x).sum(dtype=torch.float64)) / n
    reference = {space: mean_similarity(torch.cat([part[space] for part in originals])) for space in originals[0]}
    return {
        name: {"unit": TRANSFORMS[name].unit, "levels": list(TRANSFORMS[name].levels)}
        | sums[name]
        | {"reference": dict(reference)}
        for name in suits
    }


def decode(
    encoder: nn.Module, projector: nn.Module | None, train: Tensor, test: Tensor, seed: int = 0
) -> dict[str, dict[str, Any]]:
    """Which transform was applied, as a linear probe reads it from h and from z: the questions of SimCLR's table 3.

    `train` and `test` are images (N, C, H, W), uint8 or float in [0, 1], with no image in both; those that are not
    square are cut to their central square. Every image is seen under every answer, so that chance is exact (the paper's
    80 % for colour or gray is the share of one of the answers there). Returns {question: {"h", "z": accuracy on `test`,
    "chance", "what"}}; colours are asked of images with three channels only.
    """
    with spaces(encoder, projector) as features:
        parts = []
        for part, images in (("train", train), ("test", test)):
            batches = [
                {name: features(seen) for name, seen in _variants(_as_float(encoder, images[index]), index, seed, part)}
                for index in torch.arange(len(images)).split(BATCH)
            ]
            parts.append(batches)
    names = ["h"] if projector is None else ["h", "z"]
    result: dict[str, dict[str, Any]] = {}
    for question, (answers, what) in QUESTIONS.items():
        if not set(answers) <= parts[0][0].keys():
            continue
        result[question] = {}
        for space in names:
            (x, y), (tx, ty) = (_answered(batches, answers, space) for batches in parts)
            result[question][space] = _accuracy(x, y, tx, ty, len(answers))
        result[question] |= {"chance": 1 / len(answers), "what": what}
    return result


QUESTIONS = {
    "colour": (("original", "gray"), "colour or gray"),
    "rotation": (("original", "90", "180", "270"), "which of 4 angles"),
    "noise": (("original", "noise"), "original or with noise of standard deviation 0.1"),
    "sobel": (("original", "sobel"), "original or its edges (Sobel)"),
}


def _variants(images: Tensor, index: Tensor, seed: int, part: str) -> Iterator[tuple[str, Tensor]]:
    """Every answer to a question, from float images (B, C, H, W). Each part has noise of its own, which a probe could
    otherwise memorise.
    """
    H, W = images.shape[-2:]
    side = min(H, W)
    top, left = (H - side) // 2, (W - side) // 2
    images = images[..., top : top + side, left : left + side]
    yield "original", images
    if images.shape[1] == 3:
        yield "gray", Grayscale(p=1.0).apply(images, {})
    for quarters in (1, 2, 3):
        yield str(90 * quarters), images.rot90(quarters, dims=(2, 3))
    yield "noise", _noise(images, 0.1, Draw(seed, 0, index.to(images.device), 0, f"decode/noise/{part}"))
    yield "sobel", Sobel(p=1.0).apply(images, {})


def _answered(
    batches: list[dict[str, dict[str, Tensor]]], answers: tuple[str, ...], space: str
) -> tuple[Tensor, Tensor]:
    """Features of all answers, concatenated, and the number of the answer of each row."""
    x = [torch.cat([batch[answer][space] for batch in batches]) for answer in answers]
    return torch.cat(x), torch.arange(len(answers), device=x[0].device).repeat_interleave(len(x[0]))


def factors(
    train_h: Tensor, train_factors: Mapping[str, Tensor], test_h: Tensor, test_factors: Mapping[str, Tensor]
) -> dict[str, dict[str, Any]]:
    """How much of what is known of each image (`SampleSet.factors`) a linear map reads from its features (N, D).

    Integers, and numbers with two values, are classes: accuracy of a linear probe; `chance` is the share of the largest
    class. Others are continuous: R^2 of ridge regression on the test part, where 0 is the answer that needs no features
    (and less is worse); of those in `CIRCLES`, R^2 of sine and cosine together. Factors with a single value are left
    out. Returns {name: {"value", "chance", "kind": "accuracy" | "r2"}}.
    """
    result: dict[str, dict[str, Any]] = {}
    for name, values in train_factors.items():
        values, answers = values.to(train_h.device), test_factors[name].to(train_h.device)
        classes = values.unique()
        if len(classes) < 2:
            continue
        if len(classes) == 2 or not values.is_floating_point():
            y = torch.searchsorted(classes, values)
            known = torch.searchsorted(classes, answers).clamp_max(len(classes) - 1)
            known[classes[known] != answers] = -1  # of a class that the training part lacks: always a miss
            value = _accuracy(train_h, y, test_h, known, len(classes))
            chance, kind = float(torch.stack([(answers == c).float().mean() for c in classes]).max()), "accuracy"
        else:
            period = CIRCLES.get(name)
            y, ty = _targets(values, period), _targets(answers, period)
            value, chance, kind = _r2(train_h, y, test_h, ty), 0.0, "r2"
        result[name] = {"value": value, "chance": chance, "kind": kind}
    return result


def _targets(values: Tensor, period: float | None) -> Tensor:
    """float64 (N, 1), or sine and cosine (N, 2)."""
    values = values.double()[:, None]
    if period is None:
        return values
    angle = values * (2 * math.pi / period)
    return torch.cat([angle.sin(), angle.cos()], dim=1)


def _accuracy(x: Tensor, y: Tensor, test_x: Tensor, test_y: Tensor, classes: int) -> float:
    head = fit_linear(x, y, classes, L2, tol=1e-6)
    return float((head.logits(test_x).argmax(dim=1) == test_y).double().mean())


def _r2(x: Tensor, y: Tensor, test_x: Tensor, test_y: Tensor) -> float:
    """Share of the test variance about the training mean that ridge regression on standardised features explains."""
    mean, centre = x.double().mean(dim=0), y.mean(dim=0)
    std = x.double().std(dim=0, correction=0)
    std[x.amax(dim=0) == x.amin(dim=0)] = 1.0
    standardised, test = (x - mean) / std, (test_x - mean) / std
    gram = standardised.T @ standardised / len(x)
    gram.diagonal().add_(L2)
    weight = torch.linalg.solve(gram, standardised.T @ (y - centre) / len(x))
    error, spread = (test_y - centre - test @ weight).square().sum(), (test_y - centre).square().sum()
    return float(1 - error / spread)


def _as_float(encoder: nn.Module, images: Tensor) -> Tensor:
    home = next((p.device for p in encoder.parameters()), images.device)
    return as_float(images.to(home))
