"""No step makes the host wait for a GPU: with one at hand, and played through on tensors without content where there
is none.
"""

import copy
import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from twoview.augment.image.geometric import HorizontalFlip, RandomResizedCrop
from twoview.augment.image.photometric import ColorJitter, Grayscale
from twoview.augment.views import TwoViews
from twoview.data.batches import Batch
from twoview.data.image.pixels import Pixels
from twoview.encoder.small import Small
from twoview.model import byol, moco, mocov3
from twoview.model.base import Method
from twoview.model.byol import BYOL
from twoview.model.moco import MoCo
from twoview.model.mocov3 import MoCoV3
from twoview.model.part.head import Projector
from twoview.model.simclr import SimCLR
from twoview.optim.lars import LARS
from twoview.optim.muon import Muon
from twoview.optim.recipe import Recipe
from twoview.train import assemble, pretrain

Compose = Callable[..., dict[str, Any]]
HEAD = functools.partial(Projector, hidden_dim=8, norm="batch")


class SetSyncDebugMode(pl.Callback):
    """From the second step to the last, whatever waits is an error."""

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        torch.cuda.set_sync_debug_mode("default" if trainer.is_last_batch else "error")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("model", ["simclr", "moco", "mocov3", "byol"])
@pytest.mark.parametrize("optimizer", ["sgd", "lars", "adamw", "muon"])
def test_no_step_of_a_run_waits(
    model: str, optimizer: str, compose: Compose, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assemble, "ProgressBar", lambda meter: SetSyncDebugMode())
    words = [*tiny, f"model={model}", f"optimizer={optimizer}", "optimizer.warmup_epochs=0", "trainer=gpu", "epochs=1"]
    pretrain.run(compose(*words, "data.n_train=1024", "log_every_steps=100"), tmp_path)


class NoTransfers(TorchDispatchMode):
    """Copies from one device to another are errors: the host waits for them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        copies = func.overloadpacket in (torch.ops.aten._to_copy, torch.ops.aten.copy_)
        devices = {x.device for x in (out, *args) if isinstance(x, Tensor)} if copies else set()
        assert len(devices) < 2, f"{func} between {devices}"
        return out


@contextmanager
def on_a_gpu_of_paper() -> Iterator[None]:
    """New tensors lie on a GPU and hold no numbers: whoever asks for one gets an error, as for what waits otherwise."""
    with FakeTensorMode(), torch.device("cuda"):
        yield


def built(method: type[Method], optimizer: Callable[..., Any]) -> Method:
    options: dict[str, Any] = {"predictor": HEAD} if method in (MoCoV3, BYOL) else {}
    return method(Small([4, 4, 8, 8]), Recipe(optimizer, 0.1), projector=HEAD, **options)  # type: ignore[call-arg]


@pytest.mark.skipif(
    torch.__version__ < "2.10" and not torch.cuda.is_available(),
    reason="torch 2.9 asks the driver even for tensors that hold no numbers",
)
@pytest.mark.filterwarnings("ignore:CUDA is not available")
@pytest.mark.parametrize(
    ("method", "optimizer"), [(SimCLR, LARS), (SimCLR, Muon), (MoCo, Muon), (MoCoV3, LARS), (BYOL, LARS)]
)
def test_no_step_asks_for_a_number(
    method: type[Method], optimizer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def another(network: nn.Module) -> nn.Module:  # tensors without content cannot be copied as networks are
        fresh = Small([4, 4, 8, 8]) if isinstance(network, Small) else HEAD(in_dim=20)
        return fresh.requires_grad_(False)

    monkeypatch.setattr(copy, "deepcopy", lambda module: module)
    for module in (byol, moco, mocov3):
        monkeypatch.setattr(module, "frozen_copy", another)
    ops = {
        "crop": RandomResizedCrop(),
        "flip": HorizontalFlip(),
        "jitter": ColorJitter(strength=0.5),
        "gray": Grayscale(),
    }
    with on_a_gpu_of_paper():
        views = TwoViews(ops, Pixels((0.5,) * 3, (0.2,) * 3), compile=False)
        model = built(method, optimizer)
        stepper = model.recipe.build(model, 16, steps=10, epochs=1)[0]
        images, index = torch.zeros(64, 3, 16, 16, dtype=torch.uint8), torch.arange(16)
        views(images[index], index, epoch=0)  # looks at the first batch, once
        with NoTransfers():
            for _ in range(2):
                batch = Batch(views(images[index], index, epoch=0)[:2], index, index)
                model.training_step(batch, 0)
                for weight in model.parameters():  # the way back needs a real device, and is torch's own
                    weight.grad = torch.zeros_like(weight) if weight.requires_grad else None
                stepper.step()
                model.after_step()
        with pytest.raises(DataDependentOutputException):
            images.sum().item()
        with pytest.raises(AssertionError, match="between"), NoTransfers():
            torch.arange(16, device="cpu").to("cuda")
