"""What a checkpoint holds, how it is written, and how an encoder comes back out of it.

A checkpoint is Lightning's (weights, optimizer, schedule, progress) with one entry more, `twoview`: the resolved
configuration and what the preprocessing was. It consists of tensors and plain containers, so it loads with
`weights_only=True` and runs no code, and it rebuilds its own encoder.
"""

import hashlib
import itertools
import json
import logging
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import hydra
import pytorch_lightning as pl
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from twoview.cli import schema
from twoview.cli.trust import is_defined_in_its_package, is_trusted, remedy, trusting
from twoview.data.demand import Shape
from twoview.data.preprocess import Preprocess
from twoview.encoder.frozen import Frozen
from twoview.encoder.weights import RANDOM
from twoview.errors import UserError
from twoview.run.atomic import whole
from twoview.run.folder import checkpoint_file
from twoview.run.saving import FORMAT as FORMAT
from twoview.run.saving import AtomicCheckpointIO as AtomicCheckpointIO
from twoview.run.saving import Checkpoints as Checkpoints
from twoview.run.saving import Interrupted as Interrupted
from twoview.run.saving import kept

log = logging.getLogger(__name__)

# What the sections of a run's configuration are built of. Other parts of the package read, write and rename files.
BUILDS = (
    *("twoview.augment.", "twoview.data.", "twoview.encoder.", "twoview.model.", "twoview.optim.recipe."),
    "twoview.train.trainer.make_trainer",
)  # and monitors, which are callbacks of the trainer

STATE = "preprocess."  # before the names of its tensors


EncoderOf = Literal["student", "teacher", "query", "key"]  # the latter two are MoCo's words for the former
ENCODERS = {"student": "encoder.", "teacher": "teacher.", "query": "encoder.", "key": "teacher."}  # in checkpoints


class Damaged(UserError):  # noqa: N818
    """A checkpoint file that is not whole, or not what was written."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The checkpoint in a file, or `last.ckpt` of a run folder. UserError for anything that is not one of twoview's,
    its subclass `Damaged` for a file whose checksums or structure are wrong.
    """
    path = checkpoint_file(path)
    damaged = Damaged(f"{path} cannot be read as a checkpoint: it is damaged, or not a checkpoint of twoview")
    if not _is_whole(path):
        raise damaged
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds for damaged and for foreign files
        raise damaged from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("twoview"), dict):
        raise UserError(f"{path} is not a checkpoint of twoview: it lacks the configuration that rebuilds the encoder")
    found = checkpoint["twoview"].get("format")
    if found != FORMAT:
        raise UserError(f"{path} is in format {found} of twoview's checkpoints, this version reads format {FORMAT}")
    _check_about(checkpoint["twoview"], path)
    return checkpoint


def read_newest(path: str | Path) -> tuple[Path, dict[str, Any]]:
    """The file to go on from and what it holds: `path` itself, or of a run folder the newest checkpoint that is whole,
    with a warning of damaged ones before it.
    """
    path = Path(path).expanduser()
    if not path.is_dir():
        return path, read_checkpoint(path)
    files = kept(path)
    for n, file in enumerate(files):
        try:
            checkpoint = read_checkpoint(file)
        except Damaged:
            continue
        for damaged in files[:n]:
            log.warning("%s is damaged: going on from %s, the one before it", damaged, file.name)
        return file, checkpoint
    return path, read_checkpoint(path)  # which says what is wrong


def set_aside_damaged(start: Path) -> None:
    """Gives another name to damaged checkpoints that are newer than `start`, from which a run goes on: they are none of
    those that it keeps.
    """
    for file in itertools.takewhile(lambda file: file.name != start.name, kept(start.parent)):
        if _is_damaged(file):
            os.replace(file, file.with_name(f"{file.name}.damaged"))


def _is_damaged(file: Path) -> bool:
    try:
        read_checkpoint(file)
    except Damaged:
        return True
    return False


def _is_whole(path: Path) -> bool:
    """Whether every record of a torch file has the checksum that was written with it. `torch.load` does not look."""
    try:
        with zipfile.ZipFile(path) as file:
            stored = all(record.compress_type == zipfile.ZIP_STORED for record in file.infolist())  # as torch does
            return stored and file.testzip() is None
    except Exception:  # zipfile raises half a dozen kinds too
        return False


def _check_about(about: Mapping[str, Any], path: Path) -> None:
    config, preprocess = about.get("config"), about.get("preprocess")
    whole = isinstance(config, dict) and all(isinstance(config.get(key), dict) for key in ("encoder", "data"))
    if not whole or not isinstance(preprocess, dict):
        raise UserError(f"{path} is not a checkpoint of twoview: it lacks the configuration that rebuilds the encoder")
    if _shape(about.get("shape")) is None:
        raise UserError(f"{path} is damaged: it names {about.get('shape')!r} as the shape of its samples")


def _shape(stored: Any) -> Shape | None:
    """The shape of a training sample, as `SampleSet.shape` gives it; None for what is none."""
    if isinstance(stored, dict):
        parts = {str(name): _shape(part) for name, part in stored.items()}
        return parts if parts and all(isinstance(part, tuple) for part in parts.values()) else None
    sizes = isinstance(stored, list | tuple) and all(isinstance(n, int) and n > 0 for n in stored)
    return tuple(stored) if sizes else None


def load_encoder(path: str | Path, encoder_of: EncoderOf = "student", trust: Sequence[str] = ()) -> Frozen:
    """The frozen encoder of a run, in eval mode: samples (B, ...), stored or prepared, -> h (B, D). Of images:
    uint8, or float in [0, 1].

    `path` is a checkpoint, a run folder or an `encoder.safetensors`. The network is rebuilt from the file alone;
    every weight must be there and nothing else. The attribute `encoder` is the plain network, `config` the
    configuration of the run, `identity` who it is (`twoview.run.identity`), `shape` that of a training sample.
    `encoder_of="teacher"` gives the slow copy that BYOL and MoCo keep instead of the encoder that is trained; MoCo's
    words `key` and `query` mean the same. `trust` names packages other than twoview whose parts may be built
    (`twoview.cli.trust`).
    """
    if encoder_of not in ENCODERS:
        raise UserError(f"encoder_of must be one of {', '.join(ENCODERS)}, not {encoder_of}")
    path = Path(path).expanduser()
    prefix = ENCODERS[encoder_of]
    if path.suffix == ".safetensors":
        weights, about = _read_safetensors(path)
        state = _taken(weights, STATE)
        weights = {name: value for name, value in weights.items() if not name.startswith(STATE)}
    else:
        checkpoint = read_checkpoint(path)
        about, state = checkpoint["twoview"], checkpoint.get("preprocess", {})
        weights = _taken(checkpoint["state_dict"], prefix)
    if prefix == "teacher." and (path.suffix == ".safetensors" or not weights):
        raise UserError(
            f"{path} holds no teacher: only checkpoints of methods with a slow copy of the encoder (BYOL, MoCo) have "
            "one; use encoder_of=student"
        )
    with trusting(trust):
        encoder = build_encoder(about["config"])
        preprocess = _preprocess(about["preprocess"], state, path)
    try:
        encoder.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise UserError(
            f"the weights in {path} do not fit the encoder of its configuration: {_first(error)}"
        ) from error
    frozen = Frozen(encoder, preprocess)
    frozen.config = about["config"]
    identity = about.get("identity")
    frozen.identity = identity if isinstance(identity, dict) else {}
    frozen.shape = _shape(about["shape"])
    return frozen.requires_grad_(False).eval()


def _taken(weights: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The weights whose names begin so, by what follows."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _preprocess(described: Mapping[str, Any], state: Any, path: Path) -> Preprocess:
    """What `Preprocess.describe` told and its tensors, as the module that it was."""
    refuse_foreign(described)
    target = described.get("_target_")
    found = hydra.utils.get_object(target) if isinstance(target, str) else None
    if not (isinstance(found, type) and issubclass(found, Preprocess)):
        raise UserError(f"{path} is damaged: it names {target!r} as its preprocessing")
    try:
        preprocess: Preprocess = instantiate_own(described, "preprocess")
        preprocess.load_state_dict(state, strict=True)
    except (UserError, RuntimeError, TypeError) as error:
        raise UserError(f"{path} is damaged: its preprocessing is {dict(described)}: {_first(error)}") from error
    for name, value in [*preprocess.named_parameters(), *preprocess.named_buffers()]:
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"{path} is damaged: {name} of its preprocessing is not finite")
    return preprocess


def load_projector(path: str | Path) -> nn.Module | None:
    """The frozen projection head g of a run, in eval mode: h (B, D) -> z (B, P), not normalised; None for a method
    without heads.

    `path` is a checkpoint or a run folder. Of a method with a teacher it is the student's head.
    """
    checkpoint = read_checkpoint(path)
    config = checkpoint["twoview"]["config"]
    encoder = build_encoder(config)
    recipe = instantiate_own(config.get("optimizer"), "optimizer")
    model = instantiate_own(config.get("model"), "model", encoder=encoder, optimizer=recipe)
    name, projector = next(iter(model.heads().items()), ("", None))
    if projector is None:
        return None
    weights = {
        key.removeprefix(f"{name}."): value
        for key, value in checkpoint["state_dict"].items()
        if key.startswith(f"{name}.")
    }
    try:
        projector.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise UserError(f"the weights in {path} do not fit the head of its configuration: {_first(error)}") from error
    return projector.requires_grad_(False).eval()


def _first(error: Exception) -> str:
    """Of torch's list of what does not fit, one to a line."""
    lines = [line.strip() for line in str(error).splitlines()] or [type(error).__name__]
    more = f" (and {len(lines) - 2} more)" if len(lines) > 2 else ""
    return lines[min(1, len(lines) - 1)] + more


def build_encoder(config: Mapping[str, Any]) -> nn.Module:
    """The encoder of a run's configuration, for weights of its own to be loaded into."""
    own = config["encoder"]
    return instantiate_own(own | {"weights": RANDOM} if isinstance(own, dict) and "weights" in own else own, "encoder")


def instantiate_own(node: Any, section: str, /, **arguments: Any) -> Any:
    """Builds an object of twoview's from a configuration that may come from a stranger: targets outside the package
    are refused, and so is what their constructors do not take.
    """
    refuse_foreign(node)
    if not isinstance(node, Mapping) or not isinstance(node.get("_target_"), str):
        raise UserError(f"the configuration in the checkpoint is damaged: {section} has no _target_")
    try:
        schema.check(node, section)
    except UserError as error:
        raise UserError(f"the configuration in the checkpoint is damaged: {error}") from error
    return schema.build(node, **arguments)


def refuse_foreign(node: Any, where: str = "the configuration in the checkpoint") -> None:
    """UserError for a configuration that calls what is neither of twoview, nor an optimizer of torch, nor of a package
    that the person at the keyboard trusts (`twoview.cli.trust`).
    """
    if isinstance(node, Mapping):
        if "_target_" in node:
            _refuse_target(node["_target_"], where)
        for part in (*node, *node.values()):
            refuse_foreign(part, where)
    elif isinstance(node, list | tuple):
        for value in node:
            refuse_foreign(value, where)
    elif isinstance(node, str) and "${" in node:  # what is stored is resolved; a resolver could make a target of it
        raise UserError(f"{where} holds the expression {node!r}: refused")


def _refuse_target(target: Any, where: str) -> None:
    if isinstance(target, str) and is_trusted(target):
        if not is_defined_in_its_package(target, schema.found(target)):
            raise UserError(f"{where} wants to call {target!r}, which is no class or function of that package: refused")
    elif not _is_own(target):
        raise UserError(
            f"{where} wants to call {target!r}, which is not part of twoview: refused.{remedy(target)}".rstrip(".")
        )


def _is_own(target: Any) -> bool:
    """Whether a path leads to what the sections of a run are made of, or to a class of optimizers; not to what modules
    import, as `twoview.cli.entry.os.system`, nor to the parts of twoview that write files, as `twoview.commands.probe`.
    """
    if not isinstance(target, str) or not target.startswith(("twoview.", "torch.optim.")):
        return False
    try:
        found = hydra.utils.get_object(target)
    except Exception:  # hydra wraps whatever the import raised
        return False
    if isinstance(found, type) and issubclass(found, torch.optim.Optimizer):
        return True
    if isinstance(found, type) and issubclass(found, pl.Callback):
        return found.__module__.startswith("twoview.")
    module, name = getattr(found, "__module__", ""), getattr(found, "__qualname__", "_")
    public = name.isidentifier() and not name.startswith("_")  # of the module itself: no method
    return public and f"{module}.{name}".startswith(BUILDS)


def save_encoder(encoder: nn.Module, preprocess: Preprocess, about: Mapping[str, Any], path: Path) -> None:
    """Writes `encoder.safetensors`: the weights under the network's own keys, the tensors of the preprocessing, and in
    the metadata what rebuilds both and a checksum over all of it.
    """
    tensors = encoder.state_dict() | {STATE + name: value for name, value in preprocess.state_dict().items()}
    weights = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    text = json.dumps(dict(about))
    with whole(path) as part:
        save_file(weights, part, metadata={"twoview": text, "sha256": _checksum(weights, text)})


def _checksum(weights: Mapping[str, torch.Tensor], about: str) -> str:
    """sha256 (hex) over names, types, shapes and bytes of the weights, and what is said about them."""
    sha = hashlib.sha256(about.encode())
    for name, tensor in sorted(weights.items()):
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _read_safetensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        text = metadata.get("twoview", "null")
        about = json.loads(text)
        weights = load_file(path)
    except (SafetensorError, ValueError, RecursionError, OSError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(about, dict):
        raise UserError(
            f"{path} was not written by twoview: its metadata lack the configuration that rebuilds the encoder"
        )
    if metadata.get("sha256") != _checksum(weights, text):
        raise Damaged(
            f"{path} is damaged: its checksum is wrong; use last.ckpt of the run, or export it again from that"
        )
    _check_about(about, path)
    return weights, about
