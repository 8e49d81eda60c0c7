"""Texts as numbers of words: how they are cut, the vocabulary, and what an encoder takes."""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from twoview.data.demand import Samples
from twoview.data.preprocess import Preprocess
from twoview.errors import UserError

PADDING, UNKNOWN, MASK, BLANK, FIRST = 0, 1, 2, 3, 4  # numbers that are no words; BLANK keeps a place and says nothing
_SIGNS = {UNKNOWN: "[?]", MASK: "[mask]", BLANK: "[ ]"}
_ALONE = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"  # Japanese and Chinese are written without spaces: a sign is a word
_WORD = re.compile(rf"[{_ALONE}]|[^\W{_ALONE}]+(?:['\u2019][^\W{_ALONE}]+)*")

Cut = Callable[[str], list[str]]


def cut(text: str) -> list[str]:
    """The words of a text in small letters; without punctuation, but with the apostrophes in words."""
    return _WORD.findall(text.lower().replace("\u2019", "'"))


class Words(Preprocess):
    """Texts (B, L) int64 to what the encoder takes, float32 (B, 3, L).

    Stored are numbers of words: `words[i]` has the number i + 4; 0 is padding, which is behind the words alone, and 1 a
    word that the vocabulary lacks. What operations change is a dict: `ids`, the same numbers, and `key` (B, 1) int64,
    of which an encoder draws its dropout, 0 for none. The encoder gets the numbers, how much each word weighs (its
    `idf`; of padding and what is blank 0), and the key, all exact in float32.
    """

    kind = "text"
    idf: Tensor

    def __init__(self, words: Sequence[str], idf: Sequence[float]) -> None:
        super().__init__()
        if not words or len(words) != len(idf):
            raise UserError(f"a vocabulary needs words, each with its weight, not {len(words)} and {len(idf)}")
        self.words = list(words)
        self.cut: Cut = cut  # a set that is cut by another rule puts it in place
        self.number = {word: i for i, word in enumerate(self.words, start=FIRST)}
        most = max(idf)  # of unknown words, which are rare, and of masks
        # Not in the state dict: it is what `describe` tells.
        self.register_buffer("idf", torch.tensor([0.0, most, most, 0.0, *idf]), persistent=False)  # (V,)

    def encode(self, texts: Sequence[Sequence[str]], length: int) -> Tensor:
        """Texts in words as they are stored: int64 (N, `length`); longer ones lose their end, and an empty one is an
        unknown word.
        """
        ids = torch.zeros(len(texts), length, dtype=torch.int64)
        for row, words in enumerate(texts):
            numbers = [self.number.get(word, UNKNOWN) for word in words[:length]] or [UNKNOWN]
            ids[row, : len(numbers)] = torch.tensor(numbers)
        return ids

    def prepare(self, samples: Samples) -> Samples:
        if not isinstance(samples, Tensor):
            return samples
        if samples.dim() != 2 or samples.is_floating_point():
            raise UserError(
                f"texts are numbers of words, int64 (B, L), and these {samples.dtype} {tuple(samples.shape)}"
            )
        return {"ids": samples, "key": torch.zeros_like(samples[:, :1])}

    def finish(self, x: Samples) -> Tensor:
        x = self.prepare(x)
        assert isinstance(x, dict)
        ids = x["ids"]
        return torch.stack([ids.float(), self.idf[ids], x["key"].float().expand(-1, ids.shape[1])], dim=1)

    def read(self, samples: Samples) -> list[str]:
        """Texts, stored or prepared, in words."""
        ids = samples if isinstance(samples, Tensor) else samples["ids"]
        return [" ".join(_SIGNS.get(i) or self.words[i - FIRST] for i in row if i != PADDING) for row in ids.tolist()]

    def raw(self, samples: Tensor) -> Tensor:
        """How often each word of the vocabulary is in each text, times its weight, scaled to length 1: (B, V)."""
        weights = self.idf[samples]
        counts = weights.new_zeros(len(samples), len(self.idf)).scatter_add(1, samples, weights)
        return torch.nn.functional.normalize(counts, dim=1)

    def picture(self, samples: Samples) -> Tensor:
        """Texts to look at, written on white: float (B, 1, 128, 128) in [0, 1]."""
        return torch.stack([_written(text) for text in self.read(samples)])

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"words": self.words, "idf": self.idf[FIRST:].tolist()}


def learned(texts: Sequence[Sequence[str]], also: Sequence[Sequence[str]], most: int) -> Words:
    """The vocabulary of texts in words: the commonest of them and of `also`, so many that with the numbers of no words
    there are `most`.
    """
    if most <= FIRST:
        raise UserError(f"data.words={most}: numbers 0 to {FIRST - 1} are no words, so there have to be more")
    common = Counter(word for text in [*texts, *also] for word in text)
    words = sorted(sorted(common, key=lambda word: (-common[word], word))[: most - FIRST])
    return Words(words, weights(words, texts))


def weights(words: Sequence[str], texts: Sequence[Sequence[str]]) -> list[float]:
    """What each word weighs: log((1 + N) / (1 + n)) + 1 if n of the N texts have it, as in scikit-learn."""
    having = Counter(word for text in texts for word in set(text))
    return [math.log((1 + len(texts)) / (1 + having[word])) + 1 for word in words]


def _written(text: str, side: int = 128) -> Tensor:
    """A text in lines of a picture (1, side, side), as much of it as there is room for."""
    from textwrap import wrap

    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("L", (side, side), 255)
    pen, font = ImageDraw.Draw(picture), ImageFont.load_default(size=12)
    for line, words in enumerate(wrap(text, 19)[: side // 14]):
        pen.text((3, 3 + 14 * line), words, fill=0, font=font)
    return torch.from_numpy(np.array(picture))[None] / 255
