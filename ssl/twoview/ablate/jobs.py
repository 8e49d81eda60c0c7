"""The runs of a study: each arm with each seed, composed as Hydra does for a sweep and run by its launcher."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf

from twoview.ablate.arm import OF_THE_STUDY, RESULT, arm_hash, run_arm, training_config
from twoview.ablate.judge import Judge
from twoview.ablate.progress import StudyProgress
from twoview.ablate.study import Arm, Plan
from twoview.cli.entry import overrides, plain
from twoview.cli.explain import explain
from twoview.errors import UserError
from twoview.run.folder import read_json
from twoview.run.signals import EXIT_CODES
from twoview.train.config import check

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """An arm with a seed: one run, in a folder of its own that is named by the hash of its configuration."""

    arm: Arm
    seed: int
    overrides: tuple[str, ...]
    hash: str
    folder: Path

    def is_finished(self, protocol_hash: str) -> bool:
        """Trained and judged by the protocol of the study; an arm judged by another one is judged again."""
        found = read_json(self.folder / RESULT)
        return found.get("status") == "finished" and found.get("protocol_hash") == protocol_hash


class Composer:
    """Composes configurations of arms as Hydra does for the jobs of a sweep: from the overrides of the command line and
    those of the arm.
    """

    def __init__(self, more: Sequence[str]) -> None:
        hydra = HydraConfig.get()
        self.loader = GlobalHydra.instance().config_loader()
        self.own = [word for word in overrides() if word.lstrip("+~").split("=")[0].split(".")[0] not in OF_THE_STUDY]
        self.more = tuple(more)
        self.master = self.loader.load_configuration(
            hydra.job.config_name, overrides=[*hydra.overrides.hydra, *hydra.overrides.task], run_mode=RunMode.MULTIRUN
        )

    def config(self, changes: Sequence[str]) -> DictConfig:
        composed = self.loader.load_sweep_config(self.master, [*overrides(), *changes])
        return OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])

    def jobs(self, plan: Plan, seeds: Sequence[int], folder: Path, judge: Judge) -> list[Job]:
        """Each arm with each seed, checked as a run is: mistakes are reported before the first arm starts."""
        jobs = []
        for arm in plan.arms:
            try:
                composed = self.config([*arm.overrides, *self.more])
                config = training_config(plain(composed))
                check(config)
                judge.refuse_labels_read(config["model"])
            except Exception as error:  # Hydra raises many kinds for overrides that make no sense
                raise UserError(f"arm {arm.name!r} of the study: {explain(error)}") from error
            for seed in seeds:
                composed.seed = seed
                digest = arm_hash(plain(composed))
                changes = (*arm.overrides, *self.more, f"seed={seed}")
                jobs.append(Job(arm, seed, changes, digest, folder / "arms" / digest))
        names: dict[str, Job] = {}
        for job in jobs:
            if (other := names.setdefault(job.hash, job)) is not job:
                raise UserError(
                    f"arms {other.arm.name!r} and {job.arm.name!r} of the study are the same run: nothing that they "
                    "differ in changes a result"
                )
        return jobs

    def launcher(self) -> Launcher:
        context = HydraContext(config_loader=self.loader, callbacks=Callbacks(self.master))
        return Plugins.instance().instantiate_launcher(hydra_context=context, task_function=run_arm, config=self.master)


def launch(composer: Composer, todo: Sequence[Job], steps: int) -> str | None:
    """Runs arms through the launcher that `hydra/launcher` names. Returns why they were stopped, if they were."""
    batch = [[*overrides(), *job.overrides, f"hydra.sweep.subdir=arms/{job.hash}"] for job in todo]
    with StudyProgress({job.folder: f"{job.arm.name}, seed {job.seed}" for job in todo}, steps):
        try:
            returns = composer.launcher().launch(batch, initial_job_idx=0)
        except KeyboardInterrupt as stop:
            if str(stop) and f"stopped: {stop}" not in EXIT_CODES:
                raise UserError(f"{stop}. The same command goes on") from stop
            return str(stop) or "ctrl-C"
    for done in returns:
        try:
            status = str(done.return_value)
        except Exception as error:  # of the launcher: run_arm records those of the arm
            log.info("a job of the launcher ended with %s", explain(error))
            continue
        if status.startswith("stopped: "):
            return status.removeprefix("stopped: ")
    return None
