"""Networks of timm as encoders: twenty by name, at 32, 64 and 224 pixels."""

import copy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT
from torch import nn

from twoview.encoder.frozen import digest
from twoview.errors import UserError
from twoview.optim.muon import Muon
from twoview.optim.recipe import Recipe
from twoview.run.checkpoint import load_encoder, read_checkpoint

timm = pytest.importorskip("timm", reason="the extra `timm` is not installed")

from twoview.encoder.timm import timm_encoder  # noqa: E402

Command = Callable[..., Any]

VIT = {"args": {"patch_size": 4}}
NAMES: dict[str, dict[str, Any]] = {
    "convnext_atto": {},
    "resnet18": {},
    "resnext26ts": {},
    "regnetx_002": {},
    "densenet121": {},
    "vgg11_bn": {},
    "efficientnet_b0": {},
    "mobilenetv3_small_050": {},
    "mobilenetv4_conv_small": {},
    "ghostnet_100": {},
    "repvit_m0_9": {},
    "fastvit_t8": {},
    "mambaout_femto": {},
    "poolformer_s12": {},
    "pvt_v2_b0": {},
    "tiny_vit_5m_224": {},
    "swin_tiny_patch4_window7_224": {"args": {"patch_size": 2, "window_size": 4}},
    "vit_tiny_patch16_224": VIT,
    "deit_tiny_patch16_224": VIT,
    "eva02_tiny_patch14_224": VIT,
}
TABLE = [
    pytest.param(name, size, marks=() if (name, size) == ("convnext_atto", 32) else pytest.mark.slow)
    for name in NAMES
    for size in (32, 64, 224)
]


def given(name: str, size: int) -> dict[str, Any]:
    """Patches of their own for small images alone."""
    return NAMES[name] if size <= 64 else {}


@pytest.mark.parametrize(("name", "size"), TABLE)
def test_a_network_of_timm_is_an_encoder(name: str, size: int) -> None:
    """Width, state there and back, a training step, a trace as it is exported."""
    torch.manual_seed(0)
    encoder = timm_encoder(name, size=size, **given(name, size))
    x = torch.randn(4, 3, size, size)
    h = encoder(x)
    assert h.shape == (4, encoder.dim)
    recipe = Recipe(partial(torch.optim.SGD, momentum=0.9), lr_per_256=0.1, decay_bias_and_norm=False)
    optimizer, _ = recipe.build(encoder, batch_size=256, steps=1, epochs=1)
    before = digest(encoder)
    h.square().mean().backward()
    optimizer.step()
    assert digest(encoder) != before
    other = timm_encoder(name, size=size, **given(name, size))
    other.load_state_dict(encoder.state_dict(), strict=True)
    assert digest(other) == digest(encoder)
    encoder.eval()
    with torch.no_grad():
        h = encoder(x)
        assert copy.deepcopy(encoder)(x).equal(h)
        assert other.eval()(x).equal(h)
        torch.testing.assert_close(torch.export.export(encoder, (x,)).module()(x), h, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "size", "stem", "side", "changed"),
    [
        ("test_resnet", 32, "auto", 4, ["conv1.0", "maxpool"]),
        ("test_resnet", 64, "auto", 4, ["conv1.0"]),
        ("test_resnet", 128, "auto", 4, []),
        ("test_resnet", 64, "small", 8, ["conv1.0", "maxpool"]),
        ("test_resnet", 32, "as_is", 1, []),
        ("test_convnext", 32, "auto", 4, ["stem.0"]),
        ("test_efficientnet", 32, "auto", 4, ["conv_stem", "blocks.1.0.conv_exp"]),
        ("test_byobnet", 32, "auto", 4, ["stem.conv", "stages.0.0.conv1_kxk.conv", "stages.0.0.shortcut.pool"]),
        ("test_vit", 32, "auto", 2, []),
    ],
)
def test_stems_for_small_images(
    name: str, size: int, stem: Any, side: int, changed: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    encoder: Any = timm_encoder(name, size=size, stem=stem)
    assert list(encoder.changed) == changed
    maps = encoder.eval().forward_features(torch.zeros(1, 3, size, size))
    tokens = side * side + 1  # and the class token
    assert maps.shape[1 if name == "test_vit" else 2] == (tokens if name == "test_vit" else side)
    assert ("few to learn from" in caplog.text) is (side < 4)
    assert encoder.state_dict().keys() == timm.create_model(name, num_classes=0).state_dict().keys()


def test_what_a_vision_transformer_gives() -> None:
    found = {}
    for pool in ("token", "avg", "both"):
        torch.manual_seed(0)
        found[pool] = timm_encoder("test_vit", size=32, pool=pool, args={"patch_size": 4}).eval()  # type: ignore[arg-type]
    x = torch.randn(2, 3, 32, 32)
    tokens = found["token"].forward_features(x)
    assert tokens.shape == (2, 65, 64)
    assert found["token"](x).equal(tokens[:, 0])
    torch.testing.assert_close(found["both"](x), torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1))
    assert [encoder.dim for encoder in found.values()] == [64, 64, 128]
    dropping = timm_encoder("test_vit", size=32, drop_path=0.5, args={"dynamic_img_size": True})
    assert dropping(torch.randn(2, 3, 48, 48)).shape == (2, 64)
    assert not dropping.train()(x).equal(dropping(x))


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("convnext_ato", {}, "is no network of timm .* Did you mean convnext_atto"),
        ("hf-hub:timm/resnet18", {}, "is no network of timm"),
        ("test_resnet", {"size": None}, "set encoder.size"),
        ("test_resnet", {"drop_path": 1.0}, "0 <= drop_path < 1"),
        ("test_resnet", {"pool": "both"}, "encoder.pool=both is for vision transformers"),
        ("test_resnet", {"args": {"patches": 3}}, "cannot be built with .*patches"),
        ("test_resnet", {"args": {"global_pool": "max"}}, "global_pool is encoder.pool"),
        ("test_resnet", {"args": {"checkpoint_path": "x.pth"}}, "checkpoint_path is not passed on"),
        ("test_resnet", {"args": {"pretrained": True}}, "pretrained is not passed on"),
        ("test_vit", {"stem": "small"}, "encoder.stem=small is not for test_vit"),
        ("test_vit", {"args": {"patch_size": 64}}, "cannot be built|does not take images"),
        ("crossvit_9_240", {"size": 240}, "gives a list of features"),
    ],
)
def test_what_is_no_encoder_is_refused(name: str, more: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        timm_encoder(name, **{"size": 32, **more})


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"encoder=timm needs timm: pip install 'twoview\[timm\]'"):
        timm_encoder("resnet18", size=32)


def test_tokens_and_positions_do_not_decay_and_are_vectors_to_muon() -> None:
    encoder = timm_encoder("test_vit", size=32)
    names = {parameter: name for name, parameter in encoder.named_parameters()}
    with_rows = nn.ModuleList([encoder, nn.Embedding(3, 4)])
    for optimizer, exempt in ((torch.optim.AdamW, False), (Muon, True), (Muon, False)):
        recipe = Recipe(optimizer, lr_per_256=0.1, weight_decay=0.1, decay_bias_and_norm=exempt)
        weights, others = recipe.build(with_rows, 256, steps=1, epochs=1)[0].param_groups
        assert (weights["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
        assert {"cls_token", "pos_embed", "norm.bias"} <= {names.get(p) for p in others["params"]}
        assert any(p is with_rows[1].weight for p in others["params"])
        assert all(p.ndim > 1 and names[p].endswith("weight") for p in weights["params"])
    position = encoder.pos_embed
    before, position.grad = position.detach().clone(), torch.full_like(position, 0.01)  # type: ignore[operator]
    optimizer, _schedule = recipe.build(with_rows, 256, steps=1, epochs=1)
    optimizer.step()
    torch.testing.assert_close(position, before - 0.1 * 5 * 0.01 * 1.9)  # a Nesterov step at five times the rate


def test_a_run_with_a_network_of_timm(
    command: Command, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [word for word in tiny if not word.startswith(("encoder", "data.size", "knn", "data.n_train"))]
    words += ["data.n_train=64", "data.size=32", "knn=null", "epochs=1", "hydra.run.dir=run"]
    words += ["encoder=timm", "encoder.name=test_convnext"]
    ended = command(*words)
    assert ended.code == 0, ended.err
    assert "with test_convnext (" in ended.out
    assert read_checkpoint(tmp_path / "run")["twoview"]["identity"]["package"] == f"timm {timm.__version__}"
    assert read_checkpoint(tmp_path / "run")["twoview"]["config"]["encoder"]["size"] == 32  # of the data
    assert command("ckpt=run", "strengths=[0.01]", "baseline=true", name="probe").code == 0
    assert command("ckpt=run", "format=torchscript", name="export").code == 0
    assert load_encoder(tmp_path / "run")(torch.rand(2, 3, 32, 32)).shape == (2, 64)
    error = command(*words, "encoder.name=vit_tiny_patch16_224", "encoder.size=48", "hydra.run.dir=other").error
    assert "the encoder does not fit shapes, whose views have the shape (3, 32, 32)" in error
    error = command(*words, "augment=simclr_gray", "encoder.channels=1", "hydra.run.dir=other").error
    assert "views of shapes have 3 channels, and the encoder is for 1: set encoder.channels=3" in error
    monkeypatch.setattr(timm, "__version__", "0.1")
    assert "encoder of timm 0.1 instead of timm" in command("resume=run").error


@pytest.mark.parametrize("name", ["probe", "knn", "embed"])
def test_images_of_another_size_are_refused_in_words_by_who_takes_one_size(
    command: Command, tiny: list[str], name: str
) -> None:
    words = [word for word in tiny if not word.startswith(("encoder", "data.size", "knn", "data.n_train", "epochs"))]
    words += ["data.n_train=64", "data.size=32", "knn=null", "epochs=1", "loader.max_batches=1", "hydra.run.dir=run"]
    assert command(*words, "encoder=timm", "encoder.name=vit_tiny_patch16_224").code == 0
    error = command("ckpt=run", "data=shapes", "data.size=48", "force=true", name=name).error
    assert error.startswith("the encoder does not fit shapes: the encoder was trained on samples of 3 x 32 x 32")
    assert "and takes no others (" in error


def test_weights_that_timm_downloads(monkeypatch: pytest.MonkeyPatch) -> None:
    create, asked = timm.create_model, []

    def made(name: str, pretrained: bool = False, **arguments: Any) -> Any:
        network = create(name, **arguments)
        if pretrained:
            asked.append(arguments)
            nn.init.constant_(network.norm.weight, 7.0)
        return network

    monkeypatch.setattr(timm, "create_model", made)
    network = timm_encoder("vit_tiny_patch16_224", 32, 1, args={"patch_size": 8}, weights="pretrained")
    assert asked == [{"img_size": 32, "num_classes": 0, "in_chans": 1, "patch_size": 8}]
    assert network.norm.weight.eq(7).all()


def test_the_preset_for_small_images_trains_all_but_its_patches() -> None:
    config = yaml.safe_load((ROOT / "configs" / "encoder" / "vit_small32.yaml").read_text())
    del config["_target_"]
    network = timm_encoder(**config | {"size": 32})
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == 21.3  # as its configuration says
    frozen = {name for name, parameter in network.named_parameters() if not parameter.requires_grad}
    assert frozen == {"patch_embed.proj.weight", "patch_embed.proj.bias"}
    assert network(torch.zeros(2, 3, 32, 32)).shape == (2, 384)
    with pytest.raises(UserError, match="freeze_patch is for networks with patches, and resnet18 has none"):
        timm_encoder("resnet18", 32, freeze_patch=True)
