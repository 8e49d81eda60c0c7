"""Sound files: opened with care, brought to one rate and one channel, all at once or on demand."""

import io
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from twoview.data.audio.resample import resample
from twoview.data.demand import OnDemand, in_threads
from twoview.data.files import Blob, Sources, name_of, refuse_pipe, stamp_of
from twoview.data.memory import memory
from twoview.errors import UserError

log = logging.getLogger(__name__)

SUFFIXES = (".flac", ".oga", ".ogg", ".opus", ".wav")
FORMATS = ("FLAC", "OGG", "WAV", "WAVEX")  # of the many that libsndfile knows
IN_MEMORY_BYTES = 2**30  # sets up to this size are decoded once into one array
LONGEST = 2**28  # samples of a file, over all channels: 93 minutes at 48 kHz
WHOLE = 2**15  # what the samples of a 16 bit wave are parts of

Sound = dict[str, Tensor]  # "wave": (T,) or (B, T), silent from "length" on, which is int64 () or (B,)


def decode(source: Path | Blob, rate: int) -> np.ndarray:
    """A sound file as int16 (T,) with `rate` samples per second: the mean of its channels, resampled once.

    Anything wrong with it is a `UserError` that names it.
    """
    with _open(source) as file:
        expected = file.frames
        try:
            wave = file.read(dtype="float32", always_2d=True)  # (T, channels), in [-1, 1]
        except Exception as error:  # damaged files make the decoders raise nearly anything
            raise UserError(f"{source} cannot be decoded ({_reason(error)}): mend or remove it") from None
        if len(wave) < expected:
            raise UserError(
                f"{source} ends after {len(wave):,} of the {expected:,} samples that it announces: get it again, or "
                "remove it"
            )
        own = file.samplerate
    if not np.isfinite(wave).all():
        raise UserError(f"{source} holds numbers that are not finite: mend or remove it")
    mono = wave.mean(axis=1)
    if own != rate:
        length = max(1, round(len(mono) * rate / own))
        faster = torch.tensor([own / rate], dtype=torch.float64)
        mono = resample(torch.from_numpy(mono)[None], faster, length, own / rate)[0].numpy()
    return (mono * WHOLE).round().clip(-WHOLE, WHOLE - 1).astype(np.int16)


def seconds_of(source: Path | Blob) -> float:
    """From the header, without decoding."""
    with _open(source) as file:
        return float(file.frames / file.samplerate)


def _open(source: Path | Blob) -> Any:
    """A `soundfile.SoundFile` of a format that we take, neither empty nor endless."""
    try:
        import soundfile
    except ImportError:
        raise UserError("reading sound files needs soundfile: pip install 'twoview[audio]'") from None
    if isinstance(source, Path):
        refuse_pipe(source)
    content = io.BytesIO(source.data) if isinstance(source, Blob) else source
    try:
        file = soundfile.SoundFile(content)
    except Exception as error:
        raise UserError(f"{source} is damaged or no sound file ({_reason(error)}): mend or remove it") from None
    wrong = None
    if file.format not in FORMATS:
        wrong = f"is a file of the format {file.format}; convert it to FLAC, WAV or OGG"
    elif file.frames < 1:
        wrong = "holds no sound, not one sample: remove it"
    elif file.frames * file.channels > LONGEST:
        wrong = f"announces {file.frames:,} samples of {file.channels} channels: cut it into shorter clips"
    if wrong:
        file.close()
        raise UserError(f"{source} {wrong}")
    return file


def _reason(error: Exception) -> str:
    text = str(error).strip().rstrip(".")
    return text.rpartition(": ")[2] or type(error).__name__  # what comes before it repeats the file


class Clips(OnDemand):
    """Sound files decoded on demand, each to a window of as many samples: {"wave": int16 (T,), "length": int64 ()}.

    Shorter ones are followed by silence, of longer ones the loudest stretch is taken. `seconds`: of the window; None:
    the longest file.
    """

    def __init__(self, sources: Sequence[Path | Blob], rate: int, seconds: float | None = None) -> None:
        if seconds is not None and not 0 < seconds * rate <= LONGEST:
            raise UserError(f"data.seconds={seconds} must be above 0 and at most {LONGEST / rate:,.0f}, or null")
        self.sources = sources
        self.rate = rate
        if seconds is None:
            seconds = max(in_threads(lambda i: seconds_of(sources[i]), range(len(sources))))
        self.window = max(1, round(seconds * rate))

    @property
    def shape(self) -> dict[str, tuple[int, ...]]:
        return {"wave": (self.window,), "length": ()}

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> Sound:
        wave = loudest(decode(self.sources[index], self.rate), self.window)
        padded = np.zeros(self.window, dtype=np.int16)
        padded[: len(wave)] = wave
        return {"wave": torch.from_numpy(padded), "length": torch.tensor(len(wave))}

    def decode_all(self) -> Sound:
        """All clips: {"wave": int16 (N, T), "length": int64 (N,)}."""
        n = len(self)
        needs, has = 2 * n * self.window, memory()
        if needs > has:
            raise UserError(
                f"{n:,} clips of {self.window:,} samples take {needs / 2**30:,.0f} GiB, and this machine has "
                f"{has / 2**30:,.0f}: take shorter ones (data.seconds), or decode files when they are needed "
                "(data.in_memory=false)"
            )
        log.info("decoding %s sound files to %s samples at %s Hz", f"{n:,}", f"{self.window:,}", f"{self.rate:,}")
        waves, lengths = torch.zeros(n, self.window, dtype=torch.int16), torch.zeros(n, dtype=torch.int64)
        for i, clip in enumerate(in_threads(self.__getitem__, range(n))):
            waves[i], lengths[i] = clip["wave"], clip["length"]
        silent = (waves.amax(1) == waves.amin(1)).nonzero().flatten().tolist()
        if silent:
            log.warning(
                "%d of %s clips are silent; the first is %s", len(silent), f"{n:,}", name_of(self.sources, silent[0])
            )
        return {"wave": waves, "length": lengths}

    def stamp(self) -> Any:
        """The window, and the names and sizes of the files. Where they lie does not enter."""
        return [self.rate, self.window, stamp_of(self.sources)]

    def blocks(self) -> tuple[Tensor, int] | None:
        return self.sources.blocks() if isinstance(self.sources, Sources) else None


def loudest(wave: np.ndarray, window: int) -> np.ndarray:
    """The stretch of `window` samples with the most energy; all of a wave (T,) that is no longer."""
    if len(wave) <= window:
        return wave
    energy = np.concatenate([[0], np.cumsum(wave.astype(np.int64) ** 2)])
    start = int(np.argmax(energy[window:] - energy[:-window]))
    return wave[start : start + window]


def load_clips(
    sources: Sequence[Path | Blob],
    rate: int,
    seconds: float | None = None,
    in_memory: bool | Literal["auto"] = "auto",
) -> Sound | Clips:
    """Sound files as one array; on demand if that is over `IN_MEMORY_BYTES`."""
    clips = Clips(sources, rate, seconds)
    if in_memory == "auto":
        in_memory = 2 * len(clips) * clips.window <= IN_MEMORY_BYTES
    return clips.decode_all() if in_memory else clips
