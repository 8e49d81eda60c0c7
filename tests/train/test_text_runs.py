"""Runs on texts: what judges, describes, shows and exports takes texts as it takes images."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TEXTS, compose_config

from twoview.run.checkpoint import load_encoder, read_checkpoint
from twoview.selftest.resume import differing
from twoview.train import pretrain

MORE = ("model.projector.hidden_dim=16", "batch_size=16", "trainer=cpu", "data.words=64", "encoder.words=64")


@pytest.fixture(scope="module")
def run(sentences: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "text"
    words = [*TEXTS, *MORE, f"data.root={sentences}", "epochs=1", "knn.every_epochs=1", "knn.k=5"]
    pretrain.run(compose_config(*words), folder)
    return folder


def test_the_probe_tells_the_classes_apart(run: Path, command: Callable[..., Any], tmp_path: Path) -> None:
    ended = command(f"ckpt={run}", f"out={tmp_path / 'a.json'}", name="linear_probe")
    assert ended.code == 0, ended.err
    assert json.loads((tmp_path / "a.json").read_text())["top1"] > 0.7


def test_the_vocabulary_is_in_the_checkpoint_alone(run: Path) -> None:
    encoder = load_encoder(run / "last.ckpt")
    stored = encoder.preprocess.encode([["card", "lost", "elephant"]], 32)
    assert encoder.preprocess.read(stored) == ["card lost [?]"]
    with torch.no_grad():
        h = encoder(stored)
    assert h.shape == (1, 8)
    assert h.isfinite().all()


DO = {
    "embed": [],
    "torchscript": ["format=torchscript"],
    "pt2": ["format=pt2"],
    "knn": ["k=5"],
}


@pytest.mark.parametrize("name", DO)
def test_commands_take_texts(run: Path, command: Callable[..., Any], name: str, tmp_path: Path) -> None:
    script = "export" if name in ("torchscript", "pt2") else name
    ended = command(f"ckpt={run}", f"out={tmp_path / 'out'}", *DO[name], name=script)
    assert ended.code == 0, ended.err
    assert (tmp_path / "out").stat().st_size


def test_a_card_of_texts_is_made(run: Path, command: Callable[..., Any], tmp_path: Path, undrawn: None) -> None:
    ended = command(f"ckpt={run}", f"out={tmp_path / 'card'}", name="evaluate")
    assert ended.code == 0, ended.err
    assert (tmp_path / "card" / "card.html").stat().st_size


def test_a_preview_shows_words(sentences: Path, command: Callable[..., Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "a.png"
    ended = command(*TEXTS[:2], f"data.root={sentences}", "mode=ops", "images=3", f"out={out}", name="preview_augment")
    assert ended.code == 0, ended.err
    assert out.stat().st_size


def test_a_vocabulary_that_is_too_large_is_said(sentences: Path, tmp_path: Path) -> None:
    from twoview.errors import UserError

    words = [*TEXTS, *MORE, f"data.root={sentences}", "epochs=1", "encoder.words=10", "knn=null", "quality=null"]
    with pytest.raises(UserError, match=r"the encoder has 10 words.*set encoder.words="):
        pretrain.run(compose_config(*words), tmp_path / "run")


@pytest.mark.parametrize("encoder", ["bag", "textcnn"])
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(sentences: Path, tmp_path: Path, encoder: str) -> None:
    words = [*TEXTS, *MORE, f"data.root={sentences}", f"encoder={encoder}", "encoder.width=8", "epochs=2"]
    config = compose_config(*words, "knn=null", "quality=null")
    pretrain.run(config, tmp_path / "straight")
    (tmp_path / "stopped").mkdir()
    shutil.copy(tmp_path / "straight" / "last-1.ckpt", tmp_path / "stopped" / "last.ckpt")  # after the first epoch
    pretrain.run(config | {"resume": str(tmp_path / "stopped")}, tmp_path / "stopped")
    straight, stopped = (read_checkpoint(tmp_path / name / "last.ckpt") for name in ("straight", "stopped"))
    assert straight["global_step"] == stopped["global_step"] == 10
    for part in ("state_dict", "optimizer_states"):
        assert not list(differing(straight[part], stopped[part]))
