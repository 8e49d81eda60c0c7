"""One arm of a study with one seed: an ordinary run of the trainer, and then what its encoder is worth and knows."""

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor

from twoview.cli import schema
from twoview.cli.entry import output_dir, plain, silent
from twoview.cli.explain import explain
from twoview.cli.trust import trusting
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
from twoview.run.atomic import save
from twoview.run.checkpoint import load_encoder, load_projector
from twoview.run.folder import CHECKPOINT, SUMMARY, read_json
from twoview.run.identity import config_hash
from twoview.stats.intervals import wilson
from twoview.train import pretrain

log = logging.getLogger(__name__)

OF_THE_STUDY = ("study", "judge", "budget", "dry_run", "folder", "report")  # keys that `train.py` does not take
ABOUT, RESULT = "arm.json", "result.json"  # files of an arm, beside those of its run


@dataclass(frozen=True)
class Judge:
    """How the encoders of a study are judged, all in the same way.

    `images`: how many labelled training images the linear probe and the kNN classifier get, the same for all arms;
    null: all. `strengths`, `holdout`: of the probe (`evaluate.classify.linear`). `k`, `temperature`: of kNN. `profile`:
    images on which invariances are measured, 0 for none.
    """

    images: int | None = 10_000
    strengths: list[float] = field(default_factory=lambda: [1e-4, 1e-3, 1e-2, 1e-1])
    holdout: float = 0.1
    k: int = 200
    temperature: float = 0.1
    profile: int = 256

    def __post_init__(self) -> None:
        if self.images is not None and self.images < 2:
            raise UserError(f"judge.images must be null or at least 2, not {self.images}")
        if self.k < 1 or not self.temperature > 0 or self.profile < 0:
            raise UserError("judge needs k of at least 1, a positive temperature and a profile of at least 0 images")
        if not self.strengths or not all(s > 0 for s in self.strengths) or not 0 < self.holdout < 1:
            raise UserError("judge needs strengths above 0, and a holdout between 0 and 1")

    @property
    def protocol(self) -> str:
        labelled = "all" if self.images is None else f"{self.images:,}"
        return (
            f"convex probe on h ({labelled} labelled training images, L2 strength of {len(self.strengths)} chosen on "
            f"{self.holdout:.0%} of them) and kNN (k={self.k}, temperature {self.temperature:g}) on the same images; "
            "test set looked at once, after the last epoch"
        )

    @property
    def protocol_hash(self) -> str:
        return fingerprint(asdict(self))


def training_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a study's configuration that a run takes."""
    return {key: value for key, value in config.items() if key not in OF_THE_STUDY}


class Stopped(KeyboardInterrupt):
    """Ends the study: no launcher begins another arm. Its text is the reason, a signal or a result that could not be
    written.
    """


def run_arm(composed: DictConfig) -> str:
    """The task of Hydra's launcher, in this process or another: trains, judges, and writes `result.json`.

    Returns `finished`, `failed` (the error is in the file and the study goes on), or the reason why the run was
    stopped. Raises `Stopped` after a signal, and where the result cannot be written. An interrupted arm goes on from
    its checkpoint.
    """
    try:
        config = plain(composed)
        with trusting(config.get("trust")):
            status = _recorded(config, output_dir())
    except (OSError, UserError) as error:
        raise Stopped(explain(error)) from error
    if status in pretrain.EXIT_CODES:
        raise Stopped(status.removeprefix("stopped: "))
    return status


def _recorded(config: dict[str, Any], folder: Path) -> str:
    about = json.loads((folder / ABOUT).read_text())
    with silent(folder / "log.txt"):
        try:
            result = _run(training_config(config), schema.build(config["judge"]), folder)
        except Exception as error:
            log.exception("the arm failed")
            result = {"status": "failed", "error": explain(error)}
        if result["status"] in ("finished", "failed"):
            save(folder / RESULT, json.dumps(about | result, indent=1) + "\n")
    return str(result["status"])


def _run(config: dict[str, Any], judge: Judge, folder: Path) -> dict[str, Any]:
    summary = _finished(folder)
    if summary is None:
        summary = pretrain.run(config | {"resume": "auto"}, folder)
    if summary["status"] != "finished":
        return {"status": summary["status"]}
    started = time.monotonic()
    found = judged(config, judge, folder)
    return {
        "status": "finished",
        "error": None,
        "protocol": judge.protocol,
        "protocol_hash": judge.protocol_hash,
        "identity": summary["identity"],
        "pretext": {
            "loss": summary["loss"],
            "chance_loss": summary["chance_loss"],
            **summary["numbers"],
        },
        **found,
        "cost": {
            "training_seconds": summary["training_seconds"],
            "evaluation_seconds": round(time.monotonic() - started, 2),
            "images_per_second": summary["images_per_second"],
        },
        **{key: summary[key] for key in ("machine", "versions", "commit")},
    }


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
    load = schema.build(config["data"])
    train, test = load(split="train"), load(split="test")
    if train.labels is None or test is None or test.labels is None:
        raise UserError(f"a study compares accuracies, and {train.name} lacks labels or a test split")
    train, test = train.labelled(), test.labelled()
    some = permutation(len(train), seed=0, epoch=0, stream="judge")  # the same images for every arm and seed
    pairs = _pairs(config, train, some[:2000], encoder, projector)
    labelled = train.subset(some[: judge.images].sort().values)
    encoder.to(device)
    bank, queries = (extract(encoder, images, device=device).to(device) for images in (labelled, test))
    result = probe(
        bank, labelled.labels, queries, test.labels, len(train.classes), judge.strengths, judge.holdout, seed=0
    )
    assert labelled.labels is not None
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
            seen, first, second = (test.preprocess.prepare(test.fetch(part)) for part in parts)
            found["invariance"] = invariance.profile(encoder, projector, seen)
            found["decode"] = invariance.decode(encoder, projector, first, second)
        found["factors"] = _factors(bank, labelled, queries, test, projector)
    return found


@torch.no_grad()
def _pairs(
    config: Mapping[str, Any], train: SampleSet, index: Tensor, encoder: Frozen, projector: torch.nn.Module | None
) -> dict[str, Any]:
    """Quality of h and z on positives of the arm's own policy: what the pretext task made of them."""
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


def arm_hash(config: Mapping[str, Any]) -> str:
    """The name of an arm's folder: what its training configuration decides."""
    return config_hash(training_config(config))


def _finished(folder: Path) -> dict[str, Any] | None:
    """The summary of a run that has finished and whose weights are there."""
    summary = read_json(folder / SUMMARY)
    return summary if summary.get("status") == "finished" and (folder / CHECKPOINT).exists() else None
