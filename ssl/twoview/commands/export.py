"""Takes the encoder out of a run, as a file that other software reads. Before the file is put in place it is read back
and its outputs are compared with the encoder's own.
"""

import json
import logging
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
import torchvision
from omegaconf import DictConfig
from torch import Tensor, nn

from twoview.cli.entry import plain
from twoview.data.image.pixels import Pixels
from twoview.encoder.frozen import Frozen
from twoview.errors import UserError
from twoview.evaluate.subject import check_run, checkpoint_file, origin
from twoview.run.atomic import replacing
from twoview.run.checkpoint import EncoderOf, instantiate_own, load_encoder, save_encoder
from twoview.run.saving import FORMAT

log = logging.getLogger(__name__)

TOLERANCE = 1e-4  # of the largest absolute value of h: float32 in another order of summation is at 1e-6
KEYS = {
    "ckpt": str | None,
    "format": Literal["torchvision", "safetensors", "onnx", "torchscript", "pt2"],
    "encoder_of": EncoderOf,
    "num_classes": int | None,
    "size": int | None,
    "out": str | None,
}
SUFFIXES = {"torchvision": "pth", "safetensors": "safetensors", "onnx": "onnx", "torchscript": "pt", "pt2": "pt2"}

Function = Callable[[Tensor], Tensor]


def export_command(composed: DictConfig) -> int:
    """`scripts/export.py`."""
    config = plain(composed)
    check_run(config, KEYS)
    kind = config["format"]
    if config["num_classes"] is not None and (kind != "torchvision" or config["num_classes"] < 1):
        raise UserError("num_classes adds a classifier to format=torchvision: a number of at least 1, or null")
    encoder = load_encoder(config["ckpt"], config["encoder_of"])
    path = Path(config["out"]).expanduser() if config["out"] else _default(config, encoder)
    images = _examples(config["size"], encoder)
    shape = tuple(images.shape[1:])
    with replacing(path) as part, torch.no_grad():
        if kind == "torchvision":
            read_back = write_torchvision(encoder, part, config["num_classes"])
        elif kind == "safetensors":
            read_back = write_safetensors(encoder, part)
        else:
            read_back = GRAPHS[kind](encoder, images[:2], part, json.dumps(origin(config, encoder)))
        difference, scale = disagreement(encoder, read_back, images)
        if not difference <= TOLERANCE * scale:  # NaN, too
            raise UserError(
                f"the {kind} file is not kept: its outputs differ from the encoder's by up to {difference:.2g}, of "
                f"values up to {scale:.2g}"
            )
    log.info("%s agrees with the encoder: largest difference %.1e, of values up to %.2g", path, difference, scale)
    for line in _usage(kind, encoder, path, shape, config["num_classes"]):
        log.info("%s", line)
    return 0


def disagreement(encoder: nn.Module, other: Function, images: Tensor) -> tuple[float, float]:
    """The largest absolute difference of two functions of samples, over a batch and a single one, and the largest
    absolute value of the first.
    """
    differences, scales = [], []
    for batch in (images, images[:1]):
        h, found = encoder(batch), other(batch)  # (B, D) each
        if h.shape != found.shape:
            raise UserError(f"the file gives features of shape {tuple(found.shape)}, the encoder {tuple(h.shape)}")
        differences.append((h - found).abs().max())
        scales.append(h.abs().max())
    return float(torch.stack(differences).max()), float(torch.stack(scales).max())


# Weights alone.


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
            f"format=torchvision: the encoder {name} is not one of torchvision's networks; "
            "use format=safetensors, onnx, torchscript or pt2"
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


# The network itself, with the preprocessing in it. Each writer gets an example batch and a text to keep in the file,
# and returns what the file computes.


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


def _examples(size: int | None, encoder: Frozen) -> Tensor:
    """Five samples (5, ...) to compare outputs on: noise in place of images, squares of `size` pixels if it is given;
    of other kinds of data the first ones of the run's own.
    """
    if size is not None and (size < 1 or encoder.preprocess.kind != "image"):
        raise UserError(f"size must be at least 1 pixel, and is for images alone, not {size}")
    if encoder.preprocess.kind == "image":
        c, h, w = encoder.shape
        shape = (c, h, w) if size is None else (c, size, size)
        return torch.rand(5, *shape, generator=torch.Generator().manual_seed(0))
    samples = instantiate_own(encoder.config["data"], "data")(split="train")
    examples = samples.fetch(torch.arange(min(5, len(samples))))
    if not isinstance(examples, Tensor):
        raise UserError("format=safetensors alone holds an encoder of samples that consist of several tensors")
    return examples


def _default(config: dict[str, Any], encoder: Frozen) -> Path:
    stem = architecture(encoder)[0] if config["format"] == "torchvision" else "encoder"
    key = "_teacher" if config["encoder_of"] in ("teacher", "key") else ""
    return checkpoint_file(config["ckpt"]).with_name(f"{stem}{key}.{SUFFIXES[config['format']]}")


def _usage(kind: str, encoder: Frozen, path: Path, shape: tuple[int, ...], num_classes: int | None) -> list[str]:
    """How the file is read."""
    batch = f"(B, {', '.join(map(str, shape))})"
    if kind == "torchvision":
        pixels: Any = encoder.preprocess
        return [
            f"images {batch} in [0, 1] -> normalise by mean {_short(pixels.mean)} and std {_short(pixels.std)} "
            f"-> h (B, {encoder.dim})",
            *torchvision_code(path, *architecture(encoder), num_classes),
        ]
    code = {
        "safetensors": f"twoview.run.checkpoint.load_encoder({str(path)!r})",
        "onnx": f"onnxruntime.InferenceSession({str(path)!r}).run(['h'], {{'images': images}})",
        "torchscript": f"torch.jit.load({str(path)!r})   (torch.jit is deprecated in torch: format=pt2 follows it)",
        "pt2": f"torch.export.load({str(path)!r}).module()",
    }
    what = f"images {batch} in [0, 1]" if encoder.preprocess.kind == "image" else f"samples {batch}"
    return [f"{what} -> h (B, {encoder.dim}):", f"  {code[kind]}"]


def torchvision_code(path: Path, name: str, stem: str, num_classes: int | None) -> list[str]:
    """The lines that load a file of `write_torchvision`."""
    lines = [f"  model = torchvision.models.{name}({'' if num_classes is None else f'num_classes={num_classes}'})"]
    if stem == "cifar":
        lines += ["  model.conv1, model.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()"]
    if num_classes is None:
        lines += ["  model.fc = nn.Identity()  # gives h; or num_classes=K for a file with a classifier of zeros"]
    return [*lines, f"  model.load_state_dict(torch.load({str(path)!r}), strict=True)"]


def _short(values: Tensor) -> str:
    return "(" + ", ".join(f"{value:.4f}" for value in values.tolist()) + ")"
