"""Signals, in real processes: a second one ends a process wherever it is; loaders leave them to their run."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
LONG = """
import hashlib, signal, sys
from twoview.run.signals import LastResort
resort = LastResort()
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
    signal.signal(number, lambda *_: None)
print("inside", flush=True)
hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
"""


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGUSR1, 138)]
)
def test_a_second_signal_ends_a_process_inside_of_c(number: signal.Signals, code: int) -> None:
    process = subprocess.Popen([sys.executable, "-c", LONG], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(number)
    time.sleep(0.2)
    if number != signal.SIGINT:
        process.send_signal(number)  # an echo, as to the process and its group
    time.sleep(1.4)
    assert process.poll() is None
    process.send_signal(number)
    assert process.wait(timeout=10) == code


def test_another_signal_is_no_second_one() -> None:
    process = subprocess.Popen([sys.executable, "-c", LONG], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    time.sleep(1.5)
    alive = process.poll() is None
    process.kill()
    process.wait()
    assert alive


def test_signals_are_heard_until_it_is_stopped_and_then_by_who_heard_them_before() -> None:
    code = """
import os, signal, socket, time
from twoview.run.signals import LastResort
ear, mouth = socket.socketpair()
mouth.setblocking(False)
signal.set_wakeup_fd(mouth.fileno())
signal.signal(signal.SIGTERM, lambda *_: None)
resort = LastResort()
resort.stop()
os.kill(os.getpid(), signal.SIGTERM)
assert ear.recv(1) == bytes([signal.SIGTERM])
time.sleep(1.2)
os.kill(os.getpid(), signal.SIGTERM)
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_a_signal_to_the_whole_group_stops_the_run_and_not_its_loaders(tmp_path: Path) -> None:
    """As ctrl-C at a terminal: the loaders' batches are needed to the end of the step."""
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(32):
        pixels = generator.integers(0, 255, (16 + number % 3, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / "ab"[number % 2] / f"{number}.png")
    words = ["data=image_folder", "data.root=photos", "data.size=16", "data.in_memory=false", "encoder=small"]
    words += ["encoder.widths=[4,4,4,4]", "model.projector.hidden_dim=8", "batch_size=8", "epochs=500", "trainer=cpu"]
    words += ["loader.num_workers=2", "knn=null", "quality=null", "log_every_steps=1", "hydra.run.dir=run"]
    process = subprocess.Popen(
        [sys.executable, ROOT / "train.py", *words],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    said = []
    while not (said and said[-1].startswith("epoch 1/")):
        said.append(process.stdout.readline())
        assert said[-1], process.communicate()[1]
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=120)
    text = "".join(said) + out
    assert process.returncode == 130, text + err
    assert text.count("stopping after this step") == 1
    assert "Traceback" not in text + err
    assert (tmp_path / "run" / "last.ckpt").exists()
