"""What an encoder makes of a table, beside models that read its columns: few labels and all, with intervals.

    python benchmarks/tables.py ckpt=<run folder> [labels=1,5,10] [draws=5] [all=true] [out=tables.json]

One table: logistic regression (scikit-learn's, its constants as they are, on standardised features) on the trained
encoder, on the trained encoder beside the raw columns, on the untrained encoder and on the raw columns, and histogram
gradient boosting on the raw columns. Of `labels` rows a class, drawn `draws` times, the same for all, and with
all=true of all rows. Accuracy on the test split; of two classes the area under the ROC curve. An interval is
Student's, of the mean over the draws: it holds for this run and this test split.

The last row is the paired difference of the first and the raw columns.

Writes tables.json with every number, the machine, versions and commit.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import record
import torch
from rich.console import Console
from rich.table import Table
from speakers import few
from torch import Tensor

from twoview.data.set import SampleSet
from twoview.evaluate.features import extract
from twoview.evaluate.subject import subject
from twoview.stats.intervals import mean_interval


def logistic() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))


def boosting() -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(random_state=0)


def score(model: Any, x: Tensor, labels: Tensor, y: Tensor, truth: Tensor) -> float:
    """Of a model fitted to x (N, D): accuracy on y (M, D), or for two classes the area under the ROC curve."""
    from sklearn.metrics import roc_auc_score

    model.fit(x.numpy(), labels.numpy())
    if len(labels.unique()) == 2:
        return float(roc_auc_score(truth.numpy(), model.predict_proba(y.numpy())[:, 1]))
    return float((torch.from_numpy(model.predict(y.numpy())) == truth).double().mean())


def judge(
    features: dict[str, tuple[Callable[[], Any], Tensor, Tensor]],
    train: SampleSet,
    test: SampleSet,
    labels: list[int],
    draws: int,
    everything: bool,
) -> dict[str, dict[str, list[float]]]:
    """The scores of each model, by how many labels a class: one for each draw."""
    assert train.labels is not None
    assert test.labels is not None
    found: dict[str, dict[str, list[float]]] = {}
    for name, (make, x, y) in features.items():
        found[name] = {}
        for count in labels:
            drawn = [few(train.labels, count, seed) for seed in range(draws)]
            found[name][str(count)] = [score(make(), x[r], train.labels[r], y, test.labels) for r in drawn]
        if everything:
            found[name]["all"] = [score(make(), x, train.labels, y, test.labels)]
    return found


def told(found: dict[str, dict[str, list[float]]], console: Console) -> dict[str, Any]:
    """Prints the scores of each model as a table, in per cent, and returns them with their means and intervals."""
    counts = list(next(iter(found.values())))
    table = Table("", *(f"{count} labels{' a class' * (count != 'all')}" for count in counts))
    report: dict[str, Any] = {}
    for name, scores in found.items():
        report[name], cells = {}, []
        for count, values in scores.items():
            report[name][count] = {"mean": sum(values) / len(values), "draws": values}
            cell = f"{100 * report[name][count]['mean']:.1f}"
            if len(values) > 1:
                i = mean_interval(values)
                report[name][count]["interval"] = [i.low, i.high]
                cell += f" [{100 * i.low:.1f}, {100 * i.high:.1f}]"
            cells.append(cell)
        table.add_row(name, *cells)
    console.print(table)
    return report


def main() -> None:
    words = dict(word.partition("=")[::2] for word in sys.argv[1:])
    if not words.get("ckpt") or set(words) - {"ckpt", "labels", "draws", "all", "out"}:
        sys.exit(__doc__)
    began, console = time.perf_counter(), Console()
    labels, draws = [int(count) for count in words.get("labels", "1,5,10").split(",")], int(words.get("draws", 5))
    own = subject({"ckpt": words["ckpt"], "encoder_of": "student", "device": "cpu", "seed": 0})
    raw = [own.encoder.preprocess.raw(part.samples) for part in (own.train, own.test)]
    trained = [extract(own.encoder, part) for part in (own.train, own.test)]
    untrained = [extract(own.untrained(), part) for part in (own.train, own.test)]
    both = [torch.cat(pair, dim=1) for pair in zip(trained, raw, strict=True)]
    features: dict[str, tuple[Callable[[], Any], Tensor, Tensor]] = {
        "trained": (logistic, trained[0], trained[1]),
        "trained, raw beside": (logistic, both[0], both[1]),
        "untrained": (logistic, untrained[0], untrained[1]),
        "raw": (logistic, raw[0], raw[1]),
        "raw, boosting": (boosting, raw[0], raw[1]),
    }
    found = judge(features, own.train, own.test, labels, draws, words.get("all") == "true")
    found["trained - raw"] = {
        count: [a - b for a, b in zip(values, found["raw"][count], strict=True)]
        for count, values in found["trained"].items()
    }
    report = told(found, console)
    measure = "AUROC" if len(own.train.classes) == 2 else "accuracy"
    path = Path(words.get("out") or "tables.json")
    config = own.encoder.config
    config["data"].pop("root", None)  # of this machine
    result = {"run": config, "measure": measure, "scores": report}
    record.write(path, result, began, {"scikit-learn": record.version("scikit-learn")}, console)


if __name__ == "__main__":
    main()
