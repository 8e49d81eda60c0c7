"""`budget=<minutes>`: the epochs that fit, written down as if they had been given."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Ended

from twoview.errors import UserError
from twoview.train import budget, pretrain
from twoview.train.budget import Cost, epochs_within, measured

Compose = Callable[..., dict[str, Any]]
SAMPLES = 256  # of the tiny runs, in batches of 64


class Machine:
    """Stands for `pretrain.run`: a run takes the time that it says, on a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, fixed: float, step: float, reading: float) -> None:
        self.fixed, self.step, self.reading = fixed, step, reading
        self.now, self.runs = 0.0, list[dict[str, Any]]()
        monkeypatch.setattr(budget.time, "monotonic", lambda: self.now)

    def __call__(self, config: dict[str, Any], folder: Path) -> dict[str, Any]:
        """The first two steps take ten times as long."""
        self.runs.append(config)
        per_epoch = min(SAMPLES // config["batch_size"], config["loader"]["max_batches"] or SAMPLES)
        steps, start = per_epoch * config["epochs"], self.now
        self.now += self.fixed
        with (folder / "metrics.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["step", "images_per_second"])
            for step in range(1, steps + 1):
                seconds = self.step * (10 if step <= 2 else 1)
                self.now += seconds
                writer.writerow([step, config["batch_size"] / seconds])
        readings = 0
        for name in ("knn", "quality"):
            if config[name]:
                every = config[name]["every_epochs"]
                readings += config["epochs"] // every + bool(config["epochs"] % every)
                self.now += self.reading / 2 * (config["epochs"] // every + bool(config["epochs"] % every))
        self.took = self.now - start
        return {
            "status": "finished",
            "steps": steps,
            "samples": SAMPLES,
            "evaluation_seconds": self.reading / 2 * readings,
        }


@pytest.mark.parametrize("minutes", [4.0, 10.0, 60.0])
@pytest.mark.parametrize(("fixed", "step", "reading"), [(5.0, 0.4, 0.0), (1.0, 0.1, 20.0), (10.0, 1.0, 1.0)])
@pytest.mark.parametrize("every", [(1, 1), (5, 3), (1000, 1000)])
def test_the_run_ends_in_time_and_one_of_more_epochs_would_not(
    monkeypatch: pytest.MonkeyPatch,
    compose: Compose,
    tiny: list[str],
    tmp_path: Path,
    minutes: float,
    fixed: float,
    step: float,
    reading: float,
    every: tuple[int, int],
) -> None:
    config = compose(*tiny, f"knn.every_epochs={every[0]}", f"quality.every_epochs={every[1]}")
    machine = Machine(monkeypatch, fixed, step, reading)
    epochs = epochs_within(minutes, config, machine, began=0.0)
    trial = machine.now
    assert len(machine.runs) == 2
    machine(config | {"epochs": epochs}, tmp_path)
    assert machine.now <= 60 * minutes
    if every[0] == every[1]:  # else readings on the way are reckoned on the dear side
        assert trial + measured(config, machine).seconds(epochs + 1, config) > budget.SLACK * 60 * minutes - 1e-6


def test_the_trial_is_short_and_leaves_warm_steps_out(
    monkeypatch: pytest.MonkeyPatch, compose: Compose, tiny: list[str]
) -> None:
    config = compose(*tiny, "optimizer=lars", "trainer.max_time=00:00:01", "epochs=500")
    machine = Machine(monkeypatch, fixed=5.0, step=9.0, reading=30.0)
    cost = measured(config, machine)
    assert cost.step == pytest.approx(9.0)
    assert cost.steps == SAMPLES // 64
    assert [bool(run["knn"]) for run in machine.runs] == [False, True]
    for run in machine.runs:
        assert run["epochs"] == 1
        assert run["optimizer"]["warmup_epochs"] == 0
        assert run["trainer"]["max_time"] is None


@pytest.mark.parametrize("minutes", [0.0, -1.0, math.nan, math.inf, 0.5])
def test_a_time_without_sense_or_without_an_epoch_in_it_is_refused(
    monkeypatch: pytest.MonkeyPatch, compose: Compose, tiny: list[str], minutes: float
) -> None:
    machine = Machine(monkeypatch, fixed=5.0, step=30.0, reading=0.0)
    with pytest.raises(UserError, match=rf"budget={minutes:g}.* (positive|too few).*minutes"):
        epochs_within(minutes, compose(*tiny), machine, began=0.0)


@pytest.mark.parametrize("words", [["trainer.devices=2"], ["trainer.num_nodes=2"]])
def test_several_devices_are_refused(compose: Compose, tiny: list[str], words: list[str]) -> None:
    with pytest.raises(UserError, match="budget= times the steps of one device"):
        epochs_within(1.0, compose(*tiny, *words), pretrain.run, began=0.0)


def test_a_trial_that_a_signal_stops_ends_the_command(
    command: Callable[..., Ended], tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> int:
        raise budget.TrialStopped("stopped: SIGTERM")

    monkeypatch.setattr(pretrain, "epochs_within", stopped)
    assert command(*tiny, "budget=1", "hydra.run.dir=run").code == 143
    assert not (tmp_path / "run").exists()


def test_a_budget_becomes_epochs_of_the_same_run_and_a_resumed_one_is_not_timed_again(
    command: Callable[..., Ended], tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real trial; then its steps are said to take so long that two epochs fit."""
    real = budget.measured

    def slow(*args: Any) -> Cost:
        cost = real(*args)
        assert cost.steps == SAMPLES // 64
        assert 0 < cost.step < 60
        assert cost.fixed > 0
        assert cost.reading > 0
        return Cost(0.0, 1e4, 0.0, cost.steps)

    monkeypatch.setattr(budget, "measured", slow)
    assert command(*tiny, "budget=2000", "hydra.run.dir=budget").code == 0
    assert command(*tiny, "epochs=2", "hydra.run.dir=plain").code == 0
    found = [torch.load(tmp_path / name / "last.ckpt", weights_only=True) for name in ("budget", "plain")]
    for key, value in found[0]["state_dict"].items():
        assert value.equal(found[1]["state_dict"][key]), key
    config = yaml.safe_load((tmp_path / "budget" / "config.yaml").read_text())
    assert config["epochs"] == 2
    assert "budget" not in config
    hashes = [json.loads((tmp_path / name / "identity.json").read_text())["config"] for name in ("budget", "plain")]
    assert hashes[0] == hashes[1]

    monkeypatch.setattr(budget, "measured", lambda *_: pytest.fail("timed again"))
    for words in ([*tiny, "resume=auto", "hydra.run.dir=budget"], ["resume=budget"]):
        ended = command(*words, "budget=2000")
        assert ended.code == 0, ended.err
        assert json.loads((tmp_path / "budget" / "summary.json").read_text())["epochs"] == 2
