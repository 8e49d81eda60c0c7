"""What the encoder of an arm scores, and what it knows and ignores."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from twoview.cli import schema
from twoview.data.set import SampleSet
from twoview.encoder.frozen import Frozen
from twoview.errors import UserError
from twoview.evaluate.classify.knn import knn_accuracy
from twoview.evaluate.classify.linear import probe
from twoview.evaluate.classify.score import fingerprint
from twoview.evaluate.describe import invariance
from twoview.evaluate.describe.quality import quality
from twoview.evaluate.features import extract
from twoview.evaluate.subject import frozen
from twoview.rng import permutation
from twoview.run.checkpoint import load_encoder, load_projector
from twoview.stats.intervals import wilson

OTHERS = 5_000  # training images that are scored at most, where the test set stays closed


@dataclass(frozen=True)
class Judge:
    """How the encoders of a study are judged, the same for all arms.

    `images`: labelled training images for the linear probe and the kNN classifier, null for all. `strengths`,
    `holdout`: of the probe (`evaluate.classify.linear`). `k`, `temperature`: of kNN. `scored_on`: what both are scored
    on, the test set, or `train`, other training images, for choices that must not see the test set. `profile`: images
    on which invariances are measured, 0 for none.
    """

    images: int | None = 10_000
    strengths: list[float] = field(default_factory=lambda: [1e-4, 1e-3, 1e-2, 1e-1])
    holdout: float = 0.1
    k: int = 200
    temperature: float = 0.1
    scored_on: str = "test"
    profile: int = 256

    def __post_init__(self) -> None:
        if self.images is not None and self.images < 2:
            raise UserError(f"judge.images must be null or at least 2, not {self.images}")
        if self.k < 1 or not self.temperature > 0 or self.profile < 0:
            raise UserError("judge needs k of at least 1, a positive temperature and a profile of at least 0 images")
        if not self.strengths or not all(s > 0 for s in self.strengths) or not 0 < self.holdout < 1:
            raise UserError("judge needs strengths above 0, and a holdout between 0 and 1")
        if self.scored_on not in ("test", "train"):
            raise UserError(f"judge.scored_on is test, or train (other training images), not {self.scored_on!r}")
        if self.scored_on == "train" and self.images is None:
            raise UserError("judge.scored_on=train needs a number of judge.images: what they leave over is scored")

    @property
    def protocol(self) -> str:
        labelled = "all" if self.images is None else f"{self.images:,}"
        scored = (
            "test set looked at once, after the last epoch"
            if self.scored_on == "test"
            else f"scored on up to {OTHERS:,} other training images; the test set stays closed"
        )
        return (
            f"convex probe on h ({labelled} labelled training images, L2 strength of {len(self.strengths)} chosen on "
            f"{self.holdout:.0%} of them) and kNN (k={self.k}, temperature {self.temperature:g}) on the same images; "
            f"{scored}"
        )

    def sets(self, data: Mapping[str, Any]) -> tuple[SampleSet, SampleSet, SampleSet]:
        """The training set, those of its images that the probe and kNN learn from, and the images that are scored.
        UserError if `data` allows no accuracy.
        """
        load = schema.build(data)
        train = load(split="train")
        test = load(split="test") if self.scored_on == "test" else train
        if train.labels is None or test is None or test.labels is None:
            raise UserError(
                f"a study compares accuracies, and {train.name} lacks labels or a test split; choose other data"
            )
        labelled = train.labelled()
        some = permutation(len(labelled), seed=0, epoch=0, stream="judge")  # the same for every arm and seed
        bank = labelled.subset(some[: self.images].sort().values)
        if self.scored_on == "test":
            return train, bank, test.labelled()
        others = some[self.images :][:OTHERS]
        if len(others) < 2:
            raise UserError(
                f"judge.images={self.images} leaves {len(others)} of the {len(labelled)} labelled training images to "
                "score on; take fewer"
            )
        return train, bank, labelled.subset(others.sort().values)

    def refuse_labels_read(self, model: Mapping[str, Any]) -> None:
        """UserError where the images that are scored would be among those whose labels the method learns from."""
        if self.scored_on == "train" and getattr(schema.found(model["_target_"]), "reads_labels", False):
            raise UserError(
                "judge.scored_on=train would score training images whose labels the method has learned from: "
                "judge.scored_on=test, or a method that reads no labels"
            )

    @property
    def protocol_hash(self) -> str:
        return fingerprint(asdict(self))


def judged(config: Mapping[str, Any], judge: Judge, folder: Path) -> dict[str, Any]:
    """What the encoder of a finished run scores (`linear`, `knn`), and what it knows and ignores.

    UserError if judging changed the encoder, and for data without labels or a test split.
    """
    encoder, projector = load_encoder(folder), load_projector(folder)
    with frozen(encoder):
        return _judged(config, judge, encoder, projector)


def _judged(
    config: Mapping[str, Any], judge: Judge, encoder: Frozen, projector: torch.nn.Module | None
) -> dict[str, Any]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train, labelled, test = judge.sets(config["data"])
    pairs = _pairs(config, train.labelled(), encoder, projector)
    encoder.to(device)
    bank, queries = (extract(encoder, images, device=device).to(device) for images in (labelled, test))
    result = probe(
        bank, labelled.labels, queries, test.labels, len(train.classes), judge.strengths, judge.holdout, seed=0
    )
    assert labelled.labels is not None
    assert test.labels is not None
    knn = knn_accuracy(
        bank, labelled.labels, queries, test.labels, min(judge.k, len(bank)), judge.temperature, len(train.classes)
    )
    found: dict[str, Any] = {
        "linear": {"top1": result.top1, "interval": result.interval.limits, "l2": result.l2},
        "knn": {"top1": knn, "interval": wilson(round(knn * len(test)), len(test)).limits},
        "quality": pairs,
        "invariance": {},
        "decode": {},
        "factors": {},
    }
    if judge.profile:
        projector = projector and projector.to(device)
        if test.preprocess.kind == "image":
            half = min(judge.profile, len(test) // 2)
            parts = torch.arange(min(judge.profile, len(test))), torch.arange(half), torch.arange(half, 2 * half)
            seen, first, second = (cast(Tensor, test.preprocess.prepare(test.fetch(part))) for part in parts)
            found["invariance"] = invariance.profile(encoder, projector, seen)
            found["decode"] = invariance.decode(encoder, projector, first, second)
        found["factors"] = _factors(bank, labelled, queries, test, projector)
    return found


@torch.no_grad()
def _pairs(
    config: Mapping[str, Any], train: SampleSet, encoder: Frozen, projector: torch.nn.Module | None
) -> dict[str, Any]:
    """Quality of h and z on positives of the arm's own policy: what the pretext task made of them."""
    index = permutation(len(train), seed=0, epoch=0, stream="judge")[:2000]
    views = schema.build(config["augment"], preprocess=train.preprocess, seed=config["seed"])
    views.attach(train)
    h = [[], []]  # type: list[list[Tensor]]
    for part in index.split(500):
        for i, view in enumerate(views(train.fetch(part), part, epoch=10**6)[:2]):  # an epoch that no run has seen
            h[i].append(encoder.encoder(view))
    h1, h2 = (torch.cat(parts) for parts in h)  # (N, D) each
    found = {"h": quality(h1, h2)}
    return found if projector is None else found | {"z": quality(projector(h1), projector(h2))}


def _factors(
    bank: Tensor, labelled: SampleSet, queries: Tensor, test: SampleSet, g: torch.nn.Module | None
) -> dict[str, Any]:
    """How well each recorded factor can be read from h, and from z if there is a head."""
    if not labelled.factors:
        return {}
    with torch.no_grad():
        spaces = {"h": (bank, queries)} | ({} if g is None else {"z": (g(bank), g(queries))})
    by_space = {space: invariance.factors(x, labelled.factors, y, test.factors) for space, (x, y) in spaces.items()}
    return {
        name: {space: values[name]["value"] for space, values in by_space.items()}
        | {"chance": found["chance"], "kind": found["kind"]}
        for name, found in by_space["h"].items()
    }
