"""Everything that a run is made of, built from its configuration."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn

from twoview.augment.views import TwoViews
from twoview.cli import schema
from twoview.data.batches import TwoViewDataModule
from twoview.data.set import SampleSet
from twoview.encoder.frozen import digest
from twoview.encoder.weights import RANDOM
from twoview.errors import UserError
from twoview.model.base import Begin, Method
from twoview.run.checkpoint import STATE
from twoview.run.identity import Identity, code_digest, config_hash, data_digest, follow, relevant, statistics_of
from twoview.run.resume import STARTS, refuse_misfit, refuse_other_steps, source
from twoview.run.saving import Checkpoints
from twoview.train.compiled import Compiler
from twoview.train.size import refuse_too_large
from twoview.train.trainer import found_accelerator
from twoview.watch.bar import ProgressBar
from twoview.watch.board import Board, TensorBoard
from twoview.watch.knn import KNNMonitor
from twoview.watch.meter import Meter
from twoview.watch.views import ViewSheet

log = logging.getLogger(__name__)

FEW = 500  # images: below, what other images have taught is worth more than what these can

Load = Callable[..., SampleSet | None]  # of a split


@dataclass(frozen=True)
class Assembly:
    """A run that is ready to begin, in `folder`. `start` is the checkpoint that it goes on from, if there is one;
    `stored` the configuration as the run's files hold it, without what is said of this start alone.
    """

    config: dict[str, Any]
    stored: dict[str, Any]
    folder: Path
    start: Path | None
    data: TwoViewDataModule
    model: Method
    meter: Meter
    knn: KNNMonitor | None
    checkpoints: Checkpoints
    trainer: pl.Trainer


def assemble(config: dict[str, Any], folder: Path) -> Assembly:
    """Builds what `config` says, in the order in which it fits together. Writes nothing. Raises UserError for parts
    that do not fit each other, or the checkpoint that the run is to go on from.
    """
    start, checkpoint = source(config["resume"], folder)
    pl.seed_everything(config["seed"], workers=True, verbose=False)

    load: Load = schema.build(config["data"])
    train = load(split="train")
    assert train is not None
    views: TwoViews = schema.build(config["augment"], preprocess=train.preprocess, seed=config["seed"])
    data: TwoViewDataModule = schema.build(config["loader"], train=train, views=views)
    config = config | {"batch_size": data.batch_size, "loader": config["loader"] | {"batch_size": data.batch_size}}
    refuse_too_large(config, found_accelerator(config["trainer"].get("accelerator", "auto")) == "cpu")
    encoder, weights = _encoder(config["encoder"], checkpoint)
    if checkpoint is None and not weights:
        _say_few(train, config["encoder"])
    shapes = _view_shapes(encoder, config["encoder"].get("channels"), views, train)
    if config["channels_last"]:
        encoder = encoder.to(memory_format=torch.channels_last)
    model: Method = schema.build(config["model"], encoder=encoder, optimizer=schema.build(config["optimizer"]))
    model.recipe.build(model, config["batch_size"], steps=1, epochs=config["epochs"])  # what it refuses is said now

    meter = Meter(config["log_every_steps"])
    knn = _knn(config, load, train, meter)
    quality = schema.build(config["quality"], meter=meter) if config.get("quality") else None
    stored = _stored(config)
    checkpoints: Checkpoints = schema.build(
        config["checkpoint"], config=stored, preprocess=train.preprocess, shape=train.shape
    )
    trainer: pl.Trainer = schema.build(
        config["trainer"],
        run_dir=str(folder),
        max_epochs=config["epochs"],
        callbacks=[meter, *(m for m in (knn, quality) if m), Board(stored, meter), ViewSheet(), ProgressBar(meter)],
        checkpoints=checkpoints,
        logger=TensorBoard(save_dir=str(folder), name="", version=""),
    )
    trainer.precision_plugin.convert_module(model)  # Lightning does so after a checkpoint is loaded, and would round it
    model.begin(_begin(config, data, trainer, shapes))
    identity = Identity(
        config_hash(config),
        data_digest(train),
        code_digest(),
        str(trainer.precision),
        test=data_digest(knn.test) if knn else "",
        statistics=statistics_of(config["trainer"].get("sync_batchnorm", True), trainer.world_size),
        weights=weights,
        package=getattr(encoder, "package", ""),
    )
    if checkpoint is not None and start is not None:
        identity = follow(identity, config, checkpoint, start, bool(config.get("allow_changes")))
        refuse_misfit(checkpoint, start, model)
        refuse_other_steps(checkpoint, start, data.batches_per_epoch, config["epochs"])
    checkpoints.identity = identity.stored()
    checkpoints.claims = relevant(config) | {
        "data": identity.data,
        "code": identity.code,
        "torch": str(torch.__version__),
        "step": 0 if checkpoint is None else checkpoint["global_step"],
        "processes": trainer.world_size,
    }
    return Assembly(config, stored, folder, start, data, model, meter, knn, checkpoints, trainer)


def _encoder(section: dict[str, Any], checkpoint: dict[str, Any] | None) -> tuple[nn.Module, str]:
    """The encoder, and the digest of the weights that it starts from; "" for random ones. A run that goes on has its
    weights from the checkpoint: UserError where it is told to start from others.
    """
    named = section.get("weights", RANDOM)
    if named == RANDOM:
        return schema.build(section), ""
    if checkpoint is None:
        encoder = schema.build(section)
        return encoder, digest(encoder)[:12]
    if checkpoint["twoview"]["config"]["encoder"].get("weights") != named:
        raise UserError(
            f"encoder.weights={named} is what a run starts from, and this one goes on: leave it out, or start another "
            "run in a folder of its own"
        )
    return schema.build(section | {"weights": RANDOM}), ""  # `follow` keeps the digest


def _say_few(train: SampleSet, section: dict[str, Any]) -> None:
    """Tells who would train on a handful of images from random weights what serves better."""
    if len(train) < FEW and train.preprocess.kind == "image" and "weights" in section:
        log.info(
            "%d images are too few to learn from with random weights: start from others by "
            "encoder.weights=<file or run>",
            len(train),
        )


def _view_shapes(
    encoder: nn.Module, channels: int | None, views: TwoViews, train: SampleSet
) -> tuple[tuple[int, ...], ...]:
    """The shapes of a sample's views. Sends those of the first sample through the encoder, so that what does not fit is
    said before the first step. `channels` of images that it is for, where that is a key of its configuration.
    """
    first = torch.arange(1)
    made = views(train.fetch(first), first, epoch=0)
    for shape, view in {tuple(view.shape[1:]): view for view in made}.items():
        if channels is not None and len(shape) == 3 and shape[0] != channels:
            raise UserError(
                f"the views of {train.name} have {shape[0]} channel{'s' * (shape[0] > 1)}, and the encoder is for "
                f"{channels}: set encoder.channels={shape[0]}"
            )
        try:
            with torch.no_grad():
                h = encoder.eval()(view)
        except (RuntimeError, AssertionError) as error:  # timm's networks assert their size
            raise UserError(
                f"the encoder does not fit {train.name}, whose views have the shape {shape}: "
                f"{str(error).splitlines()[0]}"
            ) from error
        finally:
            encoder.train()
        if h.shape != (1, encoder.dim):
            raise UserError(f"the encoder gives {tuple(h.shape)} for one sample, but its `dim` is {encoder.dim}")
    if any(name.startswith(STATE) for name in encoder.state_dict()):
        raise UserError(
            "a part of the encoder is called preprocess, which is what stands before it: give it another name"
        )
    return tuple(tuple(view.shape[1:]) for view in made)


def _knn(config: dict[str, Any], load: Load, train: SampleSet, meter: Meter) -> KNNMonitor | None:
    if config["knn"] is None:
        return None
    test = load(split="test")
    if train.labels is None or test is None or test.labels is None:
        log.info("no kNN while training: %s has no labelled train and test split", train.name)
        return None
    monitor: KNNMonitor = schema.build(config["knn"], train=train.labelled(), test=test.labelled(), meter=meter)
    return monitor


def _stored(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration without wishes for this start, which are none for later ones."""
    stored = {key: value for key, value in config.items() if key not in STARTS}
    if "fresh_queue" in stored["model"]:
        stored["model"] = stored["model"] | {"fresh_queue": False}
    return stored


def _begin(
    config: dict[str, Any], data: TwoViewDataModule, trainer: pl.Trainer, shapes: tuple[tuple[int, ...], ...]
) -> Begin:
    """What the method is told of the run."""
    steps, labels = data.batches_per_epoch * config["epochs"], data.train.labels
    through = Compiler(config.get("compile") or False)
    through.decide(trainer.strategy.root_device, steps, trainer.world_size)
    return Begin(
        global_batch_size=config["batch_size"],
        steps=steps,
        epochs=config["epochs"],
        last_batch=data.last_batch,
        world_size=trainer.world_size,
        shares=frozenset(data.shares(trainer.world_size)),
        even_shares=data.drop_last,
        view_shapes=shapes,
        mixed=data.views.mix is not None,
        labelled=labels is not None and bool((labels >= 0).any()),
        metered=True,
        through=through,
        pieces=config.get("pieces") or 1,
    )
