"""Files that the project writes whole."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from twoview.run.atomic import replacing, whole, write_text
from twoview.run.saving import AtomicCheckpointIO


@pytest.fixture(params=[0o022, 0o002, 0o077], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def by_safetensors(path: Path) -> None:
    with whole(path) as part:
        save_file({"w": torch.zeros(3)}, part)


def after_removal(path: Path) -> None:
    with replacing(path) as part:
        part.unlink()
        part.touch(0o600)


WRITERS: list[Callable[[Path], Any]] = [
    by_safetensors,
    after_removal,
    lambda path: write_text(path, "text"),
    lambda path: AtomicCheckpointIO().save_checkpoint({"step": 1}, path),
]


@pytest.mark.parametrize("write", WRITERS, ids=["safetensors", "made anew", "text", "checkpoint"])
def test_files_have_the_mode_that_the_umask_gives(tmp_path: Path, umask: int, write: Callable[[Path], Any]) -> None:
    for _ in range(2):  # new, and in the place of another
        write(tmp_path / "file")
        assert mode(tmp_path / "file") == 0o666 & ~umask


def test_every_file_of_a_run_can_be_read_by_whoever_the_umask_lets(finished: Path) -> None:
    now = os.umask(0)
    os.umask(now)
    assert {path.name: mode(path) for path in finished.iterdir() if path.is_file()} == {
        path.name: 0o666 & ~now for path in finished.iterdir() if path.is_file()
    }
