"""A study from its command to its report: works out the arms, has Hydra's launcher run those that are missing, and
writes the report.
"""

import contextlib
import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich import get_console
from rich.table import Table

from twoview.ablate import page
from twoview.ablate.arm import RESULT, Stopped, training_config
from twoview.ablate.budget import affordable, measured_seconds
from twoview.ablate.folder import epochs_chosen_before, prepare, refuse_other_code, refuse_other_study, settings_of
from twoview.ablate.jobs import Composer, Job, launch
from twoview.ablate.judge import Judge
from twoview.ablate.results import Results, read
from twoview.ablate.study import Plan, Study
from twoview.cli import schema
from twoview.cli.entry import plain
from twoview.data.set import SampleSet
from twoview.errors import UserError
from twoview.report.words import NONE, clock, in_points, percent, span
from twoview.run.folder import read_json
from twoview.run.place import held
from twoview.run.signals import EXIT_CODES, REASONS, forget_lost_terminal
from twoview.train.budget import steps_of_an_epoch
from twoview.train.config import check

log = logging.getLogger(__name__)

KEYS = {"folder": str, "budget": float | None, "dry_run": bool, "report": str | None}
YEAR = 525_600  # minutes


def ablate_command(composed: DictConfig) -> int:
    """`twoview ablate`. Returns 1 if an arm failed, 128 and the number of the signal that stopped the study."""
    try:
        with _terminable():
            return _command(plain(composed))
    except Stopped as stop:
        return _stopped(str(stop))


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM and SIGHUP stop the study as ctrl-C does. While an arm trains, its run handles them and saves its state
    first.
    """

    def stop(number: int, frame: Any) -> None:
        forget_lost_terminal()
        raise Stopped(REASONS[signal.Signals(number)])

    if threading.current_thread() is not threading.main_thread():  # only the main thread gets signals
        yield
        return
    own = [number for number, reason in REASONS.items() if reason in ("SIGTERM", "SIGHUP")]
    before = {number: signal.signal(number, stop) for number in own if signal.getsignal(number) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stopped(reason: str) -> int:
    log.info("stopped (%s). The same command goes on", reason)
    return EXIT_CODES.get(f"stopped: {reason}", 1)


def _command(config: dict[str, Any]) -> int:
    schema.check_keys(config, KEYS)
    if config["report"] is not None:
        return _report(Path(config["report"]))
    study, judge = _check(config)
    base = training_config(config)
    check(base)
    plan = study.plan(base | {"choices": dict(HydraConfig.get().runtime.choices)})
    train, _, _ = judge.sets(base["data"])
    folder = Path(config["folder"])
    with contextlib.nullcontext() if config["dry_run"] else held(folder, "folder"):
        return _ablate(config, study, plan, judge, base, train, folder)


def _ablate(
    config: dict[str, Any], study: Study, plan: Plan, judge: Judge, base: dict[str, Any], train: SampleSet, folder: Path
) -> int:
    more = []
    if config["budget"] is not None:
        runs = len(plan.arms) * len(study.seeds)
        base["epochs"] = epochs_chosen_before(folder, config["budget"]) or affordable(
            config["budget"], runs, base, judge
        )
        more.append(f"epochs={base['epochs']}")
    settings = settings_of(study, plan, judge, base, train) | {"budget_minutes": config["budget"]}
    refuse_other_study(folder, settings)

    composer = Composer(more)
    jobs = composer.jobs(plan, study.seeds, folder, judge)
    todo = [job for job in jobs if not job.is_finished(judge.protocol_hash)]
    log.info(
        "%s: %d arms x %d seeds = %d runs, %d to do", study.name, len(plan.arms), len(study.seeds), len(jobs), len(todo)
    )
    if config["dry_run"]:
        _list(jobs, todo, measured_seconds(base, judge) if todo else None, base["epochs"])
        return 0
    if todo:
        refuse_other_code([job for job in jobs if job not in todo], settings, train)
    prepare(folder, settings, todo, composer.own)
    stopped = launch(composer, todo, steps_of_an_epoch(base, len(train)) * base["epochs"]) if todo else None
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
