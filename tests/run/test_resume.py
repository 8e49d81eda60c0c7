"""A run that is gone on with does what it is told, or refuses."""

import csv
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from twoview.cli import schema
from twoview.encoder.small import Small
from twoview.errors import UserError
from twoview.run.checkpoint import read_checkpoint
from twoview.run.identity import flat
from twoview.run.saving import Checkpoints, Interrupted
from twoview.train import pretrain
from twoview.watch.meter import Meter

Compose = Callable[..., dict[str, Any]]
Command = Callable[..., Any]


def again(config: dict[str, Any], run: Path, folder: Path, **changes: Any) -> dict[str, Any]:
    """Goes on with a copy of a finished run."""
    shutil.copytree(run, folder)
    return pretrain.run(config | {"resume": str(folder), "allow_changes": True} | changes, folder)


def groups(folder: Path) -> list[dict[str, Any]]:
    """The groups of the optimizer in the checkpoint, without their parameters."""
    (state,) = read_checkpoint(folder)["optimizer_states"]
    return [{k: v for k, v in group.items() if k != "params"} for group in state["param_groups"]]


def rates(folder: Path) -> dict[int, float]:
    with (folder / "metrics.csv").open(newline="") as file:
        return {int(row["step"]): float(row["lr"]) for row in csv.DictReader(file) if row["lr"]}


SHORT = ("epochs=1", "knn=null", "quality=null", "log_every_steps=1")
OPTIONS = [
    ("sgd", {"lr_per_256": 0.9}, {}),
    ("sgd", {"weight_decay": 0.3}, {"weight_decay": 0.3}),
    ("sgd", {"lr_scaling": "none"}, {}),
    ("sgd", {"warmup_epochs": 2}, {}),
    ("sgd", {"optimizer.momentum": 0.5}, {"momentum": 0.5}),
    ("sgd", {"optimizer.momentum": 0}, {"momentum": 0}),
    ("sgd", {"optimizer.nesterov": True}, {"nesterov": True}),
    ("adamw", {"optimizer.betas": [0.5, 0.6]}, {"betas": [0.5, 0.6]}),
    ("lars", {"optimizer.eta": 0.1}, {"eta": 0.1}),
    ("muon", {"optimizer.vector_lr": 1.5}, {"vector_lr": 1.5}),
]


@pytest.mark.parametrize(("name", "changes", "expected"), OPTIONS, ids=str)
def test_the_optimizer_is_that_of_the_configuration(
    compose: Compose, tiny: list[str], tmp_path: Path, name: str, changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    words = [f"optimizer={name}", *tiny, *SHORT]
    words.append("optimizer.warmup_epochs=0")
    pretrain.run(compose(*words), tmp_path / "first")
    told = [f"optimizer.{key}={value}".replace(" ", "") for key, value in changes.items()]
    config = compose(*words, "epochs=3", *told)
    again(config, tmp_path / "first", tmp_path / "second")
    fresh = schema.build(config["optimizer"])
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    _, schedule = fresh.build(model, config["batch_size"], steps=12, epochs=3)
    stored = groups(tmp_path / "second")
    assert [group["initial_lr"] for group in stored] == schedule.base_lrs
    for key, value in expected.items():
        assert all(list(g[key]) == value if isinstance(value, list) else g[key] == value for g in stored[:1]), key
    shown = rates(tmp_path / "second")
    for step in range(5, 12):  # the last one's is 0
        assert shown[step] == pytest.approx(schedule.base_lrs[0] * schedule.lr_lambdas[0](step), rel=1e-4), step


def test_a_rate_that_changes_trains_at_the_new_rate(compose: Compose, tiny: list[str], tmp_path: Path) -> None:
    """With a rate of nearly nothing the weights stay where they are."""
    words = [*tiny, *SHORT]
    pretrain.run(compose(*words), tmp_path / "first")
    again(compose(*words, "epochs=2", "optimizer.lr_per_256=1e-12"), tmp_path / "first", tmp_path / "still")
    again(compose(*words, "epochs=2"), tmp_path / "first", tmp_path / "moved")
    first, still, moved = (read_checkpoint(tmp_path / name)["state_dict"] for name in ("first", "still", "moved"))
    weight = "encoder.stem.0.weight" if "encoder.stem.0.weight" in first else next(k for k in first if "weight" in k)
    torch.testing.assert_close(still[weight], first[weight], rtol=0, atol=1e-7)
    assert (moved[weight] - first[weight]).abs().max() > 1e-5


def test_biases_may_begin_to_decay(compose: Compose, tiny: list[str], tmp_path: Path) -> None:
    """Another number of groups of the same parameters."""
    words = [*tiny, *SHORT]
    pretrain.run(compose(*words), tmp_path / "first")
    before = groups(tmp_path / "first")
    turned = str(len(before) == 2).lower()
    again(compose(*words, "epochs=2", f"optimizer.decay_bias_and_norm={turned}"), tmp_path / "first", tmp_path / "b")
    assert len(groups(tmp_path / "b")) == 3 - len(before)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["optimizer=adamw", "optimizer.warmup_epochs=0"], "AdamW .* needs exp_avg"),
        (["model.projector.hidden_dim=32"], r"projector.0.weight is \(16, 20\) there and \(32, 20\) here"),
        (["encoder.widths=[4,4,8,16]"], r"encoder.* is .* there and .* here"),
        (["model.projector.layers=3"], r"projector.* is .* there and .* here"),
        (["model=moco"], r"teacher\S+ is missing there"),
    ],
    ids=str,
)
def test_what_has_no_state_to_go_on_from_is_refused(
    compose: Compose, tiny: list[str], tmp_path: Path, changes: list[str], says: str
) -> None:
    words = [*tiny, *SHORT]
    pretrain.run(compose(*words), tmp_path / "first")
    before = {path.name: path.read_bytes() for path in (tmp_path / "first").iterdir() if path.is_file()}
    with pytest.raises(UserError, match=says):
        again(compose(*words, "epochs=2", *changes), tmp_path / "first", tmp_path / "b")
    for name in ("last.ckpt", "metrics.csv", "encoder.safetensors", "summary.json"):
        assert (tmp_path / "b" / name).read_bytes() == before[name], name


@pytest.mark.parametrize(
    "changes",
    [
        ["batch_size=32"],
        ["batch_size=128"],
        ["data.n_train=320"],
        ["loader.max_batches=3"],
        ["data.n_train=250", "loader.drop_last=true"],
    ],
    ids=str,
)
def test_another_number_of_steps_is_refused(
    compose: Compose, tiny: list[str], tmp_path: Path, changes: list[str]
) -> None:
    """Rate 0, negative times and epochs of 6.0 came of it."""
    words = [*tiny, *SHORT]
    pretrain.run(compose(*words), tmp_path / "first")
    before = (tmp_path / "first" / "last.ckpt").read_bytes()
    with pytest.raises(UserError, match="has 4 steps an epoch, and this start would make"):
        again(compose(*words, "epochs=4", *changes), tmp_path / "first", tmp_path / "b")
    assert (tmp_path / "b" / "last.ckpt").read_bytes() == before


def test_another_batch_of_as_many_steps_is_taken(compose: Compose, tiny: list[str], tmp_path: Path) -> None:
    words = [*tiny, *SHORT, "loader.max_batches=2"]
    pretrain.run(compose(*words), tmp_path / "first")
    config = compose(*words, "epochs=3", "batch_size=32")
    assert again(config, tmp_path / "first", tmp_path / "b")["epochs"] == 3
    lr = schema.build(config["optimizer"]).lr(32)
    assert groups(tmp_path / "b")[0]["initial_lr"] == pytest.approx(lr)


def test_fewer_epochs_than_were_made_are_refused(compose: Compose, tiny: list[str], tmp_path: Path) -> None:
    words = [*tiny, *SHORT, "epochs=2"]
    pretrain.run(compose(*words), tmp_path / "first")
    with pytest.raises(UserError, match="has made 2 epochs already: epochs=1 is less"):
        again(compose(*words, "epochs=1"), tmp_path / "first", tmp_path / "b")


# Generators.


class Dropping(Small):
    """Half of h is dropped in training."""

    __module__, __qualname__ = Small.__module__, Small.__qualname__  # it takes its place

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(super().forward(x), 0.5, self.training)


@pytest.mark.parametrize("stop", [3, 4, 6])  # within an epoch, at the end of one
@pytest.mark.parametrize("model", ["simclr", "moco"])
def test_dropout_goes_on_to_the_bit(
    compose: Compose, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: int, model: str
) -> None:
    monkeypatch.setattr("twoview.encoder.small.Small", Dropping)
    words = [f"model={model}", *tiny, "epochs=2", "checkpoint.every_epochs=1", "quality.every_epochs=1"]
    if model == "moco":
        words += ["model.queue_size=64"]
    config = compose(*words)
    straight, other = tmp_path / "straight", tmp_path / "other"
    pretrain.run(config, straight)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "on_train_batch_end", stop_at(stop))
        patch.setattr(Checkpoints, "on_train_epoch_end", stop_at(stop))
        assert pretrain.run(config, other)["status"].startswith("stopped")
    torch.rand(1000)  # whatever the process draws before it goes on
    assert pretrain.run(config | {"resume": "auto"}, other)["status"] == "finished"
    ours, theirs = (read_checkpoint(folder) for folder in (straight, other))
    assert ours["global_step"] == theirs["global_step"] == 8
    assert all(torch.equal(value, theirs["state_dict"][name]) for name, value in ours["state_dict"].items())
    assert torch.equal(ours["random"][0]["cpu"], theirs["random"][0]["cpu"])


def stop_at(step: int) -> Callable[..., None]:
    def hook(self: Checkpoints, trainer: Any, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step == step and (not trainer.is_last_batch or not args[1:]):
            self._save(trainer)
            raise Interrupted("test", self.path(trainer))

    return hook


def test_the_test_notices_lost_generators(
    compose: Compose, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twoview.run.saving.set_random_state", lambda *_: None)
    with pytest.raises(AssertionError):
        test_dropout_goes_on_to_the_bit(compose, tiny, tmp_path, monkeypatch, 3, "simclr")


def test_another_seed_has_other_numbers(
    compose: Compose, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The generator that is stored is that of the seed that was."""
    words = [*tiny, *SHORT]
    pretrain.run(compose(*words), tmp_path / "first")
    seen: list[Tensor] = []
    original = Meter.on_train_batch_start
    hook = lambda self, *args: (seen.append(torch.get_rng_state()), original(self, *args))[1]  # noqa: E731
    monkeypatch.setattr(Meter, "on_train_batch_start", hook)
    again(compose(*words, "epochs=2"), tmp_path / "first", tmp_path / "same")
    again(compose(*words, "epochs=2", "seed=1"), tmp_path / "first", tmp_path / "other")
    stored = read_checkpoint(tmp_path / "first")["random"][0]["cpu"]
    assert torch.equal(seen[0], stored)
    assert not torch.equal(seen[4], stored)


# Words of the command line.

SMALLEST = ("encoder=small", "encoder.widths=[4,4,4,4]", "model.projector.hidden_dim=8", "loader.num_workers=0")
LINES = {
    "smoke": ["data=shapes", "data.n_train=64", "data.size=8", "trainer=smoke", "batch_size=8", "epochs=2"],
    "experiment": ["experiment=demo", "data.n_train=64", "data.n_test=16", "data.size=8", "batch_size=8", "epochs=1"],
    "policy": [
        *("data=shapes", "data.n_train=64", "data.size=8", "trainer=cpu", "batch_size=8", "epochs=1", "knn=null"),
        *("augment=byol_cifar", "~augment.ops.gray"),
        "+augment.ops.gray2={_target_: twoview.augment.image.photometric.Grayscale, p: 0.3}",
    ],
    "moco": [
        *("data=shapes", "data.n_train=64", "data.size=8", "trainer=cpu", "batch_size=16", "epochs=1"),
        *("model=moco", "model.queue_size=32", "model.temperature=0.3", "augment.strength=0.7", "loss.chunk=4"),
    ],
}


@pytest.mark.parametrize("line", LINES)
def test_the_runs_own_command_goes_on_with_it(tmp_path: Path, command: Command, line: str) -> None:
    """Nothing changes, whatever the words are."""
    words = [*LINES[line], *SMALLEST, "quality=null", "loader.max_batches=2"]
    assert command(*words, "hydra.run.dir=run").code == 0
    before = read_checkpoint(tmp_path / "run")
    ended = command(*words, "resume=run")
    assert ended.code == 0, ended.err
    assert "instead of" not in ended.out
    assert read_checkpoint(tmp_path / "run")["twoview"] == before["twoview"]


@pytest.fixture
def simclr(tmp_path: Path, command: Command) -> Path:
    """A run of two steps."""
    words = [*LINES["smoke"], *SMALLEST, "knn=null", "quality=null", "hydra.run.dir=run"]
    assert command(*words).code == 0
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("word", "changed"),
    [
        ("augment.strength=1.0", ["augment.strength", "augment.ops.jitter.strength"]),
        ("loss.chunk=4", ["loss.chunk", "model.chunk"]),
        ("seed=3", ["seed", "loader.seed"]),
        ("epochs=5", ["epochs"]),
        ("augment.ops.jitter.strength=0.1", ["augment.ops.jitter.strength"]),
        ("batch_size=16", ["batch_size", "loader.batch_size"]),
    ],
)
def test_what_was_made_from_a_value_follows_it(simclr: Path, command: Command, word: str, changed: list[str]) -> None:
    before = flat(read_checkpoint(simclr)["twoview"]["config"])
    ended = command("resume=run", word, "allow_changes=true", *([] if "epochs" in word else ["epochs=4"]))
    assert ended.code == 0, ended.err
    after = flat(read_checkpoint(simclr)["twoview"]["config"])
    assert [key for key in after if after[key] != before[key] and key != "epochs"] == [
        k for k in changed if k != "epochs"
    ]
    assert len({str(after[key]) for key in changed}) == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["optimizer=adamw"], "optimizer.*, and the run has"),
        (["optimizer=lars"], "optimizer.lr_per_256=1.0, and the run has optimizer.lr_per_256=0.03"),
        (["augment=none"], "augment.*, and the run has"),
        (["trainer=ddp"], "trainer.accelerator=auto, and the run has trainer.accelerator=cpu"),
        (["model=moco"], "and the run has"),
        (["experiment=demo"], "and the run has"),
        (["trainer=smoke", "loader.max_batches=2"], "epochs=1, and the run has epochs=2"),
        (["knn.k=5"], "cannot change it"),
        (["~loader.drop_last"], "'~loader.drop_last' cannot change it"),
    ],
    ids=str,
)
def test_words_that_a_resumption_cannot_follow_are_refused(
    simclr: Path, command: Command, words: list[str], says: str
) -> None:
    """Without a word they were not followed."""
    before = (simclr / "last.ckpt").read_bytes()
    error = command("resume=run", *words, "allow_changes=true").error
    assert re.search(says, error), error
    assert (simclr / "last.ckpt").read_bytes() == before


def test_a_groups_name_makes_room_for_its_keys(simclr: Path, command: Command) -> None:
    words = ["model=simclr", "model.projector.hidden_dim=8", "model.temperature=0.9", "epochs=3"]
    ended = command("resume=run", *words, "allow_changes=true")
    assert ended.code == 0, ended.err
    assert "resuming with model.temperature=0.9 instead of" in ended.out
