"""Features that an earlier look at the same images left, so that the next question takes no time."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from twoview.data.set import SampleSet
from twoview.encoder.frozen import Frozen, digest
from twoview.evaluate.files import columns_of, write_npz
from twoview.run.identity import data_digest

FILE = "features.npz"


def key(encoder: Frozen, sets: Mapping[str, SampleSet]) -> dict[str, Any]:
    """What decides features: the encoder with its preprocessing, and the samples of each split."""
    return {"encoder_digest": digest(encoder), "data": {split: data_digest(images) for split, images in sets.items()}}


def read(folder: Path, wanted: Mapping[str, Any]) -> np.ndarray | None:
    """The features (N, D) in a folder; None where there are none, or others than those of this key."""
    try:
        with np.load(folder / FILE, allow_pickle=False) as archive:
            if json.loads(archive["metadata"].item()) != wanted:
                return None
            features: np.ndarray = archive["features"]
            return features
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def write(folder: Path, features: Tensor, sets: Mapping[str, SampleSet], decided: Mapping[str, Any]) -> None:
    """Writes features (N, D) with the names of their files."""
    rows = features.cpu().numpy()
    write_npz(folder / FILE, rows.shape, [rows], columns_of(sets), decided)
