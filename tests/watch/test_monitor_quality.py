"""The shape of the representation, read while it is trained, and nothing else changed by that."""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from twoview.augment.image.mix import MixUp
from twoview.augment.image.photometric import ColorJitter
from twoview.augment.views import TwoViews
from twoview.data.batches import TwoViewDataModule
from twoview.data.image.shapes import shapes
from twoview.errors import UserError
from twoview.evaluate.describe.quality import (
    alignment,
    contrastive_accuracy,
    effective_rank,
    feature_std,
    rankme,
    uniformity,
)
from twoview.train import pretrain
from twoview.train.config import check
from twoview.watch.board import place
from twoview.watch.meter import QUALITIES, Meter
from twoview.watch.quality import QualityMonitor

Compose = Callable[..., dict[str, Any]]
NAMES = [f"{space}_{name}" for space in "hz" for name in QUALITIES]


class Net(nn.Module):
    """An encoder that would show it if it were trained, or its modes not handed back."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192), nn.Dropout(0.5), nn.Linear(192, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x)


class FakeMeter:
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def write(self, trainer: Any, seldom: bool = False, **values: float) -> None:
        self.rows.append(values)

    def pause(self) -> None:
        self.rows.append({})


def stage(rank_zero: bool = True, mix: bool = False) -> tuple[Any, Any, list[str]]:
    train = shapes("train", n_train=40, size=8)
    assert train is not None
    views = TwoViews({"jitter": ColorJitter(p=1.0)}, train.preprocess, mix=MixUp() if mix else None)
    data = TwoViewDataModule(train, views, batch_size=20)
    barriers: list[str] = []
    strategy = SimpleNamespace(barrier=barriers.append)
    trainer = SimpleNamespace(
        is_global_zero=rank_zero, datamodule=data, current_epoch=0, max_epochs=3, global_step=2, loggers=[],
        strategy=strategy,
    )  # fmt: skip
    torch.manual_seed(0)
    model = SimpleNamespace(encoder=Net(), projector=nn.Linear(6, 3), device=torch.device("cpu"))
    model.heads = lambda: {"projector": model.projector}
    return trainer, model, barriers


def test_reads_what_the_functions_give_and_touches_nothing() -> None:
    trainer, model, barriers = stage()
    meter: Any = FakeMeter()
    monitor = QualityMonitor(meter, images=16)
    model.encoder.net[2].eval()
    networks = nn.ModuleList([model.encoder, model.projector])
    before = {name: value.clone() for name, value in networks.state_dict().items()}
    modes, state = [m.training for m in networks.modules()], torch.get_rng_state()
    monitor.evaluate(trainer, model)
    assert [m.training for m in networks.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in networks.state_dict().items())
    assert all(p.grad is None for p in networks.parameters())
    assert barriers == ["quality"]

    (values,) = meter.rows
    assert list(values) == NAMES
    features = monitor.features(trainer, model)
    assert not any(x.requires_grad for pair in features.values() for x in pair)
    for space, (x1, x2) in features.items():
        dim = {"h": 6, "z": 3}[space]
        assert x1.shape == x2.shape == (16, dim)
        assert values[f"{space}_alignment"] == alignment(x1, x2)
        assert values[f"{space}_uniformity"] == uniformity(x1)
        assert values[f"{space}_effective_rank"] == effective_rank(x1)
        assert values[f"{space}_rankme"] == rankme(x1)
        assert values[f"{space}_contrastive_accuracy"] == contrastive_accuracy(x1, x2)
        assert values[f"{space}_std"] == pytest.approx(feature_std(x1) * math.sqrt(dim))


def test_views_are_those_of_the_epoch_of_the_same_images() -> None:
    trainer, model, _ = stage()
    model.encoder, model.projector = nn.Flatten(), nn.Identity()
    meter: Any = FakeMeter()
    monitor = QualityMonitor(meter, images=16)
    v1, v2 = monitor.features(trainer, model)["h"]
    train, views = trainer.datamodule.train, trainer.datamodule.views
    every1, every2 = (v.flatten(1) for v in views(train.samples, torch.arange(40), epoch=0))
    rows = torch.cdist(v1, every1).argmin(1)
    assert len(rows.unique()) == 16
    torch.testing.assert_close(v1, every1[rows])
    torch.testing.assert_close(v2, every2[rows])
    trainer.current_epoch = 1
    again = monitor.features(trainer, model)["h"][0]
    torch.testing.assert_close(again, views(train.samples, torch.arange(40), epoch=1)[0].flatten(1)[rows])
    assert not torch.equal(again, v1)
    mixing, model2, _ = stage(mix=True)
    model2.encoder, model2.projector = nn.Flatten(), nn.Identity()
    assert torch.equal(monitor.features(mixing, model2)["h"][0], v1)  # images, not mixtures


def test_a_method_without_heads_has_no_z() -> None:
    trainer, model, _ = stage()
    model.heads = dict
    meter: Any = FakeMeter()
    QualityMonitor(meter, images=16).evaluate(trainer, model)
    assert list(meter.rows[0]) == [name for name in NAMES if name.startswith("h_")]


def test_comes_every_few_epochs_and_after_the_last() -> None:
    trainer, model, _ = stage()
    seen = []
    for epoch in range(7):
        meter: Any = FakeMeter()
        trainer.current_epoch, trainer.max_epochs = epoch, 7
        QualityMonitor(meter, every_epochs=3, images=4).on_train_epoch_end(trainer, model)
        seen += [epoch + 1] * (len(meter.rows) == 2)  # a row, and the clock stopped for it
    assert seen == [3, 6, 7]


def test_other_ranks_only_wait() -> None:
    trainer, _, barriers = stage(rank_zero=False)
    meter: Any = FakeMeter()
    QualityMonitor(meter).evaluate(trainer, None)
    assert (meter.rows, barriers) == ([], ["quality"])


def test_collapse_is_seen() -> None:
    trainer, model, _ = stage()
    nn.init.zeros_(model.projector.weight)
    meter: Any = FakeMeter()
    QualityMonitor(meter, images=1000).evaluate(trainer, model)  # more than there are: all of them
    (values,) = meter.rows
    assert values["z_std"] == 0
    assert values["z_uniformity"] == pytest.approx(0, abs=1e-5)
    assert values["z_effective_rank"] == pytest.approx(1)
    assert values["h_std"] > 0.3


@pytest.mark.parametrize("words", [{"every_epochs": 0}, {"images": 1}])
def test_refuses_what_makes_no_sense(words: dict[str, int]) -> None:
    with pytest.raises(UserError, match="quality needs"):
        QualityMonitor(Meter(), **words)


def read(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_has_its_curves_and_trains_as_one_without(compose: Compose, tiny: list[str], tmp_path: Path) -> None:
    with_it, without = tmp_path / "with", tmp_path / "without"
    words = [*tiny, "knn=null", "augment.compile=false"]
    pretrain.run(compose(*words, "quality.every_epochs=1", "quality.images=64"), with_it)
    pretrain.run(compose(*words, "quality=null"), without)
    table = [row for row in read(with_it) if row["h_alignment"]]
    assert [row["step"] for row in table] == ["4", "8"]
    for row in table:
        assert all(math.isfinite(float(row[name])) for name in NAMES)
        assert 0 < float(row["z_alignment"]) < 4
        assert 1 <= float(row["z_effective_rank"]) <= 64
        assert not row["loss"]
    a, b = (torch.load(f / "last.ckpt", weights_only=True) for f in (with_it, without))
    assert all(torch.equal(value, b["state_dict"][name]) for name, value in a["state_dict"].items())
    losses = [[row["loss"] for row in read(folder) if row["loss"]] for folder in (with_it, without)]
    assert losses[0] == losses[1]
    assert not any("h_alignment" in row for row in read(without))

    events = EventAccumulator(str(with_it)).Reload()
    assert {place(name) for name in NAMES} <= set(events.Tags()["scalars"])
    pairs = {f"representation/{s}/{n}" for s in "hz" for n in ("positives", "negatives")}
    assert pairs == set(events.Tags()["histograms"])
    negatives = events.Histograms("representation/z/negatives")[0].histogram_value
    assert (negatives.min, negatives.max, negatives.num) == (-1, 1, 64 * 63)


def test_it_is_switched_off_by_null_and_by_nothing_else(compose: Compose, tiny: list[str]) -> None:
    check(compose(*tiny, "quality=null"))
    config = compose(*tiny)
    del config["quality"]  # a checkpoint from before
    check(config)
    with pytest.raises(UserError, match=r"quality\.every_epochs=1, or quality=null"):
        check(config | {"quality": 5})
