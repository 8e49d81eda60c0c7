"""Sounds in folders: one folder per class, or one flat folder without labels."""

from pathlib import Path
from typing import Literal

import torch

from twoview.data.audio.decode import SUFFIXES, Clips, load_clips
from twoview.data.audio.mel import Mel, fitted
from twoview.data.files import find_in_folders, folder_of_split
from twoview.data.set import SampleSet
from twoview.errors import UserError


def audio_folder(
    root: str | Path,
    split: str,
    mel: Mel,
    seconds: float | None = None,
    train: str = "train",
    test: str = "test",
    in_memory: bool | Literal["auto"] = "auto",
) -> SampleSet | None:
    """The sound files (FLAC, WAV, OGG) of `<root>/<train>` or `<root>/<test>`; with neither there, `root` is the train
    split.

    Sub-folders that directly hold sounds are the classes, in the order of their names; without any, the folder's own
    files are the set, unlabelled. Files of any rate and number of channels are resampled once to `mel.rate`, and mixed
    to one channel. `seconds`: every clip is cut to its loudest stretch of that length, shorter ones are followed by
    silence; None: the length of the longest training file. `in_memory`: decode all now into one array, or each when
    asked for; "auto" by the size of that array. Class names, mean and deviation are those of train.
    """
    root = Path(root).expanduser()
    own = folder_of_split(root, split, train, test, "sounds")
    if own is None:
        return None
    folder = own if split == "train" else root / train
    files, names = find_in_folders(folder, SUFFIXES, "sounds")
    classes = tuple(sorted(set(names)))
    of_train = Clips(files, mel.rate, seconds)
    clips = load_clips(files, mel.rate, seconds, in_memory) if split == "train" else of_train
    preprocess = fitted(mel, clips)
    if split == "test":
        files, names = find_in_folders(own, SUFFIXES, "sounds")
        unknown = set(names) - set(classes)
        if classes and unknown:
            raise UserError(f"{own} has classes that {folder} has not: {', '.join(sorted(unknown))}")
        classes = classes or tuple(sorted(unknown))
        clips = load_clips(files, mel.rate, of_train.window / mel.rate, in_memory)
    number = {name: i for i, name in enumerate(classes)}
    return SampleSet(
        name=root.resolve().name,
        samples=clips,
        labels=torch.tensor([number[name] for name in names]) if names else None,
        classes=classes if names else (),
        preprocess=preprocess,
        names=[file.relative_to(root).as_posix() for file in files],
        draw=preprocess.picture,
    )
