"""A run starts from weights that there are: what fits is taken, what does not is said, and "untrained" means them."""

import logging
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from twoview.encoder.frozen import digest
from twoview.encoder.resnet import resnet18
from twoview.encoder.small import Small
from twoview.encoder.weights import start_from
from twoview.errors import UserError
from twoview.evaluate.subject import Subject
from twoview.run.checkpoint import load_encoder, read_checkpoint

Command = Callable[..., Any]


def small() -> Small:
    return Small(widths=(4, 4, 8, 8))


FORMS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "safetensors": lambda state: state,
    "state dict": lambda state: state,
    "lightly's": lambda state: {"state_dict": named(state, "backbone.", "projection_head.")},
    "solo-learn's": lambda state: {"state_dict": named(state, "backbone.", "momentum_backbone.")},
    "MoCo's": lambda state: {"state_dict": named(state, "module.encoder_q.", "module.encoder_k.")},
    "with a classifier": lambda state: {"model": state | {"fc.weight": torch.zeros(2, 2)}},
    "without counters": lambda state: {name: tensor for name, tensor in state.items() if "num_batches" not in name},
}


def named(state: dict[str, torch.Tensor], own: str, other: str) -> dict[str, torch.Tensor]:
    """As a checkpoint has them, with another network of other weights behind."""
    return {own + k: v for k, v in state.items()} | {f"{other}0.{k}": torch.zeros_like(v) for k, v in state.items()}


@pytest.mark.parametrize("form", FORMS)
def test_weights_are_found_behind_any_prefix(form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    source = small()
    file = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pth")
    (save_file if form == "safetensors" else torch.save)(FORMS[form](source.state_dict()), file)
    found = start_from(small(), str(file))
    for (name, value), own in zip(found.state_dict().items(), source.state_dict().values(), strict=True):
        assert value.equal(own), name
    assert f"starting from {file}: " in caplog.text
    assert "drawn at random" not in caplog.text


def test_a_network_of_torchvision_fits_and_what_does_not_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    source = torchvision.models.resnet18()
    torch.save(source.state_dict(), tmp_path / "resnet18.pth")
    found = resnet18(stem="cifar", weights=str(tmp_path / "resnet18.pth"))
    assert found.layer4[1].conv2.weight.equal(source.layer4[1].conv2.weight)  # type: ignore[index, union-attr]
    assert "drawn at random: conv1.weight (64x3x7x7 there, 64x3x3x3 here)" in caplog.text
    assert "not used: conv1.weight, fc.weight and fc.bias" in caplog.text
    whole = resnet18(stem="imagenet", weights=str(tmp_path / "resnet18.pth"))
    assert whole.conv1.weight.equal(source.conv1.weight)  # type: ignore[union-attr]


class Evil:
    """A pickle that leaves a file behind where it is executed."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, ("was executed", "w"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "there is no such file, nor a run in such a folder"),
        (lambda path: path.mkdir(), "there is no such file, nor a run in such a folder"),
        (lambda path: path.write_bytes(b"junk"), "cannot be read as weights"),
        (lambda path: path.write_bytes(pickle.dumps(Evil())), "cannot be read as weights"),
        (lambda path: torch.save([1, 2], path), "holds no tensors with names"),
        (lambda path: torch.save(nn.Linear(2, 2).state_dict(), path), "holds 0 of the 36 tensors of the encoder"),
        (lambda path: torch.save(Small((8, 8, 8, 8)).state_dict(), path), "it is of another network"),
    ],
)
def test_what_are_no_weights_for_it_is_refused(
    make: Callable[[Path], Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path / "weights.pth")
    with pytest.raises(UserError, match=rf"encoder\.weights=.*{message}"):
        start_from(small(), str(tmp_path / "weights.pth"))
    assert not (tmp_path / "was executed").exists()


def test_a_run_starts_from_another_goes_on_and_calls_its_start_untrained(
    finished: Path, tiny: list[str], command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = shutil.copytree(finished, tmp_path / "first")
    words = [*tiny, "encoder.weights=first", "hydra.run.dir=second", "epochs=1"]
    ended = command(*words)
    assert ended.code == 0, ended.err
    assert f"starting from {first / 'encoder.safetensors'}" in ended.out
    about = read_checkpoint(tmp_path / "second")["twoview"]
    assert about["config"]["encoder"]["weights"] == str(first)
    assert about["identity"]["weights"] == digest(load_encoder(first).encoder)[:12]
    second = load_encoder(tmp_path / "second")
    subject = Subject(second, None, None, torch.device("cpu"))  # type: ignore[arg-type]
    assert digest(subject.untrained().encoder) == digest(load_encoder(first).encoder)
    assert command("ckpt=second", "k=5", "baseline=true", name="knn").code == 0
    error = command("resume=second", "epochs=2", "encoder.weights=third", "allow_changes=true").error
    assert "encoder.weights=" in error
    assert "is what a run starts from" in error
    shutil.rmtree(first)  # what the run has learned, it has
    assert command("resume=second", "epochs=2", "allow_changes=true").code == 0
    assert read_checkpoint(tmp_path / "second")["twoview"]["identity"]["weights"] == about["identity"]["weights"]
    assert command("ckpt=second", "k=5", name="knn").code == 0
    error = command("ckpt=second", "k=5", "baseline=true", name="knn").error
    assert f"encoder.weights={first}: there is no such file" in error


def test_runs_from_other_weights_are_other_runs(
    finished: Path, tiny: list[str], command: Command, tmp_path: Path
) -> None:
    hashes = []
    for place, seed in (("a", 0), ("a", 0), ("a", 1)):
        torch.manual_seed(seed)
        torch.save(small().state_dict(), tmp_path / "a.pth")
        folder = f"run{len(hashes)}"
        assert command(*tiny, f"encoder.weights={place}.pth", f"hydra.run.dir={folder}", "epochs=1").code == 0
        hashes.append(read_checkpoint(tmp_path / folder)["twoview"]["identity"]["run_hash"])
    assert hashes[0] == hashes[1] != hashes[2]


def test_weights_that_torchvision_downloads(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    theirs = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda *_, **__: theirs)
    with caplog.at_level(logging.INFO, "twoview"):
        network = resnet18(stem="imagenet", weights="pretrained")
    assert all(torch.equal(value, theirs[name]) for name, value in network.state_dict().items())
    assert "starting from pretrained: 120 of 120 tensors; not used: fc.weight and fc.bias" in caplog.text
    small = resnet18(stem="cifar", weights="pretrained")  # another first convolution, which is said
    assert torch.equal(small.layer1[0].conv1.weight, theirs["layer1.0.conv1.weight"])
    assert "drawn at random: conv1.weight (64x3x7x7 there, 64x3x3x3 here)" in caplog.text


def test_without_a_network_one_line_names_the_file_to_give(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(UserError, match=r"cannot be fetched \(Name or service not known\).*encoder\.weights=<file>"):
        resnet18(weights="pretrained")
    with pytest.raises(UserError, match="nobody gives weights for this encoder"):
        Small(weights="pretrained")
