"""kNN and the certified linear probe on features from anywhere: NumPy arrays or tensors."""

import numpy as np

import twoview

rng = np.random.default_rng(0)
centres = rng.normal(size=(3, 16))
train_labels, test_labels = np.arange(300) % 3, np.arange(150) % 3
train = centres[train_labels] + rng.normal(size=(300, 16))  # (N, D)
test = centres[test_labels] + rng.normal(size=(150, 16))  # (M, D)

knn = twoview.knn_accuracy(train, train_labels, test, test_labels, k=20)
result = twoview.probe(train, train_labels, test, test_labels)
low, high = result.interval.limits
print(f"kNN {100 * knn:.1f} %, linear {100 * result.top1:.1f} % [{100 * low:.1f}, {100 * high:.1f}]")
print(f"at most {result.gap_bound:.1g} nats from the optimum of logistic regression")
