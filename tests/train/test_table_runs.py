"""Runs on tables: what judges, describes and exports takes rows as it takes images, or says that it cannot."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ROWS, compose_config

from twoview.run.checkpoint import load_encoder, read_checkpoint
from twoview.selftest.resume import differing
from twoview.train import pretrain


@pytest.fixture(scope="module")
def run(rows: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "table"
    words = [*ROWS, f"data.root={rows}", "augment=table", "model.projector.hidden_dim=16", "batch_size=16", "epochs=1"]
    pretrain.run(compose_config(*words, "trainer=cpu", "knn.every_epochs=1", "knn.k=5"), folder)
    return folder


def test_the_probe_tells_the_classes_apart(run: Path, command: Callable[..., Any], tmp_path: Path) -> None:
    ended = command(f"ckpt={run}", f"out={tmp_path / 'a.json'}", name="linear_probe")
    assert ended.code == 0, ended.err
    assert json.loads((tmp_path / "a.json").read_text())["top1"] > 0.7


def test_the_preprocessing_is_in_the_checkpoint_alone(run: Path) -> None:
    encoder = load_encoder(run / "last.ckpt")
    names = [column["name"] for column in encoder.preprocess.columns]
    assert names == ["size", "age", "town"]
    with torch.no_grad():
        h = encoder(torch.tensor([[0.0, torch.nan, 1.0], [3.0, 1.0, 0.0]]))
    assert h.shape == (2, 8)
    assert h.isfinite().all()


DO = {"embed": [], "export": ["format=torchscript"], "knn": ["k=5"]}


@pytest.mark.parametrize("name", DO)
def test_commands_take_rows(run: Path, command: Callable[..., Any], name: str, tmp_path: Path) -> None:
    ended = command(f"ckpt={run}", f"out={tmp_path / 'out'}", *DO[name], name=name)
    assert ended.code == 0, ended.err
    assert (tmp_path / "out").stat().st_size


def test_a_card_of_a_table_is_made(run: Path, command: Callable[..., Any], tmp_path: Path, undrawn: None) -> None:
    ended = command(f"ckpt={run}", f"out={tmp_path / 'card'}", name="evaluate")
    assert ended.code == 0, ended.err
    assert (tmp_path / "card" / "card.html").stat().st_size


def test_rows_that_cannot_be_drawn_are_explored_by_their_names(
    run: Path, command: Callable[..., Any], tmp_path: Path
) -> None:
    ended = command(f"ckpt={run}", f"out={tmp_path / 'found'}", "projector=9", name="explore")
    assert ended.code == 0, ended.err
    page = (tmp_path / "found" / "explore.html").read_text()
    first = (tmp_path / "found" / "images.csv").read_text().splitlines()[1].partition(",train,")[0]
    assert first.strip('"') in page
    assert page.count("<img") == 1  # the map, of dots
    (tmp_path / "a.png").write_bytes(b"")
    assert "not trained on RGB images" in command(f"ckpt={run}", "query=a.png", name="explore").error


@pytest.mark.parametrize("mode", ["pairs", "ops"])
def test_a_preview_says_that_it_does_not_apply(rows: Path, command: Callable[..., Any], mode: str) -> None:
    ended = command("data=table", f"data.root={rows}", "augment=table", f"mode={mode}", name="preview_augment")
    assert "cannot be drawn, so there is no preview of them" in ended.error


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(rows: Path, tmp_path: Path) -> None:
    words = [*ROWS, f"data.root={rows}", "augment=table", "model.projector.hidden_dim=16", "batch_size=16", "epochs=2"]
    config = compose_config(*words, "trainer=cpu", "knn=null", "quality=null")
    pretrain.run(config, tmp_path / "straight")
    (tmp_path / "stopped").mkdir()
    shutil.copy(tmp_path / "straight" / "last-1.ckpt", tmp_path / "stopped" / "last.ckpt")  # after the first epoch
    pretrain.run(config | {"resume": str(tmp_path / "stopped")}, tmp_path / "stopped")
    straight, stopped = (read_checkpoint(tmp_path / name / "last.ckpt") for name in ("straight", "stopped"))
    assert straight["global_step"] == stopped["global_step"] == 10
    for part in ("state_dict", "optimizer_states"):
        assert not list(differing(straight[part], stopped[part]))
