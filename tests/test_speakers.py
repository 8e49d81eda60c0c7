"""The protocol of speakers never heard: who is judged, on what, by how many labels."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import ROOT

from twoview.data.audio.mel import Mel
from twoview.data.audio.parquet import audio_parquet

pytest.importorskip("sklearn")


@pytest.fixture
def speakers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("speakers")


def test_every_held_out_speaker_gets_an_accuracy(speakers: ModuleType, spoken: Path) -> None:
    assert speakers.names_of(spoken) == ["george", "jackson", "theo"]
    of = {"seconds": 0.1, "speaker_column": "speaker", "test_speakers": ["george", "theo"]}
    mel = Mel(8000, 256, 128, 16, 50.0, 3900.0)
    train, test = (audio_parquet(spoken, split, mel, **of) for split in ("train", "test"))
    assert train is not None
    assert test is not None
    found = speakers.by_speaker(train, test, speakers.Flat(train.preprocess), [1], draws=2)
    assert list(found) == ["1", "all"]
    assert set(found["all"]) == {0, 2}  # george and theo
    assert min(found["all"].values()) > 0.8  # tones of ten pitches: whoever says them, a linear probe tells them apart
    assert min(found["1"].values()) > 0.5


def test_few_labels_are_as_many_of_every_class_and_drawn_by_the_seed(speakers: ModuleType) -> None:
    labels = torch.arange(60) % 4
    rows = speakers.few(labels, 3, seed=0)
    assert labels[rows].bincount().tolist() == [3, 3, 3, 3]
    assert torch.equal(rows, speakers.few(labels, 3, seed=0))
    assert not torch.equal(rows, speakers.few(labels, 3, seed=1))
