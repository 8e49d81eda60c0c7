"""Features of a frozen encoder, and the proof that it stayed frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.functional import pil_to_tensor

from twoview.data.demand import Samples, each, stack, tensors
from twoview.data.set import SampleSet
from twoview.encoder.frozen import as_weights
from twoview.errors import UserError


class _Batches(Dataset[Samples]):
    """Lets loader workers fetch a whole batch of indices at once."""

    def __init__(self, samples: SampleSet) -> None:
        self.samples = samples

    def __getitem__(self, index: list[int]) -> Samples:
        return self.samples.fetch(torch.tensor(index))


def _samples(items: list[Any]) -> Samples:
    """A batch of what a data set yields: samples, or tuples that begin with one; of Pillow's images RGB bytes."""
    first = [item[0] if isinstance(item, tuple | list) else item for item in items]
    return stack([pil_to_tensor(one.convert("RGB")) if isinstance(one, Image.Image) else one for one in first])


def _batches(samples: SampleSet | Dataset[Any], batch_size: int, num_workers: int) -> Iterable[Samples]:
    """The samples in the order of the set; those that are decoded on demand by workers, or without any in threads."""
    if not isinstance(samples, SampleSet):
        return DataLoader(samples, batch_size, num_workers=num_workers, collate_fn=_samples)
    indices = torch.arange(len(samples)).split(batch_size)
    if samples.in_memory or not num_workers:
        return (samples.fetch(index) for index in indices)
    order = [index.tolist() for index in indices]
    return DataLoader(_Batches(samples), sampler=order, batch_size=None, num_workers=num_workers)


def laid_out(samples: Samples, device: torch.device) -> Samples:
    """Samples on a device, images (B, C, H, W) in the memory format in which convolutions are fast."""
    fast = torch.channels_last

    def move(values: Tensor) -> Tensor:
        values = values.to(device, non_blocking=True)
        return values.contiguous(memory_format=fast) if values.dim() == 4 else values

    return each(move, samples)


def extract(
    encoder: nn.Module,
    samples: SampleSet | Dataset[Any],
    batch_size: int = 250,
    device: torch.device | str | None = None,
    num_workers: int = 0,
) -> Tensor:
    """Features float32 (N, D) on the CPU, row i of sample i, without augmentation.

    `samples` is a set of twoview's or any Dataset of torch's, whose items are samples (tensors or Pillow's images) or
    tuples that begin with one. The encoder takes samples as they are stored (`Frozen`). It runs in eval mode without
    autocast, on `device` (by default where its parameters are), and is handed back where it was, every submodule in the
    mode it was in. On two CPU cores batches of 250 in channels_last take two thirds of the time of 1,000 as they are:
    less leaves the cache. Raises UserError if a feature is NaN or infinite.
    """
    home = next((p.device for p in encoder.parameters()), torch.device("cpu"))
    target = torch.device(device) if device is not None else home
    modes = [(module, module.training) for module in encoder.modules()]
    features = []
    try:
        encoder.to(target).eval()
        with torch.inference_mode(), torch.autocast(target.type, enabled=False):
            for batch in _batches(samples, batch_size, num_workers):
                h = encoder(laid_out(batch, target))  # (B, D)
                features.append(h.float().cpu())
    finally:
        encoder.to(home)
        for module, training in modes:
            module.training = training
    # Cloned outside inference mode: an ordinary tensor, which autograd may use.
    h = torch.cat(features).clone()  # (N, D)
    bad = (~h.isfinite()).any(1).nonzero().flatten()
    if len(bad):
        row = int(bad[0])
        name, first = (
            (samples.name, samples.names[row])
            if isinstance(samples, SampleSet)
            else (type(samples).__name__, f"row {row}")
        )
        raise UserError(
            f"The encoder gives NaN or infinite features for {len(bad)} of the {len(h)} samples of "
            f"'{name}' (the first is {first}): its training diverged, or the file is "
            "damaged. Use an earlier checkpoint, or train with a lower learning rate."
        )
    return h


@contextmanager
def spaces(encoder: nn.Module, projector: nn.Module | None) -> Iterator[Callable[[Samples], dict[str, Tensor]]]:
    """Lends a function from what the encoder takes (B, ...) to float32 h (B, D), and z (B, P) if there is a
    projector, by these names.

    Inside, both networks are in eval mode and no autograd is recorded; afterwards every submodule is in the mode it
    was in.
    """
    networks = [network for network in (encoder, projector) if network is not None]
    modes = [(module, module.training) for network in networks for module in network.modules()]

    def features(samples: Samples) -> dict[str, Tensor]:
        device = tensors(samples)[0].device
        with torch.autocast(device.type, enabled=False):
            h = encoder(each(lambda values: as_weights(values, encoder), laid_out(samples, device)))
            return {"h": h.float()} | ({} if projector is None else {"z": projector(h).float()})

    try:
        for network in networks:
            network.eval()
        with torch.no_grad():
            yield features
    finally:
        for module, training in modes:
            module.training = training
