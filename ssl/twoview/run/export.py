"""Writers of an encoder for other software. Each returns what the file computes once it is read back."""

import logging
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from twoview.data.demand import Samples, take
from twoview.data.image.pixels import Pixels
from twoview.encoder.frozen import Frozen
from twoview.errors import UserError
from twoview.run.checkpoint import load_encoder, save_encoder
from twoview.run.saving import FORMAT

log = logging.getLogger(__name__)

Function = Callable[[Any], Tensor]


def disagreement(encoder: nn.Module, other: Function, samples: Samples) -> tuple[float, float]:
    """The largest absolute difference of two functions of samples, over a batch and a single one, and the largest
    absolute value of the first.
    """
    differences, scales = [], []
    for batch in (samples, take(samples, slice(1))):
        h, found = encoder(batch), other(batch)  # (B, D) each
        if h.shape != found.shape:
            raise UserError(f"the file gives features of shape {tuple(found.shape)}, the encoder {tuple(h.shape)}")
        differences.append((h - found).abs().max())
        scales.append(h.abs().max())
    return float(torch.stack(differences).max()), float(torch.stack(scales).max())


def write_torchvision(encoder: Frozen, path: Path, num_classes: int | None = None) -> Function:
    """The weights under torchvision's keys, for its network with `fc` taken out; with `num_classes` there is an `fc`
    of zeros, and an untouched `torchvision.models.<name>(num_classes=...)` takes all keys. The images have to be
    normalised outside.

    Returns what a torchvision network loaded from the file makes of images in [0, 1].
    """
    name, stem = architecture(encoder)
    weights = {key: value.cpu().contiguous() for key, value in encoder.encoder.state_dict().items()}
    if num_classes is not None:
        weights |= {"fc.weight": torch.zeros(num_classes, encoder.dim), "fc.bias": torch.zeros(num_classes)}
    torch.save(weights, path)

    network = getattr(torchvision.models, name)(**({} if num_classes is None else {"num_classes": num_classes}))
    if stem == "cifar":
        network.conv1, network.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    if num_classes is None:
        network.fc = nn.Identity()
    network.load_state_dict(torch.load(path, weights_only=True), strict=True)
    network.fc = nn.Identity()
    network.dim = encoder.dim
    return Frozen(network, encoder.preprocess).eval()


def architecture(encoder: Frozen) -> tuple[str, str]:
    """torchvision's name of the network, and its stem. UserError if it is none of torchvision's."""
    about = encoder.config["encoder"]
    module, _, name = str(about["_target_"]).rpartition(".")
    if module != "twoview.encoder.resnet" or not isinstance(encoder.preprocess, Pixels):
        raise UserError(
            f"the encoder {name} is not one of torchvision's networks; use format=safetensors, onnx, torchscript or pt2"
        )
    if about.get("channels", 3) != 3:
        raise UserError(
            f"torchvision's {name} is for 3 channels, this one for {about['channels']}; use format=safetensors, onnx, "
            "torchscript or pt2"
        )
    return name, about.get("stem", "cifar")


def write_safetensors(encoder: Frozen, path: Path) -> Function:
    """The weights and what rebuilds the network, as a run leaves them in `encoder.safetensors`."""
    about = {
        "format": FORMAT,
        "config": encoder.config,
        "preprocess": encoder.preprocess.describe(),
        "shape": encoder.shape,
        "identity": encoder.identity,
    }
    named = path.with_name(path.name + ".safetensors")  # by its suffix it is known
    try:
        save_encoder(encoder.encoder, encoder.preprocess, about, named)
        loaded = load_encoder(named)
        named.replace(path)
    finally:
        named.unlink(missing_ok=True)
    return loaded


def write_onnx(encoder: nn.Module, example: Tensor, path: Path, about: str) -> Function:
    """Input `images` float32 (B, C, H, W) in [0, 1], output `h` (B, D), any B; `about` in the model's metadata. Samples
    of another kind go by the name of images too.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if missing:
        raise UserError(f"format=onnx needs {', '.join(missing)}: pip install 'twoview[export]'")
    import onnxruntime

    program = torch.onnx.export(
        encoder,
        (example,),
        dynamo=True,
        input_names=["images"],
        output_names=["h"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    assert program is not None
    program.model.metadata_props["twoview"] = about
    program.save(path, external_data=False)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["h"], {"images": images.numpy()})[0])


def write_torchscript(encoder: nn.Module, example: Tensor, path: Path, about: str) -> Function:
    """A trace, for `torch.jit.load` in Python and C++. It is not frozen, so that it can move to another device.
    `about` is the extra file twoview.json.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*torch.jit", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
        traced = torch.jit.trace(encoder, example, check_trace=False)
        torch.jit.save(traced, path, _extra_files={"twoview.json": about})
        loaded: Function = torch.jit.load(path)
    return loaded


def write_pt2(encoder: nn.Module, example: Tensor, path: Path, about: str) -> Function:
    """An exported program, for `torch.export.load` and the ahead-of-time compiler. `about` is the extra file
    twoview.json.
    """
    program = torch.export.export(encoder, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    with path.open("wb") as file:  # a file, because torch wants paths to end in .pt2
        torch.export.save(program, file, extra_files={"twoview.json": about})
    with path.open("rb") as file:
        loaded: Function = torch.export.load(file).module()
    return loaded


GRAPHS: dict[str, Callable[[nn.Module, Tensor, Path, str], Function]] = {
    "onnx": write_onnx,
    "torchscript": write_torchscript,
    "pt2": write_pt2,
}


def torchvision_code(path: Path, name: str, stem: str, num_classes: int | None) -> list[str]:
    """The lines that load a file of `write_torchvision`."""
    lines = without_classifier(name, stem, num_classes)
    return [*lines, f"  model.load_state_dict(torch.load({str(path)!r}), strict=True)"]


def without_classifier(name: str, stem: str, num_classes: int | None = None) -> list[str]:
    """The lines that make torchvision's network with the stem; with `num_classes` it keeps its classifier."""
    lines = [f"  model = torchvision.models.{name}({'' if num_classes is None else f'num_classes={num_classes}'})"]
    if stem == "cifar":
        lines += ["  model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()"]
    if num_classes is None:
        lines += ["  model.fc = nn.Identity()  # gives h; or num_classes=K for a file with a classifier of zeros"]
    return lines
