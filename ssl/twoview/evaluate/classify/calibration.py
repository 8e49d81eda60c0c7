"""Does a classifier know how sure it may be? Accuracy against confidence, bin by bin."""

from torch import Tensor


def reliability(probabilities: Tensor, labels: Tensor, bins: int = 15) -> list[dict[str, float]]:
    """Bins of equal width by the probability of the predicted class (Guo et al., arXiv 1706.04599): for each that is
    not empty `low`, `high`, the number `n` of its samples, and the means of their `confidence` and `accuracy`.

    Probabilities (M, classes), labels (M,). The mean gap of the two, weighted by n, is `score.ece`.
    """
    confidence, predicted = probabilities.double().max(1)
    right = (predicted == labels.to(predicted.device)).double()
    index = (confidence * bins).ceil().long().sub(1).clamp(0, bins - 1)  # bins are open below, closed above
    found = []
    for i in index.unique().tolist():
        here = index == i
        found.append(
            {
                "low": i / bins,
                "high": (i + 1) / bins,
                "n": int(here.sum()),
                "confidence": float(confidence[here].mean()),
                "accuracy": float(right[here].mean()),
            }
        )
    return found
