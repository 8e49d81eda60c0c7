"""Takes the encoder out of a run, as a file or folder that other software reads.

The file is read back and its outputs are compared with the encoder's before it is put in place.
"""

import json
import logging
from pathlib import Path
from typing import Any, Literal

import torch
from omegaconf import DictConfig
from torch import Tensor

from twoview.cli.entry import plain
from twoview.data.demand import Samples, Shape, shape_of, shape_words
from twoview.encoder.frozen import Frozen
from twoview.errors import UserError
from twoview.evaluate.subject import check_run, origin
from twoview.run.atomic import filling, replacing
from twoview.run.checkpoint import EncoderOf, instantiate_own, load_encoder
from twoview.run.export import (
    GRAPHS,
    architecture,
    disagreement,
    torchvision_code,
    write_safetensors,
    write_torchvision,
)
from twoview.run.folder import checkpoint_file
from twoview.run.hub import check_hub, huggingface_code, push, write_huggingface

log = logging.getLogger(__name__)

TOLERANCE = 1e-4  # of the largest absolute value of h: float32 in another order of summation is at 1e-6

KEYS = {
    "ckpt": str | None,
    "format": Literal["torchvision", "safetensors", "onnx", "torchscript", "pt2", "huggingface"],
    "encoder_of": EncoderOf,
    "num_classes": int | None,
    "size": int | None,
    "out": str | None,
    "push": str | None,
}

SUFFIXES = {"torchvision": "pth", "safetensors": "safetensors", "onnx": "onnx", "torchscript": "pt", "pt2": "pt2"}
FOLDER = "huggingface"  # beside the checkpoint


def export_command(composed: DictConfig) -> int:
    """`twoview export`."""
    config = plain(composed)
    check_run(config, KEYS)
    kind = config["format"]
    if config["num_classes"] is not None and (kind != "torchvision" or config["num_classes"] < 1):
        raise UserError("num_classes adds a classifier to format=torchvision: a number of at least 1, or null")
    if config["push"] is not None:
        if kind != "huggingface":
            raise UserError(f"push=... is for format=huggingface, not {kind}")
        check_hub(config["push"])
    encoder = load_encoder(config["ckpt"], config["encoder_of"])
    path = Path(config["out"]).expanduser() if config["out"] else _default(config, encoder)
    samples = _examples(config["size"], encoder)
    with (filling if kind == "huggingface" else replacing)(path) as part, torch.no_grad():
        if kind == "torchvision":
            read_back = write_torchvision(encoder, part, config["num_classes"])
        elif kind == "safetensors":
            read_back = write_safetensors(encoder, part)
        elif kind == "huggingface":
            read_back = write_huggingface(encoder, part, checkpoint_file(config["ckpt"]), _is_student(config))
        else:
            if not isinstance(samples, Tensor):
                raise UserError(f"format={kind} takes samples of one tensor, and these have several: use safetensors")
            read_back = GRAPHS[kind](encoder, samples[:2], part, json.dumps(origin(config, encoder)))
        difference, scale = disagreement(encoder, read_back, samples)
        if not difference <= TOLERANCE * scale:  # NaN, too
            raise UserError(
                f"the {kind} {'folder' if kind == 'huggingface' else 'file'} is not kept: its outputs differ from the "
                f"encoder's by up to {difference:.2g}, of values up to {scale:.2g}"
            )
    log.info("%s agrees with the encoder: largest difference %.1e, of values up to %.2g", path, difference, scale)
    for line in _usage(kind, encoder, path, shape_of(samples), config["num_classes"]):
        log.info("%s", line)
    if config["push"] is not None:
        log.info("pushed to %s", push(path, config["push"]))
    return 0


def _examples(size: int | None, encoder: Frozen) -> Samples:
    """Five samples to compare outputs on: noise in place of images, squares of `size` pixels if it is given;
    of other kinds of data the first ones of the run's own.
    """
    if size is not None and (size < 1 or encoder.preprocess.kind != "image"):
        raise UserError(f"size must be at least 1 pixel, and is for images alone, not {size}")
    if encoder.preprocess.kind == "image":
        c, h, w = encoder.shape
        shape = (c, h, w) if size is None else (c, size, size)
        return torch.rand(5, *shape, generator=torch.Generator().manual_seed(0))
    samples = instantiate_own(encoder.config["data"], "data")(split="train")
    found: Samples = samples.fetch(torch.arange(min(5, len(samples))))
    return found


def _is_student(config: dict[str, Any]) -> bool:
    return config["encoder_of"] in ("student", "query")


def _default(config: dict[str, Any], encoder: Frozen) -> Path:
    stem = architecture(encoder)[0] if config["format"] == "torchvision" else "encoder"
    key = "" if _is_student(config) else "_teacher"
    if config["format"] == "huggingface":
        return checkpoint_file(config["ckpt"]).with_name(FOLDER + key)
    return checkpoint_file(config["ckpt"]).with_name(f"{stem}{key}.{SUFFIXES[config['format']]}")


def _usage(kind: str, encoder: Frozen, path: Path, shape: Shape, num_classes: int | None) -> list[str]:
    """How the file is read."""
    batch = f"(B, {', '.join(map(str, shape))})" if isinstance(shape, tuple) else f"(B of {shape_words(shape)})"
    if kind == "huggingface":
        lines = [f"  {line}" for line in huggingface_code(encoder, str(path))]
        return [f"{path / 'README.md'} is the model card; to load the network:", *lines]
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


def _short(values: Tensor) -> str:
    return "(" + ", ".join(f"{value:.4f}" for value in values.tolist()) + ")"
