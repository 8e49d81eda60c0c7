"""What goes wrong within a run: numbers that are none, workers that die, clocks that stand or run backwards."""

import itertools
import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from faults.battery import table
from twoview.data.image.decode import Encoded
from twoview.data.image.pixels import Pixels
from twoview.data.set import SampleSet
from twoview.encoder.frozen import Frozen
from twoview.evaluate.features import extract
from twoview.run.checkpoint import _checksum, read_checkpoint
from twoview.watch.meter import Meter

SMALL = ("data=shapes", "data.n_train=64", "data.n_test=16", "data.size=8", "encoder=small", "encoder.widths=[4,4,4,4]")
SMALL += ("model.projector.hidden_dim=8", "batch_size=8", "epochs=3", "loader.max_batches=4", "trainer=cpu")
SMALL += ("log_every_steps=3", "trainer.precision=32-true", "hydra.run.dir=run", "knn.every_epochs=1")
NAN, INF = float("nan"), float("inf")


def weights(value: float) -> Callable[[Any, Any], None]:
    def plant(trainer: Any, model: Any) -> None:
        next(model.encoder.parameters()).data[0] = value

    return plant


def head(value: float) -> Callable[[Any, Any], None]:
    return lambda trainer, model: next(model.projector.parameters()).data.fill_(value)


def statistics(value: float) -> Callable[[Any, Any], None]:
    def plant(trainer: Any, model: Any) -> None:
        for name, buffer in model.encoder.named_buffers():
            if name.endswith("running_var"):
                buffer.fill_(value)

    return plant


def gradients(value: float) -> Callable[[Any, Any], None]:
    def plant(trainer: Any, model: Any) -> None:
        for parameter in model.encoder.parameters():
            parameter.register_hook(lambda gradient: gradient * value)

    return plant


def moments(value: float) -> Callable[[Any, Any], None]:
    def plant(trainer: Any, model: Any) -> None:
        for state in trainer.optimizers[0].state.values():
            state["momentum_buffer"].fill_(value)

    return plant


def views(value: float) -> Callable[[Any, Any], None]:
    def plant(trainer: Any, model: Any) -> None:
        transform = trainer.datamodule.views
        transform.preprocess.mean.fill_(value)

    return plant


def queue(value: float) -> Callable[[Any, Any], None]:
    return lambda trainer, model: model.queue.rows.fill_(value)


MOCO = ("model=moco", "model.queue_size=16", "model.split_batch_norm=2")
# what is planted, where, the words beside, and whether the run has to end
PLANTED: list[tuple[str, Callable[[float], Any], tuple[str, ...], tuple[float, ...]]] = [
    ("weights", weights, (), (NAN, INF, -INF)),
    ("weights of the head", head, (), (NAN, INF, -INF)),
    ("weights of MoCo", weights, MOCO, (NAN, INF)),
    ("batch statistics", statistics, (), (NAN,)),
    ("gradients", gradients, (), (NAN, INF, 1e38)),
    ("momentum", moments, (), (NAN, INF)),
    ("views", views, (), (NAN, INF, -INF)),
    ("queue", queue, MOCO, (NAN, INF)),
]


@pytest.mark.parametrize(
    ("case", "plant", "words", "step"),
    table(
        "numbers that are none",
        [
            (f"{name} {value} after step {step}", plant(value), words, step)
            for name, plant, words, values in PLANTED
            for value in values
            for step in (5, 6, 8)  # within an epoch, at a reading, at the end of one
        ],
        6,
    ),
)
def test_numbers_that_are_none_end_a_run_and_spare_the_checkpoint(
    tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch,
    case: str, plant: Callable[[Any, Any], None], words: tuple[str, ...], step: int,
) -> None:  # fmt: skip
    original = Meter.on_train_batch_end

    def hook(self: Meter, trainer: Any, model: Any, *args: Any) -> None:
        if trainer.global_step == step:
            plant(trainer, model)
        original(self, trainer, model, *args)

    monkeypatch.setattr(Meter, "on_train_batch_end", hook)
    message = command(*SMALL, *words).error
    assert "not finite" in message or "NaN or infinite" in message, message
    assert "debug=true" not in message
    kept = read_checkpoint(tmp_path / "run")
    assert kept["global_step"] in (4, 8)
    assert all(value.isfinite().all() for value in kept["state_dict"].values() if value.is_floating_point())
    assert not (tmp_path / "run" / "encoder.safetensors").exists()


# Encoders that say nothing, or nothing sensible.


def first(weights: dict[str, Tensor]) -> Tensor:
    return next(value for value in weights.values() if value.is_floating_point())[:1]


HARMS: list[tuple[str, Callable[[dict[str, Tensor]], Any], bool]] = [
    ("NaN in a weight", lambda w: first(w).fill_(NAN), False),
    ("infinite weight", lambda w: first(w).fill_(INF), False),
    ("NaN statistics", lambda w: [v.fill_(NAN) for k, v in w.items() if k.endswith("running_var")], False),
    ("negative variance", lambda w: [v.fill_(-1) for k, v in w.items() if k.endswith("running_var")], False),
    ("zero weights", lambda w: [v.zero_() for k, v in w.items() if k.endswith("weight")], True),
    ("all zero", lambda w: [v.zero_() for v in w.values()], True),
    ("huge scale", lambda w: [v.mul_(1e30) for k, v in w.items() if k.endswith("1.weight")], None),
    ("tiny scale", lambda w: [v.mul_(1e-30) for k, v in w.items() if k.endswith("1.weight")], True),
]  # fmt: skip


@pytest.mark.parametrize(
    ("case", "harm", "scores", "form", "name"),
    table(
        "encoders without sense",
        [
            (f"{case}, {form}, {name}", harm, scores, form, name)
            for (case, harm, scores), form, name in itertools.product(
                HARMS, ("last.ckpt", "encoder.safetensors"), ("knn", "linear_probe")
            )
        ],
        6,
    ),
)
def test_encoders_without_sense_are_scored_or_refused(
    finished: Path, tmp_path: Path, command: Callable[..., Any],
    case: str, harm: Callable[..., Any], scores: bool | None, form: str, name: str,
) -> None:  # fmt: skip
    path = tmp_path / form
    if form == "last.ckpt":
        checkpoint = read_checkpoint(finished)
        encoder = {key: value for key, value in checkpoint["state_dict"].items() if key.startswith("encoder.")}
        harm(encoder)
        torch.save(checkpoint, path)
    else:
        from safetensors import safe_open

        with safe_open(finished / form, "pt") as file:
            text = file.metadata()["twoview"]
        encoder = load_file(finished / form)
        harm(encoder)  # before it was written: no checksum tells
        save_file(encoder, path, metadata={"twoview": text, "sha256": _checksum(encoder, text)})
    words = ["strengths=[0.01,1]"] if name == "linear_probe" else []
    ended = command(f"ckpt={form}", *words, name=name)
    if scores is not None:
        assert ended.code == (0 if scores else 1), ended.err
    if ended.code == 0:
        assert 0 <= json.loads((tmp_path / f"{name}.json").read_text())["top1"] <= 1
    else:
        assert "NaN or infinite features" in ended.error
        assert not (tmp_path / f"{name}.json").exists()


# Workers that die.


def in_worker(act: Callable[[], Any], after: int = 3) -> Callable[..., Any]:
    original, calls = Encoded.__getitem__, itertools.count()

    def get(self: Encoded, index: int) -> Tensor:
        if torch.utils.data.get_worker_info() is not None and next(calls) >= after:
            act()
        return original(self, index)

    return get


def out_of_memory() -> None:
    raise MemoryError


ENDS: list[tuple[str, Callable[[], Any], str]] = [
    ("killed", lambda: os.kill(os.getpid(), signal.SIGKILL), "loader.num_workers"),
    ("terminated", lambda: os.kill(os.getpid(), signal.SIGTERM), "loader.num_workers"),
    ("exits", lambda: os._exit(0), "loader.num_workers"),
    ("exits with an error", lambda: os._exit(3), "loader.num_workers"),
    ("segmentation fault", lambda: os.kill(os.getpid(), signal.SIGSEGV), "loader.num_workers"),
    ("bus error", lambda: os.kill(os.getpid(), signal.SIGBUS), "loader.num_workers"),
    ("out of memory", out_of_memory, "memory"),
]


@pytest.mark.parametrize(("case", "act", "says"), table("workers that die", ENDS, 2))
def test_workers_that_die_are_missed_at_once(
    tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch,
    case: str, act: Callable[[], Any], says: str,
) -> None:  # fmt: skip
    from PIL import Image

    for i in range(16):
        Image.new("RGB", (8, 8), (i, 2 * i, 3 * i)).save(tmp_path / f"{i:02}.png")
    monkeypatch.setattr(Encoded, "__getitem__", in_worker(act))
    words = [word for word in SMALL if not word.startswith(("data", "knn"))]
    began = time.monotonic()
    data = ["data=image_folder", f"data.root={tmp_path}", "data.in_memory=false", "loader.num_workers=2", "knn=null"]
    message = command(*words, *data).error
    assert says in message, message
    assert "debug=true" not in message
    assert time.monotonic() - began < 200


# Clocks.

CLOCKS: list[tuple[str, Callable[[int], float]]] = [
    ("backwards", lambda n: 1e9 - n),
    ("an hour back once", lambda n: 1e9 + n - 3600 * (n > 40)),
    ("to 1970", lambda n: max(0.0, 100.0 - n)),
    ("stands", lambda n: 1e9),
    ("leaps", lambda n: 1e9 + n * 1e6),
]


@pytest.mark.parametrize(
    ("case", "clock", "which"),
    table(
        "clocks",
        [
            (f"{name}, {which}", clock, which)
            for name, clock in CLOCKS
            for which in ("time", "monotonic")
            if which == "time" or name in ("stands", "leaps")  # a monotonic clock never runs backwards
        ],
        3,
    ),
)
def test_a_clock_decides_nothing(
    finished: Path, tiny: list[str], tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch,
    case: str, clock: Callable[[int], float], which: str,
) -> None:  # fmt: skip
    ticks = itertools.count()
    monkeypatch.setattr(time, which, lambda: clock(next(ticks)))
    ended = command(*tiny, "hydra.run.dir=run")
    assert ended.code == 0, ended.err
    ours, theirs = (load_file(folder / "encoder.safetensors") for folder in (tmp_path / "run", finished))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    monkeypatch.undo()


# Images and features without any variance.


@pytest.mark.parametrize(
    ("case", "level"), table("images of one colour", [("black", 0), ("gray", 127), ("white", 255)], 1)
)
def test_images_of_one_colour_train_and_are_scored(
    tmp_path: Path, command: Callable[..., Any], case: str, level: int
) -> None:
    from PIL import Image

    for split, name, i in itertools.product(("train", "test"), "ab", range(8)):
        path = tmp_path / "photos" / split / name / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (level,) * 3).save(path)
    words = [word for word in SMALL if not word.startswith("data")]
    ended = command("data=image_folder", "data.root=photos", *words)
    assert ended.code == 0, ended.err
    assert command("ckpt=run", name="knn").code == 0
    assert command("ckpt=run", "strengths=[0.01]", name="linear_probe").code == 0


def test_features_of_floats_that_are_none_name_the_image() -> None:
    """Uint8 images hold no NaN; an encoder that divides by their deviation can make one."""

    class Divides(torch.nn.Module):
        dim = 1

        def forward(self, x: Tensor) -> Tensor:
            return x.mean(dim=(2, 3))[:, :1] / x.flatten(1).std(dim=1, keepdim=True)

    images = torch.randint(0, 256, (5, 3, 4, 4), dtype=torch.uint8)
    images[3] = 7
    images_set = SampleSet("gray", images, None, (), Pixels((0.5,) * 3, (0.2,) * 3))
    with pytest.raises(Exception, match="row 3"):
        extract(Frozen(Divides(), Pixels([0.0] * 3, [1.0] * 3)), images_set)


@pytest.mark.parametrize("step", [1, 5, 11])
def test_a_run_that_dies_is_gone_on_with(
    tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    """An error that nobody foresaw, in the middle of a step: what was saved is there, and a resumption ends well."""
    original = Meter.on_train_batch_end

    def hook(self: Meter, trainer: Any, *args: Any) -> None:
        original(self, trainer, *args)
        if trainer.global_step == step:
            raise ZeroDivisionError("unforeseen")

    monkeypatch.setattr(Meter, "on_train_batch_end", hook)
    message = command(*SMALL).error
    assert "unforeseen" in message
    assert "debug=true shows where" in message
    monkeypatch.setattr(Meter, "on_train_batch_end", original)
    if step < 4:
        assert not (tmp_path / "run" / "last.ckpt").exists()
        shutil.rmtree(tmp_path / "run")
        assert command(*SMALL).code == 0
    else:
        assert command("resume=run").code == 0
    assert read_checkpoint(tmp_path / "run")["global_step"] == 12
