"""Log-mel spectrograms: images in [0, 1] where 0 is silence and 1 a sine of full scale."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from twoview.data.audio.mel import LogMel, Mel, filters, fitted
from twoview.errors import UserError
from twoview.run.checkpoint import instantiate_own

SIZES: list[dict[str, Any]] = [
    {"rate": 8000, "n_fft": 256, "hop": 128, "bands": 40, "low": 50.0, "high": 3900.0},
    {"rate": 16000, "n_fft": 1024, "hop": 160, "bands": 64, "low": 60.0, "high": 7800.0},
]


def sounds(*waves: torch.Tensor, window: int = 2048) -> dict[str, torch.Tensor]:
    wave = torch.stack([torch.nn.functional.pad(w, (0, window - len(w))) for w in waves])
    return {"wave": wave, "length": torch.tensor([len(w) for w in waves])}


def sine(hertz: float, samples: int, rate: int = 8000) -> torch.Tensor:
    return torch.sin(2 * math.pi * hertz * torch.arange(samples) / rate)


@pytest.mark.parametrize("size", SIZES)
def test_the_bank_is_torchaudios(size: dict[str, Any]) -> None:
    peer = pytest.importorskip("torchaudio.functional")
    rate, n_fft, bands, low, high = (size[name] for name in ("rate", "n_fft", "bands", "low", "high"))
    theirs = peer.melscale_fbanks(n_fft // 2 + 1, low, high, bands, rate)
    torch.testing.assert_close(filters(rate, n_fft, bands, low, high).float(), theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", SIZES)
def test_the_spectrogram_is_torchaudios(size: dict[str, Any]) -> None:
    peer = pytest.importorskip("torchaudio.transforms")
    mel = Mel(**size)
    wave = torch.randn(2, 20 * mel.hop, generator=torch.Generator().manual_seed(0)) / 10
    before = (mel.n_fft - mel.hop) // 2
    framed = torch.nn.functional.pad(wave, (before, mel.n_fft - mel.hop - before))
    theirs = peer.MelSpectrogram(
        mel.rate, mel.n_fft, hop_length=mel.hop, f_min=mel.low, f_max=mel.high, n_mels=mel.bands, center=False
    )(framed)
    power = theirs / (torch.hann_window(mel.n_fft).sum() / 2) ** 2
    expected = torch.log(1 + power / 1e-8) / math.log(1 + 1e8)
    torch.testing.assert_close(mel(wave), expected[:, None], atol=1e-4, rtol=0)


def test_silence_is_0_and_a_sine_of_full_scale_is_1() -> None:
    mel = Mel(8000, 256, 128, 40, 50.0, 3900.0)
    x = mel(torch.stack([torch.zeros(1024), sine(1000, 1024), 0.1 * sine(1000, 1024), 0.01 * sine(1000, 1024)]))
    assert x.shape == (4, 1, 40, 8)
    assert not x[0].any()
    loudest = x[:, 0, :, 2:-2].amax(1)  # (4, frames): both ends see zeros beside the wave
    torch.testing.assert_close(loudest[1], torch.ones(4), atol=0.02, rtol=0)
    torch.testing.assert_close(loudest[1] - loudest[2], torch.full((4,), 20 / 80), atol=1e-3, rtol=0)
    torch.testing.assert_close(loudest[2] - loudest[3], torch.full((4,), 20 / 80), atol=1e-3, rtol=0)
    torch.testing.assert_close(mel.scaled(mel.power(x)), x)


@pytest.mark.parametrize("samples", [1, 60, 128, 129, 256, 1000])
def test_clips_shorter_than_a_window_have_frames(samples: int) -> None:
    mel = Mel(8000, 256, 128, 40, 50.0, 3900.0)
    x = mel(torch.ones(1, samples))
    assert x.shape == (1, 1, 40, math.ceil(samples / 128))
    assert x.isfinite().all()
    assert x.any()


def test_what_no_spectrogram_has_is_refused() -> None:
    for wrong, words in [
        ({"high": 4001.0}, "nothing above 4000 Hz"),
        ({"low": 3950.0}, "low=3950"),
        ({"bands": 200}, "narrower than the 31.2 Hz"),
        ({"hop": 0}, "hop=0"),
        ({"hop": 257}, "hop=257"),
        ({"rate": 0}, "rate=0"),
        ({"floor": 1.0}, "floor"),
    ]:
        with pytest.raises(UserError, match=words):
            Mel(**(SIZES[0] | wrong))


def test_statistics_are_those_of_sounding_frames() -> None:
    mel = Mel(**SIZES[0])
    clips = sounds(*((3000 * sine(200 * k, 300 * k)).short() for k in range(1, 5)), torch.zeros(9, dtype=torch.int16))
    found = fitted(mel, clips)
    frames = [column for x in mel(clips["wave"] / 2**15)[:, 0] for column in x.T.double().numpy() if column.any()]
    np.testing.assert_allclose(found.mean, np.mean(frames, axis=0), atol=1e-6)
    np.testing.assert_allclose(found.std, np.maximum(np.std(frames, axis=0), 0.01), atol=1e-5)
    # a set of silence alone can be normalised as well
    silent = fitted(mel, sounds(torch.zeros(9, dtype=torch.int16)))
    assert silent(sounds(torch.zeros(9, dtype=torch.int16))).isfinite().all()


def test_raw_sounds_prepared_ones_and_spectrograms_end_alike() -> None:
    mel = Mel(**SIZES[0])
    preprocess = LogMel(mel, [0.3] * 40, [0.2] * 40)
    raw = sounds((9000 * sine(440, 1500)).short(), (900 * sine(880, 700)).short())
    prepared = preprocess.prepare(raw)
    assert isinstance(prepared, dict)
    assert prepared["wave"].dtype == torch.float32
    again = preprocess.prepare(prepared)
    assert isinstance(again, dict)
    assert torch.equal(again["wave"], prepared["wave"])
    expected = (mel(raw["wave"] / 2**15) - 0.3) / 0.2
    for samples in (raw, prepared, preprocess.spectrogram(raw)):
        torch.testing.assert_close(preprocess(samples), expected)
    picture = preprocess.picture(raw)
    assert picture.shape == (2, 1, 40, 16)
    tone = picture[0, 0, :, 4].argmax()
    assert tone > 20  # low tones lie at the bottom
    assert picture[1, 0, :, 4].argmax() < tone
    with pytest.raises(UserError, match="waves of int32: give int16"):
        preprocess.prepare({"wave": raw["wave"].int(), "length": raw["length"]})


def test_it_is_built_again_from_its_description() -> None:
    preprocess = LogMel(Mel(**SIZES[1]), torch.rand(64).tolist(), (0.1 + torch.rand(64)).tolist())
    again = instantiate_own(preprocess.describe(), "preprocess")
    again.load_state_dict(preprocess.state_dict(), strict=True)
    wave = sounds(torch.randn(4000), window=4000)
    assert torch.equal(again(wave), preprocess(wave))


@pytest.mark.parametrize(
    ("mean", "std"), [([0.0], [1.0] * 40), ([math.nan] * 40, [1.0] * 40), ([0.0] * 40, [0.0] * 40)]
)
def test_statistics_that_cannot_be_are_refused(mean: list[float], std: list[float]) -> None:
    with pytest.raises(UserError, match="mean"):
        LogMel(Mel(**SIZES[0]), mean, std)
