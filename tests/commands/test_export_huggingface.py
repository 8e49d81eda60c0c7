"""Encoders as folders for the Hub: the lines of the model card load what the run has."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from twoview.data.image.pixels import Pixels
from twoview.encoder.frozen import Frozen, digest
from twoview.run import hub
from twoview.run.checkpoint import build_encoder, load_encoder, save_encoder
from twoview.run.folder import read_json

Command = Callable[..., Any]
RESNET = {"_target_": "twoview.encoder.resnet.resnet18"}
TIMM = {"_target_": "twoview.encoder.timm.timm_encoder", "size": 32}
ENCODERS: dict[str, dict[str, Any]] = {
    "torchvision": RESNET | {"stem": "imagenet"},
    "small stem": RESNET | {"stem": "cifar"},
    "convnext": TIMM | {"name": "test_convnext", "stem": "as_is"},
    "stem of timm's": TIMM | {"name": "test_resnet"},
    "transformer": TIMM | {"name": "test_vit", "pool": "avg", "args": {"patch_size": 8}},
    "gray": TIMM | {"name": "test_efficientnet", "channels": 1},
}


def saved(folder: Path, encoder: dict[str, Any]) -> Frozen:
    """An encoder as a run leaves it, its batch statistics those of some images."""
    if encoder["_target_"] == TIMM["_target_"]:
        pytest.importorskip("timm", reason="the extra `timm` is not installed")
    torch.manual_seed(0)
    channels = encoder.get("channels", 3)
    network, preprocess = build_encoder({"encoder": encoder}), Pixels([0.4] * channels, [0.2] * channels)
    with torch.no_grad():
        network.train()(torch.randn(8, channels, 32, 32))
    model = {"_target_": "twoview.model.simclr.SimCLR"}
    config = {"encoder": encoder, "data": {"root": "/home/me/photos"}, "model": model}
    about = {"config": config, "preprocess": preprocess.describe(), "shape": [channels, 32, 32]}
    save_encoder(network, preprocess, about, folder / "encoder.safetensors")
    return load_encoder(folder / "encoder.safetensors")


@pytest.mark.parametrize("name", ENCODERS)
def test_the_lines_of_the_card_load_the_folder(
    name: str, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = saved(tmp_path, ENCODERS[name])
    ended = command(f"ckpt={tmp_path}/encoder.safetensors", "format=huggingface", name="export")
    assert ended.code == 0, ended.err
    folder = tmp_path / "huggingface"
    assert {path.name for path in folder.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    assert {path.name for path in tmp_path.iterdir()} == {"encoder.safetensors", "huggingface"}
    card = (folder / "README.md").read_text()
    library = "timm" if "timm" in ENCODERS[name]["_target_"] else "torchvision"
    assert yaml.safe_load(card.split("---")[1])["library_name"] == library
    assert "/home/me" not in card
    scope: dict[str, Any] = {}
    monkeypatch.chdir(folder)
    exec(re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0], scope)
    images = torch.rand(3, *encoder.shape)  # type: ignore[misc]
    with torch.no_grad():
        torch.testing.assert_close(scope["model"](encoder.preprocess(images)), encoder(images), atol=1e-5, rtol=1e-5)


def test_timm_loads_a_network_of_torchvision(tmp_path: Path, command: Command) -> None:
    timm = pytest.importorskip("timm", reason="the extra `timm` is not installed")
    encoder = saved(tmp_path, ENCODERS["torchvision"])
    assert command(f"ckpt={tmp_path}/encoder.safetensors", "format=huggingface", "out=f", name="export").code == 0
    model = timm.create_model(f"local-dir:{tmp_path / 'f'}", pretrained=True).eval()
    images = torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(encoder.preprocess(images)), encoder(images), atol=1e-5, rtol=1e-5)
    assert timm.data.resolve_model_data_config(model)["mean"] == pytest.approx((0.4, 0.4, 0.4))


def test_the_card_has_the_numbers_of_this_encoder_alone(tmp_path: Path, command: Command) -> None:
    encoder = saved(tmp_path, ENCODERS["small stem"])
    probe = {
        "top1": 0.5,
        "interval": [0.4, 0.6],
        "data": "shapes",
        "test_size": 1000,
        "protocol_text": "convex | probe",
    }
    knn = {"final": 0.25, "k": 5, "temperature": 0.1, "bank": 2000, "test": 300}
    (tmp_path / "summary.json").write_text(json.dumps({"knn": knn}))
    (tmp_path / "curves.png").write_bytes(b"a picture")

    def card(of: str) -> str:
        (tmp_path / "linear_probe.json").write_text(json.dumps(probe | {"encoder_digest": of}))
        assert command(f"ckpt={tmp_path}/encoder.safetensors", "format=huggingface", name="export").code == 0
        return (tmp_path / "huggingface" / "README.md").read_text()

    own = card(digest(encoder))
    assert "| linear top-1 | 50.00% [40.00%, 60.00%] | convex \\| probe; 1,000 test images of shapes" in own
    assert "| kNN top-1 | 25.00% | after the last epoch: k = 5, temperature 0.1, 2,000 training images vote" in own
    assert "(curves.png)" in own
    assert (tmp_path / "huggingface" / "curves.png").read_bytes() == b"a picture"
    assert "linear top-1" not in card("of another")
    shutil.copy(tmp_path / "encoder.safetensors", tmp_path / "earlier.safetensors")
    assert command(f"ckpt={tmp_path}/earlier.safetensors", "format=huggingface", name="export").code == 0
    assert "None were measured" in (tmp_path / "huggingface" / "README.md").read_text()
    assert read_json(tmp_path / "huggingface" / "config.json")["num_features"] == 512


def test_a_folder_that_disagrees_is_not_left(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, ENCODERS["torchvision"])
    load = hub._from_torchvision

    def off(encoder: Frozen, folder: Path) -> Any:
        network: Any = load(encoder, folder)
        with torch.no_grad():
            network.conv1.weight.add_(0.01)
        return network

    monkeypatch.setattr(hub, "_from_torchvision", off)
    words = [f"ckpt={tmp_path}/encoder.safetensors", "format=huggingface"]
    assert "the huggingface folder is not kept: its outputs differ" in command(*words, name="export").error
    (tmp_path / "file").touch()
    assert "it is a file; name another folder by out=" in command(*words, "out=file", name="export").error
    assert "cannot write no/folder: No such file" in command(*words, "out=no/folder", name="export").error
    assert {path.name for path in tmp_path.iterdir()} == {"encoder.safetensors", "file"}


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (TIMM | {"name": "test_vit", "pool": "both"}, "timm has no pooling of both"),
        (RESNET | {"channels": 1}, "torchvision's resnet18 is for 3 channels, this one for 1; use format=safetensors"),
    ],
)
def test_what_neither_library_has_is_refused(
    tmp_path: Path, command: Command, encoder: dict[str, Any], message: str
) -> None:
    saved(tmp_path, encoder)
    assert message in command(f"ckpt={tmp_path}/encoder.safetensors", "format=huggingface", name="export").error
    assert {path.name for path in tmp_path.iterdir()} == {"encoder.safetensors"}


class Hub:
    """huggingface_hub, as far as it is used; its server keeps the files in `has`."""

    def __init__(self, token: str | None = "a token", refuses: str | None = None) -> None:
        self.has: dict[str, dict[str, bytes]] = {}
        self.token, self.refuses = token, refuses

    def get_token(self) -> str | None:
        return self.token

    def create_repo(self, repo_id: str, *, exist_ok: bool) -> None:
        if self.refuses:
            raise OSError(f"{self.refuses}\n\na second line")
        assert exist_ok
        self.has.setdefault(repo_id, {})

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> None:
        self.has[repo_id] |= {path.name: path.read_bytes() for path in folder_path.iterdir()}


def test_a_folder_is_pushed_to_the_hub(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, ENCODERS["torchvision"])
    words = [f"ckpt={tmp_path}/encoder.safetensors", "format=huggingface", "push=me/birds"]
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub_ := Hub())
    for _ in range(2):  # the second time the repository is there
        ended = command(*words, name="export")
        assert ended.code == 0, ended.err
        assert "pushed to https://huggingface.co/me/birds" in ended.out
    folder = tmp_path / "huggingface"
    assert hub_.has == {"me/birds": {path.name: path.read_bytes() for path in folder.iterdir()}}
    assert "model.safetensors" in hub_.has["me/birds"]


@pytest.mark.parametrize(
    ("hub_", "words", "message"),
    [
        (None, [], "push=... needs huggingface_hub: pip install 'twoview[hub]'"),
        (Hub(token=None), [], "push=... needs a token of the Hub: hf auth login"),
        (Hub(), ["push=birds"], "push=birds is no repository of the Hub: <owner>/<name>"),
        (Hub(), ["format=pt2"], "push=... is for format=huggingface, not pt2"),
    ],
    ids=["extra", "token", "name", "format"],
)
def test_what_cannot_be_pushed_is_told_before_anything_is_written(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch, hub_: Any, words: list[str], message: str
) -> None:
    saved(tmp_path, ENCODERS["torchvision"])
    monkeypatch.setitem(sys.modules, "huggingface_hub", hub_)
    first = [f"ckpt={tmp_path}/encoder.safetensors", "format=huggingface", "push=me/birds"]
    keys = [word.partition("=")[0] for word in words]
    first = [word for word in first if word.partition("=")[0] not in keys]
    assert message in command(*first, *words, name="export").error
    assert {path.name for path in tmp_path.iterdir()} == {"encoder.safetensors"}


def test_a_hub_that_refuses_leaves_the_folder(
    tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, ENCODERS["torchvision"])
    monkeypatch.setitem(sys.modules, "huggingface_hub", Hub(refuses="401 Unauthorized"))
    words = [f"ckpt={tmp_path}/encoder.safetensors", "format=huggingface", "push=me/birds"]
    error = command(*words, name="export").error
    assert "the Hub did not take push=me/birds: 401 Unauthorized; " in error
    assert "is written and can be pushed again" in error
    assert (tmp_path / "huggingface" / "model.safetensors").exists()


def test_the_real_library_has_what_is_called() -> None:
    library = pytest.importorskip("huggingface_hub")
    import inspect

    assert {"repo_id", "exist_ok"} <= set(inspect.signature(library.create_repo).parameters)
    assert {"repo_id", "folder_path", "commit_message"} <= set(inspect.signature(library.upload_folder).parameters)
    assert issubclass(library.errors.HfHubHTTPError, OSError)
    assert issubclass(library.errors.HFValidationError, ValueError)
    assert callable(library.get_token)
