"""A batch that follows the number of samples, and what is said where these are too few to begin with random weights."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SMALLEST

from twoview.data.batches import batch_for
from twoview.run.checkpoint import read_checkpoint
from twoview.train import pretrain
from twoview.train.budget import steps_of_an_epoch

WORDS = ("data=shapes", "data.n_test=16", "data.size=16", *SMALLEST, "model.projector.hidden_dim=8", "epochs=1")
WORDS += ("trainer=cpu", "knn=null", "quality=null")


@pytest.mark.parametrize(
    ("samples", "batch"),
    [(1, 2), (2, 2), (8, 2), (9, 2), (16, 4), (300, 64), (1023, 128), (2047, 256), (2048, 512), (50_000, 512)],
)
def test_the_batch_follows_the_number_of_samples(samples: int, batch: int) -> None:
    assert batch_for(samples, "auto") == batch
    assert batch_for(samples, 7) == 7
    config = {"batch_size": "auto", "loader": {"drop_last": True, "max_batches": None}}
    assert steps_of_an_epoch(config, samples) == samples // batch


@pytest.mark.parametrize(("images", "batch"), [(40, 8), (600, 128)])
def test_a_small_set_says_its_batch_and_whether_it_is_too_small(
    images: int, batch: int, compose: Callable[..., dict[str, Any]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "twoview"):
        summary = pretrain.run(compose(*WORDS, f"data.n_train={images}"), tmp_path / "run")
    assert summary["steps"] == images // batch
    assert f"{images} samples: batch {batch} (batch_size=... sets another)" in caplog.messages
    few = [line for line in caplog.messages if "encoder.weights=<file or run>" in line]
    assert len(few) == (images < 500)
    stored = read_checkpoint(tmp_path / "run")["twoview"]["config"]
    assert (stored["batch_size"], stored["loader"]["batch_size"]) == (batch, batch)  # what goes on has numbers

    caplog.clear()
    with caplog.at_level(logging.INFO, "twoview"):  # the same words go on with the run, which is not told again
        words = ("resume=auto", "epochs=2", "allow_changes=true", f"data.n_train={images}")
        again = pretrain.run(compose(*(w for w in WORDS if w != "epochs=1"), *words), tmp_path / "run")
    assert again["steps"] == 2 * (images // batch)
    assert not [line for line in caplog.messages if "encoder.weights" in line]


def test_a_run_that_starts_from_weights_is_not_told_of_them(
    compose: Callable[..., dict[str, Any]], finished: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    words = (*WORDS, "data.n_train=40", "batch_size=20", f"encoder.weights={finished}")
    with caplog.at_level(logging.INFO, "twoview"):
        pretrain.run(compose(*words), tmp_path / "run")
    assert not [line for line in caplog.messages if "too few" in line or "sets another" in line]
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 2
