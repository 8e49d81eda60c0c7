"""A start or a resumption that is refused leaves the folder of the run as it was, to the byte."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Command = Callable[..., Any]
WORDS = ("data=shapes", "data.n_train=64", "data.n_test=16", "data.size=8", "encoder=small", "encoder.widths=[4,4,4,4]")
WORDS += ("model.projector.hidden_dim=8", "trainer=smoke", "batch_size=8", "epochs=2", "log_every_steps=1")
WORDS += ("quality=null", "optimizer=adamw", "loader.num_workers=0", "loader.max_batches=null")
LONGER = ("resume=run", "epochs=3", "allow_changes=true")


def tree(folder: Path) -> dict[str, str]:
    """Every file below with its digest, every folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from conftest import compose_config

    from twoview.train import pretrain

    folder = tmp_path_factory.mktemp("refused") / "run"
    pretrain.run(compose_config(*WORDS), folder)
    return folder


AUTO = (*WORDS, "resume=auto", "hydra.run.dir=run")
REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "a changed recipe": (("resume=run", "epochs=4"), "epochs=4 instead of 2"),
    "another rate": (("resume=run", "optimizer.lr_per_256=0.1"), "optimizer.lr_per_256=0.1 instead of"),
    "a wrong value": ((*LONGER, "optimizer.lr_per_256=-1"), "optimizer.lr_per_256 must be positive"),
    "a key that there is not": ((*LONGER, "modle.temperature=1"), "modle"),
    "another number of steps": ((*LONGER, "batch_size=16", "loader.batch_size=16"), "steps an epoch"),
    "other data": ((*AUTO, "data.n_train=128"), "the training samples differ"),
    "other weights to start from": ((*AUTO, "encoder.weights=run"), "encoder.weights="),
    "another encoder": ((*AUTO, "encoder.widths=[4,4,8,8]", "allow_changes=true"), "do not fit the model"),
    "another optimizer": (
        (*AUTO, "optimizer=lars", "optimizer.warmup_epochs=0", "allow_changes=true"),
        "another optimizer can only begin",
    ),
    "a batch that is too large": ((*WORDS, "hydra.run.dir=run", "batch_size=512"), "batch_size=512 is larger"),
    "a clip of nothing": ((*WORDS, "hydra.run.dir=run", "trainer.gradient_clip_val=-1"), "gradient_clip_val"),
    "a last batch of one": (
        (*WORDS, "hydra.run.dir=run", "loader.drop_last=false", "batch_size=63"),
        "last batch of 1",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused_leaves_the_folder_as_it_was(
    trained: Path, tmp_path: Path, command: Command, case: str
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    before = tree(tmp_path)
    words, says = REFUSED[case]
    assert says in command(*words).error
    assert tree(tmp_path) == before


def _without(key: str) -> Callable[[dict[str, Any]], Any]:
    return lambda checkpoint: checkpoint.pop(key)


def _shrink(checkpoint: dict[str, Any]) -> None:
    checkpoint["optimizer_states"][0]["state"][0]["exp_avg"] = torch.zeros(3)


DAMAGED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    **{
        key: (_without(key), f"({key}) is missing")
        for key in ("random", "optimizer_states", "lr_schedulers", "callbacks", "loops", "epoch")
    },
    "step": (
        lambda checkpoint: checkpoint.update(global_step="x"),
        "its number of steps (global_step) is missing, or is none",
    ),
    "generators": (lambda checkpoint: checkpoint.update(random=[{"cpu": 1}]), "generators of random numbers"),
    "groups": (lambda checkpoint: checkpoint["optimizer_states"][0]["param_groups"].pop(), "are trained now"),
    "shape": (_shrink, "its exp_avg of a weight has the shape (3,)"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_state_in_which_a_part_is_missing_is_refused_before_anything_is_written(
    trained: Path, tmp_path: Path, command: Command, case: str
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    for path in (tmp_path / "run").glob("last-*.ckpt"):
        path.unlink()
    damage, says = DAMAGED[case]
    checkpoint = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    damage(checkpoint)
    torch.save(checkpoint, tmp_path / "run" / "last.ckpt")
    before = tree(tmp_path)
    assert says in command(*LONGER).error
    assert tree(tmp_path) == before


def test_damaged_readings_are_refused_before_anything_is_written(
    trained: Path, tmp_path: Path, command: Command
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    metrics = tmp_path / "run" / "metrics.csv"
    lines = metrics.read_text().splitlines()
    metrics.write_text("\n".join([*lines[:2], "rubbish", *lines[3:]]) + "\n")
    before = tree(tmp_path)
    for words in (LONGER, (*WORDS, "hydra.run.dir=run")):
        assert "metrics.csv is damaged in line 3" in command(*words).error
        assert tree(tmp_path) == before


def test_a_damaged_checkpoint_is_set_aside_by_a_run_that_goes_on_alone(
    trained: Path, tmp_path: Path, command: Command
) -> None:
    shutil.copytree(trained, tmp_path / "run")
    newest = tmp_path / "run" / "last.ckpt"
    newest.write_bytes(newest.read_bytes()[:-1000])
    before = tree(tmp_path)
    assert "instead of" in command("resume=run", "epochs=3").error
    assert tree(tmp_path) == before
    assert command(*LONGER).code == 0
    assert (tmp_path / "run" / "last.ckpt.damaged").exists()
