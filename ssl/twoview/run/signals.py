"""The signals that stop a run, from its first line to its last, and SLURM's wish that it be started again."""

import errno
import logging
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)

_NAMES = {"SIGINT": "ctrl-C", "SIGTERM": "SIGTERM", "SIGHUP": "SIGHUP", "SIGUSR1": "SIGUSR1"}
REASONS = {getattr(signal, name): reason for name, reason in _NAMES.items() if hasattr(signal, name)}
EXIT_CODES = {f"stopped: {reason}": 128 + number for number, reason in REASONS.items()}  # by the status of a run


def under_slurm() -> bool:
    """Whether a batch job of SLURM's runs this: one that can be started again."""
    return "SLURM_JOB_ID" in os.environ and os.environ.get("SLURM_JOB_NAME") not in ("bash", "interactive")


def requeue() -> None:
    """Asks SLURM to start this job again. Of its processes the first does."""
    if os.environ.get("SLURM_PROCID", "0") != "0":
        return
    job = os.environ["SLURM_JOB_ID"]
    if "SLURM_ARRAY_JOB_ID" in os.environ and "SLURM_ARRAY_TASK_ID" in os.environ:
        job = f"{os.environ['SLURM_ARRAY_JOB_ID']}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, timeout=60)
        reason = done.stderr.strip() if done.returncode else ""
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    if reason:
        log.warning("SLURM did not requeue the job %s (%s): submit it again", job, reason)
    else:
        log.info("SLURM will start the job %s again", job)


@contextmanager
def requeue_while_starting() -> Iterator[None]:
    """Until a run takes its signals, there is nothing to save: SIGUSR1 requeues the job of SLURM's and ends the
    process, which it would else kill.
    """

    def stop(number: int, frame: Any) -> None:
        requeue()
        raise SystemExit(128 + number)

    if not under_slurm():
        yield
        return
    before = signal.signal(signal.SIGUSR1, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)


def forget_lost_terminal() -> None:
    """Sends what would be written to a terminal that is gone with its connection to nowhere: a write would fail."""
    for stream in (1, 2):
        if _is_lost(stream):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def _is_lost(stream: int) -> bool:
    try:
        import termios
    except ImportError:  # a system without
        return False
    try:
        termios.tcgetattr(stream)
    except termios.error as error:  # ENOTTY of files and pipes
        return bool(error.args[0] == errno.EIO)
    return False
