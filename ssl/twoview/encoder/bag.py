"""A bag of words: the weighted mean of their embeddings."""

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag

from twoview.encoder.weights import start_from
from twoview.errors import UserError


class Bag(nn.Module):
    """Embeddings of words and of pairs of neighbours, summed with the words' weights and divided by the length of the
    weights: texts as `twoview.data.text.words.Words` makes them (B, 3, L) -> h (B, `width`).

    `words`: numbers that there are (`data.words`). `pairs`: rows of the table in which pairs share places by a hash, 0
    for no pairs (fastText, Joulin et al., arXiv 1607.01759); the sum of both is read. `weights`: what to start from.
    """

    def __init__(self, words: int = 4096, width: int = 512, pairs: int = 0, weights: str = "random") -> None:
        super().__init__()
        if words < 1 or width < 1 or pairs < 0:
            raise UserError(f"encoder bag needs words and width of at least 1, not {words} and {width}")
        self.words, self.dim, self.pairs = words, width, pairs
        self.table = nn.Embedding(words + pairs, width)
        nn.init.normal_(self.table.weight, std=width**-0.5)
        start_from(self, weights)

    def forward(self, x: Tensor) -> Tensor:
        ids, weight = checked(x, self.words)
        if self.pairs:
            both = (weight[:, 1:] * weight[:, :-1]).sqrt()
            ids = torch.cat([ids, self.words + (ids[:, :-1] * 1_000_003 + ids[:, 1:]) % self.pairs], dim=1)
            weight = torch.cat([weight, both], dim=1)
        h = embedding_bag(ids, self.table.weight, per_sample_weights=weight.to(self.table.weight), mode="sum")
        return h / weight.norm(dim=1, keepdim=True).clamp(min=1e-6)


def checked(x: Tensor, words: int) -> tuple[Tensor, Tensor]:
    """Numbers int64 (B, L) and weights (B, L) of texts (B, 3, L). UserError for other data, and for numbers beyond the
    encoder's.
    """
    if x.dim() != 3 or x.shape[1] != 3:
        raise UserError(f"this encoder is for texts, (B, 3, L), and these are {tuple(x.shape)}")
    ids = x[:, 0].long()
    on_cpu = ids.device.type == "cpu"  # a GPU would be waited for in every step; it refuses such numbers by itself
    recorded = torch.compiler.is_compiling() or torch.jit.is_tracing()
    if on_cpu and not recorded and len(ids) and int(ids.max()) >= words:
        raise UserError(
            f"the encoder has {words} words, and the vocabulary more: set encoder.words={int(ids.max()) + 1} or more, "
            f"as data.words, or data.words={words}"
        )
    return ids, x[:, 1]
