import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from twoview.errors import UserError
from twoview.optim.lars import LARS
from twoview.optim.muon import Muon, orthogonalize
from twoview.optim.recipe import Recipe, split_parameters, warmup_cosine

# LARS


def slow_lars(
    w: np.ndarray, grads: list[np.ndarray], lrs: list[float], momentum: float, decay: float, eta: float, adapt: bool
) -> np.ndarray:
    """SimCLR's update, in numpy: the learning rate is inside the momentum."""
    w, v = w.copy(), np.zeros_like(w)
    for g, lr in zip(grads, lrs, strict=True):
        g = g + decay * w
        w_norm, g_norm = np.sqrt((w**2).sum()), np.sqrt((g**2).sum())
        trust = eta * w_norm / g_norm if adapt and w_norm > 0 and g_norm > 0 else 1.0
        v = momentum * v + lr * trust * g
        w = w - v
    return w


@pytest.mark.parametrize("adapt", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("start", ["ordinary", "zero weights", "zero gradient"])
def test_lars_equals_numpy(start: str, decay: float, adapt: bool) -> None:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(3, 4)) * (start != "zero weights")
    grads = [rng.normal(size=(3, 4)) * (start != "zero gradient" or step == 2) for step in range(4)]
    lrs = [0.5, 1.0, 0.7, 0.1]
    w = nn.Parameter(torch.tensor(weights))
    optimizer = LARS([w], lr=lrs[0], momentum=0.9, weight_decay=decay, eta=0.02, adapt=adapt)
    for g, lr in zip(grads, lrs, strict=True):
        optimizer.param_groups[0]["lr"] = lr
        w.grad = torch.tensor(g)
        optimizer.step()
    expected = slow_lars(weights, grads, lrs, 0.9, decay, 0.02, adapt)
    np.testing.assert_allclose(w.detach().numpy(), expected, rtol=1e-10, atol=1e-12)


def test_lars_scales_each_tensor_by_its_own_norms() -> None:
    a, b = nn.Parameter(torch.full((4,), 2.0)), nn.Parameter(torch.full((4,), 2.0))
    optimizer = LARS([a, b], lr=1.0, momentum=0.0, eta=0.01)
    a.grad, b.grad = torch.full((4,), 1e-4), torch.full((4,), 1e4)
    optimizer.step()
    torch.testing.assert_close(a.detach(), torch.full((4,), 2.0 - 0.02))  # |step| = eta |w|, whatever the gradient's
    torch.testing.assert_close(b.detach(), a.detach())


def test_lars_leaves_parameters_without_gradient_alone_and_calls_the_closure() -> None:
    w, idle = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = LARS([w, idle], lr=0.1, weight_decay=1.0)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (w**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 2
    assert idle.equal(torch.ones(2))
    assert not w.equal(torch.ones(2))


@pytest.mark.parametrize("make", [partial(LARS, lr=0.5, eta=0.1), partial(Muon, lr=0.05)])
def test_state_survives_a_round_trip(make: Callable[..., Optimizer]) -> None:
    def run(interrupted: bool) -> Tensor:
        w = nn.Parameter(torch.arange(1.0, 7.0).view(2, 3))
        optimizer = make([w])
        for step in range(6):
            if interrupted and step == 3:
                state = optimizer.state_dict()
                optimizer = make([w])
                optimizer.load_state_dict(state)
            w.grad = torch.sin(w.detach() + step)
            optimizer.step()
        return w.detach()

    assert run(True).equal(run(False))


@pytest.mark.parametrize("options", [{"lr": -1}, {"momentum": 1.0}, {"momentum": -0.1}, {"weight_decay": -1}])
@pytest.mark.parametrize("optimizer", [LARS, Muon])
def test_bad_settings_are_named(optimizer: type[Optimizer], options: dict[str, float]) -> None:
    with pytest.raises(UserError, match=rf"{optimizer.__name__} needs lr >= 0"):
        optimizer([nn.Parameter(torch.ones(1))], **options)
    with pytest.raises(UserError, match="eta > 0"):
        LARS([nn.Parameter(torch.ones(1))], eta=0)


# Muon


@pytest.mark.parametrize("shape", [(8, 8), (5, 40), (40, 5), (1, 7), (7, 1)])
def test_orthogonalize_keeps_directions_and_evens_out_singular_values(shape: tuple[int, int]) -> None:
    u, s, vt = torch.linalg.svd(torch.randn(shape, generator=torch.Generator().manual_seed(0)), full_matrices=False)
    s = torch.logspace(0, -1, len(s))
    out = orthogonalize(u * s @ vt)
    assert out.shape == shape
    assert out.dtype == torch.float32
    inner = u.T @ out @ vt.T  # diagonal if the singular vectors are the same
    assert inner.diagonal().min() > 0.6
    assert inner.diagonal().max() < 1.3
    assert (inner - inner.diagonal().diag()).abs().max() < 0.1
    torch.testing.assert_close(orthogonalize(2**14 * (u * s @ vt)), out, rtol=0, atol=0.02)
    assert orthogonalize(torch.zeros(shape)).equal(torch.zeros(shape))
    for half, scale in ((torch.bfloat16, 2.0**14), (torch.float16, 2.0**-16)):  # the scale is gone before it matters
        rounded = orthogonalize(scale * (u * s @ vt), half)
        assert rounded.dtype == torch.float32
        torch.testing.assert_close(rounded, out, rtol=0, atol=0.05)


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16, None])
def test_muon_orthogonalises_in_the_precision_of_the_run(half: torch.dtype | None) -> None:
    module = nn.Linear(6, 4)
    recipe = Recipe(Muon, lr_per_256=0.1)
    optimizer, _ = recipe.build(module, batch_size=256, steps=2, epochs=1, half=half)
    before = module.weight.detach().clone()
    module.weight.grad = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    assert module.weight.dtype == torch.float32
    update = orthogonalize(module.weight.grad.add(module.weight.grad, alpha=0.9), half)
    torch.testing.assert_close(module.weight.detach(), before - 0.1 * update, rtol=0, atol=1e-6)
    assert not any("half" in group for group in optimizer.state_dict()["param_groups"])  # another device may go on


def test_muon_equals_a_step_by_hand() -> None:
    g = torch.Generator().manual_seed(0)
    conv, bias = nn.Parameter(torch.randn(6, 2, 1, 1, generator=g)), nn.Parameter(torch.randn(6, generator=g))
    w, b = conv.detach().clone(), bias.detach().clone()
    optimizer = Muon([conv, bias], lr=0.1, momentum=0.8, weight_decay=0.5, vector_lr=3.0)
    v_w, v_b = torch.zeros_like(w), torch.zeros_like(b)
    for _ in range(2):
        conv.grad, bias.grad = torch.randn(6, 2, 1, 1, generator=g), torch.randn(6, generator=g)
        v_w, v_b = 0.8 * v_w + conv.grad, 0.8 * v_b + bias.grad
        direction = orthogonalize((conv.grad + 0.8 * v_w).view(6, 2)).view(6, 2, 1, 1)
        w = (1 - 0.1 * 0.5) * w - 0.1 * math.sqrt(3) * direction
        b = b - 0.1 * 3.0 * (bias.grad + 0.8 * v_b)  # no decay
        optimizer.step()
        torch.testing.assert_close(conv.detach(), w, rtol=0, atol=5e-3)
        torch.testing.assert_close(bias.detach(), b)
        w = conv.detach().clone()


# Schedule


def test_warmup_and_cosine() -> None:
    factor = warmup_cosine(10, 110)
    assert factor(0) == pytest.approx(0.1)  # the first step already learns
    assert factor(4) == pytest.approx(0.5)
    assert factor(9) == factor(10) == 1
    assert factor(35) == pytest.approx((1 + math.cos(math.pi / 4)) / 2)
    assert factor(60) == pytest.approx(0.5)
    assert factor(110) == pytest.approx(0)
    assert factor(500) == pytest.approx(0)  # never rises again


def test_without_warmup_the_first_step_is_at_the_peak() -> None:
    factors = [warmup_cosine(0, 50)(step) for step in range(51)]
    assert factors[0] == 1
    assert factors == sorted(factors, reverse=True)
    assert 0 < factors[49] < 0.01


@pytest.mark.parametrize(("warmup", "steps"), [(5, 5), (1, 1), (0, 1), (0, 0)])
def test_degenerate_schedules_stay_in_range(warmup: int, steps: int) -> None:
    assert all(0 <= warmup_cosine(warmup, steps)(step) <= 1 for step in range(10))


# Recipe


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2), nn.LayerNorm(2))


@pytest.mark.parametrize(
    ("rule", "batch_size", "expected"),
    [
        ("linear", 256, 0.3),
        ("linear", 512, 0.6),
        ("linear", 64, 0.075),
        ("sqrt", 256, 0.3),
        ("sqrt", 1024, 0.6),
        ("sqrt", 64, 0.15),
        ("none", 4096, 0.3),
    ],
)
def test_learning_rate_rules(rule: Any, batch_size: int, expected: float) -> None:
    recipe = Recipe(SGD, 0.3, lr_scaling=rule)
    assert recipe.lr(batch_size) == pytest.approx(expected)
    optimizer, _ = recipe.build(network(), batch_size, steps=10, epochs=1)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)


def test_the_schedule_of_a_run() -> None:
    optimizer, schedule = Recipe(SGD, 0.2, warmup_epochs=2.5).build(network(), 256, steps=100, epochs=10)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(0.2 / 25)
    assert rates[24] == rates[25] == max(rates) == pytest.approx(0.2)
    assert rates[:25] == sorted(rates[:25])
    assert rates[25:] == sorted(rates[25:], reverse=True)
    assert rates[99] < 0.001
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0)


def test_parameters_split_into_weights_and_the_rest() -> None:
    net = network()
    net[3].weight.requires_grad_(False)
    weights, others = split_parameters(net.parameters())
    assert [id(p) for p in weights] == [id(net[0].weight)]
    assert {id(p) for p in others} == {
        id(p) for p in (net[0].bias, net[3].bias, *net[1].parameters(), *net[4].parameters())
    }


@pytest.mark.parametrize("make", [SGD, AdamW, LARS, Muon, partial(LARS, eta=0.02)])
@pytest.mark.parametrize("decay_all", [True, False])
def test_weight_decay_groups(make: Callable[..., Optimizer], decay_all: bool) -> None:
    net = network()
    net[0].bias.requires_grad_(False)
    recipe = Recipe(make, 0.1, weight_decay=0.25, decay_bias_and_norm=decay_all)
    groups = recipe.build(net, 256, steps=10, epochs=1)[0].param_groups
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in net.parameters() if p.requires_grad)  # each of them once
    assert [group["weight_decay"] for group in groups] == ([0.25] if decay_all else [0.25, 0.0])
    if not decay_all:
        assert {p.ndim for p in groups[0]["params"]} == {2, 4}
        assert {p.ndim for p in groups[1]["params"]} == {1}
    if getattr(make, "func", make) is LARS:
        assert [group["adapt"] for group in groups] == ([True] if decay_all else [True, False])
        assert groups[0]["eta"] == (0.02 if isinstance(make, partial) else 0.001)


@pytest.mark.parametrize(
    ("make", "lr"), [(partial(SGD, momentum=0.9), 0.02), (partial(LARS, eta=0.02), 1.0), (AdamW, 0.1), (Muon, 0.05)]
)
def test_a_quadratic_is_minimised(make: Callable[..., Optimizer], lr: float) -> None:
    torch.manual_seed(0)
    net, target = nn.Linear(4, 3), torch.randn(3, 4)
    optimizer, schedule = Recipe(make, lr, warmup_epochs=1, decay_bias_and_norm=False).build(
        net, 256, steps=300, epochs=10
    )

    def loss() -> Tensor:
        return ((net.weight - target) ** 2).sum() + ((net.bias - 1) ** 2).sum()

    start = loss().item()
    for _ in range(300):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        schedule.step()
    assert loss().item() < 1e-3 * start


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr_per_256": 0.0}, r"optimizer\.lr_per_256 must be positive, not 0"),
        ({"lr_per_256": math.nan}, r"optimizer\.lr_per_256 must be positive"),
        ({"lr_scaling": "cubic"}, r"optimizer\.lr_scaling must be linear, sqrt or none, not cubic"),
        ({"weight_decay": -1e-4}, "must be finite and not negative"),
        ({"warmup_epochs": -1}, "must be finite and not negative"),
    ],
)
def test_bad_recipes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Recipe(SGD, **{"lr_per_256": 0.1, **options})


def test_a_warmup_longer_than_the_run_is_named() -> None:
    with pytest.raises(UserError, match=r"warmup_epochs=10 .*longer than.* epochs=5"):
        Recipe(SGD, 0.1, warmup_epochs=10).build(network(), 256, steps=50, epochs=5)
