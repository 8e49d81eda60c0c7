"""Weights that an encoder starts from: those of a run or a file, of twoview, torchvision, timm, lightly, solo-learn."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from twoview.errors import UserError, listed

log = logging.getLogger(__name__)

RANDOM = "random"
PRETRAINED = "pretrained"
COUNTERS = "num_batches_tracked"  # of batch normalisation: older files lack them, and nothing is computed from them


def start_from(
    network: nn.Module, weights: str, pretrained: Callable[[], Mapping[str, Tensor]] | None = None
) -> nn.Module:
    """The network with the weights of a file (safetensors, or a state dict of torch's, alone or in a checkpoint) or of
    a run's folder; "random": as it is; "pretrained": those that the network's own package downloads, which the function
    `pretrained` gives.

    Tensors are found by their names, behind whatever prefix they have there ("backbone.", "module.encoder_q."). What
    fits is taken, and all that does not is said. UserError where less than half of the network's parameters would come
    from there. Nothing in the file is executed.
    """
    if weights == RANDOM:
        return network
    path: str | Path = weights
    if weights == PRETRAINED:
        there = _downloaded(pretrained)
    else:
        path = _file(Path(weights).expanduser())
        there = _tensors(path)
    here = network.state_dict()
    prefix = _prefix(there, here)
    found = {name: there[prefix + name] for name in here if prefix + name in there}
    fitting = {name: tensor for name, tensor in found.items() if tensor.shape == here[name].shape}
    numbers = sum(here[name].numel() for name in fitting)
    if 2 * numbers < sum(tensor.numel() for tensor in here.values()):
        raise UserError(
            f"encoder.weights={weights} holds {len(fitting)} of the {len(here)} tensors of the encoder: it is of "
            f"another network. There: {listed(list(there), 3)}. Here: {listed(list(here), 3)}"
        )
    network.load_state_dict(fitting, strict=False)
    lacking = [
        f"{name} ({_size(found[name])} there, {_size(here[name])} here)" if name in found else name
        for name in here
        if name not in fitting and not name.endswith(COUNTERS)
    ]
    if lacking:
        log.warning("not in %s, and drawn at random: %s", path, listed(lacking))
    rest = [name for name in there if not name.startswith(prefix) or name[len(prefix) :] not in fitting]
    log.info(
        "starting from %s: %d of %d tensors%s%s",
        path,
        len(fitting),
        len(here),
        f", called {prefix}..." if prefix else "",
        f"; not used: {listed(rest, 4)}" if rest else "",
    )
    return network


def _downloaded(pretrained: Callable[[], Mapping[str, Tensor]] | None) -> dict[str, Tensor]:
    if pretrained is None:
        raise UserError(
            f"encoder.weights={PRETRAINED}: nobody gives weights for this encoder; name a file or a run, or take "
            "encoder=resnet18, resnet50 or timm"
        )
    try:
        return dict(pretrained())
    except Exception as error:  # of networks, of their packages and of disks
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"encoder.weights={PRETRAINED} cannot be fetched ({reason[:200]}): it needs a network the first time, and "
            "weights that the package has. Download them elsewhere and give encoder.weights=<file>"
        ) from error


def _file(path: Path) -> Path:
    """Of a run: its encoder, else its checkpoint."""
    for name in ("encoder.safetensors", "last.ckpt") if path.is_dir() else ():
        if (path / name).is_file():
            return path / name
    if not path.is_file():
        raise UserError(f"encoder.weights={path}: there is no such file, nor a run in such a folder")
    return path


def _tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a file, by its name."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises half a dozen kinds for damaged and for foreign files
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"encoder.weights={path} cannot be read as weights ({reason[:200]}): give safetensors, or a state dict "
            "that torch.load(..., weights_only=True) reads"
        ) from None
    for key in ("state_dict", "model", "model_state_dict", "teacher", "student"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    found = {str(k): v for k, v in content.items() if isinstance(v, Tensor)} if isinstance(content, dict) else {}
    if not found:
        raise UserError(f"encoder.weights={path} holds no tensors with names: give a state dict")
    return found


def _prefix(there: dict[str, Tensor], here: dict[str, Tensor]) -> str:
    """What stands before the network's names there: the first of those with the most hits."""
    known = [name for name in here if not name.endswith(COUNTERS)]
    tried = dict.fromkeys(key[: -len(name)] for name in known[:1] + known[-1:] for key in there if key.endswith(name))
    return max(tried, key=lambda prefix: sum(prefix + name in there for name in known), default="")


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "1"
