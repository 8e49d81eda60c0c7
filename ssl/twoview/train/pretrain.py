"""One pre-training run, from a configuration to a folder with its weights, curves and summary."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import Any

import pytorch_lightning as pl
import yaml
from pytorch_lightning.utilities import rank_zero_only

from twoview.cli.program import near, spelled
from twoview.cli.trust import trusting
from twoview.encoder.weights import PRETRAINED, RANDOM
from twoview.errors import UserError
from twoview.run.atomic import write_text
from twoview.run.checkpoint import save_encoder, set_aside_damaged
from twoview.run.folder import CONFIG, ENCODER, IDENTITY, SUMMARY, TRAINING, VIEWS, read_json
from twoview.run.place import held
from twoview.run.resume import source
from twoview.run.saving import Interrupted
from twoview.train.assemble import Assembly, assemble
from twoview.train.budget import epochs_within
from twoview.train.config import check
from twoview.train.launch import own_variables
from twoview.train.summary import brief, summarise
from twoview.watch.doctor import parting_words

log = logging.getLogger(__name__)

Hold = Callable[[Path], AbstractContextManager[Path]]


def run(config: dict[str, Any], run_dir: Path, hold: Hold = held) -> dict[str, Any]:
    """Trains as `config` says (plain containers, resolved) and returns the summary, which also stands in
    `summary.json` of the run's folder: `run_dir`, or the one that `hold` finds for it.

    Raises UserError for whatever the user can mend, before anything is written where that is possible.
    """
    began = time.monotonic()
    with trusting(config.get("trust")):
        check(config)
        config = _absolute(config)
        if config.get("budget") is not None:
            config = config | {"epochs": _epochs_within(config, run_dir, began), "budget": None}
        with _holding(run_dir, hold) as folder:
            assembly = assemble(config, folder)
            stopped = fit(assembly)
            return finish(assembly, stopped)


def fit(run: Assembly) -> Interrupted | None:
    """Says what is going to happen, and trains to the end, or until somebody or the time stops the run."""
    run.checkpoints.take_signals()
    run.trainer.callbacks.append(Opening(run))  # type: ignore[attr-defined]
    try:
        if run.trainer.is_global_zero:
            for line in brief(run):
                log.info("%s", line)
        with own_variables():
            run.trainer.fit(run.model, datamodule=run.data, ckpt_path=run.start, weights_only=True)
    except Interrupted as stopped:
        resume = spelled("train", f"resume={near(stopped.path.parent)}")
        log.info("stopped (%s) and saved. To go on:  %s", stopped.reason, resume)
        return stopped
    finally:
        run.checkpoints.release_signals()
    return None


class Opening(pl.Callback):
    """Writes down what is going to happen, when all that a run may refuse to begin for has been looked at: until then
    its folder is as it was.
    """

    def __init__(self, run: Assembly) -> None:
        self.run = run

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            if self.run.start is not None:
                set_aside_damaged(self.run.start)
            _write_config(self.run)


def finish(run: Assembly, stopped: Interrupted | None) -> dict[str, Any]:
    """Asks the doctor, writes encoder and summary, and returns the latter."""
    summary = summarise(run, stopped)
    if run.trainer.is_global_zero:
        summary["doctor"] = parting_words(run.folder, run.stored)
        save_encoder(run.model.encoder, run.data.train.preprocess, run.checkpoints.about(), run.folder / ENCODER)
        write_text(run.folder / SUMMARY, json.dumps(summary, indent=2) + "\n")
    return summary


def _absolute(config: dict[str, Any]) -> dict[str, Any]:
    """With the places of data and first weights as they are found from anywhere."""
    for section, key in (("data", "root"), ("encoder", "weights")):
        if isinstance(place := config[section].get(key), str) and place not in (RANDOM, PRETRAINED):
            config = config | {section: config[section] | {key: str(Path(place).expanduser().absolute())}}
    return config


def _epochs_within(config: dict[str, Any], run_dir: Path, began: float) -> int:
    """What `budget` comes to: of a run that goes on, the epochs that it has already."""
    _, checkpoint = source(config["resume"], run_dir)
    if checkpoint is None:
        return epochs_within(config["budget"], config, run, began)
    epochs = int(checkpoint["twoview"]["config"]["epochs"])
    log.info("budget=%g chose the epochs when the run began: %d", config["budget"], epochs)
    return epochs


@contextmanager
def _holding(folder: Path, hold: Hold) -> Iterator[Path]:
    """Keeps other runs out of the folder. Of several processes of one run the first does."""
    if getattr(rank_zero_only, "rank", 0):
        yield folder
        return
    with hold(folder) as place:
        _refuse_occupied(place)
        yield place


def _refuse_occupied(folder: Path) -> None:
    """UserError for what stands where a file is to be written: it is known before hours of training."""
    for name in (*TRAINING, VIEWS):
        path = folder / name
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


def _write_config(run: Assembly) -> None:
    identity = run.checkpoints.identity
    began = read_json(run.folder / IDENTITY).get("began") if run.start else None
    began = began or datetime.now().astimezone().isoformat(timespec="seconds")
    try:
        write_text(run.folder / CONFIG, yaml.safe_dump(run.stored, sort_keys=False))
        write_text(run.folder / IDENTITY, json.dumps(identity | {"began": began}, indent=2) + "\n")
    except OSError as error:
        raise UserError(
            f"cannot write {error.filename or run.folder}: {error.strerror}; choose another folder by hydra.run.dir=..."
        ) from error
