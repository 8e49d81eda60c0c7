"""Sounds in Parquet files, as Hugging Face stores them: a column of {bytes, path}, columns of labels and speakers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch

from twoview.data.audio.decode import Clips, load_clips
from twoview.data.audio.mel import Mel, fitted
from twoview.data.columns import count_rows, find_splits, read_classes, read_column
from twoview.data.files import NamesOf
from twoview.data.groups import CACHE_MB, FileColumn
from twoview.data.set import SampleSet
from twoview.errors import UserError


def audio_parquet(
    root: str | Path,
    split: str,
    mel: Mel,
    seconds: float | None = None,
    audio_column: str = "audio",
    label_column: str | None = "label",
    speaker_column: str | None = None,
    test_speakers: Sequence[str] | None = None,
    train: str | None = None,
    test: str | None = None,
    in_memory: bool | Literal["auto"] = "auto",
    cache_mb: float = CACHE_MB,
) -> SampleSet | None:
    """The sounds of the Parquet files below `root`, in order of the files' names.

    Splits as in `twoview.data.columns.find_splits`, labels as in `twoview.data.image.parquet`; `mel`, `seconds` and
    `in_memory` as in `audio_folder`. The values of `speaker_column` are the factor `speaker` of the set: their numbers,
    in the order of all speakers' names. With `test_speakers` the split is by them: the train split is that of the files
    without these speakers, the test split all that they said in files of either. Mean and deviation are those of train.
    """
    root = Path(root).expanduser()
    of_train, of_test = find_splits(root, train, test, label_column)
    if split == "test" and not of_test and not test_speakers:
        return None
    files = of_train if split == "train" else [*of_train, *of_test]  # the test split needs mean and deviation of train
    sounds = FileColumn(files, audio_column, "audio", cache_mb=cache_mb)
    n = sum(count_rows(file) for file in of_train)
    known, said = [], [""] * len(sounds)
    if speaker_column is not None:
        names = [str(name) for file in [*of_train, *of_test] for name in read_column(file, speaker_column, "speaker")]
        known, said = sorted(set(names)), names[: len(sounds)]
    left = _held_out(known, test_speakers or ())
    learned = [row for row in range(n) if said[row] not in left]
    if split == "train":
        rows = learned
    else:
        rows = [row for row in range(len(sounds)) if (said[row] in left if left else row >= n)]
    if not rows or not learned:
        raise UserError(f"{root} has no rows in the {split} split ({', '.join(f.name for f in files)})")

    labels: torch.Tensor | None = None
    classes: tuple[str, ...] = ()
    if label_column:
        labelled, start = (of_test, n) if split == "test" and not left else (files, 0)
        numbers, classes = read_classes(labelled, of_train, label_column)
        labels = None if numbers is None else numbers[torch.tensor(rows) - start]
    window, own = Clips(sounds.take(learned), mel.rate, seconds), sounds.take(rows)
    clips = load_clips(own, mel.rate, window.window / mel.rate, in_memory)
    preprocess = fitted(mel, clips if split == "train" else window)
    return SampleSet(
        name=root.resolve().name,
        samples=clips,
        labels=labels,
        classes=classes,
        preprocess=preprocess,
        names=NamesOf(own, root),
        factors={"speaker": torch.tensor([known.index(said[row]) for row in rows])} if known else {},
        draw=preprocess.picture,
    )


def _held_out(known: Sequence[str], wanted: Sequence[str]) -> set[str]:
    """The speakers that are kept for the test."""
    if wanted and not known:
        raise UserError("data.test_speakers needs data.speaker_column, the column that names speakers")
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        raise UserError(f"data.test_speakers names {', '.join(unknown)}; the speakers are {', '.join(known)}")
    if wanted and set(wanted) == set(known):
        raise UserError("data.test_speakers names every speaker: one at least has to be left to learn from")
    return set(wanted)
