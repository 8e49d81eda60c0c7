"""What the commands share that take something out of a run: which run, which weights, on which device, and a file that
is whole or not there.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor

from twoview.cli import schema
from twoview.data.image.decode import in_threads
from twoview.data.set import SampleSet
from twoview.encoder.frozen import Frozen, digest
from twoview.errors import UserError
from twoview.evaluate.features import extract
from twoview.rng import permutation
from twoview.run.checkpoint import EncoderOf, build_encoder, instantiate_own, load_encoder
from twoview.run.provenance import commit, versions

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


def check(config: Mapping[str, Any], keys: Mapping[str, Any]) -> None:
    """UserError for a value of a wrong type, and where no run is named."""
    schema.check_keys(config, keys)
    if not config["ckpt"]:
        raise UserError("which run? Give its checkpoint: ckpt=<run>/last.ckpt")


def device_of(name: str) -> torch.device:
    """The device that auto, cpu or cuda means on this machine."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device=cuda, but torch finds no GPU on this machine; use device=cpu")
    return torch.device("cuda" if name != "cpu" and torch.cuda.is_available() else "cpu")


def checkpoint_file(ckpt: str) -> Path:
    """The file that `ckpt` names: a folder means the `last.ckpt` in it."""
    path = Path(ckpt).expanduser()
    return path / "last.ckpt" if path.is_dir() else path


def origin(config: Mapping[str, Any], encoder: Frozen) -> dict[str, Any]:
    """Where an encoder came from and what it was read with, in plain containers."""
    return {
        "checkpoint": str(config["ckpt"]),
        "checkpoint_sha256": hashlib.sha256(checkpoint_file(config["ckpt"]).read_bytes()).hexdigest(),
        "encoder_of": config["encoder_of"],
        "encoder_digest": digest(encoder),
        "versions": versions(),
        "commit": commit(),
    }


def fetch(images: SampleSet, index: Tensor) -> Tensor:
    """uint8 (B, C, H, W); what is decoded on demand, in threads."""
    if images.in_memory:
        return images.fetch(index)
    return torch.stack(list(in_threads(images.samples.__getitem__, index.tolist())))


@dataclass(frozen=True)
class Subject:
    """An encoder to be judged and the labelled images to judge it on."""

    encoder: Frozen
    train: SampleSet
    test: SampleSet
    device: torch.device

    def features(self, encoder: Frozen | None = None) -> tuple[Tensor, Tensor]:
        """Features of both splits (N, D), float32 on the device; UserError if extracting them changed the encoder."""
        encoder = encoder or self.encoder
        with frozen(encoder):
            train, test = (
                extract(encoder, images, device=self.device).to(self.device) for images in (self.train, self.test)
            )
        return train, test

    def untrained(self) -> Frozen:
        """An encoder of the same shape with the weights that the run started from."""
        config: dict[str, Any] = self.encoder.config  # type: ignore[assignment]
        pl.seed_everything(config["seed"], workers=True, verbose=False)
        fresh = Frozen(build_encoder(config), self.encoder.mean.tolist(), self.encoder.std.tolist())
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
    """What a command's `ckpt`, `data` (default: the data of the run) and `device` name. With `force`, images of
    another size than in training are taken.

    With `labelled=False` images need no labels, and where there is no test split a tenth of the training images, drawn
    from seed 0, takes its place.
    """
    check(config, KEYS)
    device = device_of(config["device"])
    encoder = load_encoder(config["ckpt"], config["encoder_of"])
    own: dict[str, Any] = encoder.config  # type: ignore[assignment]
    if config.get("data"):
        schema.check(config["data"], "data")
        load = schema.build(config["data"])
    else:
        load = instantiate_own(own["data"], "data")
    train, test = load(split="train"), load(split="test")
    if test is None:
        if labelled:
            raise UserError(f"{train.name} has no test split to score on; choose a labelled set by data=...")
        order = permutation(len(train), seed=0, epoch=0, stream="no test split")
        rest, some = order.tensor_split([len(train) - max(1, len(train) // 10)])
        train, test = train.subset(rest.sort().values), train.subset(some.sort().values)
    for images, split in ((train, "train"), (test, "test")):
        if labelled and images.labels is None:
            raise UserError(
                f"{images.name} has no labels in its {split} split, and a score needs them; "
                "choose a labelled set by data=..."
            )
    if train.shape[0] != len(encoder.mean):
        raise UserError(f"the encoder takes images of {len(encoder.mean)} channels, {train.name} has {train.shape[0]}")
    seen: Any = getattr(encoder, "image_shape", None)
    if seen and list(train.shape) != list(seen):
        text = f"the encoder was trained on images of {_size(seen)} pixels, {train.name} has {_size(train.shape)}"
        if not config.get("force"):
            raise UserError(f"{text}: its score would say little; resize them by data.size=..., or use force=true")
        log.warning("%s", text)
    return Subject(encoder, train, test, device)


def _size(shape: Any) -> str:
    return f"{shape[1]} x {shape[2]}"
