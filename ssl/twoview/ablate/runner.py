"""A study from its command to its report: works out the arms, has Hydra's launcher run those that are missing, and
writes the report.
"""

import contextlib
import json
import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from rich import get_console
from rich.table import Table

from twoview.ablate import page
from twoview.ablate.arm import ABOUT, OF_THE_STUDY, RESULT, Stopped, arm_hash, run_arm, training_config
from twoview.ablate.budget import affordable, measured_seconds
from twoview.ablate.judge import Judge
from twoview.ablate.progress import StudyProgress
from twoview.ablate.results import Results, mixed, read
from twoview.ablate.study import Arm, Plan, Study
from twoview.cli import schema
from twoview.cli.entry import overrides, plain
from twoview.cli.explain import explain
from twoview.cli.program import spelled
from twoview.data.set import SampleSet
from twoview.errors import UserError
from twoview.report.words import NONE, clock, in_points, listed, percent, span
from twoview.run.atomic import save
from twoview.run.folder import read_json
from twoview.run.identity import code_digest, data_digest, differences, relevant
from twoview.run.place import held
from twoview.train import pretrain
from twoview.train.budget import steps_of_an_epoch
from twoview.train.config import check

log = logging.getLogger(__name__)

KEYS = {"folder": str, "budget": float | None, "dry_run": bool, "report": str | None}
YEAR = 525_600  # minutes


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


def ablate_command(composed: DictConfig) -> int:
    """`twoview ablate`. Returns 1 if an arm failed, 130, 138 or 143 if the study was interrupted."""
    try:
        with _terminable():
            return _command(plain(composed))
    except Stopped as stop:
        return _stopped(str(stop))


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM stops the study as ctrl-C does. While an arm trains, its run handles both and saves its state first."""

    def stop(number: int, frame: Any) -> None:
        raise Stopped("SIGTERM")

    if threading.current_thread() is not threading.main_thread():  # only the main thread gets signals
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stopped(reason: str) -> int:
    log.info("stopped (%s). The same command goes on", reason)
    return pretrain.EXIT_CODES.get(f"stopped: {reason}", 1)


def _command(config: dict[str, Any]) -> int:
    schema.check_keys(config, KEYS)
    if config["report"] is not None:
        return _report(Path(config["report"]))
    study, judge = _check(config)
    base = training_config(config)
    check(base)
    plan = study.plan(base | {"choices": dict(HydraConfig.get().runtime.choices)})
    train = _labelled(base)
    folder = Path(config["folder"])
    with contextlib.nullcontext() if config["dry_run"] else held(folder, "folder"):
        return _ablate(config, study, plan, judge, base, train, folder)


def _ablate(
    config: dict[str, Any], study: Study, plan: Plan, judge: Judge, base: dict[str, Any], train: SampleSet, folder: Path
) -> int:
    more = []
    if config["budget"] is not None:
        runs = len(plan.arms) * len(study.seeds)
        base["epochs"] = _epochs_chosen_before(folder, config["budget"]) or affordable(
            config["budget"], runs, base, judge
        )
        more.append(f"epochs={base['epochs']}")
    settings = _settings(study, plan, judge, base, train) | {"budget_minutes": config["budget"]}
    _refuse_other_study(folder, settings)

    composer = _Composer(more)
    jobs = composer.jobs(plan, study.seeds, folder)
    todo = [job for job in jobs if not job.is_finished(judge.protocol_hash)]
    log.info(
        "%s: %d arms x %d seeds = %d runs, %d to do", study.name, len(plan.arms), len(study.seeds), len(jobs), len(todo)
    )
    if config["dry_run"]:
        _list(jobs, todo, measured_seconds(base, judge) if todo else None, base["epochs"])
        return 0
    if todo:
        _refuse_other_code([job for job in jobs if job not in todo], settings, train)
    _prepare(folder, settings, todo, composer.own)
    stopped = _launch(composer, todo, steps_of_an_epoch(base, len(train)) * base["epochs"]) if todo else None
    if stopped is not None:
        code = _stopped(stopped)
        if any(job.is_finished(judge.protocol_hash) for job in jobs):
            _report(folder)
        return code
    failed = [job for job in jobs if read_json(job.folder / RESULT).get("status") != "finished"]
    for job in failed:
        error = read_json(job.folder / RESULT).get("error", "no result; see its log.txt")
        log.info("failed: %s, seed %d: %s (%s)", job.arm.name, job.seed, error, job.folder)
    return max(_report(folder), 1 if failed else 0)


def _report(folder: Path) -> int:
    page.write(folder)
    get_console().print(_verdicts(read(folder)))
    log.info("report: %s", folder / "report.html")
    return 0


def _check(config: dict[str, Any]) -> tuple[Study, Judge]:
    if config["budget"] is not None and not 0 < config["budget"] <= YEAR:
        raise UserError(f"budget={config['budget']} must be a positive number of minutes, {YEAR} (a year) at most")
    for key in ("study", "judge"):
        if not isinstance(config[key], dict) or "_target_" not in config[key]:
            raise UserError(f"{key}={config[key]!r} leaves the study without its {key}; --help lists what there is")
        schema.check(config[key], key)
    if config["resume"]:
        raise UserError("resume is of single runs: a study goes on by itself, with the same command")
    return schema.build(config["study"]), schema.build(config["judge"])


def _labelled(base: dict[str, Any]) -> SampleSet:
    """The training images; UserError if no accuracy can be had from the data."""
    load = schema.build(base["data"])
    train: SampleSet = load(split="train")
    test = load(split="test")
    if train.labels is None or test is None or test.labels is None:
        raise UserError(
            f"a study compares accuracies, and {train.name} lacks labels or a test split; choose other data"
        )
    return train


def _settings(study: Study, plan: Plan, judge: Judge, base: dict[str, Any], train: SampleSet) -> dict[str, Any]:
    """What `study.json` says."""
    given = overrides()
    return {
        "name": study.name,
        "title": study.title,
        "kind": plan.kind,
        "axes": [asdict(axis) for axis in plan.axes],
        "reference": plan.reference,
        "arms": [arm.name for arm in plan.arms],
        "seeds": study.seeds,
        "epochs": base["epochs"],
        "protocol": judge.protocol,
        "protocol_hash": judge.protocol_hash,
        "words": given,
        "command": spelled("ablate", *given),
        "data": train.name,
        "classes": len(train.classes),
        "chance": 1 / len(train.classes),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "base": arm_hash(base | {"seed": 0}),
        "config": relevant(base | {"seed": 0}),
        "allow_changes": bool(base.get("allow_changes")),
    }


def _refuse_other_study(folder: Path, settings: dict[str, Any]) -> None:
    """A folder holds one study: of one name, one kind, and of runs that differ in nothing but what it varies."""
    there = read_json(folder / "study.json")
    changes = [
        f"{key} {settings[key]} instead of {there[key]}"
        for key in ("name", "kind")
        if key in there and there[key] != settings[key]
    ]
    if there.get("base", settings["base"]) != settings["base"]:
        changes += differences(there.get("config") or {}, settings["config"])
    if changes:
        raise UserError(
            f"{folder} holds another study ({there.get('command')}). This one has {listed(changes)}: give it a folder "
            "of its own by folder=..., or delete that one"
        )


def _refuse_other_code(finished: Sequence[Job], settings: dict[str, Any], train: SampleSet) -> None:
    """The report would refuse to compare old arms with new ones; said here, before hours of training.
    What is known only once a run is assembled, the report compares.
    """
    now = {"code": code_digest(), "data": data_digest(train)}
    known = [read_json(job.folder / RESULT).get("identity") or {} for job in finished]
    unlike = mixed([*known, now], settings["axes"], but=("precision", "after", "test", "statistics"))
    if finished and unlike and not settings["allow_changes"]:
        raise UserError(
            f"{len(finished)} runs of the study were made with other {' and '.join(unlike)} than there are now: delete "
            "their folders under arms, or say allow_changes=true to go on and compare them all the same"
        )


class _Composer:
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

    def jobs(self, plan: Plan, seeds: Sequence[int], folder: Path) -> list[Job]:
        """Each arm with each seed, checked as a run is: mistakes are reported before the first arm starts."""
        jobs = []
        for arm in plan.arms:
            try:
                composed = self.config([*arm.overrides, *self.more])
                check(training_config(plain(composed)))
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


def _prepare(folder: Path, settings: dict[str, Any], todo: Sequence[Job], own: Sequence[str]) -> None:
    """Writes what is known before the first run starts: the study, and what each arm is."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(folder / "study.json", settings)
        for job in todo:
            job.folder.mkdir(parents=True, exist_ok=True)
            (job.folder / RESULT).unlink(missing_ok=True)
            command = spelled("train", *own, *job.overrides)
            about = {"arm": job.arm.name, "seed": job.seed, "place": job.arm.place, "hash": job.hash}
            _write(job.folder / ABOUT, about | {"words": list(job.overrides), "command": command})
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}; choose another by folder=...") from error


def _write(path: Path, content: Any) -> None:
    save(path, json.dumps(content, indent=1) + "\n")


def _launch(composer: _Composer, todo: Sequence[Job], steps: int) -> str | None:
    """Runs arms through the launcher that `hydra/launcher` names. Returns why they were stopped, if they were."""
    batch = [[*overrides(), *job.overrides, f"hydra.sweep.subdir=arms/{job.hash}"] for job in todo]
    with StudyProgress({job.folder: f"{job.arm.name}, seed {job.seed}" for job in todo}, steps):
        try:
            returns = composer.launcher().launch(batch, initial_job_idx=0)
        except KeyboardInterrupt as stop:
            if str(stop) and f"stopped: {stop}" not in pretrain.EXIT_CODES:
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


def _epochs_chosen_before(folder: Path, minutes: float) -> int | None:
    """The epochs that the same command chose when it began the study in this folder."""
    there = read_json(folder / "study.json")
    same = there.get("budget_minutes") == minutes and there.get("words") == overrides()
    return int(there["epochs"]) if same else None


def _list(jobs: Sequence[Job], todo: Sequence[Job], seconds: tuple[float, float] | None, epochs: int) -> None:
    table = Table(title="arms of the study", title_justify="left")
    for name in ("arm", "seed", "folder", "", "words"):
        table.add_column(name, overflow="fold")
    for job in jobs:
        table.add_row(
            job.arm.name, str(job.seed), job.hash, "to do" if job in todo else "finished", " ".join(job.arm.overrides)
        )
    get_console().print(table)
    if seconds is not None:
        one = seconds[0] + epochs * seconds[1]
        log.info(
            "about %s for each arm of %d epochs, %s for the %d that are to do, one after the other",
            clock(one), epochs, clock(one * len(todo)), len(todo),
        )  # fmt: skip


def _verdicts(study: Results) -> Table:
    table = Table(title=str(study.settings["title"]), title_justify="left")
    for name in ("arm", "linear top-1 %", "difference to the reference, points", "verdict"):
        table.add_column(name)
    for arm, interval in study.intervals.items():
        difference = study.differences.get(arm)
        change = verdict = "reference" if arm == study.reference else NONE
        if difference is not None and difference.mean is not None:
            change = f"{in_points(difference.mean)} {span(difference.limits, in_points)}"
            verdict = difference.verdict
        table.add_row(arm, f"{percent(interval.mean)} {span(interval.limits)}", change, verdict)
    return table
