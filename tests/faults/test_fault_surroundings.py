"""What surrounds a command: terminals of every kind, no terminal, closed streams, locales, time zones, folders that
cannot be written.
"""

import fcntl
import json
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from faults.battery import table
from twoview.cli.configs import CONFIGS

ROOT = CONFIGS.parent
SMALL = ("data=shapes", "data.n_train=16", "data.n_test=8", "data.size=8", "encoder=small", "encoder.widths=[4,4,4,4]")
SMALL += ("model.projector.hidden_dim=8", "batch_size=8", "epochs=2", "trainer=cpu", "log_every_steps=1")
RUN = ("hydra.run.dir=run", "knn.every_epochs=1")
SECONDS = 280
STARTED: list["subprocess.Popen[bytes]"] = []


def start(*words: str, folder: Path, env: dict[str, str] | None = None, **streams: Any) -> "subprocess.Popen[bytes]":
    command = [sys.executable, str(ROOT / "train.py"), *SMALL, *RUN, *words]
    process = subprocess.Popen(command, cwd=folder, env=os.environ | (env or {}), **streams)
    STARTED.append(process)
    return process


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    yield
    while STARTED:
        process = STARTED.pop()
        process.kill()  # does nothing to one that has ended
        process.wait()


def healthy(folder: Path) -> None:
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert (folder / "run" / "last.ckpt").is_file()


# Terminals. A pseudo-terminal is one to the command.

TERMINALS = [
    (f"{columns} columns, {term or 'of no kind'}", columns, rows, term)
    for columns, rows, term in (
        *((20, 24, "xterm"), (1, 1, "xterm"), (500, 3, "xterm"), (0, 0, "xterm")),
        *((20, 24, "dumb"), (80, 24, "dumb"), (80, 24, ""), (0, 0, "")),
    )
]


@pytest.mark.parametrize(("case", "columns", "rows", "term"), table("terminals", TERMINALS, 1))
def test_terminals(tmp_path: Path, case: str, columns: int, rows: int, term: str) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
    process = start(folder=tmp_path, env={"TERM": term}, stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if not select.select([ours], [], [], 1.0)[0]:
            continue
        try:
            shown += os.read(ours, 65536)
        except OSError:  # the other side has closed
            break
    os.close(ours)
    assert process.wait(timeout=30) == 0, shown[-2000:].decode(errors="replace")
    assert b"Traceback" not in shown
    healthy(tmp_path)


# Streams.


def closed_before(*numbers: int) -> Callable[[], None]:
    def close() -> None:
        for number in numbers:
            os.close(number)

    return close


STREAMS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "stdin empty": lambda folder: {"stdin": subprocess.DEVNULL},
    "stdin closed": lambda folder: {"preexec_fn": closed_before(0)},
    "stdout closed": lambda folder: {"preexec_fn": closed_before(1)},
    "stderr closed": lambda folder: {"preexec_fn": closed_before(2)},
    "all closed": lambda folder: {"preexec_fn": closed_before(0, 1, 2)},
    "stdout full": lambda folder: {"stdout": open("/dev/full", "wb")},  # noqa: SIM115
    "nobody reads": lambda folder: {"stdout": subprocess.PIPE},
}


@pytest.mark.parametrize(("case", "words"), table("streams", [(name, ()) for name in STREAMS], 1))
def test_streams(tmp_path: Path, case: str, words: tuple[str, ...]) -> None:
    streams = STREAMS[case](tmp_path)
    with (tmp_path / "errors").open("wb") as errors:
        process = start(*words, folder=tmp_path, stderr=errors, **streams)
        if process.stdout is not None:
            process.stdout.close()  # as `| head` does when it has seen enough
        assert process.wait(timeout=SECONDS) == 0, (tmp_path / "errors").read_text()
    text = (tmp_path / "errors").read_text()
    assert "Traceback" not in text
    assert "Logging error" not in text
    assert "Exception ignored" not in text
    healthy(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_an_error_keeps_its_code_when_nobody_listens(tmp_path: Path, stream: str) -> None:
    number = {"stdout": 1, "stderr": 2}[stream]
    process = start("epochs=0", folder=tmp_path, preexec_fn=closed_before(number))
    assert process.wait(timeout=SECONDS) == 1
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").iterdir())


# Locales, time zones, encodings.

PLACES: list[tuple[str, dict[str, str]]] = [
    ("C", {"LC_ALL": "C"}),
    ("C without UTF-8", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    ("POSIX", {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    ("a locale that there is not", {"LC_ALL": "xx_YY.UTF-8", "LANG": "xx_YY"}),
    ("ASCII output", {"PYTHONIOENCODING": "ascii:strict"}),
    ("UTF-16 output", {"PYTHONIOENCODING": "utf-16"}),
    ("Latin 1 output", {"PYTHONIOENCODING": "latin-1:strict"}),
    ("decimal commas", {"LC_ALL": "de_DE.UTF-8", "LC_NUMERIC": "de_DE.UTF-8"}),
    ("Turkish", {"LC_ALL": "tr_TR.UTF-8"}),
    ("Kathmandu", {"TZ": "Asia/Kathmandu"}),
    ("Kiritimati", {"TZ": "Pacific/Kiritimati"}),
    ("a time zone that there is not", {"TZ": "Middle/Earth"}),
    ("a time zone with markup", {"TZ": "<+14>-14"}),
    ("no home", {"HOME": "/nonexistent"}),
    ("no variables", {"HOME": "", "USER": "", "LANG": "", "TERM": ""}),
    ("a temporary folder that there is not", {"TMPDIR": "/nonexistent"}),
    ("warnings as errors", {"PYTHONWARNINGS": "default"}),
    ("optimised", {"PYTHONOPTIMIZE": "1"}),
    ("development mode", {"PYTHONDEVMODE": "1"}),
    ("hash seed", {"PYTHONHASHSEED": "7"}),
]


@pytest.mark.parametrize(("case", "env"), table("locales and environments", PLACES, 1))
def test_locales_and_environments(tmp_path: Path, case: str, env: dict[str, str]) -> None:
    process = start(
        "name='größe'",
        folder=tmp_path,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err.decode(errors="replace")[-2000:]
    assert b"Traceback" not in out + err
    assert b"Logging error" not in out + err
    healthy(tmp_path)
    assert (tmp_path / "run" / "metrics.csv").read_text().count(",") % 9 in range(10)
    rows = (tmp_path / "run" / "metrics.csv").read_text().splitlines()
    assert len({row.count(",") for row in rows}) == 1, "a decimal comma"


# What a cluster, a login or a notebook leaves in the environment. Named before the first step, or without effect.

DDP = ["trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"]
NUMBERED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS", "MASTER_PORT", "JSM_NAMESPACE_RANK")
SALLOC = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "interactive"}
LEFT: list[tuple[str, dict[str, str], list[str], str]] = [
    *((f"{name} is {value!r}", {name: value}, [], name) for name in NUMBERED for value in ("", "x", "-1")),
    *((f"one of several by {name}", {name: "3"}, [], name) for name in NUMBERED
      if name not in ("SLURM_NTASKS", "MASTER_PORT")),
    *((f"threads {value!r} of {name}", {name: value}, [], name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
      for value in ("0", "-1", "many", "1.5", "1000000", "2,x")),
    *((f"no GPU by {value!r}", {"CUDA_VISIBLE_DEVICES": value}, ["trainer.accelerator=gpu"], "CUDA_VISIBLE_DEVICES")
      for value in ("", "-1", "99")),
    *((f"Lightning's {name}", {f"PL_TRAINER_{name}": "2"}, [], f"PL_TRAINER_{name}")
      for name in ("ACCUMULATE_GRAD_BATCHES", "LIMIT_TRAIN_BATCHES", "FAST_DEV_RUN")),
    ("torchrun over", {"TORCHELASTIC_RUN_ID": "none"}, [], "TORCHELASTIC_RUN_ID"),
    ("a step of srun's over", {"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0", "SLURM_JOB_NAME": "x"}, [], "srun"),
    ("another machine", {"MASTER_ADDR": "elsewhere.invalid"}, DDP, "MASTER_ADDR"),
    ("a port that there is not", {"MASTER_PORT": "70000"}, DDP, "MASTER_PORT"),
    ("half a launcher", {"LOCAL_RANK": "0"}, DDP, "LOCAL_RANK"),
    ("an interactive shell of salloc", SALLOC, [], ""),
    ("an address of another run", {"MASTER_ADDR": "elsewhere.invalid", "MASTER_PORT": "29500"}, [], ""),
    ("threads of nested regions", {"OMP_NUM_THREADS": "1,1"}, [], ""),
    ("threads set to nothing", {"OMP_NUM_THREADS": "", "MKL_NUM_THREADS": ""}, [], ""),
    ("a pod of Kubernetes", {"KUBERNETES_PORT": "tcp://10.0.0.1:443"}, [], ""),
    ("a backend of notebooks", {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}, [], ""),
]  # fmt: skip


@pytest.mark.parametrize(("case", "env", "words", "named"), table("what environments leave behind", LEFT, 10))
def test_what_environments_leave_behind(
    tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch,
    case: str, env: dict[str, str], words: list[str], named: str,
) -> None:  # fmt: skip
    if named == "CUDA_VISIBLE_DEVICES" and torch.cuda.is_available():
        pytest.skip("torch has seen this machine's GPU already")
    for name in {*os.environ}:
        if name.startswith(("SLURM_", "MASTER_", "TORCHELASTIC_")) or name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    ended = command(*SMALL, *RUN, "epochs=1", "knn=null", "quality=null", *words)
    if named:
        message = ended.err
        assert (ended.code, message.count("\n")) == (1, 1)
        assert message.startswith("error")
        assert named in message
        assert "unset" in message or "srun" in message, message
        assert "debug=true" not in message
        assert not (tmp_path / "run").exists()
    else:
        assert ended.code == 0, ended.err
        healthy(tmp_path)


@pytest.mark.parametrize(
    ("file", "text"),
    [("torch.py", ""), ("numpy/__init__.py", "from numpy.core import x"), ("queue.py", "raise OSError")],
)
def test_packages_of_another_python_in_pythonpath_are_named(tmp_path: Path, file: str, text: str) -> None:
    """As `module load` of a cluster leaves them."""
    other = tmp_path / "other"
    (other / file).parent.mkdir(parents=True, exist_ok=True)
    (other / file).write_text(text)
    paths = os.pathsep.join([str(other), "/nonexistent", *filter(None, [os.environ.get("PYTHONPATH")])])
    process = start(folder=tmp_path, env={"PYTHONPATH": paths}, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    last = err.decode().splitlines()
    assert len(last) == 1, err
    assert last[0].startswith("error: ")
    assert last[0].endswith("before what is installed: unset PYTHONPATH")
    assert Path(file).parts[0].removesuffix(".py") in last[0]


# Places that cannot be written: a file where a folder should be, since root may write anywhere.


def file_at(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("in the way")


def folder_at(path: Path) -> None:
    path.mkdir(parents=True)


BLOCKED: list[tuple[str, str, Callable[[Path], None], list[str]]] = [
    ("run folder is a file", "run", file_at, []),
    ("above the run folder is a file", "runs", file_at, ["hydra.run.dir=runs/a/b"]),
    ("config.yaml is a folder", "run/config.yaml", folder_at, []),
    ("metrics.csv is a folder", "run/metrics.csv", folder_at, []),
    ("last.ckpt is a folder", "run/last.ckpt", folder_at, []),
    ("views.png is a folder", "run/views.png", folder_at, []),
    ("summary.json is a folder", "run/summary.json", folder_at, []),
    ("encoder.safetensors is a folder", "run/encoder.safetensors", folder_at, []),
    ("run folder is a link to nothing", "run", lambda path: path.symlink_to("nowhere/at/all"), []),
    ("run folder is a link to itself", "run", lambda path: path.symlink_to("run"), []),
    ("name is too long", "other", folder_at, ["hydra.run.dir=" + "a" * 300]),
    ("name holds a null", "other", folder_at, ["hydra.run.dir='a\0b'"]),
]


@pytest.mark.parametrize(("case", "place", "block", "words"), table("places that cannot be written", BLOCKED, 3))
def test_places_that_cannot_be_written(
    tmp_path: Path, command: Callable[..., Any], case: str, place: str, block: Callable[[Path], None], words: list[str]
) -> None:
    block(tmp_path / place)
    ended = command(*SMALL, "knn=null", *(words or ["hydra.run.dir=run"]))
    if ended.code == 0:
        assert "link to nothing" in case
        return
    assert "debug=true" not in ended.error, ended.error
    names = (Path(place).name, "run folder", "aaa", "null")
    assert any(name in ended.error for name in names), ended.error


def writers() -> Iterator[tuple[str, str, list[str], str]]:
    scripts = {"knn": ["ckpt=RUN"], "linear_probe": ["ckpt=RUN", "strengths=[0.01]"], "plot_run": ["run=RUN"]}
    for name, words in scripts.items():
        for place in ("nowhere/at/all/out.json", "file/out.png", ".", "/proc/out.json", "/dev/full/out.json"):
            yield f"{name} to {place}", name, words, place


@pytest.mark.parametrize(("case", "name", "words", "place"), table("results that cannot be written", writers(), 4))
def test_results_that_cannot_be_written(
    finished: Path, tmp_path: Path, command: Callable[..., Any], case: str, name: str, words: list[str], place: str
) -> None:
    (tmp_path / "file").write_text("in the way")
    before = {path.name: path.read_bytes() for path in finished.iterdir() if path.is_file()}
    ended = command(*[word.replace("RUN", str(finished)) for word in words], f"out={place}", name=name)
    assert "debug=true" not in ended.error, ended.error
    assert "out" in ended.error
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert {path.name: path.read_bytes() for path in finished.iterdir() if path.is_file()} == before
