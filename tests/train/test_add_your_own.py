"""The page on an operation, a data set and an encoder of one's own is followed to the letter."""

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


@pytest.fixture
def followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The files of the page, where the page says. Other tests have packages of this name."""
    _forget("my_package")
    files = re.findall(r"^`([\w./]+)`\n\n```\w+\n(.*?)```", PAGE, flags=re.DOTALL | re.MULTILINE)
    assert len(files) == 5
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
