"""Networks of timm (github.com/huggingface/pytorch-image-models) as encoders."""

import difflib
import inspect
import logging
import math
from typing import Any, Literal

import torch
from torch import Tensor, nn

from twoview.encoder.weights import start_from
from twoview.errors import UserError

log = logging.getLogger(__name__)

STRIDED = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
LEAST = 4  # places of a side of the last maps


class TokenAndMean(nn.Module):
    """Tokens (B, N, D), of which the first `prefix` are no patches -> class token and mean of the patches (B, 2D)."""

    def __init__(self, prefix: int) -> None:
        super().__init__()
        self.prefix = prefix

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.cat([tokens[:, 0], tokens[:, self.prefix :].mean(1)], dim=1)


def timm_encoder(
    name: str,
    size: int | None = None,
    channels: int = 3,
    stem: Literal["auto", "small", "as_is"] = "auto",
    pool: Literal["token", "avg", "both"] | None = None,
    drop_path: float = 0.0,
    freeze_patch: bool = False,
    args: dict[str, Any] | None = None,
    weights: str = "random",
) -> nn.Module:
    """timm's network without its classifier: images (B, `channels`, `size`, `size`) -> h (B, dim). Every key of its
    weights is timm's.

    `dim` is what a forward pass gives, since timm's `num_features` is another width for some. `stem`: most networks
    divide the resolution by 32, which leaves one place of an image of 32 pixels, and learn badly so. `small` takes the
    strides of the first layers away until the last maps are 4 times as large, `auto` until they are at least 4 x 4,
    `as_is` leaves them. Networks that are built for one size (vision transformers: `args={patch_size: 4}`) stay as they
    are. `pool` of vision transformers; `freeze_patch` leaves their patch embedding as it is drawn (MoCo v3, section 4:
    training is steadier so); `args` are passed on. The attribute `package` is timm with its version,
    `arguments` what it was built with, `changed` the attributes of layers that the stem has changed. UserError for
    whatever timm refuses, and for networks whose output is no vector.
    """
    if size is None:
        raise UserError("encoder=timm builds for one size: set encoder.size to the pixels of a side of the views")
    if size < 1 or channels < 1 or not 0 <= drop_path < 1:
        raise UserError(
            f"encoder timm needs size and channels of at least 1 and 0 <= drop_path < 1, not {size}, {channels} and "
            f"{drop_path}"
        )
    given = {**_passed_on(args or {}), "num_classes": 0, "in_chans": channels}
    given |= {"drop_path_rate": drop_path} if drop_path else {}
    given |= {"global_pool": "" if pool == "both" else pool} if pool else {}
    network = _create(name, size, given)
    if pool is not None:
        _pool(network, name, pool)
    x = torch.zeros(1, channels, size, size)
    network.eval()
    network.dim, side = _width(network, name, x), _side(network, x)
    factor = {"as_is": 1, "small": 4, "auto": 2 ** max(0, math.ceil(math.log2(LEAST / side)))}[stem]
    network.changed = {}
    if factor > 1 and _takes_larger(network, x):
        network.changed = _enlarge(network, x, factor)
        network.dim, side = _width(network, name, x), _side(network, x)
    elif stem == "small":
        raise UserError(f"encoder.stem=small is not for {name}, which is built for one size of maps: use auto")
    if side < LEAST:
        log.warning(
            "%s makes %d x %d places of an image of %d pixels, which are few to learn from: take larger images, "
            "encoder.stem=auto, or where it has patches smaller ones: encoder.args={patch_size: %d}",
            *(name, side, side, size, max(1, size // 8)),
        )
    start_from(network.train(), weights, lambda: _create(name, size, given, pretrained=True).state_dict())
    if freeze_patch:
        _freeze_patch(network, name)
    return network


def _passed_on(args: dict[str, Any]) -> dict[str, Any]:
    """The further arguments. UserError for those that have a key of their own, and for those that load files."""
    keys = {"img_size": "size", "in_chans": "channels", "global_pool": "pool", "drop_path_rate": "drop_path"}
    own = {f"{name} is encoder.{key}" for name, key in keys.items() if name in args}
    factory = set(inspect.signature(_timm().create_model).parameters) - {"kwargs"}
    refused = sorted(args.keys() & (factory | {"num_classes", "features_only", "pretrained_model_args"}))
    if own or refused:
        raise UserError("encoder.args: " + "; ".join([*sorted(own), *(f"{name} is not passed on" for name in refused)]))
    return args


def _timm() -> Any:
    try:
        import timm
    except ModuleNotFoundError:
        raise UserError("encoder=timm needs timm: pip install 'twoview[timm]'") from None
    return timm


def _create(name: str, size: int, given: dict[str, Any], pretrained: bool = False) -> Any:
    """The network, built for the size where it has one. timm does not tell which of its networks do: it is tried."""
    timm = _timm()
    if ":" in name or not timm.is_model(name.partition(".")[0]):
        close = difflib.get_close_matches(name, timm.list_models(), n=3)
        hint = f" Did you mean {' or '.join(close)}?" if close else " timm.list_models() lists them."
        raise UserError(f"encoder.name={name} is no network of timm {timm.__version__}.{hint}")
    try:
        try:
            network, own = timm.create_model(name, pretrained, img_size=size, **given), {"img_size": size}
        except TypeError:
            network, own = timm.create_model(name, pretrained, **given), {}
    except Exception as error:  # each of its networks raises kinds of its own
        values = ", ".join(f"{key}={value}" for key, value in given.items()).replace("in_chans", "channels")
        raise UserError(f"encoder.name={name} cannot be built with size={size}, {values}: {_line(error)}") from error
    network.arguments = {**given, **own}
    network.package = f"timm {timm.__version__}"
    return network


def _pool(network: Any, name: str, pool: str) -> None:
    prefix = getattr(network, "num_prefix_tokens", None)
    if prefix is None or (pool != "avg" and not prefix):
        raise UserError(f"encoder.pool={pool} is for vision transformers, and {name} has no such tokens: leave it out")
    if pool == "both":
        network.head = TokenAndMean(prefix)


def _freeze_patch(network: Any, name: str) -> None:
    if getattr(network, "patch_embed", None) is None:
        raise UserError(f"encoder.freeze_patch is for networks with patches, and {name} has none: leave it out")
    network.patch_embed.requires_grad_(False)


def _width(network: Any, name: str, x: Tensor) -> int:
    """Of the features, by a forward pass."""
    try:
        with torch.no_grad():
            maps, h = network.forward_features(x), network(x)
    except Exception as error:  # as above
        shape = " x ".join(map(str, x.shape[1:]))
        raise UserError(f"encoder.name={name} does not take images of {shape}: {_line(error)}") from error
    if not isinstance(maps, Tensor) or not isinstance(h, Tensor) or h.ndim != 2:
        found = f"features of shape {tuple(h.shape)}" if isinstance(maps, Tensor) else "a list of features"
        raise UserError(f"encoder.name={name} gives {found} in place of one vector a sample: choose another network")
    return h.shape[1]


def _side(network: Any, x: Tensor) -> int:
    """Places of a side of the last maps, whether their channels come first or last or they are tokens."""
    with torch.no_grad():
        return max(1, math.isqrt(network.forward_features(x).numel() // network.num_features))


def _takes_larger(network: Any, x: Tensor) -> bool:
    """Whether it has maps, no tokens, and they may be of other sizes: no table of positions ties it to one."""
    try:
        with torch.no_grad():
            return network.forward_features(x.repeat(1, 1, 2, 2)).ndim == 4
    except Exception:  # each of its networks raises kinds of its own
        return False


def _enlarge(network: nn.Module, x: Tensor, factor: int) -> dict[str, dict[str, Any]]:
    """Takes strides away where the resolution is reduced first, until maps are `factor` times as large. Returns what
    has changed, by the names of the modules.

    All modules that reduce the same resolution change together: they are branches of one block.
    """
    changed: dict[str, dict[str, Any]] = {}
    while factor > 1 and (names := _first_strided(network, x)):
        step = min(factor, max(_both(network.get_submodule(name).stride)[0] for name in names))
        for name in names:
            module: Any = network.get_submodule(name)
            stride = max(1, _both(module.stride)[0] // step)
            if isinstance(module, nn.Conv2d):
                padding = tuple((kernel - stride + 1) // 2 for kernel in module.kernel_size)
                changed[name] = {"stride": (stride, stride), "padding": padding}
            else:  # pooling over one place does nothing
                changed[name] = {"kernel_size": (stride, stride), "stride": (stride, stride), "padding": (0, 0)}
            vars(module).update(changed[name])
        factor //= step
    return changed


def _first_strided(network: nn.Module, x: Tensor) -> list[str]:
    """The names of the modules with a stride that see the largest maps, in the order in which they come."""
    seen: list[tuple[str, int]] = []

    def note(name: str) -> Any:
        return lambda _, inputs: seen.append((name, inputs[0].shape[-1]))

    hooks = [
        module.register_forward_pre_hook(note(name))
        for name, module in network.named_modules()
        if isinstance(module, STRIDED) and _both(module.stride)[0] > 1
    ]
    with torch.no_grad():
        network(x)
    for hook in hooks:
        hook.remove()
    return [name for name, side in seen if side == seen[0][1]]


def _both(stride: Any) -> tuple[int, int]:
    return stride if isinstance(stride, tuple) else (stride, stride)


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
