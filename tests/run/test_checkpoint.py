"""Checkpoints: whole or absent on the disk, harmless to load, and enough to rebuild the encoder."""

import copy
import errno
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from twoview.data.preprocess import Preprocess
from twoview.encoder.frozen import digest
from twoview.encoder.resnet import resnet18
from twoview.errors import UserError
from twoview.run.checkpoint import _checksum, load_encoder, read_checkpoint, save_encoder
from twoview.run.saving import AtomicCheckpointIO
from twoview.train import pretrain

FORMS = ["last.ckpt", "", "encoder.safetensors"]  # a checkpoint, a run folder, weights


@pytest.fixture
def about(finished: Path) -> dict[str, Any]:
    """What the finished run's checkpoint says of itself."""
    return copy.deepcopy(read_checkpoint(finished)["twoview"])


def test_a_checkpoint_is_tensors_and_plain_containers(finished: Path) -> None:
    checkpoint = torch.load(finished / "last.ckpt", weights_only=True)
    assert {"state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step", "twoview"} <= checkpoint.keys()
    assert json.loads(json.dumps(checkpoint["twoview"])) == checkpoint["twoview"]


@pytest.mark.parametrize("form", FORMS)
def test_the_encoder_comes_back_bit_for_bit_frozen_and_in_eval_mode(finished: Path, form: str) -> None:
    images = torch.rand(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    encoder = load_encoder(finished / form)
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    stored = torch.load(finished / "last.ckpt", weights_only=True)
    for name, value in encoder.encoder.state_dict().items():  # type: ignore[union-attr, operator]
        assert torch.equal(value, stored["state_dict"][f"encoder.{name}"])
    assert encoder.preprocess.describe() == stored["twoview"]["preprocess"]
    assert encoder.config == stored["twoview"]["config"]
    h = encoder(images)
    assert h.shape == (5, encoder.dim)
    assert not h.requires_grad
    assert torch.equal(h, load_encoder(str(finished / "last.ckpt"))(images))
    torch.testing.assert_close(h[2:3], encoder(images[2:3]))  # eval mode: no row depends on its neighbours


def test_loading_twice_gives_independent_encoders(finished: Path) -> None:
    a, b = load_encoder(finished), load_encoder(finished)
    before = digest(b)
    with torch.no_grad():
        for parameter in a.parameters():
            parameter.add_(1)
    assert digest(b) == before != digest(a)


# Files that are something else.


def spoil(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == "empty":
        path.write_bytes(b"")
    elif how == "text":
        path.write_text("to whom it may concern\n" * 100)
    elif how == "one byte less":
        path.write_bytes(data[:-1])
    elif how == "half":
        path.write_bytes(data[: len(data) // 2])
    elif how == "zeros":
        path.write_bytes(bytes(len(data)))


@pytest.mark.parametrize("how", ["empty", "text", "one byte less", "half", "zeros"])
@pytest.mark.parametrize("form", ["last.ckpt", "encoder.safetensors"])
def test_damaged_files_are_named(finished: Path, tmp_path: Path, form: str, how: str) -> None:
    path = Path(shutil.copy(finished / form, tmp_path / form))
    spoil(path, how)
    with pytest.raises(UserError, match=rf"{form}.* (cannot be read|is not a checkpoint)"):
        load_encoder(path)


@pytest.mark.parametrize(
    "content",
    [
        {"state_dict": {}},
        {"model": torch.zeros(3)},
        torch.zeros(3),
        [1, 2],
        {"twoview": "yes"},
        {"twoview": {}},
        {"twoview": {"format": 2}},
        {"twoview": {"format": "1"}},
        {"twoview": {"format": 1}},
        {"twoview": {"format": 1, "config": None, "preprocess": {}, "shape": (3, 8, 8)}},
        {"twoview": {"format": 1, "config": {}, "preprocess": {}, "shape": (3, 8, 8)}},
    ],
    ids=repr,
)
def test_foreign_checkpoints_are_named(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "foreign.ckpt")
    with pytest.raises(UserError, match=r"foreign\.ckpt .*twoview"):
        load_encoder(tmp_path / "foreign.ckpt")


def test_foreign_weights_are_named(tmp_path: Path) -> None:
    save_file({"w": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    with pytest.raises(UserError, match=r"foreign\.safetensors was not written by twoview"):
        load_encoder(tmp_path / "foreign.safetensors")


@pytest.mark.parametrize("place", ["missing.ckpt", "missing.safetensors", "folder"])
def test_missing_files_are_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=rf"there is no .*{place}"):
        load_encoder(tmp_path / place)


@pytest.mark.parametrize("change", ["a weight less", "a weight more", "another shape", "another encoder"])
def test_weights_that_do_not_fit_are_refused(finished: Path, tmp_path: Path, change: str) -> None:
    checkpoint = read_checkpoint(finished)
    weights = checkpoint["state_dict"]
    first = next(name for name in weights if name.startswith("encoder."))
    if change == "a weight less":
        del weights[first]
    elif change == "a weight more":
        weights["encoder.extra"] = torch.zeros(1)
    elif change == "another shape":
        weights[first] = weights[first][:1]
    else:
        checkpoint["twoview"]["config"]["encoder"] = {"_target_": "twoview.encoder.resnet.resnet18"}
    torch.save(checkpoint, tmp_path / "wrong.ckpt")
    with pytest.raises(UserError, match=r"wrong\.ckpt do not fit the encoder of its configuration"):
        load_encoder(tmp_path / "wrong.ckpt")


# Files that would run code.


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("wrap", ["pickle", "torch", "inside"])
def test_a_pickle_is_not_executed(finished: Path, tmp_path: Path, wrap: str) -> None:
    marker, path = tmp_path / "marker", tmp_path / "bomb.ckpt"
    if wrap == "pickle":
        path.write_bytes(pickle.dumps(Bomb(marker)))
    elif wrap == "torch":
        torch.save(Bomb(marker), path)
    else:
        torch.save(read_checkpoint(finished) | {"more": Bomb(marker)}, path)
    with pytest.raises(UserError, match=r"bomb\.ckpt cannot be read as a checkpoint"):
        load_encoder(path)
    assert not marker.exists()


def attacks(marker: Path) -> dict[str, dict[str, Any]]:
    call = {"command": f"touch {marker}"}
    decoded = "${oc.decode:'{_target_: os.system, command: touch " + str(marker) + "}'}"
    return {
        "plain": {"_target_": "os.system"} | call,
        "through a module of ours": {"_target_": "twoview.cli.entry.os.system"} | call,
        "nested": {"_target_": "twoview.encoder.small.Small", "widths": {"_target_": "os.system"} | call},
        "in a list": {"_target_": "twoview.encoder.small.Small", "widths": [8, {"_target_": "os.system"} | call]},
        "by a resolver": {"_target_": "twoview.encoder.small.Small", "widths": decoded},
        "no text": {"_target_": ["os.system"]} | call,
    }


@pytest.mark.parametrize("attack", list(attacks(Path())))
@pytest.mark.parametrize("form", ["ckpt", "safetensors"])
def test_a_stored_configuration_cannot_call_anything_foreign(
    finished: Path, tmp_path: Path, about: dict[str, Any], attack: str, form: str
) -> None:
    marker = tmp_path / "marker"
    about["config"]["encoder"] = attacks(marker)[attack]
    path = tmp_path / f"evil.{form}"
    if form == "ckpt":
        torch.save(read_checkpoint(finished) | {"twoview": about}, path)
    else:
        weights, text = load_file(finished / "encoder.safetensors"), json.dumps(about)
        save_file(weights, path, metadata={"twoview": text, "sha256": _checksum(weights, text)})
    with pytest.raises(UserError, match="refused"):
        load_encoder(path)
    assert not marker.exists()


@pytest.mark.parametrize("attack", list(attacks(Path())))
@pytest.mark.parametrize("form", ["ckpt", "safetensors"])
def test_neither_can_its_preprocessing(
    finished: Path, tmp_path: Path, about: dict[str, Any], attack: str, form: str
) -> None:
    marker = tmp_path / "marker"
    about["preprocess"] = attacks(marker)[attack]
    with pytest.raises(UserError, match="refused"):
        load_encoder(rewritten(finished, tmp_path / f"evil.{form}", about))
    assert not marker.exists()


PIXELS = "twoview.data.image.pixels.Pixels"


@pytest.mark.parametrize(
    "preprocess",
    [
        {},
        {"mean": [0.5] * 3, "std": [0.2] * 3},
        {"_target_": "twoview.encoder.small.Small"},  # ours, and no preprocessing
        {"_target_": "twoview.data.image.shapes.shapes", "split": "train"},
        {"_target_": PIXELS},
        {"_target_": PIXELS, "mean": [0.5] * 3},
        {"_target_": PIXELS, "mean": [0.5] * 3, "std": [0.0] * 3},
        {"_target_": PIXELS, "mean": [float("nan")] * 3, "std": [0.2] * 3},
        {"_target_": PIXELS, "mean": [0.5] * 3, "std": [0.2] * 2},
        {"_target_": PIXELS, "mean": "abc", "std": [0.2] * 3},
        {"_target_": PIXELS, "mean": [0.5] * 3, "std": [0.2] * 3, "more": 1},
    ],
)
@pytest.mark.parametrize("form", ["ckpt", "safetensors"])
def test_a_preprocessing_that_is_none_is_refused(
    finished: Path, tmp_path: Path, about: dict[str, Any], preprocess: dict[str, Any], form: str
) -> None:
    about["preprocess"] = preprocess
    with pytest.raises(UserError, match="damaged"):
        load_encoder(rewritten(finished, tmp_path / f"evil.{form}", about))


def test_its_tensors_must_fit(finished: Path, tmp_path: Path) -> None:
    for state in ({"mean": torch.zeros(3)}, [1], {"mean": 1}):
        torch.save(read_checkpoint(finished) | {"preprocess": state}, tmp_path / "evil.ckpt")
        with pytest.raises(UserError, match="damaged: its preprocessing"):
            load_encoder(tmp_path / "evil.ckpt")


def rewritten(finished: Path, path: Path, about: dict[str, Any]) -> Path:
    """The finished run's file with another description."""
    if path.suffix == ".ckpt":
        torch.save(read_checkpoint(finished) | {"twoview": about}, path)
    else:
        weights, text = load_file(finished / "encoder.safetensors"), json.dumps(about)
        save_file(weights, path, metadata={"twoview": text, "sha256": _checksum(weights, text)})
    return path


@pytest.mark.parametrize("attack", list(attacks(Path())))
def test_neither_can_its_data_in_a_probe(
    finished: Path, tmp_path: Path, about: dict[str, Any], command: Callable[..., Any], attack: str
) -> None:
    marker = tmp_path / "marker"
    about["config"]["data"] = attacks(marker)[attack]
    torch.save(read_checkpoint(finished) | {"twoview": about}, tmp_path / "evil.ckpt")
    assert "refused" in command("ckpt=evil.ckpt", name="knn").error
    assert not marker.exists()


@pytest.mark.parametrize(
    ("section", "attack"),
    [
        *((section, "plain") for section in ("encoder", "data", "model", "optimizer", "augment", "trainer", "loader")),
        ("knn", "through a module of ours"),
        ("checkpoint", "by a resolver"),
    ],
)
def test_neither_can_a_checkpoint_that_is_resumed(
    finished: Path, tmp_path: Path, about: dict[str, Any], command: Callable[..., Any], section: str, attack: str
) -> None:
    marker = tmp_path / "marker"
    about["config"][section] = attacks(marker)[attack]
    (tmp_path / "run").mkdir()
    torch.save(read_checkpoint(finished) | {"twoview": about}, tmp_path / "run" / "last.ckpt")
    assert "refused" in command("resume=run").error
    assert not marker.exists()


# Writing.


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("unexpected pos")])
def test_a_failing_write_leaves_the_file_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1}, path)

    def save(checkpoint: Any, file: Any) -> None:
        file.write(b"half of it")
        raise failure

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(UserError, match=r"cannot write .*last\.ckpt.*untouched"):
        AtomicCheckpointIO().save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_full_disk_ends_the_run_with_one_message(
    tiny: list[str], tmp_path: Path, command: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, count = torch.save, 0

    def save(checkpoint: Any, file: Any) -> None:
        nonlocal count
        count += 1
        if count == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        original(checkpoint, file)

    monkeypatch.setattr(torch, "save", save)
    assert "No space left on device" in command(*tiny, "hydra.run.dir=run").error
    assert read_checkpoint(tmp_path / "run")["global_step"] == 4


def test_weights_of_a_resnet_are_torchvisions(tmp_path: Path) -> None:
    encoder = resnet18(stem="imagenet").eval()
    save_encoder(encoder, Preprocess(), {"format": 1}, tmp_path / "encoder.safetensors")
    weights = load_file(tmp_path / "encoder.safetensors")
    theirs = torchvision.models.resnet18()
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert (set(missing), unexpected) == ({"fc.weight", "fc.bias"}, [])
    theirs.fc = nn.Identity()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(theirs.eval()(images), encoder(images))
    with safe_open(tmp_path / "encoder.safetensors", "pt") as file:
        assert json.loads(file.metadata()["twoview"]) == {"format": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["encoder.safetensors"]


def test_the_weights_written_are_those_of_the_checkpoint(finished: Path) -> None:
    weights = load_file(finished / "encoder.safetensors")
    stored = read_checkpoint(finished)["state_dict"]
    assert weights.keys() == {name.removeprefix("encoder.") for name in stored if name.startswith("encoder.")}
    assert all(torch.equal(value, stored[f"encoder.{name}"]) for name, value in weights.items())


def test_channels_last_leaves_no_trace_in_the_file(
    compose: Callable[..., dict[str, Any]], tiny: list[str], tmp_path: Path
) -> None:
    pretrain.run(compose(*tiny, "knn=null", "epochs=1", "loader.max_batches=1"), tmp_path)
    assert all(value.is_contiguous() for value in load_file(tmp_path / "encoder.safetensors").values())
