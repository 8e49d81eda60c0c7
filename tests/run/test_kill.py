"""Real processes killed with SIGKILL: what is resumed ends as the run that was never stopped, to the bit."""

import random
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from conftest import ROWS, SOUNDS, TEXTS

from twoview.run.checkpoint import read_checkpoint
from twoview.selftest.resume import Moment, command, first_difference, killed
from twoview.train import pretrain

MODELS = {
    "simclr": ["model=simclr", "model.projector.hidden_dim=16"],
    "moco": ["model=moco", "model.queue_size=100", "model.projector.hidden_dim=16"],
    "mocov3": ["model=mocov3", "model.projector.hidden_dim=16", "model.predictor.hidden_dim=16"],
}
ENCODERS = {"small": ["encoder=small", "encoder.widths=[4,4,8,8]"], "resnet18": ["encoder=resnet18"]}
PRECISIONS = ["32-true", "bf16-mixed"]
MOMENTS: list[Moment] = ["random", "write", "knn"]
CASES = list(product(MODELS, ENCODERS, PRECISIONS, MOMENTS))
DRAWN = [("simclr", "small", "32-true", "random"), ("moco", "small", "bf16-mixed", "write")]

SHORT = ["data=shapes", "data.n_train=256", "data.n_test=200", "data.size=16", "batch_size=64", "epochs=2"]
SHORT += ["log_every_steps=1", "trainer=cpu", "knn.every_epochs=1"]


KINDS = {  # of data but images: the folder of a fixture, and what the configuration of a run has
    "spoken": [*SOUNDS, "augment=audio", *ENCODERS["small"], "batch_size=8"],
    "rows": [*ROWS, "augment=table", "augment.ops.smote.neighbours=3", "batch_size=16"],
    "sentences": [*TEXTS, "optimizer=adamw", "batch_size=16"],
}


def check(compose: Callable[..., dict[str, Any]], tmp_path: Path, case: tuple[str, str, str, str]) -> None:
    model, encoder, precision, moment = case
    words = [*SHORT, *MODELS[model], *ENCODERS[encoder], f"trainer.precision={precision}"]
    if encoder == "resnet18":
        words += ["batch_size=16", "loader.max_batches=4", "data.size=8", "data.n_train=64"]
    ends_as_if_never_killed(compose, tmp_path, words, moment)


def ends_as_if_never_killed(
    compose: Callable[..., dict[str, Any]], tmp_path: Path, words: list[str], moment: str
) -> None:
    config = compose(*words)
    straight, other = tmp_path / "straight", tmp_path / "killed"
    summary = pretrain.run(config, straight)
    killed(command(words, other), other, moment, summary["training_seconds"])  # type: ignore[arg-type]
    assert not (other / "summary.json").exists()
    assert pretrain.run(config | {"resume": "auto"}, other)["status"] == "finished"
    assert first_difference(straight, other) is None
    ours, theirs = (read_checkpoint(folder)["twoview"]["identity"] for folder in (straight, other))
    assert ours | {"code": ""} == theirs | {"code": "", "run_hash": ours["run_hash"]}
    assert not list(other.glob(".*"))  # no lock, nothing half-written


@pytest.mark.parametrize("case", DRAWN, ids="-".join)
def test_a_killed_run_goes_on_as_if_nothing_had_happened(
    compose: Callable[..., dict[str, Any]], tmp_path: Path, case: tuple[str, str, str, str]
) -> None:
    random.seed()  # another moment each time
    check(compose, tmp_path, case)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("moment", ["random", "write"])
def test_every_kind_of_data(
    compose: Callable[..., dict[str, Any]], tmp_path: Path, request: pytest.FixtureRequest, kind: str, moment: str
) -> None:
    random.seed()
    words = [f"data.root={request.getfixturevalue(kind)}", "epochs=4", "log_every_steps=1", "knn.every_epochs=2"]
    words = [*KINDS[kind], *words, "trainer=cpu", "knn.k=5", "model.projector.hidden_dim=16"]
    ends_as_if_never_killed(compose, tmp_path, words, moment)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_every_method_encoder_precision_and_moment(
    compose: Callable[..., dict[str, Any]], tmp_path: Path, case: tuple[str, str, str, str]
) -> None:
    random.seed()
    check(compose, tmp_path, case)
