"""What every case of the battery stands under: a time limit, a memory limit, and a look for litter afterwards."""

import multiprocessing.util
import os
import resource
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

SECONDS = 300  # no case may hang; most take a second of an idle machine
MEMORY = 6 * 2**30  # address space beyond that at the start: what asks for more is told at once


@pytest.fixture(autouse=True)
def _no_hang() -> Iterator[None]:
    def give_up(number: int, frame: Any) -> None:
        pytest.fail(f"not done after {SECONDS} s")

    previous = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, previous)


@pytest.fixture(autouse=True)
def _little_memory() -> Iterator[None]:
    if torch.cuda.is_available() or not Path("/proc/self/statm").exists():  # CUDA maps all the memory there is
        yield
        return
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.fixture(autouse=True)
def _no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with no_litter(tmp_path, monkeypatch):
        yield


@contextmanager
def no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Temporary files lie in a folder that is empty again, and beside the results there is none."""
    multiprocessing.util.get_temp_dir()  # made once for the life of the process: outside the folder that goes
    temporary = Path(tempfile.mkdtemp())
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("XDG_CACHE_HOME", str(temporary / "pymp-cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    yield
    left = [name for name in os.listdir(temporary) if not name.startswith(("pymp-", "torchinductor"))]
    shutil.rmtree(temporary)
    assert not left
    parts = [
        Path(folder, name)
        for folder, folders, files in os.walk(tmp_path)
        for name in (*folders, *files)
        if name.endswith(".part") or name.startswith((".download-", ".write-"))
    ]
    assert not parts


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A file that code from a stranger would make."""
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "a stranger's code ran"
