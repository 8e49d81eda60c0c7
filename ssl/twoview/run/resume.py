"""Going on with a run: which checkpoint, and with which configuration."""

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig, OmegaConf

from twoview.cli import configs
from twoview.cli.entry import plain
from twoview.errors import UserError
from twoview.run.checkpoint import read_newest, refuse_foreign
from twoview.run.identity import flat
from twoview.run.saving import kept

log = logging.getLogger(__name__)

STARTS = ("resume", "allow_changes", "debug", "budget")  # keys of a start, not of the run: no checkpoint stores them


def source(resume: str | None, run_dir: Path) -> tuple[Path | None, dict[str, Any] | None]:
    """The file to go on from and what it holds; None, None to start anew.

    `auto` takes the newest whole checkpoint of `run_dir`, if there is one.
    """
    if not resume or (resume == "auto" and not kept(run_dir)):
        return None, None
    path, checkpoint = read_newest(run_dir if resume == "auto" else resume)
    log.info("going on from step %s, %s", checkpoint.get("global_step"), path)
    return path, checkpoint


def refuse_other_steps(checkpoint: Mapping[str, Any], path: Path, steps_per_epoch: int, epochs: int) -> None:
    """UserError where a run cannot be gone on with at any step: an epoch has another number of them, or there are fewer
    epochs than it has made. Schedules, the order of samples and the curves all count in steps.
    """
    before = checkpoint["twoview"].get("steps_per_epoch")
    if before != steps_per_epoch:
        raise UserError(
            f"{path} has {before} steps an epoch, and this start would make {steps_per_epoch} (batch_size, the number "
            "of training samples, loader.drop_last and loader.max_batches decide): there is no step at which one could "
            "go on with the other. Give back what the run had, or start a new one"
        )
    made = checkpoint["global_step"] / steps_per_epoch
    if made > epochs:
        raise UserError(f"{path} has made {made:g} epochs already: epochs={epochs} is less")


NEEDED = {  # of a checkpoint, for a run to go on as if nothing had happened
    "global_step": (int, "number of steps"),
    "epoch": (int, "number of epochs"),
    "loops": (dict, "place in the epoch"),
    "callbacks": (dict, "state of the callbacks"),
    "optimizer_states": (list, "state of the optimizer"),
    "lr_schedulers": (list, "state of the learning rate"),
    "random": (list, "state of the generators of random numbers"),
}


def refuse_misfit(checkpoint: dict[str, Any], path: Path, model: pl.LightningModule) -> None:
    """UserError where the stored weights are not those of a model like this one, or a part of the state is missing."""
    for key, (kind, what) in NEEDED.items():
        if not isinstance(checkpoint.get(key), kind):
            raise UserError(
                f"{path} is damaged: its {what} ({key}) is missing, or is none. Its weights can still be "
                f"scored, and a new run started from them: encoder.weights={path}"
            )
    stored = checkpoint | {"state_dict": dict(checkpoint["state_dict"])}
    model.on_load_checkpoint(stored)  # what the method itself takes in another shape, or refuses
    now = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    before = {name: tuple(value.shape) for name, value in stored["state_dict"].items()}
    for name in [*now, *(name for name in before if name not in now)]:
        if now.get(name) != before.get(name):
            there, here = (str(shapes.get(name, "missing")) for shapes in (before, now))
            raise UserError(
                f"the weights in {path} do not fit the model as it is configured now: {name} is {there} there and "
                f"{here} here. A run goes on with its own model and encoder only"
            )


def resumed(composed: DictConfig, words: Sequence[str], search: Sequence[str] = ()) -> tuple[dict[str, Any], Path]:
    """The configuration in the checkpoint that `composed` resumes, with the values that the words of the command line
    change, and the folder of that run.

    What was made from a value by interpolation follows it. Words that say what the run is already, such as those it was
    started with, change nothing. The name of a group cannot change a run: UserError where it stands for other values.
    `search`: words for Hydra that say where configurations lie besides twoview's own.
    """
    config = plain(composed)
    path, checkpoint = read_newest(config["resume"])
    stored = checkpoint["twoview"]["config"]
    refuse_foreign(stored)  # it may come from a stranger
    before, now = flat(stored), flat(config)
    raw = flat(OmegaConf.to_container(composed, resolve=False))
    keys = {word: word.lstrip("+~").partition("=")[0].partition("@")[0] for word in words}
    groups = configs.groups("train")
    given = {key for word, key in keys.items() if key not in groups}
    told: dict[str, Any] = {}
    for word, key in keys.items():
        if key in groups:
            _refuse_other_group(word, key, before, now, given, search)
        elif key in (*STARTS, "trust") or _below(now, key) == _below(before, key):
            continue
        elif key in before and key in now:
            told |= {k: now[k] for k in (key, *_copies(key, raw, before)) if k == key or k not in given}
        else:
            raise UserError(
                f"resume takes the configuration of the checkpoint, and {word!r} cannot change it; "
                "give values of its keys only, as epochs=200 (and with keys of model=moco, model=moco itself)"
            )
    merged = OmegaConf.create(stored)
    for key, value in told.items():
        if value != before[key]:
            log.info("resuming with %s=%s instead of %s", key, value, before[key])
            OmegaConf.update(merged, key, value)
    start = {key: config[key] for key in (*STARTS, "trust")} | {"resume": str(path)}
    return plain(merged) | start, path.resolve().parent


def _refuse_other_group(
    word: str,
    group: str,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    given: Collection[str],
    search: Sequence[str],
) -> None:
    """UserError if a group's option stands for other values than the run has; keys that are given by themselves are let
    pass.
    """
    default, alone = (flat(plain(configs.compose("train", [*search, *words]).config)) for words in ([], [word]))
    sets = [key for key in now if key.startswith(f"{group}.") or (key in alone and alone[key] != default.get(key, ...))]
    for key in sets:
        if now[key] != before.get(key, ...) and not any(key == k or key.startswith(f"{k}.") for k in given):
            there = f"{key}={before[key]}" if key in before else f"no {key}"
            raise UserError(
                f"resume takes the configuration of the checkpoint, and {word!r} cannot change it: it stands for "
                f"{key}={now[key]}, and the run has {there}; give values of its keys only, as epochs=200 (and with "
                "keys of model=moco, model=moco itself)"
            )


def _below(fields: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The fields of a key and of all below it; none where there is no such key."""
    return {k: value for k, value in fields.items() if k == key or k.startswith(f"{key}.")}


def _copies(key: str, raw: Mapping[str, Any], stored: Mapping[str, Any]) -> list[str]:
    """The keys that take the value of `key` by interpolation, as far as they did so in the run."""
    return [k for k, v in raw.items() if v == f"${{{key}}}" and k in stored and stored[k] == stored[key]]
