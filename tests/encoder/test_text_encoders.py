"""Encoders of texts: what they compute, and that padding is not in it."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from twoview.encoder.bag import Bag
from twoview.encoder.textcnn import TextCNN
from twoview.errors import UserError

MAKE: dict[str, Callable[[], nn.Module]] = {
    "bag": lambda: Bag(words=30, width=16),
    "pairs": lambda: Bag(words=30, width=16, pairs=50),
    "textcnn": lambda: TextCNN(words=30, width=16, filters=8),
}


def finished(*texts: list[int], length: int = 8) -> Tensor:
    ids = torch.tensor([text + [0] * (length - len(text)) for text in texts])
    return torch.stack([ids.float(), (ids > 0).float() * (1 + ids / 10), torch.zeros(ids.shape)], dim=1)


@pytest.mark.parametrize("name", MAKE)
def test_more_padding_changes_nothing(name: str) -> None:
    torch.manual_seed(0)
    encoder = MAKE[name]().eval()
    short, long = (encoder(finished([5, 6, 7], [8], length=length)) for length in (4, 20))
    assert short.shape == (2, encoder.dim)
    torch.testing.assert_close(short, long)


def test_a_bag_is_the_weighted_mean_and_knows_no_order() -> None:
    torch.manual_seed(0)
    bag = Bag(words=30, width=16)
    x = finished([5, 6, 6])
    expected = (x[0, 1, :3, None] * bag.table.weight[[5, 6, 6]]).sum(0) / x[0, 1].norm()
    torch.testing.assert_close(bag(x)[0], expected)
    torch.testing.assert_close(bag(finished([6, 5, 6])), bag(x))
    pairs = Bag(words=30, width=16, pairs=50)
    assert not torch.allclose(pairs(finished([6, 5, 6])), pairs(x))


def test_what_is_no_text_or_has_too_many_words_is_refused() -> None:
    with pytest.raises(UserError, match=r"for texts, \(B, 3, L\), and these are \(2, 5\)"):
        Bag()(torch.zeros(2, 5))
    with pytest.raises(UserError, match=r"the encoder has 30 words.*encoder.words=41"):
        Bag(words=30)(finished([40]))
