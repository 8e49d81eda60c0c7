"""Draws what an augmentation does: the views that a run trains on."""

import logging
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from torch.utils.tensorboard import SummaryWriter

from twoview.cli import schema
from twoview.cli.entry import plain
from twoview.cli.schema import unknown_option
from twoview.data.preprocess import Preprocess
from twoview.data.set import SampleSet
from twoview.errors import UserError
from twoview.report.preview import by_operation, by_pair, by_strength, first_samples
from twoview.report.sheet import DPI, sheet
from twoview.report.theme import write_plot

log = logging.getLogger(__name__)

KEYS = {
    "images": int,
    "strengths": list[float],
    "draws": int,
    "seed": int,
    "epoch": int,
    "out": str | None,
    "tensorboard": str | None,
    "debug": bool,
}

MODES = ["strength", "ops", "pairs"]

MOST = 100  # images, draws or strengths of a sheet: beyond, it is no picture to look at


def preview_command(composed: DictConfig) -> int:
    """`twoview preview`."""
    config = plain(composed)
    policies = checked_policies(config, composed)
    train: SampleSet = schema.build(config["data"])(split="train")
    if config["images"] > len(train):
        raise UserError(f"images={config['images']}, but {train.name} has {len(train)}")
    views = [schema.build(policy, preprocess=train.preprocess, seed=config["seed"]) for policy in policies]
    for one in views:
        one.attach(train)
        if one.count < 2:
            raise UserError("a sheet shows two views of each sample, and augment.views describes one")
    samples = first_samples(train, config["images"], config["seed"], config["epoch"])
    name = f"{train.name} · {HydraConfig.get().runtime.choices['augment']}"
    if config["mode"] == "strength":
        about = "Across a block only the strength s changes: a view keeps its crop, its flip and all random numbers."
        bands = by_strength(views, samples)
    else:
        name += f", strength {views[0].strength:g}" if views[0].strength is not None else ""
        if config["mode"] == "ops":
            about = "Each operation alone, as the first view of an image has it from epoch to epoch."
            bands = by_operation(views[0], samples, config["draws"])
        else:
            about = "Boxes: what each view shows of the original. Overlap: their intersection over their union."
            bands = by_pair(views[0], samples)
    if views[0].mix is not None and config["mode"] != "ops":
        about += " First views are mixed with their neighbour's."
    figure = sheet(f"{name} · seed {config['seed']}, epoch {config['epoch']}", about, bands)
    path = Path(config["out"] or f"preview_{config['mode']}.png")
    write_plot(path, lambda theme: figure, DPI)
    log.info("written to %s", path)
    if config["tensorboard"]:
        try:
            with SummaryWriter(config["tensorboard"]) as writer:
                writer.add_figure(f"preview/{config['mode']}", figure, global_step=config["epoch"], close=False)
        except OSError as error:
            raise UserError(f"cannot write into tensorboard={config['tensorboard']}: {error.strerror}") from error
        log.info("and to TensorBoard: tensorboard --logdir %s", config["tensorboard"])
    return 0


def checked_policies(config: dict[str, Any], composed: DictConfig) -> list[dict[str, Any]]:
    """The policies to show, of one strength each; UserError for a key or a value that makes no picture."""
    schema.check_keys(config, KEYS)
    if config["mode"] not in MODES:
        raise UserError(unknown_option("mode", str(config["mode"]), MODES))
    for key in ("images", "draws"):
        if not 1 <= config[key] <= MOST:
            raise UserError(f"{key}={config[key]}: a sheet holds 1 to {MOST}")
    for key in ("seed", "epoch"):
        if not 0 <= config[key] < 2**32:
            raise UserError(f"{key}={config[key]} must lie in [0, 2^32)")
    for key in ("data", "augment"):
        if not isinstance(config[key], dict):
            raise UserError(f"{key}={config[key]!r} leaves nothing to draw; --help lists what there is")
    schema.check(config["data"], "data")
    policies = [config["augment"]]
    if config["mode"] == "strength":
        own = config["augment"].get("strength")
        strengths = own if isinstance(own, list) else config["strengths"]  # augment.strength=[0,1] says it as well
        if not 1 <= len(strengths) <= MOST:
            raise UserError(f"strengths={strengths}: give 1 to {MOST} of them")
        policies = [at_strength(composed, strength) for strength in strengths]
        if len(strengths) > 1 and all(policy | {"strength": own} == config["augment"] for policy in policies):
            raise UserError("no operation of this policy follows augment.strength; use mode=pairs or mode=ops")
    for policy in policies:
        schema.check(policy, "augment")
        schema.build(policy, preprocess=Preprocess())  # its ranges are checked before data are loaded, or downloaded
    return policies


def at_strength(composed: DictConfig, strength: float) -> dict[str, Any]:
    """The policy as if the command line had said `augment.strength=<strength>`."""
    changed = composed.copy()
    OmegaConf.update(changed, "augment.strength", strength, force_add=True)
    policy: dict[str, Any] = plain(changed)["augment"]
    return policy
