"""What a method wants to be optimized otherwise becomes groups of any optimizer."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from twoview.errors import UserError
from twoview.optim.lars import LARS
from twoview.optim.recipe import Recipe
from twoview.optim.role import Role


def network() -> nn.ModuleDict:
    torch.manual_seed(0)
    return nn.ModuleDict({name: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)) for name in ("a", "b")})


SGD = partial(torch.optim.SGD, momentum=0.9)


def test_without_roles_there_is_one_group() -> None:
    net = network()
    optimizer, _ = Recipe(SGD, 0.1).build(net, 256, 10, 1)
    assert len(optimizer.param_groups) == 1
    assert len(optimizer.param_groups[0]["params"]) == 8


def test_a_constant_rate_stays_and_the_rest_follows_the_schedule() -> None:
    net = network()
    roles = [Role(list(net["b"].parameters()), constant=True)]
    recipe = Recipe(SGD, 0.1, warmup_epochs=1)
    optimizer, schedule = recipe.build(net, 512, steps=20, epochs=4, roles=roles)
    rates = []
    for _ in range(20):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    assert {rate[1] for rate in rates} == {0.2}  # the first as the last
    assert [rate[0] for rate in rates[:5]] == pytest.approx([0.04, 0.08, 0.12, 0.16, 0.2])
    assert rates[-1][0] == pytest.approx(0.1 * (1 + math.cos(math.pi * 14 / 15)))


def test_another_rate_and_no_decay() -> None:
    net = network()
    vectors = [p for p in net.parameters() if p.ndim == 1]
    roles = [Role(vectors, lr=0.024), Role([net["b"][0].weight], decay=False)]
    optimizer, _ = Recipe(SGD, 0.1, weight_decay=1e-4).build(net, 256, 10, 1, roles=roles)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.0024, 0.1])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-4, 1e-4, 0]
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 6, 1]


def test_biases_and_norms_are_exempt_within_roles_too() -> None:
    net = network()
    recipe = Recipe(partial(LARS, momentum=0.9), 0.1, weight_decay=1e-4, decay_bias_and_norm=False)
    optimizer, _ = recipe.build(net, 256, 10, 1, roles=[Role(list(net["b"].parameters()), lr=2)])
    found = [(len(g["params"]), g["weight_decay"], g["adapt"], g["lr"]) for g in optimizer.param_groups]
    assert found == [(1, 1e-4, True, 0.1), (3, 0, False, 0.1), (1, 1e-4, True, 0.2), (3, 0, False, 0.2)]


def test_frozen_parameters_of_the_module_are_left_out() -> None:
    net = network()
    net["a"].requires_grad_(False)
    optimizer, _ = Recipe(SGD, 0.1).build(net, 256, 10, 1, roles=[Role(list(net["a"].parameters()))])
    assert sum(len(group["params"]) for group in optimizer.param_groups) == 4


@pytest.mark.parametrize("options", [{"lr": -1.0}, {"frozen_epochs": -1}])
def test_bad_values_are_named(options: dict[str, float]) -> None:
    with pytest.raises(UserError, match="cannot be negative"):
        Role([], **options)  # type: ignore[arg-type]
