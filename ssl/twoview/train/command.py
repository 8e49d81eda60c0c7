"""`twoview train`: one run of a composed configuration, in the folder that Hydra made for it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from pytorch_lightning.utilities import rank_zero_only

from twoview.cli.entry import output_dir, overrides, plain, searched
from twoview.cli.program import near, spelled
from twoview.errors import UserError
from twoview.run.folder import CHECKPOINT
from twoview.run.place import held, held_free, remove_if_empty
from twoview.run.resume import resumed
from twoview.run.signals import EXIT_CODES
from twoview.train.budget import TrialStopped
from twoview.train.pretrain import run

log = logging.getLogger(__name__)

WAITING = 0.1  # share of the time that a run may wait for batches without a word about it


def main(composed: DictConfig) -> int:
    """Trains, says how it went, and returns the exit code."""
    run_dir = output_dir()
    named = any(w.startswith(("hydra.run.dir=", "hydra.sweep.dir=")) for w in HydraConfig.get().overrides.hydra)

    @contextmanager
    def hold(folder: Path) -> Iterator[Path]:
        nonlocal run_dir
        with (held if named or config["resume"] else held_free)(folder) as run_dir:
            yield run_dir

    try:
        config = plain(composed)
        if config["resume"] == "auto" and not named:
            raise UserError(
                "resume=auto goes on with the run in its folder, and without hydra.run.dir=... that is a new one at "
                "every start: name it, as hydra.run.dir=runs/mine"
            )
        if config["resume"] != "auto" and config["resume"] and isinstance(config["resume"], str):
            config, run_dir = resumed(composed, overrides(), searched())
        summary = run(config, run_dir, hold)
    except TrialStopped as stop:
        log.info("%s, before the run began", stop)
        return EXIT_CODES.get(str(stop), 1)
    finally:
        remove_if_empty(output_dir())
    _say_goodbye(summary, run_dir)
    return EXIT_CODES.get(summary["status"], 0)


@rank_zero_only
def _say_goodbye(summary: dict[str, Any], run_dir: Path) -> None:
    if (summary["waiting"] or 0) > WAITING:
        log.info("input-bound: %.0f %% of the time waiting for data", 100 * summary["waiting"])
    if summary["status"] == "finished":
        knn = summary["knn"]
        score = f"kNN {knn['final']:.2%}, " if knn and knn["final"] is not None else ""
        log.info("done in %s: %sloss %.3f", summary["training_time"], score, summary["loss"])
        log.info("next:  %s", spelled(summary["next"], f"ckpt={near(run_dir / CHECKPOINT)}"))
