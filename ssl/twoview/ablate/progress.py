"""The progress of a study: arms done, running and failed, and the time left."""

import contextlib
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from twoview.ablate.arm import RESULT
from twoview.errors import UserError
from twoview.report.words import clock
from twoview.run.folder import METRICS, read_json, read_metrics

EVERY = 1.0  # seconds between two looks


class StudyProgress:
    """A bar on a terminal, elsewhere a line for each arm that ends. It polls the folders of the arms, wherever these
    run: `arms` names them by folder, `steps` is the length of each.
    """

    def __init__(self, arms: Mapping[Path, str], steps: int) -> None:
        self.arms, self.steps = arms, steps
        self._ended: dict[Path, str] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._console = Console()  # its own, since the output of the arms is redirected

    def __enter__(self) -> "StudyProgress":
        self._began, self._wall = time.monotonic(), time.time()
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.fields[text]}"))
        self._bar = Progress(*columns, console=self._console, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("study", total=float(len(self.arms)), text="")
        self._bar.start()
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._over.set()
        self._thread.join()
        self.look()
        self._bar.stop()

    def _watch(self) -> None:
        while not self._over.wait(EVERY):
            self.look()

    def look(self) -> None:
        """Reads what the arms have written since the last look."""
        running, work = [], 0.0
        for folder, name in self.arms.items():
            if folder in self._ended:
                continue
            if status := read_json(folder / RESULT).get("status"):
                self._ended[folder] = str(status)
                self._say(name, folder)
                continue
            done = self._share(folder)
            if done is not None:
                work += done
                running.append(f"{name} ({done:.0%})")
        done = len(self._ended)
        failed = sum(status != "finished" for status in self._ended.values())
        text = f"{done} of {len(self.arms)} done" + (f", {failed} of them failed" if failed else "")
        if running:
            text += f"; running: {', '.join(running)}"
        self._bar.update(self._task, completed=done + work, text=f"{text}; {self._left(done + work)} left")

    def _share(self, folder: Path) -> float | None:
        """The share of its training that an arm has done; None if it has not begun since the study was started."""
        with contextlib.suppress(OSError):
            if (folder / "log.txt").stat().st_mtime < self._wall:
                return None
        with contextlib.suppress(OSError, UserError, KeyError):
            return min(0.95, read_metrics(folder / METRICS)[-1]["step"] / self.steps)  # the judging is still to come
        return 0.0 if (folder / "log.txt").exists() else None

    def _left(self, work: float) -> str:
        elapsed = time.monotonic() - self._began
        return clock(elapsed / work * (len(self.arms) - work)) if work > 0.05 else "?"

    def _say(self, name: str, folder: Path) -> None:
        if not self._console.is_terminal:
            done, status = len(self._ended), self._ended[folder]
            text = f"{done} of {len(self.arms)}: {name} {status}, {self._left(done)} left"
            self._console.print(text, soft_wrap=True, highlight=False, markup=False)
