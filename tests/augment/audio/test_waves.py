"""Operations on waves: closed forms, torchaudio row by row, and what all of them promise of length and silence."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from twoview.augment.audio.mel import ToLogMel
from twoview.augment.audio.noise import AddNoise
from twoview.augment.audio.rate import PitchShift, Resample, TimeStretch, stretch, vocode
from twoview.augment.audio.waves import Fade, Gain, Reverse, TimeShift
from twoview.augment.operation import BatchAugment
from twoview.augment.views import TwoViews
from twoview.data.audio.mel import LogMel, Mel
from twoview.data.set import SampleSet
from twoview.errors import UserError
from twoview.rng import Draw

T = 3000
LENGTHS = torch.tensor([3000, 2000, 700, 1, 1500, 64])
MEL = LogMel(Mel(8000, 256, 128, 20, 50.0, 3900.0), [0.3] * 20, [0.2] * 20)


def noise(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, T, generator=torch.Generator().manual_seed(seed)) / 10


def sound(lengths: Tensor = LENGTHS) -> dict[str, Tensor]:
    there = torch.arange(T) < lengths[:, None]
    return {"wave": noise(len(lengths)) * there, "length": lengths.clone()}


def train_set(n: int = 7) -> SampleSet:
    lengths = torch.linspace(100, T, n).long()
    waves = (noise(n, seed=1) * (torch.arange(T) < lengths[:, None]) * 2**15).short()
    return SampleSet("babble", {"wave": waves, "length": lengths}, None, (), MEL, draw=MEL.picture)


def draw(n: int = len(LENGTHS), epoch: int = 0) -> Draw:
    return Draw(0, epoch, torch.arange(n), 0, "op")


ALL: list[Any] = [
    Gain(),
    TimeShift(),
    TimeShift(0.9),
    Fade(),
    Fade(1.0),
    Reverse(),
    AddNoise(p=1.0),
    Resample((0.5, 2.0)),
    TimeStretch((0.5, 2.0), n_fft=256, p=1.0),
    PitchShift((-12.0, 12.0), n_fft=256, p=1.0),
]


@pytest.mark.parametrize("op", ALL, ids=repr)
def test_padding_stays_padding_and_something_stays(op: BatchAugment) -> None:
    op.attach(train_set())
    for epoch in range(5):
        out = op(sound(), draw(epoch=epoch))
        assert out["wave"].shape == (len(LENGTHS), T)
        assert out["wave"].dtype == torch.float32
        assert out["length"].dtype == torch.int64
        assert out["wave"].isfinite().all()
        assert (out["length"] >= 1).all()
        assert (out["length"] <= T).all()
        assert not (out["wave"] * (torch.arange(T) >= out["length"][:, None])).any()


@pytest.mark.parametrize("op", ALL, ids=repr)
def test_silence_stays_silence(op: BatchAugment) -> None:
    op.attach(train_set())
    out = op({"wave": torch.zeros(6, T), "length": LENGTHS}, draw())
    assert not out["wave"].any()


@pytest.mark.parametrize("op", ALL, ids=repr)
def test_rows_do_not_depend_on_each_other(op: BatchAugment) -> None:
    op.attach(train_set())
    x = sound()
    together = op(x, draw())
    for row in range(len(LENGTHS)):
        one = {name: values[row : row + 1] for name, values in x.items()}
        alone = op(one, Draw(0, 0, torch.tensor([row]), 0, "op"))
        torch.testing.assert_close(alone["wave"][0], together["wave"][row], atol=2e-5, rtol=1e-4)
        assert alone["length"][0] == together["length"][row]


@pytest.mark.parametrize("op", ALL, ids=repr)
def test_the_probability_picks_rows(op: BatchAugment) -> None:
    half = op.changed(p=0.5)
    half.attach(train_set())
    x = sound()
    chosen = half.plan(draw(), 6, {"wave": (T,), "length": ()})[1]
    assert chosen is not None
    assert chosen.any()
    assert not chosen.all()
    out = half(x, draw())
    assert torch.equal(out["wave"][~chosen], x["wave"][~chosen])


def test_gain_is_in_decibels() -> None:
    x = sound()
    out = Gain((20.0, 20.0))(x, draw())
    torch.testing.assert_close(out["wave"], 10 * x["wave"])
    drawn = Gain((-12.0, 6.0)).sample(draw(1000), 1000, None)["decibels"]
    assert -12 <= drawn.min() < -11.5
    assert 5.5 < drawn.max() <= 6


def test_shifts_move_whole_samples() -> None:
    x = {"wave": torch.zeros(3, 8), "length": torch.tensor([4, 4, 8])}
    x["wave"][:2, :4] = torch.tensor([1.0, 2, 3, 4])
    x["wave"][2] = torch.arange(1.0, 9)
    out = TimeShift(0.6).apply(x, {"share": torch.tensor([0.5, -0.25, 0.25])})
    assert out["wave"].tolist() == [[0, 0, 1, 2, 3, 4, 0, 0], [2, 3, 4, 0, 0, 0, 0, 0], [0, 0, 1, 2, 3, 4, 5, 6]]
    assert out["length"].tolist() == [6, 3, 8]


def test_fades_are_torchaudios() -> None:
    peer = pytest.importorskip("torchaudio.transforms")
    lengths = torch.tensor([3000, 2000, 700])
    x = sound(lengths)
    share = torch.tensor([[0.5, 0.1], [0.25, 0.5], [0.0, 0.3]])
    out = Fade().apply(x, {"share": share})
    for row, length in enumerate(lengths.tolist()):
        begin, end = (int(length * s) for s in share[row].tolist())
        theirs = peer.Fade(begin, end, fade_shape="linear")(x["wave"][row, :length])
        torch.testing.assert_close(out["wave"][row, :length], theirs, atol=1e-4, rtol=1e-4)


def test_a_clip_is_reversed_within_its_length_and_twice_is_as_it_was() -> None:
    original = sound()
    op = Reverse()
    found = op(original, draw())
    for wave, expected, length in zip(found["wave"], original["wave"], LENGTHS.tolist(), strict=True):
        assert wave[:length].equal(expected[:length].flip(0))
    assert op(found, draw())["wave"].equal(original["wave"])


def test_noise_is_torchaudios_at_its_ratio() -> None:
    peer = pytest.importorskip("torchaudio.functional")
    op, train = AddNoise(p=1.0), train_set()
    op.attach(train)
    x = sound()
    params = op.sample(draw(), 6, None)
    out = op.apply(x, params)
    for row in range(6):
        other = train.fetch(params["noise"][row : row + 1])
        length = int(other["length"][0])  # type: ignore[index]
        clip = other["wave"][0, :length] / 2**15  # type: ignore[index]
        start = int(params["start"][row] * length)
        repeated = clip.repeat(1 + 2 * T // length)[start : start + T]
        theirs = peer.add_noise(x["wave"][row], repeated, params["snr"][row], LENGTHS[row])
        own = int(LENGTHS[row])
        torch.testing.assert_close(out["wave"][row, :own], theirs[:own], atol=1e-5, rtol=1e-5)


def test_noise_comes_from_the_training_set_or_a_folder(tmp_path: Path) -> None:
    train = train_set()
    op = AddNoise(p=1.0)
    with pytest.raises(UserError, match="attach the training set"):
        op(sound(), draw())
    op.attach(train)
    numbers = op.sample(draw(2000), 2000, None)["noise"].bincount()
    assert len(numbers) == len(train)
    assert numbers.min() > 200

    sf = pytest.importorskip("soundfile")
    for i, rate in enumerate((8000, 16000)):
        sf.write(tmp_path / f"{i}.wav", np.sin(np.arange(rate // 2) * 2 * np.pi * 1000 / rate), rate)
    op = AddNoise(snr=(0.0, 0.0), folder=str(tmp_path), p=1.0)
    op.attach(train)
    x = sound(torch.tensor([3000, 2048]))
    added = op(x, draw(2))["wave"] - x["wave"]
    spectrum = torch.fft.rfft(added[1, :2048]).abs()
    assert spectrum.argmax() == round(1000 / 8000 * 2048)
    torch.testing.assert_close(added.square().sum(1), x["wave"].square().sum(1), rtol=1e-3, atol=0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no noises in"):
        AddNoise(folder=str(tmp_path / "empty")).attach(train)


def test_the_vocoder_is_torchaudios_row_by_row() -> None:
    peer = pytest.importorskip("torchaudio.functional")
    rates = torch.tensor([0.6875, 0.9375, 1.0, 1.3125, 1.875])  # exact: which frame is read is not a matter of rounding
    n_fft, hop = 256, 64
    waves = noise(5)
    spectrum = torch.stft(waves, n_fft, hop, window=torch.hann_window(n_fft), return_complex=True)
    ours = vocode(spectrum, rates, 120, hop)
    advance = torch.linspace(0, math.pi * hop, n_fft // 2 + 1)[:, None]
    for row, rate in enumerate(rates.tolist()):
        theirs = peer.phase_vocoder(spectrum[row : row + 1].to(torch.complex128), rate, advance.double())[0]
        frames = theirs.shape[1]
        torch.testing.assert_close(ours[row, :, :frames].to(torch.complex128), theirs, atol=2e-4, rtol=0)
        assert not ours[row, :, frames:].any()


def test_pitch_shifts_are_torchaudios_row_by_row() -> None:
    peer = pytest.importorskip("torchaudio.functional")
    seconds = torch.arange(T) / 8000
    wave = torch.stack([torch.sin(2 * math.pi * f * seconds) for f in (300.0, 500.0, 800.0)])
    steps = torch.tensor([-5.0, 3.0, 7.0])
    out = PitchShift((-5.0, 7.0)).apply({"wave": wave, "length": torch.full((3,), T)}, {"semitones": steps})["wave"]
    for row, step in enumerate(steps.tolist()):
        theirs = peer.pitch_shift(wave[row], 8000, int(step))
        ours, peers = (torch.fft.rfft(x[600:2400], 8000).abs().argmax().item() for x in (out[row], theirs))
        assert abs(ours - peers) <= 3  # Hz; torchaudio rounds the rate to whole Hertz, and mirrors the ends


def peak(wave: Tensor) -> float:
    """Hz of the loudest tone."""
    return float(torch.fft.rfft(wave * torch.hann_window(len(wave)), 80000).abs().argmax()) / 10


@pytest.mark.parametrize("rate", [0.7, 1.0, 1.4])
def test_stretching_keeps_the_pitch_and_a_tape_does_not(rate: float) -> None:
    length = 2000
    wave = torch.sin(2 * math.pi * 500 * torch.arange(T) / 8000) * (torch.arange(T) < length)
    x = {"wave": wave[None], "length": torch.tensor([length])}
    params = {"rate": torch.tensor([rate])}
    slow = TimeStretch((0.5, 2.0), n_fft=256).apply(x, params)
    tape = Resample((0.5, 2.0)).apply(x, params)
    for out, hertz in ((slow, 500), (tape, 500 * rate)):
        assert out["length"].item() == round(length / rate)
        middle = out["wave"][0, 200 : out["length"].item() - 200]
        assert abs(peak(middle) - hertz) < 5
        assert middle.abs().max() == pytest.approx(1, abs=0.1)


def test_a_rate_of_1_changes_nothing() -> None:
    x = noise(2)
    torch.testing.assert_close(stretch(x, torch.ones(2), T, 256), x, atol=1e-4, rtol=1e-3)
    low = torch.sin(torch.arange(T) / 20)[None]
    tape = Resample().apply({"wave": low, "length": torch.tensor([T])}, {"rate": torch.ones(1)})["wave"]
    torch.testing.assert_close(tape[:, 50:-50], low[:, 50:-50], atol=1e-2, rtol=0)


def test_a_policy_of_waves_makes_views() -> None:
    train = train_set()
    views = TwoViews({"noise": AddNoise(), "pitch": PitchShift(n_fft=256)}, train.preprocess, seed=3)
    views.attach(train)
    index = torch.tensor([4, 0, 2])
    first, second = views(train.fetch(index), index, epoch=1)
    assert first.shape == second.shape == (3, 1, 20, 24)
    assert not torch.equal(first, second)
    again = views(train.fetch(index[1:2]), index[1:2], epoch=1)[0]
    torch.testing.assert_close(again[0], first[1], atol=1e-3, rtol=1e-3)
    through = TwoViews({"mel": ToLogMel()}, train.preprocess)
    through.attach(train)
    torch.testing.assert_close(through(train.fetch(index), index, 0)[0], train.preprocess(train.fetch(index)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: TimeShift(1.0), r"TimeShift: share"),
        (lambda: Fade(1.5), r"Fade: longest"),
        (lambda: Gain((3.0, -3.0)), r"Gain: decibels"),
        (lambda: AddNoise((0.0, 1000.0)), r"AddNoise: snr"),
        (lambda: Resample((0.0, 1.0)), r"Resample: rate"),
        (lambda: TimeStretch((1.0, 20.0)), r"TimeStretch: rate"),
        (lambda: TimeStretch(n_fft=100 + 1), r"TimeStretch: n_fft=101"),
        (lambda: PitchShift((-99.0, 0.0)), r"PitchShift: semitones"),
    ],
)
def test_what_cannot_be_meant_is_refused(make: Any, words: str) -> None:
    with pytest.raises(UserError, match=words):
        make()
