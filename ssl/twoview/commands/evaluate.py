"""`twoview evaluate`: everything that an encoder is worth, in one page, one JSON file and figures."""

import importlib.util
import logging
import math
import time
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig

from twoview.card.encoders import networks
from twoview.card.make import Sets, make
from twoview.cli import schema
from twoview.cli.configs import options
from twoview.cli.entry import plain
from twoview.cli.schema import unknown_option
from twoview.errors import UserError
from twoview.evaluate.classify.labelled import check_strengths
from twoview.evaluate.subject import Subject, names_other_data, subject
from twoview.report.words import clock
from twoview.run.folder import checkpoint_file

log = logging.getLogger(__name__)

KEYS = {
    "strengths": list[float],
    "holdout": float,
    "against": str | None,
    "across": bool,
    "transfer": list[str],
    "k": list[int],
    "temperature": list[float],
    "fractions": list[float],
    "label_seeds": int,
    "corruption_images": int,
    "quality_images": int,
    "invariance_images": int,
    "map_images": int,
}
SUBJECT = ("ckpt", "encoder_of", "device", "force", "out", "debug", "data", "strengths", "holdout", "seed")


def evaluate_command(composed: DictConfig) -> int:
    started = time.monotonic()
    config = plain(composed)
    _check_numbers(config)
    _need_extra()
    own = subject(_for_subject(config), labelled=False)
    elsewhere = {name: _elsewhere(config, name) for name in config["transfer"]}
    against = config["against"]
    other = subject(_for_subject(config) | {"ckpt": against}, labelled=False) if against else None
    encoders = networks(config, own, other)
    folder = _folder(config, own)
    make(config, own, encoders, elsewhere, folder)
    log.info("done in %s: %s", clock(time.monotonic() - started), folder / "card.html")
    return 0


def _for_subject(config: dict[str, Any]) -> dict[str, Any]:
    return {key: config[key] for key in SUBJECT if key in config}


def _need_extra() -> None:
    """UserError, before minutes of work, for a lack of what makes the page."""
    lacking = [name for name in ("jinja2", "matplotlib", "scipy") if importlib.util.find_spec(name) is None]
    if lacking:
        raise UserError(f"a card needs {' and '.join(lacking)}: pip install 'twoview[report]'")


def _check_numbers(config: dict[str, Any]) -> None:
    schema.check_keys(config, KEYS)
    check_strengths(config["strengths"])
    if not 0 < config["holdout"] < 1:
        raise UserError(f"holdout={config['holdout']} must lie between 0 and 1")
    if not config["k"] or min(config["k"]) < 1:
        raise UserError(f"k={config['k']} must be one or more numbers of at least 1")
    if not config["temperature"] or not all(0 < t < math.inf for t in config["temperature"]):
        raise UserError(f"temperature={config['temperature']} must be one or more positive numbers")
    if not all(0 < share <= 1 for share in config["fractions"]):
        raise UserError(f"fractions={config['fractions']} are shares of the labels: above 0 and up to 1")
    for key in ("label_seeds", *(key for key in KEYS if key.endswith("_images"))):
        if config[key] < (key == "label_seeds"):
            raise UserError(f"{key}={config[key]} is too few")


def _elsewhere(config: dict[str, Any], name: str) -> Sets:
    """The images of a data option, loaded and checked as `data=<name>` is."""
    if name not in options("data"):
        raise UserError("transfer: " + unknown_option("data", name, options("data")))
    composed = plain(hydra.compose("evaluate", overrides=[f"data={name}"]))
    other = subject(_for_subject(config) | {"data": composed["data"]})
    return other.train, other.test


def _folder(config: dict[str, Any], own: Subject) -> Path:
    """The folder of the card, made now: what cannot be written is known before minutes of work."""
    name = f"card_{own.train.name}" if names_other_data(config) else "card"
    folder = Path(config["out"]).expanduser() if config["out"] else checkpoint_file(config["ckpt"]).parent / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / ".card.part"
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}; name another folder by out=...") from error
    return folder
