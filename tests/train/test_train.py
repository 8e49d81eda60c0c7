"""Runs from a configuration to a folder: what they write, that they repeat, that an interruption changes nothing."""

import csv
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from twoview.augment.views import TwoViews
from twoview.data import batches as batch_module
from twoview.data.batches import Batch, GlobalBatches, TwoViewDataModule
from twoview.data.image.pixels import Pixels
from twoview.data.image.shapes import shapes
from twoview.data.set import SampleSet
from twoview.errors import UserError
from twoview.model.base import Outcome
from twoview.model.simclr import SimCLR
from twoview.parallel.precision import cpu_instructions
from twoview.run.resume import STARTS
from twoview.run.saving import Checkpoints, Interrupted
from twoview.train import command as train_command
from twoview.train import pretrain
from twoview.watch.meter import QUALITIES, Meter

ROOT = Path(__file__).parents[2]
FILES = {"last.ckpt", "last-1.ckpt", "config.yaml", "identity.json", "metrics.csv", "summary.json"}
FILES |= {"encoder.safetensors", "views.png"}
CLOCK = {"images_per_second", "seconds", "waiting"}  # what no two runs share

Compose = Callable[..., dict[str, Any]]


def read(folder: Path) -> dict[str, Any]:
    return torch.load(folder / "last.ckpt", weights_only=True)


def rows(folder: Path) -> list[dict[str, str]]:
    """Of `metrics.csv`, without the columns of time."""
    with (folder / "metrics.csv").open(newline="") as file:
        return [{k: v for k, v in row.items() if k not in CLOCK} for row in csv.DictReader(file)]


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two trees of containers and tensors differ, to the bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        lacks = [f"{path}.{key}: on one side only" for key in a.keys() ^ b.keys()]
        return lacks + [line for key in a.keys() & b.keys() for line in differences(a[key], b[key], f"{path}.{key}")]
    if isinstance(a, list | tuple) and isinstance(b, list | tuple) and len(a) == len(b):
        return [line for i, pair in enumerate(zip(a, b, strict=True)) for line in differences(*pair, f"{path}[{i}]")]
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [path]
    return [] if a == b else [f"{path}: {a!r} and {b!r}"]


def assert_same_run(a: Path, b: Path) -> None:
    left, right = read(a), read(b)
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step"):
        assert not differences(left[part], right[part], part)
    assert rows(a) == rows(b)
    assert not differences(load_file(a / "encoder.safetensors"), load_file(b / "encoder.safetensors"))
    ours, theirs = (json.loads((folder / "summary.json").read_text()) for folder in (a, b))
    for key in ("status", "epochs", "steps", "loss", "chance_loss", "numbers", "knn"):
        assert ours[key] == theirs[key], key


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`interrupt(step)` sends this process a signal in that step of the next run; `interrupt(None)` no more."""
    original = Meter.on_train_batch_end

    def at(step: int | None, number: signal.Signals = signal.SIGINT) -> None:
        def hook(self: Meter, trainer: Any, *args: Any) -> None:
            original(self, trainer, *args)
            if trainer.global_step == step:
                signal.raise_signal(number)

        monkeypatch.setattr(Meter, "on_train_batch_end", hook)

    return at


# What a run leaves.


def test_a_run_folder_holds_these_files_and_no_other(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    events = {name for name in names if name.startswith("events.out.tfevents.")}
    assert names - events == FILES
    assert len(events) == 1


def test_the_stored_configuration_is_the_resolved_one_and_runs_again(
    finished: Path, compose: Compose, tiny: list[str], tmp_path: Path
) -> None:
    stored = yaml.safe_load((finished / "config.yaml").read_text())
    assert "${" not in (finished / "config.yaml").read_text()
    assert stored == {k: v for k, v in compose(*tiny).items() if k not in STARTS}
    assert stored == read(finished)["twoview"]["config"]
    pretrain.run(stored | {"resume": None, "debug": False}, tmp_path / "again")
    assert_same_run(finished, tmp_path / "again")


def test_metrics_have_a_row_per_reading_and_per_epoch(finished: Path) -> None:
    with (finished / "metrics.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        table = list(reader)
    told = ["step", "epoch", "loss", "chance_loss", "accuracy", "lr", "images_per_second", "seconds", "waiting"]
    measured = [f"{space}_{name}" for space in "hz" for name in QUALITIES]
    assert reader.fieldnames == [*told, "knn", *measured]  # in the order in which they came up
    readings = [row for row in table if row["loss"]]
    assert [(row["step"], row["epoch"]) for row in readings] == [("3", "1"), ("4", "1"), ("6", "2"), ("8", "2")]
    assert [(row["step"], row["epoch"]) for row in table if row.get("knn")] == [("4", "1"), ("8", "2")]
    for row in readings:
        assert float(row["loss"]) > 0
        assert 0 <= float(row["accuracy"]) <= 1
        assert float(row["images_per_second"]) > 0
        assert float(row["chance_loss"]) == pytest.approx(torch.tensor(127.0).log().item(), rel=1e-5)  # 2 x 64 - 1
    assert [float(row["seconds"]) for row in readings] == sorted(float(row["seconds"]) for row in readings)
    assert float(readings[-1]["lr"]) < float(readings[0]["lr"]) <= 0.03 * 64 / 256


def test_the_summary_says_what_is_needed_to_believe_it(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    table = rows(finished)
    scores = [float(row["knn"]) for row in table if row.get("knn")]
    assert summary["status"] == "finished"
    assert (summary["epochs"], summary["steps"], summary["seed"]) == (2, 8, 0)
    assert summary["knn"]["final"] == pytest.approx(scores[-1], rel=1e-5)
    assert summary["knn"]["best"] == pytest.approx(max(scores), rel=1e-5)
    assert summary["knn"]["best_epoch"] == scores.index(max(scores)) + 1
    assert (summary["knn"]["bank"], summary["knn"]["test"]) == (256, 64)
    assert summary["loss"] == pytest.approx(float([row["loss"] for row in table if row["loss"]][-1]), rel=1e-5)
    assert summary["images_per_second"] == pytest.approx(8 * 64 / summary["training_seconds"], rel=0.1)
    assert summary["versions"]["torch"] == torch.__version__
    assert summary["machine"]["threads"] == torch.get_num_threads()
    assert summary["machine"]["instructions"] == cpu_instructions()
    assert summary["commit"] is None or re.fullmatch(r"[0-9a-f]{12}(-dirty)?", summary["commit"])


def test_the_view_sheet_shows_three_rows_of_images(finished: Path) -> None:
    with Image.open(finished / "views.png") as sheet:
        width, height = sheet.size
        assert sheet.mode == "RGB"
        assert width / height == pytest.approx(16 / 3, rel=0.05)  # originals, first views, second views
        assert len(sheet.getcolors(maxcolors=width * height) or ()) > 100


def test_tensorboard_gets_the_curves_and_the_views(finished: Path) -> None:
    events = EventAccumulator(str(finished)).Reload()
    wanted = {"loss/loss", "loss/chance_loss", "accuracy/accuracy", "speed/lr", "speed/images_per_second"}
    assert {*wanted, "evaluation/knn"} <= set(events.Tags()["scalars"])
    assert events.Tags()["images"] == ["views"]
    losses = [(event.step, event.value) for event in events.Scalars("loss/loss")]
    assert losses == [
        (int(row["step"]), pytest.approx(float(row["loss"]), rel=1e-5)) for row in rows(finished) if row["loss"]
    ]


def test_the_loss_falls_below_chance(finished: Path) -> None:
    losses = [float(row["loss"]) for row in rows(finished) if row["loss"]]
    assert losses[-1] < losses[0] < torch.tensor(127.0).log().item()


def test_images_are_counted_by_real_training_time(finished: Path) -> None:
    """The evaluation between epochs is no training: the readings' times add up to less than the clock's."""
    with (finished / "metrics.csv").open(newline="") as file:
        readings = [row for row in csv.DictReader(file) if row["loss"]]
    seconds, step = 0.0, 0
    for row in readings:
        seconds += (int(row["step"]) - step) * 64 / float(row["images_per_second"])
        step = int(row["step"])
    assert seconds == pytest.approx(float(readings[-1]["seconds"]), rel=1e-3)


# The same run again, and another.


def test_another_seed_is_another_run(finished: Path, compose: Compose, tiny: list[str], tmp_path: Path) -> None:
    pretrain.run(compose(*tiny, "seed=1", "knn=null"), tmp_path)
    ours, theirs = read(finished)["state_dict"], read(tmp_path)["state_dict"]
    assert ours.keys() == theirs.keys()
    assert all(not torch.equal(ours[name], theirs[name]) for name in ours if ours[name].ndim > 1)
    assert rows(finished)[0]["loss"] != rows(tmp_path)[0]["loss"]


@pytest.mark.parametrize(
    "word",
    ["knn=null", "knn.every_epochs=2", "log_every_steps=100", "loader.num_workers=0", "channels_last=false"],
)
def test_what_watches_or_carries_a_run_does_not_change_it(
    finished: Path, compose: Compose, tiny: list[str], tmp_path: Path, word: str
) -> None:
    pretrain.run(compose(*tiny, word), tmp_path)
    ours, theirs = read(finished)["state_dict"], read(tmp_path)["state_dict"]
    if word == "channels_last=false":  # other kernels: the same numbers but for rounding
        for name, value in ours.items():
            torch.testing.assert_close(theirs[name], value, rtol=0.05, atol=0.02)
    else:
        assert not differences(ours, theirs)


# Interruption and resumption.


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5, 7])
def test_an_interrupted_run_ends_as_the_straight_one(
    finished: Path, compose: Compose, tiny: list[str], tmp_path: Path, interrupt: Callable[..., None], step: int
) -> None:
    """Before, at and after a reading (3, 6), and exactly at the end of an epoch (4)."""
    config = compose(*tiny)
    interrupt(step)
    summary = pretrain.run(config, tmp_path)
    assert summary["status"] == "stopped: ctrl-C"
    assert (summary["steps"], summary["epochs"]) == (step, step / 4)
    assert read(tmp_path)["global_step"] == step
    interrupt(None)
    assert pretrain.run(config | {"resume": str(tmp_path)}, tmp_path)["status"] == "finished"
    assert_same_run(finished, tmp_path)


@pytest.mark.parametrize(
    "words",
    [
        ["model=moco", "model.queue_size=100", "model.momentum_end=1.0", "model.mask_same_image=true"],
        ["model=moco", "model.queue_size=100", "model.symmetric=true", "trainer.precision=bf16-mixed"],
        ["model=mocov3", "model.predictor.hidden_dim=16"],
        ["model=byol", "model.predictor.hidden_dim=16"],
    ],
    ids=["moco", "moco, symmetric, bf16", "mocov3", "byol"],
)
def test_queue_and_teacher_survive_an_interruption(
    compose: Compose, tiny: list[str], tmp_path: Path, interrupt: Callable[..., None], words: list[str]
) -> None:
    config = compose(*tiny, *words)
    pretrain.run(config, tmp_path / "straight")
    interrupt(3)
    pretrain.run(config, tmp_path / "resumed")
    interrupt(None)
    pretrain.run(config | {"resume": str(tmp_path / "resumed")}, tmp_path / "resumed")
    assert_same_run(tmp_path / "straight", tmp_path / "resumed")
    names = read(tmp_path / "resumed")["state_dict"].keys()
    assert any(name.startswith("teacher.") for name in names)
    assert ("queue.rows" in names) == (words[0] == "model=moco")


def test_a_run_may_be_interrupted_again_and_again(
    finished: Path, compose: Compose, tiny: list[str], tmp_path: Path, interrupt: Callable[..., None]
) -> None:
    resume: dict[str, Any] = {}
    for step in (2, 3, 4, 6):
        interrupt(step)
        assert pretrain.run(compose(*tiny) | resume, tmp_path)["steps"] == step
        resume = {"resume": str(tmp_path / "last.ckpt")}
    interrupt(None)
    pretrain.run(compose(*tiny) | resume, tmp_path)
    assert_same_run(finished, tmp_path)


def test_a_signal_in_the_last_step_comes_too_late(
    finished: Path, compose: Compose, tiny: list[str], tmp_path: Path, interrupt: Callable[..., None]
) -> None:
    interrupt(8)
    assert pretrain.run(compose(*tiny), tmp_path)["status"] == "finished"
    assert_same_run(finished, tmp_path)


def test_an_incomplete_last_batch_is_resumed_too(
    compose: Compose, tiny: list[str], tmp_path: Path, interrupt: Callable[..., None]
) -> None:
    config = compose(*tiny, "loader.drop_last=false", "batch_size=100", "loader.max_batches=null")
    pretrain.run(config, tmp_path / "straight")
    assert read(tmp_path / "straight")["global_step"] == 6  # 100 + 100 + 56, twice
    interrupt(4)
    pretrain.run(config, tmp_path / "resumed")
    interrupt(None)
    pretrain.run(config | {"resume": str(tmp_path / "resumed")}, tmp_path / "resumed")
    assert_same_run(tmp_path / "straight", tmp_path / "resumed")


def test_the_signal_handlers_are_put_back(
    compose: Compose, tiny: list[str], tmp_path: Path, interrupt: Callable[..., None]
) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    interrupt(2)
    pretrain.run(compose(*tiny), tmp_path)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_max_time_stops_and_saves(
    finished: Path, compose: Compose, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Meter.on_train_batch_end

    def slow(self: Meter, trainer: Any, *args: Any) -> None:
        original(self, trainer, *args)
        if trainer.global_step == 3:
            time.sleep(1.1)

    monkeypatch.setattr(Meter, "on_train_batch_end", slow)
    summary = pretrain.run(compose(*tiny, "trainer.max_time=00:01"), tmp_path)
    assert summary["status"] == "stopped: trainer.max_time is over"
    assert summary["steps"] <= 3  # an overloaded machine may take the second sooner
    monkeypatch.undo()
    pretrain.run(compose(*tiny) | {"resume": str(tmp_path)}, tmp_path)
    assert_same_run(finished, tmp_path)


def test_a_finished_run_resumed_stays_as_it_is(
    finished: Path, compose: Compose, tiny: list[str], tmp_path: Path
) -> None:
    folder = shutil.copytree(finished, tmp_path / "copy")
    assert pretrain.run(compose(*tiny) | {"resume": str(folder)}, folder)["status"] == "finished"
    assert_same_run(finished, folder)


def test_resume_takes_new_values_of_its_keys(finished: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    folder = shutil.copytree(finished, tmp_path / "copy")
    assert "of another run: epochs=3 instead of 2. allow_changes=true" in command(f"resume={folder}", "epochs=3").error
    ended = command(f"resume={folder}", "epochs=3", "allow_changes=true", "name=other")
    assert ended.code == 0
    assert "going on from step 8 with changes: epochs=3 instead of 2" in ended.out
    assert read(folder)["global_step"] == 12
    assert yaml.safe_load((folder / "config.yaml").read_text())["epochs"] == 3
    assert [row["step"] for row in rows(folder) if row.get("knn")] == ["4", "8", "12"]
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").glob("*/*"))


SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGUSR1, 138)]


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_second_signal_does_not_wait(
    tiny: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: Callable[..., Any],
    number: signal.Signals,
    code: int,
) -> None:
    def twice(self: Meter, trainer: Any, *args: Any) -> None:
        if trainer.global_step == 6:
            signal.raise_signal(number)
            monkeypatch.setattr("twoview.run.signals.ECHO", -1.0)  # the second comes long after
            signal.raise_signal(number)

    monkeypatch.setattr(Meter, "on_train_batch_end", twice)
    handler = signal.getsignal(number)
    try:
        ended = command(*tiny, f"hydra.run.dir={tmp_path}/run")
    finally:
        signal.signal(number, handler)
    assert ended.code == code
    assert read(tmp_path / "run")["global_step"] == 4


def test_a_second_signal_does_not_wait_for_a_long_call_of_c(tiny: list[str], tmp_path: Path) -> None:
    """Handlers of Python's run when it is over, which may be never: a process that waits for others."""
    code = """
import hashlib, sys
from twoview.commands import run
from twoview.watch.meter import Meter

def hook(self, trainer, *args):
    if trainer.global_step == 6:
        print("inside", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
Meter.on_train_batch_end = hook
run("train", sys.argv[1:])
"""
    words = [*tiny, "knn=null", "quality=null", "hydra.run.dir=run"]
    process = subprocess.Popen([sys.executable, "-c", code, *words], cwd=tmp_path, stdout=subprocess.PIPE)
    assert process.stdout is not None
    while process.stdout.readline() != b"inside\n":
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    time.sleep(1.5)
    assert process.poll() is None  # the first is to save
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=30) == 143
    assert read(tmp_path / "run")["global_step"] == 4
    assert not list((tmp_path / "run").glob("*.part"))


def test_a_signal_to_the_process_and_its_group_is_one(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Callable[..., Any]
) -> None:
    original = Meter.on_train_batch_end

    def twice(self: Meter, trainer: Any, *args: Any) -> None:
        original(self, trainer, *args)
        if trainer.global_step == 6:
            signal.raise_signal(signal.SIGTERM)
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Meter, "on_train_batch_end", twice)
    assert command(*tiny, "hydra.run.dir=run").code == 143
    assert read(tmp_path / "run")["global_step"] == 6


def test_a_signal_that_is_ignored_stays_ignored(
    tiny: list[str], tmp_path: Path, command: Callable[..., Any], interrupt: Callable[..., None]
) -> None:
    """As under `nohup`."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        interrupt(2, signal.SIGHUP)
        assert command(*tiny, "hydra.run.dir=run").code == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_terminal_that_is_lost_stops_the_run_with_its_state(tiny: list[str], tmp_path: Path) -> None:
    """As with a connection by ssh: the system sends SIGHUP, and nothing can be written to the terminal any more."""
    import fcntl
    import pty
    import termios

    ours, theirs = pty.openpty()
    words = [*tiny, "data.n_train=1024", "batch_size=32", "epochs=60", "knn=null", "quality=null", "hydra.run.dir=run"]
    run = subprocess.Popen(
        [sys.executable, ROOT / "train.py", *words],
        cwd=tmp_path,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(theirs)
    said = b""
    while b" left" not in said:
        said += os.read(ours, 4096)
    os.close(ours)
    assert run.wait(timeout=120) == 129
    assert read(tmp_path / "run")["global_step"] > 0


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_signals_decide_the_exit_code(
    tiny: list[str],
    tmp_path: Path,
    command: Callable[..., Any],
    interrupt: Callable[..., None],
    number: signal.Signals,
    code: int,
) -> None:
    interrupt(2, number)
    ended = command(*tiny, "hydra.run.dir=here")
    assert ended.code == code
    assert ended.err == ""
    assert f"python {ROOT}/train.py resume=here" in ended.out
    assert read(tmp_path / "here")["global_step"] == 2


def test_the_summary_has_the_share_of_all_waiting(finished: Path) -> None:
    with (finished / "metrics.csv").open(newline="") as file:
        readings = [row for row in csv.DictReader(file) if row["loss"]]
    ends = [0.0, *(float(row["seconds"]) for row in readings)]
    shares = [float(row["waiting"]) for row in readings]
    waited = sum((b - a) * share for a, b, share in zip(ends[:-1], ends[1:], shares, strict=True))
    assert json.loads((finished / "summary.json").read_text())["waiting"] == pytest.approx(waited / ends[-1], rel=1e-3)


@pytest.mark.parametrize(("waiting", "said"), [(0.381, True), (0.05, False), (None, False)])
def test_a_run_that_waits_for_its_data_says_so_at_its_end(waiting: float | None, said: bool, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    train_command._say_goodbye({"status": "stopped: ctrl-C", "waiting": waiting}, Path("run"))
    assert ("input-bound: 38 % of the time waiting for data" in caplog.text) is said


def test_ctrl_c_ends_a_whole_sweep(
    tiny: list[str], tmp_path: Path, command: Callable[..., Any], interrupt: Callable[..., None]
) -> None:
    interrupt(2)
    assert command("-m", *tiny, "seed=0,1", "hydra.sweep.dir=sweep").code == 130
    assert not (tmp_path / "sweep" / "1" / "last.ckpt").exists()


def test_ctrl_c_on_the_real_command_and_the_command_it_names(tiny: list[str], tmp_path: Path) -> None:
    words = [*tiny, "data.n_train=1024", "batch_size=32", "epochs=6", "knn=null", "hydra.run.dir=run"]
    train = subprocess.Popen(
        [sys.executable, ROOT / "train.py", *words],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert train.stdout is not None
    lines = []
    for line in train.stdout:
        lines.append(line)
        if line.startswith("epoch 1/6"):
            train.send_signal(signal.SIGINT)
            break
    out, err = train.communicate(timeout=120)
    assert train.returncode == 130, err
    assert "Traceback" not in err
    text = "".join(lines) + out
    named = re.search(rf"python {ROOT}/train\.py (resume=\S+)", text)
    assert named, text
    step = read(tmp_path / "run")["global_step"]
    assert 32 <= step < 6 * 32
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "stopped: ctrl-C"

    again = subprocess.run(
        [sys.executable, ROOT / "train.py", named[1]], cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert again.returncode == 0, again.stderr
    assert "Traceback" not in again.stderr
    assert f"next:  python {ROOT}/scripts/linear_probe.py ckpt=" in again.stdout
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["status"], summary["steps"]) == ("finished", 6 * 32)


def test_a_sweep_runs_every_job_in_a_folder_of_its_own(
    tiny: list[str], finished: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    ended = command("-m", *tiny, "seed=0,1", "hydra.sweep.dir=sweep")
    assert ended.code == 0, ended.err
    assert sorted(path.name for path in (tmp_path / "sweep").iterdir() if path.is_dir()) == ["0", "1"]
    assert_same_run(finished, tmp_path / "sweep" / "0")
    assert json.loads((tmp_path / "sweep" / "1" / "summary.json").read_text())["seed"] == 1


def test_a_job_that_fails_is_said_and_the_sweep_ends_with_1(
    tiny: list[str], tmp_path: Path, command: Callable[..., Any]
) -> None:
    ended = command("-m", *tiny, "epochs=0,1", "hydra.sweep.dir=sweep")
    assert "epochs=0" in ended.error
    assert (tmp_path / "sweep" / "1" / "last.ckpt").exists()


# A loss that is not finite.


def poison(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Makes the loss of one step NaN."""
    original, count = SimCLR.step, 0

    def poisoned(self: SimCLR, batch: Batch) -> Outcome:
        nonlocal count
        count += 1
        outcome = original(self, batch)
        return outcome._replace(loss=outcome.loss * float("nan")) if count == step else outcome

    monkeypatch.setattr(SimCLR, "step", poisoned)


@pytest.mark.parametrize("step", [5, 6, 7, 8])
def test_a_loss_of_nan_stops_the_run_and_leaves_the_checkpoint_before_it(
    tiny: list[str], tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    poison(monkeypatch, step)
    error = command(*tiny, "hydra.run.dir=run").error
    assert f"not finite at step {step} (epoch 2)" in error
    assert "optimizer.lr_per_256" in error
    kept = read(tmp_path / "run")
    assert kept["global_step"] == 4
    assert all(value.isfinite().all() for value in kept["state_dict"].values())
    assert not list((tmp_path / "run").glob("*.part"))


def test_a_learning_rate_out_of_all_reason_is_named(tiny: list[str], command: Callable[..., Any]) -> None:
    error = command(*tiny, "optimizer.lr_per_256=1e25", "epochs=10").error
    assert re.search(r"not finite at step \d+ \(epoch \d+\)", error)
    assert "lr=" in error


# Batches.


def data_module(n: int, batch_size: int, seed: int = 0, **arguments: Any) -> TwoViewDataModule:
    images = SampleSet("n", torch.zeros(n, 3, 1, 1, dtype=torch.uint8), None, (), Pixels((0.0,) * 3, (1.0,) * 3))
    return TwoViewDataModule(images, TwoViews({}, images.preprocess), batch_size, seed, **arguments)


def batches(data: TwoViewDataModule, step: int, rank: int = 0, world: int = 1) -> list[list[int]]:
    data.trainer = SimpleNamespace(global_step=step, global_rank=rank, world_size=world)  # type: ignore[assignment]
    return [batch.tolist() for batch in GlobalBatches(data)]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_clipped_gradients_move_the_weights_as_far_as_their_norm_allows(
    compose: Compose, tiny: list[str], tmp_path: Path, precision: str
) -> None:
    words = [*tiny, "knn=null", "epochs=1", "optimizer.weight_decay=0", f"trainer.precision={precision}"]
    weights = []
    for steps, norm in ((1, 1e-6), (4, 1e-6), (4, 1e6)):
        folder = tmp_path / f"{steps} {norm:g}"
        pretrain.run(compose(*words, f"loader.max_batches={steps}", f"trainer.gradient_clip_val={norm}"), folder)
        weights.append(torch.cat([p.flatten() for name, p in read(folder)["state_dict"].items() if "weight" in name]))
    assert 0 < (weights[1] - weights[0]).norm() < 1e-6  # a few steps of 0.01 x 1e-6, with momentum
    assert (weights[2] - weights[0]).norm() > 1e-3


def test_an_epoch_shows_each_sample_once() -> None:
    data = data_module(103, 10, drop_last=False)
    for epoch in range(3):
        seen = batches(data, epoch * 11)
        assert [len(batch) for batch in seen] == [10] * 10 + [3]
        assert sorted(i for batch in seen for i in batch) == list(range(103))


@pytest.mark.parametrize(("n", "last"), [(64, None), (65, 1), (79, 15)])
def test_an_incomplete_last_batch_is_known_before_the_first_step(n: int, last: int | None) -> None:
    assert data_module(n, 16, drop_last=False).last_batch == last
    assert data_module(n, 16, drop_last=True).last_batch is None
    assert data_module(n, 16, drop_last=False, max_batches=4).last_batch is None
    assert data_module(n, 16, drop_last=False, max_batches=5).last_batch == last


def test_a_last_batch_of_one_sample_is_refused(tiny: list[str], command: Callable[..., Any]) -> None:
    words = [*tiny, "data.n_train=47", "batch_size=23", "loader.drop_last=false", "loader.max_batches=null"]
    assert "loader.drop_last=false leaves a last batch of 1, which is too small" in command(*words).error
    assert command(*words, "loader.max_batches=2").code == 0


def test_drop_last_leaves_out_another_rest_each_epoch() -> None:
    data = data_module(103, 10)
    left_out = [set(range(103)) - {i for batch in batches(data, epoch * 10) for i in batch} for epoch in range(20)]
    assert all(len(rest) == 3 for rest in left_out)
    assert len(set.union(*left_out)) > 30


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    orders = {(seed, epoch): batches(data_module(64, 8, seed), epoch * 8) for seed in (0, 1) for epoch in (0, 1)}
    assert len({str(order) for order in orders.values()}) == 4
    for (seed, epoch), order in orders.items():
        assert batches(data_module(64, 8, seed), epoch * 8) == order
        rebatched = batches(data_module(64, 16, seed), epoch * 4)
        assert [i for batch in rebatched for i in batch] == [i for batch in order for i in batch]


@pytest.mark.parametrize("step", range(9))
def test_an_epoch_goes_on_where_it_was(step: int) -> None:
    data = data_module(64, 8)
    assert batches(data, step) == batches(data, step // 8 * 8)[step % 8 :]


@pytest.mark.parametrize("world", [2, 4])
def test_the_shares_of_all_ranks_are_the_global_batch(world: int) -> None:
    data = data_module(64, 16)
    whole = batches(data, 5)
    shares = [batches(data, 5, rank, world) for rank in range(world)]
    for i, batch in enumerate(whole):
        parts = [share[i] for share in shares]
        assert {len(part) for part in parts} == {16 // world}
        assert [sample for part in parts for sample in part] == batch  # runs of neighbours


def test_an_uneven_last_batch_is_shared_too_unless_a_device_gets_nothing() -> None:
    data = data_module(65, 16, drop_last=False)
    assert data.shares(1) == {16, 1}
    assert data_module(69, 16, drop_last=False).shares(2) == {8, 3, 2}
    data.trainer = SimpleNamespace(world_size=2)  # type: ignore[assignment]
    with pytest.raises(UserError, match="last batch of 1 samples leaves some of the 2 devices without any"):
        data.train_dataloader()


def test_half_pairs_of_mixtures_are_refused() -> None:
    data = data_module(60, 10)
    data.views.mix = lambda images, draw: (images, torch.ones(len(images)))
    data.trainer = SimpleNamespace(world_size=2)  # type: ignore[assignment]
    with pytest.raises(UserError, match="a device's 5 samples leave half a pair"):
        data.train_dataloader()


def test_a_global_batch_must_divide_by_the_devices() -> None:
    data = data_module(64, 10)
    data.trainer = SimpleNamespace(world_size=4)  # type: ignore[assignment]
    with pytest.raises(UserError, match=r"batch_size=10 .* 4 devices"):
        data.train_dataloader()


def test_max_batches_shortens_an_epoch_and_never_lengthens_it() -> None:
    assert data_module(64, 16, max_batches=3).batches_per_epoch == 3
    assert data_module(64, 16, max_batches=30).batches_per_epoch == 4
    assert len(batches(data_module(64, 16, max_batches=3), 3)) == 3


# Other data.


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """48 train and 16 test images of 12 x 12 in four classes, as PNG."""
    for split, n in (("train", 48), ("test", 16)):
        images = shapes(split=split, n_train=48, n_test=16, size=12)
        assert images is not None
        for i in range(n):
            folder = tmp_path / "photos" / split / f"class{i % 4}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images.samples[i].permute(1, 2, 0).numpy()).save(folder / f"{i:02}.png")
    return tmp_path / "photos"


def folder_config(compose: Compose, tiny: list[str], root: Path, *words: str) -> dict[str, Any]:
    general = [word for word in tiny if not word.startswith("data")]
    return compose(*general, "data=image_folder", f"data.root={root}", "batch_size=12", "loader.num_workers=1", *words)


def test_images_decoded_in_workers_give_the_same_run_interrupted_or_not(
    compose: Compose, tiny: list[str], photos: Path, tmp_path: Path, interrupt: Callable[..., None]
) -> None:
    in_memory = folder_config(compose, tiny, photos)
    on_demand = folder_config(compose, tiny, photos, "data.in_memory=false")
    pretrain.run(in_memory, tmp_path / "in_memory")
    pretrain.run(on_demand, tmp_path / "on_demand")
    assert_same_run(tmp_path / "in_memory", tmp_path / "on_demand")
    interrupt(6)
    pretrain.run(on_demand, tmp_path / "stopped")
    interrupt(None)
    pretrain.run(on_demand | {"resume": str(tmp_path / "stopped")}, tmp_path / "stopped")
    assert_same_run(tmp_path / "in_memory", tmp_path / "stopped")


def test_too_little_shared_memory_for_loader_processes_is_said_and_done_without(
    compose: Compose, tiny: list[str], photos: Path, tmp_path: Path, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container: a batch of 12 images is 5 kB, of which a process has two, and one is being read."""
    config = folder_config(compose, tiny, photos, "data.in_memory=false", "loader.num_workers=2")
    loaders = []

    class Loader(batch_module.DataLoader):  # type: ignore[misc]
        def __init__(self, *args: Any, num_workers: int, **options: Any) -> None:
            loaders.append(num_workers)
            super().__init__(*args, num_workers=num_workers, **options)

    monkeypatch.setattr(batch_module, "DataLoader", Loader)
    for free, workers in ((5 * 12 * 432, 2), (5 * 12 * 432 - 1, 0)):
        monkeypatch.setattr(os, "statvfs", lambda path, free=free: SimpleNamespace(f_bavail=free, f_frsize=1))
        pretrain.run(config, tmp_path / str(workers))
        assert loaders.pop() == workers
        assert ("2 loader processes need 0 MB of shared memory" in caplog.text) is (workers == 0)
    assert_same_run(tmp_path / "2", tmp_path / "0")


def test_unlabelled_images_train_without_knn_and_say_so(
    compose: Compose, tiny: list[str], photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flat = tmp_path / "flat"
    flat.mkdir()
    for path in photos.glob("train/*/*.png"):
        shutil.copy(path, flat / path.name)
    with caplog.at_level(logging.INFO):
        summary = pretrain.run(folder_config(compose, tiny, flat), tmp_path / "run")
    assert "no kNN while training: flat has no labelled" in caplog.text
    assert summary["status"] == "finished"
    assert summary["knn"] is None
    assert not [row for row in rows(tmp_path / "run") if row.get("knn")]


def test_an_image_damaged_after_the_start_is_named(
    tiny: list[str], photos: Path, tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoding on demand meets it in a worker, in the middle of the run."""
    original = Checkpoints.on_fit_start

    def spoil(self: Checkpoints, *args: Any) -> None:
        original(self, *args)
        path = next(photos.glob("train/class0/*.png"))
        path.write_bytes(path.read_bytes()[:60])

    monkeypatch.setattr(Checkpoints, "on_fit_start", spoil)
    general = [word for word in tiny if not word.startswith("data")]
    words = ["data=image_folder", f"data.root={photos}", "data.in_memory=false", "batch_size=12"]
    error = command(*general, *words, "loader.num_workers=1", "knn=null").error
    assert re.search(r"class0/\d\d\.png cannot be decoded", error)


def test_interrupted_carries_where_the_state_is() -> None:
    stopped = Interrupted("ctrl-C", Path("run/last.ckpt"))
    assert (stopped.reason, stopped.path.name) == ("ctrl-C", "last.ckpt")
