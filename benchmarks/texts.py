"""What an encoder makes of texts, beside TF-IDF: few labels, with intervals.

    python benchmarks/texts.py ckpt=<run folder> [labels=1,5,10] [draws=5] [out=texts.json]

One table: scikit-learn's logistic regression on the trained encoder, on the untrained one (both on standardised
features), and on TF-IDF of words, and of words and pairs of neighbours, each with the constant C = 1, scikit-learn's
own, and with C = 10. Of `labels` texts a class, drawn `draws` times, the same for all. TF-IDF learns its weights from
all training texts, as the encoder does. Accuracy on the test split. An interval is Student's, of the mean over the
draws: it holds for this run and this test split.

The last rows are the paired differences of the trained encoder and each of the others.

Writes texts.json with every number, the machine, versions and commit.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import record
import torch
from rich.console import Console
from tables import judge, logistic, told
from torch import Tensor

from twoview.data.set import SampleSet
from twoview.evaluate.features import extract
from twoview.evaluate.subject import subject


def tfidf(train: SampleSet, test: SampleSet, most: int) -> tuple[Tensor, Tensor]:
    """Of runs of up to `most` words: (N, V) of both splits, whose texts are read as the encoder reads them."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(token_pattern=r"\S+", ngram_range=(1, most))
    read: Any = train.preprocess
    x = vectors.fit_transform(read.read(train.samples))
    y = vectors.transform(read.read(test.samples))
    return torch.from_numpy(x.toarray()).float(), torch.from_numpy(y.toarray()).float()


def plain(c: float) -> Callable[[], Any]:
    """Logistic regression on features as they are."""
    from sklearn.linear_model import LogisticRegression

    return lambda: LogisticRegression(max_iter=1000, C=c)


def main() -> None:
    words = dict(word.partition("=")[::2] for word in sys.argv[1:])
    if not words.get("ckpt") or set(words) - {"ckpt", "labels", "draws", "out"}:
        sys.exit(__doc__)
    began, console = time.perf_counter(), Console()
    labels, draws = [int(count) for count in words.get("labels", "1,5,10").split(",")], int(words.get("draws", 5))
    own = subject({"ckpt": words["ckpt"], "encoder_of": "student", "device": "cpu", "seed": 0})
    single, pairs = (tfidf(own.train, own.test, most) for most in (1, 2))
    trained = [extract(own.encoder, part) for part in (own.train, own.test)]
    untrained = [extract(own.untrained(), part) for part in (own.train, own.test)]
    features: dict[str, tuple[Callable[[], Any], Tensor, Tensor]] = {
        "trained": (logistic, trained[0], trained[1]),
        "untrained": (logistic, untrained[0], untrained[1]),
        "TF-IDF, words": (plain(1), *single),
        "TF-IDF, words, C = 10": (plain(10), *single),
        "TF-IDF, words and pairs": (plain(1), *pairs),
        "TF-IDF, words and pairs, C = 10": (plain(10), *pairs),
    }
    found = judge(features, own.train, own.test, labels, draws, everything=False)
    for name in list(found)[1:]:
        found[f"trained - {name}"] = {
            count: [a - b for a, b in zip(values, found[name][count], strict=True)]
            for count, values in found["trained"].items()
        }
    config = own.encoder.config
    config["data"].pop("root", None)  # of this machine
    path = Path(words.get("out") or "texts.json")
    result = {"run": config, "measure": "accuracy", "scores": told(found, console)}
    record.write(path, result, began, {"scikit-learn": record.version("scikit-learn")}, console)


if __name__ == "__main__":
    main()
