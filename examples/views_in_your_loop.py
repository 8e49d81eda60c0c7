"""TwoViews and NT-Xent in a training loop of your own, over a Dataset of your own."""

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from twoview.augment import TwoViews
from twoview.augment.image.geometric import HorizontalFlip, RandomResizedCrop
from twoview.augment.image.photometric import ColorJitter, Grayscale
from twoview.data.image.pixels import Pixels
from twoview.losses import nt_xent


class Images(Dataset):
    """256 images (3, 32, 32), uint8 or float in [0, 1], with labels."""

    def __init__(self) -> None:
        self.labels = torch.arange(256) % 4
        noise = torch.rand(256, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        self.images = (255 * (0.5 * noise + 0.125 * self.labels.view(-1, 1, 1, 1))).byte()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]


def train(epochs: int = 2) -> list[float]:
    torch.manual_seed(0)
    views = TwoViews(
        {
            "crop": RandomResizedCrop(scale=(0.2, 1.0)),
            "flip": HorizontalFlip(),
            "jitter": ColorJitter(p=0.8, brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1),
            "gray": Grayscale(p=0.2),
        },
        Pixels(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
    )
    network = nn.Sequential(
        nn.Conv2d(3, 16, 4, 4), nn.ReLU(), nn.Conv2d(16, 32, 4, 4), nn.ReLU(), nn.Flatten(), nn.Linear(128, 32)
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(epochs):
        for images, _ in DataLoader(Images(), batch_size=64, shuffle=True):
            v1, v2 = views(images)  # (B, 3, 32, 32) each: other ones in each call, on the device of the images
            loss = nt_xent(network(v1), network(v2), temperature=0.5)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


if __name__ == "__main__":
    losses = train()
    print(f"NT-Xent: {losses[0]:.2f} at first, {losses[-1]:.2f} at last")

    jitter = ColorJitter(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1)
    changed = jitter(
        Images().images[:8]
    )  # one operation alone: (8, 3, 32, 32) float in [0, 1], each row by its own draw
