"""The folders of runs: none is taken from another run, and none is removed that was there before."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from twoview.errors import UserError
from twoview.run.place import held, held_free

Command = Callable[..., Any]
ROOT = Path(__file__).parents[2]
FAILS = ("data=shapes", "data.n_train=8", "batch_size=512", "trainer=cpu", "knn=null")  # after the folder was made


@contextmanager
def other_holds(folder: Path) -> Iterator[None]:
    """Another process holds the folder."""
    code = "import sys, pathlib; from twoview.run.place import held\n"
    code += "with held(pathlib.Path(sys.argv[1])):\n print(1, flush=True)\n sys.stdin.read()"
    process = subprocess.Popen([sys.executable, "-c", code, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    try:
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("within", ["mine", "mine/deeper", "a/b"])
def test_a_start_that_fails_leaves_folders_that_were_there(tmp_path: Path, command: Command, within: str) -> None:
    (tmp_path / "mine").mkdir()
    assert "batch_size=512 is larger" in command(*FAILS, f"hydra.run.dir={within}").error
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")] == ["mine"]


@pytest.mark.parametrize("word", ["hydra.run.dir='here/${name}'", "hydra.run.dir=here/${seed}", "name=x"])
def test_folders_named_by_what_is_configured_are_known_too(tmp_path: Path, command: Command, word: str) -> None:
    for name in ("here/pretrain", "here/0", "runs"):
        (tmp_path / name).mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    assert command(*FAILS, word).code == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_sweep_that_fails_leaves_its_folder(tmp_path: Path, command: Command) -> None:
    (tmp_path / "sweep" / "1").mkdir(parents=True)
    ended = command("-m", *FAILS, "hydra.sweep.dir=sweep", "seed=0,1")
    assert ended.code == 1
    assert (tmp_path / "sweep" / "1").is_dir()
    assert not (tmp_path / "sweep" / "0").exists()


def test_a_folder_that_another_run_has_is_passed_by(tmp_path: Path) -> None:
    folder = tmp_path / "date"
    with other_holds(folder), held_free(folder) as first:
        assert first == tmp_path / "date_2"
    assert [path.name for path in tmp_path.iterdir()] == ["date"]
    (folder / ".lock").unlink(missing_ok=True)
    folder.mkdir(exist_ok=True)
    (folder / "summary.json").touch()  # of a run that is over
    with held_free(folder) as second:
        assert second == tmp_path / "date_2"
        (second / "summary.json").touch()
    with held_free(folder) as third:
        assert third == tmp_path / "date_3"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["date", "date_2"]


def test_a_folder_may_vanish_while_it_is_taken(tmp_path: Path) -> None:
    """Others that fail remove it as it is made."""
    folder, over = tmp_path / "date", threading.Event()

    def remove() -> None:
        while not over.is_set():
            with suppress(OSError):
                folder.rmdir()
            time.sleep(0.0001)  # a thread that never waits would win every race

    thread = threading.Thread(target=remove)
    thread.start()
    try:
        for _ in range(300):
            with held(folder):
                assert folder.is_dir()
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("count", [4])
def test_runs_started_in_one_second_have_folders_of_their_own(tmp_path: Path, tiny: list[str], count: int) -> None:
    """All are given the same date."""
    words = [*tiny, "epochs=1", "loader.max_batches=1", "knn=null", "quality=null", "data.n_train=64"]
    code = (
        "import sys, hydra.core.utils, hydra.core.hydra_config, datetime\n"
        "class Now(datetime.datetime):\n"
        "    @classmethod\n"
        "    def now(cls, tz=None): return cls(2030, 1, 2, 3, 4, 5)\n"
        "hydra.core.utils.datetime = Now\n"
        "from twoview.commands import run\n"
        "run('train', sys.argv[1:])\n"
    )
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code, *words, f"seed={seed}"],
            cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True,
        )
        for seed in range(count)
    ]  # fmt: skip
    ended = [(*process.communicate(timeout=280), process.returncode) for process in started]
    assert [code for *_, code in ended] == [0] * count, ended
    names = ["2030-01-02_03-04-05", *(f"2030-01-02_03-04-05_{n}" for n in range(2, count + 1))]
    assert sorted(path.name for path in (tmp_path / "runs" / "pretrain").iterdir()) == names
    configs = [(tmp_path / "runs" / "pretrain" / name / "config.yaml").read_text() for name in names]
    assert {text.split("seed: ")[1][0] for text in configs} == {str(seed) for seed in range(count)}
    for out, _, _ in ended:  # what is said leads to the run's own folder
        assert sum(f"ckpt=runs/pretrain/{name}/last.ckpt" in out for name in names) == 1


def test_a_named_folder_is_not_passed_by(tmp_path: Path, tiny: list[str], command: Command) -> None:
    with other_holds(tmp_path / "run"):
        assert "another process is at work in" in command(*tiny, "hydra.run.dir=run").error
    assert not list(tmp_path.glob("run_*"))


def test_what_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write into the folder"), held_free(tmp_path / "file" / "run"):
        pass
