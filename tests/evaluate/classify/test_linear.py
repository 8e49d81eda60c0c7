"""The probe against scikit-learn, closed forms and its own certificate."""

import json
import logging
import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from twoview.errors import UserError
from twoview.evaluate.classify.linear import LinearProbe, fit_linear, fit_path, probe
from twoview.evaluate.classify.ridge import fit_ridge

STRENGTHS = [10.0, 1e-1, 1e-3, 1e-5]


def problem(n: int = 600, dim: int = 12, classes: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Overlapping classes in features like a network's: positive, far from zero mean, badly conditioned."""
    g = torch.Generator().manual_seed(seed)
    labels = torch.cat([torch.arange(classes), torch.randint(0, classes, (n - classes,), generator=g)])
    centres = torch.randn(classes, dim, generator=g)
    mix = torch.randn(dim, dim, generator=g) * torch.logspace(0, -3, dim)
    return ((centres[labels] + 1.5 * torch.randn(n, dim, generator=g)) @ mix.T).relu() + 3, labels


def objective(head: LinearProbe, features: Tensor, labels: Tensor) -> float:
    return float(F.cross_entropy(head.logits(features), labels) + head.l2 / 2 * head.weight.square().sum())


@pytest.mark.parametrize("l2", [1e-1, 1e-3, 1e-5])
def test_equals_scikit_learn(l2: float) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, labels = problem(2000, 30, 5)
    head = fit_linear(features, labels, 5, l2)
    x = features.double().numpy()
    x = (x - x.mean(0)) / x.std(0)
    other = linear_model.LogisticRegression(C=1 / (len(x) * l2), tol=1e-7, max_iter=20_000).fit(x, labels.numpy())
    theirs = F.cross_entropy(torch.from_numpy(other.decision_function(x)), labels)
    theirs += l2 / 2 * float((other.coef_**2).sum())
    assert head.objective == pytest.approx(float(theirs), rel=1e-6)
    assert (head.logits(features).argmax(1).numpy() == other.predict(x)).mean() >= 0.999


@pytest.mark.parametrize("l2", [1e-1, 1e-3])
def test_of_two_classes_scikit_learn_has_twice_the_c(l2: float) -> None:
    """It fits one weight, which is the difference of our two."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, labels = problem(1000, 10, 2)
    head = fit_linear(features, labels, 2, l2)
    x = features.double().numpy()
    x = (x - x.mean(0)) / x.std(0)
    other = linear_model.LogisticRegression(C=2 / (len(x) * l2), tol=1e-10, max_iter=20_000).fit(x, labels.numpy())
    torch.testing.assert_close(
        (head.weight[1] - head.weight[0]).cpu().double(), torch.from_numpy(other.coef_[0]), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("l2", [1e-2, 1e-4])
def test_equals_scikit_learn_on_real_images(l2: float) -> None:
    """Pixels of digits: some are constant, many nearly so, and neighbours say the same."""
    datasets = pytest.importorskip("sklearn.datasets")
    linear_model = pytest.importorskip("sklearn.linear_model")
    pixels, digits = datasets.load_digits(return_X_y=True)
    features, labels = torch.from_numpy(pixels).float(), torch.from_numpy(digits).long()
    head = fit_linear(features, labels, 10, l2)
    x = (pixels - pixels.mean(0)) / np.where(pixels.std(0) == 0, 1, pixels.std(0))
    other = linear_model.LogisticRegression(C=1 / (len(x) * l2), tol=1e-7, max_iter=20_000).fit(x, digits)
    theirs = F.cross_entropy(torch.from_numpy(other.decision_function(x)), labels)
    theirs += l2 / 2 * float((other.coef_**2).sum())
    assert head.objective == pytest.approx(float(theirs), rel=1e-6)
    assert (head.logits(features).argmax(1).numpy() == other.predict(x)).mean() >= 0.999


@pytest.mark.parametrize("l2", STRENGTHS)
def test_the_certificate_is_true(l2: float) -> None:
    features, labels = problem()
    head = fit_linear(features, labels, 4, l2, tol=1e-5)
    exact = fit_linear(features, labels, 4, l2, tol=1e-14)
    assert head.objective == pytest.approx(objective(head, features, labels), rel=1e-6)
    assert head.gap_bound <= 1e-5
    assert -1e-12 <= head.objective - exact.objective <= head.gap_bound
    assert float((head.weight - exact.weight).norm()) <= head.distance_bound + exact.distance_bound


def test_the_gradient_norm_is_that_of_autograd() -> None:
    features, labels = problem()
    head = fit_linear(features, labels, 4, 1e-3, tol=1e-4)
    x = (features.double() - head.mean) / head.std
    weight, bias = head.weight.clone().requires_grad_(), head.bias.clone().requires_grad_()
    (F.cross_entropy(x @ weight.T + bias, labels) + 1e-3 / 2 * weight.square().sum()).backward()
    assert weight.grad is not None
    assert bias.grad is not None
    assert float(weight.grad.norm()) == pytest.approx(head.gradient_norm, rel=1e-3)
    assert float(bias.grad.norm()) < 1e-7  # the bias is solved; what is left is the float32 of the features


def test_an_infinite_strength_leaves_the_class_shares() -> None:
    features, labels = problem()
    head = fit_linear(features, labels, 4, 1e8)
    share = torch.bincount(labels).double() / len(labels)
    assert float(head.weight.norm()) < 1e-6
    torch.testing.assert_close(head.bias, share.log() - share.log().mean(), atol=1e-6, rtol=0)
    assert head.objective == pytest.approx(float(-(share * share.log()).sum()), abs=1e-6)


@pytest.mark.parametrize("l2", [1.0, 1e-2, 1e-4])
def test_two_points_have_a_closed_form(l2: float) -> None:
    """Classes at -1 and +1, weights -w and +w: the margin is 2w and l2 w = 1 / (1 + exp(2w))."""
    head = fit_linear(torch.tensor([[-1.0], [1.0]]).repeat(5, 1), torch.tensor([0, 1]).repeat(5), 2, l2, tol=1e-16)
    w = float(head.weight[1])
    assert float(head.weight[0]) == pytest.approx(-w, rel=1e-9)
    assert l2 * w == pytest.approx(1 / (1 + math.exp(2 * w)), rel=1e-5)
    assert head.bias.abs().max() < 1e-7


@settings(deadline=None, max_examples=10)
@given(
    st.lists(st.floats(0.01, 100), min_size=12, max_size=12),
    st.lists(st.floats(-5, 5), min_size=12, max_size=12),
)
def test_units_and_origin_of_a_feature_do_not_matter(scale: list[float], shift: list[float]) -> None:
    features, labels = problem(200)
    features = features.double()
    moved = (features + torch.tensor(shift)) * torch.tensor(scale)
    one, other = fit_linear(features, labels, 4, 1e-2), fit_linear(moved, labels, 4, 1e-2)
    torch.testing.assert_close(one.logits(features), other.logits(moved), atol=2e-4, rtol=0)


def test_the_order_of_samples_does_not_matter() -> None:
    features, labels = problem()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(1))
    one = fit_linear(features, labels, 4, 1e-3, tol=1e-14)
    other = fit_linear(features[order], labels[order], 4, 1e-3, tol=1e-14)
    torch.testing.assert_close(one.weight, other.weight, atol=1e-4, rtol=0)


def test_the_start_does_not_matter() -> None:
    features, labels = problem()
    cold = fit_linear(features, labels, 4, 1e-4)
    far = LinearProbe(10 * torch.randn_like(cold.weight), cold.bias + 7, cold.mean, cold.std, 1.0, 0.0, 0, 0.0)
    for start in (far, fit_linear(features, labels, 4, 1.0)):
        warm = fit_linear(features, labels, 4, 1e-4, start=start)
        assert warm.objective == pytest.approx(cold.objective, abs=1e-9)
        torch.testing.assert_close(warm.logits(features), cold.logits(features), atol=2e-2, rtol=0)
    assert fit_linear(features, labels, 4, 1e-4, start=cold).iterations == 0


def test_a_path_is_its_single_fits_from_strong_to_weak() -> None:
    features, labels = problem()
    path = list(fit_path(features, labels, 4, [1e-3, 10.0, 1e-1]))
    assert [head.l2 for head in path] == [10.0, 1e-1, 1e-3]
    for head in path:
        assert head.objective == pytest.approx(fit_linear(features, labels, 4, head.l2).objective, abs=1e-9)


def test_a_constant_feature_and_more_features_than_samples() -> None:
    features, labels = problem(30, 60)
    features[:, 5] = 0.1
    head = fit_linear(features, labels, 4, 1e-6)  # separable: large weights, saturated probabilities
    assert head.std[5] == 1.0
    assert head.gap_bound <= 1e-10
    assert torch.equal(head.logits(features).argmax(1), labels)
    assert head.weight[:, 5].abs().max() < 1e-6


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    from twoview.evaluate.classify import newton

    features, labels = problem()
    whole = fit_linear(features, labels, 4, 1e-3)
    monkeypatch.setattr(newton, "BLOCK", {"cpu": 7 * features.shape[1]})
    torch.testing.assert_close(fit_linear(features, labels, 4, 1e-3).weight, whole.weight, atol=1e-3, rtol=0)


def test_stopping_early_is_said_and_certified(caplog: pytest.LogCaptureFixture) -> None:
    features, labels = problem()
    with caplog.at_level(logging.WARNING):
        head = fit_linear(features, labels, 4, 1e-5, max_iter=2)
    assert "stopped after 2 Newton steps" in caplog.text
    assert head.gap_bound > 1e-10
    assert head.objective - fit_linear(features, labels, 4, 1e-5).objective <= head.gap_bound


def arguments(**changes: Any) -> dict[str, Any]:
    features, labels = problem(900, classes=6)
    result = {
        "train_features": features[:600], "train_labels": labels[:600],
        "test_features": features[600:], "test_labels": labels[600:],
        "classes": 6, "strengths": STRENGTHS, "holdout": 0.1, "seed": 0,
    }  # fmt: skip
    return result | changes


def test_the_figures_of_a_probe_agree_with_each_other() -> None:
    given_ = arguments()
    result = probe(**given_)
    right = result.head.logits(given_["test_features"]).argmax(1) == given_["test_labels"]
    confusion = np.array(result.confusion)
    assert result.top1 == pytest.approx(float(right.double().mean()))
    assert result.top1 == pytest.approx(np.trace(confusion) / 300)
    assert confusion.sum(1).tolist() == torch.bincount(given_["test_labels"], minlength=6).tolist()
    np.testing.assert_allclose([float(a or 0) for a in result.per_class], np.diag(confusion) / confusion.sum(1))
    assert result.top5 is not None
    assert result.top1 < result.top5 <= 1
    assert result.interval.low < result.top1 < result.interval.high
    assert result.chance == 1 / 6 < result.majority < result.top1
    assert (result.train_size, result.test_size) == (600, 300)
    assert 55 <= result.holdout_size <= 65
    assert result.gap_bound <= 1e-10
    plain = result.plain()
    assert json.loads(json.dumps(plain)) == plain
    assert "head" not in plain


def test_the_strength_is_the_best_held_out_and_the_stronger_on_a_tie() -> None:
    result = probe(**arguments())
    best = max(entry["accuracy"] for entry in result.path)
    assert result.l2 == max(entry["l2"] for entry in result.path if entry["accuracy"] == best)
    labels = torch.tensor([0, 1]).repeat(30)
    apart = F.one_hot(labels).float()
    assert probe(apart, labels, apart, labels, 2, STRENGTHS, 0.1, 0).l2 == max(STRENGTHS)


def test_the_final_head_is_fitted_on_all_of_the_training_set() -> None:
    given_ = arguments()
    result = probe(**given_)
    alone = fit_linear(given_["train_features"], given_["train_labels"], 6, result.l2)
    assert torch.equal(result.head.mean, alone.mean)
    assert result.objective == pytest.approx(alone.objective, abs=1e-9)


def test_the_choice_never_sees_the_test_set() -> None:
    one = probe(**arguments())
    labels = arguments()["test_labels"]
    other = probe(**arguments(test_labels=labels.flip(0), test_features=torch.randn(300, 12)))
    assert one.path == other.path
    assert torch.equal(one.head.weight, other.head.weight)


def test_the_same_seed_gives_the_same_result_and_another_another_split() -> None:
    one, again, other = (probe(**arguments(seed=seed)).plain() for seed in (3, 3, 4))
    for result in (one, again, other):
        result.pop("seconds")
    assert one == again
    assert one["path"] != other["path"]


def test_few_classes_have_no_top5_and_absent_test_classes_no_accuracy() -> None:
    features, labels = problem()
    few = labels < 3
    result = probe(features, labels, features[few], labels[few], 4, [1e-2], 0.1, 0)
    assert result.top5 is None
    assert result.per_class[3] is None
    assert all(share is not None for share in result.per_class[:3])


def test_ridge_is_the_second_opinion_on_the_same_split() -> None:
    given_ = arguments()
    result = probe(**given_)
    head = fit_ridge(given_["train_features"], given_["train_labels"], 6, STRENGTHS)
    right = head.logits(given_["test_features"]).argmax(1) == given_["test_labels"]
    assert result.ridge["top1"] == pytest.approx(float(right.double().mean()))
    assert result.ridge["l2"] == head.l2
    assert result.ridge["interval"][0] < result.ridge["top1"] < result.ridge["interval"][1]


def test_the_text_and_the_hash_tell_protocols_apart() -> None:
    one, same = probe(**arguments()), probe(**arguments(strengths=STRENGTHS[::-1]))
    assert one.protocol_hash == same.protocol_hash
    for changes in ({"seed": 1}, {"holdout": 0.2}, {"strengths": STRENGTHS[1:]}):
        assert probe(**arguments(**changes)).protocol_hash != one.protocol_hash
    for words in ("of 4 from the strongest down", "is the best on 10 % of the training set", "seed 0", "1e-10 nats"):
        assert words in one.protocol_text


def test_a_collapsed_encoder_is_worth_its_largest_class(caplog: pytest.LogCaptureFixture) -> None:
    given_ = arguments()
    labels = given_["train_labels"].clone()
    labels[:300] = 2
    with caplog.at_level(logging.WARNING):
        result = probe(**given_ | {
            "train_features": torch.ones(600, 12), "train_labels": labels, "test_features": torch.ones(300, 12)
        })  # fmt: skip
    assert "the encoder has collapsed" in caplog.text
    assert sum(map(sum, result.confusion)) == sum(row[2] for row in result.confusion) == 300
    assert result.head.weight.abs().max() == 0


def test_fewer_test_images_than_classes_are_said(caplog: pytest.LogCaptureFixture) -> None:
    given_ = arguments()
    with caplog.at_level(logging.WARNING):
        result = probe(**given_ | {"test_features": given_["test_features"][:4], "test_labels": torch.arange(4)})
    assert "4 test images for 6 classes: those of class 4, 5 have no accuracy" in caplog.text
    assert result.per_class[4:] == [None, None]


def test_a_class_that_cannot_be_held_out_is_said(caplog: pytest.LogCaptureFixture) -> None:
    given_ = arguments()
    keep = (given_["train_labels"] != 3) | (torch.arange(600) == int((given_["train_labels"] == 3).nonzero()[0]))
    with caplog.at_level(logging.WARNING):
        result = probe(**given_ | {key: given_[key][keep] for key in ("train_features", "train_labels")})
    assert "no image of class 3 can be held out" in caplog.text
    assert result.train_size == int(keep.sum())


def nan(x: Tensor) -> Tensor:
    x = x.clone()
    x[3, 2] = math.nan
    return x


good = arguments()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train_labels": None}, "needs labels.*training set has none"),
        ({"test_labels": None}, "needs labels.*test set has none"),
        ({"classes": 7}, "No training image is of class 6"),
        ({"classes": 1}, "two or more"),
        ({"classes": 5}, "labels of the training set run from 0 to 5"),
        ({"classes": 1000}, "600 training images are"),
        (
            {"test_features": good["test_features"][:, :5]},
            "12 dimensions.*5: extract both with the same encoder",
        ),
        ({"train_features": nan(good["train_features"])}, "training set hold NaN"),
        ({"test_features": nan(good["test_features"])}, "test set hold NaN"),
        ({"train_features": good["train_features"][:9]}, "one row of features per label"),
        (
            {"test_features": good["test_features"][:0], "test_labels": good["test_labels"][:0]},
            "test set is empty",
        ),
        ({"strengths": []}, "one or more positive"),
        ({"strengths": [1.0, 0.0]}, "one or more positive"),
        ({"holdout": 0.0}, "between 0 and 1"),
        (
            {"train_features": good["train_features"][:6], "train_labels": torch.arange(6)},
            "none can be held out",
        ),
    ],
)
def test_what_cannot_be_probed_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        probe(**arguments(**changes))
