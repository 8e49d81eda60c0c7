"""Sounds in folders, in an archive or in a list of files: one folder per class, or without classes."""

from pathlib import Path
from typing import Literal

from twoview.data.audio.decode import SUFFIXES, Clips, load_clips
from twoview.data.audio.mel import Mel, fitted
from twoview.data.set import SampleSet
from twoview.data.splits import find, numbered


def audio_folder(
    root: str | Path,
    split: str,
    mel: Mel,
    seconds: float | None = None,
    train: str | None = None,
    test: str | None = None,
    holdout: float | None = None,
    in_memory: bool | Literal["auto"] = "auto",
) -> SampleSet | None:
    """The sound files (FLAC, WAV, OGG) at `root`: a folder of any depth, a zip or tar archive, or a list with one path
    a line.

    Splits, classes and `holdout` as in `twoview.data.splits.find`. Files of any rate and number of channels are
    resampled once to `mel.rate`, and mixed to one channel. `seconds`: every clip is cut to its loudest stretch of that
    length, shorter ones are followed by silence; None: the length of the longest training file. `in_memory`: decode
    all now into one array, or each when asked for; "auto" by the size of that array. Class names, mean and deviation
    are those of train.
    """
    root = Path(root).expanduser()
    of_train, of_test = find(root, SUFFIXES, "sounds", train, test, holdout, quiet=split != "train")
    own = of_train if split == "train" else of_test
    if own is None:
        return None
    learned = Clips(of_train.files, mel.rate, seconds)
    clips = load_clips(own.files, mel.rate, learned.window / mel.rate, in_memory)
    preprocess = fitted(mel, clips if split == "train" else learned)
    labels, classes = numbered(own, of_train, root)
    return SampleSet(root.resolve().name, clips, labels, classes, preprocess, names=own.names, draw=preprocess.picture)
