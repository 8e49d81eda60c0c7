"""What happens to checkpoints when a disk is full or lies, when two runs want one folder, and when SLURM calls."""

import errno
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from twoview.errors import UserError
from twoview.run.checkpoint import Damaged, load_encoder, read_checkpoint, read_newest
from twoview.run.place import held
from twoview.run.saving import AtomicCheckpointIO, Checkpoints, kept
from twoview.run.signals import requeue
from twoview.selftest.resume import first_difference
from twoview.train import pretrain
from twoview.watch.meter import Meter

Compose = Callable[..., dict[str, Any]]
Command = Callable[..., Any]


def step(folder: Path, name: str = "last.ckpt") -> int:
    return int(read_checkpoint(folder / name)["global_step"])


@pytest.fixture
def copy(finished: Path, tmp_path: Path) -> Path:
    return shutil.copytree(finished, tmp_path / "copy")


# Damage.


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1 << at % 8
    path.write_bytes(data)


def test_a_flipped_bit_in_a_tensor_is_noticed(copy: Path) -> None:
    """`torch.load` itself does not notice."""
    value = max(read_checkpoint(copy)["state_dict"].values(), key=lambda t: t.numel()).numpy().tobytes()
    start = (copy / "last.ckpt").read_bytes().index(value)
    flip(copy / "last.ckpt", start + len(value) // 2)
    assert torch.load(copy / "last.ckpt", weights_only=True)
    with pytest.raises(Damaged, match="damaged"):
        read_checkpoint(copy)


def test_a_flipped_bit_anywhere_is_noticed_or_harmless(finished: Path, tmp_path: Path) -> None:
    good = read_checkpoint(finished)
    size = (finished / "last.ckpt").stat().st_size
    draw = random.Random(0)
    for at in [draw.randrange(size) for _ in range(60)]:
        path = Path(shutil.copy(finished / "last.ckpt", tmp_path / "last.ckpt"))
        flip(path, at)
        try:
            found = read_checkpoint(path)
        except UserError:
            continue
        for name, value in good["state_dict"].items():
            assert torch.equal(value, found["state_dict"][name]), (at, name)


def test_a_flipped_bit_anywhere_in_exported_weights_is_noticed(finished: Path, tmp_path: Path) -> None:
    """There is nothing harmless in the file: names, numbers, what is said about them, and the checksum itself."""
    data = (finished / "encoder.safetensors").read_bytes()
    said = range(8, 8 + int.from_bytes(data[:8], "little"))
    draw = random.Random(0)
    for at in [*range(8), *draw.sample(said, 100), *(draw.randrange(said.stop, len(data)) for _ in range(60))]:
        path = Path(shutil.copy(finished / "encoder.safetensors", tmp_path / "encoder.safetensors"))
        flip(path, at)
        with pytest.raises(UserError, match=r"encoder\.safetensors"):
            load_encoder(path)


def test_exported_weights_without_a_checksum_are_refused(finished: Path, tmp_path: Path) -> None:
    path = finished / "encoder.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    del metadata["sha256"]
    save_file(load_file(path), tmp_path / path.name, metadata=metadata)
    with pytest.raises(UserError, match="its checksum is wrong"):
        load_encoder(tmp_path / path.name)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
def test_a_run_folder_with_a_damaged_checkpoint_goes_on_from_the_one_before(
    finished: Path, copy: Path, command: Command, share: float
) -> None:
    data = (copy / "last.ckpt").read_bytes()
    (copy / "last.ckpt").write_bytes(data[: int(share * len(data))])
    ended = command(f"resume={copy}")
    assert ended.code == 0, ended.err
    assert "last.ckpt is damaged: going on from last-1.ckpt" in ended.out
    assert first_difference(finished, copy) is None
    assert (copy / "last.ckpt.damaged").exists()


def test_where_no_checkpoint_is_whole_the_run_says_so(copy: Path, command: Command) -> None:
    for path in kept(copy):
        path.write_bytes(b"half")
    assert "damaged" in command(f"resume={copy}").error
    with pytest.raises(UserError, match="there is no checkpoint"):
        read_newest(copy.parent)


def test_the_last_few_are_kept(tmp_path: Path) -> None:
    for n in range(6):
        AtomicCheckpointIO(keep=3).save_checkpoint({"step": n}, tmp_path / "last.ckpt")
        files = kept(tmp_path)
        assert [torch.load(path)["step"] for path in files] == [n, n - 1, n - 2][: n + 1]
    assert len(list(tmp_path.iterdir())) == 3


# Time.


def test_a_checkpoint_by_the_clock(
    compose: Compose, tiny: list[str], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it changes nothing of the run."""
    saved = []
    original = Checkpoints._save

    def save(self: Checkpoints, trainer: Any, must: bool = False) -> None:
        saved.append(trainer.global_step)
        original(self, trainer, must)

    monkeypatch.setattr(Checkpoints, "_save", save)
    pretrain.run(compose(*tiny, "checkpoint.every_minutes=1e-9", "checkpoint.every_epochs=2"), tmp_path)
    assert saved == [1, 2, 3, 4, 5, 6, 7, 8]
    assert (step(tmp_path), step(tmp_path, "last-1.ckpt")) == (8, 7)
    shutil.rmtree(tmp_path)
    monkeypatch.undo()
    pretrain.run(compose(*tiny, "checkpoint.every_epochs=2"), tmp_path)
    assert [path.name for path in kept(tmp_path)] == ["last.ckpt"]


# Full disks.


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """`disk(True)`: the disk is full, no file can be written; `disk(False)`: it can again."""
    is_full, original = [False], Path.open

    def opened(self: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if is_full[0] and mode[0] in "wax":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return original(self, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", opened)
    return lambda full: is_full.__setitem__(0, full)


def fill_disk(monkeypatch: pytest.MonkeyPatch, disk: Callable[[bool], None], steps: dict[int, bool]) -> None:
    original = Meter.on_train_batch_end

    def hook(self: Meter, trainer: Any, *args: Any) -> None:
        if trainer.global_step in steps:
            disk(steps[trainer.global_step])
        original(self, trainer, *args)

    monkeypatch.setattr(Meter, "on_train_batch_end", hook)


def test_a_full_disk_stops_a_run_with_its_checkpoint_before(
    tiny: list[str],
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    disk: Callable[[bool], None],
) -> None:
    fill_disk(monkeypatch, disk, {7: True})
    error = command(*tiny, "hydra.run.dir=run").error
    assert "cannot write" in error
    assert "the checkpoint before it is untouched" in error
    assert step(tmp_path / "run") == 4
    assert not list((tmp_path / "run").glob(".*"))


def test_a_run_outlives_a_full_disk_if_it_is_told_so(
    finished: Path,
    tiny: list[str],
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    disk: Callable[[bool], None],
) -> None:
    """Nothing can be written from step 3 to step 7: neither checkpoint nor readings, which come later."""
    fill_disk(monkeypatch, disk, {3: True, 7: False})
    ended = command(*tiny, "hydra.run.dir=run", "checkpoint.on_error=continue")
    assert ended.code == 0, ended.err
    assert "tries again at the next one" in ended.out
    assert "its rows wait for the next time" in ended.out
    assert first_difference(finished, tmp_path / "run") is None
    assert len(kept(tmp_path / "run")) == 1


def test_the_last_state_must_be_written(
    tiny: list[str],
    tmp_path: Path,
    command: Command,
    monkeypatch: pytest.MonkeyPatch,
    disk: Callable[[bool], None],
) -> None:
    fill_disk(monkeypatch, disk, {7: True})
    assert "cannot write" in command(*tiny, "hydra.run.dir=run", "checkpoint.on_error=continue").error
    assert step(tmp_path / "run") == 4


# One folder, one run.

HOLD = "import sys, pathlib; from twoview.run.place import held\n"
HOLD += "with held(pathlib.Path(sys.argv[1])):\n print(1, flush=True)"
HOLD += "\n sys.stdin.read()"


def test_a_second_run_in_a_folder_is_refused_until_the_first_is_dead(
    tiny: list[str], tmp_path: Path, command: Command
) -> None:
    run = tmp_path / "run"
    words = [sys.executable, "-c", HOLD, str(run)]
    first = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert first.stdout is not None
    assert first.stdout.readline()
    error = command(*tiny, "hydra.run.dir=run").error
    assert f"another process is at work in {run} (process {first.pid} on " in error
    assert [path.name for path in run.iterdir()] == [".lock"]
    (run / ".last.ckpt.1.part").write_text("half")
    first.kill()
    first.communicate()
    with held(run):
        assert {path.name for path in run.iterdir()} == {".lock"}
    assert not list(run.iterdir())


def test_a_folder_that_was_made_in_vain_goes(tmp_path: Path) -> None:
    with pytest.raises(KeyError), held(tmp_path / "a" / "b"):
        raise KeyError
    assert not (tmp_path / "a" / "b").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write into the folder"), held(tmp_path / "file"):
        pass


# resume=auto.


def test_auto_starts_goes_on_and_refuses_another_run(
    finished: Path, tiny: list[str], tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*tiny, "resume=auto", "hydra.run.dir=run"]
    original = Meter.on_train_batch_end

    def hook(self: Meter, trainer: Any, *args: Any) -> None:
        original(self, trainer, *args)
        if trainer.global_step == 6:
            signal.raise_signal(signal.SIGUSR1)

    monkeypatch.setattr(Meter, "on_train_batch_end", hook)
    assert command(*words).code == 138
    monkeypatch.undo()
    assert "seed=1 instead of 0" in command(*words, "seed=1").error
    ended = command(*words)
    assert (ended.code, "going on from step 6" in ended.out) == (0, True)
    assert first_difference(finished, tmp_path / "run") is None
    assert command(*words).code == 0  # it is finished


# SLURM.


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A batch job of SLURM's, with a stand-in for `scontrol`; the file that holds what it was asked."""
    tool = tmp_path / "bin" / "scontrol"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    tool.chmod(tool.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tool.parent}{os.pathsep}{os.environ['PATH']}")
    names = {"NTASKS": "1", "JOB_ID": "77", "JOB_NAME": "train", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in (names | {"NTASKS_PER_NODE": "1", "NNODES": "1"}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    return tmp_path / "asked"


def test_slurm_is_asked_to_requeue_while_a_run_starts(slurm: Path, tiny: list[str], tmp_path: Path) -> None:
    """While torch is imported, say: there is nothing to save."""
    script = Path(__file__).parents[2] / "train.py"
    start = (
        "import os, runpy, signal, sys\n"
        f"sys.argv = [{str(script)!r}, *sys.argv[1:]]\n"
        "def importing(name, *rest):\n"
        "    if name == 'torch': os.kill(os.getpid(), signal.SIGUSR1)\n"
        "sys.addaudithook(lambda event, args: importing(*args) if event == 'import' else None)\n"
        f"runpy.run_path({str(script)!r}, run_name='__main__')\n"
    )
    ended = subprocess.run([sys.executable, "-c", start, *tiny], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 138, ended.stderr
    assert slurm.read_text() == "requeue 77\n"


@pytest.mark.parametrize(
    ("variables", "asked"),
    [
        ({"SLURM_ARRAY_JOB_ID": "70", "SLURM_ARRAY_TASK_ID": "3"}, "requeue 70_3\n"),
        ({"SLURM_PROCID": "1"}, None),  # the first process asks
    ],
)
def test_the_right_job_is_requeued_once(
    slurm: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], asked: str | None
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    requeue()
    assert (slurm.read_text() if slurm.exists() else None) == asked


@pytest.mark.parametrize("tool", ["#!/bin/sh\necho 'Requested operation not permitted' >&2\nexit 1\n", None])
def test_a_job_that_slurm_does_not_requeue_says_so(
    slurm: Path, tool: str | None, caplog: Any, monkeypatch: Any
) -> None:
    if tool is None:
        monkeypatch.setenv("PATH", "")
    else:
        (slurm.parent / "bin" / "scontrol").write_text(tool)
    requeue()
    assert "SLURM did not requeue the job 77" in caplog.text
    assert "submit it again" in caplog.text


def test_slurm_is_asked_to_requeue(
    slurm: Path, tiny: list[str], tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Meter.on_train_batch_end

    def hook(self: Meter, trainer: Any, *args: Any) -> None:
        original(self, trainer, *args)
        if trainer.global_step == 6:
            signal.raise_signal(signal.SIGUSR1)

    monkeypatch.setattr(Meter, "on_train_batch_end", hook)
    before = signal.getsignal(signal.SIGUSR1)
    words = [*tiny, "resume=auto", "hydra.run.dir=run"]
    ended = command(*words)
    assert ended.code == 138, ended.err
    assert slurm.read_text() == "requeue 77\n"
    assert not list((tmp_path / "run").glob("hpc_ckpt*"))
    assert step(tmp_path / "run") == 6
    assert signal.getsignal(signal.SIGUSR1) == before
    monkeypatch.setattr(Meter, "on_train_batch_end", original)
    assert command(*words).code == 0
    assert step(tmp_path / "run") == 8
