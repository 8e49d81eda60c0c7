"""How alike an encoder finds two sentences, beside people's judgement: Spearman's rank correlation.

    python benchmarks/pairs.py ckpt=<run folder> pairs=<Parquet or CSV file> [a=sentence1] [b=sentence2] [score=score]
        [out=pairs.json]

Likeness is the cosine of the features of both sentences, centred on the mean feature of the run's training texts: of
the trained encoder, of the untrained one, and of TF-IDF with the words and weights of the run's vocabulary; words that
it lacks are unknown to all three. TF-IDF of the words of these pairs themselves is beside them: it knows every word.
An interval is from 2,000 draws of as many pairs with replacement: it holds for this run.

Writes pairs.json with every number, the machine, versions and commit.
"""

import sys
import time
from pathlib import Path

import record
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from twoview.data.set import SampleSet
from twoview.data.table.read import read_table
from twoview.data.text.words import Words, cut
from twoview.evaluate.features import extract
from twoview.evaluate.subject import subject

DRAWS = 2000


def likeness(encoder: nn.Module, train: SampleSet, sides: list[SampleSet]) -> Tensor:
    """Cosine (N,) of the centred features of both sides."""
    centre = extract(encoder, train).mean(0)
    a, b = (extract(encoder, side) - centre for side in sides)
    return cosine_similarity(a, b)


def of_all_words(sides: list[list[str]]) -> Tensor:
    """Cosine (N,) of TF-IDF that is learned from the pairs themselves."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(tokenizer=cut, token_pattern=None).fit(sides[0] + sides[1])
    a, b = (torch.from_numpy(vectors.transform(side).toarray()) for side in sides)
    return cosine_similarity(a, b)


def spearman(alike: Tensor, score: Tensor) -> dict[str, float]:
    """Spearman's correlation and the 95 % interval of its bootstrap."""
    from scipy.stats import spearmanr

    g = torch.Generator().manual_seed(0)
    rows = torch.randint(len(score), (DRAWS, len(score)), generator=g)
    drawn = torch.tensor([spearmanr(alike[row], score[row]).statistic for row in rows], dtype=torch.float64)
    low, high = drawn.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return {"spearman": float(spearmanr(alike, score).statistic), "low": low, "high": high}


def main() -> None:
    words = dict(word.partition("=")[::2] for word in sys.argv[1:])
    if not words.get("ckpt") or not words.get("pairs") or set(words) - {"ckpt", "pairs", "a", "b", "score", "out"}:
        sys.exit(__doc__)
    began, console = time.perf_counter(), Console()
    own = subject({"ckpt": words["ckpt"], "encoder_of": "student", "device": "cpu", "seed": 0}, labelled=False)
    columns = read_table(Path(words["pairs"]), [words.get(side, f"sentence{i}") for i, side in enumerate("ab", 1)])
    texts = [[str(text) for text in columns[words.get(side, f"sentence{i}")]] for i, side in enumerate("ab", 1)]
    score = torch.tensor([float(value) for value in columns[words.get("score", "score")]])
    read = own.train.preprocess
    assert isinstance(read, Words)
    length = own.train.shape[0]
    sides = [
        SampleSet("pairs", read.encode([read.cut(text) for text in side], length), None, (), read) for side in texts
    ]
    raw = [read.raw(side.samples) for side in sides]  # type: ignore[arg-type]
    alike = {
        "trained": likeness(own.encoder, own.train, sides),
        "untrained": likeness(own.untrained(), own.train, sides),
        "TF-IDF, words of the run": cosine_similarity(*raw),
        "TF-IDF, words of the pairs": of_all_words(texts),
    }
    found = {name: spearman(values, score) for name, values in alike.items()}
    table = Table("", "Spearman x 100")
    for name, value in found.items():
        table.add_row(name, f"{100 * value['spearman']:.1f} [{100 * value['low']:.1f}, {100 * value['high']:.1f}]")
    console.print(table)
    config = own.encoder.config
    config["data"].pop("root", None)  # of this machine
    result = {"run": config, "file": Path(words["pairs"]).name, "pairs": len(score), "correlation": found}
    record.write(Path(words.get("out") or "pairs.json"), result, began, {"scipy": record.version("scipy")}, console)


if __name__ == "__main__":
    main()
