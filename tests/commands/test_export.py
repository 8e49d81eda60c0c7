"""Encoders as files for other software: what was written is read back by that software, and agrees."""

import copy
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors import safe_open
from torch import nn

from twoview.commands.export import TOLERANCE
from twoview.data.image.pixels import Pixels
from twoview.encoder.frozen import digest
from twoview.errors import UserError
from twoview.run import export
from twoview.run.checkpoint import build_encoder, load_encoder, save_encoder

ONNX = ("onnx", "onnxscript", "onnxruntime")
GRAPHS = ["torchscript", "pt2", "onnx"]


def with_onnx() -> None:
    for name in ONNX:
        pytest.importorskip(name)


@pytest.fixture(scope="module")
def resnets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A ResNet-18 with either stem, as runs leave it, its batch statistics those of some images."""
    folder, found = tmp_path_factory.mktemp("resnets"), {}
    for stem in ("cifar", "imagenet"):
        about = {"_target_": "twoview.encoder.resnet.resnet18", "stem": stem, "zero_init_residual": False}
        preprocess = Pixels([0.5, 0.4, 0.3], [0.2, 0.25, 0.3])
        torch.manual_seed(0)
        encoder = build_encoder({"encoder": about})
        with torch.no_grad():
            encoder.train()(torch.randn(8, 3, 32, 32))
        found[stem] = folder / f"{stem}.safetensors"
        described = {
            "config": {"encoder": about, "data": {}},
            "preprocess": preprocess.describe(),
            "shape": [3, 32, 32],
        }
        save_encoder(encoder, preprocess, described, found[stem])
    return found


def normalised(images: torch.Tensor) -> torch.Tensor:
    return (images - torch.tensor([0.5, 0.4, 0.3]).view(-1, 1, 1)) / torch.tensor([0.2, 0.25, 0.3]).view(-1, 1, 1)


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize("num_classes", [None, 7])
def test_the_lines_that_are_printed_load_the_file_strictly(
    resnets: dict[str, Path], tmp_path: Path, command: Callable[..., Any], stem: str, num_classes: int | None
) -> None:
    words = [f"ckpt={resnets[stem]}", "out=weights.pth", *([f"num_classes={num_classes}"] if num_classes else [])]
    ended = command(*words, name="export")
    assert ended.code == 0, ended.err
    code = [line.strip() for line in ended.out.splitlines() if line.strip().startswith("model")]
    assert len(code) == 2 + (stem == "cifar") + (num_classes is None)
    assert "strict=True" in code[-1]
    assert "mean (0.5000, 0.4000, 0.3000)" in ended.out
    scope: dict[str, Any] = {"torch": torch, "torchvision": torchvision, "nn": nn}
    exec("\n".join(code), scope)
    model = scope["model"].eval()
    encoder = load_encoder(resnets[stem])
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        out = model(normalised(images))
        if num_classes:
            assert out.shape == (3, num_classes)
            assert not out.any()  # the classifier is one of zeros
            model.fc = nn.Identity()
            out = model(normalised(images))
        torch.testing.assert_close(out, encoder(images), atol=1e-5, rtol=1e-5)


def test_with_the_stem_of_imagenet_the_keys_are_those_of_an_untouched_network(
    resnets: dict[str, Path], tmp_path: Path
) -> None:
    export.write_torchvision(load_encoder(resnets["imagenet"]), tmp_path / "weights.pth", num_classes=1000)
    weights = torch.load(tmp_path / "weights.pth", weights_only=True)
    untouched = torchvision.models.resnet18().state_dict()
    assert weights.keys() == untouched.keys()
    assert all(weights[name].shape == untouched[name].shape for name in untouched)


@pytest.mark.parametrize("kind", GRAPHS)
def test_a_network_comes_back_with_its_normalisation_for_any_batch(
    finished: Path, tmp_path: Path, command: Callable[..., Any], kind: str
) -> None:
    if kind == "onnx":
        with_onnx()
    ended = command(f"ckpt={finished}", f"format={kind}", "out=model.pt2", name="export")
    assert ended.code == 0, ended.err
    assert re.search(r"largest difference \d\.\de[-+]\d\d, of values up to", ended.out)
    assert "(B, 3, 16, 16) in [0, 1]" in ended.out
    file, encoder = tmp_path / "model.pt2", load_encoder(finished)
    for rows in (1, 3, 50):
        images = torch.rand(rows, 3, 16, 16)
        if kind == "onnx":
            import onnxruntime

            session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
            assert [(i.name, i.shape[1:], i.type) for i in session.get_inputs()] == [
                ("images", [3, 16, 16], "tensor(float)")
            ]
            h = torch.from_numpy(session.run(["h"], {"images": images.numpy()})[0])
        elif kind == "pt2":
            h = torch.export.load(str(file)).module()(images)
        else:
            h = torch.jit.load(str(file))(images)
        torch.testing.assert_close(h, encoder(images), atol=1e-5, rtol=1e-4)
    about = said(file, kind)
    assert about["encoder_digest"] == digest(encoder)
    assert list(tmp_path.iterdir()) == [file]  # no weights beside it


def said(file: Path, kind: str) -> Any:
    """What a file says of its origin."""
    extra = {"twoview.json": ""}
    if kind == "onnx":
        import onnx

        entries = {entry.key: entry.value for entry in onnx.load(str(file)).metadata_props}
        return json.loads(entries["twoview"])
    if kind == "pt2":
        torch.export.load(str(file), extra_files=extra)
    else:
        torch.jit.load(str(file), _extra_files=extra)
    return json.loads(extra["twoview.json"])


def test_safetensors_load_as_the_run_s_own(finished: Path, tmp_path: Path, command: Callable[..., Any]) -> None:
    assert command(f"ckpt={finished}/last.ckpt", "format=safetensors", "out=e.safetensors", name="export").code == 0
    assert digest(load_encoder(tmp_path / "e.safetensors")) == digest(load_encoder(finished))
    with safe_open(tmp_path / "e.safetensors", "np") as ours, safe_open(finished / "encoder.safetensors", "np") as runs:
        assert set(ours.keys()) == set(runs.keys())
        assert all(np.array_equal(ours.get_tensor(name), runs.get_tensor(name)) for name in ours.keys())  # noqa: SIM118


@pytest.mark.parametrize("kind", ["safetensors", "torchscript", "pt2"])
def test_a_file_that_disagrees_is_not_left(
    finished: Path, tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """What is written is an encoder whose first kernels are off by a hundredth."""
    loaded = load_encoder(finished)
    off = copy.deepcopy(loaded)
    next(p for p in off.parameters() if p.dim() > 1).add_(0.01)
    if kind == "safetensors":
        monkeypatch.setattr("twoview.commands.export.write_safetensors", lambda encoder, path: off)
    else:
        write = export.GRAPHS[kind]
        monkeypatch.setitem(export.GRAPHS, kind, lambda encoder, *words: write(off, *words))
    (tmp_path / "old").write_text("before")
    error = command(f"ckpt={finished}", f"format={kind}", "out=old", name="export").error
    assert re.search(rf"the {kind} file is not kept: its outputs differ from the encoder's by up to \d", error)
    assert (tmp_path / "old").read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["old"]


def test_nan_is_no_agreement(finished: Path) -> None:
    encoder = load_encoder(finished)
    images = torch.rand(3, 3, 16, 16)
    assert export.disagreement(encoder, encoder, images)[0] == 0
    difference, scale = export.disagreement(encoder, lambda x: encoder(x) * torch.nan, images)
    assert not difference <= TOLERANCE * scale
    with pytest.raises(UserError, match=r"features of shape \(3, 1\)"):
        export.disagreement(encoder, lambda x: encoder(x)[:, :1], images)


def test_a_batch_of_one_is_compared_too(finished: Path) -> None:
    encoder = load_encoder(finished)
    wrong_alone: Callable[[torch.Tensor], torch.Tensor] = lambda x: encoder(x) + (1 if len(x) == 1 else 0)  # noqa: E731
    assert export.disagreement(encoder, wrong_alone, torch.rand(3, 3, 16, 16))[0] == pytest.approx(1, abs=1e-3)


def test_files_lie_beside_the_checkpoint(resnets: dict[str, Path], tmp_path: Path, command: Callable[..., Any]) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "encoder.safetensors").write_bytes(resnets["cifar"].read_bytes())
    for kind in ("torchvision", "torchscript", "safetensors"):
        ended = command(f"ckpt={run}/encoder.safetensors", f"format={kind}", name="export")
        assert ended.code == 0, ended.err
    assert {path.name for path in run.iterdir()} == {"encoder.safetensors", "resnet18.pth", "encoder.pt"}
    assert digest(load_encoder(run / "encoder.safetensors")) == digest(load_encoder(resnets["cifar"]))


def test_the_size_can_be_another(finished: Path, command: Callable[..., Any]) -> None:
    ended = command(f"ckpt={finished}", "format=torchscript", "size=24", "out=x.pt", name="export")
    assert "(B, 3, 24, 24) in [0, 1]" in ended.out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], r"which run\? .*ckpt="),
        (["ckpt=nowhere/last.ckpt"], r"there is no checkpoint nowhere/last\.ckpt"),
        (["ckpt={run}", "format=tensorflow"], r"format='tensorflow' is not one of torchvision, safetensors, onnx"),
        (["ckpt={run}"], r"the encoder Small is not one of torchvision's networks; use format=safetensors, onnx"),
        (["ckpt={run}", "format=pt2", "size=0"], r"size must be at least 1 pixel"),
        (["ckpt={run}", "format=pt2", "size=large"], r"size='large'"),
        (["ckpt={run}", "format=pt2", "num_classes=10"], r"num_classes adds a classifier to format=torchvision"),
        (["ckpt={run}", "num_classes=0"], r"num_classes adds a classifier to format=torchvision: a number of at least"),
        (["ckpt={run}", "format=pt2", "encoder_of=teacher"], r"holds no teacher"),
        (["ckpt={run}", "format=pt2", "out=no/such/folder/x"], r"cannot write no/such/folder/x: No such file"),
        (["ckpt={run}", "format=huggingface"], r"the encoder Small is not one of torchvision's networks; use format="),
        (["ckpt={run}", "format=pt2", "out={run}"], r"it is a folder; name another file by out="),
        (["ckpt={run}", "invented=1"], r"has no key 'invented'"),
    ],
)
def test_bad_words(finished: Path, command: Callable[..., Any], words: list[str], says: str) -> None:
    error = command(*(word.format(run=finished) for word in words), name="export").error
    assert re.search(says, error), error


def test_images_may_have_another_size(resnets: dict[str, Path], tmp_path: Path, command: Callable[..., Any]) -> None:
    words = [f"ckpt={resnets['cifar']}", "format=torchscript", "out=x.pt"]
    assert command(*words, "size=8", name="export").code == 0
    assert torch.jit.load(tmp_path / "x.pt")(torch.rand(2, 3, 8, 8)).shape == (2, 512)


@pytest.mark.parametrize("name", ONNX)
def test_a_missing_extra_is_named(
    finished: Path, tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    error = command(f"ckpt={finished}", "format=onnx", "out=x.onnx", name="export").error
    assert re.search(rf"{name}.*pip install 'twoview\[export\]'", error)
    assert not list(tmp_path.iterdir())
