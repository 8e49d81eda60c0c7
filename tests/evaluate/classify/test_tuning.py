"""Fine-tuning: that it learns, that it repeats, and that its steps are those of the optimizer written out."""

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from twoview.data.image.pixels import Pixels
from twoview.data.set import SampleSet
from twoview.encoder.frozen import Frozen, digest
from twoview.errors import UserError
from twoview.evaluate.classify.finetune import Tuning, default_epochs, finetune, fit
from twoview.evaluate.classify.labelled import labelled_rows
from twoview.run.checkpoint import load_encoder

CPU = torch.device("cpu")


def colours(n: int, seed: int = 0) -> SampleSet:
    """Three classes that a crop or a flip cannot hide: reddish, greenish and bluish noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    images = torch.randint(0, 156, (n, 3, 16, 16), generator=generator, dtype=torch.uint8)
    images[torch.arange(n), labels] += 60
    return SampleSet("colours", images, labels, ("red", "green", "blue"), Pixels((0.3,) * 3, (0.2,) * 3))


@pytest.fixture
def encoder(finished: Path) -> Frozen:
    return load_encoder(finished)


def run(encoder: Frozen, train: SampleSet, test: SampleSet, *tunings: Tuning) -> dict[str, Any]:
    return finetune(encoder, train, test, tunings, holdout=0.25, device=CPU)


def test_it_learns_and_leaves_the_encoder_alone(encoder: Frozen) -> None:
    before = digest(encoder)
    result = run(encoder, colours(90), colours(60, seed=1), Tuning(epochs=8, batch_size=30, lr=0.5, seed=0))
    assert result["top1"] > 0.9
    assert result["losses"][0] > 2 * result["losses"][-1]
    assert len(result["losses"]) == 8
    assert digest(encoder) == before
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert result["interval"][0] < result["top1"] <= result["interval"][1]
    assert sum(map(sum, result["confusion"])) == result["test_size"] == 60
    assert result["chance"] == result["majority"] == pytest.approx(1 / 3)
    assert result["top5"] is None


def test_the_whole_encoder_is_trained(encoder: Frozen) -> None:
    model, _ = fit(encoder, colours(30), Tuning(epochs=2, batch_size=15, lr=0.5, seed=0), CPU)
    trained = dict(model[0].named_parameters())  # type: ignore[index]
    assert all(not torch.equal(trained[name], value) for name, value in encoder.named_parameters())
    assert torch.equal(model[0].preprocess.mean, encoder.preprocess.mean)  # type: ignore[index]
    assert not model.training


def test_the_first_loss_is_that_of_chance(encoder: Frozen) -> None:
    """The classifier starts at zero: before the first step every class is as likely."""
    _, losses = fit(encoder, colours(30), Tuning(epochs=1, batch_size=30, lr=0.1, seed=0), CPU)
    assert losses == [pytest.approx(math.log(3), abs=1e-6)]


def test_it_repeats_to_the_bit_and_only_with_its_seed(encoder: Frozen) -> None:
    def weights(seed: int) -> str:
        torch.manual_seed(int.from_bytes(os.urandom(4), "little"))  # of no consequence
        return digest(fit(encoder, colours(40), Tuning(2, 16, 0.1, seed), CPU)[0])

    assert weights(3) == weights(3)
    assert weights(3) != weights(4)


def test_the_first_steps_are_those_of_sgd_written_out(encoder: Frozen, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nesterov momentum, half a cosine and the learning rate of the batch size, on the classifier's bias alone: with
    frozen features of zero the logits are the bias.
    """

    class Nothing(torch.nn.Module):
        dim = 4

        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x.mean(dim=(1, 2, 3))[:, None] * 0).expand(-1, 4) * self.scale

    images = colours(30).subset(torch.tensor([0, 3, 6, 9, 1, 2]))  # four red ones, a green and a blue one
    nothing = Frozen(Nothing(), images.preprocess)
    model, losses = fit(nothing, images, Tuning(epochs=3, batch_size=6, lr=64.0, seed=0), CPU)
    share = torch.tensor([4 / 6, 1 / 6, 1 / 6])
    bias, velocity, expected = torch.zeros(3), torch.zeros(3), []
    for step in range(3):
        p = bias.softmax(0)
        expected.append(float(-(share * p.log()).sum()))
        gradient = p - share
        velocity = 0.9 * velocity + gradient
        lr = 64.0 * 6 / 256 * 0.5 * (1 + math.cos(math.pi * step / 3))
        bias = bias - lr * (gradient + 0.9 * velocity)
    torch.testing.assert_close(model[1].bias, bias, atol=1e-5, rtol=1e-5)  # type: ignore[index]
    assert losses == pytest.approx(expected, abs=1e-5)


def test_batches_are_nearly_equal() -> None:
    tuning = Tuning(epochs=1, batch_size=128, lr=0.05, seed=0)
    assert tuning.batches(129) == 2
    assert tuning.peak(129) == pytest.approx(0.05 * 64.5 / 256)
    assert tuning.peak(256) == pytest.approx(0.05 * 128 / 256)
    assert tuning.peak(30) == pytest.approx(0.05 * 30 / 256)


def test_of_several_learning_rates_the_best_one_held_out_is_taken(encoder: Frozen) -> None:
    """One that moves nothing and one that diverges lose; the test set is not asked."""
    train, test = colours(90), colours(30, seed=1)
    rates = (1e-7, 0.5, 1e12)
    result = run(encoder, train, test, *(Tuning(epochs=6, batch_size=30, lr=lr, seed=0) for lr in rates))
    assert [tried["lr_per_256"] for tried in result["path"]] == list(rates)
    assert result["path"][1]["accuracy"] > max(result["path"][0]["accuracy"], result["path"][2]["accuracy"])
    assert result["lr"] == Tuning(6, 30, 0.5, 0).peak(90)
    assert (result["train_size"], result["holdout_size"]) == (90, 24)  # a quarter of each 30, rounded
    alone = run(encoder, train, test, Tuning(epochs=6, batch_size=30, lr=0.5, seed=0))
    assert alone["losses"] == result["losses"]  # refitted on all
    assert (alone["path"], alone["holdout_size"]) == ([], 0)


def test_divergence_is_said(encoder: Frozen) -> None:
    with pytest.raises(UserError, match=r"the loss is (nan|inf) in epoch \d; use a smaller lr_per_256 than 1e\+12$"):
        run(encoder, colours(30), colours(9), Tuning(epochs=5, batch_size=10, lr=1e12, seed=0))


def test_bfloat16_ends_near_float32(encoder: Frozen) -> None:
    losses = [
        run(encoder, colours(60), colours(9), Tuning(4, 30, 0.2, 0, precision))["losses"]
        for precision in ("32-true", "bf16-mixed")
    ]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


def test_the_epochs_of_the_paper() -> None:
    assert [default_epochs(fraction) for fraction in (0.01, 0.1, 1.0)] == [60, 30, 10]


@pytest.mark.skipif("TWOVIEW_DATA" not in os.environ, reason="needs CIFAR-10 in $TWOVIEW_DATA")
def test_cifar_10_is_learned_from_one_per_cent_of_its_labels(encoder: Frozen) -> None:
    from twoview.data.image.cifar import cifar10

    train, test = (cifar10(os.environ["TWOVIEW_DATA"], split) for split in ("train", "test"))
    assert train.labels is not None
    part = train.subset(labelled_rows(train.labels, train.classes, 0.01, seed=0))
    assert torch.bincount(part.labels).tolist() == [50] * 10  # type: ignore[arg-type]
    result = run(encoder, part, test.subset(torch.arange(1000)), Tuning(epochs=10, batch_size=64, lr=0.5, seed=0))
    assert result["interval"][0] > 0.12  # chance is 0.10
