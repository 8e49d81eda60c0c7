"""How long the arms of a study take on this machine, and how many epochs fit into a budget, from a short trial."""

import logging
import math
from collections.abc import Mapping
from typing import Any

from twoview.ablate.arm import Stopped
from twoview.ablate.judge import Judge, judged
from twoview.errors import UserError
from twoview.report.words import clock
from twoview.train import pretrain
from twoview.train.budget import TrialStopped, measured

log = logging.getLogger(__name__)


def affordable(minutes: float, runs: int, base: Mapping[str, Any], judge: Judge) -> int:
    """How many epochs of each of `runs` runs fit into `minutes`. UserError where not even one does."""
    fixed, epoch = measured_seconds(base, judge)
    epochs = int((minutes * 60 / runs - fixed) // epoch)
    log.info(
        "an epoch takes about %s here and the rest of an arm %s: %d epochs for each of %d runs fill %.0f of %g minutes",
        clock(epoch), clock(fixed), max(0, epochs), runs, runs * (fixed + max(0, epochs) * epoch) / 60, minutes,
    )  # fmt: skip
    if epochs < 1:
        raise UserError(
            f"budget={minutes:g} minutes are too few: one epoch for each of {runs} runs takes about "
            f"{math.ceil(runs * (fixed + epoch) / 60)} minutes here; take fewer arms or seeds, or a larger budget"
        )
    return epochs


def measured_seconds(base: Mapping[str, Any], judge: Judge) -> tuple[float, float]:
    """Seconds of an arm whatever its length, and seconds per epoch, from a trial on this machine."""
    log.info("a short trial tells how long an arm takes")
    try:
        cost = measured(dict(base), pretrain.run, lambda config, folder: judged(config, judge, folder))
    except TrialStopped as stop:
        raise Stopped(str(stop).removeprefix("stopped: ")) from stop
    return cost.fixed + cost.reading, cost.epoch
