"""The measurements of a card, each of one thing on every encoder, from features that are extracted once.

What they return goes into `card.json` unchanged: plain containers, with the encoders by name.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from twoview.data.demand import moved
from twoview.data.set import SampleSet
from twoview.encoder.frozen import Frozen
from twoview.errors import UserError
from twoview.evaluate.classify.calibration import reliability
from twoview.evaluate.classify.knn import Neighbours, nearest, vote
from twoview.evaluate.classify.labelled import labelled_rows
from twoview.evaluate.classify.linear import ConvexResult, probe
from twoview.evaluate.describe import invariance
from twoview.evaluate.describe.corruptions import CORRUPTIONS, SEVERITIES, corrupt, suited
from twoview.evaluate.describe.quality import quality
from twoview.evaluate.features import extract, spaces
from twoview.rng import permutation
from twoview.run.checkpoint import instantiate_own
from twoview.stats.intervals import bootstrap_interval, mean_interval, wilson
from twoview.stats.paired import paired

RUN, UNTRAINED, OTHER = "run", "untrained", "other"  # names of the encoders
KNN = (200, 0.1)  # k and temperature of the score beside the grid, fixed before any test image is seen
BATCH = 250  # images that are encoded at once
FRESH = 10**6  # an epoch that no run has seen: its views are new


@dataclass
class Encoder:
    """One of the encoders of a card, with its features (N, D) of both splits."""

    network: Frozen
    projector: nn.Module | None
    train: Tensor
    test: Tensor
    head: ConvexResult | None = None  # its linear probe, once that is fitted
    neighbours: Neighbours | None = None  # of the test images among the training images


@dataclass
class Judged:
    """What is measured: samples, encoders, settings. `right` collects which test samples are classified correctly."""

    train: SampleSet
    test: SampleSet
    encoders: dict[str, Encoder]
    config: Mapping[str, Any]
    device: torch.device
    right: dict[str, dict[str, Tensor]] = field(default_factory=dict)  # {score: {encoder: bool (M,)}}

    @property
    def classes(self) -> int:
        return len(self.train.classes)

    @property
    def labels(self) -> Tensor:
        assert self.train.labels is not None
        return self.train.labels.to(self.device)

    @property
    def answers(self) -> Tensor:
        assert self.test.labels is not None
        return self.test.labels.to(self.device)

    def images(self, index: Tensor) -> Tensor:
        """Test images by their numbers (B,), float32 (B, C, H, W) in [0, 1]; UserError for data that are no images."""
        if self.test.preprocess.kind != "image":
            raise UserError(f"it is made for images, and {self.test.name} holds data of another kind")
        images = self.test.preprocess.prepare(self.test.fetch(index))
        assert isinstance(images, Tensor)
        return images

    def some(self, count: int, stream: str) -> Tensor:
        """Numbers of `count` test images, in order: the same ones for every encoder and run."""
        drawn = permutation(len(self.test), self.config["seed"], 0, stream)[:count]
        return drawn.sort().values

    def fit(self, encoder: Encoder, rows: Tensor | None = None, seed: int | None = None) -> ConvexResult:
        """The convex probe on all training images or on some."""
        x, y = (encoder.train, self.labels) if rows is None else (encoder.train[rows], self.labels[rows])
        seed = self.config["seed"] if seed is None else seed
        return probe(
            x, y, encoder.test, self.answers, self.classes, self.config["strengths"], self.config["holdout"], seed
        )


def linear(judged: Judged) -> dict[str, Any]:
    """The probe of each encoder, with ridge regression beside it and how well its probabilities are calibrated."""
    found = {}
    right: dict[str, dict[str, Tensor]] = {"linear": {}, "ridge": {}, "top5": {}}
    for name, encoder in judged.encoders.items():
        encoder.head = judged.fit(encoder)
        logits = encoder.head.head.logits(encoder.test)
        right["linear"][name] = (logits.argmax(1) == judged.answers).cpu()
        right["ridge"][name] = (encoder.head.ridge_head.logits(encoder.test).argmax(1) == judged.answers).cpu()
        if encoder.head.top5 is not None:
            right["top5"][name] = (logits.topk(5).indices == judged.answers[:, None]).any(1).cpu()
        found[name] = encoder.head.plain() | {"reliability": reliability(logits.softmax(1), judged.answers)}
    judged.right |= {score: hits for score, hits in right.items() if hits}
    of_class = judged.answers.cpu()[:, None] == torch.arange(judged.classes)  # (M, classes)
    for name in judged.encoders:
        if name != RUN:
            found[name]["per_class_paired"] = [
                paired(right["linear"][RUN][own], right["linear"][name][own]).plain() if own.any() else None
                for own in of_class.T
            ]
    return found


def neighbours(judged: Judged) -> dict[str, Any]:
    """Nearest neighbours among the training images, for kNN and for the sheet. Needs no labels."""
    most = max(KNN[0], *judged.config["k"])
    for encoder in judged.encoders.values():
        encoder.neighbours = nearest(encoder.train, encoder.test, most)
    return {}


def knn(judged: Judged) -> dict[str, Any]:
    """Accuracy for every k and temperature; `top1` is that of the fixed setting, which the grid may lack."""
    k, temperature = judged.config["k"], judged.config["temperature"]
    found: dict[str, Any] = {"k": k, "temperature": temperature, "fixed": list(KNN)}
    judged.right["knn"] = {}

    def right(encoder: Encoder, k: int, t: float) -> Tensor:
        assert encoder.neighbours is not None
        return vote(encoder.neighbours, judged.labels, k, t, judged.classes).argmax(1) == judged.answers

    for name, encoder in judged.encoders.items():
        grid = [[float(right(encoder, n, t).float().mean()) for t in temperature] for n in k]
        hits = right(encoder, *KNN).cpu()
        judged.right["knn"][name] = hits
        interval = wilson(int(hits.sum()), len(hits))
        found[name] = {"top1": float(hits.float().mean()), "interval": interval.limits, "grid": grid}
    return found


def few_labels(judged: Judged) -> dict[str, Any]:
    """The probe on a share of the labels, the same images for every encoder. Intervals are over draws of the images;
    with all labels they are over the test images, as in `linear`.
    """
    found: dict[str, Any] = {"seeds": judged.config["label_seeds"], "fractions": []}
    for fraction in sorted(judged.config["fractions"]):
        entry: dict[str, Any] = {"fraction": fraction}
        try:
            values = _values(judged, fraction, entry)
        except UserError as error:
            entry["missing"] = str(error)
            values = {}
        for name, v in values.items():
            mean, own = mean_interval(v), values[RUN]
            entry[name] = {"values": v, "mean": mean.mean, "interval": mean.limits}
            if name != RUN:
                gap = mean_interval([a - b for a, b in zip(own, v, strict=True)])
                entry[name]["difference"] = {"mean": gap.mean, "interval": gap.limits}
            if fraction == 1:
                head = judged.encoders[name].head
                assert head is not None
                entry[name]["interval"] = head.interval.limits
                if name != RUN:
                    one = paired(judged.right["linear"][RUN], judged.right["linear"][name])
                    entry[name]["difference"] = {"mean": one.mean, "interval": one.limits}
        found["fractions"].append(entry)
    return found


def _values(judged: Judged, fraction: float, entry: dict[str, Any]) -> dict[str, list[float]]:
    if fraction == 1:
        entry["images"] = len(judged.train)
        return {name: [e.head.top1] for name, e in judged.encoders.items() if e.head is not None}
    values: dict[str, list[float]] = {name: [] for name in judged.encoders}
    for seed in range(judged.config["label_seeds"]):
        rows = labelled_rows(judged.labels, judged.train.classes, fraction, seed)
        entry["images"] = len(rows)
        for name, encoder in judged.encoders.items():
            values[name].append(judged.fit(encoder, rows.to(judged.device), seed).top1)
    return values


def robustness(judged: Judged) -> dict[str, Any]:
    """Accuracy of the probe's classifier, fitted on images as they are, on corrupted test images."""
    index = judged.some(judged.config["corruption_images"], "corrupted")
    images, answers = judged.images(index), judged.answers.cpu()[index]
    names = suited(images.shape[1])
    found: dict[str, Any] = {"images": len(index), "severities": list(SEVERITIES)}
    found["groups"] = {name: CORRUPTIONS[name].group for name in names}
    of_group = {g: [i for i, n in enumerate(names) if CORRUPTIONS[n].group == g] for g in found["groups"].values()}
    right = {encoder: torch.zeros(len(names), len(SEVERITIES), len(index)) for encoder in judged.encoders}
    for i, name in enumerate(names):
        for j, severity in enumerate(SEVERITIES):
            corrupted = corrupt(images, name, severity, index, judged.config["seed"])
            for encoder, hits in right.items():
                hits[i, j] = _classify(judged.encoders[encoder], corrupted, judged.device) == answers
    clean = {name: _classify(e, images, judged.device) == answers for name, e in judged.encoders.items()}
    judged.right["clean"] = clean
    for encoder, hits in right.items():
        found[encoder] = {
            "clean": float(clean[encoder].float().mean()),
            "clean_interval": wilson(int(clean[encoder].sum()), len(index)).limits,
            **_over_images(hits, right[RUN] if encoder != RUN else None),
            "accuracy": {name: hits[i].mean(1).tolist() for i, name in enumerate(names)},
            "by_group": {
                group: _over_images(hits[rows], right[RUN][rows] if encoder != RUN else None)
                for group, rows in of_group.items()
            },
        }
    return found


def _over_images(hits: Tensor, own: Tensor | None) -> dict[str, Any]:
    """Mean of `hits` (kinds, severities, n) with its interval over images, and that of `own` less it, by image."""

    def over(x: Tensor) -> dict[str, Any]:
        spread = bootstrap_interval(x.mean((0, 1)).double().numpy())  # of an image: the share of its corruptions
        return {"mean": spread.mean, "interval": spread.limits}

    return over(hits) | ({} if own is None else {"difference": over(own - hits)})


def _classify(encoder: Encoder, images: Tensor, device: torch.device) -> Tensor:
    """Predicted classes (B,), on the CPU, of float images in [0, 1]."""
    assert encoder.head is not None
    with spaces(encoder.network, None) as features:
        h = torch.cat([features(part.to(device))["h"] for part in images.split(BATCH)])
    return encoder.head.head.logits(h).argmax(1).cpu()


def pairs(judged: Judged) -> dict[str, Any]:
    """Quality of h and z on positives that the run's own policy makes of test images."""
    network = judged.encoders[RUN].network
    run = network.config
    if not isinstance(run.get("augment"), dict):
        raise UserError("the checkpoint does not say by which policy the positives were made")
    index = judged.some(judged.config["quality_images"], "positives")
    views = instantiate_own(run["augment"], "augment", preprocess=network.preprocess, seed=run.get("seed", 0)).to(
        judged.device
    )
    views.attach(judged.train.to(judged.device))
    parts: dict[str, list[list[dict[str, Tensor]]]] = {name: [[], []] for name in judged.encoders}
    for some in index.split(BATCH):
        samples = moved(judged.test.fetch(some), judged.device)
        two = views.prepared(samples, some.to(judged.device), epoch=FRESH)[:2]
        for name, encoder in judged.encoders.items():
            own = encoder.network
            for side, view in enumerate(two):  # each encoder has a preprocessing of its own
                with spaces(own, encoder.projector) as features:
                    parts[name][side].append(features(view))
    found: dict[str, Any] = {"images": len(index)}
    for name, (first, second) in parts.items():
        joined = [{space: torch.cat([part[space] for part in side]) for space in side[0]} for side in (first, second)]
        found[name] = {space: quality(joined[0][space], joined[1][space]) for space in joined[0]}
    return found


def ignored(judged: Judged) -> dict[str, Any]:
    """Invariance profiles of each encoder."""
    images = judged.images(judged.some(judged.config["invariance_images"], "transformed"))
    found: dict[str, Any] = {"images": len(images)}
    for name, encoder in judged.encoders.items():
        found[name] = invariance.profile(encoder.network, encoder.projector, images, judged.config["seed"])
    return found


def transfer(judged: Judged, elsewhere: Mapping[str, tuple[SampleSet, SampleSet]]) -> dict[str, Any]:
    """Linear probe and kNN on other data: training and test images by the name of the set."""
    found = {}
    for name, (train, test) in elsewhere.items():
        other = Judged(train, test, {}, judged.config, judged.device)
        for which, encoder in judged.encoders.items():
            x, y = (extract(encoder.network, images, device=judged.device) for images in (train, test))
            other.encoders[which] = Encoder(encoder.network, None, x.to(judged.device), y.to(judged.device))
        scores: dict[str, Any] = {"classes": other.classes, "train": len(train), "test": len(test)}
        scores["linear"] = {
            which: {key: r[key] for key in ("top1", "interval", "ece", "l2", "ridge")}
            for which, r in linear(other).items()
        }
        neighbours(other)
        scores["knn"] = {which: r for which, r in knn(other).items() if which in other.encoders}
        scores["paired"] = differences(other.right)
        found[name] = scores
    return found


def differences(right: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Any]:
    """The run against every other encoder on the same images, for each score (`twoview.stats.paired`)."""
    return {
        score: {name: paired(hits[RUN], other).plain() for name, other in hits.items() if name != RUN}
        for score, hits in right.items()
    }


def collapsed(encoders: Mapping[str, Encoder]) -> Sequence[str]:
    """The encoders that give every training image the same features, up to rounding."""
    return [
        name
        for name, e in encoders.items()
        if float((e.train - e.train[:1]).abs().amax()) <= 1e-5 * max(float(e.train.abs().amax()), math.ulp(1.0))
    ]
