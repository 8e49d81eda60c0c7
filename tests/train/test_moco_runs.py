"""MoCo as a command: what a run says and leaves, which encoder is judged, queues that do not fit."""

import csv
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from twoview.errors import UserError
from twoview.run.checkpoint import load_encoder, read_checkpoint
from twoview.train import pretrain

Command = Callable[..., Any]
MOCO = ("model=moco", "model.queue_size=100")


@pytest.fixture(scope="module")
def moco_run(tmp_path_factory: pytest.TempPathFactory, compose: Callable[..., Any], tiny: list[str]) -> Path:
    """The folder of a finished tiny run of MoCo, for reading only."""
    folder = tmp_path_factory.mktemp("runs") / "moco"
    pretrain.run(compose(*tiny, *MOCO), folder)
    return folder


def test_the_chance_level_follows_the_queue_while_it_fills(moco_run: Path) -> None:
    with (moco_run / "metrics.csv").open(newline="") as file:
        chance = [float(row["chance_loss"]) for row in csv.DictReader(file) if row["chance_loss"]]
    first = sum(math.log(1 + min(100, 64 * step)) for step in range(3)) / 3  # a reading every three steps
    assert chance[0] == pytest.approx(first, rel=1e-5)
    assert chance[-1] == pytest.approx(math.log(101), rel=1e-5)
    assert json.loads((moco_run / "summary.json").read_text())["chance_loss"] == pytest.approx(math.log(101), rel=1e-6)


def test_the_lines_before_the_first_step_say_when_the_queue_is_full(tiny: list[str], command: Command) -> None:
    ended = command(*tiny, *MOCO, "epochs=1", "model.symmetric=true")
    assert ended.code == 0, ended.err
    assert "loss at chance level 4.615 once the queue of 100 is full (steps: 1)" in ended.out


def test_the_query_encoder_is_judged_and_the_key_encoder_by_name(moco_run: Path) -> None:
    state = read_checkpoint(moco_run)["state_dict"]
    for name, prefix in (("query", "encoder."), ("key", "teacher."), ("teacher", "teacher.")):
        for key, value in load_encoder(moco_run, encoder_of=name).encoder.state_dict().items():
            assert value.equal(state[prefix + key])
    x = torch.rand(4, 3, 16, 16)
    assert not torch.equal(load_encoder(moco_run)(x), load_encoder(moco_run, encoder_of="key")(x))
    assert torch.equal(load_encoder(moco_run)(x), load_encoder(moco_run / "encoder.safetensors")(x))


@pytest.mark.parametrize("name", ["linear_probe", "knn"])
def test_scripts_take_the_encoder_by_name(moco_run: Path, tmp_path: Path, command: Command, name: str) -> None:
    digests = {}
    for which in ("query", "key"):
        out = tmp_path / f"{which}.json"
        ended = command(f"ckpt={moco_run}", f"encoder_of={which}", f"out={out}", name=name)
        assert ended.code == 0, ended.err
        result = json.loads(out.read_text())
        assert result["encoder_of"] == which
        digests[which] = result["encoder_digest"]
    assert digests["query"] != digests["key"]


def test_a_teacher_that_is_not_there(moco_run: Path, finished: Path, command: Command) -> None:
    for path in (finished, moco_run / "encoder.safetensors"):
        for word in ("key", "teacher"):
            assert "holds no teacher" in command(f"ckpt={path}", f"encoder_of={word}", name="knn").error
    assert (
        "encoder_of='other' is not one of student, teacher, query, key"
        in command(f"ckpt={finished}", "encoder_of=other", name="knn").error
    )
    with pytest.raises(UserError, match="must be one of student, teacher, query, key"):
        load_encoder(finished, encoder_of="other")  # type: ignore[arg-type]


def test_a_queue_of_another_size_is_refused_with_the_way_out(
    moco_run: Path, tiny: list[str], tmp_path: Path, command: Command
) -> None:
    folder = shutil.copytree(moco_run, tmp_path / "moco")
    own = [word for word in tiny if not word.startswith("epochs=")]
    changed = (*own, "model=moco", f"resume={folder}", "epochs=3", "model.queue_size=50", "allow_changes=true")
    ended = command(*changed)
    assert "holds 100 keys, and model.queue_size=50" in ended.error
    assert "model.fresh_queue=true" in ended.error
    ended = command(*changed, "model.fresh_queue=true")
    assert ended.code == 0, ended.err
    state = read_checkpoint(folder)["state_dict"]
    assert state["queue.rows"].shape == (50, 128)
    assert state["queue.count"] == 4 * 64  # of the third epoch alone
    ended = command(f"resume={folder}", "epochs=4", "allow_changes=true")  # the wish was for one start
    assert ended.code == 0, ended.err
    assert read_checkpoint(folder)["state_dict"]["queue.count"] == 2 * 4 * 64


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["model.queue_size=0"], "model.queue_size must be at least 1"),
        (["model.momentum=1.5"], r"model.momentum must lie in [0, 1]"),
        (["model.split_batch_norm=7"], "64 samples do not divide into 7"),
        (["loader.drop_last=false", "data.n_train=250"], "58 samples do not divide into 8"),
        (["trainer.precision=bf16-true"], "use trainer.precision=bf16-mixed"),
        (["loss.chunk=0"], "loss.chunk must be at least 1"),
        (["loss.chunk=1.5"], "is not a whole number or null"),
        (["model.queue=3"], "Did you mean queue_size?"),
    ],
)
def test_bad_input_ends_in_one_message(tiny: list[str], command: Command, words: list[str], message: str) -> None:
    assert message in command(*tiny, *MOCO, *words).error
