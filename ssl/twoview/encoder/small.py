"""A plain convolutional network for CPUs."""

from collections.abc import Sequence

from torch import Tensor, nn

from twoview.errors import UserError


class Small(nn.Module):
    """Stages of 3x3 convolutions with batch normalisation and ReLU, each followed by max-pooling but the last, and
    the mean over what remains: (B, 3, H, W) -> h (B, `widths[-1]`).

    `widths`: channels of each stage. `depth`: convolutions per stage.
    """

    def __init__(self, widths: Sequence[int] = (32, 64, 128, 256), depth: int = 2) -> None:
        super().__init__()
        if not widths or min(widths) < 1 or depth < 1:
            raise UserError(f"encoder small needs widths and a depth of at least 1, not {list(widths)} and {depth}")
        layers: list[nn.Module] = []
        channels = 3
        for stage, width in enumerate(widths):
            if stage:
                layers.append(nn.MaxPool2d(2))
            for _ in range(depth):
                layers += [
                    nn.Conv2d(channels, width, 3, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                ]
                channels = width
        self.layers = nn.Sequential(*layers)
        self.dim = channels

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x).mean(dim=(2, 3))  # (B, dim)
