from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn

from twoview.encoder.resnet import resnet18, resnet34, resnet50
from twoview.encoder.small import Small
from twoview.errors import UserError

RESNETS = [
    pytest.param(resnet18, torchvision.models.resnet18, 512, id="resnet18"),
    pytest.param(resnet34, torchvision.models.resnet34, 512, id="resnet34"),
    pytest.param(resnet50, torchvision.models.resnet50, 2048, id="resnet50"),
]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize(("make", "reference", "dim"), RESNETS)
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_weights_have_the_names_and_shapes_of_torchvision(
    make: Callable[..., nn.Module], reference: Callable[..., nn.Module], dim: int, stem: str
) -> None:
    with torch.device("meta"):  # names and shapes alone
        encoder, theirs = make(stem), reference()
    ours = {name: w.shape for name, w in encoder.state_dict().items()}
    expected = {name: w.shape for name, w in theirs.state_dict().items() if not name.startswith("fc.")}
    if stem == "cifar":
        expected["conv1.weight"] = torch.Size([64, 3, 3, 3])
    assert ours == expected
    assert encoder.dim == dim


def test_weights_are_interchangeable_with_torchvision() -> None:
    encoder, theirs = resnet18("imagenet").eval(), torchvision.models.resnet18().eval()
    missing, unexpected = theirs.load_state_dict(encoder.state_dict(), strict=False)
    assert sorted(missing) == ["fc.bias", "fc.weight"]
    assert not unexpected
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        h = encoder(x)
        torch.testing.assert_close(theirs.fc(h), theirs(x))

        fresh = resnet18("imagenet").eval()
        assert not torch.allclose(fresh(x), h)
        fresh.load_state_dict(
            {name: w for name, w in theirs.state_dict().items() if not name.startswith("fc.")}, strict=True
        )
        assert fresh(x).equal(h)


def sizes(encoder: nn.Module, x: Tensor) -> dict[str, torch.Size]:
    found = {}
    for name in ("conv1", "layer1", "layer2", "layer4"):
        getattr(encoder, name).register_forward_hook(lambda m, i, out, name=name: found.update({name: out.shape[-2:]}))
    encoder(x)
    return found


def test_the_cifar_stem_keeps_the_resolution() -> None:
    encoder = resnet18("cifar").eval()
    conv = encoder.conv1
    assert (conv.kernel_size, conv.stride, conv.padding, conv.bias) == ((3, 3), (1, 1), (1, 1), None)
    found = sizes(encoder, torch.randn(1, 3, 32, 32))
    assert found == {"conv1": (32, 32), "layer1": (32, 32), "layer2": (16, 16), "layer4": (4, 4)}


def test_the_imagenet_stem_quarters_it() -> None:
    found = sizes(resnet18("imagenet").eval(), torch.randn(1, 3, 64, 64))
    assert found == {"conv1": (32, 32), "layer1": (16, 16), "layer2": (8, 8), "layer4": (2, 2)}


@pytest.mark.parametrize("make", [resnet18, resnet50])
def test_residual_branches_start_at_zero_on_request(make: Callable[..., nn.Module]) -> None:
    last = "bn2" if make is resnet18 else "bn3"
    for zero in (True, False):
        weight = getattr(make(zero_init_residual=zero).layer2[0], last).weight
        assert bool((weight == 0).all()) is zero


def test_an_unknown_stem_is_named() -> None:
    with pytest.raises(UserError, match=r"encoder\.stem must be cifar or imagenet, not mnist"):
        resnet18("mnist")  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [Small, resnet18])
def test_initial_responses_are_of_order_one(make: Callable[..., nn.Module]) -> None:
    h = make().train()(torch.randn(16, 3, 32, 32))
    assert 0.01 < h.std() < 10


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize(
    "make", [Small, resnet18, lambda: resnet18("imagenet")], ids=["small", "resnet18", "imagenet stem"]
)
def test_output_and_gradients(make: Callable[..., nn.Module], side: int) -> None:
    encoder = make()
    x = torch.randn(4, 3, side, side, requires_grad=True)
    h = encoder(x)
    assert h.shape == (4, encoder.dim)
    h.square().sum().backward()
    assert x.grad is not None
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in encoder.parameters())


@pytest.mark.parametrize("make", [Small, resnet18])
def test_channels_last_changes_nothing_but_the_layout(make: Callable[..., nn.Module]) -> None:
    encoder, x = make().eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = encoder(x)
        last = encoder.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(last, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("make", [Small, resnet18])
def test_in_eval_mode_rows_are_independent(make: Callable[..., nn.Module]) -> None:
    encoder, x = make().eval(), torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(encoder(x)[1:2], encoder(x[1:2]), rtol=1e-4, atol=1e-5)
