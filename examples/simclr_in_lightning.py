"""SimCLR with torchvision's ResNet-18 and a DataLoader of your own, in a plain Trainer of Lightning's."""

from functools import partial

import pytorch_lightning as pl
import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import twoview
from twoview.augment.image.geometric import HorizontalFlip, RandomResizedCrop
from twoview.augment.image.photometric import ColorJitter
from twoview.data.image.pixels import Pixels
from twoview.model.part.head import Projector
from twoview.model.simclr import SimCLR
from twoview.optim.recipe import Recipe


def train(network: nn.Module, epochs: int = 2) -> SimCLR:
    images = torch.randint(256, (128, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(images), batch_size=32, shuffle=True, drop_last=True)

    model = SimCLR(
        encoder=twoview.as_encoder(network, shape=(3, 32, 32)),  # takes the classifier away, finds the width of h
        optimizer=Recipe(partial(torch.optim.SGD, momentum=0.9), lr_per_256=0.06, weight_decay=5e-4),
        projector=partial(Projector, hidden_dim=64, out_dim=32),
        temperature=0.2,
    )
    model.views = twoview.TwoViews(
        {
            "crop": RandomResizedCrop(scale=(0.2, 1.0)),
            "flip": HorizontalFlip(),
            "jitter": ColorJitter(p=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
        },
        Pixels(mean=(0.5, 0.5, 0.5), std=(0.29, 0.29, 0.29)),
    )
    trainer = pl.Trainer(
        max_epochs=epochs,
        accelerator="cpu",  # "auto" takes a GPU, and views are made there
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(model, loader)
    return model


if __name__ == "__main__":
    model = train(torchvision.models.resnet18())  # or timm.create_model("resnet18"), or a network of your own
    print({name: round(float(value), 3) for name, value in model.trainer.callback_metrics.items()})
    h = model.encoder.eval()(torch.rand(4, 3, 32, 32))  # (4, 512)
