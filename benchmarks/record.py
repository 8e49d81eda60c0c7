"""What the benchmarks share: a process of its own for each case, its memory, and the record that is written."""

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console


def in_own_process(script: str, words: list[str]) -> dict[str, Any]:
    """What `script` prints as its last line, JSON, when started with `words`; or why there is none."""
    done = subprocess.run([sys.executable, script, *words], capture_output=True, text=True)
    if done.returncode < 0:
        return {"skipped": f"ended by signal {-done.returncode}"}
    if done.returncode:
        return {"skipped": (done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"])[-1]}
    case: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return case


class _Stopped(BaseException):
    pass


@contextmanager
def until_stopped(console: Console) -> Iterator[None]:
    """Ctrl-C and SIGTERM (of `timeout`, or of a machine that is taken back) end what is inside, and nothing more: what
    was measured until then is written after it.
    """

    def stop(number: int, _: Any) -> None:
        raise _Stopped(signal.Signals(number).name)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    except _Stopped as reason:
        console.print(f"stopped by {reason}: what follows is without the cases that were left")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def in_proc(process: int, file: str, word: str) -> int:
    """Bytes in the lines of a file of /proc that begin with `word`, 0 where there is none."""
    try:
        lines = Path(f"/proc/{process}/{file}").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(word))


def resident() -> int:
    """Bytes that this process holds."""
    return in_proc(os.getpid(), "status", "VmRSS")


def peak() -> int:
    """Bytes that it held at most since the last `clear_peak`."""
    return in_proc(os.getpid(), "status", "VmHWM")


def held_by_workers() -> int:
    """Bytes that are of this process's children alone."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    processes = [int(p) for p in children.read_text().split()] if children.exists() else []
    return sum(in_proc(p, "smaps_rollup", "Private_") for p in processes)


def clear_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def memory_before(cuda: bool) -> int:
    """Bytes held now, on the GPU or by this process; `memory_at_most` counts from here."""
    if not cuda:
        clear_peak()
        return resident()
    import torch

    torch.cuda.reset_peak_memory_stats()
    return int(torch.cuda.memory_allocated())


def memory_at_most(cuda: bool) -> int:
    """Bytes held at most since `memory_before`."""
    if not cuda:
        return peak()
    import torch

    return int(torch.cuda.max_memory_allocated())


def goal(
    what: str, reached: float | None, at_least: float | None = None, at_most: float | None = None
) -> dict[str, Any]:
    """One goal and whether it is met; None where nothing was reached that could tell."""
    kept = (at_least is None or (reached or 0) >= at_least) and (at_most is None or (reached or 0) <= at_most)
    bound = {"at_least": at_least} if at_most is None else {"at_most": at_most}
    return {"goal": what, **bound, "reached": reached, "met": None if reached is None else kept}


def say(goals: list[dict[str, Any]], console: Console) -> None:
    for one in goals:
        bound = f"at least {one['at_least']:g}" if "at_least" in one else f"at most {one['at_most']:g}"
        reached = "not measured" if one["reached"] is None else f"{one['reached']:.4g}"
        word = {True: "met", False: "MISSED", None: "open"}[one["met"]]
        console.print(f"{one['goal']}: {reached} (goal: {bound}) - {word}", highlight=False)


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def write(out: Path, result: dict[str, Any], began: float, versions: dict[str, str], console: Console) -> None:
    """`result` with all that is needed to believe and to repeat it; `versions` beside those of twoview's own."""
    from twoview.run import provenance  # not needed in the processes of the cases

    result = result | {
        "seconds": round(time.perf_counter() - began, 1),
        "machine": provenance.machine(),
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,  # a busy machine explains a slow one
        "versions": provenance.versions() | versions,
        "commit": provenance.commit(),
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=2) + "\n")
    console.print(f"written to {out}")
