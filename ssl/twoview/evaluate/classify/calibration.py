"""How far a classifier's confidence is from its accuracy (Guo et al., "On calibration of modern neural networks", ICML
2017, arXiv 1706.04599)."""

from torch import Tensor


def reliability(probabilities: Tensor, labels: Tensor, bins: int = 15) -> list[dict[str, float]]:
    """The reliability diagram: bins of equal width by the probability of the predicted class, without the empty ones.

    From probabilities (M, classes) and labels (M,). A bin has `low`, `high` (it is open below and closed above), the
    number `n` of its samples, and their mean `confidence` and `accuracy`.
    """
    confidence, predicted = probabilities.double().max(1)
    correct = (predicted == labels.to(predicted.device)).double()
    index = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)
    found = []
    for i in index.unique().tolist():
        inside = index == i
        means = {"confidence": float(confidence[inside].mean()), "accuracy": float(correct[inside].mean())}
        found.append({"low": i / bins, "high": (i + 1) / bins, "n": int(inside.sum()), **means})
    return found


def ece(probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error (eq. 5), in [0, 1]: the gap between confidence and accuracy, averaged over samples in
    the bins of `reliability`.
    """
    found = reliability(probabilities, labels, bins)
    return sum(b["n"] * abs(b["accuracy"] - b["confidence"]) for b in found) / len(labels)
