"""Parts of a package of one's own: refused before the first step, and allowed by name to every command on the run."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from twoview.cli.trust import is_trusted, trusting
from twoview.errors import UserError
from twoview.run.checkpoint import load_encoder, read_checkpoint

Command = Callable[..., Any]

PACKAGE = '''
import os
from torch import nn
from twoview.data.image.shapes import shapes
from twoview.model.simclr import SimCLR

class Net(nn.Module):
    """One convolution and the mean of its channels: h of `dim` dimensions."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.dim = dim
        self.layers = nn.Sequential(nn.Conv2d(3, dim, 3), nn.BatchNorm2d(dim), nn.ReLU(), nn.AdaptiveAvgPool2d(1))

    def forward(self, x):
        return self.layers(x).flatten(1)

    def create(self):
        raise AssertionError("a method was called")

class Mine(SimCLR):
    """A method of one's own."""

def pictures(split: str, n: int = 64):
    return shapes(split, n_train=n, n_test=n, size=16)

open(os.path.join(os.path.dirname(__file__), "imported"), "w").close()
'''
PARTS = {
    "encoder": "_target_: mypackage.Net\ndim: 8\n",
    "model": "defaults: [simclr]\n_target_: mypackage.Mine\n",
    "data": "_target_: mypackage.pictures\n_partial_: true\n",
}
RUN = ("model.projector.hidden_dim=8", "trainer=cpu", "batch_size=8", "epochs=1", "loader.max_batches=2", "knn=null")
RUN += ("quality=null", "hydra.run.dir=run", "log_every_steps=1")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module `mypackage` in the working directory, which leaves a file when it is imported, and configurations."""
    (tmp_path / "mypackage.py").write_text(PACKAGE)
    for group, text in PARTS.items():
        file = tmp_path / "configs" / group / "mine.yaml"
        file.parent.mkdir(parents=True)
        file.write_text(text)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("mypackage", None)


def words(tiny: list[str], *parts: str) -> list[str]:
    """A tiny run with these parts from the package."""
    set_here = {*parts, "knn", "model", "batch_size"}
    kept = [word for word in tiny if word.partition("=")[0].partition(".")[0] not in set_here]
    return [*kept, *RUN, *(f"{part}=mine" for part in parts)]


@pytest.mark.parametrize("part", PARTS)
def test_a_foreign_part_is_refused_before_the_first_step(
    package: Path, command: Command, tiny: list[str], part: str
) -> None:
    error = command(*words(tiny, part)).error
    assert f"{part}._target_=mypackage." in error
    assert "trust=[mypackage]" in error
    assert not (package / "imported").exists(), "it was imported"
    assert not (package / "run").exists()


def test_a_trusted_package_trains_resumes_and_is_judged(package: Path, command: Command, tiny: list[str]) -> None:
    trust = "trust=[mypackage]"
    ended = command(*words(tiny, *PARTS), trust)
    assert ended.code == 0, ended.err
    run = package / "run"
    assert read_checkpoint(run)["twoview"]["config"]["trust"] == ["mypackage"]  # recorded, and not believed:
    for name, more in {"knn": [], "probe": ["strengths=[0.01]"], "embed": [], "export": ["format=safetensors"]}.items():
        for file in (run, run / "encoder.safetensors"):
            error = command(f"ckpt={file}", *more, "out=x", name=name).error
            assert "refused" in error
            assert trust in error
            assert not (package / "x").exists()
    assert trust in command("resume=run", "epochs=2").error
    with pytest.raises(UserError, match=r"trust=\[mypackage\]"):
        load_encoder(run)

    ended = command("resume=run", "epochs=2", "allow_changes=true", trust)
    assert ended.code == 0, ended.err
    assert read_checkpoint(run)["global_step"] == 4
    assert command("ckpt=run", "k=5", trust, name="knn").code == 0
    assert command("ckpt=run", "strengths=[0.01]", "baseline=true", trust, name="probe").code == 0
    assert 0 <= json.loads((run / "linear_probe.json").read_text())["top1"] <= 1
    assert command("ckpt=run", "format=npz", trust, name="embed").code == 0
    assert np.load(run / "features.npz")["features"].shape == (128, 8)
    assert command("ckpt=run", "format=safetensors", trust, name="export").code == 0
    assert load_encoder(run, trust=["mypackage"])(torch.rand(2, 3, 16, 16)).shape == (2, 8)


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("mypackage.os.system", "no class or function of that package"),
        ("mypackage.Net.create", "no class or function of that package"),
        ("mypackage.nn.Identity", "no class or function of that package"),
        ("mypackage.nothing", "cannot be imported"),
        ("os.system", "no part of twoview"),
        ("torch.hub.load", "no part of twoview"),
    ],
)
def test_trust_is_in_what_the_package_defines(
    package: Path, command: Command, tiny: list[str], target: str, says: str
) -> None:
    (package / "configs" / "encoder" / "mine.yaml").write_text(f"_target_: {target}\n")
    error = command(*words(tiny, "encoder"), "trust=[mypackage]").error
    assert says in error, error


@pytest.mark.parametrize(
    "trust", ["[os]", "[torch]", "[builtins]", "[hydra]", "[a.b]", "[3]", "3", "['']", "[twoview]"]
)
def test_what_cannot_be_trusted(command: Command, tiny: list[str], trust: str) -> None:
    assert "trust=" in command(*tiny, f"trust={trust}").error


def test_trust_ends_with_the_command() -> None:
    with trusting("mypackage"), trusting(["other"]):
        assert is_trusted("mypackage.Net")
        assert is_trusted("other.Net")
        assert not is_trusted("others.Net")
    assert not is_trusted("mypackage.Net")
