"""Operations on log-mel spectrograms: their laws, torchaudio's masks, BYOL-A's crop, and silence that stays silence."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from twoview.augment.audio.mask import FrequencyMask, TimeMask
from twoview.augment.audio.mel import LogMixup, Tilt, ToLogMel
from twoview.augment.audio.warp import Warp
from twoview.augment.audio.waves import Gain
from twoview.augment.image.geometric import HorizontalFlip, RandomResizedCrop
from twoview.augment.image.mix import MixUp
from twoview.augment.image.occlude import RandomErasing
from twoview.augment.operation import BatchAugment
from twoview.augment.views import TwoViews
from twoview.data.audio.mel import LogMel, Mel
from twoview.data.image.pixels import Pixels
from twoview.data.set import SampleSet
from twoview.errors import UserError
from twoview.rng import Draw

BANDS, FRAMES = 20, 24
MEL = LogMel(Mel(8000, 256, 128, BANDS, 50.0, 3900.0), [0.3] * BANDS, [0.2] * BANDS)


def train_set(n: int = 5, samples: int = FRAMES * 128) -> SampleSet:
    lengths = torch.linspace(300, samples, n).long()
    waves = torch.randn(n, samples, generator=torch.Generator().manual_seed(1)) * 3000
    waves = (waves * (torch.arange(samples) < lengths[:, None])).short()
    return SampleSet("sounds", {"wave": waves, "length": lengths}, None, (), MEL, draw=MEL.picture)


TRAIN = train_set()


def draw(n: int, epoch: int = 0) -> Draw:
    return Draw(0, epoch, torch.arange(n), 0, "op")


def spectrograms(n: int = 5) -> Tensor:
    return MEL.spectrogram(TRAIN.fetch(torch.arange(n) % len(TRAIN)))


ALL: list[Any] = [Tilt(), FrequencyMask(), TimeMask(12, 2), Warp()]


@pytest.mark.parametrize("op", ALL, ids=repr)
def test_silence_stays_silence(op: BatchAugment) -> None:
    op.attach(TRAIN)
    assert not op(torch.zeros(4, 1, BANDS, FRAMES), draw(4)).any()


@pytest.mark.parametrize("op", [Tilt(), FrequencyMask(), TimeMask(12, 2)], ids=repr)
def test_silent_frames_stay_silent(op: BatchAugment) -> None:
    op.attach(TRAIN)
    x = spectrograms()
    silent = (x == 0).all(2, keepdim=True).expand_as(x)
    assert silent.any()
    for epoch in range(10):
        out = op(x, draw(5, epoch))
        assert not out[silent].any()
        assert (out[~silent.expand_as(x)] >= 0).all()


@pytest.mark.parametrize("op", [*ALL, LogMixup()], ids=repr)
def test_rows_do_not_depend_on_each_other(op: BatchAugment) -> None:
    op.attach(TRAIN)
    x = spectrograms()
    together = op(x, draw(5))
    assert together.shape == x.shape
    assert not torch.equal(together, x)
    for row in range(5):
        alone = op(x[row : row + 1], Draw(0, 0, torch.tensor([row]), 0, "op"))
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("op", "axis"), [(FrequencyMask(7, 1), 2), (TimeMask(9, 1), 3), (TimeMask(9, 1, 0.2), 3)])
def test_masks_are_torchaudios(op: Any, axis: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers in place of the peer's make the same masks."""
    peer = pytest.importorskip("torchaudio.functional")
    x = torch.rand(64, 1, BANDS, FRAMES) + 0.1
    u = draw(64).uniform(2)
    numbers = [u[:, None, 0], u[:, None, 1]]
    monkeypatch.setattr(torch, "rand", lambda *a, **k: numbers.pop(0))
    share = getattr(op, "share", 1.0)
    theirs = peer.mask_along_axis_iid(x, op.width, -1.0, axis, share)
    ours = op(x, draw(64))
    hit = theirs == -1
    assert hit.any()
    torch.testing.assert_close(ours[~hit], x[~hit], atol=0, rtol=0)
    mean = x.mean((1, 2, 3), keepdim=True).expand_as(x)
    torch.testing.assert_close(ours[hit], mean[hit])


def test_widths_and_places_of_masks_are_uniform() -> None:
    params = FrequencyMask(8, 2).sample(draw(20000), 20000, (1, 40, 48))
    width = params["end"] - params["start"]
    assert width.shape == (20000, 2)
    counts = width.flatten().bincount() / width.numel()
    torch.testing.assert_close(counts, torch.full((8,), 1 / 8), atol=0.01, rtol=0)  # 0 to 7: SpecAugment's [0, F)
    assert int(params["end"].max()) == 39  # as in the paper: f0 < 40 - f
    assert int(params["start"].min()) == 0
    starts = params["start"][width == 4].float() / 36
    assert abs(starts.mean() - 0.5) < 0.02
    assert TimeMask(100, 1, share=0.25).sample(draw(9000), 9000, (1, 40, 48))["end"].max() <= 48
    wide = TimeMask(100, 1, share=0.25).sample(draw(9000), 9000, (1, 40, 48))
    assert int((wide["end"] - wide["start"]).max()) == 11


@pytest.mark.parametrize("piece", [(0, 0, 20, 24), (-2, -6, 25, 36), (3, 5, 12, 17), (-2, 4, 20, 30), (0, 0, 1, 1)])
def test_warps_are_byol_as_crop(piece: tuple[int, int, int, int]) -> None:
    """Cut out of a canvas of zeros and interpolated, as in nttcslab/byol-a."""
    x = torch.rand(2, 1, BANDS, FRAMES)
    top, left, height, width = piece
    canvas = torch.zeros(2, 1, 60, 80)
    canvas[:, :, 20 : 20 + BANDS, 30 : 30 + FRAMES] = x
    cut = canvas[:, :, 20 + top : 20 + top + height, 30 + left : 30 + left + width]
    expected = F.interpolate(cut, size=(BANDS, FRAMES), mode="bilinear", align_corners=True)
    ours = Warp().apply(x, {"piece": torch.tensor([piece] * 2).float()})
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def test_pieces_have_their_law_and_lie_on_the_canvas() -> None:
    op = Warp(frequency=(0.6, 1.5), time=(0.6, 1.5), canvas=(1.0, 1.5))
    top, left, height, width = op.sample(draw(20000), 20000, (1, 64, 96))["piece"].unbind(1)
    assert height.max() <= 64
    assert width.max() <= 144
    assert (height == 64).float().mean() == pytest.approx(5 / 9, abs=0.02)  # of 1.0 to 1.5 nothing more than the canvas
    assert width.min() == pytest.approx(0.6 * 96, abs=0.1)
    assert width.mean() == pytest.approx(1.05 * 96, abs=1)
    assert (top >= 0).all()
    assert (top + height <= 64 + 1e-3).all()
    assert (left >= -24).all()
    assert (left + width <= 120 + 1e-3).all()


def test_a_tilt_is_a_gain_by_band() -> None:
    op = Tilt()
    op.attach(TRAIN)
    x = spectrograms()
    out = op.apply(x, {"decibels": torch.full((5,), 12.0)})
    change = 10 * torch.log10(MEL.mel.power(out) / MEL.mel.power(x))[-1, 0]  # (bands, frames) of the longest
    expected = torch.linspace(-12, 12, BANDS)[:, None].expand_as(change)
    torch.testing.assert_close(change, expected, atol=1e-2, rtol=0)
    untouched = op.apply(x, {"decibels": torch.zeros(5)})
    torch.testing.assert_close(untouched, x, atol=1e-6, rtol=0)


def test_mixtures_are_of_powers_with_samples_of_the_training_set() -> None:
    op = LogMixup((0.0, 0.4))
    with pytest.raises(UserError, match="attach the training set"):
        op(spectrograms(), draw(5))
    op.attach(TRAIN)
    x = spectrograms()
    params = op.sample(draw(5), 5, (1, BANDS, FRAMES))
    other = MEL.mel.power(MEL.spectrogram(TRAIN.fetch(params["other"])))
    share = params["share"][:, None, None, None]
    torch.testing.assert_close(
        MEL.mel.power(op.apply(x, params)), (1 - share) * MEL.mel.power(x) + share * other, atol=1e-9, rtol=1e-3
    )
    drawn = op.sample(draw(5000), 5000, (1, BANDS, FRAMES))
    assert (drawn["other"].bincount() > 800).all()
    assert drawn["share"].max() < 0.4
    assert torch.equal(op.apply(x, params | {"share": torch.zeros(5)}), MEL.mel.scaled(MEL.mel.power(x)))
    with pytest.raises(UserError, match="right behind ToLogMel"):
        op(x[..., :10], draw(5))


def test_images_operations_take_spectrograms() -> None:
    policy = {
        "gain": Gain(),
        "mel": ToLogMel(),
        "crop": RandomResizedCrop(scale=(0.5, 1.0)),
        "flip": HorizontalFlip(),
        "erase": RandomErasing(),
        "bands": FrequencyMask(),
    }
    views = TwoViews(policy, MEL, seed=1, mix=MixUp(1.0))
    views.attach(TRAIN)
    index = torch.arange(4)
    made = views(TRAIN.fetch(index), index, 0)
    assert [tuple(view.shape) for view in made] == [(4, 1, BANDS, FRAMES)] * 2
    mixed, share = views.mixed(made, index, 0)
    assert share is not None
    assert mixed[0].isfinite().all()
    seen = views.prepared(TRAIN.fetch(index), index, 0)
    pictures = MEL.picture(seen[0])
    assert pictures.shape == (4, 1, BANDS, FRAMES)
    assert 0 <= pictures.min() <= pictures.max() <= 1


@pytest.mark.parametrize(
    ("ops", "preprocess", "words"),
    [
        (
            {"bands": FrequencyMask()},
            MEL,
            "FrequencyMask is an operation on data .* kind image/spectrogram, .* wave",
        ),
        ({"flip": HorizontalFlip()}, MEL, "HorizontalFlip is an operation on data of the kind image, .* wave"),
        ({"mel": ToLogMel(), "gain": Gain()}, MEL, "Gain is .* kind wave, .* image/spectrogram"),
        ({"mel": ToLogMel(), "again": ToLogMel()}, MEL, "ToLogMel is .* kind wave, .* image/spectrogram"),
        ({"gain": Gain()}, Pixels([0.5], [0.2]), "Gain is .* kind wave, .* image"),
        ({"bands": FrequencyMask()}, Pixels([0.5], [0.2]), "FrequencyMask is .* kind image/spectrogram, .* image"),
    ],
)
def test_operations_of_another_kind_are_refused(ops: dict[str, Any], preprocess: Any, words: str) -> None:
    with pytest.raises(UserError, match=rf"augment\.ops\.\w+: {words}"):
        TwoViews(ops, preprocess)


def test_views_are_the_same_for_any_batch() -> None:
    policy = {"mel": ToLogMel(), "warp": Warp(), "mixup": LogMixup(), "tilt": Tilt(), "frames": TimeMask()}
    views = TwoViews(policy, MEL, seed=7)
    views.attach(TRAIN)
    index = torch.tensor([3, 0, 4, 1])
    together = views(TRAIN.fetch(index), index, epoch=2)
    alone = views(TRAIN.fetch(index[2:3]), index[2:3], epoch=2)
    for view in range(2):
        torch.testing.assert_close(alone[view][0], together[view][2], atol=1e-4, rtol=1e-4)


def test_what_cannot_be_meant_is_refused() -> None:
    for make, words in [
        (lambda: FrequencyMask(-1), "FrequencyMask: width=-1"),
        (lambda: TimeMask(3, -1), "TimeMask: .*count=-1"),
        (lambda: TimeMask(3, 1, 2.0), "TimeMask: share"),
        (lambda: Warp(frequency=(0.0, 1.0)), "Warp: frequency"),
        (lambda: Warp(canvas=(0.5, 1.0)), "Warp: canvas"),
        (lambda: Tilt((1.0,)), "Tilt: decibels"),
        (lambda: LogMixup((0.0, 1.5)), "LogMixup: share"),
    ]:
        with pytest.raises(UserError, match=words):
            make()
    images = SampleSet("photos", torch.zeros(3, 3, 8, 8, dtype=torch.uint8), None, (), Pixels([0.5] * 3, [0.2] * 3))
    with pytest.raises(UserError, match="Tilt works on spectrograms of sounds, and photos holds none"):
        Tilt().attach(images)
