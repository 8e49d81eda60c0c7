import copy
import math
from functools import partial

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader

from twoview.data.batches import Batch
from twoview.errors import UserError
from twoview.losses import Contrast
from twoview.model.base import Begin, Method
from twoview.model.part.head import Projector
from twoview.model.simclr import SimCLR
from twoview.optim.recipe import Recipe


class Tiny(nn.Module):
    """An encoder with batch statistics."""

    dim = 16

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, self.dim), nn.BatchNorm1d(self.dim), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def simclr(temperature: float = 0.5, lr: float = 0.1, **head: object) -> SimCLR:
    torch.manual_seed(0)
    return SimCLR(Tiny(), Recipe(SGD, lr, lr_scaling="none"), partial(Projector, out_dim=8, **head), temperature)


def two_views(n: int = 6) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    v1 = torch.randn(n, 3, 4, 4, generator=g)
    return v1, v1 + 0.5 * torch.randn(n, 3, 4, 4, generator=g)


def contrast(model: Method, v1: Tensor, v2: Tensor, index: Tensor, share: Tensor | None = None) -> Contrast:
    """Loss and accuracy of a step."""
    loss, numbers, _ = model.step(Batch((v1, v2), index, torch.full_like(index, -1), share))
    return Contrast(loss, numbers["accuracy"])


# Projector


def kinds(projector: nn.Module) -> list[str]:
    return [type(m).__name__ for m in projector.children()]


def test_default_head_has_two_layers_with_bias() -> None:
    head = Projector(32)
    assert kinds(head) == ["Linear", "ReLU", "Linear"]
    assert [(m.in_features, m.out_features) for m in head if isinstance(m, nn.Linear)] == [(32, 32), (32, 128)]
    assert all(m.bias is not None for m in head if isinstance(m, nn.Linear))


@pytest.mark.parametrize(
    ("norm", "layers", "expected"),
    [
        ("none", 1, ["Linear"]),
        ("batch", 1, ["Linear"]),
        ("batch_all", 1, ["Linear", "BatchNorm1d"]),
        ("batch", 2, ["Linear", "BatchNorm1d", "ReLU", "Linear"]),
        ("batch_all", 2, ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]),
        ("none", 3, ["Linear", "ReLU", "Linear", "ReLU", "Linear"]),
    ],
)
def test_layers_and_norms(norm: str, layers: int, expected: list[str]) -> None:
    head = Projector(8, out_dim=4, hidden_dim=16, layers=layers, norm=norm)  # type: ignore[arg-type]
    assert kinds(head) == expected
    modules = list(head.children())
    for m, after in zip(modules, [*modules[1:], None], strict=True):
        if isinstance(m, nn.Linear):  # a bias before a normalisation would do nothing
            assert (m.bias is None) == isinstance(after, nn.BatchNorm1d)
    assert head(torch.randn(5, 8)).shape == (5, 4)


def test_one_layer_is_linear() -> None:
    head, a, b = Projector(8, layers=1), torch.randn(3, 8), torch.randn(3, 8)
    zero = head(torch.zeros(3, 8))
    torch.testing.assert_close(head(a + b) - zero, head(a) + head(b) - 2 * zero)


def test_a_head_can_be_copied() -> None:
    head = Projector(8, norm="batch")
    assert copy.deepcopy(head).eval()(torch.ones(2, 8)).equal(head.eval()(torch.ones(2, 8)))


@pytest.mark.parametrize("options", [{"layers": 0}, {"out_dim": 0}, {"hidden_dim": 0}])
def test_widths_must_be_positive(options: dict[str, int]) -> None:
    with pytest.raises(UserError, match="projector: layers, out_dim and hidden_dim must be at least 1"):
        Projector(8, **options)


def test_an_unknown_norm_is_named() -> None:
    with pytest.raises(UserError, match="norm must be none, batch or batch_all, not layer"):
        Projector(8, norm="layer")  # type: ignore[arg-type]


# SimCLR


def by_hand(model: SimCLR, v1: Tensor, v2: Tensor) -> tuple[float, float]:
    z = model.projector(model.encoder(torch.cat([v1, v2]))).double()
    z = z / z.norm(dim=1, keepdim=True)
    n, total, right = len(v1), 0.0, 0
    for i in range(2 * n):
        others = [k for k in range(2 * n) if k != i]
        scores = (z[others] @ z[i] / model.temperature).tolist()
        positive = scores[others.index((i + n) % (2 * n))]
        total += math.log(sum(math.exp(s) for s in scores)) - positive
        right += positive == max(scores)
    return total / (2 * n), right / (2 * n)


@pytest.mark.parametrize("head", [{}, {"norm": "batch_all", "layers": 3}, {"layers": 1}])
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_contrast_equals_the_computation_by_hand(head: dict[str, object], temperature: float) -> None:
    model, (v1, v2) = simclr(temperature, **head).train(), two_views()
    expected = by_hand(copy.deepcopy(model), v1, v2)
    loss, accuracy = contrast(model, v1, v2, torch.arange(6))
    assert loss.item() == pytest.approx(expected[0], abs=1e-5)
    assert accuracy.item() == pytest.approx(expected[1])


def test_both_views_share_the_statistics_of_the_batch() -> None:
    model, (v1, v2) = simclr().train(), two_views()
    contrast(model, v1, v2, torch.arange(6))
    norm = model.encoder.net[2]
    assert norm.num_batches_tracked == 1
    mean = model.encoder.net[1](torch.cat([v1, v2]).flatten(1)).mean(dim=0)
    torch.testing.assert_close(norm.running_mean, 0.1 * mean)


def test_views_are_exchangeable() -> None:
    model, (v1, v2) = simclr().train(), two_views()
    a, b = contrast(model, v1, v2, torch.arange(6)), contrast(model, v2, v1, torch.arange(6))
    torch.testing.assert_close(a.loss, b.loss)


def test_labels_and_numbers_are_not_read() -> None:
    model, (v1, v2) = simclr().train(), two_views()
    out = model.training_step(Batch((v1, v2), torch.arange(6), torch.arange(6)), 0)
    other = model.training_step(([v1, v2], torch.full((6,), -1), None), 0)  # as a plain loader gives it
    assert out["loss"].item() == other["loss"].item()
    assert set(out) == {"loss", "numbers", "chance"}
    assert set(out["numbers"]) == {"accuracy"}
    assert out["loss"].requires_grad
    assert not out["numbers"]["accuracy"].requires_grad


def test_a_tiny_batch_is_overfitted() -> None:
    model, (v1, v2) = simclr(0.2).train(), two_views(8)
    optimizer = model.recipe.build(model, 8, steps=30, epochs=1)[0]
    losses = []
    for _ in range(30):
        loss, accuracy = contrast(model, v1, v2, torch.arange(8))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0] < math.log(15)
    assert accuracy == 1


def test_gradients_reach_encoder_and_projector() -> None:
    model, (v1, v2) = simclr().train(), two_views()
    contrast(model, v1, v2, torch.arange(6)).loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert any(p.grad.any() for p in model.encoder.parameters())  # type: ignore[union-attr]


@pytest.mark.parametrize("batch_size", [2, 256, 512])
def test_chance_level(batch_size: int) -> None:
    model, z = simclr().eval(), torch.ones(batch_size, 3, 4, 4)  # equal samples cannot be told apart
    loss, _, chance = model.step(Batch((z, z), torch.arange(batch_size), torch.arange(batch_size)))
    assert chance.item() == pytest.approx(math.log(2 * batch_size - 1))
    assert loss.item() == pytest.approx(chance.item(), abs=1e-4)
    model.begin(Begin(batch_size, steps=1, epochs=1))
    assert model.outlook() == f"loss at chance level {math.log(2 * batch_size - 1):.3f}"


def test_the_projector_is_built_for_the_encoder() -> None:
    assert simclr().projector[0].in_features == Tiny.dim


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(UserError, match=r"model\.temperature must be positive"):
        simclr(temperature)


def test_lightning_steps_optimizer_and_schedule_together() -> None:
    (v1, v2), number = two_views(8), torch.arange(8)
    samples = [((v1[i], v2[i]), number[i], number[i]) for i in range(8)]
    model = simclr(lr=0.05)
    model.global_batch_size = 4
    before = copy.deepcopy(model.state_dict())
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, DataLoader(samples, batch_size=4))
    schedule = trainer.lr_scheduler_configs[0].scheduler
    assert trainer.global_step == schedule.last_epoch == 6
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0)
    assert not model.encoder.net[1].weight.equal(before["encoder.net.1.weight"])
