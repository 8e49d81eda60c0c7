"""Several processes as a user starts them: the same numbers as one, and no hang when one of them dies."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from twoview.run.checkpoint import load_encoder, read_checkpoint
from twoview.train import pretrain

ROOT = Path(__file__).parents[2]
TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
SET = ("data=shapes", "data.n_train=512", "data.n_test=256", "data.size=16", "trainer.precision=32-true", "epochs=3")
SMALL = ("encoder=small", "encoder.widths=[8,8,16,16]", "batch_size=64", "knn.every_epochs=3", "knn.k=20")


def start(*words: str, folder: Path, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [sys.executable, *launcher, str(ROOT / "train.py"), *words, f"hydra.run.dir={folder}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=folder.parent, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


@pytest.mark.parametrize("model", ["simclr", "moco"])
def test_two_processes_end_where_one_does(model: str, compose: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    """Batch statistics, losses and queues are those of the global batch, so the weights agree up to rounding."""
    words = [f"model={model}", *SET, *SMALL, "loader.drop_last=true"]
    if model == "moco":
        words += ["model.split_batch_norm=1", "model.queue_size=100"]
    process = start(*words, *TWO, folder=tmp_path / "two")
    out, _ = process.communicate(timeout=300)
    assert process.returncode == 0, out
    assert "batch 64 (32 on each of 2 devices)" in out
    alone = pretrain.run(compose(*words, "trainer=cpu"), tmp_path / "one")
    together = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert together["steps"] == alone["steps"] == 24
    assert abs(together["knn"]["final"] - alone["knn"]["final"]) <= 0.01
    assert together["loss"] == pytest.approx(alone["loss"], rel=0.01)
    curves = []
    for name in ("one", "two"):
        with (tmp_path / name / "metrics.csv").open(newline="") as file:
            curves.append([float(row["loss"]) for row in csv.DictReader(file) if row["loss"]])
    assert curves[1] == pytest.approx(curves[0], rel=0.01)
    x = torch.rand(4, 3, 16, 16)  # in a single process, from the checkpoint of two
    torch.testing.assert_close(
        load_encoder(tmp_path / "two")(x), load_encoder(tmp_path / "one")(x), rtol=0.05, atol=0.05
    )
    assert (
        read_checkpoint(tmp_path / "two")["state_dict"].keys() == read_checkpoint(tmp_path / "one")["state_dict"].keys()
    )


def test_torchrun_starts_the_processes_too(tmp_path: Path) -> None:
    words = [*SET[:-1], "epochs=1", *SMALL[:-2], "knn=null", "loader.max_batches=2", *TWO]
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    process = start(*words, folder=tmp_path / "run", launcher=torchrun)
    out, _ = process.communicate(timeout=180)
    assert process.returncode == 0, out
    assert "batch 64 (32 on each of 2 devices)" in out
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 2


def test_the_jobs_of_a_sweep_share_their_processes(tmp_path: Path) -> None:
    """Processes that a later job starts for itself would wait five minutes for one that never comes."""
    words = [*SET[:-1], "epochs=1", *SMALL[:-2], "knn=null", "quality=null", "loader.max_batches=2", *TWO]
    process = start("-m", *words, "seed=1,2,3", f"hydra.sweep.dir={tmp_path}/sweep", folder=tmp_path / "unused")
    out, _ = process.communicate(timeout=120)  # until the last of them has closed its output
    assert process.returncode == 0, out
    for job in "012":
        summary = json.loads((tmp_path / "sweep" / job / "summary.json").read_text())
        assert (summary["status"], summary["steps"]) == ("finished", 2)
    assert "rror" not in out


def test_a_sweep_over_numbers_of_devices_is_refused(tmp_path: Path) -> None:
    words = [*SET[:-1], "epochs=1", *SMALL[:-2], "knn=null", "quality=null", "loader.max_batches=2", *TWO[:2]]
    process = start("-m", *words, "trainer.devices=2,4", f"hydra.sweep.dir={tmp_path}/sweep", folder=tmp_path / "un")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 1, out
    assert "this run is for 4 devices, and the one before it in the same process was for 2" in " ".join(out.split())


def test_processes_of_two_runs_are_refused_before_the_first_step(tmp_path: Path) -> None:
    """As nodes with different configurations: they would train together without a word."""
    words = [*SET[:-1], "epochs=1", *SMALL[:-2], "knn=null", *TWO, f"hydra.run.dir={tmp_path}/run"]
    words += ["optimizer.lr_per_256=0.$((RANK + 1))", "batch_size=$((RANK * 2 + 4))"]
    shell = f"{sys.executable} {ROOT}/train.py {' '.join(words)}"
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--no-python")
    ended = subprocess.run(
        [sys.executable, *torchrun, "bash", "-c", shell], cwd=tmp_path, text=True, capture_output=True, timeout=180
    )
    assert ended.returncode != 0
    said = " ".join(ended.stderr.split())
    assert "process 1 of 2 is of another run than the first one: it has" in said
    assert "optimizer.lr_per_256=0.2 where the first has 0.1" in said
    assert "batch_size=6 where the first has 4" in said
    assert not (tmp_path / "run" / "last.ckpt").exists()


@pytest.mark.slow  # a signal takes the same way: below
def test_all_processes_stop_after_the_same_step(tmp_path: Path) -> None:
    """The clocks of two processes never agree to the step: they decide together."""
    words = [*SET[:-1], "epochs=3000", "augment.compile=false", *SMALL[:-2], "knn=null", "trainer.max_time=00:03"]
    process = start(*words, *TWO, folder=tmp_path / "run")
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0, out
    assert "stopped (trainer.max_time is over) and saved" in out
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["steps"] == read_checkpoint(tmp_path / "run")["global_step"]


def test_all_processes_stop_and_save_when_one_is_asked_to(tmp_path: Path) -> None:
    words = [*SET[:-1], "epochs=3000", "augment.compile=false", *SMALL[:-2], "knn=null"]
    process = start(*words, *TWO, folder=tmp_path / "run")
    try:
        until = time.monotonic() + 300
        while not (tmp_path / "run" / "last.ckpt").exists():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < until
            time.sleep(0.2)
        os.kill(children(process.pid)[0], signal.SIGTERM)  # the second alone
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0, out
        assert "stopped (another process was asked to) and saved" in out
        summary = json.loads((tmp_path / "run" / "summary.json").read_text())
        assert summary["steps"] == read_checkpoint(tmp_path / "run")["global_step"]
    finally:
        process.kill()


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()  # a zombie waits for its new parent only
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the processes in /proc")
@pytest.mark.parametrize("victim", [pytest.param("first", marks=pytest.mark.slow), "second"])
def test_a_rank_that_dies_ends_the_job(victim: str, tmp_path: Path) -> None:
    words = ["model=moco", *SET, *SMALL, "knn=null", "epochs=100000", "model.split_batch_norm=2"]
    words.remove("knn.every_epochs=3")
    words.remove("knn.k=20")
    process = start(*words, *TWO, folder=tmp_path / "run")
    try:
        until = time.monotonic() + 300
        while not (tmp_path / "run" / "last.ckpt").exists():  # the first epoch is over: both are at work
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < until
            time.sleep(0.2)
        second = children(process.pid)[0]
        os.kill(process.pid if victim == "first" else second, signal.SIGKILL)
        killed = time.monotonic()
        out, _ = process.communicate(timeout=60)  # waits for the second too, which holds the pipe
        assert process.returncode != 0
        assert time.monotonic() - killed < 60
        if victim == "second":
            assert "error: another process of the run has ended" in out, out
        assert not is_running(second)
    finally:
        process.kill()


FAILING = """
import os

from twoview.data.image.shapes import shapes
from twoview.errors import UserError


def failing(split: str):
    images = shapes(split, n_train=64, n_test=16, size=16)
    fetch = type(images).fetch

    def fetch_or_fail(self, index):
        if len(index) == 4 and os.environ.get("LOCAL_RANK") == "1":  # a share of a batch
            raise UserError("photo 17 is damaged")
        return fetch(self, index)

    type(images).fetch = fetch_or_fail
    return images
"""


def test_a_rank_that_fails_says_why_and_ends_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    words = [
        "data=shapes",
        "data._target_=failing.failing",
        "trust=[failing]",
        "~data.n_train",
        "~data.n_test",
        "~data.size",
        "~data.seed",
    ]
    words += ["encoder=small", "encoder.widths=[4,4,8,8]", "batch_size=8", "epochs=300", "knn=null"]
    process = start(*words, *TWO, folder=tmp_path / "run")
    out, _ = process.communicate(timeout=90)
    assert process.returncode not in (0, None), out
    assert "error in process 1: photo 17 is damaged" in out
