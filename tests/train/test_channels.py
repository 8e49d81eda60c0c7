"""Images of any number of channels, and of other sizes than in training, to the end of the chain."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

Command = Callable[..., Any]

SETS = """
import torch
from twoview.data.image.pixels import Pixels, draw
from twoview.data.set import SampleSet

def bands(split: str, channels: int = 1, size: int = 12):
    generator = torch.Generator().manual_seed(len(split))
    labels = torch.arange(40 if split == "train" else 20) % 2
    images = torch.randint(0, 100, (len(labels), channels, size, size), generator=generator)
    images = (images + 120 * labels[:, None, None, None]).byte()
    pixels = Pixels([0.4] * channels, [0.3] * channels)
    return SampleSet("bands", images, labels, ("dark", "bright"), pixels, draw=draw)
"""
RUN = ("trainer=cpu", "batch_size=8", "epochs=1", "encoder=small", "encoder.widths=[4,4,8,8]", "hydra.run.dir=run")
RUN += ("model.projector.hidden_dim=8", "log_every_steps=1", "knn.k=5", "trust=[satellite]", "data=satellite")


@pytest.fixture
def satellite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module of one's own with a data set, and its configuration."""
    (tmp_path / "satellite.py").write_text(SETS)
    (tmp_path / "configs" / "data").mkdir(parents=True)
    text = "_target_: satellite.bands\n_partial_: true\nchannels: 1\nsize: 12\n"
    (tmp_path / "configs" / "data" / "satellite.yaml").write_text(text)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield
    sys.modules.pop("satellite", None)


@pytest.mark.usefixtures("satellite", "undrawn")
@pytest.mark.parametrize(("channels", "policy"), [(1, "simclr_gray"), (4, "simclr_bands")])
def test_any_number_of_channels_trains_and_is_judged_and_exported(
    command: Command, tmp_path: Path, channels: int, policy: str
) -> None:
    words = [*RUN, f"data.channels={channels}", f"augment={policy}"]
    ended = command(*words, f"encoder.channels={channels}")
    assert ended.code == 0, ended.err
    judge = ("ckpt=run", "trust=[satellite]")
    for name, more in (
        ("knn", ["k=5"]),
        ("probe", ["strengths=[0.01]", "baseline=true"]),
        ("knn", ["k=5", "data=satellite", f"data.channels={channels}", "data.size=16", "force=true"]),
        ("embed", []),
        ("export", ["format=safetensors"]),
        ("export", ["format=torchscript"]),
        ("preview", None),
    ):
        if more is None:
            words = ["data=satellite", f"data.channels={channels}", "trust=[satellite]", f"augment={policy}"]
            words += ["mode=pairs"]
            ended = command(*words, name=name)
        else:
            ended = command(*judge, *more, name=name)
        assert ended.code == 0, (name, ended.err)
    torch.jit.load(tmp_path / "run" / "encoder.pt")(torch.rand(2, channels, 12, 12))


@pytest.mark.usefixtures("satellite")
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["augment=simclr_gray"], "views of bands have 1 channel, and the encoder is for 3: set encoder.channels=1"),
        (["data.channels=4", "augment=simclr_bands"], "4 channels, and the encoder is for 3: set encoder.channels=4"),
        (["data.channels=4", "encoder.channels=4"], "ColorJitter needs images of 1 or 3 channels, not 4; take it out"),
        (["data.channels=2", "encoder.channels=2", "augment=byol_cifar"], "needs images of 1 or 3 channels, not 2"),
    ],
)
def test_what_does_not_fit_other_channels_is_said_before_the_first_step(
    command: Command, words: list[str], message: str
) -> None:
    assert message in command(*RUN, *words).error
