"""Other sounds in the background."""

from collections.abc import Sequence
from pathlib import Path

import torch

from twoview.augment.audio.waves import WaveAugment, between, inside
from twoview.augment.operation import Params, check_range
from twoview.data.audio.decode import SUFFIXES, Clips, Sound
from twoview.data.audio.mel import LogMel
from twoview.data.demand import Shape, moved, take
from twoview.data.set import SampleSet
from twoview.data.splits import find
from twoview.errors import UserError
from twoview.rng import Draw


class AddNoise(WaveAugment):
    """Another clip in the background, at a signal-to-noise ratio uniform in `snr` (decibels, of the energy of both over
    the length of the clip, as torchaudio's `add_noise` has it).

    `folder`: of sound files with noise; None: the clips of the training set themselves, a babble of other voices. A
    noise begins anywhere in its file, which is repeated as long as the clip lasts. A silent clip stays silent.
    """

    def __init__(self, snr: Sequence[float] = (5.0, 30.0), folder: str | None = None, p: float = 0.5) -> None:
        super().__init__(p)
        self.snr = check_range("AddNoise: snr", snr, -100.0, 100.0)
        self.folder = folder
        self._train: SampleSet | None = None
        self._noises: Sound | None = None  # of the folder

    def attach(self, train: SampleSet) -> None:
        if not isinstance(train.preprocess, LogMel):
            raise UserError(f"AddNoise takes its noise from a set of sounds, and {train.name} is none")
        self._train = train
        if self.folder is not None and self._noises is None:
            files = find(Path(self.folder).expanduser(), SUFFIXES, "noises")[0].files
            self._noises = Clips(files, train.preprocess.mel.rate).decode_all()
        if self._noises is not None and isinstance(train.samples, dict):
            device = train.samples["length"].device
            self._noises = {name: values.to(device) for name, values in self._noises.items()}

    def sample(self, draw: Draw, n: int, shape: Shape) -> Params:
        """`noise` (n,) int64: which one; `start` (n,) in [0, 1): where it begins; `snr` (n,) in decibels."""
        if self._train is None:
            raise UserError("AddNoise has no noise yet: attach the training set first")
        number = len(self._train) if self._noises is None else len(self._noises["length"])
        u = draw.of(f"{draw.stream}/noise").uniform64(2)
        return {"noise": (u[:, 0] * number).long(), "start": u[:, 1].float(), "snr": between(self.snr, draw)}

    def apply(self, sound: Sound, params: Params) -> Sound:
        assert self._train is not None
        wave, length = sound["wave"], sound["length"]
        found = self._train.fetch(params["noise"]) if self._noises is None else take(self._noises, params["noise"])
        noise = self._train.preprocess.prepare(moved(found, wave.device))
        assert isinstance(noise, dict)
        own = noise["length"][:, None]
        at = (torch.arange(wave.shape[1], device=wave.device) + (params["start"][:, None] * own).long()) % own  # (B, T)
        background = torch.where(inside(length, wave.shape[1]), noise["wave"].gather(1, at), 0)
        energy = background.square().sum(1)
        ratio = wave.square().sum(1) / torch.where(energy > 0, energy, 1)
        loudness = ratio.sqrt() * 10 ** (-params["snr"] / 20)  # (B,)
        return {"wave": wave + loudness[:, None] * background, "length": length}
