"""Published protocols: their settings as their sources state them, each against an independent training loop."""

import json
import logging
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from twoview.augment.image.geometric import HorizontalFlip, RandomResizedCrop
from twoview.augment.views import TwoViews
from twoview.data.image.pixels import Pixels
from twoview.data.image.shapes import shapes
from twoview.encoder.frozen import Frozen, digest
from twoview.errors import UserError
from twoview.evaluate.classify import protocols
from twoview.evaluate.classify.finetune import Tuning, fit
from twoview.evaluate.classify.linear import probe
from twoview.evaluate.classify.protocols import DINOV2, FAST, MOCO, PUBLISHED, SIMCLR, Protocol, crops, train_probe
from twoview.rng import permutation


def problem(n: int = 900, dim: int = 8, classes: int = 6) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % classes
    return torch.randn(classes, dim, generator=g)[labels] + 1.2 * torch.randn(n, dim, generator=g), labels


def arguments(**changes: Any) -> dict[str, Any]:
    features, labels = problem()
    result = {
        "train_features": features[:600], "train_labels": labels[:600],
        "test_features": features[600:], "test_labels": labels[600:],
        "classes": 6, "holdout": 0.1, "seed": 0,
    }  # fmt: skip
    return result | changes


def plainly(protocol: Protocol) -> Any:
    """The arguments' features as those of augmented images, for recipes that want such."""
    features = arguments()["train_features"]
    return (lambda index, epoch: features[index]) if protocol.augment else None


def test_settings_are_those_of_the_papers() -> None:
    assert (SIMCLR.optimizer, SIMCLR.rate(SIMCLR.rates[0]), SIMCLR.epochs, SIMCLR.augment) == (
        "nesterov",
        0.2,
        100,
        True,
    )
    assert (MOCO.optimizer, MOCO.rate(MOCO.rates[0]), MOCO.epochs, MOCO.augment) == ("sgd", 30, 100, True)
    assert [MOCO.decay(epoch / 100) for epoch in (0, 59, 60, 79, 80, 99)] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert (len(DINOV2.rates), DINOV2.rate(0.1), DINOV2.steps, DINOV2.batch) == (13, 0.05, 12_500, 128)
    assert (FAST.optimizer, FAST.rates, FAST.weight_decay, FAST.batch, FAST.epochs) == (
        "adam",
        (1e-2,),
        5e-6,
        1000,
        500,
    )
    assert 1e-2 * FAST.decay(1.0) == pytest.approx(1e-6)
    for protocol in (SIMCLR, DINOV2):
        assert [protocol.decay(t) for t in (0, 0.5, 1)] == pytest.approx([1, 0.5, 0])


@pytest.mark.parametrize("protocol", PUBLISHED.values(), ids=PUBLISHED)
def test_each_learns_and_states_what_it_is(protocol: Protocol) -> None:
    epochs = 200 if protocol is FAST else 5  # its batch is all of these images
    result = train_probe(protocol, **arguments(), epochs=epochs, take=plainly(protocol))
    best = probe(**arguments(), strengths=[1e-1, 1e-2, 1e-3])
    assert 0.6 * best.top1 < result.top1 < best.top1 + 0.1
    assert result.protocol == protocol.name
    for words in (f"{epochs} epochs", f"batches of {protocol.batch}", f"lr {result.lr:g}", protocol.source):
        assert words in result.protocol_text
    assert ("cropped and flipped" in result.protocol_text) == protocol.augment
    assert result.epochs == epochs
    assert math.isfinite(result.loss)
    plain = result.plain()
    assert json.loads(json.dumps(plain)) == plain


def test_hashes_tell_every_setting_apart() -> None:
    one = train_probe(FAST, **arguments(), epochs=1)
    hashes = {
        one.protocol_hash,
        train_probe(FAST, **arguments(), epochs=2).protocol_hash,
        train_probe(FAST, **arguments(seed=1), epochs=1).protocol_hash,
        train_probe(DINOV2, **arguments(), epochs=1).protocol_hash,
        train_probe(DINOV2, **arguments(holdout=0.2), epochs=1).protocol_hash,
        probe(**arguments(), strengths=[0.1]).protocol_hash,
        probe(**arguments(), strengths=[0.1, 0.2]).protocol_hash,
    }
    assert len(hashes) == 7
    assert train_probe(FAST, **arguments(holdout=0.3), epochs=1).protocol_hash == one.protocol_hash  # nothing is chosen


def by_hand(protocol: Protocol, features: Tensor, labels: Tensor, lr: float, epochs: int, seed: int) -> nn.Linear:
    """One head by torch's own layers, optimizers and schedules, as a paper's script would."""
    layer = nn.Linear(features.shape[1], 6)
    weight, bias = protocols._start(protocol, 1, features, 6, seed)
    layer.weight.data, layer.bias.data = weight[0].detach(), bias[0].detach()
    per_epoch = math.ceil(len(features) / protocol.batch)
    if protocol.optimizer == "adam":
        optimizer: torch.optim.Optimizer = torch.optim.Adam(
            layer.parameters(), lr=lr, weight_decay=protocol.weight_decay
        )
    else:
        nesterov = protocol.optimizer == "nesterov"
        optimizer = torch.optim.SGD(layer.parameters(), lr=lr, momentum=0.9, nesterov=nesterov)
    schedulers = torch.optim.lr_scheduler
    schedule: Any = {
        "cosine": lambda: schedulers.CosineAnnealingLR(optimizer, epochs * per_epoch),
        "steps": lambda: schedulers.MultiStepLR(optimizer, [round(0.6 * epochs), round(0.8 * epochs)]),
        "exponential": lambda: schedulers.ExponentialLR(optimizer, (1e-6 / 1e-2) ** (1 / epochs)),
    }[protocol.schedule]()
    for epoch in range(epochs):
        for index in permutation(len(features), seed, epoch, "probe").split(protocol.batch):
            optimizer.zero_grad()
            F.cross_entropy(layer(features[index]), labels[index]).backward()
            optimizer.step()
            if protocol.schedule == "cosine":
                schedule.step()
        if protocol.schedule != "cosine":
            schedule.step()
    return layer


@pytest.mark.parametrize("protocol", PUBLISHED.values(), ids=PUBLISHED)
def test_the_head_is_that_of_a_loop_by_hand(protocol: Protocol) -> None:
    given = arguments()
    result = train_probe(protocol, **given, epochs=5, take=plainly(protocol))
    layer = by_hand(protocol, given["train_features"], given["train_labels"], result.lr, 5, 0)
    torch.testing.assert_close(result.head.weight.float(), layer.weight.data, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(result.head.bias.float(), layer.bias.data, rtol=1e-3, atol=1e-4)


def test_many_rates_at_once_are_each_rate_alone() -> None:
    features, labels = problem()
    everything, rates = torch.arange(len(labels)), (1e-3, 1e-1)

    def train(rates: tuple[float, ...]) -> list[Tensor]:
        heads, _, _ = protocols._train(DINOV2, rates, lambda i, _: features[i], everything, labels, 6, 0, 3)
        return [head.weight for head in heads]

    first = protocols._start(DINOV2, 2, features, 6, 0)[0]
    assert not torch.equal(first[0], first[1])  # heads start apart, so only the first can be compared
    torch.testing.assert_close(train(rates)[0], train(rates[:1])[0], rtol=1e-5, atol=1e-6)


def test_the_rate_is_the_best_held_out_and_the_test_set_takes_no_part() -> None:
    result = train_probe(DINOV2, **arguments(), epochs=2)
    assert len(result.path) == 13
    best = max(entry["accuracy"] for entry in result.path)
    assert result.lr == min(entry["lr"] for entry in result.path if entry["accuracy"] == best)
    assert 55 <= result.holdout_size <= 65
    other = train_probe(DINOV2, **arguments(test_features=torch.randn(300, 8)), epochs=2)
    assert other.path == result.path
    assert torch.equal(other.head.weight, result.head.weight)


def test_a_rate_that_diverges_is_not_chosen_and_alone_is_an_error() -> None:
    features = arguments()["train_features"] * 1e20
    tests = arguments()["test_features"] * 1e20
    huge = arguments(train_features=features, test_features=tests)
    with pytest.raises(UserError, match=r"protocol=moco diverges.*lr of 30.*protocol=convex"):
        train_probe(MOCO, **huge, epochs=2, take=lambda index, epoch: features[index])


def test_dinov2_is_a_matter_of_steps() -> None:
    short = replace(DINOV2, steps=24, batch=100)
    assert train_probe(short, **arguments()).epochs == 4  # six batches in each


# Augmented images.


class Means(nn.Module):
    """Pixels' means over a grid of 4 x 4, which know of crops and flips."""

    dim = 48

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(self.norm(x), 4).flatten(1)


def test_crops_are_new_in_each_epoch_and_the_same_again() -> None:
    images = shapes("train", n_train=40, n_test=10, size=16)
    assert images is not None
    assert images.labels is not None
    encoder = Frozen(Means(), images.preprocess)
    before = digest(encoder)
    take = crops(encoder.train(), images, seed=3)
    index = torch.tensor([5, 2, 17])
    one = take(index, 0)
    assert one.shape == (3, 48)
    assert torch.equal(one, crops(encoder, images, seed=3)(index, 0))
    torch.testing.assert_close(one[1:], take(index[1:], 0), rtol=1e-5, atol=1e-5)  # whatever else is in the batch
    assert not torch.allclose(one, take(index, 1))
    assert not torch.allclose(one, crops(encoder, images, seed=4)(index, 0))
    assert digest(encoder) == before  # the running statistics too


class Plain(nn.Module):
    """The pixels themselves, and what is given to it."""

    dim = 3 * 16 * 16

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach().clone())
        return (self.one * x).flatten(1)


@pytest.mark.parametrize("epoch", [0, 1])
def test_no_judge_crops_as_pre_training_did(epoch: int) -> None:
    """At equal seed and epoch: the encoder would be judged on the very views it was trained on."""
    images = shapes("train", n_train=40, n_test=10, size=16)
    assert images is not None
    index = torch.arange(40)
    mean, std = [0.0] * 3, [1.0] * 3
    views = TwoViews({"crop": RandomResizedCrop(), "flip": HorizontalFlip()}, Pixels(mean, std), seed=3)
    theirs = torch.cat(views(images.fetch(index), index, epoch))
    encoder = Frozen(Plain(), Pixels(mean, std))
    crops(encoder, images, seed=3)(index, epoch)
    tuned: Any = fit(encoder, images, Tuning(2, 40, 0.1, seed=3), torch.device("cpu"))[0][0]
    order = permutation(40, 3, epoch, "fine-tuning").argsort()
    first: Any = encoder.encoder
    for ours in (first.seen[0], tuned.encoder.seen[-2:][epoch][order]):
        distance = torch.cdist(ours.flatten(1), theirs.flatten(1)).view(40, 2, 40)
        assert not (distance.diagonal(dim1=0, dim2=2) < 1e-3).any()


def test_recipes_with_crops_need_them() -> None:
    with pytest.raises(ValueError, match="take=crops"):
        train_probe(SIMCLR, **arguments(), epochs=1)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_labels": None}, "training set has none"),
        ({"test_labels": None}, "test set has none"),
        ({"epochs": 0}, "at least one epoch"),
        ({"holdout": 1.0}, "between 0 and 1"),
        ({"classes": 7}, "No training image is of class 6"),
    ],
)
def test_what_cannot_be_followed_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        train_probe(DINOV2, **({"epochs": 1} | arguments(**changes)))


def test_a_class_that_cannot_be_held_out_is_said(caplog: pytest.LogCaptureFixture) -> None:
    features, labels = problem()
    keep = (labels != 5) | (torch.arange(len(labels)) == 5)
    with caplog.at_level(logging.WARNING):
        train_probe(DINOV2, **arguments(train_features=features[keep], train_labels=labels[keep]), epochs=1)
    assert "no image of class 5 can be held out" in caplog.text
