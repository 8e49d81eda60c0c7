"""Batch statistics of groups: what each group gets, and what the running statistics become."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from twoview.encoder.resnet import resnet18
from twoview.errors import UserError
from twoview.parallel.norm import (
    GlobalBatchNorm,
    SplitBatchNorm,
    global_batch_norm,
    has_own_batch_norm,
    split_batch_norm,
)


def layer(groups: int, channels: int = 3) -> SplitBatchNorm:
    found = SplitBatchNorm(channels, groups=groups)
    with torch.no_grad():
        found.weight.uniform_(0.5, 2)
        found.bias.uniform_(-1, 1)
    return found


@settings(max_examples=30, deadline=None)
@given(
    groups=st.integers(1, 5),
    each=st.integers(2, 4),
    spatial=st.sampled_from([(), (5,), (3, 4)]),
    channels_last=st.booleans(),
)
def test_each_group_has_statistics_of_its_own(
    groups: int, each: int, spatial: tuple[int, ...], channels_last: bool
) -> None:
    split = layer(groups)
    x = torch.randn(groups * each, 3, *spatial) * 3 + 1
    if channels_last and len(spatial) == 2:
        x = x.contiguous(memory_format=torch.channels_last)
    y = split(x)
    assert y.is_contiguous(memory_format=torch.channels_last) or not (channels_last and len(spatial) == 2)
    means, variances = [], []
    for part, found in zip(x.split(each), y.split(each), strict=True):
        over = [0, *range(2, x.ndim)]
        mean, variance = part.mean(over), part.var(over, unbiased=False)
        wide = (1, 3, *[1] * len(spatial))
        expected = (part - mean.view(wide)) / (variance.view(wide) + split.eps).sqrt()
        expected = expected * split.weight.view(wide) + split.bias.view(wide)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        means.append(mean)
        variances.append(part.var(over, unbiased=True))
    torch.testing.assert_close(split.running_mean, 0.1 * torch.stack(means).mean(0))
    torch.testing.assert_close(split.running_var, 0.9 + 0.1 * torch.stack(variances).mean(0))
    assert split.num_batches_tracked == 1


def test_gradients_are_those_of_plain_layers_on_the_parts() -> None:
    split, plain = layer(2), nn.BatchNorm2d(3)
    plain.load_state_dict(split.state_dict())
    x1 = torch.randn(6, 3, 4, 4, requires_grad=True)
    x2 = x1.detach().clone().requires_grad_()
    (split(x1) ** 3).sum().backward()
    (torch.cat([plain(x2[:3]), plain(x2[3:])]) ** 3).sum().backward()
    torch.testing.assert_close(x1.grad, x2.grad)
    torch.testing.assert_close(split.weight.grad, plain.weight.grad)


@pytest.mark.parametrize(
    "replaced", [lambda n: split_batch_norm(n, 4), lambda n: global_batch_norm(n, torch.device("cpu"))]
)
def test_a_replaced_network_is_the_same_in_eval_mode_and_keeps_its_tensors(
    replaced: Callable[[nn.Module], nn.Module],
) -> None:
    network = resnet18().train()
    network(torch.randn(4, 3, 8, 8))  # running statistics that are not those of the start
    x = torch.randn(4, 3, 8, 8)
    before, names, tensors = network.eval()(x), list(network.state_dict()), dict(network.named_parameters())
    replaced(network)
    assert any(isinstance(m, SplitBatchNorm | GlobalBatchNorm) for m in network.modules())
    assert not any(isinstance(m, nn.BatchNorm2d) for m in network.modules())
    assert network(x).equal(before)
    assert list(network.state_dict()) == names
    assert all(p is tensors[name] for name, p in network.named_parameters())


def test_a_split_layer_is_not_made_global_again() -> None:
    network = global_batch_norm(split_batch_norm(nn.Sequential(nn.BatchNorm1d(3)), 2), torch.device("cpu"))
    assert isinstance(network[0], SplitBatchNorm)
    assert network[0].groups == 2
    assert has_own_batch_norm(network)
    assert not has_own_batch_norm(global_batch_norm(nn.Sequential(nn.BatchNorm1d(3)), torch.device("cpu")))


def test_an_uneven_split_is_refused() -> None:
    with pytest.raises(UserError, match="7 samples do not divide into 2 groups"):
        layer(2)(torch.randn(7, 3))


def test_momentum_none_is_the_plain_mean() -> None:
    split = SplitBatchNorm(2, momentum=None, groups=2)
    batches = [torch.randn(8, 2) for _ in range(3)]
    for x in batches:
        split(x)
    expected: Tensor = torch.stack([x.mean(0) for x in batches]).mean(0)
    torch.testing.assert_close(split.running_mean, expected)
