"""The contracts between data, views, methods and judges, held by parts that know nothing of images or of two views:
they train through the command, resume to the bit, and are judged.
"""

import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from twoview.cli.trust import trusting
from twoview.commands.verify import first_difference
from twoview.run.checkpoint import load_encoder, read_checkpoint
from twoview.watch import illnesses
from twoview.watch.meter import Meter

Command = Callable[..., Any]

TOYS = '''
import torch
from torch import nn
from twoview.augment.operation import BatchAugment
from twoview.data.demand import OnDemand, each, take
from twoview.data.preprocess import Preprocess
from twoview.data.set import SampleSet
from twoview.losses import negative_cosine
from twoview.model.base import Method, Outcome


class Standardised(Preprocess):
    """Hundredths as int16, alone or as the two halves of a dict, to numbers of mean 0 and deviation 1."""

    kind = "vector"

    def __init__(self, dim):
        super().__init__()
        self.dim = dim
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def prepare(self, samples):
        return each(lambda x: x.float() / 100 if x.dtype == torch.int16 else x, samples)

    def finish(self, x):
        x = x if isinstance(x, torch.Tensor) else torch.cat([x["left"], x["right"]], dim=1)
        return (x - self.mean) / self.std

    def describe(self):
        return super().describe() | {"dim": self.dim}


class Swap(BatchAugment):
    """A share `rate` of the numbers comes from another training sample."""

    kind = "vector"

    def __init__(self, rate=0.3, p=1.0):
        super().__init__(p)
        self.rate = rate

    def attach(self, train):
        self.table = train.preprocess.prepare(train.fetch(torch.arange(len(train))))
        self.n = len(train)

    def sample(self, draw, n, shape):
        if isinstance(shape, dict):
            (d,) = shape["left"]
        else:
            (d,) = shape
        row = (draw.uniform(1)[:, 0] * self.n).long()
        return {"row": row, "swapped": draw.of(draw.stream + "/which").uniform(d) < self.rate}

    def apply(self, x, params):
        other, swapped = take(self.table, params["row"]), params["swapped"]
        if isinstance(x, torch.Tensor):
            return torch.where(swapped, other, x)
        return {name: torch.where(swapped, other[name], values) for name, values in x.items()}


class Files(OnDemand):
    def __init__(self, rows):
        self.rows = rows

    @property
    def shape(self):
        return tuple(self.rows.shape[1:])

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        return self.rows[index]

    def stamp(self):
        return self.rows.tolist()


def vectors(split, form="tensor", n=96):
    """Four clusters of vectors (12,); a quarter of the training samples has no label."""
    g = torch.Generator().manual_seed(int(split == "test"))
    n = n if split == "train" else 40
    label = torch.arange(n) % 4
    centres = 300 * torch.eye(4).repeat_interleave(3, dim=1)
    rows = (centres[label] + 100 * torch.randn(n, 12, generator=g)).short()
    preprocess = Standardised(12)
    preprocess.mean += 0.75
    preprocess.std *= 1.5
    samples = {"tensor": rows, "dict": {"left": rows[:, :6], "right": rows[:, 6:]}, "demand": Files(rows)}[form]
    if split == "train":
        label = torch.where(torch.arange(n) % 16 < 4, -1, label)
    names = [f"{split}/{i:03}.vec" for i in range(n)]
    return SampleSet("vectors", samples, label, tuple("abcd"), preprocess, names)


class Net(nn.Module):
    def __init__(self, dim=8):
        super().__init__()
        self.dim = dim
        self.layers = nn.Sequential(nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, dim))

    def forward(self, x):
        return self.layers(x)


class Trio(Method):
    """Three views and no head: two large ones agree with a small one. No chance level, nothing for a queue."""

    views_needed = (3, 3)

    def step(self, batch):
        h1, h2, h3 = (self.gather(self.through(self.encoder, view)) for view in batch.views)
        sides = [view.shape[-1] for view in batch.views]
        return Outcome(negative_cosine(h1, h3) + negative_cosine(h2, h3), {"smallest": h1.new_tensor(min(sides))})
'''
TRUST = "trust=[toys]"
OF_A_RUN = ("trainer=cpu", "batch_size=32", "epochs=2", "log_every_steps=1", "knn.every_epochs=1", "knn.k=5")
VECTORS = (
    *(TRUST, "data=shapes", "data._target_=toys.vectors", "~data.n_train", "~data.n_test", "~data.size", "~data.seed"),
    *("encoder=small", "encoder._target_=toys.Net", "~encoder.widths", "~encoder.channels", "~encoder.weights"),
    "+encoder.dim=8",
    *("augment=none", "+augment.ops.swap={_target_: toys.Swap, rate: 0.25}", "model.projector.hidden_dim=8", *OF_A_RUN),
)
PICTURES = (
    "data=shapes",
    "data.n_train=96",
    "data.n_test=40",
    "data.size=16",
    "encoder=small",
    "encoder.widths=[4,4,8,8]",
)

FEW = ("corruption_images=8", "quality_images=16", "invariance_images=8", "map_images=16", "label_seeds=1")
FEW += ("fractions=[]", "k=[5]")  # of a card


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The module `toys` in the working directory of commands."""
    (tmp_path / "toys.py").write_text(TOYS)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("toys", None)


def interrupted_and_resumed(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: tuple[str, ...], after: int = 4
) -> Path:
    """A run that was stopped after a step and went on; it is held to be the straight one to the bit."""
    ended = command(*words, "hydra.run.dir=straight")
    assert ended.code == 0, ended.err
    once = Meter.on_train_batch_end

    def stop(self: Meter, trainer: Any, *args: Any, **kwargs: Any) -> None:
        once(self, trainer, *args, **kwargs)
        if trainer.global_step == after:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Meter, "on_train_batch_end", stop)
        assert command(*words, "hydra.run.dir=resumed").code == 130
    assert read_checkpoint(tmp_path / "resumed")["global_step"] == after
    ended = command("resume=resumed", *(word for word in words if word.startswith("trust=")))
    assert ended.code == 0, ended.err
    assert read_checkpoint(tmp_path / "resumed")["global_step"] == 6
    assert first_difference(tmp_path / "straight", tmp_path / "resumed") is None
    return tmp_path / "resumed"


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize("form", ["tensor", "dict", "demand"])
def test_vectors_train_resume_and_are_judged(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, form: str
) -> None:
    run = interrupted_and_resumed(
        command, monkeypatch, tmp_path, (*VECTORS, f"+data.form={form}", "loader.num_workers=0")
    )
    assert not (run / "views.png").exists()  # there is nothing to be seen
    summary = json.loads((run / "summary.json").read_text())
    assert summary["knn"]["bank"] == 72  # those with a label
    assert summary["knn"]["final"] > 0.8
    toys = sys.modules["toys"]
    train, test = toys.vectors("train", form), toys.vectors("test", form)

    # What is stored builds preprocessing and encoder again, from either file.
    with trusting(["toys"]):
        frozen = load_encoder(run)
    assert isinstance(frozen.preprocess, toys.Standardised)
    assert torch.equal(frozen.preprocess.std, torch.full((12,), 1.5))
    assert frozen.shape == train.shape
    h = frozen(test.fetch(torch.arange(40)))
    by_hand = train.preprocess(test.fetch(torch.arange(40)))
    torch.testing.assert_close(h, frozen.encoder(by_hand))
    assert torch.equal(load_encoder(run / "encoder.safetensors", trust=["toys"])(test.fetch(torch.arange(40))), h)

    # Probed, judged by neighbours, embedded with the names of the files.
    words = (f"ckpt={run}", TRUST)
    for name, more in {"knn": ["k=5"], "probe": ["strengths=[0.01]", "baseline=true"]}.items():
        ended = command(*words, *more, name=name)
        assert ended.code == 0, ended.err
    knn, probe = (json.loads((run / f"{name}.json").read_text()) for name in ("knn", "linear_probe"))
    assert min(knn["top1"], probe["top1"]) > 0.8
    assert knn["train_size"] == probe["train_size"] == 72
    assert command(*words, "format=npz", name="embed").code == 0
    embedded = np.load(run / "features.npz")
    torch.testing.assert_close(torch.from_numpy(embedded["features"][96:]), h, rtol=1e-4, atol=1e-5)
    assert embedded["name"][96:].tolist() == list(test.names)
    assert set(embedded["label"].tolist()) == {-1, 0, 1, 2, 3}

    # Fine-tuned without the crops of images, and exported with what the file can hold.
    ended = command(*words, "epochs=2", "lr_per_256=[0.05]", name="finetune")
    assert ended.code == 0, ended.err
    assert command(*words, "format=safetensors", "out=x.safetensors", name="export").code == 0
    exported = command(*words, "format=pt2", "out=x.pt2", name="export")
    if form == "dict":
        assert "use safetensors" in exported.error
    else:
        assert exported.code == 0, exported.err
        assert torch.equal(torch.export.load(tmp_path / "x.pt2").module()(test.fetch(torch.arange(5))), h[:5])


@pytest.mark.usefixtures("toys")
def test_what_needs_images_is_absent_without_an_error(command: Command, tmp_path: Path) -> None:
    assert command(*VECTORS, "epochs=1", "hydra.run.dir=run").code == 0
    ended = command("ckpt=run", TRUST, *FEW, name="evaluate")
    assert ended.code == 0, ended.err
    card = json.loads((tmp_path / "run" / "card" / "card.json").read_text())
    assert {"robustness", "invariance", "neighbours"} <= card["missing"].keys()
    assert {"linear", "knn", "quality"} <= card.keys()
    assert 0 < card["linear"]["run"]["top1"] <= 1
    ended = command(
        *(word for word in VECTORS if word.startswith(("trust", "data", "~data", "augment", "+aug"))),
        "mode=ops",
        name="preview",
    )
    assert "cannot be drawn" in ended.error
    assert "protocol=convex" in command("ckpt=run", TRUST, "protocol=simclr", "epochs=1", name="probe").error


@pytest.mark.usefixtures("toys")
def test_operations_and_data_of_different_kinds_are_refused_before_the_first_step(
    command: Command, tmp_path: Path
) -> None:
    flip = "+augment.ops.flip={_target_: twoview.augment.image.geometric.HorizontalFlip}"
    error = command(*VECTORS, flip, "hydra.run.dir=run").error
    assert "augment.ops.flip: HorizontalFlip is an operation on data of the kind image" in error
    swap = "+augment.ops.swap={_target_: toys.Swap}"
    error = command(TRUST, *PICTURES, *OF_A_RUN, "augment=none", swap, "hydra.run.dir=run").error
    assert "Swap is an operation on data of the kind vector, and these are of the kind image" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("toys")
def test_three_views_of_two_sizes_train_resume_and_are_judged(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    views = "augment.views=[{count: 2}, {count: 1, ops: {crop: {size: 8, scale: [0.1, 0.4]}, gray: null}}]"
    (tmp_path / "configs" / "model").mkdir(parents=True)
    (tmp_path / "configs" / "model" / "trio.yaml").write_text("_target_: toys.Trio\n")
    words = (TRUST, *PICTURES, *OF_A_RUN, "model=trio")
    run = interrupted_and_resumed(command, monkeypatch, tmp_path, (*words, views))
    assert (run / "views.png").exists()
    header, *rows = (run / "metrics.csv").read_text().splitlines()
    assert "smallest" in header
    assert rows
    for name, more in {"knn": ["k=5"], "probe": ["strengths=[0.01]"], "embed": [], "evaluate": [*FEW]}.items():
        ended = command(f"ckpt={run}", TRUST, *more, name=name)
        assert ended.code == 0, ended.err
    card = json.loads((run / "card" / "card.json").read_text())
    assert set(card["quality"]["run"]) == {"h"}  # there is no head, so there is no z
    assert "has no head behind h" in command(f"ckpt={run}", TRUST, "features=z", name="embed").error
    monkeypatch.setattr(illnesses, "FEWEST_STEPS", 6)
    assert "verdict: healthy" in command(f"run={run}", name="doctor").out  # by the spread of h alone
    shutil.rmtree(run)
    assert "Trio takes 3 views of a sample, not 2 (augment.views)" in command(*words, "hydra.run.dir=two").error


def test_byol_trains_resumes_and_is_judged(command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    words = (*PICTURES, *OF_A_RUN, "model=byol", "model.projector.hidden_dim=8", "model.predictor.hidden_dim=8")
    run = interrupted_and_resumed(command, monkeypatch, tmp_path, words)
    state = read_checkpoint(run)["state_dict"]
    assert not state["teacher.stage1.0.0.weight"].equal(state["encoder.stage1.0.0.weight"])
    for name, more in {"knn": ["k=5"], "probe": ["strengths=[0.01]"], "embed": ["features=z"]}.items():
        for which in ("student", "teacher")[: 1 + (name != "embed")]:
            ended = command(f"ckpt={run}", f"encoder_of={which}", *more, name=name)
            assert ended.code == 0, ended.err
    monkeypatch.setattr(illnesses, "FEWEST_STEPS", 6)
    assert "verdict: healthy" in command(f"run={run}", name="doctor").out
