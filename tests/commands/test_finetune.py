"""Fine-tuning: which labels it sees, that it learns, that it repeats, and what it reports."""

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from twoview.commands import finetune
from twoview.data.image.pixels import Pixels
from twoview.data.image.shapes import shapes
from twoview.data.set import SampleSet
from twoview.encoder.frozen import Frozen, digest
from twoview.errors import UserError
from twoview.evaluate.features import extract
from twoview.run.checkpoint import load_encoder

CPU = torch.device("cpu")
Recipe = finetune.Recipe


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


def run(encoder: Frozen, train: SampleSet, test: SampleSet, *recipes: Recipe) -> dict[str, Any]:
    return finetune.finetune(encoder, train, test, recipes, holdout=0.25, device=CPU)


def test_it_learns_and_leaves_the_encoder_alone(encoder: Frozen) -> None:
    before = digest(encoder)
    result = run(encoder, colours(90), colours(60, seed=1), Recipe(epochs=8, batch_size=30, lr=0.5, seed=0))
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
    model, _ = finetune.fit(encoder, colours(30), Recipe(epochs=2, batch_size=15, lr=0.5, seed=0), CPU)
    trained = dict(model[0].named_parameters())  # type: ignore[index]
    assert all(not torch.equal(trained[name], value) for name, value in encoder.named_parameters())
    assert torch.equal(model[0].preprocess.mean, encoder.preprocess.mean)  # type: ignore[index]
    assert not model.training


def test_the_first_loss_is_that_of_chance(encoder: Frozen) -> None:
    """The classifier starts at zero: before the first step every class is as likely."""
    _, losses = finetune.fit(encoder, colours(30), Recipe(epochs=1, batch_size=30, lr=0.1, seed=0), CPU)
    assert losses == [pytest.approx(math.log(3), abs=1e-6)]


def test_it_repeats_to_the_bit_and_only_with_its_seed(encoder: Frozen) -> None:
    def weights(seed: int) -> str:
        torch.manual_seed(int.from_bytes(os.urandom(4), "little"))  # of no consequence
        return digest(finetune.fit(encoder, colours(40), Recipe(2, 16, 0.1, seed), CPU)[0])

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
    model, losses = finetune.fit(nothing, images, Recipe(epochs=3, batch_size=6, lr=64.0, seed=0), CPU)
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
    recipe = Recipe(epochs=1, batch_size=128, lr=0.05, seed=0)
    assert recipe.batches(129) == 2
    assert recipe.peak(129) == pytest.approx(0.05 * 64.5 / 256)
    assert recipe.peak(256) == pytest.approx(0.05 * 128 / 256)
    assert recipe.peak(30) == pytest.approx(0.05 * 30 / 256)


def test_of_several_learning_rates_the_best_one_held_out_is_taken(encoder: Frozen) -> None:
    """One that moves nothing and one that diverges lose; the test set is not asked."""
    train, test = colours(90), colours(30, seed=1)
    rates = (1e-7, 0.5, 1e12)
    result = run(encoder, train, test, *(Recipe(epochs=6, batch_size=30, lr=lr, seed=0) for lr in rates))
    assert [tried["lr_per_256"] for tried in result["path"]] == list(rates)
    assert result["path"][1]["accuracy"] > max(result["path"][0]["accuracy"], result["path"][2]["accuracy"])
    assert result["lr"] == Recipe(6, 30, 0.5, 0).peak(90)
    assert (result["train_size"], result["holdout_size"]) == (90, 24)  # a quarter of each 30, rounded
    alone = run(encoder, train, test, Recipe(epochs=6, batch_size=30, lr=0.5, seed=0))
    assert alone["losses"] == result["losses"]  # refitted on all
    assert (alone["path"], alone["holdout_size"]) == ([], 0)


def test_divergence_is_said(encoder: Frozen) -> None:
    with pytest.raises(UserError, match=r"the loss is (nan|inf) in epoch \d; use a smaller lr_per_256 than 1e\+12$"):
        run(encoder, colours(30), colours(9), Recipe(epochs=5, batch_size=10, lr=1e12, seed=0))


def test_bfloat16_ends_near_float32(encoder: Frozen) -> None:
    losses = [
        run(encoder, colours(60), colours(9), Recipe(4, 30, 0.2, 0, precision))["losses"]
        for precision in ("32-true", "bf16-mixed")
    ]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.1)


# Labels.


@given(
    counts=st.lists(st.integers(1, 40), min_size=2, max_size=6),
    fraction=st.floats(0.01, 1),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_the_labelled_part_holds_the_share_of_every_class(counts: list[int], fraction: float, seed: int) -> None:
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    labels = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(7))]
    names = [f"class{c}" for c in range(len(counts))]
    if min(round(count * fraction) for count in counts) < 1:
        with pytest.raises(UserError, match=f"leaves the class class{counts.index(min(counts))} without an image"):
            finetune.labelled_rows(labels, names, fraction, seed)
        return
    rows = finetune.labelled_rows(labels, names, fraction, seed)
    found = torch.bincount(labels[rows], minlength=len(counts)).tolist()
    assert all(abs(have - count * fraction) <= 0.5 for have, count in zip(found, counts, strict=True))
    assert torch.equal(rows, rows.unique())
    assert torch.equal(rows, finetune.labelled_rows(labels, names, fraction, seed))


def test_a_smaller_share_is_part_of_a_larger_one_and_the_seed_decides() -> None:
    labels = torch.arange(1000) % 10
    names = [str(c) for c in range(10)]
    small, large, other = (finetune.labelled_rows(labels, names, *at) for at in ((0.01, 1), (0.1, 1), (0.1, 2)))
    assert (len(small), len(large), len(other)) == (10, 100, 100)
    assert set(small.tolist()) <= set(large.tolist()) != set(other.tolist())
    assert finetune.labelled_rows(labels, names, 1.0, 0).tolist() == list(range(1000))


def test_the_epochs_of_the_paper() -> None:
    assert [finetune.default_epochs(fraction) for fraction in (0.01, 0.1, 1.0)] == [60, 30, 10]


# The command.


def test_the_command_reports(finished: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    words = [f"ckpt={finished}", "out=f.json", "epochs=2", "batch_size=64", "label_fraction=0.5", "baseline=true"]
    before = digest(load_encoder(finished))
    ended = command(*words, name="finetune")
    assert ended.code == 0, ended.err
    report = json.loads((tmp_path / "f.json").read_text())
    for word in ("untrained", "trained", "top-1", "95 % interval", "chance", "hourglass"):
        assert word in ended.out
    assert 115 <= report["train_size"] <= 141
    assert report["baseline"]["train_size"] == report["train_size"]
    assert report["test_size"] == 64
    assert report["interval"][0] <= report["top1"] <= report["interval"][1]
    assert report["top1"] <= report["top5"] <= 1
    assert len(report["per_class"]) == len(report["classes"]) == 10
    assert report["encoder_digest"] == before
    assert (report["epochs"], report["label_fraction"], report["seed"]) == (2, 0.5, 0)
    assert report["losses"] != report["baseline"]["losses"]
    assert len(report["protocol_hash"]) == 12
    assert {"machine", "versions", "commit", "protocol", "checkpoint_sha256", "lr"} <= report.keys()
    assert command(*words, name="finetune").code == 0
    again = json.loads((tmp_path / "f.json").read_text())
    assert {**again, "seconds": 0, "total_seconds": 0, "baseline": 0} == {
        **report,
        "seconds": 0,
        "total_seconds": 0,
        "baseline": 0,
    }
    assert command(*words, "seed=1", name="finetune").code == 0
    assert json.loads((tmp_path / "f.json").read_text())["protocol_hash"] != report["protocol_hash"]


def test_the_protocol_says_what_it_is(finished: Path, command: Callable[..., Any], tmp_path: Path) -> None:
    """Accuracy of the model that comes out, scored another way."""
    assert command(f"ckpt={finished}", "out=f.json", "epochs=1", "precision=float32", name="finetune").code == 0
    report = json.loads((tmp_path / "f.json").read_text())
    loaded = [shapes(split=split, n_train=256, n_test=64, size=16) for split in ("train", "test")]
    train, test = loaded
    assert train is not None
    assert test is not None
    assert test.labels is not None
    model, _ = finetune.fit(load_encoder(finished), train, Recipe(1, 128, 0.05, 0), CPU)
    assert report["top1"] == float((extract(model, test).argmax(1) == test.labels).double().mean())


def pictures(root: Path, splits: tuple[str, ...], labelled: bool) -> str:
    for split in splits:
        for i in range(8):
            folder = root / split / (f"class{i % 2}" if labelled else "")
            folder.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (30 * i, 0, 0)).save(folder / f"{i}.png")
    return f"data.root={root}"


def test_images_on_demand_give_the_same(finished: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    words = [f"ckpt={finished}", "data=image_folder", pictures(tmp_path / "set", ("train", "test"), labelled=True)]
    reports = []
    for memory in ("true", "false"):
        ended = command(*words, f"data.in_memory={memory}", "out=f.json", "epochs=2", name="finetune")
        assert ended.code == 0, ended.err
        reports.append(json.loads((tmp_path / "f.json").read_text()))
    assert reports[0]["losses"] == reports[1]["losses"]


def test_data_that_cannot_be_learned_are_named(finished: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    def error(*words: str) -> str:
        return command(f"ckpt={finished}", "data=image_folder", "out=f.json", *words, name="finetune").error

    plain = pictures(tmp_path / "plain", ("train", "test"), labelled=False)
    assert "plain has no labels in its train split" in error(plain)
    assert "single has no test split" in error(pictures(tmp_path / "single", ("train",), labelled=True))
    few = pictures(tmp_path / "few", ("train", "test"), labelled=True)
    assert re.search(r"leaves the class class0 without an image, of which there are 4: use at least 0\.25", error(
        few, "label_fraction=0.1"
    ))  # fmt: skip
    assert "give one lr_per_256" in error(few, "label_fraction=0.25", "lr_per_256=[0.1,0.2]")
    assert not (tmp_path / "f.json").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], r"which run\? .*ckpt="),
        (["ckpt=nowhere/last.ckpt"], r"there is no checkpoint nowhere/last\.ckpt"),
        (["ckpt={run}", "label_fraction=0"], r"label_fraction must lie above 0 and at most be 1, not 0"),
        (["ckpt={run}", "label_fraction=1.5"], r"label_fraction must lie above 0 and at most be 1, not 1\.5"),
        (["ckpt={run}", "label_fraction=10%"], r"label_fraction='10%' is not a number|cannot read"),
        (["ckpt={run}", "epochs=0"], r"epochs must be at least 1"),
        (["ckpt={run}", "batch_size=1"], r"batch_size at least 2"),
        (["ckpt={run}", "lr_per_256=[]"], r"lr_per_256 must be one or more positive numbers"),
        (["ckpt={run}", "lr_per_256=0.1"], r"lr_per_256=0\.1 is not a list of a number"),
        (["ckpt={run}", "holdout=1"], r"holdout must lie between 0 and 1"),
        (["ckpt={run}", "seed=-1"], r"seed=-1 must lie in"),
        (["ckpt={run}", "precision=int8"], r"precision='int8' is not one of auto, float32"),
        (["ckpt={run}", "device=gpu"], r"device='gpu' is not one of auto, cpu, cuda"),
        (["ckpt={run}", "encoder_of=teacher"], r"holds no teacher"),
        (["ckpt={run}", "out=no/such/folder/x.json"], r"cannot write no/such/folder/x\.json: No such file"),
        (["ckpt={run}", "data=cifar11"], r"cifar11.*cifar10"),
        (["ckpt={run}", "invented=1"], r"has no key 'invented'"),
    ],
)
def test_bad_words(finished: Path, command: Callable[..., Any], words: list[str], says: str) -> None:
    error = command(*(word.format(run=finished) for word in words), name="finetune").error
    assert re.search(says, error), error


@pytest.mark.skipif("TWOVIEW_DATA" not in os.environ, reason="needs CIFAR-10 in $TWOVIEW_DATA")
def test_cifar_10_is_learned_from_one_per_cent_of_its_labels(encoder: Frozen) -> None:
    from twoview.data.image.cifar import cifar10

    train, test = (cifar10(os.environ["TWOVIEW_DATA"], split) for split in ("train", "test"))
    assert train.labels is not None
    part = train.subset(finetune.labelled_rows(train.labels, train.classes, 0.01, seed=0))
    assert torch.bincount(part.labels).tolist() == [50] * 10  # type: ignore[arg-type]
    result = run(encoder, part, test.subset(torch.arange(1000)), Recipe(epochs=10, batch_size=64, lr=0.5, seed=0))
    assert result["interval"][0] > 0.12  # chance is 0.10
