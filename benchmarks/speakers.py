"""What an encoder knows of words in voices that it never heard: folds over speakers, intervals over speakers.

    python benchmarks/speakers.py experiment=fsdd root=<folder of the Parquet files> [folds=3] [labels=1,5,10] [draws=5]
        [out=speakers.json] [words of train.py ...]

The speakers of the experiment's data, by their names, are dealt into `folds`. For each, train.py runs with
`data.test_speakers` of the fold in runs/speakers/<experiment>/<fold> (a run that is finished there is taken), so that
neither the encoder, nor mean and deviation, nor the probe know its voices. folds=0 takes the split of the set itself,
if that is by speakers. In one table: the trained encoder, the same one untrained, and the flat log-mel spectrogram,
each with scikit-learn's logistic regression, its constants as they are, on standardised features: of `labels` samples
a class (drawn `draws` times) and of all. An interval is Student's, of the mean over all speakers of the tests.

Writes speakers.json, with the commands, the accuracy of every speaker, the seconds of every run, the machine, versions
and commit.
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import record
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from twoview.data.set import SampleSet
from twoview.evaluate.features import extract
from twoview.evaluate.subject import Subject, subject
from twoview.rng import permutation
from twoview.stats.intervals import mean_interval

ROOT = Path(__file__).resolve().parents[1]


class Flat(nn.Module):
    """What the encoder takes, as one long vector."""

    def __init__(self, preprocess: nn.Module) -> None:
        super().__init__()
        self.preprocess = preprocess

    def forward(self, samples: Any) -> Tensor:
        return self.preprocess(samples).flatten(1)


def few(labels: Tensor, count: int, seed: int) -> Tensor:
    """`count` sample numbers of every class, drawn by the seed."""
    order = permutation(len(labels), seed, epoch=0, stream="few labels")
    return torch.cat([order[labels[order] == label][:count] for label in labels.unique()])


def by_speaker(train: SampleSet, test: SampleSet, encoder: nn.Module, labels: list[int], draws: int) -> dict[str, Any]:
    """Accuracy for each speaker of the test split: by its number, by how many labels."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x, y = extract(encoder, train).numpy(), extract(encoder, test).numpy()
    assert train.labels is not None
    assert test.labels is not None
    known, heard = train.labels.numpy(), test.factors["speaker"]

    def score(rows: Any) -> dict[int, float]:
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(x[rows], known[rows])
        right = torch.from_numpy(probe.predict(y) == test.labels.numpy())  # type: ignore[union-attr]
        return {int(s): float(right[heard == s].double().mean()) for s in heard.unique()}

    found: dict[str, Any] = {}
    for count in labels:
        scores = [score(few(train.labels, count, seed).numpy()) for seed in range(draws)]
        found[str(count)] = {s: sum(one[s] for one in scores) / draws for s in scores[0]}
    found["all"] = score(slice(None))
    return found


def names_of(root: Path) -> list[str]:
    """The speakers of Parquet files, in the order of their names."""
    from twoview.data.columns import read_column

    files = [*root.glob("train*.parquet"), *root.glob("test*.parquet")]
    return sorted({str(name) for file in files for name in read_column(file, "speaker", "speaker")})


def judge(run: Path, labels: list[int], draws: int) -> dict[str, Any]:
    config = {"ckpt": str(run), "encoder_of": "student", "device": "cpu", "seed": 0}
    own: Subject = subject(config)
    encoders: dict[str, Callable[[], nn.Module]] = {
        "trained": lambda: own.encoder,
        "untrained": own.untrained,
        "flat log-mel": lambda: Flat(own.encoder.preprocess),
    }
    return {name: by_speaker(own.train, own.test, make(), labels, draws) for name, make in encoders.items()}


def main() -> None:
    own = ("experiment=", "folds=", "labels=", "draws=", "out=", "root=")
    words = dict(word.partition("=")[::2] for word in sys.argv[1:] if word.startswith(own))
    others = [word for word in sys.argv[1:] if not word.startswith(own)]
    if not words.get("experiment") or not words.get("root"):
        sys.exit(__doc__)
    began, speakers, console = time.perf_counter(), names_of(Path(words["root"])), Console()
    folds, draws = int(words.get("folds", 3)), int(words.get("draws", 5))
    labels = [int(count) for count in words.get("labels", "1,5,10").split(",")]
    commands, seconds, found = [], [], {}
    deal = [speakers[fold * len(speakers) // folds : (fold + 1) * len(speakers) // folds] for fold in range(folds)]
    for out in deal or [[]]:
        run = Path("runs/speakers") / words["experiment"] / ("_".join(out) or "own_split")
        command = [f"experiment={words['experiment']}", f"data.root={words['root']}", *others]
        command += [f"data.test_speakers=[{','.join(out)}]"] if out else []
        command += [f"hydra.run.dir={run}"]
        commands.append(" ".join(["python", "train.py", *command]).replace(f"={words['root']} ", "=<root> "))
        if not (run / "summary.json").exists():
            code = subprocess.run([sys.executable, str(ROOT / "train.py"), *command]).returncode
            if code:
                sys.exit(code)
        seconds.append(json.loads((run / "summary.json").read_text())["training_seconds"])
        for name, scores in judge(run, labels, draws).items():
            for count, shares in scores.items():
                found.setdefault(name, {}).setdefault(count, {}).update({speakers[s]: v for s, v in shares.items()})
    table = Table("", *(f"{count} labels a class" for count in labels), "all labels")
    report: dict[str, Any] = {}
    for name, scores in found.items():
        intervals = {count: mean_interval(list(shares.values())) for count, shares in scores.items()}
        report[name] = {
            count: {"mean": i.mean, "interval": [i.low, i.high], "speakers": scores[count]}
            for count, i in intervals.items()
        }
        table.add_row(
            name, *(f"{100 * i.mean:.1f} [{100 * i.low:.1f}, {100 * i.high:.1f}]" for i in intervals.values())
        )
    console.print(table)
    result = {"commands": commands, "training_seconds": seconds, "accuracy": report}
    record.write(Path(words.get("out") or "speakers.json"), result, began, {}, console)


if __name__ == "__main__":
    main()
