"""The pages on an operation, a data set, an encoder, and a kind of data of one's own are followed to the letter."""

import json
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import ROOT, TINY, Ended

from twoview.run.checkpoint import load_encoder

PAGE = (ROOT / "docs" / "add_an_operation.md").read_text()
KIND = (ROOT / "docs" / "add_a_kind.md").read_text()


@pytest.fixture(params=[(PAGE, 5)])
def followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Path]:
    """The files of a page, where the page says. Other tests have packages of this name."""
    _forget("my_package")
    page, many = request.param
    files = re.findall(r"^`([\w./]+)`\n\n```\w+\n(.*?)```", page, flags=re.DOTALL | re.MULTILINE)
    assert len(files) == many
    for name, text in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "my_package" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    _forget("my_package")


def _forget(package: str) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        del sys.modules[name]


def test_the_three_parts_of_the_page_train_together(followed: Path, command: Callable[..., Ended]) -> None:
    pytest.importorskip("sklearn")
    (line,) = re.findall(r"```bash\npython train\.py (.*)\n```", PAGE)
    small = [word for word in TINY if not word.startswith(("data", "encoder"))]
    ended = command(*shlex.split(line), *small, "loader.max_batches=2", "hydra.run.dir=run")
    assert ended.code == 0, ended.err
    encoder = load_encoder(followed / "run", trust=["my_package"])
    assert encoder(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)).shape == (2, 128)


def test_the_operation_of_the_page_takes_one_channel_and_can_be_replayed(followed: Path) -> None:
    from my_package.channel_drop import ChannelDrop

    from twoview.rng import Draw

    images = torch.rand(300, 3, 4, 4) + 0.1
    draw = Draw(0, 0, torch.arange(300), 0, "drop")
    dropped = ChannelDrop()(images, draw)
    lost = (dropped == 0).all(dim=(2, 3))  # (B, C)
    assert torch.equal(lost.sum(dim=1), torch.ones(300, dtype=torch.long))
    assert lost.sum(dim=0).min() > 60  # of 100 expected: 5 standard deviations
    assert torch.equal(dropped[~lost], images[~lost])
    assert torch.equal(ChannelDrop()(images[7:9], Draw(0, 0, torch.arange(7, 9), 0, "drop")), dropped[7:9])


@pytest.mark.parametrize("followed", [(KIND, 6)], indirect=True)
def test_a_fifth_kind_of_data_trains_is_judged_and_refuses_operations_of_others(
    followed: Path, command: Callable[..., Ended]
) -> None:
    train, probe = re.findall(r"^python \S+ (.*)$", KIND, re.MULTILINE)
    words = [*shlex.split(train), "trainer=cpu", "epochs=20", "log_every_steps=3", "hydra.run.dir=run"]
    ended = command(*words, "knn.k=5", "model.projector.hidden_dim=32")
    assert ended.code == 0, ended.err
    ended = command(*shlex.split(probe.replace("<run>", "run")), "baseline=true", name="probe")
    assert ended.code == 0, ended.err
    found = json.loads((followed / "run" / "linear_probe.json").read_text())
    assert found["top1"] > 0.9  # 1/3 by chance
    encoder = load_encoder(followed / "run", trust=["my_package"])
    assert encoder.preprocess.describe() == {"_target_": "my_package.curve.Curves", "mean": 0.0, "deviation": 0.8}
    for name, more in {"embed": [], "export": ["format=pt2", "out=x.pt2"]}.items():
        ended = command("ckpt=run", "trust=[my_package]", *more, name=name)
        assert ended.code == 0, ended.err
    flip = "+augment.ops.flip._target_=twoview.augment.image.geometric.HorizontalFlip"
    refused = command(*words[:-1], flip, "hydra.run.dir=other").error
    assert "HorizontalFlip is an operation on data of the kind image, and these are of the kind curve" in refused


@pytest.mark.parametrize("followed", [(KIND, 6)], indirect=True)
def test_the_operation_of_the_fifth_kind_shifts_each_curve_by_itself(followed: Path) -> None:
    from my_package.shift import Shift

    from twoview.rng import Draw

    x = torch.arange(64.0).expand(200, 64)
    new = Shift()(x, Draw(0, 0, torch.arange(200), 0, "shift"))
    assert (new.diff(dim=1) % 64 == 1).all()
    assert new[:, 0].unique().numel() > 50
    assert torch.equal(Shift()(x[7:9], Draw(0, 0, torch.arange(7, 9), 0, "shift")), new[7:9])
