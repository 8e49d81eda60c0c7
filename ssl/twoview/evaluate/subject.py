"""What a command judges: the encoder of a run, labelled samples and a device; and where these came from."""

import copy
import hashlib
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from torch import Tensor

from twoview.cli import schema
from twoview.data.demand import shape_words
from twoview.data.set import SampleSet
from twoview.encoder.frozen import Frozen, digest
from twoview.errors import UserError
from twoview.evaluate.features import extract
from twoview.rng import permutation
from twoview.run.checkpoint import EncoderOf, instantiate_own, load_encoder
from twoview.run.folder import checkpoint_file
from twoview.run.provenance import commit, machine, versions

log = logging.getLogger(__name__)

KEYS = {
    "ckpt": str | None,
    "encoder_of": EncoderOf,
    "baseline": bool,
    "device": Literal["auto", "cpu", "cuda"],
    "out": str | None,
    "debug": bool,
    "force": bool,
    "protocol": Literal["convex", "simclr", "moco", "dinov2", "fast"],
    "epochs": int | None,
    "strengths": list[float],
    "holdout": float,
    "seed": int,
    "k": int,
    "temperature": float,
}


Split = Literal["train", "test", "both"]


def check_run(config: Mapping[str, Any], keys: Mapping[str, Any]) -> None:
    """UserError for a value of a wrong type, and where `ckpt` names no run."""
    schema.check_keys(config, keys)
    if not config["ckpt"]:
        raise UserError("which run? Give its checkpoint: ckpt=<run>/last.ckpt")


def device_of(name: str) -> torch.device:
    """The device that `auto`, `cpu` or `cuda` means on this machine."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch finds no GPU on this machine; use device=cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def result_path(config: Mapping[str, Any], stem: str, data: str, suffix: str = ".json") -> Path:
    """Where a command writes: `out`, or a file beside the checkpoint, with the name of the data set in its own where
    that is not the run's.
    """
    if config["out"]:
        return Path(config["out"]).expanduser()
    return checkpoint_file(config["ckpt"]).with_name(f"{stem}{f'_{data}' if names_other_data(config) else ''}{suffix}")


def origin(config: Mapping[str, Any], encoder: Frozen) -> dict[str, Any]:
    """Where an encoder came from and what read it, in plain containers."""
    return {
        "checkpoint": str(config["ckpt"]),
        "checkpoint_sha256": hashlib.sha256(checkpoint_file(config["ckpt"]).read_bytes()).hexdigest(),
        "encoder_of": config["encoder_of"],
        "encoder_digest": digest(encoder),
        "versions": versions(),
        "commit": commit(),
    }


@dataclass(frozen=True)
class Subject:
    """An encoder to be judged and the labelled samples to judge it on."""

    encoder: Frozen
    train: SampleSet
    test: SampleSet
    device: torch.device

    def features(self, encoder: Frozen | None = None) -> tuple[Tensor, Tensor]:
        """Features of both splits (N, D), float32 on the device; UserError if extracting them changed the encoder."""
        encoder = encoder or self.encoder
        with frozen(encoder):
            train, test = (
                extract(encoder, samples, device=self.device).to(self.device) for samples in (self.train, self.test)
            )
        return train, test

    def untrained(self) -> Frozen:
        """An encoder of the same shape with the weights that the run started from."""
        config = self.encoder.config
        pl.seed_everything(config["seed"], workers=True, verbose=False)
        fresh = Frozen(instantiate_own(config["encoder"], "encoder"), copy.deepcopy(self.encoder.preprocess))
        return fresh.requires_grad_(False).eval()


@contextmanager
def frozen(encoder: Frozen) -> Iterator[dict[str, str]]:
    """Digests of the encoder `before` and, once its body has ended, `after`; UserError if they differ."""
    proof = {"before": digest(encoder)}
    yield proof
    proof["after"] = digest(encoder)
    if proof["after"] != proof["before"]:
        raise UserError("the encoder changed while it was judged: no number from it can be trusted")


def subject(config: dict[str, Any], labelled: bool = True) -> Subject:
    """What a command's `ckpt`, `data` (default: the data of the run) and `device` name. With `force`, samples of
    another shape than in training are taken. Of a set in which some samples have labels, those are taken.

    With `labelled=False` samples need no labels, and where there is no test split a tenth of the training samples,
    drawn from seed 0, takes its place.
    """
    check_run(config, KEYS)
    device = device_of(config["device"])
    encoder = load_encoder(config["ckpt"], config["encoder_of"])
    load = loader_of(config, encoder)
    train, test = load(split="train"), load(split="test")
    if test is None:
        if labelled:
            raise UserError(f"{train.name} has no test split to score on; choose a labelled set by data=...")
        order = permutation(len(train), seed=0, epoch=0, stream="no test split")
        rest, some = order.tensor_split([len(train) - max(1, len(train) // 10)])
        train, test = train.subset(rest.sort().values), train.subset(some.sort().values)
    train, test = train.labelled(), test.labelled()
    for samples, split in ((train, "train"), (test, "test")):
        if labelled and samples.labels is None:
            raise UserError(
                f"{samples.name} has no labels in its {split} split, and a score needs them; "
                "choose a labelled set by data=..."
            )
    check_shape(encoder, train, bool(config.get("force")))
    return Subject(encoder, train, test, device)


def loader_of(config: Mapping[str, Any], encoder: Frozen) -> Callable[..., Any]:
    """`load(split=...)` of the data that a command names, or else of the run's own, some of whose keys may be changed
    (`data.root=...`, where a set has been moved).
    """
    given = config.get("data") or {}
    if names_other_data(config):
        shape = encoder.shape
        if given.get("size", 0) is None and isinstance(shape, tuple) and len(shape) == 3 and shape[1] == shape[2]:
            given = {**given, "size": None if config.get("force") else shape[1]}  # images come to the size of training
        schema.check(given, "data")
        return schema.build(given)
    own = OmegaConf.to_container(OmegaConf.merge(encoder.config["data"], given))
    if given:
        schema.check(own, "data")
    return instantiate_own(own, "data")


def sets_of(config: Mapping[str, Any], encoder: Frozen) -> dict[str, SampleSet]:
    """The splits that a command names (`split`, of its data or the run's), by name; labels are not needed."""
    load = loader_of(config, encoder)
    splits = ["train", "test"] if config["split"] == "both" else [config["split"]]
    loaded = {split: load(split=split) for split in splits}
    found = {split: images for split, images in loaded.items() if images is not None}
    if not found:
        raise UserError(f"the data have no {config['split']} split; use split=train")
    if len(found) < len(loaded):
        log.info("%s has no test split: these are the features of train", found["train"].name)
    for images in found.values():
        check_shape(encoder, images, config["force"])
    return found


def names_other_data(config: Mapping[str, Any]) -> bool:
    """Whether a command names another data set than the run's own."""
    return "_target_" in (config.get("data") or {})


def provenance(config: Mapping[str, Any], judged: Subject, started: float) -> dict[str, Any]:
    """What a result says of itself: data, encoder, machine, and the time since `started` (`time.monotonic`)."""
    return {
        "data": judged.train.name,
        "classes": list(judged.train.classes),
        **origin(config, judged.encoder),
        "feature_layer": f"h: the encoder's output of {judged.encoder.dim} dimensions, before the projection head",
        "shape": judged.train.shape,
        "total_seconds": round(time.monotonic() - started, 2),
        "machine": machine(),
    }


def check_shape(encoder: Frozen, samples: SampleSet, force: bool) -> None:
    """UserError for samples that the encoder cannot take, and for those of another shape than it was trained on, unless
    `force`.
    """
    first = samples.fetch(torch.arange(1))
    try:
        encoder.preprocess(first)
    except (UserError, RuntimeError, TypeError, AssertionError, KeyError) as error:
        raise UserError(f"the encoder does not take the samples of {samples.name}: {_first_line(error)}") from error
    if encoder.shape is not None and encoder.shape != samples.shape:
        there, here = shape_words(encoder.shape), shape_words(samples.shape)
        text = f"the encoder was trained on samples of {there}, {samples.name} has samples of {here}"
        if not force:
            raise UserError(
                f"{text}: features would say little; resize them (images: data.size=...), or use force=true"
            )
        try:
            with torch.inference_mode():
                encoder(first)
        except (RuntimeError, AssertionError) as error:  # timm's networks assert their size
            raise UserError(
                f"the encoder does not fit {samples.name}: {text}, and takes no others ({_first_line(error)})"
            ) from error
        log.warning("%s", text)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
