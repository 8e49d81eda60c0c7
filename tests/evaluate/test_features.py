"""Extraction leaves the encoder as it was, and says so by a digest."""

import pytest
import torch
from torch import Tensor, nn

from twoview.data.demand import OnDemand
from twoview.data.image.pixels import Pixels
from twoview.data.set import SampleSet
from twoview.encoder.frozen import Frozen, digest
from twoview.errors import UserError
from twoview.evaluate.features import extract


class Decoded(OnDemand):
    """Images that are made when asked for, as a folder's are."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    @property
    def shape(self) -> tuple[int, int, int]:
        c, h, w = self.images.shape[1:]
        return c, h, w

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index].clone()

    def stamp(self) -> str:
        return "images"


def image_set(n: int = 23, in_memory: bool = True) -> SampleSet:
    images = torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))
    half = (0.5,) * 3
    return SampleSet("noise", images if in_memory else Decoded(images), None, (), Pixels(half, half))


@pytest.fixture
def encoder() -> Frozen:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    net.dim = 6  # type: ignore[assignment]
    return Frozen(net, Pixels((0.4, 0.5, 0.6), (0.2, 0.25, 0.3)))


def test_image_encoder_normalises_each_channel(encoder: Frozen) -> None:
    assert encoder.dim == 6
    plain = Frozen(encoder.encoder.eval(), Pixels((0.0,) * 3, (1.0,) * 3)).eval()
    images = torch.rand(4, 3, 8, 8)
    by_hand = torch.stack([(images[:, c] - m) / s for c, (m, s) in enumerate([(0.4, 0.2), (0.5, 0.25), (0.6, 0.3)])], 1)
    torch.testing.assert_close(encoder.eval()(images), plain(by_hand))


def test_features_are_those_of_the_eval_mode_encoder_one_image_at_a_time(encoder: Frozen) -> None:
    data = image_set()
    h = extract(encoder, data, batch_size=5)
    encoder.eval()
    with torch.no_grad():
        slow = torch.cat([encoder(data.fetch(torch.tensor([i])).float() / 255) for i in range(len(data))])
    assert h.shape == (23, 6)
    assert h.dtype == torch.float32
    torch.testing.assert_close(h, slow, atol=1e-6, rtol=0)


@pytest.mark.parametrize("batch_size", [1, 7, 23, 1000])
def test_batch_size_does_not_matter(encoder: Frozen, batch_size: int) -> None:
    torch.testing.assert_close(
        extract(encoder, image_set(), batch_size), extract(encoder, image_set(), 10), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_decoding_on_demand_gives_the_same_features_in_the_same_order(encoder: Frozen, num_workers: int) -> None:
    there = extract(encoder, image_set(in_memory=False), batch_size=5, num_workers=num_workers)
    assert torch.equal(there, extract(encoder, image_set(), batch_size=5))


def test_training_mode_and_batch_norm_statistics_survive(encoder: Frozen) -> None:
    encoder.train()
    encoder.encoder[1].eval()  # type: ignore[index]
    modes = [module.training for module in encoder.modules()]
    before = digest(encoder)
    h = extract(encoder, image_set())
    assert [module.training for module in encoder.modules()] == modes
    assert len(set(modes)) == 2
    assert digest(encoder) == before
    assert torch.equal(h, extract(encoder.eval(), image_set()))


def test_modes_are_restored_after_a_failure(encoder: Frozen) -> None:
    encoder.train()
    grey = SampleSet("grey", torch.zeros(2, 5, 8, 8, dtype=torch.uint8), None, (), Pixels((0.5,) * 5, (0.5,) * 5))
    with pytest.raises(UserError, match="images of 5 channels, but mean and std of 3"):
        extract(encoder, grey)
    assert all(module.training for module in encoder.modules())


def test_features_can_be_trained_on(encoder: Frozen) -> None:
    head = nn.Linear(6, 2)
    head(extract(encoder, image_set())).sum().backward()
    assert head.weight.grad is not None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_name_the_set(encoder: Frozen, value: float) -> None:
    with torch.no_grad():
        encoder.encoder[1].bias[0] = value  # type: ignore[index, union-attr]
    with pytest.raises(UserError, match=r"23 of the 23 samples of 'noise' .the first is noise row 0..* earlier"):
        extract(encoder, image_set())


def test_digest_sees_every_bit_and_not_the_mode(encoder: Frozen) -> None:
    encoder.register_buffer("unsaved", torch.zeros(3), persistent=False)
    before = digest(encoder)
    assert digest(encoder.train()) == digest(encoder.eval()) == before
    tensors = [*encoder.parameters(), *encoder.buffers()]
    assert any(t.ndim == 0 for t in tensors)  # batch norm's step counter
    for tensor in tensors:
        raw = tensor.detach().reshape(-1).view(torch.uint8)
        raw[-1] ^= 1
        assert digest(encoder) != before
        raw[-1] ^= 1
        assert digest(encoder) == before


def test_digest_tells_names_shapes_and_dtypes_apart() -> None:
    def holder(name: str, tensor: Tensor) -> str:
        module = nn.Module()
        module.register_buffer(name, tensor)
        return digest(module)

    zeros = torch.zeros(2, 3)
    others = [
        holder("b", zeros),
        holder("a", zeros.T),
        holder("a", zeros.int()),
        holder("a", zeros.bfloat16()),
    ]
    assert len({holder("a", zeros), *others}) == 5
