"""Sound files become windows of int16 with their lengths, whatever they were; what is wrong with one is said."""

import io
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from twoview.data.audio.decode import Clips, decode, load_clips, loudest
from twoview.data.audio.folder import audio_folder
from twoview.data.audio.mel import Mel
from twoview.data.audio.parquet import audio_parquet
from twoview.data.audio.resample import resample
from twoview.data.files import Blob
from twoview.errors import UserError

sf = pytest.importorskip("soundfile")

RATE = 8000


def tone(seconds: float = 0.5, hertz: float = 440.0, rate: int = RATE, loud: float = 0.5) -> np.ndarray:
    return (loud * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def write(path: Path, wave: np.ndarray, rate: int = RATE, **how: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    sf.write(path, wave, rate, **how)
    return path


def mel(**arguments: float) -> Mel:
    return Mel(**{"rate": RATE, "n_fft": 256, "hop": 128, "bands": 20, "low": 50.0, "high": 3900.0} | arguments)


@pytest.mark.parametrize("name", ["a.flac", "a.wav"])
def test_lossless_files_of_the_right_rate_come_back_exactly(name: str, tmp_path: Path) -> None:
    wave = np.random.default_rng(0).integers(-(2**15), 2**15, 3000).astype(np.int16)
    found = decode(write(tmp_path / name, wave), RATE)
    assert found.dtype == np.int16
    np.testing.assert_array_equal(found, wave)


def test_ogg_files_are_read() -> None:
    file = io.BytesIO()
    sf.write(file, tone(), RATE, format="OGG", subtype="VORBIS")
    found = decode(Blob("a.ogg", file.getvalue()), RATE) / 2**15
    assert np.corrcoef(found, tone())[0, 1] > 0.99


def test_channels_are_averaged(tmp_path: Path) -> None:
    both = np.stack([tone(), tone(hertz=900)], axis=1)
    found = decode(write(tmp_path / "a.wav", both, subtype="FLOAT"), RATE) / 2**15
    np.testing.assert_allclose(found, both.mean(1), atol=2**-16)


@pytest.mark.parametrize("rate", [4000, 11025, 16000, 44100, 48000])
def test_another_rate_is_the_same_tone(rate: int, tmp_path: Path) -> None:
    found = decode(write(tmp_path / "a.wav", tone(rate=rate), rate, subtype="FLOAT"), RATE) / 2**15
    assert len(found) == 4000
    middle = slice(200, -200)  # both ends have neighbours on one side only
    np.testing.assert_allclose(found[middle], tone()[middle], atol=3e-3)


def test_what_the_new_rate_cannot_hold_is_filtered_out(tmp_path: Path) -> None:
    found = decode(write(tmp_path / "a.wav", tone(hertz=5000, rate=16000), 16000, subtype="FLOAT"), RATE)
    assert np.abs(found[200:-200]).max() < 0.01 * 2**15


def test_louder_than_full_scale_is_clipped(tmp_path: Path) -> None:
    found = decode(write(tmp_path / "a.wav", tone(loud=3.0), subtype="FLOAT"), RATE)
    assert (found.min(), found.max()) == (-(2**15), 2**15 - 1)


def test_long_clips_are_cut_to_their_loudest_stretch() -> None:
    wave = np.zeros(1000, dtype=np.int16)
    wave[700:760] = 3000
    for window in (60, 61, 300):
        cut = loudest(wave, window)
        assert len(cut) == window
        assert (cut == 3000).sum() == 60
    assert loudest(wave, 1000) is wave


def test_windows_have_one_length_and_say_where_the_clip_ends(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{i}.wav", tone(seconds)) for i, seconds in enumerate((0.1, 0.3, 1 / RATE))]
    sound = load_clips(files, RATE, seconds=0.2)
    assert sound["wave"].shape == (3, 1600)
    assert sound["wave"].dtype == torch.int16
    assert sound["length"].tolist() == [800, 1600, 1]
    assert not sound["wave"][0, 800:].any()
    longest = Clips(files, RATE)
    assert longest.shape == {"wave": (2400,), "length": ()}
    lazily = longest.fetch([2, 1])
    assert lazily["length"].tolist() == [1, 2400]
    assert torch.equal(lazily["wave"], longest.decode_all()["wave"][[2, 1]])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is damaged or no sound file"),
        (b"RIFF and nothing more", "is damaged or no sound file"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "is damaged or no sound file"),
    ],
)
def test_what_is_no_sound_is_named(content: bytes, words: str) -> None:
    with pytest.raises(UserError, match=rf"clip 7 {words} .*mend or remove it"):
        decode(Blob("clip 7", content), RATE)


def test_damaged_and_empty_files_are_named(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.flac", np.random.default_rng(0).integers(-9999, 9999, 20000).astype(np.int16))
    for share in (0.9, 0.5, 0.1):
        content = whole.read_bytes()
        with pytest.raises(UserError, match=r"cut (ends after|cannot be decoded|is damaged)"):
            decode(Blob("cut", content[: round(share * len(content))]), RATE)
    with pytest.raises(UserError, match=r"b\.wav holds no sound"):
        decode(write(tmp_path / "b.wav", np.zeros(0, dtype=np.int16)), RATE)
    with pytest.raises(UserError, match=r"c\.wav holds numbers that are not finite"):
        decode(write(tmp_path / "c.wav", np.array([0, np.nan, 1.0]), subtype="FLOAT"), RATE)
    with pytest.raises(UserError, match=r"d\.aiff is a file of the format AIFF; convert it"):
        decode(write(tmp_path / "d.aiff", tone()), RATE)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.wav")
    with pytest.raises(UserError, match="is not a file but"):
        decode(tmp_path / "a.wav", RATE)


def test_silent_clips_are_said_and_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = [write(tmp_path / "a.wav", tone()), write(tmp_path / "b.wav", np.zeros(100, dtype=np.int16))]
    with caplog.at_level(logging.WARNING):
        sound = load_clips(files, RATE)
    assert "1 of 2 clips are silent; the first is" in caplog.text
    assert "b.wav" in caplog.text
    assert sound["length"].tolist() == [4000, 100]


def folder(root: Path) -> Path:
    for split, speakers in (("train", 3), ("test", 1)):
        for label, hertz in (("high", 1500), ("low", 200)):
            for i in range(speakers):
                rate = (RATE, 16000)[i % 2]
                write(root / split / label / f"{i}.{('wav', 'flac')[i % 2]}", tone(0.1 + 0.05 * i, hertz, rate), rate)
    return root


def test_folders_are_sets(tmp_path: Path) -> None:
    root = folder(tmp_path / "tones")
    train, test = (audio_folder(root, split, mel()) for split in ("train", "test"))
    assert train is not None
    assert test is not None
    assert train.shape == test.shape == {"wave": (1600,), "length": ()}
    assert train.classes == ("high", "low")
    assert train.labels is not None
    assert train.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert list(train.names[:2]) == ["train/high/0.wav", "train/high/1.flac"]
    assert torch.equal(train.preprocess.mean, test.preprocess.mean)
    lazy = audio_folder(root, "train", mel(), in_memory=False)
    assert lazy is not None
    assert not lazy.in_memory
    assert lazy.digest() == train.digest()
    assert torch.equal(lazy.preprocess.mean, train.preprocess.mean)
    assert audio_folder(root / "train" / "low", "test", mel()) is None
    flat = audio_folder(root / "train" / "low", "train", mel())
    assert flat is not None
    assert flat.labels is None


def test_what_is_wrong_with_a_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no folder .*: set data.root to the folder of your sounds"):
        audio_folder(tmp_path / "gone", "train", mel())
    with pytest.raises(UserError, match=r"no sounds in .*looked for .flac"):
        audio_folder(tmp_path, "train", mel())
    root = folder(tmp_path / "tones")
    for seconds in (0.0, -1.0, 1e9):
        with pytest.raises(UserError, match=r"data\.seconds"):
            audio_folder(root, "train", mel(), seconds=seconds)
    write(root / "test" / "other" / "a.wav", tone())
    with pytest.raises(UserError, match=r"has classes that .* has not: other"):
        audio_folder(root, "test", mel())


def table(root: Path, labelled: bool = True) -> Path:
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    root.mkdir()
    for split, rows in (("train", 8), ("test", 4)):
        sounds = []
        for i in range(rows):
            file = io.BytesIO()
            sf.write(file, tone(0.1, 200 + 100 * i + (split == "test")), RATE, format="FLAC")
            sounds.append({"bytes": file.getvalue(), "path": f"{i}.flac"})
        columns = {"audio": sounds, "speaker": [["ann", "bob", "cem", "dua"][i % 4] for i in range(rows)]}
        if labelled:
            columns["label"] = [("no", "yes")[i // 4] for i in range(rows)]
        pq.write_table(pa.table(columns), root / f"{split}.parquet")
    return root


def test_tables_are_sets(tmp_path: Path) -> None:
    root = table(tmp_path / "words")
    train, test = (audio_parquet(root, split, mel(), speaker_column="speaker") for split in ("train", "test"))
    assert train is not None
    assert test is not None
    assert (len(train), len(test)) == (8, 4)
    assert train.factors["speaker"].tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert train.names[3] == "train.parquet, row 3"
    assert test.names[3] == "test.parquet, row 3"
    assert torch.equal(train.preprocess.mean, test.preprocess.mean)
    assert audio_parquet(root, "test", mel(), test="none*") is None


def test_speakers_can_be_held_out(tmp_path: Path) -> None:
    root = table(tmp_path / "words")
    of = {"speaker_column": "speaker", "test_speakers": ["ann", "dua"]}
    train, test = (audio_parquet(root, split, mel(), **of) for split in ("train", "test"))
    assert train is not None
    assert test is not None
    assert train.factors["speaker"].tolist() == [1, 2, 1, 2]
    assert test.factors["speaker"].tolist() == [0, 3, 0, 3, 0, 3]
    assert test.labels is not None
    assert test.labels.tolist() == [0, 0, 1, 1, 0, 0]
    assert test.names[-1] == "test.parquet, row 3"
    # neither mean and deviation nor the window know of who is held out
    assert torch.equal(train.preprocess.mean, test.preprocess.mean)
    whole = audio_parquet(root, "train", mel())
    assert whole is not None
    assert not torch.equal(train.preprocess.mean, whole.preprocess.mean)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"test_speakers": ["ann"]}, r"data\.test_speakers needs data\.speaker_column"),
        ({"test_speakers": ["eve"], "speaker_column": "speaker"}, "names eve; the speakers are ann, bob, cem, dua"),
        ({"test_speakers": ["ann", "bob", "cem", "dua"], "speaker_column": "speaker"}, "names every speaker"),
        ({"speaker_column": "who"}, r"has no column 'who'.*set data\.speaker_column"),
        ({"audio_column": "sound"}, r"has no column 'sound'.*set data\.audio_column"),
        ({"audio_column": "label"}, r"row 0, column 'label' names no, which is no file below"),
    ],
)
def test_what_is_wrong_with_a_table_is_said(arguments: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words):
        audio_parquet(table(tmp_path / "words"), "train", mel(), **arguments)  # type: ignore[arg-type]


def test_resampling_agrees_with_torchaudio() -> None:
    peer = pytest.importorskip("torchaudio.functional")
    waves = torch.randn(3, 2000, generator=torch.Generator().manual_seed(0))
    for old, new in ((44100, 16000), (8000, 16000), (4, 5), (5, 4), (3, 1)):
        theirs = peer.resample(waves, old, new)
        rate = torch.full((3,), old / new, dtype=torch.float64)
        ours = resample(waves, rate, theirs.shape[1], old / new)
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=0)


def test_resampling_has_a_rate_per_row() -> None:
    waves = torch.randn(4, 500, generator=torch.Generator().manual_seed(0))
    rate = torch.tensor([0.5, 1.0, 1.3, 2.0], dtype=torch.float64)
    together = resample(waves, rate, 700, 2.0)
    for row in range(4):
        alone = resample(waves[row : row + 1], rate[row : row + 1], 700, float(rate[row]))
        torch.testing.assert_close(together[row : row + 1], alone)
    assert not together[3, 260:].any()  # beyond the end
