"""The one display of a study: arms done, running and failed, and the time left."""

import contextlib
import csv
import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from twoview.report.words import clock

EVERY = 1.0  # seconds between two looks


class Display:
    """Looks into the folders of the arms now and then, wherever these run; `arms` names them by folder, `steps` is the
    length of each.

    A bar on a terminal, a line for each arm that ends elsewhere.
    """

    def __init__(self, arms: Mapping[Path, str], steps: int) -> None:
        self.arms, self.steps = arms, steps
        self._ended: dict[Path, str] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._console = Console()  # of its own: the arms write what they say into files

    def __enter__(self) -> "Display":
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
        """Reads what the arms have written since."""
        running, work = [], 0.0
        for folder, name in self.arms.items():
            if folder in self._ended:
                continue
            with contextlib.suppress(OSError, ValueError):  # not there, or half written: the next look sees it
                self._ended[folder] = json.loads((folder / "result.json").read_text())["status"]
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
        """How much of its training an arm has done, if it has written anything since the study was started."""
        with contextlib.suppress(OSError, ValueError, KeyError, IndexError):
            if (folder / "log.txt").stat().st_mtime < self._wall:
                return None
            with (folder / "metrics.csv").open(newline="") as lines:
                return min(0.95, float(list(csv.DictReader(lines))[-1]["step"]) / self.steps)  # judging comes after
        return 0.0 if (folder / "log.txt").exists() else None

    def _left(self, work: float) -> str:
        elapsed = time.monotonic() - self._began
        return clock(elapsed / work * (len(self.arms) - work)) if work > 0.05 else "?"

    def _say(self, name: str, folder: Path) -> None:
        if not self._console.is_terminal:
            done, status = len(self._ended), self._ended[folder]
            text = f"{done} of {len(self.arms)}: {name} {status}, {self._left(done)} left"
            self._console.print(text, soft_wrap=True, highlight=False, markup=False)
