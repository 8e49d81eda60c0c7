"""Features of a frozen encoder, and the proof that it stayed frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from twoview.data.set import SampleSet
from twoview.errors import UserError


class _Batches(Dataset[Tensor]):
    """Lets loader workers fetch a whole batch of indices at once."""

    def __init__(self, image_set: SampleSet) -> None:
        self.image_set = image_set

    def __getitem__(self, index: list[int]) -> Tensor:
        return self.image_set.fetch(torch.tensor(index))


def _batches(image_set: SampleSet, batch_size: int, num_workers: int) -> Iterable[Tensor]:
    """uint8 (B, C, H, W) in the order of the set; decoded in workers where the set is not in memory."""
    indices = torch.arange(len(image_set)).split(batch_size)
    if image_set.in_memory:
        return (image_set.fetch(index) for index in indices)
    order = [index.tolist() for index in indices]
    return DataLoader(_Batches(image_set), sampler=order, batch_size=None, num_workers=num_workers)


def extract(
    encoder: nn.Module,
    image_set: SampleSet,
    batch_size: int = 250,
    device: torch.device | str | None = None,
    num_workers: int = 0,
) -> Tensor:
    """Features float32 (N, D) on the CPU, row i of image i, without augmentation.

    The encoder takes float images in [0, 1]. It runs in eval mode without autocast, on `device` (by default
    where its parameters are), and is handed back where it was, every submodule in the mode it was in. On two CPU cores
    batches of 250 in channels_last take two thirds of the time of 1,000 as they are: less leaves the cache.
    Raises UserError if a feature is NaN or infinite.
    """
    home = next((p.device for p in encoder.parameters()), torch.device("cpu"))
    target = torch.device(device) if device is not None else home
    modes = [(module, module.training) for module in encoder.modules()]
    features = []
    try:
        encoder.to(target).eval()
        with torch.inference_mode(), torch.autocast(target.type, enabled=False):
            for images in _batches(image_set, batch_size, num_workers):
                x = images.to(target, non_blocking=True).float() / 255
                h = encoder(x.contiguous(memory_format=torch.channels_last))  # (B, D)
                features.append(h.float().cpu())
    finally:
        encoder.to(home)
        for module, training in modes:
            module.training = training
    # Cloned outside inference mode: an ordinary tensor, which autograd may use.
    h = torch.cat(features).clone()  # (N, D)
    bad = (~h.isfinite()).any(1).nonzero().flatten()
    if len(bad):
        raise UserError(
            f"The encoder gives NaN or infinite features for {len(bad)} of the {len(h)} images of "
            f"'{image_set.name}' (the first is image {int(bad[0])}): its training diverged, or the file is "
            "damaged. Use an earlier checkpoint, or train with a lower learning rate."
        )
    return h


@contextmanager
def spaces(encoder: nn.Module, projector: nn.Module | None) -> Iterator[Callable[[Tensor], dict[str, Tensor]]]:
    """Lends a function from what the encoder takes (B, C, H, W) to float32 h (B, D), and z (B, P) if there is a
    projector, by these names.

    Inside, both networks are in eval mode and no autograd is recorded; afterwards every submodule is in the mode it
    was in.
    """
    networks = [network for network in (encoder, projector) if network is not None]
    modes = [(module, module.training) for network in networks for module in network.modules()]

    def features(images: Tensor) -> dict[str, Tensor]:
        with torch.autocast(images.device.type, enabled=False):
            h = encoder(images.contiguous(memory_format=torch.channels_last))  # the fast one
            return {"h": h.float()} | ({} if projector is None else {"z": projector(h).float()})

    try:
        for network in networks:
            network.eval()
        with torch.no_grad():
            yield features
    finally:
        for module, training in modes:
            module.training = training
