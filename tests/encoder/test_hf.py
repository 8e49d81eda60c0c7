"""Models of transformers as encoders: a tiny one, drawn at random, computes what it computes by its own library."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import compose_config

from twoview.data.text.files import texts
from twoview.encoder.hf import Transformer
from twoview.errors import UserError
from twoview.run.checkpoint import load_encoder, read_checkpoint
from twoview.selftest.resume import differing
from twoview.train import pretrain

transformers = pytest.importorskip("transformers", reason="the extra `hf` is not installed")


def of_texts(bert: Path, sentences: Path) -> list[str]:
    words = [
        f"data.root={sentences}",
        f"data.tokenizer={bert / 'tokenizer.json'}",
        "encoder=hf",
        f"encoder.model={bert}",
    ]
    return ["data=text", "augment=none", "optimizer=adamw", *words]


@pytest.mark.parametrize("pool", ["mean", "cls"])
def test_h_is_what_the_library_computes(bert: Path, sentences: Path, pool: Any) -> None:
    train = texts(sentences, "train", tokenizer=bert / "tokenizer.json", length=12)
    assert train is not None
    encoder = Transformer(str(bert), pool).eval()
    tokenizer, network = (getattr(transformers, name).from_pretrained(bert) for name in ("AutoTokenizer", "AutoModel"))
    said = [line.rpartition(",")[0] for line in (sentences / "train.csv").read_text().splitlines()[1:6]]
    by_hand = tokenizer(said, return_tensors="pt", padding=True)
    with torch.no_grad():
        out = network.eval()(**by_hand).last_hidden_state
        share = by_hand["attention_mask"][..., None]
        expected = out[:, 0] if pool == "cls" else (out * share).sum(1) / share.sum(1)
        h = encoder(train.preprocess(train.samples[:5]))  # type: ignore[index]
    torch.testing.assert_close(h, expected)
    assert h.shape == (5, encoder.dim)


def test_padding_changes_nothing(bert: Path) -> None:
    encoder = Transformer(str(bert)).eval()
    ids = torch.tensor([[5, 6, 2, 1, 3, 0, 0]])
    x = torch.stack([ids.float(), (ids * (ids != 3)).float(), torch.zeros(ids.shape)], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(encoder(torch.nn.functional.pad(x, (0, 4))), encoder(x))


def test_a_run_with_dropout_alone_goes_on_to_the_same_bits_and_is_loaded(
    bert: Path, sentences: Path, tmp_path: Path, command: Callable[..., Any]
) -> None:
    """SimCSE: both views are the text itself, and dropout tells them apart."""
    words = [*of_texts(bert, sentences), "model.temperature=0.05", "model.projector.hidden_dim=16", "batch_size=16"]
    words += ["epochs=2", "trainer=cpu", "knn.k=5", "log_every_steps=2"]
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    config = compose_config(*words)
    summary = pretrain.run(config, straight)
    assert summary["loss"] > 0.001  # equal views would have less
    stopped.mkdir()
    (stopped / "last.ckpt").write_bytes((straight / "last-1.ckpt").read_bytes())
    pretrain.run(config | {"resume": str(stopped)}, stopped)
    one, two = (read_checkpoint(folder) for folder in (straight, stopped))
    assert not list(differing(one["state_dict"], two["state_dict"]))
    identity = one["twoview"]["identity"]
    assert identity["package"].startswith("transformers ")
    assert identity["weights"]
    encoder = load_encoder(straight)
    assert encoder(texts(sentences, "test", tokenizer=bert / "tokenizer.json").samples[:2]).shape == (2, 16)  # type: ignore
    ended = command(f"ckpt={straight}", "strengths=[0.01]", "baseline=true", name="probe")
    assert ended.code == 0, ended.err
    assert json.loads((straight / "linear_probe.json").read_text())["top1"] > 0.5


def test_weights_of_the_folder_are_where_it_starts(bert: Path) -> None:
    network = transformers.AutoModel.from_pretrained(bert)
    name, there = next(iter(network.state_dict().items()))
    assert torch.equal(Transformer(str(bert)).network.state_dict()[name], there)
    assert not torch.equal(Transformer(str(bert), weights="random").network.state_dict()[name], there)


def test_what_is_no_model_is_said(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"encoder\.model=<folder>"):
        Transformer()
    with pytest.raises(UserError, match="nowhere is no folder"):
        Transformer("nowhere")
    with pytest.raises(UserError, match="holds no model and tokenizer of transformers"):
        Transformer(str(tmp_path))
    with pytest.raises(UserError, match=r"takes 40 tokens, and a text has 52: set data\.length=38"):
        Transformer(str(bert))(torch.ones(2, 3, 50))
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"encoder=hf needs transformers: pip install 'twoview\[hf\]'"):
        Transformer(str(bert))
