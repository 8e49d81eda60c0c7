"""The run doctor: every illness is caused in a real training and named, and healthy runs get a clean bill."""

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import TEXTS
from hypothesis import given
from hypothesis import strategies as st
from torchvision.io import write_jpeg

from twoview.augment.views import TwoViews
from twoview.cli.configs import options
from twoview.train import pretrain
from twoview.watch import doctor
from twoview.watch.doctor import HEALTHY, TOO_EARLY, UNKNOWN, Diagnosis, examine, examine_run
from twoview.watch.illnesses import USUAL_LR

Compose = Callable[..., dict[str, Any]]
Command = Callable[..., Any]
RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
SHORT = (
    *("data.n_train=448", "data.n_test=64", "epochs=8", "log_every_steps=7"),  # 56 steps
    *("quality.every_epochs=4", "knn.every_epochs=4"),
)
DEMO = ("optimizer=muon", "model.temperature=0.2", "model.projector.norm=batch")  # as in experiment=demo
WIDE = ("encoder.widths=[8,16,32,64]", "model.projector.hidden_dim=64")
MOCO = ("model=moco", "model.momentum=0.9", "model.split_batch_norm=1")


@pytest.fixture
def diagnose(compose: Compose, tiny: list[str], tmp_path: Path) -> Callable[..., Diagnosis]:
    """`diagnose("epochs=3", ...)` trains, and returns what the doctor says of the folder afterwards, which is what
    stands in the summary too.
    """

    def call(*words: str) -> Diagnosis:
        summary = pretrain.run(compose(*tiny, *SHORT, *words), tmp_path / "run")
        diagnosis = examine_run(tmp_path / "run")
        assert summary["doctor"] == json.loads(json.dumps(diagnosis.plain(), allow_nan=False))
        return diagnosis

    return call


# Clean bills.


@pytest.mark.parametrize("model", [(), (*MOCO, "model.queue_size=256")], ids=["simclr", "moco"])
def test_a_healthy_run_gets_a_clean_bill_in_one_line(
    diagnose: Callable[..., Diagnosis], caplog: pytest.LogCaptureFixture, model: tuple[str, ...]
) -> None:
    with caplog.at_level(logging.INFO, "twoview.watch.doctor"):
        diagnosis = diagnose(*model, *DEMO, *WIDE)
    assert (diagnosis.verdict, diagnosis.findings, diagnosis.code) == (HEALTHY, (), 0)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "twoview.watch.doctor"]
    assert line.startswith("doctor: healthy (56 steps, loss at ")


@pytest.mark.parametrize("path", sorted(RESULTS.rglob("metrics.csv")), ids=lambda p: str(p.parent.relative_to(RESULTS)))
def test_the_published_runs_are_healthy(path: Path) -> None:
    assert examine_run(path.parent).verdict == HEALTHY


def test_there_are_published_runs_of_both_methods() -> None:
    assert {"demo", "cifar10_cpu", "moco_cifar10_cpu"} <= {path.parent.name for path in RESULTS.rglob("metrics.csv")}


# Illnesses, each of them caused.


@pytest.mark.parametrize(
    ("words", "name", "cause", "remedy"),
    [
        ((*DEMO, "model.temperature=50"), "loss at chance level", "temperature 50", "model.temperature=0.2"),
        ((*DEMO, "optimizer.lr_per_256=1e-9"), "loss at chance level", "so low", "optimizer.lr_per_256=0.02"),
        (
            ("optimizer.weight_decay=10", "optimizer.lr_per_256=0.3", "model.temperature=0.2"),
            "complete collapse",
            "weight decay takes 7",
            "optimizer.weight_decay=1e-4",
        ),
        ((*DEMO, *WIDE, "model.projector.hidden_dim=2"), "dimensional collapse", "bottleneck", "hidden_dim=512"),
        ((*DEMO, "augment=none"), "shortcut", "no crop and no colour distortion", "augment=simclr_cifar"),
        (
            (*DEMO, "~augment.ops.jitter", "~augment.ops.gray", "~augment.ops.flip", "augment.ops.crop.scale=[0.95,1]"),
            "shortcut",
            "no colour distortion",
            "augment=simclr_cifar",
        ),
        (
            ("optimizer.lr_per_256=100", "model.temperature=0.2"),
            "learning rate too high",
            "steps so long",
            "optimizer.lr_per_256=0.03",
        ),
        (
            ("optimizer.lr_per_256=100", "optimizer.warmup_epochs=8", "epochs=12", "model.temperature=0.2"),
            "learning rate too high",  # the loss falls, and then rises for good
            "steps so long",
            "optimizer.lr_per_256=0.03",
        ),
        ((*DEMO, *MOCO, "model.queue_size=65536"), "queue not filled", "its queue of 65,536", "model.queue_size=2048"),
    ],
    ids=["temperature", "no lr", "decay", "bottleneck", "no policy", "no colours", "lr", "late lr", "queue"],
)
def test_an_illness_is_named_with_cause_and_remedy(
    diagnose: Callable[..., Diagnosis],
    caplog: pytest.LogCaptureFixture,
    words: tuple[str, ...],
    name: str,
    cause: str,
    remedy: str,
) -> None:
    diagnosis = diagnose(*words)
    assert (diagnosis.verdict, diagnosis.code) == (name, 2), diagnosis.table()
    assert cause in diagnosis.findings[0].cause
    assert remedy in diagnosis.findings[0].remedy
    assert all(math.isfinite(proof.value) and proof.source for proof in diagnosis.findings[0].evidence)
    said = [record.getMessage() for record in caplog.records if record.name == "twoview.watch.doctor"]
    assert said == diagnosis.brief()


@pytest.mark.parametrize("policy", ["augment=none", "augment=text"])
def test_texts_are_not_told_of_crops_and_colours(
    compose: Compose, sentences: Path, tmp_path: Path, policy: str
) -> None:
    words = [
        *(word for word in TEXTS if not word.startswith("augment")),
        policy,
        f"data.root={sentences}",
        "optimizer=adamw",
        "batch_size=16",
        "epochs=30",
        "trainer=cpu",
    ]
    words += ["model.projector.hidden_dim=16", "log_every_steps=5", "knn=null", "quality=null"]
    pretrain.run(compose(*words), tmp_path / "run")
    diagnosis = examine_run(tmp_path / "run")
    assert "crop" not in diagnosis.table()
    assert "colour" not in diagnosis.table()
    if policy == "augment=none":
        assert diagnosis.verdict == "shortcut"
        assert "more or stronger operations" in diagnosis.findings[0].remedy


def test_views_that_have_nothing_in_common_leave_the_loss_at_chance_level(
    diagnose: Callable[..., Diagnosis], monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = TwoViews.forward

    def mixed_up(self: TwoViews, *arguments: Any, **more: Any) -> Any:
        first, second = forward(self, *arguments, **more)
        return first, second.roll(1, dims=0)

    monkeypatch.setattr(TwoViews, "forward", mixed_up)
    diagnosis = diagnose(*DEMO)
    assert diagnosis.verdict == "loss at chance level"
    assert "nothing in common" in diagnosis.findings[0].cause
    assert "views.png" in diagnosis.findings[0].remedy


def test_nan_is_found_in_what_the_run_left(tiny: list[str], command: Command) -> None:
    assert "not finite" in command(*tiny, "optimizer.lr_per_256=1e25", "epochs=10", "hydra.run.dir=run").error
    ended = command("run=run", name="doctor")
    assert ended.code == 2
    assert "verdict: NaN" in ended.out
    assert "optimizer.lr_per_256=0.03" in ended.out


def test_a_run_that_waits_for_its_images_is_input_bound(compose: Compose, tiny: list[str], tmp_path: Path) -> None:
    """Photographs that are decoded again and again, for a network that needs far less time."""
    (tmp_path / "photos").mkdir()
    for i in range(32):
        noise = torch.randint(256, (3, 640, 640), generator=torch.Generator().manual_seed(i), dtype=torch.uint8)
        write_jpeg(noise, str(tmp_path / "photos" / f"{i}.jpg"))
    words = ["data=image_folder", f"data.root={tmp_path / 'photos'}", "data.size=16", "data.in_memory=false"]
    words += ["knn=null", "quality=null", "loader.num_workers=0", "batch_size=16", "epochs=3", "log_every_steps=1"]
    pretrain.run(compose(*[word for word in tiny if not word.startswith("data")], *words), tmp_path / "run")
    diagnosis = examine_run(tmp_path / "run")
    assert diagnosis.verdict == "input-bound"
    assert diagnosis.findings[0].evidence[0].value > 0.5
    assert "loader.num_workers=" in diagnosis.findings[0].remedy


def test_images_in_memory_are_not_waited_for(finished: Path) -> None:
    waiting = [row["waiting"] for row in doctor.read_metrics(finished / "metrics.csv") if "waiting" in row]
    assert len(waiting) == 4
    assert all(0 <= share < 0.5 for share in waiting)


# What is not judged, and what is no illness.


def test_a_few_steps_are_too_early_to_judge(finished: Path, command: Command) -> None:
    ended = command(f"run={finished}", name="doctor")
    assert ended.code == 3
    assert f"verdict: {TOO_EARLY} (8 steps" in ended.out


def rows(ratios: list[float], chance: Callable[[int], float] = lambda step: math.log(1023), **more: float) -> Any:
    """Readings every 10 steps, 20 an epoch, with losses in units of their chance level."""
    return [
        {"step": step, "epoch": 1 + i // 2, "loss": ratio * chance(step), "chance_loss": chance(step), "lr": 0.1}
        | {"accuracy": 0.5}
        | more
        for i, ratio in enumerate(ratios)
        for step in [10 * (i + 1)]
    ]


FALLING = [0.9 - 0.02 * i for i in range(20)]


def test_a_loss_that_rises_while_the_queue_fills_is_no_divergence() -> None:
    def chance(step: int) -> float:
        return math.log(1 + min(4096, 20 * step))

    readings = rows(FALLING, chance)
    assert readings[2]["loss"] > readings[0]["loss"]
    assert examine(readings).verdict == HEALTHY


def test_a_queue_is_judged_by_what_the_method_tells_of_it() -> None:
    config = {"model": {"queue_size": 8192}}
    assert examine(rows(FALLING), config).verdict == HEALTHY  # nothing is told
    assert examine(rows(FALLING, queue_filled=0.98), config).verdict == HEALTHY
    (finding,) = examine(rows(FALLING, queue_filled=0.5), config).findings
    assert finding.name == "queue not filled"
    assert "model.queue_size=4096" in finding.remedy


# Methods without a chance level.


def without_chance(**more: float) -> Any:
    return [{name: row[name] for name in ("step", "epoch", "loss", "lr")} | more for row in rows(FALLING)]


def test_without_a_chance_level_a_run_is_judged_by_its_spread_alone() -> None:
    for curve in ("z_std", "spread", "h_std"):
        assert examine(without_chance(**{curve: 0.9})).verdict == HEALTHY
        diagnosis = examine(without_chance(**{curve: 0.05}))
        assert diagnosis.verdict == "complete collapse"
        assert "loss / chance level" not in {proof.what for proof in diagnosis.findings[0].evidence}
        assert "without negatives" in diagnosis.findings[0].cause
    assert examine(without_chance(z_std=0.05, spread=0.9)).verdict == "complete collapse"  # what tells most


def test_a_loss_alone_proves_nothing() -> None:
    diagnosis = examine(without_chance())
    assert (diagnosis.verdict, diagnosis.code, diagnosis.findings) == (UNKNOWN, 3, ())
    assert "loss 3.6" in diagnosis.state
    rising = without_chance()
    rising[-1]["loss"] *= 5  # as BYOL's does when its features spread
    assert examine([row | {"spread": 0.9} for row in rising]).verdict == HEALTHY


def test_what_needs_no_chance_level_is_found_without() -> None:
    readings = without_chance(spread=0.9, h_effective_rank=100.0, waiting=0.9)
    readings[-1]["h_effective_rank"] = 40.0
    assert {finding.name for finding in examine(readings).findings} == {"dimensional collapse", "input-bound"}
    readings[-1]["loss"] = math.nan
    assert examine(readings).verdict == "NaN"


BYOL = ("model=byol", "model.predictor.hidden_dim=16", "model.momentum=0.9", "optimizer=muon")


def test_byol_is_healthy(diagnose: Callable[..., Diagnosis]) -> None:
    diagnosis = diagnose(*BYOL, *WIDE)
    assert (diagnosis.verdict, diagnosis.findings) == (HEALTHY, ()), diagnosis.table()
    assert "spread" in diagnosis.state


def test_byol_without_its_guards_has_collapsed(diagnose: Callable[..., Diagnosis]) -> None:
    """Without normalisation in the heads nothing is in the way of the easiest prediction, one point for all."""
    words = ("model.projector.norm=none", "model.predictor.norm=none", "optimizer=sgd", "optimizer.lr_per_256=0.3")
    diagnosis = diagnose(*BYOL, *words, *WIDE)
    assert diagnosis.verdict == "complete collapse"


def test_a_spike_that_the_run_recovers_from_is_no_illness_and_one_that_stays_is() -> None:
    spike = [1.2, 1.1]
    assert examine(rows([*FALLING[:8], *spike, *FALLING[8:]])).verdict == HEALTHY
    assert examine(rows([*FALLING, *spike, 1.0])).verdict == "learning rate too high"


@given(st.lists(st.floats(0.0, 1.0), min_size=6, max_size=30))
def test_curves_that_only_fall_are_ill_at_chance_level_alone(ratios: list[float]) -> None:
    ratios = sorted(ratios, reverse=True)
    last = sorted(ratios[-3:])[1]
    assert examine(rows(ratios)).verdict == ("loss at chance level" if last > 0.95 else HEALTHY)


@pytest.mark.parametrize("epochs", [1, 1000])
@pytest.mark.parametrize("knn", [0.3, 0.9])
def test_a_solved_pretext_task_is_a_shortcut_only_early_and_with_bad_features(epochs: int, knn: float) -> None:
    readings = rows(FALLING, accuracy=0.5, knn=knn)
    for row in readings[len(readings) // 2 :]:
        row["accuracy"] = 0.99
    policy = {"ops": {"crop": {"_target_": "a.RandomResizedCrop"}, "colour": {"_target_": "a.ColorJitter"}}}
    early = epochs == 1000  # of which a tenth is more than these readings have
    verdict = examine(readings, {"epochs": epochs, "augment": policy}).verdict
    assert verdict == ("shortcut" if early and knn < 0.5 else HEALTHY)


@pytest.mark.parametrize(
    ("op", "said"),
    [
        ({"_target_": "a.ColorJitter", "strength": 0.0}, "no colour distortion"),
        ({"_target_": "a.ColorJitter", "p": 0.0}, "no colour distortion"),
        (None, "no colour distortion"),
        ({"_target_": "a.TrivialAugmentWide"}, "something that no other image has"),
    ],
)
def test_an_operation_that_does_nothing_is_as_good_as_missing(op: dict[str, Any] | None, said: str) -> None:
    policy = {"ops": {"crop": {"_target_": "a.RandomResizedCrop"}, "colour": op}}
    (finding,) = examine(rows(FALLING, accuracy=0.97), {"epochs": 1000, "augment": policy}).findings
    assert said in finding.cause


@pytest.mark.parametrize(
    ("accuracy", "knn", "without", "with_colours"),
    [
        (0.75, 0.49, "shortcut", HEALTHY),  # CIFAR-10 without and with jitter, see EASY_WITHOUT
        (0.61, 0.58, HEALTHY, HEALTHY),
        (0.75, 0.70, HEALTHY, HEALTHY),
        (0.85, None, HEALTHY, HEALTHY),
        (0.95, None, "shortcut", "shortcut"),
    ],
)
def test_less_is_enough_where_the_policy_has_no_colours(
    accuracy: float, knn: float | None, without: str, with_colours: str
) -> None:
    readings = rows(FALLING, accuracy=accuracy)
    if knn is not None:
        readings[-1]["knn"] = knn
    ops = {"crop": {"_target_": "a.RandomResizedCrop"}}
    assert examine(readings, {"epochs": 10, "augment": {"ops": ops}}).verdict == without
    ops["colour"] = {"_target_": "a.ColorJitter"}
    assert examine(readings, {"epochs": 10, "augment": {"ops": ops}}).verdict == with_colours


def test_the_spread_of_the_sphere_is_no_collapse_and_nan_is_none_either() -> None:
    for std, verdict in ((1.0, HEALTHY), (0.11, HEALTHY), (math.nan, HEALTHY), (0.09, "complete collapse")):
        assert examine(rows(FALLING, z_std=std)).verdict == verdict


def test_an_encoder_that_loses_dimensions_is_named() -> None:
    readings = rows(FALLING, h_effective_rank=100.0)
    assert examine(readings).verdict == HEALTHY
    readings[-1]["h_effective_rank"] = 40.0
    assert examine(readings).verdict == "dimensional collapse"


def test_usual_learning_rates_are_those_of_the_configurations(compose: Compose) -> None:
    recipes = [compose(f"optimizer={option}")["optimizer"] for option in options("optimizer")]
    assert {r["optimizer"]["_target_"].rpartition(".")[2]: r["lr_per_256"] for r in recipes} == USUAL_LR


# The command, and the end of a run.


def test_the_command_writes_its_diagnosis(finished: Path, tmp_path: Path, command: Command) -> None:
    command(f"run={finished}", "out=diagnosis.json", name="doctor")
    written = json.loads((tmp_path / "diagnosis.json").read_text())
    assert written == json.loads((finished / "summary.json").read_text())["doctor"]
    assert written["verdict"] == TOO_EARLY


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "which run"),
        (["run=nowhere"], "there is no nowhere/metrics.csv"),
        (["run=broken"], "config.yaml is damaged"),
        (["run=list"], "config.yaml is damaged: it holds no configuration"),
        (["run=alone", "out=nowhere/x.json"], "cannot write nowhere/x.json"),
    ],
)
def test_what_cannot_be_examined_is_said(tmp_path: Path, command: Command, words: list[str], said: str) -> None:
    for name, config in (("broken", "a: [1"), ("list", "[1, 2]"), ("alone", None)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.csv").write_text("step,epoch,loss,chance_loss\n60,1,2.0,6.9\n")
        if config:
            (tmp_path / name / "config.yaml").write_text(config)
    assert said in command(*words, name="doctor").error


def test_an_error_of_the_doctors_own_costs_no_run(
    compose: Compose, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*arguments: Any) -> Diagnosis:
        raise ZeroDivisionError("of mine")

    monkeypatch.setattr(doctor, "examine", fail)
    summary = pretrain.run(compose(*tiny, "epochs=1", "loader.max_batches=1", "knn=null"), tmp_path)
    assert (summary["status"], summary["doctor"]) == ("finished", None)
    assert "ZeroDivisionError: of mine" in caplog.text
