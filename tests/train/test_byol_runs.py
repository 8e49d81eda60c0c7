"""BYOL as a command: a method without a chance level and without accuracy, from its first line to what judges it."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from twoview.run.checkpoint import load_encoder, load_projector, read_checkpoint
from twoview.train import pretrain

Compose = Callable[..., dict[str, Any]]
Command = Callable[..., Any]
BYOL = ("model=byol", "model.predictor.hidden_dim=16", "model.momentum=0.9")


@pytest.fixture(scope="module")
def byol_run(compose: Compose, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished BYOL run, for reading only."""
    folder = tmp_path_factory.mktemp("byol")
    pretrain.run(compose(*tiny, *BYOL), folder)
    return folder


def test_the_readings_are_what_the_method_tells(byol_run: Path) -> None:
    with (byol_run / "metrics.csv").open(newline="") as file:
        reader = csv.DictReader(file)
        rows = [row for row in reader if row["loss"]]
    told = ["step", "epoch", "loss", "spread", "lr", "images_per_second", "seconds", "waiting"]
    assert list(reader.fieldnames or ())[: len(told)] == told
    assert not {"chance_loss", "accuracy"} & set(reader.fieldnames or ())
    assert all(0 < float(row["loss"]) < 8 and 0 < float(row["spread"]) <= 1 for row in rows)
    scalars = EventAccumulator(str(byol_run)).Reload().Tags()["scalars"]
    assert "representation/z/spread" in scalars
    assert "loss/chance_loss" not in scalars


def test_the_summary_names_what_there_is(byol_run: Path) -> None:
    summary = json.loads((byol_run / "summary.json").read_text())
    assert summary["status"] == "finished"
    assert summary["chance_loss"] is None
    assert set(summary["numbers"]) == {"spread"}
    assert 0 <= summary["knn"]["final"] <= 1


def test_the_lines_of_a_run_speak_of_no_chance_level(tiny: list[str], command: Command) -> None:
    ended = command(*tiny, *BYOL, "epochs=1")
    assert ended.code == 0, ended.err
    assert "chance" not in ended.out
    (steps,) = [line for line in ended.out.splitlines() if "4 steps in 1 epochs of 4" in line]
    assert steps.endswith("4 steps in 1 epochs of 4")
    (epoch,) = [line for line in ended.out.splitlines() if "epoch 1/1" in line]
    assert "spread 0." in epoch


def test_student_and_teacher_are_judged_by_name(byol_run: Path, tmp_path: Path, command: Command) -> None:
    state = read_checkpoint(byol_run)["state_dict"]
    for name, prefix in (("student", "encoder."), ("teacher", "teacher.")):
        for key, value in load_encoder(byol_run, encoder_of=name).encoder.state_dict().items():  # type: ignore[arg-type]
            assert value.equal(state[prefix + key]), (name, key)
        assert command(f"ckpt={byol_run}", f"encoder_of={name}", f"out={tmp_path / name}", "k=5", name="knn").code == 0
    digests = {json.loads((tmp_path / name).read_text())["encoder_digest"] for name in ("student", "teacher")}
    assert len(digests) == 2


def test_z_is_what_the_projector_gives_not_the_predictor(byol_run: Path) -> None:
    projector, state = load_projector(byol_run), read_checkpoint(byol_run)["state_dict"]
    assert projector is not None
    assert all(value.equal(state[f"projector.{key}"]) for key, value in projector.state_dict().items())
    assert projector(torch.zeros(2, load_encoder(byol_run).dim)).shape == (2, 256)


def test_its_curves_are_drawn_and_its_card_is_made(byol_run: Path, tmp_path: Path, command: Command) -> None:
    assert command(f"run={byol_run}", f"out={tmp_path / 'curves.png'}", name="plot").code == 0
    assert (tmp_path / "curves.png").stat().st_size > 1000
    few = ("corruption_images=8", "quality_images=16", "invariance_images=8", "map_images=16", "label_seeds=1")
    words = (f"ckpt={byol_run}", f"out={tmp_path / 'card'}", "fractions=[]", "k=[5]", "strengths=[0.01]", *few)
    ended = command(*words, name="evaluate")
    assert ended.code == 0, ended.err
    card = json.loads((tmp_path / "card" / "card.json").read_text())
    assert set(card["quality"]["run"]) == {"h", "z"}
