"""The signals that stop a run, from its first line to its last, and SLURM's wish that it be started again."""

import errno
import logging
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

log = logging.getLogger(__name__)

_NAMES = {"SIGINT": "ctrl-C", "SIGTERM": "SIGTERM", "SIGHUP": "SIGHUP", "SIGUSR1": "SIGUSR1"}
REASONS = {getattr(signal, name): reason for name, reason in _NAMES.items() if hasattr(signal, name)}
EXIT_CODES = {f"stopped: {reason}": 128 + number for number, reason in REASONS.items()}  # by the status of a run
ECHO = 1.0  # seconds in which a signal may come twice: to the process, and to its group
PATIENCE = 1.0  # seconds in which a handler of Python's may still end the process, which it does in better order


def is_meant(number: int, seconds: float) -> bool:
    """Whether the same signal, so long after the first, asks again."""
    return number == signal.SIGINT or seconds > ECHO


class LastResort:
    """Ends the process when a signal comes again while the main thread is inside a long call of C's (a convolution, a
    wait for other processes), where Python's handlers do not run: a thread hears of every signal at once. `reached` is
    to be set by a handler that ends the process itself. To be made and stopped in the main thread.
    """

    current: "LastResort | None" = None

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._ear, self._mouth = socket.socketpair()
        self._mouth.setblocking(False)
        self._before = signal.set_wakeup_fd(self._mouth.fileno(), warn_on_full_buffer=False)
        LastResort.current = self
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        last, since = 0, 0.0
        while numbers := self._ear.recv(64):
            for number in (n for n in numbers if n in REASONS):
                now = time.monotonic()
                if number != last:
                    last, since = number, now
                elif is_meant(number, now - since) and not self.reached.wait(PATIENCE):
                    if os.isatty(1):
                        os.write(1, b"\x1b[?25h\n")  # the cursor, which a progress bar hides
                    os._exit(128 + number)
        self._ear.close()

    def stop(self) -> None:
        signal.set_wakeup_fd(self._before)
        LastResort.current = None
        self._mouth.close()


def _in_a_loader() -> None:
    """A process forked from a run takes no signal for it: a terminal sends them to all, and the run needs the batches
    of the step at hand. What ends the run ends its loaders.
    """
    if LastResort.current is not None:
        signal.set_wakeup_fd(-1)
        for number in REASONS:
            if number != signal.SIGTERM:
                signal.signal(number, signal.SIG_IGN)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_a_loader)


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
