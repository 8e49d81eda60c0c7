"""What a run does on an Apple GPU, tried without one: which device is taken, and where float64 is computed."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from twoview.augment.image.geometric import RandomResizedCrop
from twoview.augment.views import TwoViews
from twoview.data import batches
from twoview.data.batches import TwoViewDataModule
from twoview.data.image.shapes import shapes
from twoview.errors import UserError
from twoview.rng import exact
from twoview.train import pretrain
from twoview.train.trainer import found_accelerator, make_trainer


@pytest.mark.parametrize(
    ("cuda", "mps", "asked", "found"),
    [
        (True, False, "auto", "gpu"),
        (True, True, "auto", "gpu"),
        (False, True, "auto", "mps"),
        (False, True, "gpu", "mps"),
        (False, True, "cpu", "cpu"),
        (False, False, "auto", "cpu"),
        (False, True, "cuda", None),
        (False, False, "gpu", None),
        (False, False, "mps", None),
    ],
)
def test_auto_takes_the_gpu_that_torch_finds(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, asked: str, found: str | None
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    if found is None:
        with pytest.raises(UserError, match=rf"trainer.accelerator={asked}, but torch finds no .*GPU"):
            found_accelerator(asked)
    else:
        assert found_accelerator(asked) == found


def test_float64_is_refused_on_an_apple_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    checkpoints: Any = SimpleNamespace(max_seconds=None)
    with pytest.raises(UserError, match="Apple's GPUs have no float64"):
        make_trainer(str(tmp_path), 1, [], checkpoints, None, accelerator="mps", precision="64-true")


def test_views_for_a_device_without_float64_are_made_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """`meta`, which computes nothing, stands for the GPU."""
    assert exact(torch.device("mps")) == torch.device("cpu")
    monkeypatch.setattr(batches, "exact", lambda device: torch.device("cpu"))
    gpu, train = torch.device("meta"), shapes("train", n_train=8, size=16)
    data = TwoViewDataModule(train, TwoViews({"crop": RandomResizedCrop(size=8)}, train.preprocess), batch_size=4)
    trainer: Any = SimpleNamespace(
        world_size=1,
        global_rank=0,
        global_step=0,
        current_epoch=0,
        max_epochs=1,
        strategy=SimpleNamespace(root_device=gpu),
    )
    data.trainer = trainer
    batch = next(iter(data.train_dataloader()))
    moved = data.transfer_batch_to_device(batch, gpu, 0)
    assert {part.device.type for part in moved} == {"cpu"}
    made = data.on_after_batch_transfer(moved, 0)
    assert {part.device for part in (*made.views, made.index, made.label)} == {gpu}
    assert [view.shape for view in made.views] == [(4, 3, 8, 8)] * 2


class NoFloat64(TorchDispatchMode):
    """An operation that gives or takes float64 raises, as it does on such a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in (*args, result):
            assert not isinstance(x, torch.Tensor) or x.dtype != torch.float64, f"{func} in float64"
        return result


@pytest.mark.parametrize("model", ["simclr", "moco", "mocov3"])
@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adamw", "muon"])
def test_no_training_step_computes_in_float64(
    monkeypatch: pytest.MonkeyPatch,
    compose: Callable[..., dict[str, Any]],
    tiny: list[str],
    tmp_path: Path,
    model: str,
    optimizer: str,
) -> None:
    step, steps = pl.LightningModule.optimizer_step, []

    def noting(self: Any, *args: Any, **kwargs: Any) -> Any:
        steps.append(self)
        with NoFloat64():
            return step(self, *args, **kwargs)

    monkeypatch.setattr(pl.LightningModule, "optimizer_step", noting)
    words = (f"model={model}", f"optimizer={optimizer}", "optimizer.warmup_epochs=0", "knn=null", "quality=null")
    pretrain.run(compose(*tiny, *words, "epochs=1", "loader.max_batches=2"), tmp_path)
    assert len(steps) == 2
