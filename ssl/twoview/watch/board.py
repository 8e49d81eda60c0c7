"""What TensorBoard shows of a run: curves in groups, each with what it means, the run in words, and its final numbers.

A reading's name in `metrics.csv` is a place here: `loss` is `loss/loss`, `knn` is `evaluation/knn`, `h_rankme` is
`representation/h/rankme`; what a method tells beside these is `method/<name>`.
"""

import shlex
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import yaml
from pytorch_lightning.loggers import TensorBoardLogger
from torch.utils.tensorboard.summary import hparams, scalar

from twoview.cli.program import spelled
from twoview.run.identity import relevant
from twoview.watch.meter import Meter

PLACES = {
    "loss": "loss",
    "chance_loss": "loss",
    "accuracy": "accuracy",
    "knn": "evaluation",
    "spread": "representation/z",
    "lr": "speed",
    "images_per_second": "speed",
    "seconds": "speed",
    "waiting": "speed",
}
MEANINGS = {
    "loss": "What is minimised, in nats where it is a cross-entropy: mean since the reading before.",
    "chance_loss": "The loss of an encoder that tells nothing apart. A loss that stays here has not begun to learn.",
    "accuracy": "How often a view's own pair is the most similar of all candidates in the batch.",
    "knn": "Share of test images whose nearest training images vote for the right class. Labels are used here alone.",
    "spread": "Deviation of a dimension of the projections, in units of 1 / sqrt(D): 1 spread out, 0 collapsed.",
    "lr": "Learning rate.",
    "images_per_second": "Images that were trained on in a second, evaluations left out.",
    "seconds": "Training time so far, evaluations left out.",
    "waiting": "Share of the time in which training waited for batches: above 0.1 the input is the bottleneck.",
    "alignment": "Mean squared distance of the two views of an image on the unit sphere: 0, they are the same.",
    "uniformity": "Log of the mean Gaussian potential of different images: the lower, the more evenly spread.",
    "rankme": "RankMe: how many dimensions carry the features, by the entropy of their singular values.",
    "effective_rank": "The same by the entropy of the variances.",
    "participation_ratio": "The same by the squares of the variances, which weighs the largest most.",
    "std": "Deviation of a dimension of unit features, in units of 1 / sqrt(D): 1 spread out, 0 collapsed.",
    "correlation": "Mean absolute correlation of two dimensions: 0, none repeats another.",
    "contrastive_accuracy": "How often a view's pair is the nearest of all views that were measured.",
}
FINAL = ("loss", "accuracy", "knn", "h_alignment", "h_uniformity", "h_rankme", "images_per_second", "seconds")


def place(name: str) -> str:
    """The tag of a reading."""
    space, _, quality = name.partition("_")
    if space in ("h", "z") and quality in MEANINGS:
        return f"representation/{space}/{quality}"
    return f"{PLACES.get(name, 'method')}/{name}"


def layout() -> dict[str, Any]:
    """Charts of the tab `Custom Scalars`: what belongs together, the loss first."""

    def chart(*names: str) -> list[Any]:
        return ["Multiline", [f"^{place(name)}$" for name in names]]

    both = ("alignment", "uniformity", "std", "correlation", "contrastive_accuracy")
    ranks = ("rankme", "effective_rank", "participation_ratio")
    return {
        "loss": {"loss and its chance level": chart("loss", "chance_loss")},
        "accuracy": {
            "contrastive accuracy (training)": chart("accuracy"),
            "kNN accuracy (test images)": chart("knn"),
        },
        "representation": {
            **{f"{name} of h and z": chart(f"h_{name}", f"z_{name}") for name in both},
            **{f"ranks of {space}": chart(*(f"{space}_{rank}" for rank in ranks)) for space in ("h", "z")},
        },
        "speed": {
            "images per second": chart("images_per_second"),
            "waiting for data": chart("waiting"),
            "learning rate": chart("lr"),
        },
    }


class TensorBoard(TensorBoardLogger):
    """Readings by their names. Without the `hparams.yaml` that Lightning adds: `config.yaml` holds the configuration.
    What a full disk does to it ends no run. Its file is made when the run begins, not by one that is refused.
    """

    begun = False

    @property
    def experiment(self) -> Any:
        return super().experiment if self.begun else None  # Lightning asks for it before it looks at a checkpoint

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.begun = True
        with suppress(OSError, ValueError):
            for name, value in metrics.items():
                summary = scalar(place(name), value)
                meaning = MEANINGS.get(name) or MEANINGS.get(name.partition("_")[2], "")
                summary.value[0].metadata.summary_description = meaning
                self.experiment.file_writer.add_summary(summary, step)

    def save(self) -> None:
        if self._experiment is not None:  # else this would begin a file before the run has begun
            with suppress(OSError):
                self.experiment.flush()

    def finalize(self, status: str) -> None:
        with suppress(OSError):
            super().finalize(status)


class Board(pl.Callback):
    """The layout, the command and the configuration at the start of a run, and its final numbers at the end, as a row
    of the tab `HParams`. `config` is the run's own.
    """

    def __init__(self, config: Mapping[str, Any], meter: Meter) -> None:
        self.config, self.meter = config, meter

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for logger in self._of(trainer):
            logger.begun = True
            writer = logger.experiment
            writer.add_custom_scalars(layout())
            writer.add_text("run/command", _block(_command()))
            writer.add_text("run/configuration", _block(yaml.safe_dump(dict(self.config), sort_keys=False)))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        newest = self.meter.newest
        final = {name: newest[name] for name in FINAL if name in newest}
        settings = _settings(dict(self.config))
        for logger in self._of(trainer):
            logger.log_metrics({name: newest[name] for name in sorted(self.meter.seldom)}, trainer.global_step)
            with suppress(OSError, ValueError):
                for summary in hparams(settings, {place(name): value for name, value in final.items()}):
                    logger.experiment.file_writer.add_summary(summary)

    def _of(self, trainer: pl.Trainer) -> list[TensorBoard]:
        return [one for one in trainer.loggers if isinstance(one, TensorBoard)] if trainer.is_global_zero else []


def _settings(config: dict[str, Any]) -> dict[str, bool | float | str]:
    """What decides the result, without the details of operations, which would be the first thirty columns."""
    found = {name: value for name, value in relevant(config).items() if not name.startswith("augment.ops.")}
    found |= {"seed": config["seed"], "augment.strength": config["augment"].get("strength")}
    settings: dict[str, bool | float | str] = {}
    for name, value in found.items():
        if name.endswith("._target_"):
            settings[name.removesuffix("._target_")] = str(value).rpartition(".")[2]
        elif value is not None:
            settings[name] = value if isinstance(value, bool | int | float | str) else str(value)
    return settings


def _command() -> str:
    """How the process was started."""
    program, *words = sys.argv
    if Path(program).name in ("twoview", "__main__.py", "train.py"):
        return spelled("train", *(words[1:] if words[:1] == ["train"] else words))
    return shlex.join([program, *words])


def _block(text: str) -> str:
    """Text as it is, in Markdown."""
    return "\n".join(f"    {line}" for line in text.splitlines())
