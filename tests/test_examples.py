"""Every example runs as it stands, and its parts keep what the page on Python promises."""

import contextlib
import copy
import math
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from conftest import ROOT
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import twoview
from twoview.augment import TwoViews
from twoview.augment.image.geometric import HorizontalFlip, RandomResizedCrop
from twoview.augment.image.photometric import ColorJitter
from twoview.augment.operation import BatchAugment
from twoview.data.batches import Batch
from twoview.data.image.pixels import Pixels
from twoview.errors import UserError
from twoview.evaluate.classify.linear import STRENGTHS
from twoview.model.base import Outcome

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PAGE = (ROOT / "docs" / "python.md").read_text()
MEAN = Pixels((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
IMAGES = torch.randint(256, (16, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each example leaves, by its name: run once, in an empty folder that stays empty."""
    folder = tmp_path_factory.mktemp("examples")
    with contextlib.chdir(folder) if hasattr(contextlib, "chdir") else contextlib.nullcontext():
        found = {path.stem: runpy.run_path(str(path), run_name="__main__") for path in EXAMPLES}
    assert not list(folder.iterdir())
    return found


def test_the_page_names_every_example() -> None:
    assert {path.name for path in EXAMPLES} == {
        Path(word).name for word in PAGE.split("`") if "examples/" in word and ".py" in word
    }


def test_the_code_of_the_page_runs() -> None:
    namespace: dict[str, Any] = {}
    exec(PAGE.split("```python\n")[1].split("```")[0], namespace)
    assert namespace["v1"].shape == namespace["v2"].shape == namespace["flipped"].shape == (8, 3, 32, 32)


def test_a_loop_of_ones_own_learns(ran: dict[str, dict[str, Any]]) -> None:
    losses, changed = ran["views_in_your_loop"]["losses"], ran["views_in_your_loop"]["changed"]
    assert len(losses) == 8
    assert sum(losses[-3:]) / 3 < losses[0] - 0.1
    assert changed.dtype == torch.float32
    assert 0 <= changed.min() < changed.max() <= 1


def test_simclr_fits_in_a_plain_trainer(ran: dict[str, dict[str, Any]]) -> None:
    model = ran["simclr_in_lightning"]["model"]
    assert model.global_step == 8
    assert ran["simclr_in_lightning"]["h"].shape == (4, 512)
    keys = set(torchvision.models.resnet18().state_dict()) - {"fc.weight", "fc.bias"}
    assert set(model.encoder.state_dict()) == keys  # they load elsewhere
    assert model.trainer.callback_metrics["chance_loss"] == pytest.approx(math.log(63))


def test_features_and_scores_of_the_examples(ran: dict[str, dict[str, Any]]) -> None:
    found = ran["features_of_a_dataset"]
    torch.testing.assert_close(found["h"], found["same"], atol=1e-5, rtol=1e-5)
    assert ran["knn_and_probe"]["knn"] > 0.8
    assert ran["knn_and_probe"]["result"].top1 > 0.8
    assert ran["loss_alone"]["z1"].grad is not None


def same(a: tuple[torch.Tensor, ...], b: tuple[torch.Tensor, ...]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def views() -> TwoViews:
    return TwoViews({"crop": RandomResizedCrop(), "flip": HorizontalFlip()}, MEAN)


def test_views_without_numbers_are_new_in_each_call_and_follow_the_seed_of_torch() -> None:
    make = views()
    torch.manual_seed(0)
    first, second = make(IMAGES), make(IMAGES)
    assert not same(first, second)
    assert not torch.equal(*first)
    torch.manual_seed(0)
    assert same(first, make(IMAGES))
    assert same(
        make(IMAGES, torch.arange(16), 3), views()(IMAGES, torch.arange(16), 3)
    )  # with numbers: always the same


@pytest.mark.parametrize("numbers", [{"epoch": 0}, {"index": torch.arange(16)}])
def test_views_take_both_numbers_or_neither(numbers: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="both index and epoch, or neither"):
        views()(IMAGES, **numbers)


class Viewed(Dataset):
    """Views made by a loader's workers, of one image."""

    def __init__(self) -> None:
        self.make = views()

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.make(IMAGES[:1])[0][0]


def test_workers_of_a_loader_make_other_views_of_an_image_in_each_epoch() -> None:
    torch.manual_seed(0)
    loader = DataLoader(Viewed(), num_workers=2)
    epochs = [torch.cat(list(loader)).flatten(1) for _ in range(2)]
    assert len(torch.cat(epochs).unique(dim=0)) == 16


@pytest.mark.parametrize("op", [ColorJitter(brightness=0.4), HorizontalFlip(), RandomResizedCrop(size=8)])
def test_an_operation_alone_takes_bytes_and_floats(op: BatchAugment) -> None:
    torch.manual_seed(1)
    of_bytes = op(IMAGES)
    again = op(IMAGES)
    torch.manual_seed(1)
    assert torch.equal(of_bytes, op(IMAGES / 255))
    assert not torch.equal(of_bytes, again)
    twins = op(IMAGES[:1].expand(16, -1, -1, -1))
    assert len(twins.flatten(1).unique(dim=0)) > 1  # rows have parameters of their own


@pytest.mark.parametrize(
    ("name", "width"),
    [("resnet50", 2048), ("mobilenet_v3_small", 1024), ("convnext_tiny", 768), ("vgg11", 4096), ("vit_b_32", 768)],
)
def test_networks_of_torchvision_are_encoders(name: str, width: int) -> None:
    side = 224 if name.startswith("vit") else 64
    with torch.device("meta"):
        network = getattr(torchvision.models, name)()
        keys = set(network.state_dict())
        encoder = twoview.as_encoder(network, (3, side, side))
        assert encoder.dim == encoder.eval()(torch.zeros(2, 3, side, side)).shape[1] == width
    gone = keys - set(encoder.state_dict())
    assert gone
    assert all(key.split(".")[0] in ("fc", "classifier", "heads") for key in gone)


def test_networks_of_timm_are_encoders() -> None:
    timm = pytest.importorskip("timm", reason="the extra `timm` is not installed")
    encoder = twoview.as_encoder(timm.create_model("mobilenetv3_small_050"), (3, 32, 32))
    assert encoder.dim == encoder.eval()(torch.zeros(1, 3, 32, 32)).shape[1] == 1024  # its `num_features` is 288


def test_a_network_of_ones_own_stays_as_it_is() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    before = copy.deepcopy(network.state_dict())
    assert twoview.as_encoder(network, (1, 8, 8)).dim == 4
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    with pytest.raises(UserError, match=r"shape \(1, 4, 6, 6\)"):
        twoview.as_encoder(nn.Sequential(nn.Conv2d(1, 4, 3)), (1, 8, 8))


def test_samples_of_a_plain_loader_are_told_apart_in_a_queue() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    example = runpy.run_path(str(ROOT / "examples" / "simclr_in_lightning.py"))
    model = example["SimCLR"](
        twoview.as_encoder(network, (3, 16, 16)),
        example["Recipe"](torch.optim.SGD, lr_per_256=0.1),
        example["partial"](example["Projector"], out_dim=4),
    )
    model.views = views()
    numbers = []

    def step(batch: Batch) -> Outcome:
        numbers.append(batch)
        return Outcome(torch.zeros(()), {})

    model.step = step
    for batch in DataLoader(TensorDataset(IMAGES, torch.arange(16) % 3), batch_size=8):
        model.training_step(batch, 0)
    model.training_step(IMAGES[:8], 0)
    assert torch.cat([batch.index for batch in numbers]).tolist() == list(range(24))
    assert torch.cat([batch.label for batch in numbers]).tolist() == [*(i % 3 for i in range(16)), *[-1] * 8]


def test_arrays_score_as_tensors_do() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(60, dtype=np.int32) % 3
    features = rng.normal(size=(60, 4)).astype(np.float32) + labels[:, None]
    arrays = (features[:40], labels[:40], features[40:], labels[40:])
    tensors = tuple(torch.as_tensor(part) for part in arrays)
    assert twoview.knn_accuracy(*arrays, k=5) == twoview.knn_accuracy(*tensors, 5, 0.1, 3)
    found, expected = twoview.probe(*arrays), twoview.probe(*tensors, 3, STRENGTHS, 0.1, 0)
    assert (found.top1, found.l2) == (expected.top1, expected.l2)


def test_the_probe_of_the_library_is_that_of_the_command(compose: Any) -> None:
    config = compose(name="probe")
    assert (tuple(config["strengths"]), config["holdout"], config["seed"]) == (STRENGTHS, 0.1, 0)


def test_loaded_encoders_take_bytes_and_floats(finished: Path) -> None:
    encoder = twoview.load_encoder(finished)
    torch.testing.assert_close(encoder(IMAGES), encoder(IMAGES / 255), atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="give uint8 pixels, or floats"):
        encoder(IMAGES.int())
