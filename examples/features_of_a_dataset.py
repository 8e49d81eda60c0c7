"""Features of any Dataset: tensors of bytes or floats, or Pillow's images, with labels or without."""

import torch
import torchvision
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

import twoview
from twoview.data.image.pixels import Pixels
from twoview.encoder.frozen import Frozen


class Photos(Dataset):
    """What a folder of photographs gives: Pillow's images and labels."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.images[index].permute(1, 2, 0).numpy()), index % 2


network = twoview.as_encoder(torchvision.models.resnet18(), shape=(3, 32, 32))
encoder = Frozen(network, Pixels(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)))
# or that of a run, which knows its mean and std: encoder = twoview.load_encoder("runs/pretrain/...")

images = torch.randint(256, (40, 3, 32, 32), dtype=torch.uint8)
h = twoview.extract(encoder, Photos(images))  # (40, 512) float32, on the CPU
same = twoview.extract(encoder, torch.utils.data.TensorDataset(images / 255))  # floats in [0, 1]: the same features
print(tuple(h.shape), f"largest difference {(h - same).abs().max().item():.1g}")
