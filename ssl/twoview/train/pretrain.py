"""One pre-training run, from a configuration to a folder with its weights, curves and summary."""

import json
import logging
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any, Literal

import pytorch_lightning as pl
import torch
import yaml
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

from twoview.augment.views import TwoViews
from twoview.cli import schema
from twoview.cli.entry import output_dir, overrides, plain
from twoview.cli.program import spelled
from twoview.cli.trust import trusting
from twoview.data.batches import TwoViewDataModule
from twoview.data.demand import shape_words
from twoview.data.preprocess import Preprocess
from twoview.data.set import SampleSet
from twoview.errors import UserError
from twoview.model.base import Begin, Method
from twoview.report.words import clock
from twoview.run.atomic import write_text
from twoview.run.checkpoint import STATE, refuse_foreign, save_encoder
from twoview.run.identity import Identity, code_digest, config_hash, data_digest, follow
from twoview.run.provenance import commit, machine, versions
from twoview.run.resume import STARTS, refuse_misfit, refuse_other_steps, resumed, source
from twoview.run.saving import Checkpoints, Interrupted, held
from twoview.train.budget import TrialStopped, epochs_within
from twoview.train.compiled import Compiler
from twoview.watch.bar import ProgressBar
from twoview.watch.doctor import parting_words
from twoview.watch.knn import KNNMonitor
from twoview.watch.meter import Meter
from twoview.watch.views import ViewSheet

log = logging.getLogger(__name__)

SECTIONS = ("loss", "data", "augment", "encoder", "model", "optimizer", "trainer", "loader", "checkpoint")
MONITORS = ("knn", "quality")  # sections that may be null
KEYS = {
    "channels_last": bool,
    "compile": bool | Literal["auto"] | None,
    "name": str,
    "seed": int,
    "epochs": int,
    "budget": float | None,
    "batch_size": int,
    "log_every_steps": int,
    "debug": bool,
    "resume": str | None,
    "allow_changes": bool | None,
    "trust": list[str] | str | None,
}

WRITTEN = ("config.yaml", "identity.json", "metrics.csv", "last.ckpt", "summary.json", "encoder.safetensors")
COPIED = ("batch_size", "seed")  # of the loader: other parts of the run go by the same numbers
WAITING = 0.1  # share of the time that a run may wait for batches without a word about it
EXIT_CODES = {"stopped: ctrl-C": 130, "stopped: SIGUSR1": 138, "stopped: SIGTERM": 143}  # 128 + the signal's number


def run(config: dict[str, Any], run_dir: Path) -> dict[str, Any]:
    """Trains as `config` says (plain containers, resolved) and returns the summary, which also stands in
    `run_dir/summary.json`.

    Raises UserError for whatever the user can mend, before anything is written where that is possible.
    """
    began = time.monotonic()
    with trusting(config.get("trust")):
        check(config)
        if config.get("budget") is not None:
            config = config | {"epochs": _epochs_within(config, run_dir, began), "budget": None}
        if getattr(rank_zero_only, "rank", 0):  # the first of several processes holds the folder for all
            return _run(config, run_dir)
        with held(run_dir):
            _check_places(run_dir)
            return _run(config, run_dir)


def _epochs_within(config: dict[str, Any], run_dir: Path, began: float) -> int:
    """What `budget` comes to: of a run that goes on, the epochs that it has already."""
    _, checkpoint = source(config["resume"], run_dir)
    if checkpoint is None:
        return epochs_within(config["budget"], config, run, began)
    epochs = int(checkpoint["twoview"]["config"]["epochs"])
    log.info("budget=%g chose the epochs when the run began: %d", config["budget"], epochs)
    return epochs


def _check_places(run_dir: Path) -> None:
    """UserError for what stands where a file is to be written: it is known before hours of training."""
    for name in WRITTEN:
        path = run_dir / name
        try:
            mode = path.stat().st_mode
            reason = None if S_ISREG(mode) else "it is a folder" if S_ISDIR(mode) else "it is not a file"
        except FileNotFoundError:
            continue
        except OSError as error:
            reason = error.strerror
        if reason:
            raise UserError(
                f"cannot write {path}: {reason}; move it away, or choose another folder by hydra.run.dir=..."
            )


def _run(config: dict[str, Any], run_dir: Path) -> dict[str, Any]:
    path, checkpoint = source(config["resume"], run_dir)
    pl.seed_everything(config["seed"], workers=True, verbose=False)

    load = schema.build(config["data"])
    train: SampleSet = load(split="train")
    views: TwoViews = schema.build(config["augment"], preprocess=train.preprocess, seed=config["seed"])
    data: TwoViewDataModule = schema.build(config["loader"], train=train, views=views)
    encoder = schema.build(config["encoder"])
    shapes = _check_fit(encoder, views, train)
    if config["channels_last"]:
        encoder = encoder.to(memory_format=torch.channels_last)
    model: Method = schema.build(config["model"], encoder=encoder, optimizer=schema.build(config["optimizer"]))
    model.recipe.build(model, config["batch_size"], steps=1, epochs=config["epochs"])  # what it refuses is said now

    meter = Meter(config["log_every_steps"])
    knn = _knn(config, load, train, meter)
    quality = schema.build(config["quality"], meter=meter) if config.get("quality") else None
    stored = {key: value for key, value in config.items() if key not in STARTS}
    if "fresh_queue" in stored["model"]:
        stored["model"] = stored["model"] | {"fresh_queue": False}  # a wish for this start, not for later ones
    checkpoints: Checkpoints = schema.build(
        config["checkpoint"], config=stored, preprocess=train.preprocess, shape=train.shape
    )
    trainer: pl.Trainer = schema.build(
        config["trainer"],
        run_dir=str(run_dir),
        max_epochs=config["epochs"],
        callbacks=[meter, *(m for m in (knn, quality) if m), ViewSheet(), ProgressBar(meter)],
        checkpoints=checkpoints,
        logger=_TensorBoard(save_dir=str(run_dir), name="", version=""),
    )
    steps = data.batches_per_epoch * config["epochs"]
    through = Compiler(config.get("compile") or False)
    through.decide(trainer.strategy.root_device, steps, trainer.world_size)
    model.begin(
        Begin(
            global_batch_size=config["batch_size"],
            steps=steps,
            epochs=config["epochs"],
            world_size=trainer.world_size,
            shares=frozenset(data.shares(trainer.world_size)),
            even_shares=data.drop_last,
            view_shapes=shapes,
            mixed=views.mix is not None,
            labelled=train.labels is not None and bool((train.labels >= 0).any()),
            metered=True,
            through=through,
        )
    )
    identity = Identity(config_hash(config), data_digest(train), code_digest(), str(trainer.precision))
    if checkpoint is not None and path is not None:
        identity = follow(identity, config, checkpoint, path, bool(config.get("allow_changes")))
        refuse_misfit(checkpoint, path, model)
        refuse_other_steps(checkpoint, path, data.batches_per_epoch, config["epochs"])
    checkpoints.identity = identity.stored()
    if trainer.is_global_zero:
        _write_config(stored, checkpoints.identity, run_dir, _began(run_dir) if path else None)
        for line in brief(config, model, data, trainer, run_dir):
            log.info("%s", line)

    stopped = None
    checkpoints.take_signals()
    try:
        trainer.fit(model, datamodule=data, ckpt_path=path, weights_only=True)
    except Interrupted as interruption:
        stopped = interruption
        resume = spelled("train", f"resume={stopped.path.parent}")
        log.info("stopped (%s) and saved. To go on:  %s", stopped.reason, resume)
    finally:
        checkpoints.release_signals()
    summary = summarise(config, trainer, meter, knn, stopped) | {"identity": checkpoints.identity}
    if trainer.is_global_zero:
        summary["doctor"] = parting_words(run_dir, stored)
        save_encoder(model.encoder, train.preprocess, checkpoints.about(), run_dir / "encoder.safetensors")
        write_text(run_dir / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def check(config: dict[str, Any]) -> None:
    """Raises UserError for a key that nothing takes and for values of a wrong type or out of range."""
    for key, kind in KEYS.items():
        if not schema.fits(config.get(key), kind):
            raise UserError(f"{key}={config.get(key)!r} is not {schema.words(kind)}")
    known = {*KEYS, *SECTIONS, *MONITORS}
    for key in config:
        if key not in known:
            raise UserError(schema.unknown_key("", key, known))
    for key in SECTIONS:
        if not isinstance(config.get(key), dict):
            raise UserError(f"{key}={config.get(key)!r} leaves the run without its {key}; --help lists what there is")
    for key in MONITORS:
        if not isinstance(config.get(key), dict | None):
            raise UserError(f"{key}={config[key]!r}: give its keys, as {key}.every_epochs=1, or {key}=null for none")
    for key in COPIED:
        if key in config["loader"] and config["loader"][key] != config[key]:
            raise UserError(
                f"loader.{key}={config['loader'][key]} is not {key}={config[key]}: set {key} alone, which the loader "
                "follows"
            )
    if config["epochs"] < 1:
        raise UserError(f"epochs={config['epochs']}: a run needs at least one epoch")
    if not 0 <= config["seed"] < 2**32:
        raise UserError(f"seed={config['seed']} must lie in [0, 2^32)")
    schema.check(config)
    refuse_foreign(config, "the configuration")  # what no command on the run would build
    schema.build(
        config["augment"], preprocess=Preprocess()
    )  # its ranges are checked before data are loaded, or downloaded
    schema.build(config["optimizer"])


class _TensorBoard(TensorBoardLogger):
    """Without the `hparams.yaml` that Lightning adds: `config.yaml` holds the configuration. What a full disk does to
    it ends no run.
    """

    def log_metrics(self, *args: Any, **kwargs: Any) -> None:
        with suppress(OSError, ValueError):  # the latter is Lightning's for whatever its writer raises
            super().log_metrics(*args, **kwargs)

    def save(self) -> None:
        with suppress(OSError):
            self.experiment.flush()

    def finalize(self, status: str) -> None:
        with suppress(OSError):
            super().finalize(status)


def _check_fit(encoder: torch.nn.Module, views: TwoViews, train: SampleSet) -> tuple[tuple[int, ...], ...]:
    """Sends views of the first sample through the encoder, so that what does not fit is said before the first step.
    Returns the shapes of its views.
    """
    first = torch.arange(1)
    made = views(train.fetch(first), first, epoch=0)
    for shape, view in {tuple(view.shape[1:]): view for view in made}.items():
        try:
            with torch.no_grad():
                h = encoder.eval()(view)
        except RuntimeError as error:
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


def _knn(config: dict[str, Any], load: Any, train: SampleSet, meter: Meter) -> KNNMonitor | None:
    if config["knn"] is None:
        return None
    test = load(split="test")
    if train.labels is None or test is None or test.labels is None:
        log.info("no kNN while training: %s has no labelled train and test split", train.name)
        return None
    monitor: KNNMonitor = schema.build(config["knn"], train=train.labelled(), test=test.labelled(), meter=meter)
    return monitor


def _write_config(config: dict[str, Any], identity: dict[str, str], run_dir: Path, began: str | None) -> None:
    try:
        write_text(run_dir / "config.yaml", yaml.safe_dump(config, sort_keys=False))
        began = began or datetime.now().astimezone().isoformat(timespec="seconds")
        write_text(run_dir / "identity.json", json.dumps(identity | {"began": began}, indent=2) + "\n")
    except OSError as error:
        raise UserError(
            f"cannot write {error.filename or run_dir}: {error.strerror}; choose another folder by hydra.run.dir=..."
        ) from error


def _began(run_dir: Path) -> str | None:
    try:
        return str(json.loads((run_dir / "identity.json").read_text())["began"])
    except (OSError, ValueError, LookupError, TypeError):
        return None


def brief(
    config: dict[str, Any],
    model: Method,
    data: TwoViewDataModule,
    trainer: pl.Trainer,
    run_dir: Path,
) -> list[str]:
    """What a run is going to do, in a few lines."""
    encoder = config["encoder"]["_target_"].rpartition(".")[2]
    parameters = sum(p.numel() for p in model.encoder.parameters()) / 1e6
    recipe, batch = model.recipe, config["batch_size"]
    share = (
        f" ({batch // trainer.world_size} on each of {trainer.world_size} devices)" if trainer.world_size > 1 else ""
    )
    steps, outlook = data.batches_per_epoch * config["epochs"], model.outlook()
    rule = {"linear": f"x {batch}/256", "sqrt": f"x sqrt({batch}/256)", "none": "as it is"}[recipe.lr_scaling]
    schedule = f"lr {recipe.lr(batch):.4g} = {recipe.lr_per_256:g} {rule} ({recipe.lr_scaling})"
    return [
        f"{type(model).__name__} with {encoder} ({parameters:.2f} M parameters, h of {model.encoder.dim}) "
        f"on {data.train.name} ({len(data.train):,} samples of {shape_words(data.train.shape)})",
        f"batch {batch}{share} on {trainer.accelerator.__class__.__name__.removesuffix('Accelerator')}, "
        f"{trainer.precision}; {schedule}, warm-up {recipe.warmup_epochs:g} epochs, cosine",
        "; ".join(filter(None, (f"{steps:,} steps in {config['epochs']} epochs of {data.batches_per_epoch}", outlook))),
        f"everything goes to {run_dir}",
    ]


def summarise(
    config: dict[str, Any],
    trainer: pl.Trainer,
    meter: Meter,
    knn: KNNMonitor | None,
    stopped: Interrupted | None,
) -> dict[str, Any]:
    """The run in numbers, with what is needed to believe and to repeat them."""
    return {
        "name": config["name"],
        "status": f"stopped: {stopped.reason}" if stopped else "finished",
        "epochs": trainer.global_step / max(1, trainer.num_training_batches),
        "steps": trainer.global_step,
        "samples": len(trainer.datamodule.train),  # type: ignore[attr-defined]
        "loss": meter.latest.get("loss"),
        "chance_loss": meter.latest.get("chance_loss"),
        "numbers": {name: meter.latest[name] for name in meter.numbers if name in meter.latest},
        "knn": None
        if knn is None
        else {
            "final": knn.last,
            "best": knn.best,
            "best_epoch": knn.best_epoch,
            "k": knn.k,
            "temperature": knn.temperature,
            "bank": len(knn.train),
            "test": len(knn.test),
        },
        "training_seconds": round(meter.seconds, 2),
        "training_time": clock(meter.seconds),
        "evaluation_seconds": round(meter.evaluating, 2),
        "images_per_second": trainer.global_step * config["batch_size"] / meter.seconds if meter.seconds else None,
        "waiting": meter.waited / meter.seconds if meter.seconds else None,
        "seed": config["seed"],
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
    }


def main(composed: DictConfig) -> int:
    """`twoview train`: runs a composed configuration in the folder that Hydra made for it. Returns the exit code."""
    run_dir = output_dir()
    try:
        config = plain(composed)
        if config["resume"] == "auto":
            _need_a_fixed_folder()
        elif config["resume"] and isinstance(config["resume"], str):
            config, run_dir = resumed(composed, overrides())
        summary = run(config, run_dir)
    except TrialStopped as stop:
        log.info("%s, before the run began", stop)
        return EXIT_CODES.get(str(stop), 1)
    finally:
        _remove_if_empty(output_dir())
    _say_goodbye(summary, run_dir)
    return EXIT_CODES.get(summary["status"], 0)


def _need_a_fixed_folder() -> None:
    words = HydraConfig.get().overrides.hydra
    if not any(word.startswith(("hydra.run.dir=", "hydra.sweep.dir=")) for word in words):
        raise UserError(
            "resume=auto goes on with the run in its folder, and without hydra.run.dir=... that is a new one at every "
            "start: name it, as hydra.run.dir=runs/mine"
        )


@rank_zero_only
def _say_goodbye(summary: dict[str, Any], run_dir: Path) -> None:
    if (summary["waiting"] or 0) > WAITING:
        log.info("input-bound: %.0f %% of the time waiting for data", 100 * summary["waiting"])
    if summary["status"] == "finished":
        knn = summary["knn"]
        score = f"kNN {knn['final']:.2%}, " if knn and knn["final"] is not None else ""
        log.info("done in %s: %sloss %.3f", summary["training_time"], score, summary["loss"])
        log.info("next:  %s", spelled("probe", f"ckpt={run_dir / 'last.ckpt'}"))


def _remove_if_empty(folder: Path) -> None:
    """A folder that no run was made in, and that of its name above it if it holds no other."""
    for path in (folder, folder.parent):
        if not path.is_dir() or any(path.iterdir()):
            return
        path.rmdir()
        if path.parent.parent.name != "runs":  # runs/<name>/<date>: what Hydra makes by itself
            return
