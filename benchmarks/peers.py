"""The peers that whole loops are measured beside: how each makes its views, its step and its loop.

`lightly` is lightly's own blocks, put together as its CIFAR-10 benchmark does (docs of lightly, "Benchmarks"). The
other two are written here from the published recipes: `solo-learn-like` from github.com/vturrisi/solo-learn (commit
9187ea3, scripts/pretrain/cifar/simclr.yaml), without its online classifier and with padding 1 in the stem, so that all
have the same encoder; `dkobak-like` from the README of github.com/dkobak/simclr-cifar10 (commit 44b2500). All three
make views of PIL images one by one in the workers of a DataLoader. Learning rates follow half a cosine over the run,
however short.
"""

import math
import random
from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from own import autocast
from PIL import Image, ImageFilter
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from twoview.data.set import SampleSet
from twoview.encoder.resnet import resnet18, resnet50
from twoview.encoder.small import Small
from twoview.optim.lars import LARS

ENCODERS: dict[str, Callable[[], nn.Module]] = {"resnet18": resnet18, "resnet50": resnet50, "small": Small}

Views = Callable[[Image.Image], Any]


class Peer(nn.Module):
    """An encoder and a head; views -> loss. What it has by default stands in the attributes."""

    name: str
    precision = "32-true"
    channels_last = False
    batch = 512
    mean: tuple[float, ...] = (0.0, 0.0, 0.0)  # what its views are normalised with
    std: tuple[float, ...] = (1.0, 1.0, 1.0)

    def __init__(self, network: str) -> None:
        super().__init__()
        self.encoder = ENCODERS[network]()
        self.head = self.make_head(int(self.encoder.dim))  # type: ignore[arg-type]

    def make_head(self, dim: int) -> nn.Module:
        raise NotImplementedError

    def transform(self, side: int) -> Views:
        """What makes two views of a picture."""
        raise NotImplementedError

    def loss(self, v1: Tensor, v2: Tensor) -> Tensor:
        raise NotImplementedError

    def make_optimizer(self, batch: int) -> torch.optim.Optimizer:
        raise NotImplementedError

    def rate(self, share: float) -> float:
        """Factor of the learning rate once `share` of the run has passed."""
        return 0.5 * (1 + math.cos(math.pi * min(1.0, share)))

    def fit(
        self, batches: "DataLoader[Any]", batch: int, chosen: str, device: str, progress: Callable[[], float]
    ) -> None:
        """Trains until `progress`, asked after every step, says that the whole of the run (1) has passed."""
        callback, loop = _Until(progress), _Loop(self, batch)
        pl.Trainer(
            max_epochs=-1,
            accelerator="gpu" if device == "cuda" else "cpu",
            devices=1,
            precision=chosen,  # type: ignore[arg-type]
            callbacks=[callback],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ).fit(loop, batches)


class Lightly(Peer):
    """lightly's CIFAR-10 benchmark: its ResNet-18, projection head, NT-Xent and transform, by Lightning, in float32."""

    name = "lightly"
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # its default
    batch = 128  # its benchmark has runs with 128 and with 512

    def __init__(self, network: str) -> None:
        from lightly.loss import NTXentLoss

        super().__init__(network)
        if network == "resnet18":
            self.encoder = _lightly_resnet18()
        self.criterion = NTXentLoss()

    def make_head(self, dim: int) -> nn.Module:
        from lightly.models.modules.heads import SimCLRProjectionHead

        return SimCLRProjectionHead(dim, dim, 128)

    def transform(self, side: int) -> Views:
        from lightly.transforms import SimCLRTransform

        return SimCLRTransform(input_size=side, cj_strength=0.5, gaussian_blur=0.0)

    def loss(self, v1: Tensor, v2: Tensor) -> Tensor:
        z1, z2 = (self.head(self.encoder(v)) for v in (v1, v2))
        loss: Tensor = self.criterion(z1, z2)
        return loss

    def make_optimizer(self, batch: int) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.06 * batch / 128, momentum=0.9, weight_decay=5e-4)


class SoloLike(Peer):
    """solo-learn's SimCLR for CIFAR: wide head, strong distortion with blur, LARS, by Lightning, in half precision and
    channels_last. Lightning computes that in bfloat16 on a CPU.
    """

    name = "solo-learn-like"
    precision, channels_last, batch = "16-mixed", True, 256
    mean, std = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)

    def make_head(self, dim: int) -> nn.Module:
        return nn.Sequential(nn.Linear(dim, 2048), nn.ReLU(), nn.Linear(2048, 256))

    def transform(self, side: int) -> Views:
        distort = [
            v2.RandomApply([v2.ColorJitter(0.8, 0.8, 0.8, 0.2)], p=0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([_Blur()], p=0.5),
            v2.RandomHorizontalFlip(),
            *_to_tensor(),
            v2.Normalize(self.mean, self.std),
        ]
        return _Twice([v2.RandomResizedCrop(side, (0.08, 1.0), interpolation=v2.InterpolationMode.BICUBIC), *distort])

    def loss(self, v1: Tensor, v2: Tensor) -> Tensor:
        return nt_xent(*(self.head(self.encoder(v)) for v in (v1, v2)), 0.2)

    def make_optimizer(self, batch: int) -> torch.optim.Optimizer:
        weights = [p for p in self.parameters() if p.ndim > 1]
        others = [p for p in self.parameters() if p.ndim <= 1]
        groups = [{"params": weights, "weight_decay": 1e-4}, {"params": others, "adapt": False}]
        return LARS(groups, lr=0.4 * batch / 256, eta=0.02)

    def rate(self, share: float) -> float:
        return min(1.0, max(share, 1e-4) / 0.01) * super().rate(share)  # warm-up for 10 epochs of 1000


class DkobakLike(Peer):
    """dkobak's loop, which is a plain one: gray 0.1, crops of at least 0.2, SGD, float32, no normalisation."""

    name = "dkobak-like"

    def make_head(self, dim: int) -> nn.Module:
        return nn.Sequential(nn.Linear(dim, 1024), nn.ReLU(), nn.Linear(1024, 128))

    def transform(self, side: int) -> Views:
        jitter = v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8)
        crop = v2.RandomResizedCrop(side, scale=(0.2, 1.0))
        return _Twice([crop, v2.RandomHorizontalFlip(), jitter, v2.RandomGrayscale(0.1), *_to_tensor()])

    def loss(self, v1: Tensor, v2: Tensor) -> Tensor:
        z1, z2 = self.head(self.encoder(torch.cat([v1, v2]))).chunk(2)
        return nt_xent(z1, z2, 0.5)

    def make_optimizer(self, batch: int) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.03 * batch / 256, momentum=0.9, weight_decay=5e-4)

    def fit(
        self, batches: "DataLoader[Any]", batch: int, chosen: str, device: str, progress: Callable[[], float]
    ) -> None:
        self.to(device).train()
        optimizer = self.make_optimizer(batch)
        peak = optimizer.param_groups[0]["lr"]
        while True:
            for views in batches:
                with autocast(device, chosen):
                    loss = self.loss(*(view.to(device, non_blocking=True) for view in views))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                share = progress()
                if share >= 1:
                    return
                optimizer.param_groups[0]["lr"] = peak * self.rate(share)


PEERS: dict[str, type[Peer]] = {peer.name: peer for peer in (Lightly, SoloLike, DkobakLike)}


def nt_xent(z1: Tensor, z2: Tensor, temperature: float) -> Tensor:
    """SimCLR's loss in its plainest form: z1, z2 (B, D)."""
    z = F.normalize(torch.cat([z1, z2]).float(), dim=1)  # (2B, D)
    similarity = (z @ z.T / temperature).fill_diagonal_(float("-inf"))  # (2B, 2B)
    return F.cross_entropy(similarity, torch.arange(len(z), device=z.device).roll(len(z1)))


class Pictures(Dataset[Any]):
    """The images of a set as PIL images, as torchvision's CIFAR10 hands them out, each turned into two views."""

    def __init__(self, images: SampleSet, transform: Views) -> None:
        self.pixels = images.samples.permute(0, 2, 3, 1).contiguous().numpy()  # type: ignore[union-attr]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> Any:
        first, second = self.transform(Image.fromarray(self.pixels[i]))
        return first, second


def loader(peer: Peer, images: SampleSet, batch: int, workers: int, device: str) -> "DataLoader[Any]":
    pictures = Pictures(images, peer.transform(images.shape[-1]))
    return DataLoader(
        pictures, batch, shuffle=True, drop_last=True, num_workers=workers, pin_memory=device == "cuda" and workers > 0
    )


class _Loop(pl.LightningModule):
    def __init__(self, peer: Peer, batch: int) -> None:
        super().__init__()
        self.peer, self.batch = peer, batch

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.peer.loss(batch[0], batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.peer.make_optimizer(self.batch)


class _Until(pl.Callback):
    def __init__(self, progress: Callable[[], float]) -> None:
        self.progress = progress
        self.peaks: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        groups = trainer.optimizers[0].param_groups
        self.peaks = self.peaks or [group["lr"] for group in groups]
        share = self.progress()
        trainer.should_stop = share >= 1
        for group, peak in zip(groups, self.peaks, strict=True):
            group["lr"] = peak * pl_module.peer.rate(share)


class _Twice:
    def __init__(self, steps: list[nn.Module]) -> None:
        self.one = v2.Compose(steps)

    def __call__(self, picture: Image.Image) -> tuple[Tensor, Tensor]:
        return self.one(picture), self.one(picture)


class _Blur(nn.Module):
    """PIL's blur with a radius drawn from 0.1 to 2."""

    def forward(self, picture: Image.Image) -> Image.Image:
        return picture.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def _to_tensor() -> list[nn.Module]:
    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]


def _lightly_resnet18() -> nn.Module:
    """lightly's ResNet-18 without its classifier, as its benchmark cuts it."""
    from lightly.models import ResNetGenerator

    parts = list(ResNetGenerator("resnet-18").children())[:-1]
    encoder = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    encoder.dim = 512  # type: ignore[assignment]
    return encoder
